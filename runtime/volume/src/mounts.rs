//! Volumes and binds as detached mounts: values that somebody else attaches in a container.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use amphora_sys::mount::{MountAttr, RDONLY, clone_tree, set_attr};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, open_tree};

use crate::error::{Result, VolumeError, file};
use crate::spec::Propagation;
use crate::volumes::Volumes;

/// How a bind is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// Nothing can be written through it, nor through the mounts below it.
    pub readonly: bool,
    /// Takes the mounts below the source along.
    pub recursive: bool,
    /// A missing source is made, as a directory.
    pub create_missing: bool,
    /// How mounts made later travel.
    pub propagation: Propagation,
}

impl Volumes {
    /// Clones a volume's files, or a folder in it, as a detached mount.
    ///
    /// # Errors
    /// Not found; or the folder is missing or leads out of the volume.
    pub fn mount_volume(
        &self,
        name: &str,
        subpath: Option<&Path>,
        readonly: bool,
    ) -> Result<OwnedFd> {
        self.get(name)?;
        self.finish_copy(name)?;
        let path = self.data_path(name);
        let data = open(
            &path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(file("open", &path))?;
        let place = match subpath {
            None => data,
            Some(subpath) => openat2(
                &data,
                subpath,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            )
            .map_err(file("open", path.join(subpath)))?,
        };
        let mount =
            clone_tree(place.as_fd(), Path::new(""), false).map_err(file("mount", &path))?;
        if readonly {
            protect(mount.as_fd(), false, &path)?;
        }
        Ok(mount)
    }
}

/// Clones a path of the host as a detached mount, private to its container.
///
/// # Errors
/// [`VolumeError::SourceMissing`], or what the kernel answers.
pub fn mount_bind(
    source: &Path,
    readonly: bool,
    recursive: bool,
    create_missing: bool,
) -> Result<OwnedFd> {
    let propagation = Propagation::Private;
    mount_bind_with(
        source,
        BindOptions {
            readonly,
            recursive,
            create_missing,
            propagation,
        },
    )
}

/// As [`mount_bind`], with propagation.
///
/// # Errors
/// [`VolumeError::SourceMissing`], or what the kernel answers.
pub fn mount_bind_with(source: &Path, options: BindOptions) -> Result<OwnedFd> {
    let place = match open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) if options.create_missing => {
            fs::create_dir_all(source).map_err(file("create", source))?;
            open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        }
        Err(Errno::NOENT) => return Err(VolumeError::SourceMissing(source.to_owned())),
        other => other,
    }
    .map_err(file("open", source))?;
    let mount = clone_with(place.as_fd(), options).map_err(file("mount", source))?;
    if options.readonly {
        protect(mount.as_fd(), options.recursive, source)?;
    }
    Ok(mount)
}

fn clone_with(place: BorrowedFd<'_>, options: BindOptions) -> std::io::Result<OwnedFd> {
    let propagation = match options.propagation {
        Propagation::Private => return clone_tree(place, Path::new(""), options.recursive),
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    };
    // A clone that was made private once has left its peers for good.
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if options.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = open_tree(place, "", flags)?;
    let attr = MountAttr {
        propagation: u64::from(propagation.bits()),
        ..MountAttr::default()
    };
    set_attr(mount.as_fd(), options.recursive, &attr)?;
    Ok(mount)
}

fn protect(mount: BorrowedFd<'_>, recursive: bool, path: &Path) -> Result<()> {
    let attr = MountAttr {
        attr_set: RDONLY,
        ..MountAttr::default()
    };
    set_attr(mount, recursive, &attr).map_err(file("protect", path))
}

/// Opens a directory of a container's root; `None` when there is none.
pub(crate) fn directory_in(rootfs: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(rootfs, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        other => other.map(Some).map_err(file("open", path)),
    }
}

/// Opens a directory of ours for reading.
pub(crate) fn own_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(file("open", path))
}
