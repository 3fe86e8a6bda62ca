//! Cancel, pause, resume, start, crash and finish in every order, from many sides at once.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use serde_json::json;
use tunesmith_jobs::dir::{JobResult, Status as Ended, Submission};
use tunesmith_jobs::state::request;
use tunesmith_jobs::store::{AttemptEnd, Filter};
use tunesmith_jobs::{Answer, Desired, State, Store, submit};

/// A small generator of numbers, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn wish(&mut self) -> Desired {
        match self.below(40) {
            0 => Desired::Cancel,
            1..14 => Desired::Pause,
            _ => Desired::Run,
        }
    }
}

/// 10,000 random orders of what may happen to one job: it ends at most once, a cancel that was accepted is never undone,
/// and a request that was accepted is either followed or overtaken by the end.
#[test]
fn ten_thousand_orders_on_the_pure_machine() {
    let mut random = Random(0x5EED);
    let mut ends = HashMap::new();
    for round in 0..10_000 {
        let (mut state, mut desired) = (State::Validating, Desired::Run);
        let (mut ended, mut cancel_accepted) = (0, false);
        for _ in 0..30 {
            let before = state;
            match random.below(6) {
                0..3 => match request(state, desired, random.wish()) {
                    Answer::Wished(wish) => desired = wish,
                    Answer::Moved(to, wish) => {
                        assert!(state.may_become(to), "round {round}: {state:?} -> {to:?}");
                        (state, desired) = (to, wish);
                    }
                    Answer::Already | Answer::Refused => {}
                },
                // The supervisor starts what is wanted.
                3 if state == State::Queued && desired == Desired::Run => state = State::Running,
                3 if state == State::Validating => {
                    state = match desired {
                        Desired::Run | Desired::Pause => State::Queued,
                        Desired::Cancel => State::Cancelled,
                    };
                    if desired == Desired::Pause {
                        state = State::Paused;
                    }
                }
                // A worker that follows what is wanted, or crashes.
                4 if state == State::Running => {
                    state = match desired {
                        Desired::Run => State::Queued,
                        Desired::Pause => State::Paused,
                        Desired::Cancel => State::Cancelled,
                    };
                }
                // A worker that was done before it looked.
                5 if state == State::Running => state = State::Succeeded,
                _ => {}
            }
            assert!(!cancel_accepted || desired == Desired::Cancel, "round {round}: a cancel was undone");
            cancel_accepted |= desired == Desired::Cancel;
            if before != state && state.is_terminal() {
                ended += 1;
            }
            assert!(!before.is_terminal() || before == state, "round {round}: {before:?} -> {state:?}");
        }
        assert!(ended <= 1);
        *ends.entry(state).or_insert(0) += 1;
    }
    // The orders reach every corner.
    for state in [State::Succeeded, State::Cancelled, State::Paused] {
        assert!(ends.get(&state).is_some_and(|n| *n > 50), "{ends:?}");
    }
}

/// Eight processes' worth of connections do 10,000 things to a few jobs at once.
#[test]
fn ten_thousand_racing_operations_on_the_real_store() {
    const JOBS: usize = 60;
    const THREADS: u64 = 8;
    let home = tempfile::tempdir().unwrap();
    let mut store = Store::open(home.path()).unwrap();
    let ids: Vec<String> = (0..JOBS)
        .map(|i| {
            let spec = json!({ "base": "b", "name": format!("job {i}"), "data": { "train": "t" } });
            submit(&mut store, &spec, &Submission::default()).unwrap().job.id
        })
        .collect();
    let (home, ids) = (home.path(), &ids);
    std::thread::scope(|scope| {
        for thread in 1..=THREADS {
            scope.spawn(move || {
                let mut store = Store::open(home).unwrap();
                let mut random = Random(thread * 0x9E37_79B9);
                for _ in 0..10_000 / THREADS {
                    let id = &ids[random.below(JOBS as u64) as usize];
                    step(&mut store, id, &mut random);
                }
            });
        }
    });

    let jobs = store.list(Filter::default()).unwrap();
    assert_eq!(jobs.len(), JOBS);
    let mut finished = 0;
    for job in jobs {
        let history = store.history(&job.id).unwrap();
        let mut at = State::Validating;
        let mut fence = 0;
        for change in &history {
            assert_eq!(change.old, at, "{history:?}");
            assert!(at.may_become(change.new) && change.fence >= fence, "{history:?}");
            (at, fence) = (change.new, change.fence);
        }
        assert_eq!(at, job.state);
        assert!(history.iter().filter(|change| change.new.is_terminal()).count() <= 1);
        assert_eq!(
            job.device.is_some(),
            job.state == State::Running,
            "a lease is held by a running job alone"
        );
        assert_eq!(job.finished_ms.is_some(), job.state.is_terminal());
        assert_eq!(job.state == State::Succeeded, job.result.is_some());
        finished += usize::from(job.state.is_terminal());
    }
    assert!(finished > JOBS / 2, "only {finished} came to an end");
    assert!(store.problems().unwrap().is_empty());
}

fn step(store: &mut Store, id: &str, random: &mut Random) {
    let job = store.job(id).unwrap();
    let none = AttemptEnd::default();
    match random.below(12) {
        0 => drop(store.request(id, Desired::Pause).unwrap()),
        1 | 2 => drop(store.request(id, Desired::Run).unwrap()),
        3 if random.below(6) == 0 => drop(store.request(id, Desired::Cancel).unwrap()),
        4 | 5 => {
            if let Some(fence) = store.begin_validation(id).unwrap() {
                let to = if job.desired == Desired::Cancel { State::Cancelled } else { State::Queued };
                store.end_validation(id, fence, to, &none).unwrap();
            }
        }
        6..9 => {
            let device = ["cpu", "cuda:0", "cuda:1", "cuda:2"][random.below(4) as usize];
            if let Some(started) = store.start(id, device).unwrap() {
                assert!(started.fence > job.fence);
            }
        }
        // An old worker comes back; what it says is of an older fence.
        9 if job.fence > 0 => {
            assert!(!store.end_attempt(id, job.fence - 1, State::Succeeded, &none).unwrap());
        }
        10 => {
            let to = match job.desired {
                Desired::Run => State::Queued,
                Desired::Pause => State::Paused,
                Desired::Cancel => State::Cancelled,
            };
            store.end_attempt(id, job.fence, to, &none).unwrap();
        }
        11 if random.below(4) == 0 => {
            let result = JobResult::new(id, "n", Ended::Success, store.dir(id));
            let end = AttemptEnd { result: Some(result), ..AttemptEnd::default() };
            store.end_attempt(id, job.fence, State::Succeeded, &end).unwrap();
        }
        _ => {}
    }
}
