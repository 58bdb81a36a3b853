//! The other end of `supervisor.sock`, for the engine: attach, wait, signal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, socket_with,
};

use crate::exit::ExitRecord;
use crate::files::open_dir;
use crate::frame::{self, FRAME_MAX, Frame, PAYLOAD_MAX, TYPE_STDIN};
use crate::start::{HANDOVER_FD, socket_address};
use crate::{SupervisorError, clock, lock};

/// How long [`wait`] waits for a container that is being started to get its socket.
const START_WAIT_NS: u64 = 30 * clock::NANOS;
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// The streams of a container that a client is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachMode {
    /// Feed standard input.
    pub stdin: bool,
    /// Receive standard output.
    pub stdout: bool,
    /// Receive standard error.
    pub stderr: bool,
}

impl AttachMode {
    pub(crate) fn bits(self) -> u8 {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        bit(self.stdin, frame::STDIN)
            | bit(self.stdout, frame::STDOUT)
            | bit(self.stderr, frame::STDERR)
    }
}

/// How a container ended, as its supervisor tells its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code, 128 + the signal for a signalled one.
    pub code: i32,
    /// The signal, 0 when it exited by itself.
    pub signal: i32,
    /// Whether the kernel killed one of its processes for want of memory.
    pub oom_killed: bool,
}

impl From<&ExitRecord> for ExitStatus {
    fn from(record: &ExitRecord) -> Self {
        Self {
            code: record.code,
            signal: record.signal,
            oom_killed: record.oom_killed,
        }
    }
}

/// What a supervisor sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientEvent<'a> {
    /// Bytes of standard output.
    Stdout(&'a [u8]),
    /// Bytes of standard error.
    Stderr(&'a [u8]),
    /// The next piece of standard input may be sent.
    StdinReady,
    /// A signal was delivered, or the terminal resized.
    Done,
    /// So many bytes of output are left out: they came faster than they were read.
    Skipped(u64),
    /// A request was refused.
    Refused(&'a str),
    /// The container has ended; nothing comes after this.
    Exit(ExitStatus),
    /// The supervisor is gone without a word: it was killed.
    Lost,
}

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    buffer: Vec<u8>,
    early: Option<ExitStatus>,
    skipped: u64,
    run_dir: PathBuf,
}

impl Client {
    pub(crate) fn from_socket(socket: OwnedFd, run_dir: PathBuf) -> Self {
        Self {
            socket,
            buffer: vec![0; FRAME_MAX],
            early: None,
            skipped: 0,
            run_dir,
        }
    }

    /// Takes the connection that a supervisor gave the program of a check. What it starts over it
    /// is killed when it goes. For the start of that program's `main`.
    ///
    /// # Errors
    /// When nothing was inherited.
    pub fn inherited(run_dir: &Path) -> Result<Self, SupervisorError> {
        let socket = amphora_sys::supervise::take_inherited(HANDOVER_FD)
            .map_err(|e| SupervisorError::Kernel("take what was inherited", e))?;
        Ok(Self::from_socket(socket, run_dir.to_owned()))
    }

    /// Connects to the supervisor of a run directory, attached to nothing.
    ///
    /// # Errors
    /// [`SupervisorError::NotRunning`] when none listens.
    pub fn connect(run_dir: &Path) -> Result<Self, SupervisorError> {
        let dir = open_dir(run_dir)?;
        let open = || {
            let socket = socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            connect(&socket, &socket_address(dir.as_fd())?)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self::from_socket(socket, run_dir.to_owned())),
            Err(Errno::NOENT | Errno::CONNREFUSED) => {
                Err(SupervisorError::NotRunning(run_dir.to_owned()))
            }
            Err(e) => Err(SupervisorError::file("connect to", run_dir, e)),
        }
    }

    /// Connects and attaches. Everything the container writes from here on arrives.
    ///
    /// # Errors
    /// Those of [`Client::connect`], and [`SupervisorError::Lost`].
    pub fn attach(run_dir: &Path, mode: AttachMode) -> Result<Self, SupervisorError> {
        let mut client = Self::connect(run_dir)?;
        client.send(&Frame::Attach(mode.bits()))?;
        let n = client.receive()?;
        match Frame::decode(&client.buffer[..n]) {
            Some(Frame::Attached) => {}
            Some(Frame::Exit {
                code,
                signal,
                oom_killed,
            }) => {
                client.early = Some(ExitStatus {
                    code,
                    signal,
                    oom_killed,
                });
            }
            Some(Frame::Error(text)) => return Err(SupervisorError::Refused(text.to_owned())),
            Some(_) => return Err(unexpected()),
            None if n == 0 => return Err(SupervisorError::Lost(run_dir.to_owned())),
            None => return Err(unexpected()),
        }
        Ok(client)
    }

    /// Returns the next thing the supervisor sends, waiting for it.
    ///
    /// # Errors
    /// When the socket fails or the message makes no sense.
    #[expect(
        clippy::should_implement_trait,
        reason = "what it returns borrows the client"
    )]
    pub fn next(&mut self) -> Result<ClientEvent<'_>, SupervisorError> {
        if let Some(status) = self.early {
            return Ok(ClientEvent::Exit(status));
        }
        let n = self.receive()?;
        if n == 0 {
            return Ok(ClientEvent::Lost);
        }
        match Frame::decode(&self.buffer[..n]) {
            Some(Frame::Stdout(bytes)) => Ok(ClientEvent::Stdout(bytes)),
            Some(Frame::Stderr(bytes)) => Ok(ClientEvent::Stderr(bytes)),
            Some(Frame::StdinReady) => Ok(ClientEvent::StdinReady),
            Some(Frame::Done) => Ok(ClientEvent::Done),
            Some(Frame::Skipped(n)) => Ok(ClientEvent::Skipped(n)),
            Some(Frame::Error(text)) => Ok(ClientEvent::Refused(text)),
            Some(Frame::Exit {
                code,
                signal,
                oom_killed,
            }) => Ok(ClientEvent::Exit(ExitStatus {
                code,
                signal,
                oom_killed,
            })),
            _ => Err(unexpected()),
        }
    }

    /// Waits for the end; output on the way is discarded.
    ///
    /// # Errors
    /// [`SupervisorError::Lost`] when the supervisor is killed meanwhile.
    pub fn wait(&mut self) -> Result<ExitStatus, SupervisorError> {
        self.send(&Frame::Wait)?;
        loop {
            match self.next()? {
                ClientEvent::Exit(status) => return Ok(status),
                ClientEvent::Lost => return Err(self.lost()),
                _ => {}
            }
        }
    }

    /// Has the supervisor of a container that is about to run again look whether it still should.
    ///
    /// # Errors
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn wake(&mut self) -> Result<(), SupervisorError> {
        self.send(&Frame::Wake)
    }

    /// Sends a signal to init (0: the container's stop signal) and waits until it is delivered.
    /// For a client that is attached to nothing.
    ///
    /// # Errors
    /// [`SupervisorError::Refused`] when init has ended or the number is no signal.
    pub fn signal(&mut self, number: i32) -> Result<(), SupervisorError> {
        self.post_signal(number)?;
        self.done()
    }

    /// Waits until what was asked for is done.
    pub(crate) fn done(&mut self) -> Result<(), SupervisorError> {
        loop {
            match self.next()? {
                ClientEvent::Done => return Ok(()),
                ClientEvent::Refused(text) => {
                    return Err(SupervisorError::Refused(text.to_owned()));
                }
                ClientEvent::Exit(_) => {
                    return Err(SupervisorError::Refused(
                        "the container has ended".to_owned(),
                    ));
                }
                ClientEvent::Lost => return Err(self.lost()),
                _ => {}
            }
        }
    }

    /// Sends a signal to init; the answer arrives as [`ClientEvent::Done`] or
    /// [`ClientEvent::Refused`].
    ///
    /// # Errors
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn post_signal(&mut self, number: i32) -> Result<(), SupervisorError> {
        self.send(&Frame::Signal(number))
    }

    /// Tells the terminal of what this client belongs to, or of the exec session of that id, its
    /// size; the answer arrives as [`ClientEvent::Done`] or [`ClientEvent::Refused`].
    ///
    /// # Errors
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn post_resize(&mut self, rows: u16, cols: u16, exec: &str) -> Result<(), SupervisorError> {
        self.send(&Frame::Resize { rows, cols, exec })
    }

    /// Sends standard input, at most 64 KiB; before the next piece, [`ClientEvent::StdinReady`]
    /// must have arrived.
    ///
    /// # Errors
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn send_stdin(&mut self, bytes: &[u8]) -> Result<(), SupervisorError> {
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(TYPE_STDIN);
        message.extend(&bytes[..bytes.len().min(PAYLOAD_MAX)]);
        self.send_bytes(&message)
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn end_stdin(&mut self) -> Result<(), SupervisorError> {
        self.send(&Frame::StdinEof)
    }

    /// Leaves the streams alone from now on; standard input stays open.
    ///
    /// # Errors
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn detach(&mut self) -> Result<(), SupervisorError> {
        self.send(&Frame::Detach)
    }

    /// How many bytes of output [`crate::pump`] was told are left out.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    pub(crate) fn note_skipped(&mut self, bytes: u64) {
        self.skipped += bytes;
    }

    pub(crate) fn lost(&self) -> SupervisorError {
        SupervisorError::Lost(self.run_dir.clone())
    }

    pub(crate) fn early(&self) -> bool {
        self.early.is_some()
    }

    pub(crate) fn send(&self, message: &Frame<'_>) -> Result<(), SupervisorError> {
        self.send_bytes(&message.encode())
    }

    /// A supervisor that has just ended still has its last words in the socket: those are what
    /// the caller finds next, so that a closed other end is no error here.
    fn send_bytes(&self, message: &[u8]) -> Result<(), SupervisorError> {
        match frame::send_bytes(self.socket.as_fd(), message, SendFlags::empty()) {
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(e) => Err(SupervisorError::file(
                "send to the supervisor in",
                &self.run_dir,
                e,
            )),
        }
    }

    /// Receives a message into the buffer; 0: the supervisor is gone.
    pub(crate) fn receive(&mut self) -> Result<usize, SupervisorError> {
        frame::receive(self.socket.as_fd(), &mut self.buffer, RecvFlags::empty())
            .map_err(|e| SupervisorError::file("hear the supervisor in", &self.run_dir, e))
    }

    pub(crate) fn message(&self, len: usize) -> Option<Frame<'_>> {
        Frame::decode(self.buffer.get(..len)?)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unexpected() -> SupervisorError {
    SupervisorError::Malformed {
        what: "message",
        why: "it makes no sense here".to_owned(),
    }
}

/// Waits for the end of a container, whether its supervisor still serves, is about to, or has
/// already left its record.
///
/// # Errors
/// [`SupervisorError::NotRunning`] when nobody holds the container and there is no record;
/// [`SupervisorError::Lost`] when its supervisor was killed: adopt it and wait again.
pub fn wait(run_dir: &Path, data_dir: &Path) -> Result<ExitStatus, SupervisorError> {
    let deadline = clock::monotonic() + START_WAIT_NS;
    loop {
        let lost = match Client::connect(run_dir).and_then(|mut client| client.wait()) {
            Ok(status) => return Ok(status),
            Err(e @ (SupervisorError::Lost(_) | SupervisorError::NotRunning(_))) => e,
            Err(SupervisorError::File { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                SupervisorError::NotRunning(run_dir.to_owned())
            }
            Err(e) => return Err(e),
        };
        if let Some(status) = recorded(run_dir, data_dir)? {
            return Ok(status);
        }
        let alive = open_dir(run_dir).is_ok_and(|d| lock::is_alive(d.as_fd()).unwrap_or(false));
        if !alive {
            // It may have ended between the two looks.
            return recorded(run_dir, data_dir)?.ok_or(lost);
        }
        if clock::monotonic() > deadline {
            return Err(lost);
        }
        let _ = poll(&mut [], Some(&RETRY));
    }
}

fn recorded(run_dir: &Path, data_dir: &Path) -> Result<Option<ExitStatus>, SupervisorError> {
    for dir in [data_dir, run_dir] {
        let Ok(dir) = open_dir(dir) else { continue };
        if let Some(record) = ExitRecord::read(dir.as_fd())? {
            return Ok(Some((&record).into()));
        }
    }
    Ok(None)
}
