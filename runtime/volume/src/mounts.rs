//! Volumes and binds as detached mounts: values that somebody else attaches in a container.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use amphora_sys::mount::{MountAttr, RDONLY, clone_tree, set_attr};
use amphora_sys::tree::{clone_beneath, clone_from, keep};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, open, openat2, statx};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, open_tree};

use crate::device::Content;
use crate::error::{Result, VolumeError, file, small};
use crate::spec::Propagation;
use crate::volumes::Volumes;

/// How far a bind is read-only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadOnly {
    /// Not at all.
    #[default]
    No,
    /// The mount itself; what is mounted below it is as it was.
    Alone,
    /// It and all below it.
    All,
}

/// How a bind is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// How far nothing can be written through it.
    pub readonly: ReadOnly,
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
        let volume = self.get(name)?;
        if volume.content()? == Content::Bind {
            let mut mount = self.mount_device(&volume)?;
            let path = self.data_path(name);
            if let Some(subpath) = subpath {
                mount = folder_of(mount, subpath, &path)?;
            }
            if readonly {
                protect(mount.as_fd(), true, &path)?;
            }
            return Ok(mount);
        }
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
            Some(subpath) => beneath(&data, subpath).map_err(no_folder(&path, subpath))?,
        };
        let mount =
            clone_tree(place.as_fd(), Path::new(""), false).map_err(file("mount", &path))?;
        if readonly {
            protect(mount.as_fd(), false, &path)?;
        }
        Ok(mount)
    }
}

impl Volumes {
    /// Clones a volume that is a file system of its own, or a folder in it, out of the mount namespace
    /// that keeps it.
    ///
    /// # Errors
    /// When the folder is missing or leads out of the volume.
    pub fn mount_kept(
        &self,
        name: &str,
        namespace: &OwnedFd,
        subpath: Option<&Path>,
    ) -> Result<OwnedFd> {
        let path = self.data_path(name);
        match subpath {
            None => clone_from(namespace, c"/").map_err(file("mount", &path)),
            Some(subpath) => clone_folder(namespace, subpath, &path),
        }
    }
}

/// A folder of a detached mount as a mount of its own; `shown` is what the mount is called in errors.
///
/// # Errors
/// When the folder is missing or leads out of the mount.
pub fn folder_of(mount: OwnedFd, subpath: &Path, shown: &Path) -> Result<OwnedFd> {
    let kept = keep(mount.as_fd()).map_err(file("mount", shown))?;
    drop(mount);
    clone_folder(&kept, subpath, shown)
}

fn clone_folder(namespace: &OwnedFd, subpath: &Path, shown: &Path) -> Result<OwnedFd> {
    let text = CString::new(subpath.as_os_str().as_bytes());
    let text = text.map_err(|e| no_folder(shown, subpath)(io::Error::from(e)))?;
    clone_beneath(namespace, &text).map_err(no_folder(shown, subpath))
}

fn beneath(data: &OwnedFd, subpath: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(data, subpath, flags, Mode::empty(), resolve)
}

fn no_folder<E: Into<io::Error>>(volume: &Path, subpath: &Path) -> impl FnOnce(E) -> VolumeError {
    let path = volume.join(subpath);
    move |source| {
        let source = source.into();
        VolumeError::Subpath {
            path,
            source: match source.raw_os_error() {
                Some(code) if code == Errno::XDEV.raw_os_error() => {
                    io::Error::other("it leads out of the volume")
                }
                _ => small(&source),
            },
        }
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
            readonly: if readonly {
                ReadOnly::All
            } else {
                ReadOnly::No
            },
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
    check_propagation(&place, source, options.propagation)?;
    let mount = clone_with(place.as_fd(), options).map_err(file("mount", source))?;
    match options.readonly {
        ReadOnly::No => {}
        ReadOnly::Alone => protect(mount.as_fd(), false, source)?,
        ReadOnly::All => protect(mount.as_fd(), options.recursive, source)?,
    }
    Ok(mount)
}

/// Refuses propagation that would come from nowhere: the source's own mount must have it.
fn check_propagation(place: &OwnedFd, source: &Path, wanted: Propagation) -> Result<()> {
    if wanted == Propagation::Private {
        return Ok(());
    }
    let flags = AtFlags::EMPTY_PATH;
    let id = statx(place, "", flags, StatxFlags::MNT_ID).map_err(file("look at", source))?;
    let table = Path::new("/proc/thread-self/mountinfo");
    let text = fs::read_to_string(table).map_err(file("read", table))?;
    let id = id.stx_mnt_id.to_string();
    let Some(line) = text
        .lines()
        .find(|line| line.split(' ').next() == Some(&id))
    else {
        return Ok(());
    };
    let fields = || line.split(' ').skip(6).take_while(|field| *field != "-");
    let has = |kind: &str| fields().any(|field| field.starts_with(kind));
    let missing = match wanted {
        Propagation::Shared => "shared",
        _ if has("master:") => return Ok(()),
        _ => "shared or slave",
    };
    if has("shared:") {
        return Ok(());
    }
    Err(VolumeError::Propagation {
        path: source.to_owned(),
        mount: line.split(' ').nth(4).unwrap_or("/").into(),
        missing,
    })
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

/// Makes a mount read-only, with `recursive` those below it too.
///
/// # Errors
/// What the kernel answers.
pub fn protect(mount: BorrowedFd<'_>, recursive: bool, path: &Path) -> Result<()> {
    let attr = MountAttr {
        attr_set: RDONLY,
        ..MountAttr::default()
    };
    set_attr(mount, recursive, &attr).map_err(file("protect", path))
}

/// Takes back what [`protect`] did.
///
/// # Errors
/// What the kernel answers.
pub fn unprotect(mount: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let attr = MountAttr {
        attr_clr: RDONLY,
        ..MountAttr::default()
    };
    set_attr(mount, false, &attr).map_err(file("change", path))
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
