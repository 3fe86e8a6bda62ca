//! Web addresses and objects, against servers that misbehave.

use std::time::Duration;

use parquet::basic::Compression;
use tunesmith_data::{Limits, Network, SourceOptions};

use crate::kit::{Outcome, gzip, parquet_text, read_all};
use crate::server::{Answer, Server};

/// Bounds that keep the tests short.
fn quick() -> Network {
    Network {
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(30),
        retries: 1,
        backoff: Duration::from_millis(1),
        ..Network::default()
    }
}

fn read(uri: String, network: Network) -> Outcome {
    read_all(&[uri], &SourceOptions { network, ..SourceOptions::default() })
}

/// What fetching `/data.jsonl` from a server with these answers, in order, ends in.
fn fault(answers: Vec<Answer>) -> String {
    fault_with(answers, quick())
}

fn fault_with(answers: Vec<Answer>, network: Network) -> String {
    let server = Server::start(answers);
    let outcome = read(server.url("data.jsonl"), network);
    let fault = outcome.fault.unwrap();
    fault.replace(&server.url("data.jsonl"), "URL")
}

const ROWS: &[u8] = b"{\"id\": 1}\n{\"id\": 2}\n";

#[test]
fn files_are_read_from_the_web() {
    let rows: Vec<Vec<String>> = (0..300).map(|i| vec![format!("p{i}"), format!("c{i}")]).collect();
    let parquet = parquet_text(&["prompt", "completion"], &[rows], Compression::SNAPPY);
    for (name, bytes, count) in [
        ("data.jsonl", ROWS.to_vec(), 2),
        ("data.jsonl?X-Signature=secret", ROWS.to_vec(), 2),
        ("a%20b/data.csv.gz", gzip(b"a,b\n1,2\n"), 1),
        ("data.parquet", parquet, 300),
    ] {
        let server = Server::start(vec![Answer::ok(&bytes)]);
        let outcome = read(server.url(name), quick());
        let facts = outcome.files[0].clone();
        assert_eq!(outcome.objects().len(), count, "{name}");
        assert_eq!(facts.bytes, bytes.len() as u64);
        assert_eq!(facts.sha256, crate::kit::sha256(&bytes));
        assert!(!facts.name.contains("secret"));
        // The address is asked for as it was given.
        assert_eq!(server.requests(), [format!("GET /{name}")]);
    }
}

#[test]
fn refusals_are_sentences() {
    assert_eq!(fault(vec![Answer::status(404)]), "`URL`: there is nothing at this address (404); check it");
    assert_eq!(
        fault(vec![Answer::status(403)]),
        "`URL`: the server refuses access (403); log in, download the file and give its path"
    );
    assert_eq!(
        fault(vec![Answer::status(401)]),
        "`URL`: the server refuses access (401); log in, download the file and give its path"
    );
    assert_eq!(
        fault(vec![Answer::status(503), Answer::status(503)]),
        "`URL`: the server fails with status 503 after one try and 1 retry; try again later"
    );
    assert_eq!(
        fault(vec![Answer::status(418)]),
        "`URL`: the server answers with status 418; check the address"
    );
    assert_eq!(
        fault(vec![Answer::Raw(b"HTTP/1.1 200 OK\r\n\r\n{}\n".to_vec())]),
        "`URL`: the server does not say how long the file is; download it and give its path"
    );
}

#[test]
fn a_file_that_comes_in_chunks_needs_no_length() {
    let head = "HTTP/1.1 200 OK\r\netag: \"x\"\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let (first, second) = str::from_utf8(ROWS).unwrap().split_at(13);
    let whole = [head, &chunk(first), &chunk(second), "0\r\n\r\n"].concat();
    let server = Server::start(vec![Answer::Raw(whole.clone().into_bytes())]);
    let outcome = read(server.url("data.jsonl"), quick());
    assert_eq!(outcome.files[0].sha256, crate::kit::sha256(ROWS));
    assert_eq!(outcome.objects().len(), 2);
    // What is cut off is no end, between chunks as little as inside of one.
    for (cut, read) in [(5, 20), (9, 18)] {
        let broken = fault(vec![Answer::Raw(whole.as_bytes()[..whole.len() - cut].to_vec())]);
        let words = format!("`URL`: the connection broke behind {read} bytes (");
        assert!(broken.starts_with(&words), "{broken}");
    }
    // The bound of a file holds without a length.
    let limits = Limits { output_bytes: 15, ..Limits::default() };
    let server = Server::start(vec![Answer::Raw(whole.into_bytes())]);
    let options = SourceOptions { limits, network: quick(), ..SourceOptions::default() };
    let outcome = read_all(&[server.url("data.jsonl")], &options);
    assert!(outcome.fault.unwrap().ends_with("it has more than 15 bytes; split it or raise the bound"));
}

#[test]
fn a_failure_that_passes_is_tried_again() {
    let server = Server::start(vec![Answer::status(503), Answer::ok(ROWS)]);
    assert_eq!(read(server.url("data.jsonl"), quick()).objects().len(), 2);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_transfer_that_breaks_names_how_far_it_came() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
    let part = [&head[..], ROWS].concat();
    let short = fault(vec![Answer::Raw(part.clone())]);
    assert!(short.starts_with("`URL`: the connection broke behind 20 of 1000 bytes ("), "{short}");
    assert!(short.ends_with("); try again"), "{short}");
    // A reset may overtake the bytes before it.
    let reset = fault(vec![Answer::Reset(part.clone()), Answer::Reset(part.clone())]);
    let known = [
        "the connection broke behind ",
        "the request failed (",
        "cannot connect after one try and 1 retry (",
    ];
    assert!(known.iter().any(|words| reset.starts_with(&format!("`URL`: {words}"))), "{reset}");
    let impatient = || Network { read_timeout: Duration::from_millis(500), ..quick() };
    assert_eq!(
        fault_with(vec![Answer::Silence(part)], impatient()),
        "`URL`: the server fell silent for 500ms behind 20 of 1000 bytes; try again, or download it and give its path"
    );
    assert_eq!(
        fault_with(vec![Answer::Silence(Vec::new()), Answer::Silence(Vec::new())], impatient()),
        "`URL`: the server was silent for 500ms in one try and 1 retry; check the address and the network"
    );
    assert!(fault(vec![Answer::Raw(b"no http at all\r\n\r\n".to_vec())]).starts_with("`URL`: "));
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke_when_the_server_can() {
    let first = [&b"HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 20\r\n\r\n"[..], &ROWS[..12]].concat();
    let rest = [
        &b"HTTP/1.1 206 Partial Content\r\netag: \"x\"\r\ncontent-range: bytes 12-19/20\r\ncontent-length: 8\r\n\r\n"[..],
        &ROWS[12..],
    ]
    .concat();
    let server = Server::start(vec![Answer::Raw(first), Answer::Raw(rest)]);
    assert_eq!(read(server.url("data.jsonl"), quick()).objects().len(), 2);
}

#[test]
fn nobody_there() {
    let server = Server::start(Vec::new());
    let url = server.url("data.jsonl");
    drop(server);
    let fault = read(url.clone(), quick()).fault.unwrap();
    assert!(fault.starts_with(&format!("`{url}`: cannot connect after one try and 1 retry (")), "{fault}");
    assert!(fault.ends_with("); check the address and the network"), "{fault}");
}

#[test]
fn redirects_stay_where_they_may_go() {
    let target = Server::start(vec![Answer::ok(ROWS)]);
    let server = Server::start(vec![Answer::redirect(&target.url("moved.jsonl"))]);
    assert_eq!(read(server.url("data.jsonl"), quick()).objects().len(), 2);
    let fault = fault(vec![Answer::redirect("http://192.0.2.1/data.jsonl"), Answer::status(404)]);
    assert!(fault.contains("it redirects to an address without encryption"), "{fault}");
    let server = Server::start(Vec::new());
    let round: Vec<Answer> = (0..20).map(|_| Answer::redirect(&server.url("data.jsonl"))).collect();
    server.add(round);
    let fault = read(server.url("data.jsonl"), quick()).fault.unwrap();
    assert!(fault.contains("too many redirects"), "{fault}");
}

#[test]
fn https_speaks_tls_and_checks_the_certificate() {
    // A server that answers the greeting with a fatal alert: only a client with a working TLS gets to read it.
    let server = Server::start(vec![Answer::Tls; 2]);
    let url = server.url("data.jsonl").replace("http://", "https://");
    let fault = read(url, quick()).fault.unwrap();
    assert!(
        fault.contains("cannot connect after one try and 1 retry (received fatal alert: HandshakeFailure)"),
        "{fault}"
    );
    assert_eq!(server.requests(), ["TLS", "TLS"]);
}

fn s3(server: &Server, more: &[(&str, &str)]) -> Network {
    let mut aws = vec![("AWS_ENDPOINT_URL".to_owned(), server.url("").trim_end_matches('/').to_owned())];
    aws.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    Network { aws, ..quick() }
}

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")];

#[test]
fn objects_are_read_from_s3() {
    let server = Server::start(vec![Answer::ok(ROWS)]);
    let outcome = read("s3://bucket/some/data.jsonl".to_owned(), s3(&server, &KEYS));
    assert_eq!(outcome.files[0].name, "s3://bucket/some/data.jsonl");
    assert_eq!(outcome.objects().len(), 2);
    assert_eq!(server.requests(), ["GET /bucket/some/data.jsonl"]);
}

#[test]
fn refusals_of_s3_are_sentences_without_credentials() {
    let fault = |status: u32, code: &str| {
        let body =
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>hunter2</Message></Error>");
        let server = Server::start(vec![Answer::with_body(status, &body); 2]);
        let fault = read("s3://bucket/data.jsonl".to_owned(), s3(&server, &KEYS)).fault.unwrap();
        assert!(!fault.contains("hunter2") && !fault.contains("AKIA"), "{fault}");
        fault
    };
    assert_eq!(
        fault(403, "SignatureDoesNotMatch"),
        "`s3://bucket/data.jsonl`: the server refuses access (403, SignatureDoesNotMatch); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and the bucket's policy"
    );
    assert_eq!(
        fault(404, "NoSuchKey"),
        "`s3://bucket/data.jsonl`: there is nothing at this address (404, NoSuchKey); check it"
    );
    assert_eq!(
        fault(404, "NoSuchBucket"),
        "`s3://bucket/data.jsonl`: there is no such bucket (404, NoSuchBucket); check its name and AWS_ENDPOINT_URL"
    );
    assert_eq!(
        fault(503, "SlowDown"),
        "`s3://bucket/data.jsonl`: the server fails with status 503 after one try and 1 retry; try again later"
    );
    assert_eq!(
        fault(301, "PermanentRedirect"),
        "`s3://bucket/data.jsonl`: the bucket is in another region; set AWS_REGION"
    );
}

#[test]
fn settings_of_s3_that_cannot_work_are_named_before_anything_is_sent() {
    let server = Server::start(Vec::new());
    let fault = |network: Network| read("s3://bucket/data.jsonl".to_owned(), network).fault.unwrap();
    let none = s3(&server, &[("AWS_ACCESS_KEY_ID", "")]);
    assert!(
        fault(none).contains("there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    );
    let wrong = s3(&server, &[("AWS_ENDPONT", "x")]);
    assert!(fault(wrong).contains("`AWS_ENDPONT` is not a setting of S3; correct it"));
    let plain = s3(&server, &[("AWS_ENDPOINT_URL", "http://192.0.2.1:9000"), KEYS[0], KEYS[1]]);
    assert!(fault(plain).contains(
        "the endpoint is plain http, which could be changed on the way; use https or set AWS_ALLOW_HTTP=true"
    ));
    assert!(server.requests().is_empty());
    assert!(!format!("{:?}", s3(&server, &KEYS)).contains("hunter2"));
}
