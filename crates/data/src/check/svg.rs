//! A histogram of lengths as a drawing.

use super::finding::thousands;
use super::lengths::Lengths;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 190.0;
/// Room for the axes' labels: left, right, top, bottom.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 42.0;

/// Bars for the bins, with both axes labelled, and a mark at `limit` where rows reach it.
pub(super) fn histogram(lengths: &Lengths, title: &str, limit: Option<usize>) -> String {
    let bins = &lengths.bins;
    let highest = bins.iter().map(|b| b.rows).max().unwrap_or(0).max(1);
    let top = nice(highest);
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let bottom = TOP + height;
    let step = width / bins.len().max(1) as f64;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Histogram: {title}\">\n");
    let mut draw = |shape: String| {
        svg.push_str(&shape);
        svg.push('\n');
    };
    for part in 0..=2 {
        let rows = top * part / 2;
        let y = bottom - height * rows as f64 / top as f64;
        draw(format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        ));
        draw(format!(
            "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            thousands(rows)
        ));
    }
    let mark = limit.filter(|limit| *limit < lengths.max);
    for (i, bin) in bins.iter().enumerate() {
        let x = LEFT + step * i as f64;
        let tall = height * bin.rows as f64 / top as f64;
        // A bin of few rows among many must not vanish.
        let tall = if bin.rows > 0 { tall.max(1.5) } else { 0.0 };
        let over = if mark.is_some_and(|limit| bin.from > limit) { " over" } else { "" };
        draw(format!(
            "<rect class=\"bar{over}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\"><title>{} tokens: {} \
             rows</title></rect>",
            x + 1.0,
            bottom - tall,
            (step - 2.0).max(1.0),
            range(bin.from, bin.to),
            thousands(bin.rows)
        ));
        let every = bins.len().div_ceil(8);
        if i % every == 0 {
            draw(format!("<text x=\"{x:.1}\" y=\"{:.1}\">{}</text>", bottom + 16.0, thousands(bin.from)));
        }
    }
    draw(format!("<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">tokens</text>", WIDTH - RIGHT, HEIGHT - 6.0));
    draw(format!("<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">rows</text>", LEFT - 6.0, TOP - 10.0));
    if let Some(limit) = mark {
        let within = bins.iter().filter(|b| b.from <= limit).count();
        let part = bins
            .get(within.saturating_sub(1))
            .map_or(0.0, |b| (limit + 1 - b.from) as f64 / (b.to + 1 - b.from) as f64);
        let x = LEFT + step * (within.saturating_sub(1) as f64 + part.min(1.0));
        draw(format!(
            "<line class=\"limit\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom}\"/>",
            TOP - 8.0
        ));
        let (side, x) = if x > WIDTH / 2.0 { ("end", x - 5.0) } else { ("limit-text", x + 5.0) };
        draw(format!(
            "<text class=\"{side}\" x=\"{x:.1}\" y=\"{:.1}\">limit {}</text>",
            TOP - 1.0,
            thousands(limit)
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

fn range(from: usize, to: usize) -> String {
    if from == to { thousands(from) } else { format!("{} to {}", thousands(from), thousands(to)) }
}

/// The end of an axis that reaches so far: a round number with a round half.
fn nice(highest: usize) -> usize {
    if let Some(small) = [2, 4, 6, 8].into_iter().find(|end| highest <= *end) {
        return small;
    }
    let mut unit: usize = 1;
    loop {
        let ends = [10, 12, 16, 20, 24, 30, 40, 50, 60, 80].map(|end| unit.saturating_mul(end));
        if let Some(end) = ends.into_iter().find(|end| highest <= *end) {
            return end;
        }
        unit = unit.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers() {
        for (highest, end) in
            [(1, 2), (2, 2), (3, 4), (9, 10), (11, 12), (21, 24), (61, 80), (700, 800), (801, 1000)]
        {
            assert_eq!(nice(highest), end);
        }
    }
}
