//! Liveness is a lock: whoever works on a container holds the open-file-description lock of
//! `R/containers/<id>/lock`, from claim to hand-over; the supervisor holds it for life.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_sys::supervise;
use rustix::fs::{Mode, OFlags, openat};

use crate::SupervisorError;

const NAME: &str = "lock";

/// The number under which `finish` inherits the lock.
pub(crate) const FINISH_LOCK_FD: i32 = 3;

/// Opens the lock file of a run directory, making it when it is missing; takes nothing.
///
/// # Errors
/// When it cannot be opened.
pub fn open_lock(run_dir: BorrowedFd<'_>) -> Result<OwnedFd, SupervisorError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(run_dir, NAME, flags, Mode::from_raw_mode(0o600))
        .map_err(|e| SupervisorError::file("open", NAME, e))
}

/// Takes the lock of a run directory; `None` when somebody holds it.
///
/// # Errors
/// When the file cannot be opened or locked.
pub fn try_lock(run_dir: BorrowedFd<'_>) -> Result<Option<OwnedFd>, SupervisorError> {
    let file = open_lock(run_dir)?;
    let taken = supervise::ofd_try_lock(file.as_fd())
        .map_err(|e| SupervisorError::file("lock", NAME, e))?;
    Ok(taken.then_some(file))
}

/// Takes the lock of a run directory, waiting for whoever holds it.
///
/// # Errors
/// When the file cannot be opened or locked.
pub fn lock(run_dir: BorrowedFd<'_>) -> Result<OwnedFd, SupervisorError> {
    let file = open_lock(run_dir)?;
    supervise::ofd_lock(file.as_fd()).map_err(|e| SupervisorError::file("lock", NAME, e))?;
    Ok(file)
}

/// Says whether somebody holds the lock of a run directory. Takes nothing, so that it never
/// makes a [`try_lock`] of somebody else fail. A missing file is a free lock.
///
/// # Errors
/// When the file cannot be opened or asked.
pub fn is_alive(run_dir: BorrowedFd<'_>) -> Result<bool, SupervisorError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(run_dir, NAME, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(e) => return Err(SupervisorError::file("open", NAME, e)),
    };
    supervise::ofd_locked(file.as_fd()).map_err(|e| SupervisorError::file("probe", NAME, e))
}

/// Takes the lock that a supervisor left to the `finish` program it became. For the start of
/// that program's `main`; started by hand, it inherits nothing and takes the lock itself.
///
/// # Errors
/// When nothing was inherited.
pub fn inherited_lock() -> Result<OwnedFd, SupervisorError> {
    supervise::take_inherited(FINISH_LOCK_FD)
        .map_err(|e| SupervisorError::Kernel("take the inherited lock", e))
}
