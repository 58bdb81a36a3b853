//! Exec sessions as the engine sees them: what is handed over, and what is on record of them.
//!
//! A session is handed over in one message on `supervisor.sock`, with everything that a launch
//! needs; whoever sends it may be the command line or a short-lived child that prepares a
//! healthcheck. The supervisor is the parent of the process and copies its streams.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use amphora_sys::{LaunchPlan, channel};
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::client::{AttachMode, Client};
use crate::error::kind_from;
use crate::frame::{Frame, TYPE_EXEC};
use crate::{SupervisorError, files};

/// Directory of the records below the run directory.
const DIR: &str = "exec";
/// Version of the message and of the record.
const VERSION: u32 = 1;
/// Most bytes of a record: arguments are cut to fit.
const RECORD_MAX: usize = 64 << 10;
/// Most bytes of description and plan; an argument list may take 2 MiB alone.
const BYTES_MAX: usize = 16 << 20;
/// Length of the message itself: type, length of the description, length of the plan.
const MESSAGE_LEN: usize = 9;

/// What a supervisor is told of an exec session, beside its plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecConfig {
    /// The session's id, 64 hex digits: the name of its record.
    pub id: String,
    /// Command line, for the record.
    pub args: Vec<String>,
    /// User as it was asked for, for the record.
    pub user: String,
    /// Whether it was asked for with more rights, for the record.
    pub privileged: bool,
    /// Whether the process gets a terminal; its plan then makes one.
    pub tty: bool,
    /// Whether it gets a pipe as standard input, or may be typed to.
    pub open_stdin: bool,
}

/// An exec session to be started.
#[derive(Debug)]
pub struct ExecRequest {
    /// What it is.
    pub config: ExecConfig,
    /// What is launched; its stdio is set by the supervisor.
    pub plan: LaunchPlan,
    /// Streams to be attached to from the first byte on.
    pub attach: AttachMode,
}

/// `R/containers/<id>/exec/<exec id>`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecRecord {
    version: u32,
    /// What was asked for.
    #[serde(flatten)]
    pub config: ExecConfig,
    /// Whether the process runs, as far as its supervisor lives.
    pub running: bool,
    /// Its process id, 0 before it runs.
    pub pid: i32,
    /// Its exit code, once it has ended; 126 or 127 when it could not be started.
    pub exit_code: Option<i32>,
}

impl ExecRecord {
    pub(crate) fn new(mut config: ExecConfig) -> Self {
        let mut room = RECORD_MAX / 2;
        config.args.retain(|arg| {
            let fits = arg.len() <= room;
            room = room.saturating_sub(arg.len());
            fits
        });
        Self {
            version: VERSION,
            config,
            ..Self::default()
        }
    }

    /// Reads the record of a session; `None` when there is none of that id.
    ///
    /// # Errors
    /// When the file cannot be read or is of an unknown version.
    pub fn read(run_dir: BorrowedFd<'_>, id: &str) -> Result<Option<Self>, SupervisorError> {
        let Some(dir) = open_records(run_dir)? else {
            return Ok(None);
        };
        if id.contains('/') {
            return Ok(None);
        }
        let bytes = files::read(dir.as_fd(), id, RECORD_MAX)
            .map_err(|e| SupervisorError::file("read", id, e))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|e| malformed("exec record", &e.to_string()))?;
        if record.version != VERSION {
            return Err(malformed(
                "exec record",
                "it is of another version of amphora",
            ));
        }
        Ok(Some(record))
    }

    pub(crate) fn write(&self, run_dir: BorrowedFd<'_>) -> Result<(), SupervisorError> {
        match mkdirat(run_dir, DIR, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(SupervisorError::file("make", DIR, e)),
        }
        let dir = open_records(run_dir)?.ok_or_else(|| malformed(DIR, "it is gone"))?;
        let text =
            serde_json::to_vec(self).map_err(|e| malformed("exec record", &e.to_string()))?;
        files::replace(dir.as_fd(), &self.config.id, &text)
            .map_err(|e| SupervisorError::file("write", &self.config.id, e))
    }

    pub(crate) fn remove(run_dir: BorrowedFd<'_>, id: &str) {
        if let Ok(Some(dir)) = open_records(run_dir) {
            let _ = unlinkat(&dir, id, AtFlags::empty());
        }
    }
}

fn open_records(run_dir: BorrowedFd<'_>) -> Result<Option<OwnedFd>, SupervisorError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(run_dir, DIR, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(SupervisorError::file("open", DIR, e)),
    }
}

fn malformed(what: &'static str, why: &str) -> SupervisorError {
    SupervisorError::Malformed {
        what,
        why: why.to_owned(),
    }
}

/// What came in one message.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) config: ExecConfig,
    /// Streams its sender is attached to.
    pub(crate) attach: u8,
    pub(crate) plan: LaunchPlan,
}

/// Sends a session: its bytes in an anonymous file, so that one message holds everything.
fn send(socket: BorrowedFd<'_>, request: &ExecRequest) -> Result<(), SupervisorError> {
    let failed = |e: std::io::Error| SupervisorError::Kernel("hand over the exec session", e);
    let head = postcard::to_allocvec(&(VERSION, request.attach.bits(), &request.config))
        .map_err(|e| malformed("exec session", &e.to_string()))?;
    let plan = request.plan.encode();
    let mut message = vec![TYPE_EXEC];
    for len in [head.len(), plan.len()] {
        let len = u32::try_from(len).map_err(|_| malformed("exec session", "it is too large"))?;
        message.extend(len.to_le_bytes());
    }
    let file =
        rustix::fs::memfd_create("exec", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    for (bytes, at) in [(&head, 0), (&plan, head.len() as u64)] {
        let mut done = 0;
        while done < bytes.len() {
            done += rustix::io::pwrite(&file, &bytes[done..], at + done as u64)
                .map_err(|e| failed(e.into()))?;
        }
    }
    let fds: Vec<BorrowedFd<'_>> = std::iter::once(&file)
        .chain(&request.plan.fds)
        .map(AsFd::as_fd)
        .collect();
    channel::send(socket, &message, &fds).map_err(failed)
}

/// Receives what [`send`] sent; the message waits in the socket.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Arrived, SupervisorError> {
    let failed = |e: std::io::Error| SupervisorError::Kernel("receive the exec session", e);
    let bad = || malformed("exec session", "it does not decode");
    let (message, mut fds) = channel::recv(socket, MESSAGE_LEN)
        .map_err(failed)?
        .ok_or_else(bad)?;
    let length = |at: usize| {
        let bytes = message.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let (head_len, plan_len) = length(1).zip(length(5)).ok_or_else(bad)?;
    let total = head_len.checked_add(plan_len).filter(|n| *n <= BYTES_MAX);
    let total = total.ok_or_else(bad)?;
    if fds.is_empty() {
        return Err(bad());
    }
    let file = fds.remove(0);
    let mut bytes = vec![0; total];
    let mut done = 0;
    while done < total {
        match rustix::io::pread(&file, &mut bytes[done..], done as u64) {
            Ok(n) if n > 0 => done += n,
            Ok(_) => return Err(bad()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    let (head, plan) = bytes.split_at(head_len);
    let (version, rest) = postcard::take_from_bytes::<u32>(head).map_err(|_| bad())?;
    if version != VERSION {
        return Err(malformed("exec session", "unknown version"));
    }
    let (attach, config) = postcard::from_bytes::<(u8, ExecConfig)>(rest).map_err(|_| bad())?;
    if config.id.is_empty() || config.id.starts_with('.') || config.id.contains('/') {
        return Err(malformed("exec session", "it has no id"));
    }
    let plan = LaunchPlan::decode(plan, fds)
        .map_err(|e| malformed("exec session", &amphora_spec::error::chain(&e)))?;
    Ok(Arrived {
        config,
        attach,
        plan,
    })
}

impl Client {
    /// Has a supervisor start an exec session, and returns the connection to that: its streams as
    /// asked for, its exit; signals and sizes sent over it are the session's. Standard input ends
    /// with the connection, the process does not.
    ///
    /// # Errors
    /// [`SupervisorError::NotRunning`] when none listens; [`SupervisorError::Launch`] says why
    /// nothing runs.
    pub fn exec(run_dir: &Path, request: &ExecRequest) -> Result<(Self, i32), SupervisorError> {
        let mut client = Self::connect(run_dir)?;
        let pid = client.exec_here(request)?;
        Ok((client, pid))
    }

    /// The same over a connection that is there, and that is the session's from then on.
    ///
    /// # Errors
    /// As [`Client::exec`]; [`SupervisorError::Lost`] when the supervisor goes without a word: the
    /// process may run.
    pub fn exec_here(&mut self, request: &ExecRequest) -> Result<i32, SupervisorError> {
        self.exec_told(request, |_, _| ())
    }

    /// The same over a connection that the session ends with; `born` is told its process id, and
    /// when that was made in clock ticks since boot, before the process does anything of its own.
    ///
    /// # Errors
    /// As [`Client::exec_here`].
    pub fn exec_told(
        &mut self,
        request: &ExecRequest,
        mut born: impl FnMut(i32, u64),
    ) -> Result<i32, SupervisorError> {
        send(self.as_fd(), request)?;
        let mut n = self.receive()?;
        if let Some(Frame::Born { pid, start }) = self.message(n) {
            born(pid, start);
            n = self.receive()?;
        }
        if n == 0 {
            return Err(self.lost());
        }
        match self.message(n) {
            Some(Frame::Started(pid)) => Ok(pid),
            Some(Frame::Failed { kind, errno, text }) => Err(SupervisorError::Launch {
                message: text.to_owned(),
                errno,
                kind: kind_from(kind),
            }),
            Some(Frame::Error(text)) => Err(SupervisorError::Refused(text.to_owned())),
            Some(Frame::Exit { .. }) => Err(SupervisorError::Refused(
                "the container has ended".to_owned(),
            )),
            _ => Err(malformed("message", "it makes no sense here")),
        }
    }
}
