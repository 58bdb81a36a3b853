//! Fills a new volume from the image.
//!
//! The copy is made in `staging`, which becomes `ready` by one rename: from there it is only
//! moved, entry by entry, into `_data` (whose inode must stay, it may be mounted already). A
//! killed copy leaves `staging`, which is thrown away; a killed move is finished by whoever uses
//! the volume next.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use amphora_sys::copy::{Copier, attributes};
use rustix::fs::{CWD, FlockOperation, RenameFlags, fstat, renameat_with};
use rustix::io::Errno;

use crate::error::{Result, VolumeError, file};
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
        move_ready(&folder)?;
        if !is_empty(&folder.join("_data"))? {
            return Ok(CopyUp::NotEmpty);
        }
        let staging = folder.join("staging");
        discard(&staging)?;
        fs::create_dir(&staging).map_err(file("create", &staging))?;
        let mut copier = Copier::default();
        let copied = own_directory(&staging)
            .and_then(|target| {
                let copied = copier.copy(&source, &target, path);
                copied.map_err(VolumeError::from)
            })
            .and_then(|()| {
                let ready = folder.join("ready");
                fs::rename(&staging, &ready).map_err(file("create", &ready))
            });
        if let Err(error) = copied {
            let _ = discard(&staging);
            return Err(error);
        }
        move_ready(&folder)?;
        Ok(CopyUp::Copied {
            entries: copier.entries,
        })
    }

    /// Finishes a copy whose process was killed while it moved entries into place.
    pub(crate) fn finish_copy(&self, name: &str) -> Result<()> {
        let folder = self.path(name);
        if !folder.join("ready").exists() {
            return Ok(());
        }
        let _lock = lock(&folder.join("meta.json"), FlockOperation::LockExclusive)?;
        move_ready(&folder)
    }
}

fn move_ready(folder: &Path) -> Result<()> {
    let (ready, data) = (folder.join("ready"), folder.join("_data"));
    let entries = match fs::read_dir(&ready) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(file("read", &ready))?,
    };
    let from = own_directory(&ready)?;
    let meta = fstat(&from).map_err(file("look at", &ready))?;
    for entry in entries {
        let name = entry.map_err(file("read", &ready))?.file_name();
        let (old, new) = (ready.join(&name), data.join(&name));
        match renameat_with(CWD, &old, CWD, &new, RenameFlags::NOREPLACE) {
            // Somebody made a file of this name meanwhile: theirs stays.
            Err(Errno::EXIST) => {}
            other => other.map_err(file("create", &new))?,
        }
    }
    let to = own_directory(&data)?;
    attributes(from.as_fd(), to.as_fd(), &meta).map_err(file("change", &data))?;
    discard(&ready)
}

fn is_empty(path: &Path) -> Result<bool> {
    Ok(fs::read_dir(path)
        .map_err(file("read", path))?
        .next()
        .is_none())
}

fn discard(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}
