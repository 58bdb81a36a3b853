//! The child's steps about namespaces of users and time, and what is done otherwise in them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::child::{Child, hide, set_ns, set_two_ids};
use crate::mount::{MountAttr, set_attr};
use crate::plan::{FdSlot, Op, Place, Reg, TreeChanges};
use crate::raw::{self, Sys};

/// Has the number of a signal to the old `clone`, but not to `unshare`.
const CLONE_NEWTIME: u64 = 0x80;

impl<'a> Child<'a> {
    pub(crate) fn namespace_step(&mut self, op: &'a Op) -> Sys<()> {
        match op {
            Op::Join { user, others } => self.join(*user, others),
            Op::Hide => self.hide(),
            Op::NewTime { offsets } => self.new_time(offsets),
            Op::RaiseLimits => self.raise_limits(),
            Op::EnterIds {
                uid,
                gid,
                drop_groups,
            } => {
                if *drop_groups {
                    raw::set_groups(&[])?;
                }
                let set = set_two_ids(*uid, *gid);
                hide();
                set
            }
            Op::IdsOnly { uid, gid } => set_two_ids(*uid, *gid),
            Op::CloneTree {
                source,
                path,
                recursive,
                changes,
            } => self.clone_tree(*source, path, *recursive, changes),
            Op::AttachFs { mount, at, keep } => self.attach_fs(*mount, at.as_ref(), *keep),
            Op::Show => {
                use rustix::process::{DumpableBehavior, set_dumpable_behavior};
                set_dumpable_behavior(DumpableBehavior::Dumpable)
            }
            _ => self.property_step(op),
        }
    }

    fn join(&self, user: Option<FdSlot>, others: &[(FdSlot, i32)]) -> Sys<()> {
        let Some(user) = user else {
            return others
                .iter()
                .try_for_each(|(slot, kind)| set_ns(self.fd(*slot)?, *kind));
        };
        // Those that belong to nobody in the user namespace, as long as we have the rights of who
        // called us; the others with those of the namespace.
        let mut later = 0u32;
        for (bit, (slot, kind)) in (0..u32::BITS).zip(others) {
            match set_ns(self.fd(*slot)?, *kind) {
                Err(Errno::PERM) => later |= 1 << bit,
                result => result?,
            }
        }
        set_ns(self.fd(user)?, libc::CLONE_NEWUSER)?;
        // Other rights are a reason for the kernel to forget it, by the setting `fs.suid_dumpable`.
        hide();
        (0..u32::BITS)
            .zip(others)
            .filter(|(bit, _)| later & (1 << bit) != 0)
            .try_for_each(|(_, (slot, kind))| set_ns(self.fd(*slot)?, *kind))
    }

    /// Opened before: who is hidden has no files of its own in `/proc` any more, unless it is root.
    fn hide(&mut self) -> Sys<()> {
        if self
            .plan
            .lead
            .iter()
            .any(|op| matches!(op, Op::NewTime { .. }))
        {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let path = c"/proc/self/timens_offsets";
            self.offsets = Some(openat(CWD, path, flags, Mode::empty())?);
        }
        hide();
        Ok(())
    }

    fn new_time(&mut self, offsets: &[u8]) -> Sys<()> {
        raw::unshare(CLONE_NEWTIME)?;
        let file = self.offsets.take().ok_or(Errno::BADF)?;
        if offsets.is_empty() || rustix::io::write(&file, offsets)? == offsets.len() {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }

    fn raise_limits(&mut self) -> Sys<()> {
        for op in &self.plan.ops {
            if let Op::Rlimit { resource, hard, .. } = op {
                let (soft, now) = raw::get_rlimit(0, *resource)?;
                if now < *hard {
                    raw::set_rlimit(*resource, soft, *hard)?;
                }
            }
        }
        Ok(())
    }

    fn clone_tree(
        &mut self,
        source: FdSlot,
        path: &CStr,
        recursive: bool,
        changes: &TreeChanges,
    ) -> Sys<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = openat(CWD, path, flags, Mode::empty())?;
        let (now, then) = (fstat(&found)?, fstat(self.fd(source)?)?);
        if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino) {
            return Err(Errno::STALE);
        }
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(&found, c"", flags)?;
        let change = |recursive, (attr_set, attr_clr), propagation| {
            let attr = MountAttr {
                attr_set,
                attr_clr,
                propagation,
                ..MountAttr::default()
            };
            change_tree(tree.as_fd(), recursive, &attr)
        };
        change(false, changes.top, 0)?;
        change(true, changes.all, changes.propagation)?;
        self.replace_fd(source, tree)
    }

    fn attach_fs(&mut self, mount: FdSlot, at: Option<&Place>, keep: Reg) -> Sys<()> {
        let mount = self.fd(mount)?;
        if let Some(at) = at {
            self.attach_plainly(mount, at)?;
        }
        let kept = mount
            .try_clone_to_owned()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::BADF))?;
        if let Some(slot) = self.regs.get_mut(keep as usize) {
            *slot = Some(kept);
        }
        Ok(())
    }
}

fn change_tree(tree: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Sys<()> {
    if attr.attr_set | attr.attr_clr | attr.propagation == 0 {
        return Ok(());
    }
    set_attr(tree, recursive, attr)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
