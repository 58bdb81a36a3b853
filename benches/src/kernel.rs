//! The kernel calls that rustix does not offer with a safe signature. The only unsafe module of
//! this crate: each function does one call, checks nothing twice and allocates nothing, because
//! the floor's child calls them while it shares memory with its parent.
#![expect(
    unsafe_code,
    reason = "clone3, seccomp, exec, spawn and perf events have no safe wrapper"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// A child's stack for [`clone_vm`], 16-byte aligned.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Stack([u8; Stack::SIZE]);

impl Stack {
    const SIZE: usize = 64 * 1024;

    /// Makes a stack on the heap.
    #[must_use]
    pub fn new() -> Box<Self> {
        Box::new(Self([0; Self::SIZE]))
    }
}

/// `struct clone_args` of `clone3(2)`, up to the field `cgroup` (kernel 5.7).
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_INTO_CGROUP` (kernel 5.7).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Starts a process in new namespaces that shares the caller's memory and runs beside it:
/// `clone3(CLONE_VM | CLONE_PIDFD | namespaces [| CLONE_INTO_CGROUP])`. Nothing is copied, no page
/// becomes copy-on-write, and the caller goes on at once (unlike `vfork`).
///
/// `body` runs in the child on `stack`. It must not return, allocate, take a lock or print through
/// std: the caller does these at the same moment. `context` and `stack` must stay alive and
/// unmoved until the child has executed a program or ended; the `'static`-free signature is why
/// this stays inside the crate and why its one caller reaps the child before it returns.
///
/// # Errors
/// What `clone3(2)` answers; `ENOSYS` on architectures other than x86-64.
pub(crate) fn clone_vm<T: Sync>(
    namespaces: i32,
    cgroup: Option<BorrowedFd<'_>>,
    stack: &mut Stack,
    context: &T,
    body: extern "C" fn(&T) -> !,
) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: i32 = -1;
    let flags = libc::CLONE_VM | libc::CLONE_PIDFD | namespaces;
    let mut args = CloneArgs {
        flags: u64::from(flags.cast_unsigned()),
        pidfd: ptr::from_mut(&mut pidfd).addr() as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.0.as_mut_ptr().addr() as u64,
        stack_size: Stack::SIZE as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    let pid = clone3_call(&args, context, body);
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(
            i32::try_from(-pid).unwrap_or(libc::EINVAL),
        ));
    }
    // SAFETY: the kernel stored a new descriptor in `pidfd` before it returned a pid.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((i32::try_from(pid).unwrap_or(0), pidfd))
}

#[cfg(target_arch = "x86_64")]
fn clone3_call<T: Sync>(args: &CloneArgs, context: &T, body: extern "C" fn(&T) -> !) -> i64 {
    let result: i64;
    // SAFETY: the child returns from the call with the top of its own stack in rsp (16-aligned)
    // and enters `body`, which never returns, so neither frame is run twice. The caller keeps
    // stack and context alive (see `clone_vm`).
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {context}",
            "call {body}",
            "ud2",
            "2:",
            context = in(reg) ptr::from_ref(context),
            body = in(reg) body,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
fn clone3_call<T: Sync>(_: &CloneArgs, _: &T, _: extern "C" fn(&T) -> !) -> i64 {
    -i64::from(libc::ENOSYS)
}

/// Gives the calling process new namespaces (`CLONE_NEW*`).
///
/// # Errors
/// What `unshare(2)` answers.
pub fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: only namespace flags are passed by this crate; no memory is involved.
    check(unsafe { libc::unshare(namespaces) }.into())?;
    Ok(())
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// `MOUNT_ATTR_RDONLY`.
pub const ATTR_RDONLY: u64 = 1;
/// `MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC`.
pub const ATTR_NO_SUID_DEV_EXEC: u64 = 2 | 4 | 8;

/// Sets attributes of a detached or attached mount.
///
/// # Errors
/// What `mount_setattr(2)` answers.
pub fn mount_setattr(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let attr = MountAttr {
        set,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    // SAFETY: the path is a static C string; `attr` outlives the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            ptr::from_ref(&attr),
            size_of::<MountAttr>(),
        )
    };
    check(result)?;
    Ok(())
}

/// Loads a seccomp program into the calling thread.
///
/// # Errors
/// What `seccomp(2)` answers.
pub fn seccomp_load(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fprog = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `fprog` describes `program`, which outlives the call; the kernel copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            ptr::from_ref(&fprog),
        )
    };
    check(result)?;
    Ok(())
}

/// Replaces the program of this process; returns only on failure.
pub fn execve(program: &CStr, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) {
    debug_assert!(argv.last().is_some_and(|last| last.is_null()));
    debug_assert!(envp.last().is_some_and(|last| last.is_null()));
    // SAFETY: callers pass null-terminated arrays of pointers to C strings that outlive the call.
    let _failed = unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
}

/// Ends the process without running anything of it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; no destructor or atexit handler runs.
    unsafe { libc::_exit(code) }
}

/// A program and its arguments, ready to be started again and again.
#[derive(Debug)]
pub struct Program {
    path: CString,
    argv: Vec<CString>,
    envp: Vec<CString>,
}

/// How a process ended, as `wait4(2)` tells it.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Wait status.
    pub status: i32,
    /// User and system time in microseconds, of the process and what it reaped.
    pub cpu_us: u64,
}

impl Ended {
    /// Whether the process exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        libc::WIFEXITED(self.status) && libc::WEXITSTATUS(self.status) == 0
    }
}

impl Program {
    /// Prepares a program by its absolute path.
    ///
    /// # Errors
    /// When a string holds a NUL byte.
    pub fn new(path: &str, args: &[String], env: &[(String, String)]) -> io::Result<Self> {
        let c = |text: &str| CString::new(text).map_err(|_| io::ErrorKind::InvalidInput);
        let mut argv = vec![c(path)?];
        for arg in args {
            argv.push(c(arg)?);
        }
        let mut envp = Vec::new();
        for (key, value) in env {
            envp.push(c(&format!("{key}={value}"))?);
        }
        Ok(Self {
            path: c(path)?,
            argv,
            envp,
        })
    }

    /// Starts the program with standard input from `input` and both outputs to `output`.
    ///
    /// # Errors
    /// What `posix_spawn(3)` answers.
    pub fn spawn(&self, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> io::Result<i32> {
        let list = |strings: &[CString]| -> Vec<*mut libc::c_char> {
            let pointers = strings.iter().map(|text| text.as_ptr().cast_mut());
            pointers.chain([ptr::null_mut()]).collect()
        };
        let argv = list(&self.argv);
        let envp = list(&self.envp);
        let mut actions = Actions::new()?;
        actions.dup2(input, 0)?;
        actions.dup2(output, 1)?;
        actions.dup2(output, 2)?;
        let mut pid = 0;
        // SAFETY: path, argv and envp are null-terminated C strings and arrays that live in
        // `self` and on this frame until the call (vfork inside) returns.
        let code = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.path.as_ptr(),
                &raw const actions.0,
                ptr::null(),
                argv.as_ptr(),
                envp.as_ptr(),
            )
        };
        if code != 0 {
            Err(io::Error::from_raw_os_error(code))
        } else {
            Ok(pid)
        }
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = std::mem::MaybeUninit::uninit();
        // SAFETY: the function initialises what the pointer refers to.
        let code = unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        // SAFETY: initialised by the call above, which succeeded.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn dup2(&mut self, from: BorrowedFd<'_>, to: i32) -> io::Result<()> {
        // SAFETY: `self.0` is initialised; the descriptor is open while it is borrowed.
        let code = unsafe {
            libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from.as_raw_fd(), to)
        };
        if code != 0 {
            Err(io::Error::from_raw_os_error(code))
        } else {
            Ok(())
        }
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed once, here.
        let _ok = unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// Waits for one child.
///
/// # Errors
/// What `wait4(2)` answers.
pub fn wait4(pid: i32) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage: plain integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers refer to live locals.
        let result = unsafe { libc::wait4(pid, &raw mut status, libc::__WALL, &raw mut usage) };
        if result >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let micros = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
            + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    Ok(Ended {
        status,
        cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime),
    })
}

/// Reaps whatever child has ended; the harness is the init of its pid namespace.
#[must_use]
pub fn reap_one() -> bool {
    let mut status = 0;
    // SAFETY: the status pointer refers to a live local.
    unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) > 0 }
}

/// `struct perf_event_attr` up to its first published size (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PerfAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    config1: u64,
}

/// Opens a counter of retired instructions that children inherit and that starts counting when a
/// child executes a program. Machines without a performance unit answer `ENOENT`.
///
/// # Errors
/// What `perf_event_open(2)` answers.
pub fn instruction_counter() -> io::Result<OwnedFd> {
    const DISABLED: u64 = 1;
    const INHERIT: u64 = 1 << 1;
    const ENABLE_ON_EXEC: u64 = 1 << 12;
    const COUNT_HW_INSTRUCTIONS: u64 = 1;
    let attr = PerfAttr {
        size: 64,
        config: COUNT_HW_INSTRUCTIONS,
        flags: DISABLED | INHERIT | ENABLE_ON_EXEC,
        ..PerfAttr::default()
    };
    const FD_CLOEXEC: libc::c_ulong = 8;
    // SAFETY: `attr` is a live struct of the size it names; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            ptr::from_ref(&attr),
            0,
            -1,
            -1,
            FD_CLOEXEC,
        )
    };
    let fd = i32::try_from(check(result)?).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
