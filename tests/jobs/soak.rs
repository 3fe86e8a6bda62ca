//! Kills at random, over and over: workers, the supervisor, both. Every job ends exactly once, with the adapter and the
//! losses of the run that nobody touched, bit for bit.
//!
//! `cargo test --test jobs soak` kills a hundred times. `TUNESMITH_SOAK_MINUTES=30 cargo test --test jobs soak --
//! --nocapture` goes on for as long as it is told; `TUNESMITH_SOAK_SEED` gives the same order of kills again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tunesmith_jobs::store::Job;
use tunesmith_jobs::{State, Store};

use crate::kit::{PATIENCE, Random, Workspace, kill, reference};

/// Jobs that are there at a time.
const JOBS: usize = 4;
/// Kills of the short form.
const KILLS: usize = 100;

struct Soak {
    workspace: Workspace,
    random: Random,
    /// Where a job was when a worker of it was killed last: a second kill without progress would be the job's fault.
    killed_at: HashMap<String, (State, Option<u64>)>,
    workers: usize,
    supervisors: usize,
    made: usize,
}

impl Soak {
    fn create(&mut self) {
        for _ in 0..JOBS {
            self.made += 1;
            self.workspace.create(&format!("job-{}", self.made), &[]);
        }
    }

    /// Kills the worker of a job if it lives, unless its last kill came before it got anywhere.
    fn kill_worker(&mut self, job: &Job) -> bool {
        let at = (job.state, job.checkpoint_step);
        let again = self.killed_at.get(&job.id) == Some(&at);
        let Some(pid) = self.workspace.worker(&job.id).filter(|_| !again) else { return false };
        self.killed_at.insert(job.id.clone(), at);
        kill(pid, "KILL");
        self.workers += 1;
        true
    }

    fn strike(&mut self) {
        let what = self.random.below(10);
        if what != 8 {
            let jobs = self.workspace.jobs();
            let start = self.random.below(jobs.len().max(1) as u64) as usize;
            let (later, first) = jobs.split_at(start);
            for job in first.iter().chain(later) {
                if !job.state.is_terminal() && self.kill_worker(job) {
                    break;
                }
            }
        }
        if what >= 8 {
            self.supervisors += 1;
            self.workspace.supervise();
        }
    }

    fn kills(&self) -> usize {
        self.workers + self.supervisors
    }

    fn all_over(&self) -> bool {
        self.workspace.jobs().iter().all(|job| job.state.is_terminal())
    }
}

#[test]
fn soak() {
    let minutes = std::env::var("TUNESMITH_SOAK_MINUTES").ok().map(|text| text.parse::<f64>().unwrap());
    let seed = std::env::var("TUNESMITH_SOAK_SEED").map_or(0x5EED, |text| text.parse().unwrap());
    let until = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(60.0 * minutes));
    let mut soak = Soak {
        workspace: Workspace::new(),
        random: Random(seed | 1),
        killed_at: HashMap::new(),
        workers: 0,
        supervisors: 0,
        made: 0,
    };
    soak.workspace.supervise();
    soak.create();
    let mut last_kill = Instant::now();
    while until.map_or(soak.kills() < KILLS, |until| Instant::now() < until) {
        std::thread::sleep(Duration::from_millis(20 + soak.random.below(250)));
        let before = soak.kills();
        soak.strike();
        if soak.kills() > before {
            last_kill = Instant::now();
        } else if soak.all_over() {
            soak.create();
        }
        assert!(last_kill.elapsed() < PATIENCE, "nothing to kill any more: {:?}", soak.workspace.jobs());
    }
    let stopped = Instant::now();
    while !soak.all_over() {
        assert!(stopped.elapsed() < PATIENCE, "jobs do not end: {:?}", soak.workspace.jobs());
        std::thread::sleep(Duration::from_millis(100));
    }
    let jobs = soak.workspace.jobs();
    assert_eq!(jobs.len(), soak.made);
    for job in &jobs {
        soak.workspace.judge(job, reference());
    }
    let store = Store::open(&soak.workspace.home()).unwrap();
    assert!(store.problems().unwrap().is_empty() && store.leases().unwrap().is_empty());
    let attempts: u32 = jobs.iter().map(|job| job.attempt).sum();
    println!(
        "{} jobs in {attempts} attempts; {} workers and {} supervisors killed",
        jobs.len(),
        soak.workers,
        soak.supervisors
    );
}
