//! Standard streams. A container has FIFOs that outlive a supervisor, and a pipe for input; an exec
//! session has pipes; either may have a terminal instead.
//!
//! Both sides open the FIFOs read-write: the container then never meets a FIFO without a reader,
//! so that with its supervisor killed it waits in `write` instead of dying, until another
//! supervisor opens them again. A terminal ends with its supervisor, and whoever sits at it is told
//! by SIGHUP.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_sys::{LaunchPlan, channel};
use rustix::fs::{AtFlags, Mode, OFlags, mkfifoat, openat, unlinkat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::SupervisorError;

const NAMES: [&str; 2] = ["stdout", "stderr"];

/// The supervisor's ends.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    /// Standard output and error, non-blocking; with a terminal its controlling side and nothing.
    pub(crate) out: [Option<OwnedFd>; 2],
    /// The write end of standard input, non-blocking.
    pub(crate) stdin: Option<OwnedFd>,
    /// The other side of a terminal: held, so that it is not hung up while nobody inside has it.
    pub(crate) peer: Option<OwnedFd>,
}

/// The child's ends, as a plan wants them.
#[derive(Debug)]
pub(crate) enum ChildEnds {
    /// Slots 0, 1, 2.
    Pipes([OwnedFd; 3]),
    /// The socket that the terminal is sent over.
    Console(OwnedFd),
}

impl ChildEnds {
    /// Gives them to a plan.
    pub(crate) fn give(self, plan: &mut LaunchPlan) {
        match self {
            Self::Pipes(ends) => plan.stdio = Some(ends.map(|end| plan.add_fd(end))),
            Self::Console(socket) => plan.console = Some(plan.add_fd(socket)),
        }
    }
}

impl Stdio {
    /// Takes the terminal that the child has made and sent.
    pub(crate) fn take_terminal(
        &mut self,
        socket: &OwnedFd,
        open_stdin: bool,
    ) -> Result<(), SupervisorError> {
        let missing = || SupervisorError::Malformed {
            what: "terminal",
            why: "the container did not send one".to_owned(),
        };
        let failed = |e| SupervisorError::Kernel("receive the terminal", e);
        let (_, mut fds) = channel::recv(socket.as_fd(), 1)
            .map_err(failed)?
            .ok_or_else(missing)?;
        let main = fds.pop().ok_or_else(missing)?;
        let kernel = SupervisorError::kernel;
        rustix::io::ioctl_fionbio(&main, true).map_err(kernel("set up the terminal"))?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&main, flags).map_err(kernel("open the terminal"))?;
        if open_stdin {
            let input = main.try_clone();
            self.stdin = Some(input.map_err(|e| SupervisorError::Kernel("keep the terminal", e))?);
        }
        self.out = [Some(main), None];
        self.peer = Some(peer);
        Ok(())
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.peer.is_some()
    }

    /// Tells the terminal its size; whoever is in its foreground gets SIGWINCH.
    pub(crate) fn resize(&self, rows: u16, cols: u16) -> Result<(), Errno> {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        match &self.out[0] {
            Some(main) if self.is_terminal() => tcsetwinsize(main, size),
            _ => Err(Errno::NOTTY),
        }
    }
}

/// Makes the socket over which a child sends its terminal: ours, and the child's.
pub(crate) fn console() -> Result<(OwnedFd, ChildEnds), SupervisorError> {
    let (ours, theirs) =
        channel::pair().map_err(|e| SupervisorError::Kernel("make a socket pair", e))?;
    Ok((ours, ChildEnds::Console(theirs)))
}

/// Makes the streams of an exec session.
pub(crate) fn pipes(open_stdin: bool) -> Result<(Stdio, ChildEnds), SupervisorError> {
    let (out, child_out) = output_pipe()?;
    let (err, child_err) = output_pipe()?;
    let (child_in, stdin) = input(open_stdin)?;
    let stdio = Stdio {
        out: [Some(out), Some(err)],
        stdin,
        peer: None,
    };
    Ok((stdio, ChildEnds::Pipes([child_in, child_out, child_err])))
}

fn output_pipe() -> Result<(OwnedFd, OwnedFd), SupervisorError> {
    let failed = SupervisorError::kernel;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe for output"))?;
    rustix::io::ioctl_fionbio(&read, true).map_err(failed("set up a pipe for output"))?;
    Ok((read, write))
}

/// Makes the streams of a container that is about to start.
pub(crate) fn create(
    run_dir: BorrowedFd<'_>,
    open_stdin: bool,
) -> Result<(Stdio, ChildEnds), SupervisorError> {
    for name in NAMES {
        match unlinkat(run_dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(SupervisorError::file("remove", name, e)),
        }
        mkfifoat(run_dir, name, Mode::from_raw_mode(0o600))
            .map_err(|e| SupervisorError::file("make", name, e))?;
    }
    let out = reopen(run_dir)?;
    let child_out = open_fifo(run_dir, NAMES[0], OFlags::empty())?;
    let child_err = open_fifo(run_dir, NAMES[1], OFlags::empty())?;
    let (child_in, stdin) = input(open_stdin)?;
    let stdio = Stdio {
        out,
        stdin,
        peer: None,
    };
    Ok((stdio, ChildEnds::Pipes([child_in, child_out, child_err])))
}

/// The child's standard input and, when it is a pipe, our end of it.
fn input(open_stdin: bool) -> Result<(OwnedFd, Option<OwnedFd>), SupervisorError> {
    if open_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(SupervisorError::kernel("make the pipe for standard input"))?;
        rustix::io::ioctl_fionbio(&write, true).map_err(SupervisorError::kernel(
            "set up the pipe for standard input",
        ))?;
        return Ok((read, Some(write)));
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SupervisorError::file("open", "/dev/null", e))?;
    Ok((null, None))
}

/// Opens the FIFOs of a container whose supervisor was killed.
pub(crate) fn reopen(run_dir: BorrowedFd<'_>) -> Result<[Option<OwnedFd>; 2], SupervisorError> {
    Ok([
        Some(open_fifo(run_dir, NAMES[0], OFlags::NONBLOCK)?),
        Some(open_fifo(run_dir, NAMES[1], OFlags::NONBLOCK)?),
    ])
}

fn open_fifo(
    run_dir: BorrowedFd<'_>,
    name: &'static str,
    extra: OFlags,
) -> Result<OwnedFd, SupervisorError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | extra;
    openat(run_dir.as_fd(), name, flags, Mode::empty())
        .map_err(|e| SupervisorError::file("open", name, e))
}
