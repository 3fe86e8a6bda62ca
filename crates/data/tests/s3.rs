//! Objects in a real S3-compatible server: moto, of the Python interpreter that `TUNESMITH_S3_PYTHON` names
//! (`tests/interop/s3-requirements.txt` says which). Without it the test says so and passes.
#![allow(clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use sha2::Digest as _;
use tunesmith_data::{Network, Raw, Records, SourceOptions};

/// A line past the test harness, which hides what passing tests print.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

struct Moto {
    process: Child,
    address: String,
}

impl Moto {
    fn start(python: &OsString, more: &[&OsStr]) -> Self {
        let mut process = Command::new(python)
            .args(["-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let (mut seen, mut address) = (String::new(), None);
        for line in log.by_ref() {
            let line = line.unwrap();
            address = line.split_once("://").map(|(_, rest)| rest.trim().to_owned());
            seen = seen + &line + "\n";
            if address.is_some() {
                break;
            }
        }
        // The pipe must not fill up.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, address: address.unwrap_or_else(|| panic!("moto did not start:\n{seen}")) }
    }

    fn put(&self, path: &str, body: &[u8]) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "PUT /{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\nAuthorization: \
             AWS4-HMAC-SHA256 Credential=test/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200"), "PUT {path}: {answer}");
    }

    fn settings(&self, keys: &[(&str, &str)]) -> Vec<(String, String)> {
        let endpoint = ("AWS_ENDPOINT_URL", format!("http://{}", self.address));
        let keys = keys.iter().map(|(k, v)| (*k, (*v).to_owned()));
        std::iter::once(endpoint).chain(keys).map(|(k, v)| (k.to_owned(), v)).collect()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Name, records and digest of every file, the number of rows, and the notes.
type Found = (Vec<(String, u64, String)>, usize, Vec<String>);

fn load(uri: &str, aws: Vec<(String, String)>) -> Result<Found, String> {
    let network = Network { aws, retries: 1, ..Network::default() };
    let options = SourceOptions { network, ..SourceOptions::default() };
    let mut records = Records::open(&[uri.to_owned()], &options).map_err(|e| e.to_string())?;
    let mut rows = 0;
    loop {
        let batch = records.next_batch(1000, 1 << 20).map_err(|e| e.to_string())?;
        if batch.is_empty() {
            break;
        }
        for record in batch {
            record.raw.and_then(Raw::into_object).map_err(|e| e.to_string())?;
            rows += 1;
        }
    }
    let files = records.files().into_iter().map(|f| (f.name, f.records, f.sha256)).collect();
    Ok((files, rows, records.notes()))
}

fn parquet() -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    let schema =
        parquet::schema::parser::parse_message_type("message m { REQUIRED BYTE_ARRAY prompt (UTF8); }");
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema.unwrap().into(), Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = (0..1000).map(|i| format!("prompt {i}").as_str().into()).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    out
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];

#[test]
fn objects_load_from_a_real_server() {
    let Some(python) = std::env::var_os("TUNESMITH_S3_PYTHON") else {
        return say("SKIPPED S3 test: TUNESMITH_S3_PYTHON does not name a Python with moto");
    };
    let moto = Moto::start(&python, &[]);
    let lines = (0..5000).map(|i| format!("{{\"id\": {i}}}")).collect::<Vec<_>>().join("\n");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(lines.as_bytes()).unwrap();
    let gz = encoder.finish().unwrap();
    moto.put("tickets", b"");
    moto.put("tickets/top.jsonl", b"{}\n");
    for name in ["b.jsonl", "a.jsonl", "deep/c.jsonl", "with space+plus.jsonl"] {
        moto.put(&format!("tickets/p/{}", name.replace(' ', "%20").replace('+', "%2B")), lines.as_bytes());
    }
    moto.put("tickets/p/d.csv.gz", &{
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"a,b\n1,2\n").unwrap();
        encoder.finish().unwrap()
    });
    moto.put("tickets/p/e.parquet", &parquet());
    moto.put("tickets/p/README", b"words");
    moto.put("tickets/z/all.jsonl.gz", &gz);

    let aws = || moto.settings(&KEYS);
    let names = |uri: &str| -> Vec<String> {
        load(uri, aws())
            .unwrap()
            .0
            .into_iter()
            .map(|(name, _, _)| name.replace("s3://tickets/", ""))
            .collect()
    };
    let (files, rows, _) = load("s3://tickets/z/all.jsonl.gz", aws()).unwrap();
    assert_eq!((files[0].0.as_str(), rows), ("s3://tickets/z/all.jsonl.gz", 5000));
    let sum = sha2::Sha256::digest(&gz).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    assert_eq!(files[0].2, sum);
    assert_eq!(load("s3://tickets/p/e.parquet", aws()).unwrap().1, 1000);
    assert_eq!(names("s3://tickets/p/?.jsonl"), ["p/a.jsonl", "p/b.jsonl"]);
    assert_eq!(names("s3://tickets/p/*.jsonl"), ["p/a.jsonl", "p/b.jsonl", "p/with space+plus.jsonl"]);
    assert_eq!(names("s3://tickets/p/with space+plus.jsonl"), ["p/with space+plus.jsonl"]);
    assert_eq!(names("s3://tickets"), ["top.jsonl"]);
    let (files, rows, notes) = load("s3://tickets/p/", aws()).unwrap();
    assert_eq!((files.len(), rows), (5, 3 * 5000 + 1 + 1000));
    assert_eq!(notes, ["`s3://tickets/p/`: left out 1 other entry: README"]);

    let refusal = |uri: &str| load(uri, aws()).unwrap_err();
    assert_eq!(
        refusal("s3://tickets/p/none.jsonl"),
        "`s3://tickets/p/none.jsonl`: there is nothing at this address (404, NoSuchKey); check it"
    );
    for uri in ["s3://no-such-bucket/a.jsonl", "s3://no-such-bucket/*.jsonl"] {
        let words = "there is no such bucket (404, NoSuchBucket); check its name and AWS_ENDPOINT_URL";
        assert_eq!(refusal(uri), format!("`{uri}`: {words}"));
    }
    assert!(
        refusal("s3://tickets/p/*.tsv")
            .starts_with("`s3://tickets/p/*.tsv` names no data (no object matches)")
    );
    assert!(refusal("s3://tickets/*/a.jsonl").contains("only the last part of a key can be a pattern"));
    // The objects are private: without a signature they stay so.
    let unsigned =
        load("s3://tickets/p/a.jsonl", moto.settings(&[("AWS_SKIP_SIGNATURE", "true")])).unwrap_err();
    assert!(
        unsigned.starts_with("`s3://tickets/p/a.jsonl`: the server refuses access (403); check AWS_"),
        "{unsigned}"
    );

    // The same through the environment of a process, as users set it.
    child("s3://tickets/p/b.jsonl", "5000 rows", aws());
    say(&format!("S3 test ran against moto of {}", Path::new(&python).display()));
}

#[test]
fn tls_trusts_the_authorities_of_the_system_and_no_other() {
    let Some(python) = std::env::var_os("TUNESMITH_S3_PYTHON") else { return };
    let dir = tempfile::tempdir().unwrap();
    let [authority, certificate, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.path().join(name));
    let status =
        Command::new(&python).args(["-c", CERTIFICATES]).args([&authority, &certificate, &key]).status();
    assert!(status.unwrap().success());
    let files = ["-c".as_ref(), certificate.as_os_str(), "-k".as_ref(), key.as_os_str()];
    let moto = Moto::start(&python, &files);
    let settings = |trusted: &Path| {
        let trusted = ("SSL_CERT_FILE".to_owned(), trusted.display().to_string());
        let endpoint = ("AWS_ENDPOINT_URL".to_owned(), format!("https://{}", moto.address));
        [trusted, endpoint]
            .into_iter()
            .chain(KEYS.map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect::<Vec<_>>()
    };
    // What the server answers shows that the connection stands: it has no bucket yet.
    child("s3://nowhere/a.jsonl", "there is no such bucket (404, NoSuchBucket)", settings(&authority));
    child(
        "s3://nowhere/a.jsonl",
        "the server's certificate is not trusted (",
        settings(&other_authority(&python, dir.path())),
    );
}

fn other_authority(python: &OsString, dir: &Path) -> PathBuf {
    let [authority, certificate, key] = ["ca2.pem", "cert2.pem", "key2.pem"].map(|name| dir.join(name));
    let status =
        Command::new(python).args(["-c", CERTIFICATES]).args([&authority, &certificate, &key]).status();
    assert!(status.unwrap().success());
    authority
}

/// Writes an authority, and a certificate for this machine that it signed.
const CERTIFICATES: &str = r#"
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

def name(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

def sign(subject, key, issuer, issuer_key, *extensions):
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number(), now - day, now + day)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
for path, content in zip(sys.argv[1:], [
    sign("authority", authority, "authority", authority, x509.BasicConstraints(True, None)),
    sign("server", server, "authority", authority, here, x509.BasicConstraints(False, None)),
    server.private_bytes(*plain),
]):
    open(path, "wb").write(content)
"#;

const CHILD: &str = "TUNESMITH_TEST_S3_CHILD";

/// Loads `uri` in another process with these settings in its environment, and looks for `words` in what it ends in.
fn child(uri: &str, words: &str, settings: Vec<(String, String)>) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_of_the_other_tests", "--nocapture"])
        .env(CHILD, uri)
        .envs(settings)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(words), "{said}");
}

#[test]
fn child_of_the_other_tests() {
    let Ok(uri) = std::env::var(CHILD) else { return };
    match load(&uri, Vec::new()) {
        Ok((_, rows, _)) => println!("{rows} rows"),
        Err(error) => println!("{error}"),
    }
}
