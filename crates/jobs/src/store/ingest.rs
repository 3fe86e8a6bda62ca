//! Events from the job directories into the store: each once, however often and by whomever it is tried.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;
use serde_json::Value;

use super::Progress;

/// Bytes that are read in one go; longer logs take several.
const AT_ONCE: u64 = 8 << 20;

#[derive(Deserialize)]
struct Line {
    seq: u64,
    time: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

/// What can go wrong: the database, or the file.
pub(super) enum Trouble {
    Sql(rusqlite::Error),
    Io(io::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// Whether `events.jsonl` holds more than what was read of it.
pub(super) fn has_more(path: &Path, offset: u64) -> bool {
    path.metadata().is_ok_and(|about| about.len() > offset)
}

/// Reads the whole lines beyond the job's offset and writes events, progress and the new offset, inside the caller's
/// transaction. A last line without its newline stays for later; a line that is no event is passed over and counted
/// as a warning.
pub(super) fn ingest(sql: &Connection, id: &str, path: &Path) -> Result<usize, Trouble> {
    let mut added = 0;
    loop {
        let known = sql
            .query_row(
                "SELECT event_offset, event_seq, progress, checkpoint_step FROM job WHERE id = ?1",
                [id],
                |r| {
                    Ok((
                        r.get::<_, i64>(0)? as u64,
                        r.get::<_, i64>(1)? as u64,
                        r.get::<_, String>(2)?,
                        r.get::<_, Option<i64>>(3)?,
                    ))
                },
            )
            .optional()?;
        let Some((offset, mut seq, progress, mut checkpoint)) = known else { return Ok(added) };
        let Some((file, bytes)) = read_from(path, offset).map_err(Trouble::Io)? else { return Ok(added) };
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |last| last + 1);
        if whole == 0 {
            return Ok(added);
        }
        // What is committed to the store must not be lost from the log by a power cut: other events would take its place.
        file.sync_data().map_err(Trouble::Io)?;
        // What an older version wrote there is not worth more than to be made again.
        let mut progress: Progress = serde_json::from_str(&progress).unwrap_or_default();
        let mut insert = sql.prepare_cached(
            "INSERT INTO event (job_id, seq, time, type, data) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for line in bytes[..whole].split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let Ok(line) = serde_json::from_slice::<Line>(line) else {
                progress
                    .apply("warning", &serde_json::json!({ "message": "a line of events.jsonl is damaged" }));
                continue;
            };
            if line.seq <= seq {
                continue;
            }
            seq = line.seq;
            if line.kind == "checkpoint" {
                let step = line.data.get("step").and_then(Value::as_i64);
                checkpoint = checkpoint.max(step);
            }
            progress.apply(&line.kind, &line.data);
            insert.execute(params![id, line.seq as i64, line.time, line.kind, line.data.to_string()])?;
            added += 1;
        }
        let folded = serde_json::to_string(&progress).unwrap_or_else(|_| "{}".to_owned());
        sql.prepare_cached(
            "UPDATE job SET event_offset = ?2, event_seq = ?3, progress = ?4, checkpoint_step = ?5, phase = ?6, \
             step = ?7, total_steps = ?8 WHERE id = ?1",
        )?
        .execute(params![
            id,
            (offset + whole as u64) as i64,
            seq as i64,
            folded,
            checkpoint,
            progress.phase,
            progress.step as i64,
            progress.total_steps as i64,
        ])?;
    }
}

fn read_from(path: &Path, offset: u64) -> io::Result<Option<(File, Vec<u8>)>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.by_ref().take(AT_ONCE).read_to_end(&mut bytes)?;
    // A single line longer than that: to its end.
    while !bytes.is_empty()
        && !bytes.contains(&b'\n')
        && file.by_ref().take(AT_ONCE).read_to_end(&mut bytes)? > 0
    {}
    Ok(Some((file, bytes)))
}
