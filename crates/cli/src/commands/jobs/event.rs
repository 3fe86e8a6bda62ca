//! An event of a job as a sentence.

use serde_json::Value;
use tunesmith_jobs::store::StoredEvent;

use super::grid::plain;
use crate::progress::thousands;

/// An event in one line that a terminal only shows.
pub(super) fn sentence(event: &StoredEvent) -> String {
    let data = &event.data;
    let count = |name: &str| data.get(name).and_then(Value::as_u64).unwrap_or_default();
    let number = |name: &str| data.get(name).and_then(Value::as_f64);
    let text = |name: &str| plain(data.get(name).and_then(Value::as_str).unwrap_or_default());
    let rows = |name: &str| thousands(count(name) as usize);
    match event.kind.as_str() {
        "phase" => format!("now {}", text("phase")),
        "data" => format!("read `{}`", text("source")),
        "plan" => format!(
            "{} training rows, {} held out; {} {}, {} steps",
            rows("train_examples"),
            rows("validation_examples"),
            count("epochs"),
            if count("epochs") == 1 { "epoch" } else { "epochs" },
            rows("total_steps"),
        ),
        "step" => {
            let mut line = format!("step {}/{}", count("step"), count("total_steps"));
            for (name, value, digits) in [("epoch", number("epoch"), 2), ("loss", number("loss"), 4)] {
                if let Some(value) = value {
                    line = format!("{line}  {name} {value:.digits$}");
                }
            }
            if let Some(rate) = number("learning_rate") {
                line = format!("{line}  lr {rate:.2e}");
            }
            if let (Some(tokens), Some(seconds)) = (number("tokens"), number("seconds"))
                && seconds > 0.0
            {
                line = format!("{line}  {} tokens/s", thousands((tokens / seconds) as usize));
            }
            line
        }
        "evaluation" => {
            let loss = number("loss").map_or("not a number".to_owned(), |loss| format!("{loss:.4}"));
            format!("evaluation after step {}  loss {loss}", count("step"))
        }
        "warning" => format!("warning: {}", text("message")),
        "checkpoint" => format!("checkpoint at step {}", count("step")),
        "resumed" => format!("going on from step {}", count("step")),
        "stopped" => format!("stopped: {}", text("reason")),
        "memory" => format!("peak memory {} bytes", rows("peak_bytes")),
        other => format!("{} {}", plain(other), plain(&data.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(kind: &str, data: Value) -> String {
        sentence(&StoredEvent { seq: 1, time: String::new(), kind: kind.to_owned(), data })
    }

    #[test]
    fn events_read_as_sentences_and_obey_nobody() {
        assert_eq!(
            said(
                "step",
                json!({ "step": 3, "total_steps": 40, "epoch": 0.5, "loss": 2.25, "learning_rate": 1e-4, "tokens": 100, "seconds": 0.5 })
            ),
            "step 3/40  epoch 0.50  loss 2.2500  lr 1.00e-4  200 tokens/s"
        );
        assert_eq!(said("step", json!({ "step": 3, "total_steps": 40 })), "step 3/40");
        assert_eq!(said("warning", json!({ "message": "a\u{1b}[2Jb\n" })), "warning: a\\u{1b}[2Jb\\n");
        assert_eq!(said("evaluation", json!({ "step": 4 })), "evaluation after step 4  loss not a number");
        assert_eq!(
            said("new\u{7}", json!({ "a": "\u{1b}" })),
            "new\\u{7} {\"a\":\"\\\\u001b\"}".replace("\\\\", "\\")
        );
    }
}
