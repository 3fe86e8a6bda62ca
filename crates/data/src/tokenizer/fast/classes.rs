//! The character classes that splitting patterns speak of, exactly as the regex engine of the reference has them.

use std::sync::OnceLock;

use tokenizers::utils::SysRegex;

/// What a splitting pattern can tell apart. `\s` is `Space` and `Newline` together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// None of the others.
    Other,
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s` without `Newline`.
    Space,
    /// `\r` and `\n`.
    Newline,
    /// Behind the last character.
    End,
}

/// The classes beyond ASCII, by code point.
static WIDE: OnceLock<Vec<Class>> = OnceLock::new();

const ASCII: [Class; 128] = {
    let mut table = [Class::Other; 128];
    let mut b = 0;
    while b < 128 {
        let byte = b as u8;
        if byte.is_ascii_alphabetic() {
            table[b] = Class::Letter;
        } else if byte.is_ascii_digit() {
            table[b] = Class::Number;
        } else if matches!(byte, b'\n' | b'\r') {
            table[b] = Class::Newline;
        } else if matches!(byte, b' ' | b'\t' | 0x0B | 0x0C) {
            table[b] = Class::Space;
        }
        b += 1;
    }
    table
};

/// Tells classes apart. The engine is asked once, when the first character beyond ASCII comes up.
#[derive(Debug)]
pub(super) struct Classes {
    engines: [(SysRegex, Class); 3],
}

impl Classes {
    /// `None` when the engine refuses the classes.
    pub(super) fn new() -> Option<Self> {
        let engine = |pattern: &str| SysRegex::new(pattern).ok();
        let engines = [
            (engine(r"\p{L}+")?, Class::Letter),
            (engine(r"\p{N}+")?, Class::Number),
            (engine(r"\s+")?, Class::Space),
        ];
        Some(Self { engines })
    }

    /// The class of the character at `at` and where the next one starts.
    #[inline]
    pub(super) fn peek(&self, text: &str, at: usize) -> (Class, usize) {
        match text.as_bytes().get(at) {
            None => (Class::End, at),
            Some(&byte) if byte < 128 => (ASCII[usize::from(byte)], at + 1),
            Some(_) => self.peek_wide(text, at),
        }
    }

    /// The end of the run of `class` that starts at `at`; `at` itself when there is none.
    #[inline]
    pub(super) fn run(&self, text: &str, mut at: usize, class: Class) -> usize {
        loop {
            let (found, next) = self.peek(text, at);
            if found != class {
                return at;
            }
            at = next;
        }
    }

    fn peek_wide(&self, text: &str, at: usize) -> (Class, usize) {
        let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) else {
            return (Class::End, at);
        };
        let table = WIDE.get_or_init(|| self.table());
        (table.get(c as usize).copied().unwrap_or(Class::Other), at + c.len_utf8())
    }

    fn table(&self) -> Vec<Class> {
        let all: String = ('\0'..=char::MAX).collect();
        let mut table = vec![Class::Other; char::MAX as usize + 1];
        for (engine, class) in &self.engines {
            for (from, to) in engine.find_iter(&all) {
                for c in all[from..to].chars() {
                    table[c as usize] = *class;
                }
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_is_as_the_engine_has_it() {
        let classes = Classes::new().unwrap();
        let table = classes.table();
        for (b, class) in ASCII.iter().enumerate() {
            let expected = if matches!(b, 10 | 13) { Class::Newline } else { table[b] };
            assert_eq!(*class, expected, "{b}");
        }
        // Newline must stay an ASCII class for `run` to be right beyond ASCII.
        assert_eq!(table[0x85], Class::Space);
        assert_eq!(table[0x2028], Class::Space);
    }
}
