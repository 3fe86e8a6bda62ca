//! How fast rows become packed tokens: `prepare_speed FOLDER_OF_TOKENIZER ROWS [TEMPLATE]` reads, renders, tokenises,
//! masks, stores and packs the rows as a job does, and prints one JSON object. TEMPLATE is `none` (the default) or
//! `chat`. `benches/peers/data_prep.py` runs it beside its peer.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use tunesmith_data::{
    Columns, Encoder, Error, Examples as _, Now, OverLong, PrepareOptions, Records, SourceOptions,
    TemplateChoice, TokenStoreWriter, prepare, utilisation,
};

/// Tokens of a pack, and the longest row.
const BUDGET: usize = 2048;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, rows, template) = match arguments.as_slice() {
        [folder, rows] => (folder, rows, TemplateChoice::None),
        [folder, rows, template] if template == "chat" => (folder, rows, TemplateChoice::Chat),
        [folder, rows, template] if template == "none" => (folder, rows, TemplateChoice::None),
        _ => return Err("usage: prepare_speed FOLDER_OF_TOKENIZER ROWS [none|chat]".into()),
    };
    let encoder = Encoder::from_dir(Path::new(folder), template, &[], Now::utc())?;
    let options = PrepareOptions {
        columns: Columns::default(),
        max_seq_length: BUDGET,
        over_long: OverLong::Drop,
        group: None,
    };
    let begun = Instant::now();
    let mut records = Records::open(std::slice::from_ref(rows), &SourceOptions::default())?;
    let mut store = TokenStoreWriter::new(&std::env::temp_dir())?;
    let report = prepare::<Error>(&mut records, &encoder, &options, &mut |row| {
        if row.fate.is_kept() { store.push(&row.encoded.example) } else { Ok(()) }
    })?;
    report.check(&options)?;
    let store = store.finish()?;
    let lengths: Vec<usize> = (0..store.len()).map(|i| store.tokens(i)).collect();
    let packed = utilisation(&lengths, BUDGET)?;
    let seconds = begun.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next());
    let result = serde_json::json!({
        "rows": report.rows, "kept": report.kept, "tokens": report.tokens,
        "trained_tokens": report.trained_tokens, "packs": packed.packs, "utilisation": packed.share(),
        "seconds": seconds, "rows_per_second": report.rows as f64 / seconds,
        "peak_kb": peak.and_then(|kb| kb.parse::<u64>().ok()), "fast": encoder.tokenizer().is_fast(),
    });
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}
