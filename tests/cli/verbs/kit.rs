//! A workspace whose jobs are where a test wants them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tunesmith_jobs::dir::{Failure, JobDir, JobResult, Manifest, Status, Submission, write_result};
use tunesmith_jobs::store::AttemptEnd;
use tunesmith_jobs::{State, Store, submit};

use crate::support::{Bench, Ran, finish};

/// A scratch directory with a store.
pub(super) struct Kit {
    pub(super) bench: Bench,
    pub(super) store: Store,
}

impl Kit {
    pub(super) fn new() -> Self {
        let bench = Bench::new();
        let store = Store::open(&bench.home()).unwrap();
        Self { bench, store }
    }

    /// The binary, with nobody started to look after the jobs.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        command(&self.bench, args)
    }

    pub(super) fn run(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }

    pub(super) fn dir(&self, id: &str) -> PathBuf {
        self.store.dir(id)
    }

    pub(super) fn state(&self, id: &str) -> State {
        self.store.job(id).unwrap().state
    }

    /// A new job, `validating`.
    pub(super) fn job(&mut self, name: &str) -> String {
        let spec = json!({
            "name": name, "base": "/models/base", "device": "auto",
            "data": { "train": "/rows/tickets.jsonl", "validation_split": 0.2, "template": "auto", "over_long": "drop" },
            "train": { "epochs": 3, "batch_size": 4 },
        });
        submit(&mut self.store, &spec, &Submission::default()).unwrap().job.id
    }

    /// A job whose rows are frozen, `queued`.
    pub(super) fn queued(&mut self, name: &str) -> String {
        let id = self.job(name);
        let dir = JobDir::open(&self.dir(&id)).unwrap();
        let mut rows = dir.freeze("train").unwrap();
        rows.push(b"{\"prompt\":\"a\",\"completion\":\"b\"}", (0, 1)).unwrap();
        let train = rows.finish().unwrap();
        let manifest = Manifest::<Value> { format_version: 1, sources: Vec::new(), train, validation: None };
        dir.write_manifest(&manifest).unwrap();
        let fence = self.store.begin_validation(&id).unwrap().unwrap();
        assert!(self.store.end_validation(&id, fence, State::Queued, &AttemptEnd::default()).unwrap());
        id
    }

    /// A job that a device is leased to; the fence of its attempt.
    pub(super) fn running(&mut self, name: &str, device: &str) -> (String, u64) {
        let id = self.queued(name);
        let started = self.store.start(&id, device).unwrap().unwrap();
        (id, started.fence)
    }

    /// What a worker would have written.
    pub(super) fn events(&self, id: &str, events: &[(&str, Value)]) {
        let mut log = JobDir::open(&self.dir(id)).unwrap().events().unwrap();
        for (kind, data) in events {
            log.append(&json!({ "type": kind, "data": data })).unwrap();
        }
    }

    /// A plan of 40 steps and the first ten of them.
    pub(super) fn ten_steps(&self, id: &str) {
        let mut events = vec![
            ("phase", json!({ "phase": "training" })),
            (
                "plan",
                json!({ "total_steps": 40, "epochs": 2, "train_examples": 80, "validation_examples": 20 }),
            ),
            ("evaluation", json!({ "step": 0, "loss": 3.5, "seconds": 0.5 })),
        ];
        for step in 1..=10 {
            let data = json!({
                "step": step, "total_steps": 40, "loss": 2.0, "seconds": 0.5, "tokens": 100,
                "epoch": f64::from(step) / 20.0, "learning_rate": 1e-4,
            });
            events.push(("step", data));
        }
        self.events(id, &events);
    }

    /// Ends a running job.
    pub(super) fn end(&mut self, id: &str, fence: u64, state: State, error: Option<(&str, &str)>) {
        let status = match state {
            State::Succeeded => Status::Success,
            State::Cancelled => Status::Cancelled,
            _ => Status::Error,
        };
        let dir = self.dir(id);
        let name = self.store.job(id).unwrap().name;
        let mut result = JobResult::new(id, &name, status, dir.clone());
        result.fence = fence;
        result.started_at = String::from("2026-01-31T10:00:00.000Z");
        result.finished_at = String::from("2026-01-31T10:01:00.000Z");
        result.error = error.map(|(class, message)| Failure {
            class: class.to_owned(),
            code: format!("{class}_code"),
            message: message.to_owned(),
            hint: Some("do something else".to_owned()),
        });
        if state == State::Succeeded {
            (result.tokens, result.trained_tokens) = (4000, 1000);
            (result.train_loss, result.validation_loss) = (Some(1.5), Some(2.5));
            fs::create_dir_all(dir.join("adapter")).unwrap();
            result.adapter = Some(dir.join("adapter"));
        }
        write_result(&dir, &result).unwrap();
        let end = AttemptEnd { result: Some(result), ..AttemptEnd::default() };
        assert!(self.store.end_attempt(id, fence, state, &end).unwrap());
    }

    /// A job that is over.
    pub(super) fn over(&mut self, name: &str, state: State, error: Option<(&str, &str)>) -> String {
        // On a device of its own: one may be running.
        let (id, fence) = self.running(name, "cuda:0");
        self.end(&id, fence, state, error);
        id
    }
}

/// The binary, with nobody started to look after the jobs.
pub(super) fn command(bench: &Bench, args: &[&str]) -> Command {
    let mut command = bench.command(args);
    command.env("TUNESMITH_SUPERVISOR", "off");
    command
}
