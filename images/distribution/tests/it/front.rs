//! A server in front of the registry that misbehaves as a test wishes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// A request as the front saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What the front does with a request.
pub(crate) enum Act {
    /// Pass it on, and the answer back.
    Pass,
    /// Pass at most so many bytes of the body back, then close.
    Cut(usize),
    /// Pass so many bytes of the body back, then say nothing more.
    Stall(usize),
    /// Change the answer: header lines and body.
    Change(fn(&mut Vec<String>, &mut Vec<u8>)),
    /// Pass it on without the range.
    IgnoreRange(usize),
    /// Say nothing.
    Hang,
    /// Answer with this status, these headers, this body.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
}

type Handler = dyn Fn(usize, &Seen) -> Act + Send + Sync;

/// State that the connections share.
struct Shared {
    upstream: u16,
    handler: Box<Handler>,
    seen: Mutex<Vec<Seen>>,
    blob_bytes: AtomicU64,
    ended: AtomicBool,
    /// Wakes those who say nothing when the front ends.
    hanging: (Mutex<bool>, Condvar),
}

/// The running front; ends with the value.
pub(crate) struct Front {
    shared: Arc<Shared>,
    pub(crate) port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// Starts a front for the registry at `upstream`. The handler is given how many requests for
    /// the same path came before.
    pub(crate) fn start(
        upstream: u16,
        handler: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream,
            handler: Box::new(handler),
            seen: Mutex::default(),
            blob_bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            hanging: (Mutex::new(true), Condvar::new()),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if own.ended.load(Ordering::SeqCst) {
                    break;
                }
                let (own, stream) = (Arc::clone(&own), stream.unwrap());
                // A client that goes away is no failure of the front.
                connections.push(std::thread::spawn(move || drop(own.serve(&stream))));
            }
            connections.into_iter().for_each(|c| c.join().unwrap());
        });
        Self {
            shared,
            port,
            thread: Some(thread),
        }
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Bytes of blobs that were handed out.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.shared.blob_bytes.load(Ordering::SeqCst)
    }

    /// Requests for blobs.
    pub(crate) fn blobs(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(Seen::is_blob).collect()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        *self.shared.hanging.0.lock().unwrap() = false;
        self.shared.hanging.1.notify_all();
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

impl Shared {
    fn hang(&self) {
        let mut hanging = self.hanging.0.lock().unwrap();
        while *hanging {
            hanging = self.hanging.1.wait(hanging).unwrap();
        }
    }

    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let Some(request) = read_request(stream)? else {
            return Ok(());
        };
        let before = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(request.clone());
            seen.iter().filter(|s| s.path == request.path).count() - 1
        };
        let act = (self.handler)(before, &request);
        let keep_range = !matches!(act, Act::IgnoreRange(_));
        let (mut head, mut body) = match act {
            Act::Hang => {
                self.hang();
                return Ok(());
            }
            Act::Answer(status, ref headers, ref body) => {
                let mut head = vec![format!("HTTP/1.1 {status} Fault")];
                head.extend(headers.iter().map(|(key, value)| format!("{key}: {value}")));
                head.push(format!("Content-Length: {}", body.len()));
                (head, body.clone())
            }
            _ => self.ask_upstream(&request, keep_range)?,
        };
        if let Act::Change(change) = act {
            change(&mut head, &mut body);
        }
        head.retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        head.push("Connection: close".to_owned());
        stream.write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes())?;
        let length = match act {
            Act::Cut(length) | Act::Stall(length) | Act::IgnoreRange(length) => {
                length.min(body.len())
            }
            _ => body.len(),
        };
        for chunk in body[..length].chunks(64 << 10) {
            stream.write_all(chunk)?;
            if request.is_blob() {
                self.blob_bytes
                    .fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
        }
        if matches!(act, Act::Stall(_)) {
            self.hang();
        }
        Ok(())
    }

    fn ask_upstream(
        &self,
        request: &Seen,
        keep_range: bool,
    ) -> std::io::Result<(Vec<String>, Vec<u8>)> {
        let mut upstream = TcpStream::connect(("127.0.0.1", self.upstream))?;
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
        for (key, value) in &request.headers {
            let dropped = key == "connection" || (key == "range" && !keep_range);
            if !dropped {
                head.push_str(&format!("{key}: {value}\r\n"));
            }
        }
        head.push_str("connection: close\r\n\r\n");
        upstream.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        let end = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("an answer has a head");
        let lines = String::from_utf8_lossy(&answer[..end])
            .lines()
            .map(str::to_owned)
            .collect();
        Ok((lines, answer.split_off(end + 4)))
    }
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Seen>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut parts = line.split_whitespace();
    let method = parts.next().unwrap_or("").to_owned();
    let path = parts.next().unwrap_or("").to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some(Seen {
                method,
                path,
                headers,
            }));
        }
        if let Some((key, value)) = line.trim().split_once(':') {
            headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}
