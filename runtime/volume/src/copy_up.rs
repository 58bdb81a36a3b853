//! Fills a new volume from the image.
//!
//! The copy is made in `staging`, which becomes `ready` by one rename: from there it is only
//! moved, entry by entry, into `_data` (whose inode must stay, it may be mounted already). A
//! killed copy leaves `staging`, which is thrown away; a killed move is finished by whoever uses
//! the volume next.
//!
//! Both lie beside `_data`. Where only a folder of the volume is filled, or the volume is a file
//! system of its own, they lie in what is filled, under names of their own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use amphora_sys::copy::{Copier, attributes};
use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat_with,
    statat,
};
use rustix::io::Errno;

use crate::error::{Result, file};
use crate::mounts::{directory_in, own_directory};
use crate::volumes::{Volumes, lock};

/// What [`Volumes::copy_up`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyUp {
    /// The image's directory was copied: so many entries.
    Copied {
        /// Files, directories and links.
        entries: u64,
    },
    /// The volume has content.
    NotEmpty,
    /// The image has no such directory.
    NothingThere,
}

/// Where a copy is made, and where it goes.
struct Fill {
    /// Holds `staging` and `ready`.
    parent: OwnedFd,
    staging: &'static str,
    ready: &'static str,
    /// Becomes the copy.
    target: OwnedFd,
    /// What both are called in errors.
    shown: PathBuf,
}

impl Volumes {
    /// Copies the image's directory at `path` into an empty volume, with owners, modes, times,
    /// extended attributes and links; the volume's root gets the directory's attributes.
    /// `rootfs` is the container's root; symbolic links in `path` stay inside it.
    ///
    /// # Errors
    /// Not found, or a file cannot be copied; the volume is then as empty as before.
    pub fn copy_up(&self, name: &str, rootfs: BorrowedFd<'_>, path: &Path) -> Result<CopyUp> {
        self.get(name)?;
        let Some(source) = directory_in(rootfs, path)? else {
            return Ok(CopyUp::NothingThere);
        };
        let folder = self.path(name);
        let _lock = lock(&folder.join("meta.json"), FlockOperation::LockExclusive)?;
        Fill::of_volume(&folder)?.fill(&source, path)
    }

    /// The same for a folder of a volume, or for a volume that is a file system of its own: `target`
    /// is its directory.
    ///
    /// # Errors
    /// As those of [`Volumes::copy_up`].
    pub fn copy_up_into(
        &self,
        name: &str,
        target: BorrowedFd<'_>,
        rootfs: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<CopyUp> {
        let folder = self.path(name);
        let _lock = lock(&folder.join("meta.json"), FlockOperation::LockExclusive)?;
        let fill = Fill::within(target, &folder.join("_data"))?;
        // Whoever was killed here before may have got that far.
        fill.move_ready()?;
        match directory_in(rootfs, path)? {
            Some(source) => fill.fill(&source, path),
            None => Ok(CopyUp::NothingThere),
        }
    }

    /// Finishes a copy whose process was killed while it moved entries into place.
    pub(crate) fn finish_copy(&self, name: &str) -> Result<()> {
        let folder = self.path(name);
        if !folder.join("ready").exists() {
            return Ok(());
        }
        let _lock = lock(&folder.join("meta.json"), FlockOperation::LockExclusive)?;
        Fill::of_volume(&folder)?.move_ready()
    }
}

impl Fill {
    fn of_volume(folder: &Path) -> Result<Self> {
        Ok(Self {
            parent: own_directory(folder)?,
            staging: "staging",
            ready: "ready",
            target: own_directory(&folder.join("_data"))?,
            shown: folder.to_owned(),
        })
    }

    fn within(target: BorrowedFd<'_>, shown: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || openat(target, ".", flags, Mode::empty()).map_err(file("open", shown));
        Ok(Self {
            parent: open()?,
            staging: ".amphora-staging",
            ready: ".amphora-ready",
            target: open()?,
            shown: shown.to_owned(),
        })
    }

    fn fill(&self, source: &OwnedFd, path: &Path) -> Result<CopyUp> {
        self.move_ready()?;
        self.discard(self.staging)?;
        if !self.is_empty()? {
            return Ok(CopyUp::NotEmpty);
        }
        let shown = self.shown.join(self.staging);
        mkdirat(&self.parent, self.staging, Mode::RWXU).map_err(file("create", &shown))?;
        let mut copier = Copier::default();
        let copied = self
            .inner(self.staging)
            .and_then(|target| Ok(copier.copy(source, &target, path)?))
            .and_then(|()| {
                let no = RenameFlags::NOREPLACE;
                renameat_with(&self.parent, self.staging, &self.parent, self.ready, no)
                    .map_err(file("create", self.shown.join(self.ready)))
            });
        if let Err(error) = copied {
            let _ = self.discard(self.staging);
            return Err(error);
        }
        self.move_ready()?;
        Ok(CopyUp::Copied {
            entries: copier.entries,
        })
    }

    fn move_ready(&self) -> Result<()> {
        let ready = self.shown.join(self.ready);
        match statat(&self.parent, self.ready, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(file("look at", &ready))?,
        };
        let from = self.inner(self.ready)?;
        let meta = fstat(&from).map_err(file("look at", &ready))?;
        for entry in Dir::read_from(&from).map_err(file("read", &ready))? {
            let entry = entry.map_err(file("read", &ready))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match renameat_with(&from, name, &self.target, name, RenameFlags::NOREPLACE) {
                // Somebody made a file of this name meanwhile: theirs stays.
                Err(Errno::EXIST) => {}
                other => other.map_err(file("create", &self.shown))?,
            }
        }
        attributes(from.as_fd(), self.target.as_fd(), &meta)
            .map_err(file("change", &self.shown))?;
        self.discard(self.ready)
    }

    fn inner(&self, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.parent, name, flags, Mode::empty())
            .map_err(file("open", self.shown.join(name)))
    }

    fn is_empty(&self) -> Result<bool> {
        for entry in Dir::read_from(&self.target).map_err(file("read", &self.shown))? {
            let entry = entry.map_err(file("read", &self.shown))?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn discard(&self, name: &str) -> Result<()> {
        // The folder is that of the descriptor, whatever is mounted where; the name is not followed.
        let path = format!("/proc/self/fd/{}/{name}", self.parent.as_raw_fd());
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file("remove", self.shown.join(name))(error))
            }
            _ => Ok(()),
        }
    }
}
