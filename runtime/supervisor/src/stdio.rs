//! The container's standard streams: FIFOs that outlive a supervisor, and a pipe for input.
//!
//! Both sides open the FIFOs read-write: the container then never meets a FIFO without a reader,
//! so that with its supervisor killed it waits in `write` instead of dying, until another
//! supervisor opens them again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, mkfifoat, openat, unlinkat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::SupervisorError;

const NAMES: [&str; 2] = ["stdout", "stderr"];

/// The supervisor's ends.
#[derive(Debug)]
pub(crate) struct Stdio {
    /// Standard output and error, read-write and non-blocking.
    pub(crate) out: [OwnedFd; 2],
    /// The write end of standard input, non-blocking.
    pub(crate) stdin: Option<OwnedFd>,
}

/// The container's ends, for slots 0, 1, 2 of its plan.
pub(crate) type ChildStdio = [OwnedFd; 3];

/// Makes the streams of a container that is about to start.
pub(crate) fn create(
    run_dir: BorrowedFd<'_>,
    open_stdin: bool,
) -> Result<(Stdio, ChildStdio), SupervisorError> {
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
    let (child_in, stdin) = if open_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(SupervisorError::kernel("make the pipe for standard input"))?;
        rustix::io::ioctl_fionbio(&write, true).map_err(SupervisorError::kernel(
            "set up the pipe for standard input",
        ))?;
        (read, Some(write))
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| SupervisorError::file("open", "/dev/null", e))?;
        (null, None)
    };
    Ok((Stdio { out, stdin }, [child_in, child_out, child_err]))
}

/// Opens the FIFOs of a container whose supervisor was killed.
pub(crate) fn reopen(run_dir: BorrowedFd<'_>) -> Result<[OwnedFd; 2], SupervisorError> {
    Ok([
        open_fifo(run_dir, NAMES[0], OFlags::NONBLOCK)?,
        open_fifo(run_dir, NAMES[1], OFlags::NONBLOCK)?,
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
