//! A worker as the supervisor sees it: whether it lives, whether it moves, and what is to be done if it does not.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use super::verdict::{Exit, Killed};
use super::{Settings, Stage, process};
use crate::dir::{self, Attempt, WorkerIdentity};
use crate::{Desired, Error};

/// An attempt that is not judged yet.
#[derive(Debug)]
pub(super) struct Worker {
    /// The job.
    pub(super) id: String,
    /// What it does.
    pub(super) stage: Stage,
    /// Of the attempt.
    pub(super) fence: u64,
    /// Step of the newest checkpoint when the attempt began.
    pub(super) checkpoint_before: Option<u64>,
    /// The process, if it is our child and not reaped yet.
    child: Option<Child>,
    /// How the child ended.
    exit: Option<Exit>,
    /// Whether somebody was seen to have the job.
    seen: bool,
    /// Whether it may be about to start.
    unclear: bool,
    /// When it was started or found.
    since: Duration,
    /// The heartbeat, and when it last moved.
    beat: (Option<u64>, Duration),
    /// What is asked of it, and since when.
    asked: Option<(Desired, Duration)>,
    kill: Option<Kill>,
}

#[derive(Debug)]
struct Kill {
    why: Killed,
    /// When it was asked to end.
    since: Duration,
    /// When it was last killed.
    killed: Option<Duration>,
}

/// What a look at a worker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// This process has the job.
    Lives(u32),
    /// Somebody has the job who has not said which process that is: a command in a terminal, or a worker that starts.
    Held,
    /// Not known yet: it may be about to start.
    Unclear,
    /// Nobody has the job any more.
    Ended(Exit),
}

/// What is to be done to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Asking it to end.
    Terminate(Killed),
    /// Ending it.
    Kill(Killed),
}

impl Worker {
    /// One that was just started.
    pub(super) fn started(
        (id, stage, fence): (&str, Stage, u64),
        checkpoint: Option<u64>,
        child: Child,
        now: Duration,
    ) -> Self {
        Self { child: Some(child), ..Self::found((id, stage, fence), checkpoint, now) }
    }

    /// One that another supervisor may have started, or a command that runs a job in a terminal.
    pub(super) fn found(
        (id, stage, fence): (&str, Stage, u64),
        checkpoint: Option<u64>,
        now: Duration,
    ) -> Self {
        Self {
            id: id.to_owned(),
            stage,
            fence,
            checkpoint_before: checkpoint,
            child: None,
            exit: None,
            seen: false,
            unclear: false,
            since: now,
            beat: (None, now),
            asked: None,
            kill: None,
        }
    }

    /// Looks whether it lives. Reaps the child. An end is an end only when the lock is free too: until then somebody
    /// else has the job.
    pub(super) fn look(&mut self, dir: &Path, now: Duration, grace: Duration) -> Result<Look, Error> {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => return Ok(Look::Lives(child.id())),
                Ok(Some(status)) => self.exit = Some(process::exit(status)),
                Err(_) => self.exit = Some(Exit::Unknown),
            }
            self.child = None;
        }
        self.unclear = false;
        let identity = identity(dir, self.fence);
        if let Some(pid) = identity.as_ref().filter(|worker| worker.is_alive()).map(|worker| worker.pid) {
            // Another process runs as this attempt: ours found the lock taken.
            self.exit = None;
            self.seen = true;
            return Ok(Look::Lives(pid));
        }
        if !dir::is_free(dir)? {
            self.seen = true;
            return Ok(Look::Held);
        }
        if let Some(exit) = self.exit {
            return Ok(Look::Ended(exit));
        }
        if self.seen || identity.is_some() {
            return Ok(Look::Ended(Exit::Unknown));
        }
        let told = Attempt::read(dir).ok().flatten().is_some_and(|attempt| attempt.fence == self.fence);
        // Who was not told of the attempt was never started. Others get the time that a process takes to start.
        self.unclear = told && now.saturating_sub(self.since) < grace;
        if self.unclear {
            return Ok(Look::Unclear);
        }
        Ok(Look::Ended(Exit::NotStarted))
    }

    /// Why it was ended, if we did.
    pub(super) fn killed(&self) -> Option<Killed> {
        self.kill.as_ref().map(|kill| kill.why)
    }

    /// Whether a supervisor that drains waits for it: it was asked to end, or may yet turn out to live.
    pub(super) fn is_waited_for(&self) -> bool {
        self.kill.is_some() || self.unclear
    }

    /// The child, for whoever reaps it when the job is somebody else's.
    pub(super) fn into_child(self) -> Option<Child> {
        self.child
    }

    /// The child's handle.
    pub(super) fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// What is to be done to a worker that lives, now that its heart has beaten so often and this is wanted of it.
    ///
    /// One that gives no sign of life for [`Settings::hang`] is asked to end and, [`Settings::term_grace`] later, ended.
    /// So is one that does not follow a pause or a cancel within [`Settings::stop_grace`]; but as long as it moves, and
    /// for at most [`Settings::hang`], one that is to pause is left the time to reach its checkpoint.
    pub(super) fn press(
        &mut self,
        desired: Desired,
        beat: Option<u64>,
        now: Duration,
        settings: &Settings,
    ) -> Option<Act> {
        if beat != self.beat.0 {
            self.beat = (beat, now);
        }
        let silent = now.saturating_sub(self.beat.1);
        let follows = match (self.stage, desired) {
            // Reading rows does not pause: the job does, once they are read.
            (_, Desired::Run) | (Stage::Prepare, Desired::Pause) => false,
            (_, Desired::Pause | Desired::Cancel) => true,
        };
        match self.asked {
            Some((asked, _)) if follows && asked == desired => {}
            _ => self.asked = follows.then_some((desired, now)),
        }
        let deaf = self.asked.is_some_and(|(_, since)| now.saturating_sub(since) >= settings.stop_grace);
        let hung = silent >= settings.hang;
        match &mut self.kill {
            Some(Kill { why: Killed::Drained, .. }) | None if hung => {
                Some(self.begin(Killed::Hung(settings.hang), now))
            }
            None if deaf => Some(self.begin(Killed::Deaf, now)),
            Some(kill) if kill.why != Killed::Drained => {
                let since = now.saturating_sub(kill.killed.unwrap_or(kill.since));
                let waits = kill.why == Killed::Deaf
                    && desired == Desired::Pause
                    && silent < settings.term_grace
                    && since < settings.hang;
                if since < settings.term_grace || waits {
                    return None;
                }
                kill.killed = Some(now);
                Some(Act::Kill(kill.why))
            }
            Some(_) | None => None,
        }
    }

    /// Asks for a checkpoint because the supervisor is to end; nothing if it was asked for one already.
    pub(super) fn drain(&mut self, now: Duration) -> Option<Act> {
        self.kill.is_none().then(|| self.begin(Killed::Drained, now))
    }

    fn begin(&mut self, why: Killed, now: Duration) -> Act {
        self.kill = Some(Kill { why, since: now, killed: None });
        Act::Terminate(why)
    }
}

/// Who says that it works in a job directory, as this attempt.
pub(super) fn identity(dir: &Path, fence: u64) -> Option<WorkerIdentity> {
    // What cannot be read tells nothing: then the lock alone decides.
    WorkerIdentity::read(dir).ok().flatten().filter(|worker| worker.fence == fence)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> Settings {
        Settings {
            hang: 300 * SECOND,
            term_grace: 30 * SECOND,
            stop_grace: 5 * SECOND,
            ..Settings::default()
        }
    }

    /// Presses once a second; when what happened.
    fn pressed(
        stage: Stage,
        seconds: u32,
        desired: impl Fn(u32) -> Desired,
        beat: impl Fn(u32) -> u64,
    ) -> Vec<(u32, Act)> {
        let mut worker = Worker::found(("j", stage, 1), None, Duration::ZERO);
        let press =
            |at| worker.press(desired(at), Some(beat(at)), at * SECOND, &settings()).map(|act| (at, act));
        (0..seconds).filter_map(press).collect()
    }

    #[test]
    fn a_worker_that_moves_and_does_what_it_is_told_is_left_alone() {
        assert_eq!(pressed(Stage::Train, 2000, |_| Desired::Run, |at| u64::from(at / 299)), []);
        // A cancel that is followed, and a pause that is taken back.
        assert_eq!(pressed(Stage::Train, 4, |_| Desired::Cancel, u64::from), []);
        let desired = |at| if at % 10 < 4 { Desired::Pause } else { Desired::Run };
        assert_eq!(pressed(Stage::Train, 100, desired, u64::from), []);
        assert_eq!(pressed(Stage::Prepare, 1000, |_| Desired::Pause, u64::from), []);
    }

    #[test]
    fn silence_is_answered_after_its_time_and_then_once_every_grace() {
        let hung = Killed::Hung(300 * SECOND);
        let acts = pressed(Stage::Train, 365, |_| Desired::Run, |_| 7);
        assert_eq!(acts, [(300, Act::Terminate(hung)), (330, Act::Kill(hung)), (360, Act::Kill(hung))]);
    }

    #[test]
    fn a_cancel_that_is_not_followed_ends_the_worker_and_a_pause_leaves_it_time() {
        for stage in [Stage::Train, Stage::Prepare] {
            let acts = pressed(stage, 40, |_| Desired::Cancel, u64::from);
            assert_eq!(acts, [(5, Act::Terminate(Killed::Deaf)), (35, Act::Kill(Killed::Deaf))]);
        }
        let acts = pressed(Stage::Train, 310, |_| Desired::Pause, u64::from);
        assert_eq!(acts, [(5, Act::Terminate(Killed::Deaf)), (305, Act::Kill(Killed::Deaf))]);
        let acts = pressed(Stage::Train, 60, |_| Desired::Pause, |at| u64::from(at.min(20)));
        assert_eq!(acts, [(5, Act::Terminate(Killed::Deaf)), (50, Act::Kill(Killed::Deaf))]);
        // From a pause to a cancel: the time begins again.
        let desired = |at| if at < 4 { Desired::Pause } else { Desired::Cancel };
        assert_eq!(pressed(Stage::Train, 10, desired, u64::from), [(9, Act::Terminate(Killed::Deaf))]);
    }

    #[test]
    fn a_drained_worker_may_take_its_time_as_long_as_it_moves() {
        let mut worker = Worker::found(("j", Stage::Train, 1), None, Duration::ZERO);
        assert_eq!(worker.drain(SECOND), Some(Act::Terminate(Killed::Drained)));
        assert_eq!(worker.drain(SECOND), None);
        for at in 1..2000 {
            assert_eq!(worker.press(Desired::Run, Some(u64::from(at)), at * SECOND, &settings()), None);
        }
        let hung = Killed::Hung(300 * SECOND);
        assert_eq!(
            worker.press(Desired::Run, Some(1999), 2299 * SECOND, &settings()),
            Some(Act::Terminate(hung))
        );
    }

    #[test]
    fn nobody_is_gone_before_the_lock_is_free() {
        let home = tempfile::tempdir().unwrap();
        let job = dir::JobDir::create(home.path()).unwrap();
        let path = job.path().to_owned();
        let look = |worker: &mut Worker, at| worker.look(&path, at * SECOND, SECOND).unwrap();
        let new = |fence| Worker::found(("j", Stage::Train, fence), None, Duration::ZERO);

        // Held by a command in a terminal, which says nothing of itself.
        let mut foreground = new(1);
        assert_eq!(look(&mut foreground, 100), Look::Held);
        // Its attempt's own worker, and that of an older attempt.
        WorkerIdentity::own(2).write(&path).unwrap();
        let (mut current, mut older) = (new(2), new(3));
        assert_eq!(look(&mut current, 100), Look::Lives(std::process::id()));
        assert_eq!(look(&mut older, 100), Look::Held);
        drop(job);
        assert_eq!(look(&mut foreground, 101), Look::Ended(Exit::Unknown));
        assert_eq!(look(&mut current, 101), Look::Lives(std::process::id()), "the process is there");
        assert_eq!(look(&mut older, 101), Look::Ended(Exit::Unknown));

        // A stranger that got the process id.
        let own = WorkerIdentity::own(4);
        WorkerIdentity { start_time: own.start_time + 1, ..own }.write(&path).unwrap();
        assert_eq!(look(&mut new(4), 0), Look::Ended(Exit::Unknown));

        // Nobody was told of this attempt; of the next one, somebody was.
        assert_eq!(look(&mut new(5), 0), Look::Ended(Exit::NotStarted));
        Attempt { attempt: 1, fence: 6, device: "cpu".into(), micro_batch_divisor: 1 }.write(&path).unwrap();
        let mut starting = new(6);
        assert_eq!(look(&mut starting, 0), Look::Unclear);
        assert_eq!(look(&mut starting, 1), Look::Ended(Exit::NotStarted));
    }
}
