//! A thread beside a run: brings it what `control` says, and writes its heartbeat.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tunesmith_jobs::Desired;
use tunesmith_jobs::dir::{Control, Heartbeat};

use crate::engine::{Stop, StopFlag};

/// How long a request may go unnoticed.
const INTERVAL: Duration = Duration::from_millis(100);

/// Does `work` while `control` of the job directory is followed into `stop`, and `pulse` into `heartbeat`.
pub(super) fn watched<T>(dir: &Path, stop: &StopFlag, pulse: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    // Before anything is done: a job that was cancelled meanwhile does not start.
    follow(dir, stop);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut heart = Heartbeat::open(dir).ok();
            let mut last = None;
            while !done.load(Ordering::Relaxed) {
                follow(dir, stop);
                let count = pulse.load(Ordering::Relaxed);
                if last != Some(count) {
                    // A heartbeat that cannot be written is one that stands still.
                    last = heart.as_mut().and_then(|heart| heart.beat(count).ok()).map(|()| count);
                }
                thread::park_timeout(INTERVAL);
            }
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        worked
    })
}

/// What cannot be read now may be read the next time; until then the last wish counts.
fn follow(dir: &Path, stop: &StopFlag) {
    if let Ok(control) = Control::read(dir) {
        stop.control(match control.want {
            Desired::Run => Stop::None,
            Desired::Pause => Stop::Pause,
            Desired::Cancel => Stop::Cancel,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn wishes_come_in_and_the_pulse_goes_out() {
        let dir = tempfile::tempdir().unwrap();
        let (stop, pulse) = (StopFlag::default(), AtomicU64::new(7));
        let until = |what: &str, is: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !is() {
                assert!(started.elapsed() < Duration::from_mins(1), "never {what}");
                thread::sleep(Duration::from_millis(5));
            }
        };
        Control { want: Desired::Pause, generation: 1 }.write(dir.path()).unwrap();
        let answer = watched(dir.path(), &stop, &pulse, || {
            assert_eq!(stop.now(), Stop::Pause, "known before the work begins");
            until("beating", &|| Heartbeat::read(dir.path()) == Some(7));
            pulse.store(8, Ordering::Relaxed);
            until("beating on", &|| Heartbeat::read(dir.path()) == Some(8));
            Control { want: Desired::Run, generation: 2 }.write(dir.path()).unwrap();
            until("running again", &|| stop.now() == Stop::None);
            Control { want: Desired::Cancel, generation: 3 }.write(dir.path()).unwrap();
            until("cancelled", &|| stop.now() == Stop::Cancel);
            5
        });
        assert_eq!(answer, 5);
    }
}
