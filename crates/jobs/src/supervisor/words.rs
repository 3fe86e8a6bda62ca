//! Spans of time, signals and ends in words.

use std::time::Duration;

/// A span of time: `5 min`, `40 s`, `0.5 s`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds >= 120.0 {
        format!("{:.0} min", seconds / 60.0)
    } else if seconds >= 1.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// A signal by its number.
pub(super) fn signal(number: i32) -> String {
    let name = match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        _ => return format!("signal {number}"),
    };
    format!("signal {number} ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_signals_have_words() {
        let spans = [300, 60, 10].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["5 min", "60 s", "10 s"]);
        assert_eq!(span(Duration::from_millis(500)), "0.5 s");
        assert_eq!((signal(9), signal(64)), ("signal 9 (SIGKILL)".to_owned(), "signal 64".to_owned()));
    }
}
