//! System calls that rustix does not offer, with safe signatures. None of them allocates or
//! takes a lock, so all may be used between `clone3` and `execve`.

use std::ffi::{CStr, c_char, c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

pub(crate) type Sys<T> = Result<T, Errno>;

pub(crate) fn check(result: c_long) -> Sys<c_long> {
    if result >= 0 {
        return Ok(result);
    }
    Err(std::io::Error::last_os_error()
        .raw_os_error()
        .map_or(Errno::IO, Errno::from_raw_os_error))
}

/// A null-terminated array of pointers into C strings that outlive it.
#[derive(Debug)]
pub(crate) struct CArray<'a> {
    pointers: Vec<*const c_char>,
    _strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> CArray<'a> {
    pub(crate) fn new<S: AsRef<CStr>>(strings: &'a [S]) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ref().as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self {
            pointers,
            _strings: std::marker::PhantomData,
        }
    }
}

/// `struct clone_args`, as of kernel 5.7.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// Forks with the flags of `args`; returns 0 in the child.
///
/// # Safety
/// `args` must not ask for shared memory; the child must only do what is async-signal-safe and
/// end in `execve` or `_exit`.
pub(crate) unsafe fn clone3_fork(args: &CloneArgs) -> Sys<i32> {
    // SAFETY: the structure outlives the call and its size is passed; the rest is the caller's.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(args),
            size_of::<CloneArgs>(),
        )
    })?;
    Ok(i32::try_from(pid).unwrap_or(-1))
}

/// Forks a child of the caller's that is told by its pidfd; it goes into `inside`. Returns its pid and
/// pidfd.
///
/// # Safety
/// As [`clone3_fork`]; `inside` is the child.
pub(crate) unsafe fn fork_with_pidfd(
    args: &CloneArgs,
    inside: impl FnOnce(),
) -> Sys<(i32, OwnedFd)> {
    let mut pidfd: c_int = -1;
    let args = CloneArgs {
        flags: args.flags | u64::from(libc::CLONE_PIDFD as u32),
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..*args
    };
    // SAFETY: the caller's promise.
    let pid = unsafe { clone3_fork(&args) }?;
    if pid == 0 {
        inside();
        exit_now(0);
    }
    // SAFETY: the kernel has just put a new descriptor there, which nobody else knows.
    Ok((pid, unsafe { own(pidfd) }))
}

pub(crate) fn execve(path: &CStr, argv: &CArray<'_>, envp: &CArray<'_>) -> Errno {
    // SAFETY: all three are null-terminated and borrowed for the call.
    let result = unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.ptr(), envp.ptr()) };
    check(result).err().unwrap_or(Errno::IO)
}

pub(crate) fn execveat(program: c_int, argv: &CArray<'_>, envp: &CArray<'_>) -> Errno {
    // SAFETY: the path is a static C string, the arrays are null-terminated and borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            c_long::from(program),
            c"".as_ptr(),
            argv.ptr(),
            envp.ptr(),
            c_long::from(libc::AT_EMPTY_PATH),
        )
    };
    check(result).err().unwrap_or(Errno::IO)
}

impl CArray<'_> {
    fn ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Closes every descriptor from `first` to `last`.
pub(crate) fn close_between(first: u32, last: u32) -> Sys<()> {
    let (first, last) = (c_long::from(first), c_long::from(last));
    let flags: c_long = 0;
    // SAFETY: plain integers; the caller uses none of these any more.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn cloexec_from(first: c_int) -> Sys<()> {
    let (first, last) = (c_long::from(first), c_long::from(u32::MAX));
    let flags = c_long::from(libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: plain integers; no descriptor is closed before an exec.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
    Ok(())
}

/// Duplicates to a number of at least `least`, close-on-exec. Never closed by us: the exec does.
pub(crate) fn dup_above(fd: c_int, least: c_int) -> Sys<c_int> {
    // SAFETY: plain integers.
    let new = check(c_long::from(unsafe {
        libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least)
    }))?;
    Ok(c_int::try_from(new).unwrap_or(-1))
}

/// Puts a descriptor at a number, open across an exec.
pub(crate) fn dup_to(fd: c_int, number: c_int) -> Sys<()> {
    let (fd, number) = (c_long::from(fd), c_long::from(number));
    // SAFETY: plain integers; what was at `number` belongs to the parent, not to the child.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd, number, 0 as c_long) })?;
    Ok(())
}

/// Gives every signal its default disposition and unblocks all of them.
pub(crate) fn default_signals() {
    /// `struct sigaction` of the kernel: handler, flags, restorer, mask.
    static DEFAULT: [u64; 4] = [0; 4];
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the new action is a zeroed kernel sigaction, i.e. SIG_DFL; no old one is asked.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                c_long::from(signal),
                DEFAULT.as_ptr(),
                std::ptr::null::<u64>(),
                8 as c_long,
            )
        };
    }
    // SAFETY: an empty set of eight bytes is read; no old one is asked.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            c_long::from(libc::SIG_SETMASK),
            DEFAULT.as_ptr(),
            std::ptr::null::<u64>(),
            8 as c_long,
        )
    };
}

/// Returns (soft, hard) of a process; pid 0 is the caller.
pub(crate) fn get_rlimit(pid: i32, resource: u32) -> Sys<(u64, u64)> {
    let mut old = [0u64; 2];
    // SAFETY: `old` has room for a `struct rlimit64`.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            c_long::from(pid),
            c_long::from(resource),
            std::ptr::null::<u64>(),
            old.as_mut_ptr(),
        )
    })?;
    Ok((old[0], old[1]))
}

pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Sys<()> {
    let new = [soft, hard];
    // SAFETY: `new` is a `struct rlimit64`.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0 as c_long,
            c_long::from(resource),
            new.as_ptr(),
            std::ptr::null::<u64>(),
        )
    })?;
    Ok(())
}

/// The default memory policy.
pub(crate) fn plain_memory_policy() {
    // SAFETY: the default policy takes no node mask.
    unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            0 as c_long,
            0 as c_long,
            0 as c_long,
        )
    };
}

/// Joins a new anonymous session keyring; a kernel without keyrings is no error.
pub(crate) fn new_session_keyring() -> Sys<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<c_char>(),
        )
    });
    match result {
        Ok(_) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Loads a seccomp filter given as the bytes of an array of `sock_filter`; returns the listener when
/// the flags ask for one, else 0.
pub(crate) fn load_seccomp(filter: &[u8], flags: u32) -> Sys<c_int> {
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u8,
    }
    let len = u16::try_from(filter.len() / crate::seccomp::INSN_LEN).map_err(|_| Errno::INVAL)?;
    let program = Program {
        len,
        filter: filter.as_ptr(),
    };
    // SAFETY: the program describes the borrowed bytes, which the kernel copies and verifies.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            c_long::from(libc::SECCOMP_SET_MODE_FILTER),
            c_long::from(flags),
            std::ptr::from_ref(&program),
        )
    })?;
    Ok(c_int::try_from(result).unwrap_or(-1))
}

pub(crate) fn set_groups(groups: &[u32]) -> Sys<()> {
    // SAFETY: pointer and length of a borrowed slice. The raw call moves this thread only.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Brings the interface `lo` of the current network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Sys<()> {
    /// `struct ifreq` with its flags member.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = Request {
        name: [0; 16],
        flags: 0,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    request.flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: the request is read by this command, which takes a `struct ifreq`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            c_long::from(socket.as_raw_fd()),
            libc::SIOCSIFFLAGS as c_long,
            std::ptr::from_ref(&request),
        )
    };
    check(result)?;
    Ok(())
}

/// Number of a mount namespace, of kernel 6.11 on.
pub(crate) fn mount_namespace_id(namespace: BorrowedFd<'_>) -> Sys<u64> {
    /// `NS_GET_MNTNS_ID`, `_IOR(0xb7, 5, __u64)`.
    const REQUEST: c_long = 0x8008_b705;
    let mut id = 0_u64;
    // SAFETY: the request writes one number of this size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            c_long::from(namespace.as_raw_fd()),
            REQUEST,
            std::ptr::from_mut(&mut id),
        )
    };
    check(result)?;
    Ok(id)
}

/// `unshare(2)`.
pub(crate) fn unshare(flags: u64) -> Sys<()> {
    let flags = c_int::try_from(flags).map_err(|_| Errno::INVAL)?;
    // SAFETY: a mask is all that is passed; namespaces only, no descriptor table.
    check(c_long::from(unsafe { libc::unshare(flags) }))?;
    Ok(())
}

/// Borrows a descriptor number for the short life of a child.
///
/// # Safety
/// The descriptor must stay open until the exec.
pub(crate) unsafe fn borrow(fd: c_int) -> BorrowedFd<'static> {
    // SAFETY: the caller's promise.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Ends the process at once.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(code) }
}

/// Takes over a descriptor the kernel has just made for us.
///
/// # Safety
/// Nobody else may own it.
pub(crate) unsafe fn own(fd: c_int) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Fails when the working directory lies outside the root directory.
pub(crate) fn cwd_is_reachable() -> Sys<()> {
    let mut path = [0u8; 4096];
    // SAFETY: pointer and length of a local array.
    check(unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) })?;
    if path[0] == b'/' {
        Ok(())
    } else {
        Err(Errno::NOENT)
    }
}
