//! How fast a tokenizer is: `tokenize_speed FOLDER_OF_TOKENIZER ROWS.jsonl [SECONDS]` tokenises every text of the rows, on the
//! fast path and through the original library, on one thread and on all.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::Value;
use tunesmith_data::{TextTokenizer, Tokens};

type Failure = Box<dyn std::error::Error>;

/// All texts of a row, one behind the other, as prompt and completion are tokenised.
fn text(row: &Value) -> String {
    let values = row.as_object().into_iter().flat_map(|map| map.values());
    values.filter_map(Value::as_str).collect()
}

/// Runs `pass` over all rows again and again; rows and megabytes a second.
fn measure(
    rows: &[String],
    time: Duration,
    mut pass: impl FnMut(&[String]) -> Result<(), Failure>,
) -> Result<(f64, f64), Failure> {
    pass(rows)?;
    let bytes: usize = rows.iter().map(String::len).sum();
    let (start, mut passes) = (Instant::now(), 0);
    while passes == 0 || start.elapsed() < time {
        pass(rows)?;
        passes += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok((f64::from(passes) * rows.len() as f64 / seconds, f64::from(passes) * bytes as f64 / 1e6 / seconds))
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(rows)) = (arguments.next(), arguments.next()) else {
        return Err("usage: tokenize_speed FOLDER_OF_TOKENIZER ROWS.jsonl [SECONDS]".into());
    };
    let seconds = arguments.next().map_or(Ok(2.0), |s| s.parse())?;
    let time = Duration::from_secs_f64(seconds);
    let start = Instant::now();
    let tokenizer = TextTokenizer::from_dir(&PathBuf::from(&folder))?;
    let loaded = start.elapsed();
    let lines = std::fs::read_to_string(rows)?;
    let rows: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).map(|row| text(&row)))
        .collect::<Result<_, _>>()?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{folder}: {} rows, fast path: {}, loaded in {} ms",
        rows.len(),
        tokenizer.is_fast(),
        loaded.as_millis()
    )?;
    let fast = |tokens: &mut Tokens, row: &String| tokenizer.encode_into(row, &[], true, tokens);
    let slow = |row: &String| tokenizer.encode_reference(row, true).map(drop);
    let mut report = |what: &str, (rows, megabytes): (f64, f64)| {
        writeln!(out, "  {what:<24} {rows:>10.0} rows/s {megabytes:>8.1} MB/s")
    };
    let mut tokens = Tokens::default();
    let one = measure(&rows, time, |rows| Ok(rows.iter().try_for_each(|row| fast(&mut tokens, row))?))?;
    report("fast, one thread", one)?;
    let all = measure(&rows, time, |rows| {
        Ok(rows.par_iter().try_for_each_init(Tokens::default, |tokens, row| fast(tokens, row))?)
    })?;
    report("fast, all threads", all)?;
    report("reference, one thread", measure(&rows, time, |rows| Ok(rows.iter().try_for_each(slow)?))?)?;
    report("reference, all threads", measure(&rows, time, |rows| Ok(rows.par_iter().try_for_each(slow)?))?)?;
    Ok(())
}
