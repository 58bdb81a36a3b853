//! The foreground of `run`, `start -a` and `attach`: copies between a client's own descriptors
//! and the container, and forwards signals.
//!
//! The caller's descriptors are never set non-blocking (others share them) and never waited on
//! in a write: a signal must get through while nobody reads our output.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use amphora_sys::supervise::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::termios::tcgetwinsize;

use crate::SupervisorError;
use crate::client::{Client, ClientEvent, ExitStatus};
use crate::frame::{Frame, PAYLOAD_MAX};
use crate::keys::{DetachKeys, KEYS_MAX, KeyWatch};

/// A write of this size does not block once poll says there is room.
const SMALL_WRITE: usize = 4096;

/// Signals that go to the container instead of ending the client: HUP, INT, QUIT, USR1, USR2,
/// ALRM, TERM, WINCH. Those that were ignored stay ignored (`nohup`).
const FORWARDED: [i32; 8] = [1, 2, 3, 10, 12, 14, 15, 28];

/// Signals that a foreground in raw mode must not die of before its terminal is put right: HUP,
/// INT, QUIT, TERM; and WINCH, which says that the terminal has another size.
const OWN: [i32; 5] = [1, 2, 3, 15, WINCH];
/// SIGWINCH.
const WINCH: i32 = 28;

/// Signals held back for the container. Made before the container is started, so that none is
/// lost between; dropped, they act on this process again.
#[derive(Debug)]
pub struct ProxySignals {
    signals: SignalFd,
    forward: bool,
}

impl ProxySignals {
    /// Holds the signals of the calling thread back, for the container; call it in a process of
    /// one thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold() -> Result<Self, SupervisorError> {
        Self::of(&FORWARDED, true)
    }

    /// Holds back what would end this process: [`pump`] then returns [`PumpEnd::Signalled`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold_own() -> Result<Self, SupervisorError> {
        Self::of(&OWN, false)
    }

    fn of(signals: &[i32], forward: bool) -> Result<Self, SupervisorError> {
        let signals =
            SignalFd::new(signals).map_err(|e| SupervisorError::Kernel("hold signals back", e))?;
        Ok(Self { signals, forward })
    }

    /// Takes the next signal that came, if one did.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn next(&self) -> Result<Option<i32>, SupervisorError> {
        self.signals
            .next()
            .map_err(|e| SupervisorError::Kernel("read signals", e))
    }
}

/// The client's own descriptors; `None` for what it does not want.
#[derive(Debug, Clone, Copy, Default)]
pub struct PumpStreams<'a> {
    /// Where standard input comes from.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Where standard output goes.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Where standard error goes.
    pub stderr: Option<BorrowedFd<'a>>,
    /// The terminal whose size the container's is to have.
    pub terminal: Option<BorrowedFd<'a>>,
    /// What to look for in standard input.
    pub detach: Option<&'a DetachKeys>,
}

/// Why a pump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PumpEnd {
    /// The container has ended; all of its output is written.
    Exit(ExitStatus),
    /// The supervisor was killed; adopt the container, attach again, go on.
    Lost,
    /// Nobody reads our output any more (`| head`); the container goes on.
    OutputClosed,
    /// The keys that detach were typed, or there was only input to copy and it ended.
    Detached,
    /// A signal came that is this process's own; nothing is lost by dying of it now.
    Signalled(i32),
}

struct Pump<'a> {
    client: &'a mut Client,
    streams: PumpStreams<'a>,
    /// Standard input may be sent.
    credit: bool,
    /// What the last message still has to write: its length, and how much is done.
    writing: Option<(usize, usize)>,
    input: Vec<u8>,
    keys: Option<KeyWatch<'a>>,
}

/// Copies until the container ends.
///
/// # Errors
/// When the client's descriptors or the socket fail.
pub fn pump(
    client: &mut Client,
    streams: PumpStreams<'_>,
    signals: Option<&ProxySignals>,
) -> Result<PumpEnd, SupervisorError> {
    if client.early()
        && let ClientEvent::Exit(status) = client.next()?
    {
        return Ok(PumpEnd::Exit(status));
    }
    let input = if streams.stdin.is_some() {
        // Keys held back may come on top of what is read next.
        vec![0; PAYLOAD_MAX - KEYS_MAX]
    } else {
        Vec::new()
    };
    Pump {
        client,
        streams,
        credit: true,
        writing: None,
        input,
        keys: streams.detach.map(DetachKeys::watch),
    }
    .run(signals)
}

/// What poll found.
#[derive(Default)]
struct Ready {
    socket: bool,
    output: bool,
    input: bool,
    signal: bool,
}

impl Pump<'_> {
    fn run(&mut self, signals: Option<&ProxySignals>) -> Result<PumpEnd, SupervisorError> {
        loop {
            let ready = self.wait(signals)?;
            if let (true, Some(signals)) = (ready.signal, signals) {
                while let Some(number) = signals.next()? {
                    if let Some(end) = self.signalled(number, signals.forward)? {
                        return Ok(end);
                    }
                }
            }
            if ready.input && self.read_input()? {
                return Ok(PumpEnd::Detached);
            }
            if ready.socket
                && let Some(end) = self.hear()?
            {
                return Ok(end);
            }
            if (ready.output || ready.socket) && !self.write_output()? {
                return Ok(PumpEnd::OutputClosed);
            }
        }
    }

    /// A signal: a new size, something for the container, or the end of this process.
    fn signalled(
        &mut self,
        number: i32,
        forward: bool,
    ) -> Result<Option<PumpEnd>, SupervisorError> {
        if let (WINCH, Some(terminal)) = (number, self.streams.terminal) {
            if let Ok(size) = tcgetwinsize(terminal) {
                self.client.post_resize(size.ws_row, size.ws_col, "")?;
            }
        } else if forward {
            self.client.post_signal(number)?;
        } else if number != WINCH {
            return Ok(Some(PumpEnd::Signalled(number)));
        }
        Ok(None)
    }

    fn wait(&self, signals: Option<&ProxySignals>) -> Result<Ready, SupervisorError> {
        let target = self.target();
        let wanted: [Option<(BorrowedFd<'_>, PollFlags)>; 4] = [
            self.writing
                .is_none()
                .then(|| (self.client.as_fd(), PollFlags::IN)),
            target.map(|fd| (fd, PollFlags::OUT)),
            self.streams
                .stdin
                .filter(|_| self.credit)
                .map(|fd| (fd, PollFlags::IN)),
            signals.map(|s| (s.signals.as_fd(), PollFlags::IN)),
        ];
        let mut fds: Vec<PollFd<'_>> = wanted
            .iter()
            .flatten()
            .map(|(fd, f)| PollFd::from_borrowed_fd(*fd, *f))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(e) => return Err(SupervisorError::kernel("wait for the container")(e)),
        }
        let mut found = fds.iter().map(|fd| !fd.revents().is_empty());
        let [socket, output, input, signal] =
            wanted.map(|w| w.is_some() && found.next().unwrap_or(false));
        Ok(Ready {
            socket,
            output,
            input,
            signal,
        })
    }

    /// Passes input on; `true` when it holds the keys that detach.
    fn read_input(&mut self) -> Result<bool, SupervisorError> {
        let Some(stdin) = self.streams.stdin else {
            return Ok(false);
        };
        match rustix::io::read(stdin, &mut self.input[..]) {
            Ok(n) if n > 0 => {
                let typed = &self.input[..n];
                let Some(keys) = &mut self.keys else {
                    self.credit = false;
                    self.client.send_stdin(typed)?;
                    return Ok(false);
                };
                let (rest, detached) = keys.scan(typed);
                if !rest.is_empty() {
                    self.credit = false;
                    self.client.send_stdin(&rest)?;
                }
                if detached {
                    self.client.detach()?;
                }
                Ok(detached)
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(false),
            // The end, or a terminal that went away.
            _ => {
                self.streams.stdin = None;
                self.client.end_stdin()?;
                // With nothing to copy out, feeding was all there was to do.
                Ok(self.streams.stdout.is_none() && self.streams.stderr.is_none())
            }
        }
    }

    /// Takes one message.
    fn hear(&mut self) -> Result<Option<PumpEnd>, SupervisorError> {
        let n = self.client.receive()?;
        if n == 0 {
            return Ok(Some(PumpEnd::Lost));
        }
        match self.client.message(n) {
            Some(Frame::Stdout(_) | Frame::Stderr(_)) => self.writing = Some((n, 0)),
            Some(Frame::StdinReady) => self.credit = true,
            Some(Frame::Skipped(n)) => self.client.note_skipped(n),
            Some(Frame::Exit {
                code,
                signal,
                oom_killed,
            }) => {
                return Ok(Some(PumpEnd::Exit(ExitStatus {
                    code,
                    signal,
                    oom_killed,
                })));
            }
            // Answers to signals: the container may have ended before one reached it.
            _ => {}
        }
        Ok(None)
    }

    /// Where the message at hand goes.
    fn target(&self) -> Option<BorrowedFd<'_>> {
        match self.client.message(self.writing?.0)? {
            Frame::Stdout(_) => self.streams.stdout,
            Frame::Stderr(_) => self.streams.stderr,
            _ => None,
        }
    }

    /// Writes what goes without waiting; `false` when nobody reads any more.
    fn write_output(&mut self) -> Result<bool, SupervisorError> {
        let Some((len, done)) = self.writing else {
            return Ok(true);
        };
        let bytes = match self.client.message(len) {
            Some(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => &bytes[done..],
            _ => &[],
        };
        let written = match self.target() {
            Some(fd) if !bytes.is_empty() => write_some(fd, bytes),
            _ => Ok(bytes.len()),
        };
        match written {
            Ok(n) if n == bytes.len() => self.writing = None,
            Ok(n) => self.writing = Some((len, done + n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PIPE) => return Ok(false),
            Err(e) => return Err(SupervisorError::kernel("write the container's output")(e)),
        }
        Ok(true)
    }
}

/// Writes what there is room for, without waiting for more.
fn write_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let regular =
        fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
    if regular {
        return rustix::io::write(fd, bytes);
    }
    match pwritev2(fd, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {}
        other => return other,
    }
    // A terminal, say: it has no such flag, but little fits at once.
    let mut room = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    match poll(&mut room, Some(&rustix::event::Timespec::default()))? {
        0 => Err(Errno::AGAIN),
        _ => rustix::io::write(fd, &bytes[..bytes.len().min(SMALL_WRITE)]),
    }
}
