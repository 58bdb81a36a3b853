//! Programs of our own, started by descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::launch::Launched;
use crate::mount::{MountAttr, RDONLY, set_attr};
use crate::raw::{self, CArray, CloneArgs, Sys};

/// A program to start, and what it gets.
#[derive(Debug, Clone, Copy)]
pub struct Spawn<'a> {
    /// The program.
    pub program: BorrowedFd<'a>,
    /// Arguments, from `argv[0]` on.
    pub args: &'a [CString],
    /// Environment.
    pub env: &'a [CString],
    /// Descriptors and the numbers they get. Everything else above 2 is closed; 0, 1 and 2 are
    /// inherited unless named here.
    pub fds: &'a [(BorrowedFd<'a>, i32)],
    /// cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// v1 `tasks` files to move through, open for writing.
    pub cgroup_tasks: &'a [BorrowedFd<'a>],
}

/// Starts a program without copying the caller: a child that shares its memory until the
/// `execveat`, in a session of its own, at `/`, with umask 022 and default signals.
///
/// The caller is its parent and must reap it, or end.
///
/// # Errors
/// The kernel's answer to the first call that failed, in the caller or in the child.
pub fn spawn_self(spawn: &Spawn<'_>) -> io::Result<Launched> {
    let (argv, envp) = (CArray::new(spawn.args), CArray::new(spawn.env));
    let mut fds: Vec<_> = spawn
        .fds
        .iter()
        .map(|(fd, number)| (fd.as_raw_fd(), *number))
        .collect();
    let mut tasks: Vec<_> = spawn.cgroup_tasks.iter().map(AsRawFd::as_raw_fd).collect();
    let mut child = SpawnChild {
        program: spawn.program.as_raw_fd(),
        argv: &argv,
        envp: &envp,
        fds: &mut fds,
        tasks: &mut tasks,
        errno: 0,
    };
    let launched = clone_vfork(&mut child, spawn.cgroup)?;
    if child.errno == 0 {
        return Ok(launched);
    }
    crate::pidfd::wait(launched.pidfd.as_fd(), crate::pidfd::Wait::Block)?;
    Err(io::Error::from_raw_os_error(child.errno))
}

/// What the child works with; lives in the parent, which is suspended meanwhile.
struct SpawnChild<'a> {
    program: i32,
    argv: &'a CArray<'a>,
    envp: &'a CArray<'a>,
    fds: &'a mut [(i32, i32)],
    tasks: &'a mut [i32],
    errno: i32,
}

impl SpawnChild<'_> {
    fn run(&mut self) -> Sys<()> {
        for tasks in &mut *self.tasks {
            // SAFETY: the caller of `spawn_self` keeps it open.
            rustix::io::write(unsafe { raw::borrow(*tasks) }, b"0")?;
        }
        let _ = rustix::process::setsid();
        rustix::process::umask(Mode::from_raw_mode(0o022));
        rustix::process::chdir(c"/")?;
        raw::default_signals();
        raw::cloexec_from(3)?;
        let floor = self
            .fds
            .iter()
            .map(|(_, number)| *number)
            .max()
            .unwrap_or(2)
            .max(2)
            + 1;
        for (fd, _) in self.fds.iter_mut().filter(|(fd, _)| *fd < floor) {
            *fd = raw::dup_above(*fd, floor)?;
        }
        if self.program < floor {
            self.program = raw::dup_above(self.program, floor)?;
        }
        for (fd, number) in &*self.fds {
            raw::dup_to(*fd, *number)?;
        }
        Err(raw::execveat(self.program, self.argv, self.envp))
    }
}

extern "C" fn spawn_child(child: *mut SpawnChild<'_>) -> ! {
    // SAFETY: `clone_vfork` passes a pointer to a live value that nobody else uses while the
    // parent is suspended.
    let child = unsafe { &mut *child };
    if let Err(errno) = child.run() {
        child.errno = errno.raw_os_error();
    }
    raw::exit_now(127)
}

fn clone_vfork(child: &mut SpawnChild<'_>, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Launched> {
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    /// Room for the child's few frames.
    const STACK: usize = 32 * 1024;
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    let mut pidfd: i32 = -1;
    let plain = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let mut args = CloneArgs {
        flags: plain as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the child has a stack of its own and runs `spawn_child`, which makes system calls
    // on prepared data and never returns; the parent sleeps until it has executed or ended, so
    // stack, arguments and `child` outlive it. CLEAR_SIGHAND keeps our handlers out of it.
    let result = unsafe { clone3_call(&args, spawn_child, child) };
    let pid = i32::try_from(result).unwrap_or(-1);
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(-pid));
    }
    // SAFETY: the kernel has just put a new descriptor there, which nobody else knows.
    let pidfd = unsafe { raw::own(pidfd) };
    Ok(Launched { pid, pidfd })
}

/// `clone3` whose child calls `entry(arg)` on its own stack.
///
/// # Safety
/// `args` must give a stack, aligned to 16 bytes, and CLONE_VFORK; `entry` must not return.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_call(
    args: &CloneArgs,
    entry: extern "C" fn(*mut SpawnChild<'_>) -> !,
    arg: *mut SpawnChild<'_>,
) -> isize {
    let result: isize;
    // SAFETY: see the caller's promise; the parent's side changes what a system call changes.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") arg,
            in("r13") entry as usize,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// `clone3` whose child calls `entry(arg)` on its own stack.
///
/// # Safety
/// `args` must give a stack, aligned to 16 bytes, and CLONE_VFORK; `entry` must not return.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_call(
    args: &CloneArgs,
    entry: extern "C" fn(*mut SpawnChild<'_>) -> !,
    arg: *mut SpawnChild<'_>,
) -> isize {
    let result: isize;
    // SAFETY: see the caller's promise; the parent's side changes what a system call changes.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x9",
            "blr x10",
            "brk #1",
            "2:",
            inlateout("x0") std::ptr::from_ref(args) => result,
            in("x1") size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3,
            in("x9") arg,
            in("x10") entry as usize,
        );
    }
    result
}

/// Says whether this program's own file cannot be written through `/proc/self/exe`: it was started
/// through a read-only mount, or is a sealed copy.
///
/// # Errors
/// When it cannot be looked at.
pub fn self_exe_is_readonly() -> io::Result<bool> {
    let here = open(SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mounted = rustix::fs::fstatvfs(&here)?.f_flag;
    if mounted.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let program = open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(is_sealed(&program))
}

/// Says whether the caller is not root and the running program's file is another's: nobody who has
/// only the caller's rights can write to it.
///
/// # Errors
/// When `/proc` cannot be used.
pub fn self_exe_is_anothers() -> io::Result<bool> {
    if crate::userns::is_root() {
        return Ok(false);
    }
    let user = rustix::process::geteuid();
    let owner = rustix::fs::stat(SELF)?.st_uid;
    let writable = rustix::fs::accessat(
        CWD,
        SELF,
        rustix::fs::Access::WRITE_OK,
        rustix::fs::AtFlags::EACCESS,
    );
    Ok(owner != user.as_raw() && writable.is_err())
}

/// This program's own file, whatever its name is by now.
const SELF: &std::ffi::CStr = c"/proc/self/exe";
/// What makes a memfd constant.
const ALL_SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

fn is_sealed(program: &OwnedFd) -> bool {
    rustix::fs::fcntl_get_seals(program).is_ok_and(|seals| seals.contains(ALL_SEALS))
}

/// Opens the running program so that nothing which comes by the descriptor, or finds it as
/// `/proc/<pid>/exe`, can ever write to it (CVE-2019-5736): through a detached read-only mount,
/// or as a sealed copy where mounts are out of reach.
///
/// # Errors
/// When the program cannot be read.
pub fn self_exe_readonly() -> io::Result<OwnedFd> {
    let here = open(SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // A program that was started through such a mount, or from a read-only file system.
    let mounted = rustix::fs::fstatvfs(&here)?.f_flag;
    if mounted.contains(StatVfsMountFlags::RDONLY) {
        return Ok(here);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let cloned = open_tree(CWD, SELF, flags)
        .map_err(io::Error::from)
        .and_then(|tree| {
            let private = libc::MS_PRIVATE;
            let attr = MountAttr {
                attr_set: RDONLY,
                propagation: private,
                ..MountAttr::default()
            };
            set_attr(tree.as_fd(), false, &attr).map(|()| tree)
        });
    match cloned {
        Ok(tree) => Ok(tree),
        Err(_) => sealed_copy(),
    }
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let program = open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if is_sealed(&program) {
        return Ok(program);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create(c"amphora", flags | MemfdFlags::EXEC) {
        // Before kernel 6.3 there is no such flag, and every memfd may be executed.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"amphora", flags)?,
        result => result?,
    };
    let (mut from, mut to) = (std::fs::File::from(program), std::fs::File::from(copy));
    io::copy(&mut from, &mut to)?;
    rustix::fs::fcntl_add_seals(&to, ALL_SEALS)?;
    Ok(to.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::pidfd::{Exit, Wait, wait};

    fn busybox() -> OwnedFd {
        open(
            c"/bin/busybox",
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap()
    }

    fn args(list: &[&str]) -> Vec<CString> {
        list.iter().map(|arg| CString::new(*arg).unwrap()).collect()
    }

    #[test]
    fn spawn_passes_descriptors_arguments_and_environment_and_nothing_else() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let leaked = rustix::io::dup(&write).unwrap();
        let script = "ls /proc/self/fd | tr '\\n' ' '; echo $A $(umask) $PWD >&5; echo done >&5";
        let (args, env) = (args(&["sh", "-c", script]), args(&["A=b c"]));
        let fds = [(write.as_fd(), 5), (write.as_fd(), 1)];
        let spawned = spawn_self(&Spawn {
            program: busybox().as_fd(),
            args: &args,
            env: &env,
            fds: &fds,
            cgroup: None,
            cgroup_tasks: &[],
        })
        .unwrap();
        drop((write, leaked));
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(
            wait(spawned.pidfd.as_fd(), Wait::Block).unwrap(),
            Some(Exit::Code(0))
        );
        // 3 is the directory that ls reads.
        assert_eq!(text, "0 1 2 3 5 b c 0022 /\ndone\n");
    }

    #[test]
    fn spawn_reports_what_failed_in_the_child_and_leaves_no_zombie() {
        let file = std::fs::File::open("/proc/version").unwrap();
        let error = spawn_self(&Spawn {
            program: file.as_fd(),
            args: &[],
            env: &[],
            fds: &[],
            cgroup: None,
            cgroup_tasks: &[],
        })
        .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn own_program_cannot_be_opened_for_writing() {
        use rustix::process::WaitOptions;
        let exe = self_exe_readonly().unwrap();
        let path = format!("/proc/self/fd/{}", exe.as_raw_fd());
        let error = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        let args = args(&["self", "--list"]);
        let null = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .unwrap();
        let spawned = spawn_self(&Spawn {
            program: exe.as_fd(),
            args: &args,
            env: &[],
            fds: &[(null.as_fd(), 1)],
            cgroup: None,
            cgroup_tasks: &[],
        })
        .unwrap();
        assert_eq!(
            wait(spawned.pidfd.as_fd(), Wait::Block).unwrap(),
            Some(Exit::Code(0))
        );
        let pid = rustix::process::Pid::from_raw(spawned.pid);
        assert!(rustix::process::waitpid(pid, WaitOptions::NOHANG).is_err());
    }

    #[test]
    fn sealed_copy_is_the_program_and_stays_so() {
        let copy = sealed_copy().unwrap();
        let own = std::fs::metadata("/proc/self/exe").unwrap().len();
        assert_eq!(
            rustix::fs::fstat(&copy).unwrap().st_size.cast_unsigned(),
            own
        );
        assert_eq!(rustix::io::write(&copy, b"x"), Err(Errno::PERM));
    }
}
