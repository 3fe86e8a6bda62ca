//! Finds the tokens that were added to a vocabulary: they are cut out of a text before anything else happens to it.

use std::ops::Range;

use tokenizers::Tokenizer;

#[derive(Debug, Default)]
struct Node {
    children: Vec<(u8, u32)>,
    /// The token that ends here, and whether it is a special one.
    token: Option<(u32, bool)>,
}

/// Texts of one kind, as a tree of their bytes.
#[derive(Debug)]
struct Tree {
    nodes: Vec<Node>,
    /// First bytes of the texts.
    starts: [bool; 256],
}

impl Tree {
    fn new() -> Self {
        Self { nodes: vec![Node::default()], starts: [false; 256] }
    }

    fn insert(&mut self, text: &str, token: (u32, bool)) {
        let mut at = 0;
        for (depth, byte) in text.bytes().enumerate() {
            self.starts[usize::from(byte)] |= depth == 0;
            at = if let Some(next) = self.child(at, byte) {
                next
            } else {
                self.nodes.push(Node::default());
                let next = self.nodes.len() - 1;
                self.nodes[at].children.push((byte, next as u32));
                next
            };
        }
        self.nodes[at].token = Some(token);
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let children = &self.nodes[node].children;
        children.iter().find(|(b, _)| *b == byte).map(|(_, next)| *next as usize)
    }

    /// The longest token at `start` that may be one: its end and id.
    fn longest(&self, bytes: &[u8], start: usize, literal: &[usize]) -> Option<(usize, u32)> {
        let (mut node, mut found) = (0, None);
        for (at, byte) in bytes.iter().enumerate().skip(start) {
            let Some(next) = self.child(node, *byte) else { break };
            node = next;
            if let Some((id, special)) = self.nodes[node].token
                && !(special && holds(literal, start, at + 1))
            {
                found = Some((at + 1, id));
            }
        }
        found
    }

    /// Calls `emit` with the parts of `span` in order: texts between tokens, and tokens with their ids.
    fn split(
        &self,
        text: &str,
        span: Range<usize>,
        literal: &[usize],
        mut emit: impl FnMut(Range<usize>, Option<u32>),
    ) {
        let bytes = &text.as_bytes()[..span.end];
        let (mut done, mut at) = (span.start, span.start);
        while let Some(skip) = bytes[at..].iter().position(|b| self.starts[usize::from(*b)]) {
            let start = at + skip;
            if let Some((end, id)) = self.longest(bytes, start, literal) {
                if done < start {
                    emit(done..start, None);
                }
                emit(start..end, Some(id));
                (done, at) = (end, end);
            } else {
                at = start + 1;
            }
        }
        if done < span.end {
            emit(done..span.end, None);
        }
    }
}

/// Whether a position lies strictly inside `start..end`. Positions ascend.
fn holds(literal: &[usize], start: usize, end: usize) -> bool {
    literal.get(literal.partition_point(|p| *p <= start)).is_some_and(|p| *p < end)
}

/// The added tokens of a tokenizer.
#[derive(Debug)]
pub(super) struct Added {
    /// Tokens looked for first, and those that are looked for in what is left between them.
    trees: [Tree; 2],
    any: [bool; 2],
}

impl Added {
    /// `None` when a token has flags that are not supported: one that takes white space with it, that stands for whole
    /// words only, or that is looked for in normalised text which differs from the text itself.
    pub(super) fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let mut this = Self { trees: [Tree::new(), Tree::new()], any: [false; 2] };
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            let late = token.normalized && tokenizer.get_normalizer().is_some();
            if token.single_word || token.lstrip || token.rstrip || late || token.content.is_empty() {
                return None;
            }
            let round = usize::from(token.normalized);
            this.trees[round].insert(&token.content, (id, token.special));
            this.any[round] = true;
        }
        Some(this)
    }

    /// Calls `emit` with the parts of `text` in order. `literal`: see [`super::Fast::encode`].
    pub(super) fn split(
        &self,
        text: &str,
        literal: &[usize],
        mut emit: impl FnMut(Range<usize>, Option<u32>),
    ) {
        let [first, second] = &self.trees;
        first.split(text, 0..text.len(), literal, |span, id| {
            if id.is_none() && self.any[1] {
                second.split(text, span, literal, &mut emit);
            } else {
                emit(span, id);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_longest_token_wins_unless_it_must_stay_text() {
        let mut tree = Tree::new();
        for (id, text) in [(0, "<s>"), (1, "<s><s>"), (2, "s><x"), (3, "[b]")] {
            tree.insert(text, (id, id != 3));
        }
        let parts = |text: &str, literal: &[usize]| {
            let mut parts = Vec::new();
            tree.split(text, 0..text.len(), literal, |span, id| parts.push((text[span].to_owned(), id)));
            parts
        };
        let part = |text: &str, id| (text.to_owned(), id);
        assert_eq!(parts("", &[]), []);
        assert_eq!(
            parts("a<s><s><s>", &[]),
            [part("a", None), part("<s><s>", Some(1)), part("<s>", Some(0))]
        );
        assert_eq!(parts("<s><s>", &[3]), [part("<s>", Some(0)), part("<s>", Some(0))]);
        assert_eq!(parts("<s><s>", &[1]), [part("<s>", None), part("<s>", Some(0))]);
        assert_eq!(parts("<s><x", &[1]), [part("<", None), part("s><x", Some(2))]);
        assert_eq!(parts("<s><x", &[1, 3]), [part("<s><x", None)]);
        assert_eq!(parts("[b]é<s", &[1]), [part("[b]", Some(3)), part("é<s", None)]);
    }
}
