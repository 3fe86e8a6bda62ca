use std::io::Write as _;

use serde_json::json;

use super::*;
use crate::dir::{JobDir, Status as Ended, Submission};
use crate::submit;

struct Bench {
    home: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        Self { home, store }
    }

    fn submit(&mut self, name: &str) -> (String, JobDir) {
        let spec = json!({ "base": "b", "name": name, "device": "cpu", "data": { "train": "t.jsonl" } });
        let submitted = submit(&mut self.store, &spec, &Submission::default()).unwrap();
        (submitted.job.id, submitted.dir.unwrap())
    }

    /// A job that runs; its fence.
    fn running(&mut self, name: &str, device: &str) -> (String, JobDir, u64) {
        let (id, dir) = self.submit(name);
        let fence = self.store.begin_validation(&id).unwrap().unwrap();
        assert!(self.store.end_validation(&id, fence, State::Queued, &AttemptEnd::default()).unwrap());
        let started = self.store.start(&id, device).unwrap().unwrap();
        (id, dir, started.fence)
    }

    fn result(&self, id: &str, status: Ended) -> AttemptEnd {
        let result = JobResult::new(id, "n", status, self.home.path().join("jobs").join(id));
        AttemptEnd { result: Some(result), ..AttemptEnd::default() }
    }
}

fn log(dir: &JobDir, text: &str) {
    let path = dir.path().join("events.jsonl");
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn step(seq: u64, step: u64) -> String {
    let data = json!({ "step": step, "total_steps": 40, "loss": 1.0, "seconds": 0.1, "tokens": 10 });
    format!("{}\n", json!({ "seq": seq, "time": "2026-01-01T00:00:00.000Z", "type": "step", "data": data }))
}

#[test]
fn a_job_goes_from_its_creation_to_its_end_and_then_nothing_moves_it() {
    let mut bench = Bench::new();
    let (id, dir, fence) = bench.running("first", "cpu");
    let job = bench.store.job(&id).unwrap();
    assert_eq!(
        (job.state, job.attempt, job.fence, job.device.as_deref()),
        (State::Running, 1, 2, Some("cpu"))
    );
    assert_eq!((job.training_data.as_str(), job.base_model.as_str()), ("t.jsonl", "b"));
    log(&dir, &step(1, 40));
    let end = bench.result(&id, Ended::Success);
    assert!(bench.store.end_attempt(&id, fence, State::Succeeded, &end).unwrap());
    let job = bench.store.job(&id).unwrap();
    assert_eq!((job.state, job.progress.step, job.device), (State::Succeeded, 40, None));
    assert!(job.finished_ms >= job.started_ms && job.result.is_some());
    assert!(bench.store.leases().unwrap().is_empty());

    // Neither the program nor anybody with a database shell.
    assert!(!bench.store.end_attempt(&id, fence, State::Cancelled, &end).unwrap());
    let error = bench.store.sql.execute("UPDATE job SET name = 'x'", []).unwrap_err();
    assert!(error.to_string().contains("the job is over"), "{error}");
    let words: Vec<_> = bench.store.history(&id).unwrap().iter().map(|t| (t.old, t.new)).collect();
    let way = [State::Validating, State::Queued, State::Running, State::Succeeded];
    assert_eq!(words, way.windows(2).map(|w| (w[0], w[1])).collect::<Vec<_>>());
}

#[test]
fn the_database_refuses_every_transition_that_is_not_in_the_table() {
    for from in State::ALL {
        for to in State::ALL {
            let mut bench = Bench::new();
            let (id, _dir) = bench.submit("a");
            bench.store.sql.execute_batch("DROP TRIGGER job_legal").unwrap();
            let set = |store: &Store, state: State| {
                store.sql.execute("UPDATE job SET state = ?2 WHERE id = ?1", [id.as_str(), state.as_str()])
            };
            set(&bench.store, from).unwrap();
            let trigger = include_str!("schema.rs");
            let begin = trigger.find("CREATE TRIGGER job_legal").unwrap();
            let end = begin + trigger[begin..].find("END;").unwrap() + 4;
            bench.store.sql.execute_batch(&trigger[begin..end]).unwrap();
            let allowed = from.may_become(to) || (from == to && !from.is_terminal());
            assert_eq!(set(&bench.store, to).is_ok(), allowed, "{from:?} -> {to:?}");
        }
    }
}

#[test]
fn events_count_once_however_often_they_are_read_and_a_torn_line_waits() {
    let mut bench = Bench::new();
    let (id, dir, _) = bench.running("a", "cpu");
    log(&dir, &step(1, 1));
    log(&dir, &step(2, 2)[..30]);
    assert_eq!(bench.store.ingest(&id).unwrap(), 1);
    assert_eq!(bench.store.ingest(&id).unwrap(), 0);
    log(&dir, &step(2, 2)[30..]);
    let mut second = Store::open(bench.home.path()).unwrap();
    assert_eq!(second.ingest(&id).unwrap() + bench.store.ingest(&id).unwrap(), 1);
    // A line written twice, and a line of rubbish: neither counts, neither stops what follows.
    log(&dir, &step(2, 2));
    log(&dir, "rubbish\n");
    log(&dir, &step(3, 3));
    assert_eq!(bench.store.ingest(&id).unwrap(), 1);
    let events = bench.store.events(&id, 0, 100).unwrap();
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let job = bench.store.job(&id).unwrap();
    assert_eq!((job.progress.step, job.progress.warnings), (3, 1));
}

#[test]
fn a_device_has_one_job_at_a_time() {
    let mut bench = Bench::new();
    let (first, _dir, fence) = bench.running("a", "cuda:0");
    let (second, _dir2) = bench.submit("b");
    let validation = bench.store.begin_validation(&second).unwrap().unwrap();
    bench.store.end_validation(&second, validation, State::Queued, &AttemptEnd::default()).unwrap();
    assert_eq!(bench.store.start(&second, "cuda:0").unwrap(), None);
    assert_eq!(bench.store.job(&second).unwrap().state, State::Queued);
    bench.store.end_attempt(&first, fence, State::Queued, &AttemptEnd::default()).unwrap();
    assert!(bench.store.start(&second, "cuda:0").unwrap().is_some());
    assert_eq!(bench.store.start(&first, "cuda:0").unwrap(), None);
}

#[test]
fn a_worker_of_an_older_fence_ends_nothing() {
    let mut bench = Bench::new();
    let (id, _dir, old) = bench.running("a", "cpu");
    bench.store.end_attempt(&id, old, State::Queued, &AttemptEnd::default()).unwrap();
    let new = bench.store.start(&id, "cpu").unwrap().unwrap();
    assert_eq!((new.fence, new.attempt), (old + 1, 2));
    let end = bench.result(&id, Ended::Success);
    assert!(!bench.store.end_attempt(&id, old, State::Succeeded, &end).unwrap());
    assert!(bench.store.end_attempt(&id, new.fence, State::Succeeded, &end).unwrap());
}

#[test]
fn fifty_creates_with_one_key_make_one_job() {
    let bench = Bench::new();
    let home = bench.home.path();
    let spec = json!({ "base": "b", "name": "n", "data": { "train": "t" } });
    let submission = Submission { idempotency_key: Some("k".into()), ..Submission::default() };
    let ids: Vec<(String, bool)> = std::thread::scope(|scope| {
        let create = || {
            let mut store = Store::open(home).unwrap();
            let made = submit(&mut store, &spec, &submission).unwrap();
            (made.job.id, made.dir.is_some())
        };
        let threads: Vec<_> = (0..50).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|(id, _)| *id == ids[0].0));
    assert_eq!(ids.iter().filter(|(_, made)| *made).count(), 1);
    assert_eq!(std::fs::read_dir(home.join("jobs")).unwrap().count(), 1, "no directory is left over");

    let mut store = Store::open(home).unwrap();
    let other = json!({ "base": "b", "name": "n", "data": { "train": "another" } });
    assert!(matches!(submit(&mut store, &other, &submission), Err(Error::Refused { .. })));
    assert_eq!(std::fs::read_dir(home.join("jobs")).unwrap().count(), 1);
}

#[test]
fn requests_move_what_nobody_works_on_and_are_written_down_otherwise() {
    let mut bench = Bench::new();
    let (id, _dir, fence) = bench.running("a", "cpu");
    let (answer, job) = bench.store.request(&id, Desired::Pause).unwrap();
    assert_eq!((answer, job.generation), (Answer::Wished(Desired::Pause), 1));
    assert_eq!(bench.store.request(&id, Desired::Pause).unwrap().0, Answer::Already);
    bench.store.end_attempt(&id, fence, State::Paused, &AttemptEnd::default()).unwrap();
    assert_eq!(bench.store.request(&id, Desired::Run).unwrap().0, Answer::Moved(State::Queued, Desired::Run));
    let (answer, job) = bench.store.request(&id, Desired::Cancel).unwrap();
    assert_eq!((answer, job.state), (Answer::Moved(State::Cancelled, Desired::Cancel), State::Cancelled));
    assert!(job.finished_ms.is_some());
    assert_eq!(bench.store.request(&id, Desired::Cancel).unwrap().0, Answer::Already);
    assert_eq!(bench.store.request(&id, Desired::Run).unwrap().0, Answer::Refused);
    assert!(matches!(bench.store.request("ftjob-x", Desired::Run), Err(Error::NoJob { .. })));
}

#[test]
fn a_job_that_is_to_pause_does_not_start_after_its_rows_are_read() {
    let mut bench = Bench::new();
    let (id, _dir) = bench.submit("a");
    let fence = bench.store.begin_validation(&id).unwrap().unwrap();
    assert_eq!(bench.store.request(&id, Desired::Pause).unwrap().0, Answer::Wished(Desired::Pause));
    bench.store.end_validation(&id, fence, State::Queued, &AttemptEnd::default()).unwrap();
    assert_eq!(bench.store.job(&id).unwrap().state, State::Paused);
}

#[test]
fn jobs_are_found_by_what_people_type() {
    let mut bench = Bench::new();
    let (first, _a) = bench.submit("tickets");
    let (second, _b) = bench.submit("other");
    assert_eq!(bench.store.find(&first).unwrap().id, first);
    assert_eq!(bench.store.find("tickets").unwrap().id, first);
    assert_eq!(bench.store.find(&second[6..]).unwrap().id, second);
    assert!(matches!(bench.store.find("0"), Err(Error::Ambiguous { .. })), "both ids begin with it");
    for nothing in ["", "ftjob-", "nope", "%", "'; DROP TABLE job; --"] {
        assert!(matches!(bench.store.find(nothing), Err(Error::NoJob { .. })), "{nothing}");
    }
    let (third, _c) = bench.submit("tickets");
    assert!(matches!(bench.store.find("tickets"), Err(Error::Ambiguous { .. })));
    bench.store.request(&first, Desired::Cancel).unwrap();
    let fence = bench.store.begin_validation(&first).unwrap().unwrap();
    bench.store.end_validation(&first, fence, State::Cancelled, &AttemptEnd::default()).unwrap();
    assert_eq!(bench.store.find("tickets").unwrap().id, third, "the one that is not over");
    let ids: Vec<_> = bench.store.list(Filter::default()).unwrap().into_iter().map(|job| job.id).collect();
    assert_eq!(ids, [third.clone(), second, first]);
    let filter = Filter { states: &[State::Validating], limit: Some(1) };
    assert_eq!(bench.store.list(filter).unwrap()[0].id, third);
}

#[test]
fn an_end_that_counts_on_a_wish_waits_for_another_look_when_the_wish_has_changed() {
    let mut bench = Bench::new();
    let (id, _dir, fence) = bench.running("a", "cpu");
    bench.store.request(&id, Desired::Pause).unwrap();
    let end = AttemptEnd { desired: Some(Desired::Pause), ..AttemptEnd::default() };
    bench.store.request(&id, Desired::Run).unwrap();
    assert!(!bench.store.end_attempt(&id, fence, State::Paused, &end).unwrap());
    assert_eq!(bench.store.job(&id).unwrap().state, State::Running);
    // A cancel that comes between the look and the end is not lost.
    let result = bench.result(&id, Ended::Cancelled).result.unwrap();
    assert!(!bench.store.cancel_waiting(&id, &result).unwrap());
    bench.store.request(&id, Desired::Cancel).unwrap();
    assert!(bench.store.end_attempt(&id, fence, State::Queued, &AttemptEnd::default()).unwrap());
    assert_eq!(bench.store.request(&id, Desired::Cancel).unwrap().0, Answer::Already);
    assert!(bench.store.cancel_waiting(&id, &result).unwrap());
    assert_eq!(bench.store.job(&id).unwrap().state, State::Cancelled);
}

/// Cancel against finish, on the store itself: whichever is written first wins, and there is one end.
#[test]
fn a_cancel_that_races_the_finish_leaves_one_end() {
    let mut bench = Bench::new();
    for round in 0..200 {
        let (id, _dir, fence) = bench.running("a", "cpu");
        let home = bench.home.path();
        let end = bench.result(&id, Ended::Success);
        let id = id.as_str();
        std::thread::scope(|scope| {
            let cancel =
                scope.spawn(move || Store::open(home).unwrap().request(id, Desired::Cancel).unwrap().0);
            let finish = scope.spawn(move || {
                let mut store = Store::open(home).unwrap();
                store.end_attempt(id, fence, State::Succeeded, &end).unwrap()
            });
            assert!(finish.join().unwrap(), "round {round}");
            assert!(matches!(cancel.join().unwrap(), Answer::Wished(Desired::Cancel) | Answer::Refused));
        });
        let ends = bench.store.history(id).unwrap().iter().filter(|t| t.new.is_terminal()).count();
        assert_eq!((bench.store.job(id).unwrap().state, ends), (State::Succeeded, 1));
    }
}

#[test]
fn a_lost_or_broken_store_is_made_again_from_the_directories() {
    let mut bench = Bench::new();
    let (done, dir, fence) = bench.running("done", "cpu");
    log(&dir, &step(1, 40));
    let end = bench.result(&done, Ended::Success);
    dir.write_result(&end.result.clone().unwrap()).unwrap();
    bench.store.end_attempt(&done, fence, State::Succeeded, &end).unwrap();
    let (waiting, _) = bench.submit("waiting");
    let (worked, at_work, fence) = bench.running("worked", "cpu");
    std::fs::create_dir(at_work.path().join("data")).unwrap();
    std::fs::write(at_work.path().join("data/manifest.json"), "{}").unwrap();
    let attempt = crate::dir::Attempt { attempt: 1, fence, device: "cpu".into(), micro_batch_divisor: 2 };
    attempt.write(at_work.path()).unwrap();
    std::fs::create_dir(bench.home.path().join("jobs/not-a-job")).unwrap();

    let before = bench.store.job(&done).unwrap();
    let home = bench.home.path();
    drop(bench.store);
    // Something writes over the middle of the file.
    let mut bytes = std::fs::read(home.join("jobs.sqlite")).unwrap();
    bytes[..200].fill(0x55);
    std::fs::write(home.join("jobs.sqlite"), bytes).unwrap();
    let error = Store::open(home).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains("jobs.sqlite"), "{error}");

    let (store, rebuilt) = Store::rebuild(home).unwrap();
    assert_eq!((rebuilt.jobs, rebuilt.left_out.len()), (3, 1));
    assert!(rebuilt.left_out[0].contains("not-a-job") && rebuilt.old.unwrap().exists());
    let job = store.job(&done).unwrap();
    assert_eq!((job.state, &job.progress), (State::Succeeded, &before.progress));
    // The directory's id was made a little before the row.
    assert!((0..60_000).contains(&(before.created_ms - job.created_ms)) && job.name == before.name);
    assert_eq!(store.job(&waiting).unwrap().state, State::Validating);
    let job = store.job(&worked).unwrap();
    assert_eq!((job.state, job.fence, job.micro_batch_divisor), (State::Running, fence, 2));
    assert_eq!(job.device.as_deref(), Some("cpu"));
    drop(at_work);
    let (store, _) = Store::rebuild(home).unwrap();
    assert_eq!(store.job(&worked).unwrap().state, State::Queued, "its worker is gone");
    assert!(store.problems().unwrap().is_empty());
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let bench = Bench::new();
    bench.store.sql.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(bench.home.path()), Err(Error::Newer { version: 99, .. })));
}

#[test]
fn a_notice_is_taken_once() {
    let mut bench = Bench::new();
    let spec = json!({ "base": "b", "name": "n", "data": { "train": "t" } });
    let submission = Submission { on_finish: Some("true".into()), ..Submission::default() };
    let id = submit(&mut bench.store, &spec, &submission).unwrap().job.id;
    assert!(bench.store.notices().unwrap().is_empty());
    let fence = bench.store.begin_validation(&id).unwrap().unwrap();
    bench.store.end_validation(&id, fence, State::Failed, &AttemptEnd::default()).unwrap();
    assert_eq!(bench.store.notices().unwrap()[0].1, "true");
    assert!(bench.store.take_notice(&id).unwrap() && !bench.store.take_notice(&id).unwrap());
    assert!(bench.store.remove(&id).unwrap() && !bench.store.remove(&id).unwrap());
}
