//! Terminals, and the foreground of `run` and `exec`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_sys::channel;
use amphora_sys::pidfd::{self, Exit, Wait};
use amphora_sys::plan::LaunchPlan;
use amphora_sys::supervise::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::args::Parsed;
use crate::error::{Result, RuncError};
use crate::notify::Notify;

const SIGWINCH: i32 = 28;
/// Signals that the process gets in our place.
const FORWARDED: [i32; 8] = [1, 2, 3, 10, 12, 15, 18, SIGWINCH];
/// When a terminal that nobody has open is looked at again.
const AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
const CHUNK: usize = 32 << 10;

/// Who gets the container's terminal.
#[derive(Debug)]
pub(crate) enum Console {
    /// There is none.
    No,
    /// Who listens on `--console-socket`.
    Socket(OwnedFd),
    /// We: the end that we read and the one that the child writes to.
    Own(OwnedFd, OwnedFd),
}

impl Console {
    /// By `--console-socket`, which a terminal needs and nothing else may have.
    pub(crate) fn from_flag(path: Option<&str>, terminal: bool) -> Result<Self> {
        match (path, terminal) {
            (None, false) => Ok(Self::No),
            (None, true) => Err(RuncError::usage(
                "cannot allocate tty if runc will detach without setting console socket",
            )),
            (Some(_), false) => Err(RuncError::usage(
                "cannot use console socket if runc will not detach or allocate tty",
            )),
            (Some(path), true) => {
                let failed =
                    || RuncError::file(format!("failed to connect to console socket {path}"));
                let kind = SocketType::STREAM;
                let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
                    .map_err(failed())?;
                let address = SocketAddrUnix::new(path).map_err(failed())?;
                connect(&socket, &address).map_err(failed())?;
                Ok(Self::Socket(socket))
            }
        }
    }

    /// As the flags of a command that may stay say: copied by ourselves unless it is to be detached, or
    /// somebody else wants the terminal.
    pub(crate) fn of(parsed: &Parsed, terminal: bool) -> Result<Self> {
        match parsed.get("console-socket") {
            None if !parsed.on("detach") => Self::own(terminal),
            socket => Self::from_flag(socket, terminal),
        }
    }

    fn own(terminal: bool) -> Result<Self> {
        if !terminal {
            return Ok(Self::No);
        }
        let pair = channel::pair().map_err(RuncError::file("failed to make a socket"))?;
        Ok(Self::Own(pair.0, pair.1))
    }

    /// Gives the child its end.
    pub(crate) fn attach(&self, plan: &mut LaunchPlan) -> Result {
        let (Self::Socket(socket) | Self::Own(_, socket)) = self else {
            return Ok(());
        };
        let socket = socket
            .try_clone()
            .map_err(RuncError::file("failed to hold the console socket"))?;
        plan.console = Some(plan.add_fd(socket));
        Ok(())
    }

    fn terminal(self) -> Result<Option<OwnedFd>> {
        let Self::Own(ours, theirs) = self else {
            return Ok(None);
        };
        drop(theirs);
        let failed = RuncError::file("failed to receive the terminal");
        let message = channel::recv(ours.as_fd(), 64).map_err(failed)?;
        Ok(message.and_then(|(_, mut fds)| fds.pop()))
    }
}

/// Follows a process until its end, in its place for signals and the terminal.
#[derive(Debug)]
pub(crate) struct Foreground {
    signals: SignalFd,
}

/// The caller's terminal, raw until this goes.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let saved = tcgetattr(io::stdin()).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(saved))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

impl Foreground {
    /// To be made before the process: no signal is to be lost.
    pub(crate) fn new() -> Result<Self> {
        let failed = RuncError::file("failed to take over signals");
        Ok(Self {
            signals: SignalFd::new(&FORWARDED).map_err(failed)?,
        })
    }

    /// Copies and forwards until the process has ended; its code as a shell has it.
    pub(crate) fn follow(
        self,
        process: &OwnedFd,
        console: Console,
        mut notify: Option<Notify>,
    ) -> Result<u8> {
        let terminal = console.terminal()?;
        // Nobody has it open for the moment; somebody may again.
        let mut hung_up = false;
        let _raw = terminal.as_ref().and_then(|_| Raw::enter());
        if let Some(terminal) = &terminal {
            resize(terminal.as_fd());
        }
        let mut feeds = terminal.is_some();
        let stdin = io::stdin();
        loop {
            let mut fds = vec![
                PollFd::new(process, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            if let Some(terminal) = terminal.as_ref().filter(|_| !hung_up) {
                fds.push(PollFd::new(terminal, PollFlags::IN));
                if feeds {
                    fds.push(PollFd::new(&stdin, PollFlags::IN));
                }
            }
            if let Some(notify) = &notify {
                fds.push(PollFd::from_borrowed_fd(notify.fd(), PollFlags::IN));
            }
            match poll(&mut fds, hung_up.then_some(&AGAIN)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(RuncError::file("failed to wait")(errno)),
            }
            let mut ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            ready.truncate(ready.len() - usize::from(notify.is_some()));
            let ready = |index: usize| ready.get(index).copied().unwrap_or(false);
            notify = notify.filter(|notify| {
                // Who waits for the container is us. That a manager does not hear it is not its failure.
                let own = rustix::process::getpid().as_raw_nonzero().get();
                matches!(notify.hear(own), Ok(false))
            });
            if ready(1) {
                self.forward(process.as_fd(), terminal.as_ref())?;
            }
            if let Some(open) = &terminal {
                if ready(3) {
                    feeds = copy(stdin.as_fd(), open.as_fd()).is_ok_and(|n| n > 0);
                }
                let heard = |n: rustix::io::Result<usize>| n.is_ok_and(|n| n > 0);
                hung_up = ready(2) && !heard(copy(open.as_fd(), io::stdout().as_fd()));
            }
            if ready(0) {
                // What it has written, but not what others that it left behind may write yet.
                while let Some(open) = terminal.as_ref().filter(|open| readable(open)) {
                    if !copy(open.as_fd(), io::stdout().as_fd()).is_ok_and(|n| n > 0) {
                        break;
                    }
                }
                let failed = RuncError::file("failed to wait for the process");
                let exit = pidfd::wait(process.as_fd(), Wait::Block).map_err(failed)?;
                return Ok(exit.map_or(1, code));
            }
        }
    }

    fn forward(&self, process: BorrowedFd<'_>, terminal: Option<&OwnedFd>) -> Result {
        let failed = || RuncError::file("failed to read a signal");
        while let Some(number) = self.signals.next().map_err(failed())? {
            match terminal {
                Some(terminal) if number == SIGWINCH => resize(terminal.as_fd()),
                _ => {
                    let _ = pidfd::signal(process, number);
                }
            }
        }
        Ok(())
    }
}

fn code(exit: Exit) -> u8 {
    u8::try_from(exit.shell_code() & 0xff).unwrap_or(u8::MAX)
}

fn resize(terminal: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        let _ = tcsetwinsize(terminal, size);
    }
}

fn readable(terminal: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(terminal, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
        && fds.iter().any(|fd| fd.revents().contains(PollFlags::IN))
}

/// Copies what is there once; 0 at the end. What cannot be written is lost: a reader that went away
/// is no reason to take the container's terminal from it.
#[inline(never)]
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    let mut buffer = [0; CHUNK];
    let length = rustix::io::read(from, &mut buffer)?;
    let mut rest = buffer.get(..length).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(_) => break,
        }
    }
    Ok(length)
}
