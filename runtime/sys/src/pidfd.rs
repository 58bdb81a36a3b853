//! Processes by descriptor: no pid is signalled or waited for twice.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// The code a shell would show: 128 + n for signal n.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal(signal) => 128 + i32::from(signal),
        }
    }

    /// Reads a wait status (`waitpid`'s `wstatus`) of a process that has ended.
    fn from_wait_status(status: i32) -> Self {
        let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
        match status & 0x7f {
            0 => Self::Code(byte(status >> 8)),
            signal => Self::Signal(byte(signal)),
        }
    }

    fn from_siginfo(status: &WaitIdStatus) -> Option<Self> {
        let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
        let code = status.exit_status().map(|code| Self::Code(byte(code)));
        code.or_else(|| {
            status
                .terminating_signal()
                .map(|signal| Self::Signal(byte(signal)))
        })
    }
}

/// Whether to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until the process has ended.
    Block,
    /// Only look.
    Poll,
}

/// Reads the start time of a process, in clock ticks since boot; with the pid it names a process
/// for good.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).map_err(|error| {
        // The process went away between open and read.
        let gone = error.raw_os_error() == Some(libc::ESRCH);
        if gone {
            io::ErrorKind::NotFound.into()
        } else {
            error
        }
    })?;
    let text = String::from_utf8_lossy(&stat);
    // The name in parentheses may hold anything; the last parenthesis ends it.
    let rest = text.rsplit_once(") ").map(|(_, rest)| rest);
    let field = rest.and_then(|rest| rest.split(' ').nth(19));
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Opens a pidfd of the process with this pid and start time; `None` when it is gone, also when
/// another one has its pid now.
///
/// # Errors
/// What `pidfd_open(2)` answers otherwise.
pub fn open(pid: i32, start: u64) -> io::Result<Option<OwnedFd>> {
    let Some(number) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // EINVAL or, on newer kernels, ENOENT: the number is a thread's now.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match start_time(pid) {
        Ok(now) => Ok((now == start).then_some(pidfd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the mount namespace of a process. Who holds it puts off the unmounting of all that is
/// mounted in it, which otherwise the last process pays for with its exit.
///
/// # Errors
/// What the kernel answers; before 6.11 it has no such question.
pub fn mount_namespace(pidfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `_IO(PIDFS_IOCTL_MAGIC, 3)`.
    const PIDFD_GET_MNT_NAMESPACE: libc::c_ulong = 0xff03;
    // SAFETY: this command takes no argument.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            libc::c_long::from(pidfd.as_raw_fd()),
            PIDFD_GET_MNT_NAMESPACE,
            0 as libc::c_long,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { crate::raw::own(fd) })
}

/// Sends a signal; says whether the process was still there to get it.
///
/// # Errors
/// What `pidfd_send_signal(2)` answers otherwise; `InvalidInput` for no signal.
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<bool> {
    let signal = Signal::from_named_raw(number)
        .or_else(|| realtime(number))
        .ok_or(io::ErrorKind::InvalidInput)?;
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn realtime(number: i32) -> Option<Signal> {
    // SAFETY: the C library of this process reserves signals for itself (32 to 34 or so); sending
    // them to another program, which has its own library, is what the caller asks for.
    (1..=64)
        .contains(&number)
        .then(|| unsafe { Signal::from_raw_unchecked(number) })
}

/// Waits for a child and reaps it; `None` from [`Wait::Poll`] while it runs.
///
/// # Errors
/// What `waitid(2)` answers; `ECHILD` for a process that is not the caller's child.
pub fn wait(pidfd: BorrowedFd<'_>, how: Wait) -> io::Result<Option<Exit>> {
    let mut options = WaitIdOptions::EXITED;
    if how == Wait::Poll {
        options |= WaitIdOptions::NOHANG;
    }
    loop {
        match waitid(WaitId::PidFd(pidfd), options) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(status) => return Ok(status.as_ref().and_then(Exit::from_siginfo)),
        }
    }
}

/// Reads how a process ended that somebody else has reaped (kernel 6.15; the pidfd must have been
/// opened before). `None` while it runs or is a zombie.
///
/// # Errors
/// `Unsupported` from an older kernel.
pub fn exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    /// `struct pidfd_info` as of kernel 6.15.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`.
    const PIDFD_GET_INFO: libc::c_int = 0xc040_ff0b_u32.cast_signed();
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: the request carries the size of the structure, which outlives the call.
    let result = unsafe {
        libc::ioctl(
            pidfd.as_raw_fd(),
            PIDFD_GET_INFO,
            std::ptr::from_mut(&mut info),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // A process that is gone without a record: the pidfd came too late.
            Some(libc::ESRCH) => Ok(None),
            Some(libc::ENOTTY | libc::EINVAL) => Err(io::ErrorKind::Unsupported.into()),
            _ => Err(error),
        };
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then(|| Exit::from_wait_status(info.exit_code)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn sleeper() -> (std::process::Child, OwnedFd) {
        let child = std::process::Command::new("/bin/busybox")
            .args(["sleep", "60"])
            .spawn();
        let child = child.unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = open(pid, start_time(pid).unwrap()).unwrap().unwrap();
        (child, pidfd)
    }

    #[test]
    fn signal_wait_and_exit_info_agree() {
        let (_child, pidfd) = sleeper();
        assert_eq!(wait(pidfd.as_fd(), Wait::Poll).unwrap(), None);
        assert!(signal(pidfd.as_fd(), libc::SIGTERM).unwrap());
        assert_eq!(
            wait(pidfd.as_fd(), Wait::Block).unwrap(),
            Some(Exit::Signal(15))
        );
        assert_eq!(exit_info(pidfd.as_fd()).unwrap(), Some(Exit::Signal(15)));
        assert!(!signal(pidfd.as_fd(), libc::SIGTERM).unwrap());
        assert_eq!(Exit::Signal(15).shell_code(), 143);
    }

    #[test]
    fn open_tells_processes_with_one_pid_apart() {
        let (mut child, _pidfd) = sleeper();
        let pid = i32::try_from(child.id()).unwrap();
        let start = start_time(pid).unwrap();
        assert!(open(pid, start + 1).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(open(pid, start).unwrap().is_none());
        assert_eq!(start_time(pid).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn signals_out_of_range_are_refused() {
        let (mut child, pidfd) = sleeper();
        for number in [0, 65, -1] {
            let error = signal(pidfd.as_fd(), number).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
