//! A process that does nothing: it keeps a place until another one takes it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::launch::Launched;
use crate::raw::{self, CloneArgs, fork_with_pidfd};

/// A process that waits until it is dropped, or until the one that made it ends.
#[derive(Debug)]
pub struct Sitter {
    process: Launched,
    /// Its end ends the process, too, when nobody is left to drop it.
    _hold: OwnedFd,
}

impl Sitter {
    /// Starts one, for a process of one thread.
    ///
    /// # Errors
    /// What `pipe2(2)` and `clone3(2)` answer.
    pub fn new() -> io::Result<Self> {
        const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
        let (wait, hold) = pipe_with(PipeFlags::CLOEXEC)?;
        let args = CloneArgs {
            flags: CLONE_CLEAR_SIGHAND,
            ..CloneArgs::default()
        };
        // SAFETY: no memory is shared; the child goes into `sit`, which only makes system calls and
        // ends in an exit.
        let (pid, pidfd) = unsafe { fork_with_pidfd(&args, || sit(wait.as_raw_fd())) }?;
        Ok(Self {
            process: Launched { pid, pidfd },
            _hold: hold,
        })
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid
    }
}

impl Drop for Sitter {
    fn drop(&mut self) {
        let pidfd = self.process.pidfd.as_fd();
        let _ = crate::pidfd::signal(pidfd, libc::SIGKILL);
        let _ = crate::pidfd::wait(pidfd, crate::pidfd::Wait::Block);
    }
}

/// Keeps nothing but the pipe open: what a caller waits to see closed is not to wait for this.
fn sit(wait: i32) -> ! {
    if raw::dup_to(wait, 0).is_ok() && raw::close_between(1, u32::MAX).is_ok() {
        // SAFETY: just made, and closed by nobody.
        let wait = unsafe { raw::borrow(0) };
        let mut byte = [0_u8; 1];
        while let Err(rustix::io::Errno::INTR) = rustix::io::read(wait, &mut byte) {}
    }
    raw::exit_now(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lives_until_it_is_dropped_and_holds_nothing() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let sitter = Sitter::new().unwrap();
        drop(write);
        assert_eq!(rustix::io::read(&read, &mut [0_u8; 1]), Ok(0));
        let dir = format!("/proc/{}", sitter.pid());
        let state = || std::fs::read_to_string(format!("{dir}/stat"));
        assert!(!state().unwrap().contains(") Z "));
        drop(sitter);
        assert!(state().is_err(), "it is left, or nobody has reaped it");
    }
}
