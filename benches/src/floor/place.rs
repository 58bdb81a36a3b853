//! The parent's half: what is made once (base namespace, bridge, seccomp program) and what is made
//! and removed for each start.

use std::ffi::{CStr, CString};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use libc::sock_filter;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, open, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_change, mount_remount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{LinkNameSpaceType, futex, move_into_link_name_space};

use super::child::{self, Context};
use super::filter;
use super::netlink::{Namespace, Socket};
use super::stages::{Mark, Marks, Times};
use crate::kernel::{
    ATTR_NO_SUID_DEV_EXEC, ATTR_RDONLY, Stack, clone_vm, mount_setattr, unshare, wait4,
};

const BRIDGE: &str = "amfloor0";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 123, 0, 1);

/// Which network the container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// Its own namespace with only a loopback.
    Loopback,
    /// Its own namespace with a veth pair on a bridge, address and route.
    Bridge,
}

/// How the floor is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Network of each container.
    pub network: Network,
    /// Read-only lower directories, topmost first; together they hold `program` and the mount
    /// points.
    pub lowers: Vec<PathBuf>,
    /// Directory for upper and work directories, on the file system that is compared.
    pub store: PathBuf,
    /// A cgroup v2 directory for the containers' cgroups; none: no cgroups are made.
    pub cgroup: Option<PathBuf>,
    /// What is executed, absolute inside `rootfs`.
    pub program: String,
    /// Mount the overlay without the sync at its end.
    pub volatile: bool,
}

/// What all starts share.
#[derive(Debug)]
pub struct Floor {
    options: Options,
    program: CString,
    filter: Vec<sock_filter>,
    base: OwnedFd,
    host: OwnedFd,
    route: Socket,
    bridge: u32,
    stack: Box<Stack>,
    marks: Box<Marks>,
    count: u32,
}

impl Floor {
    /// Makes the base namespace and, with [`Network::Bridge`], the bridge. The calling process
    /// must be single-threaded.
    ///
    /// # Errors
    /// When the kernel refuses a step; root is needed.
    pub fn new(options: Options) -> Result<Self> {
        std::fs::create_dir_all(&options.store)
            .with_context(|| format!("failed to make {:?}", options.store))?;
        let host = open(
            c"/proc/self/ns/mnt",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let base = base_namespace(&host).context("failed to make the base namespace")?;
        let route = Socket::open()?;
        let bridge = match options.network {
            Network::Bridge => route
                .add_bridge(BRIDGE, GATEWAY)
                .context("failed to make the bridge")?,
            Network::Host | Network::Loopback => 0,
        };
        Ok(Self {
            program: CString::new(options.program.as_str())?,
            filter: filter::program(),
            options,
            base,
            host,
            route,
            bridge,
            stack: Stack::new(),
            marks: Box::default(),
            count: 0,
        })
    }

    /// Starts one container, waits for its end and cleans up.
    ///
    /// # Errors
    /// When a step fails or the program does not exit with 0.
    pub fn start(&mut self) -> Result<Times> {
        self.count += 1;
        let name = format!("floor-{}-{}", std::process::id(), self.count);
        self.marks.clear();
        self.marks.set(Mark::Begin);
        let cgroup = match &self.options.cgroup {
            Some(parent) => Some(Cgroup::new(&parent.join(&name))?),
            None => None,
        };
        self.marks.set(Mark::Cgroup);
        let upper = Upper::new(&self.options.store.join(&name))?;
        let root = upper.overlay(&self.options.lowers, self.options.volatile)?;
        self.marks.set(Mark::Overlay);
        let status = self.launch(&name, &root, cgroup.as_ref())?;
        self.marks.set(Mark::Reaped);
        drop(root);
        let cgroup = cgroup.map(|cgroup| cgroup.path);
        self.marks.set(Mark::Closed);
        if let Some(path) = cgroup {
            std::fs::remove_dir(&path).with_context(|| format!("failed to remove {path:?}"))?;
        }
        self.marks.set(Mark::CgroupGone);
        upper.remove(self.options.volatile)?;
        self.marks.set(Mark::DirsGone);
        ensure!(
            status == 0,
            "the container ended with wait status {status:#x}"
        );
        Ok(self.marks.times())
    }

    fn launch(&mut self, name: &str, root: &OwnedFd, cgroup: Option<&Cgroup>) -> Result<i32> {
        let [_, _, high, low] = (self.count % 60_000 + 2).to_be_bytes();
        let context = Context {
            marks: &self.marks,
            root: root.as_fd(),
            cgroup_view: cgroup.map(|cgroup| cgroup.view.as_fd()),
            network: self.options.network,
            link_ready: AtomicU32::new(0),
            address: Ipv4Addr::new(10, 123, high, low),
            gateway: GATEWAY,
            host_name: name,
            filter: &self.filter,
            program: &self.program,
        };
        let mut namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        if self.options.network != Network::Host {
            namespaces |= libc::CLONE_NEWNET;
        }
        let mount_namespace = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(self.base.as_fd(), mount_namespace)?;
        let into = cgroup.map(|cgroup| cgroup.dir.as_fd());
        let cloned = clone_vm(namespaces, into, &mut self.stack, &context, child::run);
        context.marks.set(Mark::Cloned);
        let back = move_into_link_name_space(self.host.as_fd(), mount_namespace);
        let (pid, _pidfd) = cloned.context("clone3")?;
        let mut linked = Ok(());
        if self.options.network == Network::Bridge {
            let [_, _, h, l] = self.count.to_be_bytes();
            linked = self.route.add_veth(
                &format!("amfl{h:02x}{l:02x}"),
                self.bridge,
                Namespace::OfProcess(pid),
            );
            context.marks.set(Mark::LinkMade);
            context.link_ready.store(1, Ordering::Release);
            let _one_or_none = futex::wake(&context.link_ready, futex::Flags::PRIVATE, 1);
        }
        // Nothing returns between clone and reap: the child reads this frame.
        let Ok(ended) = wait4(pid) else {
            std::process::abort()
        };
        back?;
        linked.context("failed to make the veth pair")?;
        Ok(ended.status)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        if self.bridge != 0 {
            let _gone_with_the_namespace = self.route.remove_link(BRIDGE);
        }
    }
}

/// An empty mount namespace: one read-only tmpfs with a directory `empty`. Cloning it copies one
/// mount, however many the host has.
fn base_namespace(host: &OwnedFd) -> Result<OwnedFd> {
    let own = open(
        c"/proc/self/ns",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    unshare(libc::CLONE_NEWNS)?;
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let options = c"size=64k,mode=755";
    mount(
        c"tmpfs",
        c"/tmp",
        c"tmpfs",
        MountFlags::empty(),
        Some(options),
    )?;
    chdir(c"/tmp")?;
    mkdirat(CWD, c"empty", Mode::from_raw_mode(0o755))?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")?;
    mount_remount(c"/", MountFlags::BIND | MountFlags::RDONLY, c"")?;
    let base = openat(
        &own,
        c"mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(base)
}

#[derive(Debug)]
struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
    /// A detached read-only clone: the container's own view.
    view: OwnedFd,
}

impl Cgroup {
    fn new(path: &Path) -> Result<Self> {
        let what = || format!("failed to make cgroup {path:?}");
        mkdirat(CWD, path, Mode::from_raw_mode(0o755)).with_context(what)?;
        let dir = open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(what)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let view = open_tree(&dir, c"", flags).with_context(what)?;
        mount_setattr(view.as_fd(), ATTR_RDONLY | ATTR_NO_SUID_DEV_EXEC).with_context(what)?;
        Ok(Self {
            path: path.to_path_buf(),
            dir,
            view,
        })
    }
}

/// The writable directories of one container.
#[derive(Debug)]
struct Upper {
    path: PathBuf,
    dir: OwnedFd,
}

impl Upper {
    fn new(path: &Path) -> Result<Self> {
        let what = || format!("failed to make {path:?}");
        mkdirat(CWD, path, Mode::from_raw_mode(0o700)).with_context(what)?;
        let dir = open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(what)?;
        mkdirat(&dir, c"u", Mode::from_raw_mode(0o755)).with_context(what)?;
        mkdirat(&dir, c"w", Mode::from_raw_mode(0o700)).with_context(what)?;
        Ok(Self {
            path: path.to_path_buf(),
            dir,
        })
    }

    fn overlay(&self, lowers: &[PathBuf], volatile: bool) -> Result<OwnedFd> {
        let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key, value: &Path| fsconfig_set_string(context.as_fd(), key, value);
        for lower in lowers {
            set(c"lowerdir+", lower)?;
        }
        set(c"upperdir", &self.path.join("u"))?;
        set(c"workdir", &self.path.join("w"))?;
        if volatile {
            fsconfig_set_flag(context.as_fd(), c"volatile")?;
        }
        fsconfig_create(context.as_fd()).context("failed to mount the overlay")?;
        let none = MountAttrFlags::empty();
        Ok(fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            none,
        )?)
    }

    fn remove(self, volatile: bool) -> Result<()> {
        const MARK: [&CStr; 2] = [c"w/work/incompat/volatile", c"w/work/incompat"];
        if volatile {
            unlinkat(
                &self.dir,
                c"w/work/incompat/volatile/dirty",
                AtFlags::empty(),
            )
            .with_context(|| format!("failed to clean {:?}", self.path))?;
        }
        let mark = MARK.into_iter().filter(|_| volatile);
        for path in mark.chain([c"u", c"w/work", c"w"]) {
            match unlinkat(&self.dir, path, AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => bail!("failed to remove {path:?} in {:?}: {error}", self.path),
            }
        }
        unlinkat(CWD, &self.path, AtFlags::REMOVEDIR)
            .with_context(|| format!("failed to remove {:?}", self.path))
    }
}
