//! An event of a job as a sentence.

use serde_json::Value;
use tunesmith_jobs::store::StoredEvent;

use super::grid::plain;
use crate::commands::quote::bytes;
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
        "memory" => match data.get("device_peak_bytes").and_then(Value::as_u64) {
            None => format!("peak memory {} bytes", rows("peak_bytes")),
            Some(_) => {
                format!(
                    "peak memory {} bytes, {} on the device",
                    rows("peak_bytes"),
                    rows("device_peak_bytes")
                )
            }
        },
        "memory_plan" => format!("memory: {}", memory_plan(data)),
        other => format!("{} {}", plain(other), plain(&data.to_string())),
    }
}

/// A memory plan in a line: how steps are cut, what is computed again, and the bytes.
pub(super) fn memory_plan(data: &Value) -> String {
    let count = |name: &str| data.get(name).and_then(Value::as_u64);
    let tokens = thousands(count("micro_batch_tokens").unwrap_or_default() as usize);
    let mut line = format!("micro-batches of up to {tokens} tokens, {}", layers(data.get("layers")));
    for (what, name) in [("planned", "predicted_peak_bytes"), ("measured", "measured_peak_bytes")] {
        if let Some(n) = count(name) {
            line = format!("{line}, {} {what}", bytes(n));
        }
    }
    if let Some(n) = count("available_bytes") {
        line = format!("{line} of {}", bytes(n));
    }
    match data.get("failed").and_then(Value::as_str) {
        Some(why) => format!("{line}; it did not hold: {}", plain(why)),
        None => line,
    }
}

/// `layers 0-11 recompute mlp, 12-31 none`, or that all are alike.
fn layers(ranges: Option<&Value>) -> String {
    let ranges = ranges.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let word = |range: &Value| plain(range.get("recompute").and_then(Value::as_str).unwrap_or_default());
    let at = |range: &Value, end: &str| range.get(end).and_then(Value::as_u64).unwrap_or_default();
    match ranges {
        [] => "no layers".to_owned(),
        [all] if word(all) == "none" => "nothing computed again".to_owned(),
        [all] => format!("recompute {} in every layer", word(all)),
        several => {
            let one = |range: &Value| match (at(range, "first"), at(range, "last")) {
                (first, last) if first == last => format!("{first}: {}", word(range)),
                (first, last) => format!("{first}-{last}: {}", word(range)),
            };
            format!("recompute by layers ({})", several.iter().map(one).collect::<Vec<_>>().join(", "))
        }
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
        let layers = json!([
            { "first": 0, "last": 0, "recompute": "min" }, { "first": 1, "last": 31, "recompute": "none" }
        ]);
        assert_eq!(
            said(
                "memory_plan",
                json!({
                    "micro_batch_tokens": 4096, "layers": layers, "predicted_peak_bytes": 22_u64 << 30,
                    "measured_peak_bytes": 21_u64 << 30, "available_bytes": 23_u64 << 30
                })
            ),
            "memory: micro-batches of up to 4,096 tokens, recompute by layers (0: min, 1-31: none), 22.0 GiB planned, \
             21.0 GiB measured of 23.0 GiB"
        );
        let failed = json!({
            "micro_batch_tokens": 9, "layers": [{ "first": 0, "last": 3, "recompute": "mlp" }], "failed": "full\u{7}"
        });
        assert_eq!(
            said("memory_plan", failed),
            "memory: micro-batches of up to 9 tokens, recompute mlp in every layer; it did not hold: full\\u{7}"
        );
        assert_eq!(
            said("memory", json!({ "peak_bytes": 1000, "device_peak_bytes": 2000 })),
            "peak memory 1,000 bytes, 2,000 on the device"
        );
        assert_eq!(said("warning", json!({ "message": "a\u{1b}[2Jb\n" })), "warning: a\\u{1b}[2Jb\\n");
        assert_eq!(said("evaluation", json!({ "step": 4 })), "evaluation after step 4  loss not a number");
        assert_eq!(
            said("new\u{7}", json!({ "a": "\u{1b}" })),
            "new\\u{7} {\"a\":\"\\\\u001b\"}".replace("\\\\", "\\")
        );
    }
}
