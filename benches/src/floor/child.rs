//! What the container's first process does between clone3 and exec. It shares its parent's memory
//! and runs beside it: no heap, no locks, no std output; only system calls and its own stack.

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::sock_filter;
use rustix::fs::{CWD, Dev, FileType, Mode, OFlags, makedev, mkdir, mknodat, open, stat, symlink};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, move_mount, open_tree,
};
use rustix::process::{chroot, fchdir, umask};
use rustix::system::sethostname;
use rustix::thread::{
    CapabilitySet, CapabilitySets, futex, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::netlink::{Addresses, Socket};
use super::place::Network;
use super::stages::{Mark, Marks};
use crate::kernel::{ATTR_RDONLY, execve, exit_now, mount_setattr};

/// Docker's default capabilities.
const KEPT_CAPABILITIES: u64 = 0xa804_25fb;
const LAST_CAPABILITY: u32 = 40;

const READ_ONLY: [&CStr; 5] = [
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/irq",
    c"/proc/sys",
    c"/proc/sysrq-trigger",
];
const MASKED: [&CStr; 10] = [
    c"/proc/asound",
    c"/proc/acpi",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/timer_list",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/sys/firmware",
    c"/sys/devices/virtual/powercap",
];
const DEVICES: [(&CStr, u32, u32); 6] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];
const LINKS: [(&CStr, &CStr); 6] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
    (c"pts/ptmx", c"/dev/ptmx"),
    (c"/proc/kcore", c"/dev/core"),
];

/// Everything the child reads.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) marks: &'a Marks,
    pub(super) root: BorrowedFd<'a>,
    pub(super) cgroup_view: Option<BorrowedFd<'a>>,
    pub(super) network: Network,
    /// 0 until the parent has made the veth pair, then 1.
    pub(super) link_ready: AtomicU32,
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) host_name: &'a str,
    pub(super) filter: &'a [sock_filter],
    pub(super) program: &'a CStr,
}

/// The child: prepares and executes, or says which step failed and ends.
pub(super) extern "C" fn run(context: &Context<'_>) -> ! {
    let step = match prepare(context) {
        Ok(()) => {
            let argv = [context.program.as_ptr(), ptr::null()];
            let envp = [c"PATH=/bin".as_ptr(), ptr::null()];
            execve(context.program, &argv, &envp);
            "exec"
        }
        Err((step, _)) => step,
    };
    for part in ["floor: failed in the child: ", step, "\n"] {
        let _unheard = rustix::io::write(rustix::stdio::stderr(), part.as_bytes());
    }
    exit_now(127)
}

type Step = Result<(), (&'static str, io::Error)>;

fn prepare(context: &Context<'_>) -> Step {
    let at = |step: &'static str| move |error: io::Error| (step, error);
    let marks = context.marks;
    marks.set(Mark::ChildRuns);
    // The base namespace's root is an empty read-only directory: kept for masks.
    let empty = open(c"/empty", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let empty = empty.map_err(|error| ("empty directory", error.into()))?;
    switch_root(context.root).map_err(at("root switch"))?;
    marks.set(Mark::ChildRoot);
    mount_kernel_views(context.cgroup_view).map_err(at("proc and sysfs"))?;
    marks.set(Mark::ChildProc);
    make_dev().map_err(at("dev"))?;
    marks.set(Mark::ChildDev);
    make_read_only().map_err(at("read-only paths"))?;
    mask(std::os::fd::AsFd::as_fd(&empty)).map_err(at("masked paths"))?;
    marks.set(Mark::ChildMasked);
    if context.network != Network::Host {
        configure_network(context).map_err(at("network"))?;
    }
    marks.set(Mark::ChildNet);
    secure(context).map_err(at("capabilities and seccomp"))?;
    marks.set(Mark::ChildSecured);
    Ok(())
}

fn switch_root(root: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(
        root,
        c"",
        CWD,
        c"/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    fchdir(root)?;
    Ok(chroot(c".")?)
}

fn mount_kernel_views(cgroup: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"proc", c"/proc", c"proc", quiet, None)?;
    mount(
        c"sysfs",
        c"/sys",
        c"sysfs",
        quiet | MountFlags::RDONLY,
        None,
    )?;
    if let Some(view) = cgroup {
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(view, c"", CWD, c"/sys/fs/cgroup", from)?;
    }
    Ok(())
}

fn make_dev() -> io::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let device = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(
        c"tmpfs",
        c"/dev",
        c"tmpfs",
        MountFlags::NOSUID,
        Some(c"mode=755,size=65536k"),
    )?;
    umask(Mode::empty());
    let all = Mode::from_raw_mode(0o666);
    for (path, major, minor) in DEVICES {
        let number: Dev = makedev(major, minor);
        mknodat(CWD, path, FileType::CharacterDevice, all, number)?;
    }
    for (to, path) in LINKS {
        symlink(to, path)?;
    }
    for path in [c"/dev/pts", c"/dev/shm", c"/dev/mqueue"] {
        mkdir(path, Mode::from_raw_mode(0o755))?;
    }
    let pts = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount(c"devpts", c"/dev/pts", c"devpts", device, Some(pts))?;
    mount(
        c"tmpfs",
        c"/dev/shm",
        c"tmpfs",
        quiet,
        Some(c"mode=1777,size=65536k"),
    )?;
    Ok(mount(c"mqueue", c"/dev/mqueue", c"mqueue", quiet, None)?)
}

fn clone_of(dir: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(dir, path, flags)
}

fn make_read_only() -> io::Result<()> {
    for path in READ_ONLY {
        let Ok(tree) = clone_of(CWD, path) else {
            continue;
        };
        mount_setattr(std::os::fd::AsFd::as_fd(&tree), ATTR_RDONLY)?;
        move_mount(
            &tree,
            c"",
            CWD,
            path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
    }
    Ok(())
}

/// Asks for each path's type first: a bind mount that fails costs an RCU grace period.
fn mask(empty: BorrowedFd<'_>) -> io::Result<()> {
    for path in MASKED {
        let Ok(found) = stat(path) else { continue };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            let tree = clone_of(empty, c"")?;
            move_mount(
                &tree,
                c"",
                CWD,
                path,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )?;
        } else {
            mount_bind(c"/dev/null", path)?;
        }
    }
    Ok(())
}

fn configure_network(context: &Context<'_>) -> io::Result<()> {
    let socket = Socket::open()?;
    socket.loopback_up()?;
    if context.network == Network::Bridge {
        while context.link_ready.load(Ordering::Acquire) == 0 {
            let _woken = futex::wait(&context.link_ready, futex::Flags::PRIVATE, 0, None);
        }
        let v4 = |v4| Addresses { v4, v6: None };
        socket.configure(v4(context.address), v4(context.gateway))?;
    }
    Ok(())
}

fn secure(context: &Context<'_>) -> io::Result<()> {
    sethostname(context.host_name.as_bytes())?;
    for number in 0..=LAST_CAPABILITY {
        let one = 1_u64 << number;
        if KEPT_CAPABILITIES & one == 0 {
            remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(one))?;
        }
    }
    let kept = CapabilitySet::from_bits_retain(KEPT_CAPABILITIES);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_no_new_privs(true)?;
    set_capabilities(None, sets)?;
    crate::kernel::seccomp_load(context.filter)
}
