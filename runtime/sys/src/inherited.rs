//! Descriptors that a parent left open at agreed numbers.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Lowest number that may be taken; 0, 1 and 2 belong to the standard streams.
const FIRST: RawFd = 3;

static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Takes the descriptor that the parent left at `number` (3 to 63) and sets close-on-exec on it.
/// Each number can be taken once; it must be done before anything else opens descriptors.
///
/// # Errors
/// `EBADF` when nothing is open there, or it was taken before.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    let bit = u32::try_from(number)
        .ok()
        .filter(|&n| number >= FIRST && n < u64::BITS);
    let mask = 1_u64 << bit.ok_or_else(bad)?;
    // SAFETY: plain integers; an invalid number is answered with EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if TAKEN.fetch_or(mask, Ordering::Relaxed) & mask != 0 {
        return Err(bad());
    }
    // SAFETY: the number is open (checked above), was inherited, and is handed out only once
    // (TAKEN), so that nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
