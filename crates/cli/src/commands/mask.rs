//! A row as the model sees it, in the terminal.

use std::fmt::Write as _;

use tunesmith_data::check::{MaskPreview, Piece, shortened, visible};

use crate::out::Style;
use crate::progress::thousands;

/// Characters and lines of an untrained stretch that are shown.
const PROMPT: (usize, usize) = (1200, 12);
/// Characters and lines of a trained stretch that are shown.
const TRAINED: (usize, usize) = (8000, 100);

/// The row under a line that says what it is. Trained text is coloured and underlined, or stands between « and ».
pub(crate) fn text(preview: &MaskPreview, place: &str, show_tokens: bool, style: Style) -> String {
    let mut text = format!(
        "{place}: {} of {} tokens trained",
        thousands(preview.trained_tokens),
        thousands(preview.tokens)
    );
    if preview.eos_appended {
        text.push_str(", the last one appended");
    }
    if preview.cut_tokens > 0 {
        let _ = write!(text, ", {} cut off in front", thousands(preview.cut_tokens));
    }
    text.push('\n');
    for pieces in preview.spans() {
        let trained = pieces.first().is_some_and(|p| p.trained);
        let (characters, lines) = if trained { TRAINED } else { PROMPT };
        let (front, left_out, back) = shortened(pieces, characters, lines);
        let mut span = shown(front, show_tokens, style);
        if !left_out.is_empty() {
            let tokens = thousands(left_out.iter().map(|p| p.tokens).sum());
            span.push_str(&style.paint(Style::DIM, &format!("[... {tokens} tokens not shown ...]")));
        }
        span.push_str(&shown(back, show_tokens, style));
        if trained && !style.is_coloured() {
            span = format!("«{span}»");
        }
        text.push_str(&span);
    }
    text.push('\n');
    text
}

fn shown(pieces: &[Piece], show_tokens: bool, style: Style) -> String {
    let mut text = String::new();
    // Neighbours of one colour are painted together.
    for pieces in pieces.chunk_by(|a, b| !show_tokens && colour(a) == colour(b)) {
        let mut plain = String::new();
        pieces.iter().for_each(|piece| put(piece, &mut plain));
        text.push_str(&style.paint(pieces.first().map_or("", colour), &plain));
        if show_tokens {
            text.push_str(&style.paint(Style::DIM, "|"));
        }
    }
    text
}

fn colour(piece: &Piece) -> &'static str {
    match (piece.trained, piece.control) {
        (true, true) => Style::TRAINED_CONTROL,
        (true, false) => Style::TRAINED,
        (false, true) => Style::MAGENTA,
        (false, false) => "",
    }
}

/// Adds a piece's text, with white space made to show where it is trained.
fn put(piece: &Piece, plain: &mut String) {
    for c in piece.text.chars() {
        match c {
            ' ' if piece.trained && !piece.control => plain.push('·'),
            '\n' if piece.trained => plain.push_str("↵\n"),
            '\t' if piece.trained => plain.push('→'),
            '\n' | '\t' => plain.push(c),
            c => visible(c, plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, trained: bool, control: bool) -> Piece {
        Piece { text: text.to_owned(), tokens: 1, trained, control }
    }

    fn preview(pieces: Vec<Piece>) -> MaskPreview {
        MaskPreview {
            place: tunesmith_data::Place::default(),
            tokens: pieces.len(),
            trained_tokens: pieces.iter().filter(|p| p.trained).count(),
            eos_appended: true,
            cut_tokens: 0,
            pieces,
        }
    }

    #[test]
    fn trained_text_is_marked_with_its_white_space() {
        let preview = preview(vec![
            piece("<s>", false, true),
            piece("a b\n\u{1b}[2J", false, false),
            piece(" c", true, false),
            piece("\n", true, false),
            piece("</s>", true, true),
        ]);
        assert_eq!(
            text(&preview, "`x`:1", false, Style::plain()),
            "`x`:1: 3 of 5 tokens trained, the last one appended\n<s>a b\n␛[2J«·c↵\n</s>»\n"
        );
        assert!(text(&preview, "", true, Style::plain()).ends_with("«·c|↵\n|</s>|»\n"));
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let mut pieces: Vec<Piece> = (0..1000).map(|i| piece(&format!("word{i} "), false, false)).collect();
        pieces.push(piece("yes", true, false));
        let shown = text(&preview(pieces), "", false, Style::plain());
        let (front, rest) = shown.split_once("[... ").unwrap();
        let (count, back) = rest.split_once(" tokens not shown ...]").unwrap();
        let words = front.matches("word").count() + back.matches("word").count();
        assert_eq!(words + count.parse::<usize>().unwrap(), 1000);
        assert!(front.contains("word0 ") && back.ends_with("word999 «yes»\n"), "{back}");
    }
}
