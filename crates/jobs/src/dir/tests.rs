use super::*;
use serde_json::{Value, json};

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_job_directory_holds_what_was_written() {
    let home = tempfile::tempdir().unwrap();
    let job = JobDir::create(&home.path().join("deep/home")).unwrap();
    assert_eq!(job.path().parent().unwrap(), home.path().join("deep/home/jobs"));
    job.write_spec(&json!({ "base": "b" })).unwrap();
    let spec: SpecFile<Value> = serde_json::from_str(&read(job.path().join("spec.json"))).unwrap();
    assert_eq!((spec.format_version, spec.id.as_str()), (FORMAT_VERSION, job.id()));
    assert_eq!(spec.spec, json!({ "base": "b" }));

    let mut rows = job.freeze("train").unwrap();
    rows.push(b"{\"a\":1}", (0, 7)).unwrap();
    rows.push(b"{\"a\":2}", (3, 1 << 40)).unwrap();
    let frozen = rows.finish().unwrap();
    assert_eq!(read(job.path().join("data/train.jsonl")), "{\"a\":1}\n{\"a\":2}\n");
    assert_eq!((frozen.rows, frozen.bytes), (2, 16));
    assert_eq!(frozen.sha256, sha256_file(&job.path().join("data/train.jsonl")).unwrap());
    let mut read = frozen.open(&job.data()).unwrap();
    assert_eq!(read.next_row().unwrap(), Some((b"{\"a\":1}".to_vec(), (0, 7))));
    assert_eq!(read.next_row().unwrap(), Some((b"{\"a\":2}".to_vec(), (3, 1 << 40))));
    assert_eq!(read.next_row().unwrap(), None);
    let names: Vec<_> = fs::read_dir(job.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().ends_with(".tmp")), "{names:?}");
}

#[test]
fn frozen_rows_that_changed_are_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let job = JobDir::create(home.path()).unwrap();
    assert_eq!(job.read_manifest::<Value>().unwrap(), None);
    let mut rows = job.freeze("validation").unwrap();
    for line in 0..9 {
        rows.push(b"{\"a\":1}", (0, line)).unwrap();
    }
    let frozen = rows.finish().unwrap();
    for name in ["validation.jsonl", "validation.places"] {
        let path = job.data().join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[20] ^= 1;
        for bad in [flipped, whole[..whole.len() - 1].to_vec(), [&whole[..], b"\n"].concat()] {
            fs::write(&path, bad).unwrap();
            let error = frozen.open(&job.data()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("start a new job"), "{error}");
        }
        fs::write(&path, whole).unwrap();
    }
    // A manifest that miscounts.
    let mut read = FrozenFile { rows: 8, ..frozen.clone() };
    assert!(read.open(&job.data()).is_err(), "the places are too long");
    read.places.sha256 = String::new();
    assert!(read.open(&job.data()).is_err());

    let manifest =
        Manifest { format_version: FORMAT_VERSION, sources: vec![json!(1)], train: frozen, validation: None };
    job.write_manifest(&manifest).unwrap();
    assert_eq!(job.read_manifest().unwrap(), Some(manifest.clone()));
    job.write_manifest(&Manifest { format_version: FORMAT_VERSION + 1, ..manifest }).unwrap();
    let error = job.read_manifest::<Value>().unwrap_err().to_string();
    assert!(error.contains("of format 2, which a later version"), "{error}");
    job.clear_data().unwrap();
    job.clear_data().unwrap();
    assert!(!job.data().exists());
}

#[test]
fn sha256_is_sha256() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abc");
    fs::write(&path, "abc").unwrap();
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, B.1
    assert_eq!(sha256_file(&path).unwrap(), digest);
}

#[test]
fn events_are_numbered_lines_with_type_and_data() {
    let home = tempfile::tempdir().unwrap();
    let job = JobDir::create(home.path()).unwrap();
    let mut log = job.events().unwrap();
    let event = json!({ "type": "evaluation", "data": { "loss": 1.25 } });
    log.append(&event).unwrap();
    log.append(&json!({ "type": "note", "data": { "text": "two\nlines" } })).unwrap();
    log.sync().unwrap();

    let text = read(job.path().join("events.jsonl"));
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2, "a newline in a value makes no line");
    assert_eq!((&lines[0]["seq"], &lines[1]["seq"]), (&json!(1), &json!(2)));
    assert_eq!((&lines[0]["type"], &lines[0]["data"]["loss"]), (&json!("evaluation"), &json!(1.25)));
    let time = lines[0]["time"].as_str().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    drop(log);

    // A process that died in the middle of a line; the next one goes on after the last whole line.
    let path = job.path().join("events.jsonl");
    let mut file = File::options().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut file, b"{\"seq\":3,\"time\":\"2026").unwrap();
    job.events().unwrap().append(&json!({ "type": "more", "data": null })).unwrap();
    let text = read(path);
    let seqs: Vec<Value> =
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].clone()).collect();
    assert_eq!(seqs, [1, 2, 3]);
}

#[test]
fn a_job_directory_is_opened_again_by_one_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let job = JobDir::create(home.path()).unwrap();
    let path = job.path().to_owned();
    assert!(!is_free(&path).unwrap());
    drop(job);
    assert!(is_free(&path).unwrap());
    let again = JobDir::open(&path).unwrap();
    assert_eq!(again.path(), path);
    assert!(matches!(JobDir::open(&path), Err(Error::Busy { .. })));
    assert!(JobDir::open(&home.path().join("jobs/ftjob-none")).is_err());
}

#[test]
fn the_lock_is_held_exactly_as_long_as_the_job() {
    let home = tempfile::tempdir().unwrap();
    let job = JobDir::create(home.path()).unwrap();
    let path = job.path().to_owned();
    assert!(matches!(lock(&path), Err(Error::Busy { .. })));
    drop(job);
    assert!(lock(&path).is_ok());
}

#[test]
fn an_atomic_write_that_fails_leaves_the_old_file_and_no_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    write_atomic(&path, b"old").unwrap();
    // A directory where the temporary file should go: the write cannot start.
    fs::create_dir(dir.path().join("result.json.tmp")).unwrap();
    let error = write_atomic(&path, b"new").unwrap_err();
    assert!(error.to_string().contains("result.json"), "{error}");
    assert_eq!(read(path), "old");
}

#[test]
fn a_file_in_the_place_of_the_home_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::write(&home, "").unwrap();
    let error = JobDir::create(&home).unwrap_err();
    assert!(error.io().is_some() && error.to_string().contains("home"), "{error}");
}
