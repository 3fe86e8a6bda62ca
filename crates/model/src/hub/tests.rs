use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::*;
use crate::test_support::{assert_error, counting_file};
use crate::{Checkpoint, ModelConfig};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the little Hub on 127.0.0.1 serves and how it misbehaves.
#[derive(Clone, Default)]
struct Site {
    files: BTreeMap<String, Vec<u8>>,
    /// Answer everything with this status.
    status: Option<u16>,
    /// Refuse requests without this token.
    token: Option<String>,
    /// Break the connection after half of the body of the first whole request for this file.
    break_once: Option<String>,
}

struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves until the test process ends.
    fn start(site: Site) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            let mut site = site;
            for stream in listener.incoming().flatten() {
                let _ = answer(&mut site, &stream, &log);
            }
        });
        Self { endpoint, requests }
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn answer(site: &mut Site, mut stream: &TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_string();
    let mut range = None;
    let mut token = None;
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "range" => range = Some(value.trim_start_matches("bytes=").to_string()),
            "authorization" => token = Some(value.to_string()),
            _ => {}
        }
    }
    log.lock().unwrap().push(format!("{path} {}", range.clone().unwrap_or_default()));
    let refused = site.token.is_some() && token != site.token.as_ref().map(|t| format!("Bearer {t}"));
    let api = ["main", "v1", SHA].map(|revision| format!("/api/models/org/tiny/revision/{revision}"));
    let file = path.strip_prefix(&format!("/org/tiny/resolve/{SHA}/"));
    let (status, headers, body, cut) = if let Some(status) = site.status.or(refused.then_some(401)) {
        (status, String::new(), vec![], false)
    } else if api.contains(&path) {
        let siblings: Vec<_> = site.files.keys().map(|name| json!({"rfilename": name})).collect();
        (200, String::new(), json!({"sha": SHA, "siblings": siblings}).to_string().into_bytes(), false)
    } else if let Some((name, bytes)) = file.and_then(|name| site.files.get_key_value(name)) {
        let range = range.unwrap_or_default();
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(bytes.len(), |end: usize| end + 1).min(bytes.len());
        let headers = format!(
            "ETag: \"etag-{}\"\r\nX-Repo-Commit: {SHA}\r\nContent-Range: bytes {start}-{}/{}\r\n",
            name.replace('.', "-"),
            end.saturating_sub(1),
            bytes.len()
        );
        if start >= bytes.len() {
            (416, headers, vec![], false)
        } else {
            let whole = start == 0 && end == bytes.len() && end > 1;
            let cut = whole && site.break_once.take_if(|broken| broken == name).is_some();
            (206, headers, bytes[start..end].to_vec(), cut)
        }
    } else {
        (404, String::new(), vec![], false)
    };
    let head = format!(
        "HTTP/1.1 {status} Answer\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(if cut { &body[..body.len() / 2] } else { &body })
}

fn config() -> Vec<u8> {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 4, "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 1
    })
    .to_string()
    .into_bytes()
}

fn single() -> Site {
    let mut site = Site::default();
    for (name, bytes) in [
        ("config.json", config()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{}".to_vec()),
        ("model.safetensors", counting_file(&[("a", &[40, 10])])),
        ("README.md", b"card".to_vec()),
        ("pytorch_model.bin", b"pickle".to_vec()),
        ("consolidated.safetensors", b"the same weights again".to_vec()),
        ("onnx/tokenizer.json", b"{}".to_vec()),
    ] {
        site.files.insert(name.to_string(), bytes);
    }
    site
}

fn sharded() -> Site {
    let mut site = single();
    site.files.remove("model.safetensors");
    site.files.insert("model-1.safetensors".into(), counting_file(&[("a", &[2])]));
    site.files.insert("model-2.safetensors".into(), counting_file(&[("b", &[3])]));
    let map = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    site.files.insert("model.safetensors.index.json".into(), map.to_string().into_bytes());
    site
}

fn options(hub: &Hub, cache: &tempfile::TempDir) -> HubOptions {
    HubOptions {
        cache_dir: Some(cache.path().to_path_buf()),
        endpoint: Some(hub.endpoint.clone()),
        ..HubOptions::default()
    }
}

fn get(base: &str, options: &HubOptions) -> Result<PathBuf> {
    resolve(base, options, &mut |_| {})
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_repository_is_downloaded_once() {
    let (hub, cache) = (Hub::start(single()), tempfile::tempdir().unwrap());
    let mut options = options(&hub, &cache);
    let mut seen: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let dir = resolve("org/tiny", &options, &mut |progress| {
        let last = seen.insert(progress.file.to_string(), (progress.done, progress.total));
        assert!(progress.done <= progress.total && last.is_none_or(|(_, total)| total == progress.total));
    })
    .unwrap();
    assert_eq!(names(&dir), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    let size = single().files["model.safetensors"].len() as u64;
    assert_eq!(seen["model.safetensors"], (size, size));
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), single().files["model.safetensors"]);
    assert_eq!(dir, cache.path().join("models--org--tiny/snapshots").join(SHA));
    assert_eq!(std::fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap(), SHA);
    ModelConfig::from_dir(&dir).unwrap();
    Checkpoint::open(&dir).unwrap();

    let count = hub.count();
    assert_eq!(get("org/tiny", &options).unwrap(), dir);
    options.offline = true;
    assert_eq!(get("org/tiny", &options).unwrap(), dir);
    options.revision = Some(SHA.into());
    assert_eq!(get("org/tiny", &options).unwrap(), dir);
    assert_eq!(hub.count(), count, "what is in the cache needs no connection");

    options.revision = Some("v1".into());
    assert_error(get("org/tiny", &options), &["`org/tiny`", "`v1`", "offline"]);
    options.offline = false;
    assert_eq!(get("org/tiny", &options).unwrap(), dir);
    assert_eq!(hub.count(), count + 1, "the files of the commit are there; only the revision is asked for");
}

#[test]
fn shards_follow_from_the_index() {
    let (hub, cache) = (Hub::start(sharded()), tempfile::tempdir().unwrap());
    let mut options = options(&hub, &cache);
    let dir = get("org/tiny", &options).unwrap();
    let weights = ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(
        names(&dir),
        [&["config.json"], &weights[..], &["tokenizer.json", "tokenizer_config.json"]].concat()
    );
    assert_eq!(Checkpoint::open(&dir).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);

    std::fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    options.offline = true;
    assert_error(get("org/tiny", &options), &["lacks model-2.safetensors", "offline"]);
    options.offline = false;
    get("org/tiny", &options).unwrap();
    assert!(dir.join("model-2.safetensors").exists());
}

#[test]
fn weights_are_left_out_when_they_are_not_wanted_and_come_later() {
    for site in [single(), sharded()] {
        let (hub, cache) = (Hub::start(site), tempfile::tempdir().unwrap());
        let mut options = options(&hub, &cache);
        options.without_weights = true;
        let dir = get("org/tiny", &options).unwrap();
        let small = names(&dir);
        assert!(small.iter().any(|name| name == "config.json"), "{small:?}");
        assert!(small.iter().all(|name| !name.ends_with(".safetensors")), "{small:?}");
        let refs = cache.path().join("models--org--tiny/refs/main");
        assert!(!refs.exists(), "no whole model is noted");
        options.without_weights = false;
        let whole = get("org/tiny", &options).unwrap();
        assert_eq!(whole, dir);
        assert!(Checkpoint::open(&whole).is_ok() && refs.exists());
        // Where all is there, less is too.
        options.without_weights = true;
        let count = hub.count();
        assert_eq!((get("org/tiny", &options).unwrap(), hub.count()), (dir, count));
    }
}

#[test]
fn a_broken_connection_is_continued() {
    let site = Site { break_once: Some("model.safetensors".into()), ..single() };
    let (hub, cache) = (Hub::start(site.clone()), tempfile::tempdir().unwrap());
    let dir = get("org/tiny", &options(&hub, &cache)).unwrap();
    assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == site.files["model.safetensors"]);
    let half = site.files["model.safetensors"].len() / 2;
    let continued = format!("/org/tiny/resolve/{SHA}/model.safetensors {half}-");
    assert!(hub.requests.lock().unwrap().contains(&continued), "{:?}", hub.requests.lock().unwrap());
}

#[test]
fn a_part_file_that_cannot_be_continued_is_replaced() {
    let weights = single().files["model.safetensors"].clone();
    for part in [weights.clone(), [&weights[..], b"more"].concat()] {
        let (hub, cache) = (Hub::start(single()), tempfile::tempdir().unwrap());
        let blobs = cache.path().join("models--org--tiny/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join("etag-model-safetensors.part"), &part).unwrap();
        let dir = get("org/tiny", &options(&hub, &cache)).unwrap();
        assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == weights);
    }
}

#[test]
fn the_token_is_sent() {
    let site = Site { token: Some("hf_secret".into()), ..single() };
    let (hub, cache) = (Hub::start(site), tempfile::tempdir().unwrap());
    let mut options = options(&hub, &cache);
    let message = assert_error(get("org/tiny", &options), &["`org/tiny`", "401", "HF_TOKEN", "licence"]);
    assert!(!message.contains("hf_secret"));
    options.token = Some("hf_secret".into());
    get("org/tiny", &options).unwrap();
}

#[test]
fn what_the_hub_refuses_is_one_sentence() {
    for (status, words) in [
        (404, &["no such repository", "`main`"][..]),
        (403, &["refuses access", "HF_TOKEN"][..]),
        (500, &["HTTP 500"][..]),
        (429, &["too many requests"][..]),
    ] {
        let site = Site { status: Some(status), ..single() };
        let (hub, cache) = (Hub::start(site), tempfile::tempdir().unwrap());
        let message = assert_error(get("org/tiny", &options(&hub, &cache)), &["base model `org/tiny`"]);
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = Hub { endpoint: format!("http://{nobody}"), requests: Arc::default() };
    let cache = tempfile::tempdir().unwrap();
    assert_error(get("org/tiny", &options(&hub, &cache)), &["cannot download", "offline mode"]);
}

#[test]
fn repositories_that_are_no_base_model() {
    let changed = |remove: &str, add: &[&str]| {
        let mut site = single();
        site.files.retain(|name, _| name != remove && name != "pytorch_model.bin");
        site.files.extend(add.iter().map(|name| ((*name).to_string(), b"{}".to_vec())));
        let (hub, cache) = (Hub::start(site), tempfile::tempdir().unwrap());
        get("org/tiny", &options(&hub, &cache))
    };
    assert_error(
        changed("model.safetensors", &["pytorch_model-00001.bin"]),
        &["pickle", "pytorch_model-00001.bin"],
    );
    assert_error(changed("model.safetensors", &["adapter_config.json"]), &["adapter, not a base model"]);
    assert_error(changed("model.safetensors", &[]), &["lacks model.safetensors"]);
    assert_error(changed("tokenizer.json", &[]), &["lacks tokenizer.json"]);
    let mut evil = sharded();
    let map = json!({"weight_map": {"a": "../../../outside.safetensors"}});
    evil.files.insert("model.safetensors.index.json".into(), map.to_string().into_bytes());
    let (hub, cache) = (Hub::start(evil), tempfile::tempdir().unwrap());
    assert_error(get("org/tiny", &options(&hub, &cache)), &["outside.safetensors", "plain name"]);
}

#[test]
fn offline_misses_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let offline =
        HubOptions { offline: true, cache_dir: Some(cache.path().to_path_buf()), ..HubOptions::default() };
    assert_error(
        get("org/tiny", &offline),
        &["`main`", "not in the cache", "offline mode", "local directory"],
    );
    let snapshot = cache.path().join("models--org--tiny/snapshots").join(SHA);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(cache.path().join("models--org--tiny/refs")).unwrap();
    std::fs::write(cache.path().join("models--org--tiny/refs/main"), SHA).unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    assert_error(get("org/tiny", &offline), &["lacks tokenizer.json, model.safetensors"]);
    std::fs::write(cache.path().join("models--org--tiny/refs/main"), "../../../..").unwrap();
    assert_error(get("org/tiny", &offline), &["not in the cache"]);
}

#[test]
fn names_that_are_neither_directory_nor_repository() {
    let dir = tempfile::tempdir().unwrap();
    let options = HubOptions { offline: true, ..HubOptions::default() };
    assert_eq!(get(dir.path().to_str().unwrap(), &options).unwrap(), dir.path());
    for base in ["./no/such", "tiny", "", "../x", "a/b/c", "org/na me"] {
        assert_error(get(base, &options), &["neither", "organisation/name"]);
    }
    let file = dir.path().join("model.safetensors");
    std::fs::write(&file, "x").unwrap();
    assert_error(get(file.to_str().unwrap(), &options), &["is a file"]);
    for revision in ["../main", "", "a b", ".hidden", "a//b"] {
        let options = HubOptions { revision: Some(revision.into()), ..options.clone() };
        assert_error(get("org/tiny", &options), &["not a valid revision"]);
    }
}
