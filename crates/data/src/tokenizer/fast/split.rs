//! The splitting patterns of byte-level tokenizers, each as a scanner: one look at the next one or two characters
//! decides which alternative of the pattern matches.

use super::classes::{Class, Classes};

/// Llama 3's pattern, with room for how many digits stand together.
const LLAMA3: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// [`LLAMA3`] with at most this many digits in a word.
    Llama3 { digits: usize },
}

/// Cuts text into the words that are tokenised apart.
#[derive(Debug)]
pub(super) struct Splitter {
    pattern: Pattern,
    classes: Classes,
}

impl Splitter {
    /// The pattern that `ByteLevel` has built in.
    pub(super) fn gpt2() -> Option<Self> {
        Some(Self { pattern: Pattern::Gpt2, classes: Classes::new()? })
    }

    /// `None` for a pattern that is not known.
    pub(super) fn from_pattern(pattern: &str) -> Option<Self> {
        let digits = pattern.strip_prefix(LLAMA3[0])?.strip_suffix(LLAMA3[1])?;
        let digits = match digits {
            r"\p{N}{1,3}" => 3,
            r"\p{N}" => 1,
            _ => return None,
        };
        Some(Self { pattern: Pattern::Llama3 { digits }, classes: Classes::new()? })
    }

    /// Where the word that starts at `at` ends. `at` must be inside `piece`.
    #[inline]
    pub(super) fn word_end(&self, piece: &str, at: usize) -> usize {
        match self.pattern {
            Pattern::Gpt2 => self.gpt2_end(piece, at),
            Pattern::Llama3 { digits } => self.llama3_end(piece, at, digits),
        }
    }

    fn llama3_end(&self, piece: &str, at: usize, digits: usize) -> usize {
        let (first, next) = self.classes.peek(piece, at);
        match first {
            Class::Letter => self.classes.run(piece, next, Class::Letter),
            Class::Number => self.number_end(piece, next, digits),
            Class::Newline | Class::End => self.blank_end(piece, at, true),
            Class::Space | Class::Other => {
                let byte = piece.as_bytes()[at];
                if byte == b'\''
                    && let Some(end) = contraction_end(piece, next, true)
                {
                    return end;
                }
                let (second, after) = self.classes.peek(piece, next);
                if second == Class::Letter {
                    self.classes.run(piece, after, Class::Letter)
                } else if first == Class::Other {
                    self.marks_end(piece, next)
                } else if byte == b' ' && second == Class::Other {
                    self.marks_end(piece, after)
                } else {
                    self.blank_end(piece, at, true)
                }
            }
        }
    }

    fn gpt2_end(&self, piece: &str, at: usize) -> usize {
        let byte = piece.as_bytes()[at];
        let (mut class, mut next) = self.classes.peek(piece, at);
        if byte == b'\''
            && let Some(end) = contraction_end(piece, next, false)
        {
            return end;
        }
        if byte == b' ' {
            let (second, after) = self.classes.peek(piece, next);
            if matches!(second, Class::Letter | Class::Number | Class::Other) {
                (class, next) = (second, after);
            }
        }
        match class {
            Class::Letter | Class::Number | Class::Other => self.classes.run(piece, next, class),
            _ => self.blank_end(piece, at, false),
        }
    }

    fn number_end(&self, piece: &str, mut at: usize, digits: usize) -> usize {
        for _ in 1..digits {
            let (class, next) = self.classes.peek(piece, at);
            if class != Class::Number {
                break;
            }
            at = next;
        }
        at
    }

    /// A run of other characters and the line ends behind it.
    fn marks_end(&self, piece: &str, at: usize) -> usize {
        let at = self.classes.run(piece, at, Class::Other);
        self.classes.run(piece, at, Class::Newline)
    }

    /// `\s*[\r\n]+` where `lines`, then `\s+(?!\S)|\s+`: up to the last line end of the run of white space, else all of
    /// it but the last character, which belongs to what follows.
    fn blank_end(&self, piece: &str, start: usize, lines: bool) -> usize {
        let (mut at, mut last, mut line_end) = (start, start, None);
        loop {
            let (class, next) = self.classes.peek(piece, at);
            match class {
                Class::Newline if lines => line_end = Some(next),
                Class::Newline | Class::Space => {}
                _ => break,
            }
            (last, at) = (at, next);
        }
        match line_end {
            Some(end) => end,
            None if at < piece.len() && last > start => last,
            None => at,
        }
    }
}

/// The end of a contraction whose apostrophe stands before `at`. `fold`: in capitals too, as Unicode folds them.
fn contraction_end(piece: &str, at: usize, fold: bool) -> Option<usize> {
    let bytes = piece.as_bytes();
    let letter = |i: usize| bytes.get(i).map(|b| if fold { b.to_ascii_lowercase() } else { *b });
    match (letter(at)?, letter(at + 1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 2),
        _ if fold && bytes[at..].starts_with("ſ".as_bytes()) => Some(at + "ſ".len()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tokenizers::utils::SysRegex;

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    static SPLITTERS: LazyLock<Vec<(Splitter, SysRegex)>> = LazyLock::new(|| {
        let llama = |digits: &str| [LLAMA3[0], digits, LLAMA3[1]].concat();
        let mut all = vec![(Splitter::gpt2().unwrap(), SysRegex::new(GPT2).unwrap())];
        for pattern in [llama(r"\p{N}{1,3}"), llama(r"\p{N}")] {
            all.push((Splitter::from_pattern(&pattern).unwrap(), SysRegex::new(&pattern).unwrap()));
        }
        all
    });

    fn words(splitter: &Splitter, text: &str) -> Vec<(usize, usize)> {
        let mut words = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let end = splitter.word_end(text, at);
            assert!(end > at, "{text:?} at {at}");
            words.push((at, end));
            at = end;
        }
        words
    }

    fn check(text: &str) {
        for (splitter, regex) in SPLITTERS.iter() {
            let expected: Vec<(usize, usize)> = regex.find_iter(text).collect();
            assert_eq!(words(splitter, text), expected, "{:?}: {text:?}", splitter.pattern);
        }
    }

    #[test]
    fn every_character_of_unicode_splits_as_the_engine_splits_it() {
        // All assigned characters stand in the first three planes and the fifteenth; of the others, some.
        let assigned = |c: &char| matches!(*c as u32 >> 16, 0..=3 | 14) || (*c as u32).is_multiple_of(251);
        let all: Vec<char> = ('\0'..=char::MAX).filter(assigned).collect();
        for some in all.chunks(10_000) {
            let text: String = some.iter().flat_map(|c| ['a', *c, ' ', *c, *c, '1', '\'', *c]).collect();
            check(&text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]
        #[test]
        fn random_text_splits_as_the_engine_splits_it(
            text in "([ \\t\\r\\n\u{a0}\u{85}\u{3000}a-eslrmdtvSLRTVſK'’.,!12٣½éß你\u{301}🙂]|'s|'LL|'re| {2,4}|\\n ){0,24}"
        ) {
            check(&text);
        }
    }
}
