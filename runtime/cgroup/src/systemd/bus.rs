//! A connection to systemd: calls, their answers, and the ends of jobs.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::{CALL, ERROR, HEAD, HEARD, Message, REPLY, SIGNAL, Value};
use crate::CgroupError;

/// How long systemd may take for one answer or job.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// After this long without a word, a job may have gone unseen.
const SILENCE: Duration = Duration::from_millis(500);
/// How a job ends that ends well.
pub(crate) const DONE: &str = "done";
/// The longest line of the handshake.
const LINE_MAX: usize = 16 << 10;

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const RULE: &str = "type='signal',sender='org.freedesktop.systemd1',\
                    interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// What systemd did not do.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// For example `org.freedesktop.systemd1.UnitExists`.
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn is(&self, short: &str) -> bool {
        self.name
            .strip_prefix(NAME)
            .and_then(|n| n.strip_prefix('.'))
            == Some(short)
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// For one answer.
    patience: Duration,
    /// Heard while waiting for something else.
    signals: VecDeque<Message>,
}

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// systemd's own socket.
    Manager(String),
    /// A bus that systemd is on, as D-Bus writes its address.
    Bus(String),
}

fn socket(place: &Place) -> io::Result<UnixStream> {
    let address = match place {
        Place::Manager(path) => return UnixStream::connect(path),
        Place::Bus(address) => address,
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for one in address.split(';') {
        let pairs = one.strip_prefix("unix:").unwrap_or_default().split(',');
        let pair = pairs.filter_map(|pair| pair.split_once('=')).next();
        let connected = match pair {
            Some(("path", path)) => UnixStream::connect(path),
            Some(("abstract", name)) => SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixStream::connect_addr(&address)),
            _ => continue,
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Bus {
    /// Connects to the first place where somebody listens.
    pub(crate) fn connect(places: &[Place], uid: u32) -> Result<Self, CgroupError> {
        let mut last = None;
        for place in places {
            match socket(place) {
                Ok(stream) => return Self::on(stream, uid, matches!(place, Place::Bus(_))),
                Err(error) => last = Some(error),
            }
        }
        Err(CgroupError::NoSystemd(
            last.unwrap_or_else(|| io::ErrorKind::NotFound.into()),
        ))
    }

    pub(crate) fn on(stream: UnixStream, uid: u32, shared: bool) -> Result<Self, CgroupError> {
        let mut bus = Self {
            stream,
            serial: 0,
            patience: DEADLINE,
            signals: VecDeque::new(),
        };
        bus.authenticate(uid).map_err(lost("log in"))?;
        if shared {
            bus.hello()?;
        }
        Ok(bus)
    }

    fn authenticate(&mut self, uid: u32) -> io::Result<()> {
        self.stream.set_write_timeout(Some(DEADLINE))?;
        self.stream.set_read_timeout(Some(DEADLINE))?;
        let id: String = uid
            .to_string()
            .bytes()
            .map(|b| format!("{b:02x}"))
            .collect();
        let line = format!("\0AUTH EXTERNAL {id}\r\n");
        self.stream.write_all(line.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") && answer.len() < LINE_MAX {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        if !answer.starts_with(b"OK ") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.stream.write_all(b"BEGIN\r\n")
    }

    /// On a bus one has to be somebody, and to say what one wants to hear.
    fn hello(&mut self) -> Result<(), CgroupError> {
        let to = |member: &str, body| Message {
            path: "/org/freedesktop/DBus".to_owned(),
            interface: BUS.to_owned(),
            destination: BUS.to_owned(),
            member: member.to_owned(),
            body,
            ..Message::default()
        };
        for (member, body) in [("Hello", Vec::new()), ("AddMatch", vec![Value::text(RULE)])] {
            self.exchange(to(member, body), Instant::now() + DEADLINE)?
                .map_err(refused(member))?;
        }
        self.call("Subscribe", Vec::new())?
            .map_err(refused("Subscribe"))?;
        Ok(())
    }

    /// Calls systemd's manager.
    pub(crate) fn call(
        &mut self,
        member: &str,
        body: Vec<Value>,
    ) -> Result<Result<Vec<Value>, Refusal>, CgroupError> {
        let message = Message {
            path: PATH.to_owned(),
            interface: MANAGER.to_owned(),
            destination: NAME.to_owned(),
            member: member.to_owned(),
            body,
            ..Message::default()
        };
        self.exchange(message, Instant::now() + self.patience)
    }

    /// Waits less long for answers; a job may take as long as ever.
    pub(crate) fn expect_answers_within(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn exchange(
        &mut self,
        mut message: Message,
        deadline: Instant,
    ) -> Result<Result<Vec<Value>, Refusal>, CgroupError> {
        self.serial += 1;
        message.kind = CALL;
        message.serial = self.serial;
        self.stream
            .write_all(&message.bytes())
            .map_err(lost("call"))?;
        loop {
            let answer = self.read(deadline).map_err(lost("hear from"))?;
            match answer.kind {
                REPLY if answer.reply_to == message.serial => return Ok(Ok(answer.body)),
                ERROR if answer.reply_to == message.serial => {
                    let text = match answer.body.into_iter().next() {
                        Some(Value::Text(text)) => text,
                        _ => String::new(),
                    };
                    return Ok(Err(Refusal {
                        name: answer.error,
                        text,
                    }));
                }
                SIGNAL => self.signals.push_back(answer),
                _ => {}
            }
        }
    }

    /// Waits until a job has gone; returns how it ended. Nobody is told of one whose unit was forgotten
    /// before it ended: after a silence the manager is asked whether it still knows the job.
    pub(crate) fn job(&mut self, job: &str) -> Result<String, CgroupError> {
        let deadline = Instant::now() + DEADLINE;
        let mut asked = false;
        loop {
            let heard = match self.signals.pop_front() {
                Some(signal) => Some(signal),
                None if asked => return Ok(DONE.to_owned()),
                None => {
                    self.wait(SILENCE.min(deadline.saturating_duration_since(Instant::now())))?
                }
            };
            let Some(signal) = heard else {
                if Instant::now() >= deadline {
                    return Err(lost("hear from")(io::ErrorKind::TimedOut.into()));
                }
                // What was said before the answer to this still counts.
                asked = !self.knows(job)?;
                continue;
            };
            if signal.kind != SIGNAL || signal.member != HEARD {
                continue;
            }
            let [_, Value::Path(path), _, Value::Text(result)] = &signal.body[..] else {
                continue;
            };
            if path == job {
                return Ok(result.clone());
            }
        }
    }

    /// Whether a job has not gone yet.
    fn knows(&mut self, job: &str) -> Result<bool, CgroupError> {
        let number = job.rsplit('/').next().and_then(|last| last.parse().ok());
        let Some(number) = number else {
            return Ok(true);
        };
        match self.call("GetJob", vec![Value::U32(number)])? {
            Ok(_) => Ok(true),
            Err(refusal) => Ok(!refusal.is("NoSuchJob")),
        }
    }

    /// The next message; `None` when none begins in time.
    fn wait(&mut self, limit: Duration) -> Result<Option<Message>, CgroupError> {
        let timeout = Timespec::try_from(limit).unwrap_or_default();
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(lost("hear from")(errno.into())),
        }
        let message = self.read(Instant::now() + DEADLINE);
        message.map(Some).map_err(lost("hear from"))
    }

    fn read(&mut self, deadline: Instant) -> io::Result<Message> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut bytes = vec![0; HEAD];
        self.stream.read_exact(&mut bytes)?;
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let length = Message::length(&bytes).ok_or_else(malformed)?;
        bytes.resize(length, 0);
        let rest = bytes.get_mut(HEAD..).ok_or_else(malformed)?;
        self.stream.read_exact(rest)?;
        Message::parse(&bytes).ok_or_else(malformed)
    }
}

/// Whether nobody answered in time.
pub(crate) fn is_silence(error: &CgroupError) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error, CgroupError::Bus { source, .. } if matches!(source.kind(), TimedOut | WouldBlock))
}

fn lost(action: &'static str) -> impl Fn(io::Error) -> CgroupError {
    move |source| CgroupError::Bus { action, source }
}

/// Words a refusal as an error.
pub(crate) fn refused(call: &str) -> impl Fn(Refusal) -> CgroupError {
    move |refusal| CgroupError::Systemd {
        call: call.to_owned(),
        answer: match refusal.text.is_empty() {
            true => refusal.name,
            false => refusal.text,
        },
    }
}
