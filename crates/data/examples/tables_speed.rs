//! How fast tables load, and how fast rows stream back: `tables_speed ROWS.jsonl` loads the file as a table of a
//! store in the system's folder for temporary files, reads it whole, runs a query over it, splits it in two, and prints one JSON object.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::time::Instant;

use tunesmith_data::{
    Error, LoadOrigin, QueryOptions, RecordReader, Records, SourceOptions, SplitOptions, TableName, TableRef,
    Tables,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file] = arguments.as_slice() else { return Err("usage: tables_speed ROWS.jsonl".into()) };
    let folder = tempfile::tempdir()?;
    let mut tables = Tables::open(&folder.path().join("tables.sqlite"))?;
    let name = TableName::parse("rows_of_file")?;
    let table = TableRef { name: name.clone(), snapshot: None };

    let begun = Instant::now();
    let mut records = Records::open(std::slice::from_ref(file), &SourceOptions::default())?;
    tables.load(&name, &mut records, LoadOrigin::Files, false, |_| ControlFlow::Continue(()))?;
    let load = begun.elapsed().as_secs_f64();
    let loaded_peak = peak();

    let begun = Instant::now();
    let rows = drain(tables.read(&table)?)?;
    let read = begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let queried = drain(tables.query("select * from rows_of_file", &QueryOptions::default())?)?;
    let query = begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let parts = vec![(TableName::parse("a")?, 0.8), (TableName::parse("b")?, 0.2)];
    tables.split(&table, &SplitOptions { parts, seed: 7, by: None, replace: false })?;
    let split = begun.elapsed().as_secs_f64();

    let bytes = std::fs::metadata(tables.path())?.len();
    let rate = |rows: u64, seconds: f64| (rows as f64 / seconds).round();
    let result = serde_json::json!({
        "rows": rows, "load_seconds": load, "read_rows_per_second": rate(rows, read),
        "query_rows_per_second": rate(queried, query), "split_seconds": split,
        "store_bytes": bytes, "peak_kb_of_load": loaded_peak, "peak_kb": peak(),
    });
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}

fn drain(mut rows: impl RecordReader) -> Result<u64, Error> {
    let mut count = 0;
    while rows.next_record()?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}
