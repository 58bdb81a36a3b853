//! Loading a seccomp filter into the calling thread.

use std::io;

use crate::raw;

/// Bytes of one `struct sock_filter`.
pub const INSN_LEN: usize = 8;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;

/// Installs `program` (an array of `struct sock_filter` in native byte order) for the calling
/// thread and its future children. Without `CAP_SYS_ADMIN`, `no_new_privs` must be set before.
///
/// # Errors
/// What `seccomp(2)` answers; `EINVAL` for a program the kernel does not accept.
pub fn load(program: &[u8], flags: u32) -> io::Result<()> {
    raw::load_seccomp(program, flags)?;
    Ok(())
}
