//! `tunesmith logs`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;
use tunesmith_jobs::Store;
use tunesmith_jobs::store::Job;

use super::{LOOK, event, grid, io_error, open};
use crate::args::LogsArgs;
use crate::error::CliError;
use crate::{interrupt, out};

/// Events that are read in one go.
const AT_ONCE: usize = 1000;

/// Longest line that is shown in one piece.
const LONGEST: u64 = 64 << 10;

/// Shows what a worker wrote, or what happened.
pub(crate) fn run(args: &LogsArgs) -> Result<(), CliError> {
    let mut store = open()?;
    let job = store.find(&args.which.job)?;
    let interrupted = interrupt::install("no longer following")?;
    let mut from: Box<dyn Lines> = if args.events {
        Box::new(Events { id: job.id.clone(), seq: 0, json: args.json })
    } else {
        Box::new(Log { path: store.dir(&job.id).join("log"), at: 0, json: args.json })
    };
    let shown = follow(&mut store, &job, args.follow, &mut *from, &interrupted)?;
    if shown == 0 && !args.json {
        let what = if args.events { "events" } else { "log" };
        out::note(&match job.attempt {
            _ if args.events => format!("job {} has no {what} yet", job.id),
            0 => format!("job {} has no {what} yet: no worker has had it", job.id),
            _ => format!("job {} has no {what}: its workers wrote nothing, or it ran in a terminal", job.id),
        });
    }
    Ok(())
}

/// What can be read on.
trait Lines {
    /// Prints what is new and returns how many lines; `whole` when nothing more will come.
    fn print(&mut self, store: &mut Store, whole: bool) -> Result<usize, CliError>;
}

fn follow(
    store: &mut Store,
    job: &Job,
    follow: bool,
    lines: &mut dyn Lines,
    interrupted: &AtomicBool,
) -> Result<usize, CliError> {
    let mut shown = 0;
    loop {
        // First whether it is over: what it wrote until then is there to be read.
        super::take_in(store, &job.id)?;
        let last = !follow || store.job(&job.id)?.state.is_terminal();
        shown += lines.print(store, last)?;
        if last || interrupted.load(Ordering::Relaxed) || out::stdout_closed() {
            return Ok(shown);
        }
        thread::sleep(LOOK);
    }
}

struct Events {
    id: String,
    seq: u64,
    json: bool,
}

impl Lines for Events {
    fn print(&mut self, store: &mut Store, _whole: bool) -> Result<usize, CliError> {
        let mut shown = 0;
        loop {
            let events = store.events(&self.id, self.seq, AT_ONCE)?;
            for event in &events {
                self.seq = event.seq;
                if self.json {
                    out::json_line(event)?;
                } else {
                    let time = event.time.get(..19).unwrap_or(&event.time).replace('T', " ");
                    out::line(&format!("{}  {}", grid::plain(&time), event::sentence(event)))?;
                }
            }
            shown += events.len();
            if events.len() < AT_ONCE {
                return Ok(shown);
            }
        }
    }
}

struct Log {
    path: PathBuf,
    /// Bytes that are shown.
    at: u64,
    json: bool,
}

impl Lines for Log {
    fn print(&mut self, _store: &mut Store, whole: bool) -> Result<usize, CliError> {
        let failed = || io_error("read", &self.path);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(failed()(e)),
        };
        if file.metadata().map_err(failed())?.len() < self.at {
            // A long log has made way for a new one.
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at)).map_err(failed())?;
        let mut reader = BufReader::new(file);
        let (mut line, mut shown) = (Vec::new(), 0);
        loop {
            line.clear();
            let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(failed())?;
            // A line that is being written waits for its end, as long as one may come.
            let torn = !line.ends_with(b"\n") && (read as u64) < LONGEST;
            if read == 0 || (torn && !whole) {
                return Ok(shown);
            }
            self.at += read as u64;
            shown += 1;
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            if self.json {
                out::json_line(&json!({ "line": text }))?;
            } else {
                out::line(&clean(text))?;
            }
        }
    }
}

/// A line in which a terminal obeys nothing; tabs stay.
fn clean(text: &str) -> String {
    text.split('\t').map(grid::escape).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_log_moves_no_cursor_and_keeps_its_tabs() {
        assert_eq!(super::clean("a\tb\u{1b}[2J\rc"), "a\tb\\u{1b}[2J\\rc");
        assert_eq!(super::clean(&"x".repeat(5000)).len(), 5000);
    }
}
