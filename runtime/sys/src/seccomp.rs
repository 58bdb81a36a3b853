//! Loading a seccomp filter into the calling thread.

use std::io;

/// Bytes of one `struct sock_filter`.
pub const INSN_LEN: usize = 8;

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

/// Installs `program` (an array of `struct sock_filter` in native byte order) for the calling
/// thread and its future children. Without `CAP_SYS_ADMIN`, `no_new_privs` must be set before.
///
/// # Errors
/// What `seccomp(2)` answers; `EINVAL` for a program the kernel does not accept.
pub fn load(program: &[u8], flags: u32) -> io::Result<()> {
    let count = u16::try_from(program.len() / INSN_LEN).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(INSN_LEN)
        .filter_map(|raw| <[u8; INSN_LEN]>::try_from(raw).ok())
        .map(|[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect();
    let fprog = libc::sock_fprog {
        len: count,
        filter: filters.as_ptr().cast_mut(),
    };
    // SAFETY: `fprog` and the filters it points to outlive the call; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&fprog),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
