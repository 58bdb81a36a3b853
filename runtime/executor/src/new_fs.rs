//! File systems that are made before the child: of types that belong to no namespace, whose sources
//! are the host's, and those that begin with what they cover.

use std::os::fd::{AsFd, OwnedFd};

use amphora_spec::runtime::{Mount, Spec};
use amphora_sys::copy::Copier;
use amphora_sys::mount::{MountAttr, RDONLY, new_fs, set_attr};
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, fstat, openat};
use rustix::io::Errno;

use crate::base::cstr;
use crate::options::Options;
use crate::{Bundle, ExecutorError};

type Result<T = ()> = std::result::Result<T, ExecutorError>;

/// The SELinux label of the container's file systems.
pub(crate) fn label(spec: &Spec) -> Option<&str> {
    let label = spec.linux.mount_label.as_str();
    (!label.is_empty()).then_some(label)
}

/// Makes a file system of any type the kernel has, detached.
pub(crate) fn make(path: &str, mount: &Mount, options: &Options, spec: &Spec) -> Result<OwnedFd> {
    let mut more = Vec::new();
    let attr = options.attr.set | options.recursive_attr.set;
    if attr & RDONLY != 0 {
        // Of the file system too: its device may be read-only.
        more.push(("ro", None));
    }
    let made = open(mount, options, spec, more, attr);
    made.map_err(|error| match error.raw_os_error() {
        Some(number) if number == Errno::NODEV.raw_os_error() => {
            ExecutorError::unsupported(format!("mounts: \"{path}\": type \"{}\"", mount.kind))
        }
        _ => ExecutorError::kernel(format!("mount {} for \"{path}\"", mount.kind))(error),
    })
}

fn open<'a>(
    mount: &'a Mount,
    options: &'a Options,
    spec: &'a Spec,
    mut more: Vec<(&'a str, Option<&'a str>)>,
    attr: u64,
) -> std::io::Result<OwnedFd> {
    let kind = cstr(mount.kind.as_str()).map_err(std::io::Error::other)?;
    let own = options.data.iter();
    more.extend(own.map(|(key, value)| (key.as_str(), value.as_deref())));
    if let Some(label) = label(spec) {
        more.push(("context", Some(label)));
    }
    let source = match mount.source.as_str() {
        "" => mount.kind.as_str(),
        source => source,
    };
    new_fs(&kind, Some(source), &more, attr)
}

/// Where the files lie that a new file system covers.
pub(crate) enum Covered<'a> {
    /// In the container's root.
    Root,
    /// In a directory of the host's.
    Host(&'a str),
}

/// What a file system begins with.
pub(crate) struct Beginning<'a> {
    /// The files that it gets: where they lie, and the path below.
    pub(crate) from: Option<(Covered<'a>, String)>,
    /// Whose it is when there are none; else the caller's.
    pub(crate) owner: Option<(u32, u32)>,
}

/// Makes a tmpfs for `path`.
pub(crate) fn copied(
    path: &str,
    mount: &Mount,
    options: &Options,
    bundle: &Bundle,
    Beginning { from, owner }: Beginning<'_>,
) -> Result<OwnedFd> {
    let failed = || ExecutorError::kernel(format!("copy what is at \"{path}\""));
    let attr = options.attr.set | options.recursive_attr.set;
    let owner = owner.map(|(uid, gid)| [("uid", uid.to_string()), ("gid", gid.to_string())]);
    let owner = owner.iter().flatten();
    let more = owner.map(|(key, id)| (*key, Some(id.as_str()))).collect();
    let made = open(mount, options, &bundle.spec, more, attr & !RDONLY);
    let made = made.map_err(ExecutorError::kernel(format!("mount tmpfs for \"{path}\"")))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let Some((covered, below)) = from else {
        return readonly(made, attr, path);
    };
    let host = match covered {
        Covered::Root => None,
        Covered::Host(source) => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            Some(openat(CWD, source, flags, Mode::empty()).map_err(failed())?)
        }
    };
    let root = host.as_ref().unwrap_or(&bundle.root);
    let source = match rustix::fs::openat2(root, &*below, flags, Mode::empty(), resolve) {
        Ok(source) => source,
        Err(Errno::NOENT) => return readonly(made, attr, path),
        Err(errno) => return Err(failed()(errno)),
    };
    let target = openat(&made, c".", flags, Mode::empty()).map_err(failed())?;
    let before = fstat(&target).map_err(failed())?;
    let mut copier = Copier::default();
    copier
        .copy(&source, &target, std::path::Path::new(path))
        .map_err(|error| ExecutorError::kernel("fill a tmpfs")(std::io::Error::other(error)))?;
    keep(&target, &before, options).map_err(failed())?;
    readonly(made, attr, path)
}

/// What the options say of the root itself comes before what was copied.
fn keep(target: &OwnedFd, before: &Stat, options: &Options) -> rustix::io::Result<()> {
    let has = |key: &str| options.data.iter().any(|(name, _)| name == key);
    if has("uid") || has("gid") {
        let (uid, gid) = (before.st_uid, before.st_gid);
        fchown(target, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if has("mode") {
        fchmod(target, Mode::from_raw_mode(before.st_mode & 0o7777))?;
    }
    Ok(())
}

fn readonly(made: OwnedFd, attr: u64, path: &str) -> Result<OwnedFd> {
    if attr & RDONLY != 0 {
        let attr = MountAttr {
            attr_set: RDONLY,
            ..MountAttr::default()
        };
        set_attr(made.as_fd(), false, &attr)
            .map_err(ExecutorError::kernel(format!("make \"{path}\" read-only")))?;
    }
    Ok(made)
}
