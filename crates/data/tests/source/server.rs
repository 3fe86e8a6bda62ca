//! A server on this machine that answers as it is told.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What a connection is answered with, whatever it asks for. Every connection gets one answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then a reset.
    Reset(Vec<u8>),
    /// These bytes, then nothing until the client gives up.
    Silence(Vec<u8>),
    /// A fatal TLS alert.
    Tls,
}

impl Answer {
    pub fn ok(body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        Self::Raw([head.as_bytes(), body].concat())
    }

    pub fn status(status: u32) -> Self {
        Self::with_body(status, "")
    }

    pub fn with_body(status: u32, body: &str) -> Self {
        Self::Raw(
            format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        )
    }

    pub fn redirect(to: &str) -> Self {
        Self::Raw(
            format!("HTTP/1.1 302 Found\r\nconnection: close\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
                .into_bytes(),
        )
    }
}

#[derive(Default)]
struct Shared {
    answers: Mutex<Vec<Answer>>,
    requests: Mutex<Vec<String>>,
    ended: AtomicBool,
}

pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming() {
                    if shared.ended.load(Ordering::SeqCst) {
                        return;
                    }
                    // A client that went away is not the server's fault.
                    let _ = serve(stream.unwrap(), &shared);
                }
            }
        });
        let server = Self { address, shared, thread: Some(thread) };
        server.add(answers);
        server
    }

    /// Further answers, behind those that are left.
    pub fn add(&self, answers: Vec<Answer>) {
        self.shared.answers.lock().unwrap().extend(answers);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Method and path of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread up to see it.
        drop(TcpStream::connect(self.address));
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let answer = {
        let mut answers = shared.answers.lock().unwrap();
        if answers.is_empty() { Answer::status(500) } else { answers.remove(0) }
    };
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let tls = matches!(answer, Answer::Tls);
    if let Answer::Reset(_) = answer {
        stream.read_exact(&mut buffer[..1])?;
        request = b"\r\n\r\n".to_vec();
    }
    let whole = |request: &[u8]| if tls { !request.is_empty() } else { request.ends_with(b"\r\n\r\n") };
    while !whole(&request) {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    let line = if tls && request[0] == 22 {
        "TLS".to_owned()
    } else {
        line.trim_end_matches(" HTTP/1.1").to_owned()
    };
    shared.requests.lock().unwrap().push(line);
    match answer {
        // Closing with bytes that were never read resets the connection.
        Answer::Raw(bytes) | Answer::Reset(bytes) => stream.write_all(&bytes),
        Answer::Silence(bytes) => {
            stream.write_all(&bytes)?;
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
        // Alert, TLS 1.2, two bytes: fatal, handshake failure.
        Answer::Tls => stream.write_all(&[21, 3, 3, 0, 2, 2, 40]),
    }
}
