//! A process of its own for templates that nobody knows.
//!
//! The bounds inside the engine count afterwards what one expression did, which can be too late: `[t, t, …] ~ ''` or
//! `a == b` on nested lists that were repeated take any memory and any time. So such a template is run by a helper
//! process that has given up the right to more than [`MEMORY_BYTES`] of memory, and to more than [`CPU_SECONDS`] of
//! computing for one conversation. What breaks these limits ends the helper, and the row gets a sentence.
//!
//! The helper is a program of the caller's that calls [`serve_templates`]. Requests and replies are lines of JSON on
//! its standard input and output. The limits are those of Unix; macOS does not hold a process to that of memory.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ChatTemplate, Now, Rendered, SpecialTokens};
use crate::error::{Error, RowError};
use crate::rows::Message;

/// Memory of a helper, everything that it maps included.
const MEMORY_BYTES: u64 = 512 << 20;
/// Computing time for one conversation, in seconds.
const CPU_SECONDS: u64 = 5;
/// Helpers of a template that run at a time.
const MOST_HELPERS: usize = 4;
/// Helpers that a template may break before it is refused altogether.
const MOST_BROKEN: usize = 3;
/// What a helper says first.
const HELLO: &str = "tunesmith template helper 1";
/// Lines that a helper may print before that.
const MOST_NOISE: usize = 20;

/// How to start a program that calls [`serve_templates`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateHelper {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// The first line to a helper: what the template is.
#[derive(Debug, Serialize, Deserialize)]
struct Start {
    source: String,
    tokens: SpecialTokens,
    now: Now,
}

/// A conversation to render: roles, contents, further keys.
#[derive(Debug, Deserialize)]
struct Request {
    messages: Vec<(String, String, Map<String, Value>)>,
    add_generation_prompt: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Rendered { text: String, spans: Vec<(usize, usize)> },
    Refused(String),
}

/// The helpers of one template.
#[derive(Debug)]
pub(super) struct Helpers {
    helper: TemplateHelper,
    start: Vec<u8>,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Process>,
    busy: usize,
    broken: usize,
}

impl Helpers {
    /// Starts the first one.
    pub(super) fn start(helper: &TemplateHelper, template: &ChatTemplate) -> Result<Self, Error> {
        let failed = |source| Error::TemplateHelper { path: helper.program.clone(), source };
        let (source, tokens) = (template.source.clone(), template.tokens.clone());
        let start = line(&Start { source, tokens, now: template.now }).map_err(failed)?;
        let first = Process::start(helper, &start).map_err(failed)?;
        let state = Mutex::new(State { idle: vec![first], ..State::default() });
        Ok(Self { helper: helper.clone(), start, state, freed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renders in a helper.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, RowError> {
        let messages: Vec<_> = messages.iter().map(|m| (&m.role, &m.content, &m.extra)).collect();
        let request = serde_json::json!({
            "messages": messages, "add_generation_prompt": add_generation_prompt
        });
        let mut state = self.state();
        while state.busy == MOST_HELPERS {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.broken >= MOST_BROKEN {
            let what =
                format!("it broke its limits of memory or time {MOST_BROKEN} times, and is not run again");
            return Err(RowError::Template(what));
        }
        state.busy += 1;
        let idle = state.idle.pop();
        drop(state);

        let process = idle.map_or_else(|| Process::start(&self.helper, &self.start), Ok);
        let ended = match process {
            Err(e) => Err(format!("the process that runs it could not be started ({e})")),
            Ok(mut process) => match process.ask(&request) {
                Ok(reply) => Ok((process, reply)),
                Err(e) => Err(process.end().map_or_else(|| e.to_string(), end_of)),
            },
        };
        let mut state = self.state();
        state.busy -= 1;
        let reply = match ended {
            Ok((process, reply)) => {
                state.idle.push(process);
                reply
            }
            Err(what) => {
                state.broken += 1;
                Reply::Refused(what)
            }
        };
        drop(state);
        self.freed.notify_one();
        match reply {
            Reply::Rendered { text, spans } => {
                let spans = spans.into_iter().map(|(start, end)| Range { start, end }).collect();
                Ok(Rendered { text, spans, literal: Vec::new() })
            }
            Reply::Refused(what) => Err(RowError::Template(what)),
        }
    }
}

/// Why a helper is gone, for a person.
fn end_of(status: ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        let signal = status.signal().and_then(rustix::process::Signal::from_named_raw);
        if signal == Some(rustix::process::Signal::XCPU) {
            return format!("it took more than {CPU_SECONDS} seconds of computing for one conversation");
        }
        // What a program does that gets no memory.
        if signal == Some(rustix::process::Signal::ABORT) {
            return format!("it asked for more than {} MiB of memory", MEMORY_BYTES >> 20);
        }
    }
    format!("it broke the process that runs it ({status})")
}

/// A helper.
#[derive(Debug)]
struct Process {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Process {
    fn start(helper: &TemplateHelper, start: &[u8]) -> io::Result<Self> {
        let mut command = Command::new(&helper.program);
        command.args(&helper.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Ctrl-C is for the program that started it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        let mut process = Self { child, requests, replies: BufReader::new(replies) };
        // One that ended already does not answer either, and that tells more.
        let _ = process.requests.write_all(start);
        for _ in 0..MOST_NOISE {
            if process.line()?.trim_end() == HELLO {
                return Ok(process);
            }
        }
        Err(io::Error::other("it does not answer as a template helper does"))
    }

    fn ask(&mut self, request: &Value) -> io::Result<Reply> {
        self.requests.write_all(&line(request)?)?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.replies.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }

    /// How it ended, if it did by itself.
    fn end(mut self) -> Option<ExitStatus> {
        let mut rest = Vec::new();
        // Nothing more comes from a process that is ending; one that is not would be waited for without end.
        match io::Read::read_to_end(&mut io::Read::take(&mut self.replies, 1), &mut rest) {
            Ok(0) => self.child.wait().ok(),
            _ => None,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It keeps nothing, and may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// What a helper process does until its standard input ends: it limits itself, reads a template and renders
/// conversations with it. The process must have nothing else to do, before or after.
///
/// # Errors
/// Limits that cannot be set, or requests that are not those of [`TemplateHelper`]'s other side.
pub fn serve_templates() -> io::Result<()> {
    limits::memory()?;
    let mut requests = io::stdin().lock().lines();
    let Some(start) = requests.next().transpose()? else { return Ok(()) };
    let Start { source, tokens, now } = serde_json::from_str(&start)?;
    let template =
        ChatTemplate::new(&source, tokens, now, Path::new("template")).map_err(io::Error::other)?;
    let mut replies = BufWriter::new(io::stdout().lock());
    // Behind whatever the program printed on its line before.
    write!(replies, "\n{HELLO}\n")?;
    replies.flush()?;
    for request in requests {
        limits::time()?;
        let Request { messages, add_generation_prompt } = serde_json::from_str(&request?)?;
        let messages: Vec<Message> = messages
            .into_iter()
            .map(|(role, content, extra)| Message { extra, ..Message::new(role, content) })
            .collect();
        let reply = match template.run_here(&messages, add_generation_prompt) {
            Ok(Rendered { text, spans, .. }) => {
                Reply::Rendered { text, spans: spans.into_iter().map(|s| (s.start, s.end)).collect() }
            }
            Err(RowError::Template(what)) => Reply::Refused(what),
            Err(other) => Reply::Refused(other.to_string()),
        };
        replies.write_all(&line(&reply)?)?;
        replies.flush()?;
    }
    Ok(())
}

#[cfg(unix)]
mod limits {
    use std::io;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::time::{ClockId, clock_gettime};

    use super::{CPU_SECONDS, MEMORY_BYTES};

    fn set(resource: Resource, limit: u64) -> io::Result<()> {
        let maximum = getrlimit(resource).maximum;
        let limit = maximum.map_or(limit, |maximum| maximum.min(limit));
        Ok(setrlimit(resource, Rlimit { current: Some(limit), maximum })?)
    }

    /// No more memory than allowed; no files, and no picture of the memory when it ends by that.
    pub(super) fn memory() -> io::Result<()> {
        set(Resource::As, MEMORY_BYTES)?;
        set(Resource::Fsize, 0)?;
        set(Resource::Core, 0)
    }

    /// So much more time from now.
    pub(super) fn time() -> io::Result<()> {
        let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec;
        set(Resource::Cpu, u64::try_from(used).unwrap_or(0) + 1 + CPU_SECONDS)
    }
}

#[cfg(not(unix))]
mod limits {
    /// There are none here.
    pub(super) fn memory() -> std::io::Result<()> {
        Ok(())
    }

    /// There are none here.
    pub(super) fn time() -> std::io::Result<()> {
        Ok(())
    }
}
