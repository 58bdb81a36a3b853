//! The child's steps about mounts and files.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};

use crate::child::Child;
use crate::mount::{MountAttr, NODEV, NOEXEC, NOSUID, RDONLY, set_attr};
use crate::plan::{Create, Dir, FdSlot, Place, Reg, RootSwitch};
use crate::raw::{self, Sys};
use crate::walk::{self, Confine};

/// Type of a file system of terminals (`linux/magic.h`).
const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;

impl Child<'_> {
    fn base(&self, dir: Dir) -> Sys<(BorrowedFd<'_>, Confine)> {
        match dir {
            Dir::Root => Ok((self.root_fd()?, Confine::InRoot)),
            Dir::Reg(reg) => Ok((self.reg(reg)?, Confine::Beneath)),
        }
    }

    fn root_fd(&self) -> Sys<BorrowedFd<'static>> {
        self.fd(self.root.ok_or(Errno::BADF)?)
    }

    /// Opens a place, making what is missing.
    pub(crate) fn ensure(&self, at: &Place) -> Sys<OwnedFd> {
        let (base, confine) = self.base(at.dir)?;
        walk::ensure(base, &at.path, confine, at.create)
    }

    pub(crate) fn enter_root(&mut self, slot: FdSlot, switch: RootSwitch) -> Sys<()> {
        let root = self.fd(slot)?;
        let onto_root = || {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(root, c"", rustix::fs::CWD, c"/", flags)
        };
        match switch {
            RootSwitch::Pivot => {
                make_private()?;
                onto_root()?;
                pivot_to(root)?;
            }
            RootSwitch::Cover => {
                onto_root()?;
                rustix::process::fchdir(root)?;
                rustix::process::chroot(c".")?;
            }
        }
        self.root = Some(slot);
        Ok(())
    }

    pub(crate) fn stage_root(&mut self, slot: FdSlot, at: &CStr) -> Sys<()> {
        make_private()?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(self.fd(slot)?, c"", rustix::fs::CWD, at, flags)?;
        self.root = Some(slot);
        Ok(())
    }

    pub(crate) fn leave_host(&self) -> Sys<()> {
        pivot_to(self.root_fd()?)
    }

    pub(crate) fn new_fs(
        &self,
        fstype: &CStr,
        source: Option<&CStr>,
        options: &[(CString, Option<CString>)],
        attr: u64,
    ) -> Sys<OwnedFd> {
        let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
        if let Some(source) = source {
            fsconfig_set_string(context.as_fd(), c"source", source)?;
        }
        for (key, value) in options {
            match value {
                Some(value) => fsconfig_set_string(context.as_fd(), &**key, &**value)?,
                None => fsconfig_set_flag(context.as_fd(), &**key)?,
            }
        }
        fsconfig_create(context.as_fd())?;
        let attr = MountAttrFlags::from_bits_retain(u32::try_from(attr).unwrap_or(0));
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
    }

    pub(crate) fn attach(&self, mount: BorrowedFd<'_>, at: &Place) -> Sys<()> {
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let Dir::Reg(reg) = at.dir else {
            let target = self.ensure(at)?;
            return attach_to(mount, target.as_fd());
        };
        // A mount of our own making: plain names in it are what they seem.
        let dir = self.reg(reg)?;
        if at.create == Create::Dir {
            match rustix::fs::mkdirat(dir, &*at.path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        move_mount(mount, c"", dir, &*at.path, from)
    }

    /// Attaches a mount that later steps trust to be where it says: not behind a link.
    pub(crate) fn attach_plainly(&self, mount: BorrowedFd<'_>, at: &Place) -> Sys<()> {
        let Dir::Root = at.dir else {
            return self.attach(mount, at);
        };
        let root = self.root_fd()?;
        let target = walk::ensure(root, &at.path, Confine::NoLinks, at.create)?;
        attach_to(mount, target.as_fd())
    }

    /// Gives the root of a new mount the permissions of what it is about to cover.
    pub(crate) fn inherit_mode(&self, mount: BorrowedFd<'_>, at: &Place) -> Sys<()> {
        let (base, confine) = self.base(at.dir)?;
        match walk::open(base, &at.path, confine, OFlags::PATH) {
            Ok(covered) => {
                let mode = Mode::from_raw_mode(fstat(&covered)?.st_mode & 0o7777);
                rustix::fs::chmodat(mount, c".", mode, AtFlags::empty())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    pub(crate) fn set_attr(&self, at: &Place, attr: u64, propagation: u64) -> Sys<()> {
        let target = self.ensure(at)?;
        let attr = MountAttr {
            attr_set: attr,
            propagation,
            ..MountAttr::default()
        };
        set_attr(target.as_fd(), false, &attr).map_err(|error| errno(&error))
    }

    pub(crate) fn symlink(&self, target: &CStr, at: &Place) -> Sys<()> {
        let made = if let Dir::Reg(reg) = at.dir {
            rustix::fs::symlinkat(target, self.reg(reg)?, &*at.path)
        } else {
            let (base, confine) = self.base(at.dir)?;
            let (dir, name) = walk::parent(base, &at.path, confine)?;
            rustix::fs::symlinkat(target, &dir, name)
        };
        match made {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    pub(crate) fn mknod(
        &self,
        at: &Place,
        mode: u32,
        dev: u64,
        owner: Option<(u32, u32)>,
    ) -> Sys<()> {
        let (base, confine) = self.base(at.dir)?;
        if at.path.to_bytes().contains(&b'/') {
            let (dir, name) = walk::parent(base, &at.path, confine)?;
            mknod_in(dir.as_fd(), name, mode, dev, owner)
        } else {
            mknod_in(base, &at.path, mode, dev, owner)
        }
    }

    pub(crate) fn readonly_path(&self, at: &Place) -> Sys<()> {
        let Some(target) = self.existing(at)? else {
            return Ok(());
        };
        let flags = OpenTreeFlags::AT_RECURSIVE;
        let tree = clone_of(target.as_fd(), c"", flags)?;
        let attr = MountAttr {
            attr_set: RDONLY,
            ..MountAttr::default()
        };
        set_attr(tree.as_fd(), true, &attr).map_err(|error| errno(&error))?;
        attach_to(tree.as_fd(), target.as_fd())
    }

    /// Asks what the target is first: a mount that fails costs a grace period of the kernel.
    pub(crate) fn mask_path(&mut self, at: &Place) -> Sys<()> {
        let Some(target) = self.existing(at)? else {
            return Ok(());
        };
        let stat = fstat(&target)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let dir = self.reg(Reg::Null).or_else(|_| self.reg(Reg::Dev))?;
            let null = clone_of(dir, c"null", OpenTreeFlags::empty())?;
            return attach_to(null.as_fd(), target.as_fd());
        }
        if let Some(empty) = &self.empty {
            let tree = clone_of(empty.as_fd(), c"", OpenTreeFlags::empty())?;
            return attach_to(tree.as_fd(), target.as_fd());
        }
        let attr = RDONLY | NOSUID | NODEV | NOEXEC;
        let empty = self.new_fs(c"tmpfs", Some(c"tmpfs"), &[], attr)?;
        attach_to(empty.as_fd(), target.as_fd())?;
        self.empty = Some(empty);
        Ok(())
    }

    fn existing(&self, at: &Place) -> Sys<Option<OwnedFd>> {
        match self.ensure(at) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub(crate) fn write_proc(&self, path: &CStr, value: &[u8]) -> Sys<()> {
        let proc = self.reg(Reg::Proc)?;
        let file = walk::open(proc, path, Confine::Beneath, OFlags::WRONLY)?;
        if rustix::io::write(&file, value)? == value.len() {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }

    pub(crate) fn enter_dir(&self, path: &CStr) -> Sys<()> {
        if self.root.is_none() {
            // No root switch in this plan: the namespace that was joined has set it.
            // It may lead out of it all the same, through one of our own descriptors
            // (CVE-2024-21626).
            rustix::process::chdir(path)?;
            return raw::cwd_is_reachable();
        }
        let root = self.root_fd()?;
        let dir = walk::ensure(root, path, Confine::InRoot, Create::Dir)?;
        rustix::process::fchdir(&dir)?;
        raw::cwd_is_reachable()
    }

    /// Opens the multiplexer of the container's terminals. In a tree that others have touched it
    /// must be what it is called: whoever replaced it would read along (CVE-2025-52565).
    fn open_ptmx(&self) -> Sys<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(pts) = self.reg(Reg::Pts) {
            return rustix::fs::openat(pts, c"ptmx", flags, Mode::empty());
        }
        // Looked at before it is opened: opening a FIFO may wait.
        let anchor = rustix::fs::openat(
            rustix::fs::CWD,
            c"/dev/pts",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if rustix::fs::fstatfs(&anchor)?.f_type != DEVPTS_SUPER_MAGIC {
            return Err(Errno::NODEV);
        }
        rustix::fs::openat(&anchor, c"ptmx", flags, Mode::empty())
    }

    pub(crate) fn console(
        &mut self,
        socket: BorrowedFd<'_>,
        rows: u16,
        cols: u16,
        uid: u32,
    ) -> Sys<()> {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
        let main = self.open_ptmx()?;
        unlockpt(&main)?;
        let peer_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&main, peer_flags)?;
        if rows != 0 || cols != 0 {
            let size = rustix::termios::Winsize {
                ws_row: rows,
                ws_col: cols,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(&peer, size)?;
        }
        if uid != 0 {
            rustix::fs::fchown(&peer, Some(Uid::from_raw(uid)), None)?;
        }
        // A child that joins a container leaves its console alone.
        if let Ok(dev) = self.reg(Reg::Dev) {
            mknod_in(dev, c"console", 0o100_600, 0, None)?;
            let tree = clone_of(peer.as_fd(), c"", OpenTreeFlags::empty())?;
            let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&tree, c"", dev, c"console", from)?;
        }
        crate::channel::send_one(socket, main.as_fd())?;
        rustix::process::ioctl_tiocsctty(&peer)?;
        self.make_room(3)?;
        let peer = raw::dup_above(std::os::fd::AsRawFd::as_raw_fd(&peer), 3)?;
        (0..3).try_for_each(|number| raw::dup_to(peer, number))
    }
}

fn make_private() -> Sys<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private)
}

fn pivot_to(root: BorrowedFd<'_>) -> Sys<()> {
    rustix::process::fchdir(root)?;
    // The old root ends up on top of the new one, where "." finds it.
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn clone_of(dir: BorrowedFd<'_>, path: &CStr, more: OpenTreeFlags) -> Sys<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(dir, path, flags | more)
}

fn attach_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Sys<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    match move_mount(mount, c"", target, c"", flags) {
        // The kernel's answer to a file over a directory or the reverse, said more clearly.
        Err(Errno::INVAL) if is_dir(mount)? != is_dir(target)? => Err(Errno::NOTDIR),
        result => result,
    }
}

fn is_dir(fd: BorrowedFd<'_>) -> Sys<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

fn mknod_in(
    dir: BorrowedFd<'_>,
    name: &CStr,
    mode: u32,
    dev: u64,
    owner: Option<(u32, u32)>,
) -> Sys<()> {
    let kind = FileType::from_raw_mode(mode);
    match rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), dev) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == dev;
            return if same { Ok(()) } else { Err(Errno::EXIST) };
        }
        Err(errno) => return Err(errno),
    }
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
