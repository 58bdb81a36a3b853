//! Mounts and device nodes of containers with a user namespace, in which nobody may make nodes, and
//! id-mapped mounts.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use amphora_spec::runtime::{Device, Mount};
use amphora_sys::mount::{IDMAP, MountAttr, RDONLY, clone_tree, new_fs, set_attr};
use amphora_sys::plan::{Create, Op, Place, Reg, TreeChanges};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mkdirat, mknodat,
    openat,
};
use rustix::io::Errno;

use crate::ExecutorError;
use crate::base::cstr;
use crate::ids::Ids;
use crate::mounts::{Mounts, normal};
use crate::options::{IdMap, Options};
use crate::userns::{self, Users};

type Result<T = ()> = std::result::Result<T, ExecutorError>;

/// A set of nodes that nobody changes needs no more.
const NULL: &std::ffi::CStr = c"null";

/// What a device is.
fn file_type(device: &Device) -> FileType {
    match device.kind.as_str() {
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => FileType::CharacterDevice,
    }
}

fn own(dir: BorrowedFd<'_>, name: &CString, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

impl Mounts<'_> {
    /// Makes the container's `/dev` as the host's root: with nodes that a file system of the
    /// container's own could not have.
    pub(crate) fn dev_from_outside(
        &mut self,
        users: &Users,
        mount: &Mount,
        options: &Options,
        attr: u64,
    ) -> Result {
        let failed = || ExecutorError::kernel("make the file system of \"/dev\"");
        let mut data = outside_data("/dev", users, options)?;
        if !data.iter().any(|(key, _)| key == "mode") {
            data.push(("mode".to_owned(), Some("755".to_owned())));
        }
        let data: Vec<_> = data
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()))
            .collect();
        let source = Some(mount.source.as_str()).filter(|source| !source.is_empty());
        let dev = new_fs(c"tmpfs", source.or(Some("tmpfs")), &data, attr).map_err(failed())?;
        let given = |key| options.data.iter().any(|(have, _)| have == key);
        let (uid, gid) = self.outside(users, (0, 0));
        let uid = (!given("uid")).then(|| Uid::from_raw(uid));
        let gid = (!given("gid")).then(|| Gid::from_raw(gid));
        rustix::fs::chownat(&dev, c".", uid, gid, AtFlags::empty())
            .map_err(|errno| failed()(errno.into()))?;
        let at = Some(self.place("/dev", Create::Dir)?);
        self.dev = Some(dev.try_clone().map_err(failed())?);
        let (mount, keep) = (self.plan.add_fd(dev), Reg::Dev);
        self.op(Op::AttachFs { mount, at, keep });
        Ok(())
    }

    /// The options of a file system that is made outside, and whose it is if they do not say.
    pub(crate) fn translated_owner(
        &self,
        path: &str,
        users: &Users,
        options: &Options,
    ) -> Result<(Options, (u32, u32))> {
        let mut options = options.clone();
        options.data = outside_data(path, users, &options)?;
        Ok((options, self.outside(users, (0, 0))))
    }

    /// Ids outside, or those of who makes the tree when the namespace does not have them.
    fn outside(&self, users: &Users, ids: (u32, u32)) -> (u32, u32) {
        let process = &self.bundle.spec.process;
        let maker = || users.outside(users.maker(process));
        users.outside(ids).or_else(maker).unwrap_or_default()
    }

    /// A device: in the `/dev` that was made outside, else the host's own node.
    pub(crate) fn node_from_outside(&mut self, users: &Users, device: &Device) -> Result {
        let path = normal(&device.path);
        let inside = path.strip_prefix("/dev/");
        if let (Some(name), Some(dev)) = (inside, &self.dev) {
            let owner = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
            if owner != (0, 0) && users.outside(owner).is_none() {
                return Err(ExecutorError::Invalid(format!(
                    "linux.devices: the owner of \"{path}\" is not mapped in the user namespace"
                )));
            }
            let root = self.outside(users, (0, 0));
            let owner = self.outside(users, owner);
            match make_node(dev.as_fd(), name, device, root, owner) {
                // The root of a user namespace, as an engine without rights is.
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
                made => {
                    return made.map_err(ExecutorError::kernel(format!("make device \"{path}\"")));
                }
            }
        }
        self.hosts_node(Some(users), &path, device)
    }

    /// The host's own node in the place of one that nobody may make.
    pub(crate) fn hosts_node(
        &mut self,
        users: Option<&Users>,
        path: &str,
        device: &Device,
    ) -> Result {
        let what = format!("linux.devices: \"{path}\" in a user namespace");
        if device.kind == "p" {
            let at = self.place(path, Create::No)?;
            let mode = 0o010_000 | (device.file_mode.unwrap_or(0o666) & 0o7777);
            let owner = device.uid.or(device.gid).map(|_| {
                let id = Option::unwrap_or_default;
                (id(device.uid), id(device.gid))
            });
            let dev = 0;
            self.op(Op::Mknod {
                at,
                mode,
                dev,
                owner,
            });
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
            ExecutorError::kernel(format!("find the host's node for {what}"))(errno)
        })?;
        let stat = fstat(&node).map_err(ExecutorError::kernel(format!("look at \"{path}\"")))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != file_type(device) || stat.st_rdev != makedev(device.major, device.minor) {
            return Err(ExecutorError::Invalid(format!(
                "{what}: the host has another file there"
            )));
        }
        // What is bound keeps its owner and mode.
        let mode = device
            .file_mode
            .is_none_or(|mode| mode & 0o777 == stat.st_mode & 0o777);
        let shown = |given: Option<u32>, ids: Option<&Ids>, have| {
            let host = |id| ids.map_or(Some(id), |ids| ids.host(id));
            given.is_none_or(|id| id == 0 || host(id) == Some(have))
        };
        if !mode
            || !shown(device.uid, users.map(|users| &users.uids), stat.st_uid)
            || !shown(device.gid, users.map(|users| &users.gids), stat.st_gid)
        {
            return Err(ExecutorError::unsupported(format!(
                "{what}: fileMode, uid and gid other than the host's"
            )));
        }
        if users.is_none_or(|users| users.privileged) {
            let tree = clone_tree(node.as_fd(), Path::new(""), false)
                .map_err(ExecutorError::kernel(format!("clone \"{path}\"")))?;
            return self.attach(path, tree);
        }
        self.attach_inside(path, node, false, TreeChanges::default())
    }

    /// A directory with a null device, out of which clones are made.
    pub(crate) fn null_from_outside(&mut self) -> Result {
        let failed = || ExecutorError::kernel("make a null device");
        let keep = Reg::Null;
        if self.users.is_some_and(|users| users.privileged) {
            let dir = new_fs(c"tmpfs", Some("tmpfs"), &[], 0).map_err(failed())?;
            let mode = Mode::from_raw_mode(0o666);
            let made = mknodat(&dir, NULL, FileType::CharacterDevice, mode, makedev(1, 3));
            if made.is_ok() {
                rustix::fs::chmodat(&dir, NULL, mode, AtFlags::empty())
                    .map_err(|errno| failed()(errno.into()))?;
                let mount = self.plan.add_fd(dir);
                let at = None;
                self.op(Op::AttachFs { mount, at, keep });
                return Ok(());
            }
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let dev =
            openat(CWD, c"/dev", flags, Mode::empty()).map_err(|errno| failed()(errno.into()))?;
        let path = userns::path_of(dev.as_fd())?;
        let source = self.plan.add_fd(dev);
        self.op(Op::CloneTree {
            source,
            path,
            recursive: true,
            changes: TreeChanges::default(),
        });
        let (mount, at) = (source, None);
        self.op(Op::AttachFs { mount, at, keep });
        Ok(())
    }

    /// A bind mount that the container's own process clones.
    pub(crate) fn bind_inside(
        &mut self,
        path: &str,
        source: OwnedFd,
        options: &Options,
        propagation: u64,
    ) -> Result {
        if options.ids.is_some() {
            return Err(ExecutorError::unsupported(format!(
                "mounts: \"{path}\": idmap without the host's rights"
            )));
        }
        let changes = TreeChanges {
            top: (options.attr.set, options.attr.clear),
            all: (options.recursive_attr.set, options.recursive_attr.clear),
            propagation,
        };
        self.attach_inside(path, source, options.recursive, changes)
    }

    fn attach_inside(
        &mut self,
        path: &str,
        file: OwnedFd,
        recursive: bool,
        changes: TreeChanges,
    ) -> Result {
        let stat = fstat(&file).map_err(ExecutorError::kernel(format!("look at \"{path}\"")))?;
        let create = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Create::Dir,
            _ => Create::File,
        };
        let found = userns::path_of(file.as_fd())?;
        let at = Place::root(cstr(path)?, create);
        let source = self.plan.add_fd(file);
        self.op(Op::CloneTree {
            source,
            path: found,
            recursive,
            changes,
        });
        let mount = source;
        self.op(Op::Attach { mount, at });
        Ok(())
    }

    /// The cgroups as the kernel shows them to who has a namespace of them, else the host's.
    pub(crate) fn cgroup_inside(&mut self, path: &str, options: &Options) -> Result {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let source = openat(CWD, c"/sys/fs/cgroup", flags, Mode::empty())
            .map_err(ExecutorError::kernel("open \"/sys/fs/cgroup\""))?;
        let changes = TreeChanges {
            all: (options.attr.set | RDONLY, options.attr.clear & !RDONLY),
            propagation: crate::options::propagation_of("private").unwrap_or(0),
            ..TreeChanges::default()
        };
        self.attach_inside(path, source, true, changes)
    }

    /// Maps the ids of a bind mount, as its options and its own maps say.
    pub(crate) fn map_ids(&mut self, mount: &Mount, options: &Options, tree: &OwnedFd) -> Result {
        let own = !mount.uid_mappings.is_empty();
        let recursive = match options.ids {
            None if !own => return Ok(()),
            ids => ids == Some(IdMap::All),
        };
        let what = |detail: &str| format!("mounts: \"{}\": {detail}", mount.destination);
        let made;
        let namespace = if own {
            let uids = Ids::new(&what("uidMappings"), &mount.uid_mappings)?;
            let gids = Ids::new(&what("gidMappings"), &mount.gid_mappings)?;
            made = userns::for_mount(&uids, &gids)
                .map_err(ExecutorError::kernel("make a user namespace for a mount"))?;
            made.as_fd()
        } else if let Some(users) = self.users {
            users.ns()
        } else {
            return Err(ExecutorError::Invalid(what(
                "idmap: neither mappings nor a user namespace",
            )));
        };
        let number = std::os::fd::AsRawFd::as_raw_fd(&namespace);
        let attr = MountAttr {
            attr_set: IDMAP,
            userns_fd: u64::from(number.unsigned_abs()),
            ..MountAttr::default()
        };
        match set_attr(tree.as_fd(), recursive, &attr) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Err(
                ExecutorError::unsupported(what("uidMappings and idmap: on this file system")),
            ),
            set => set.map_err(ExecutorError::kernel(what("map the ids"))),
        }
    }
}

/// What a file system at `path` is told when it is made outside: its ids are those of there.
fn outside_data(
    path: &str,
    users: &Users,
    options: &Options,
) -> Result<Vec<(String, Option<String>)>> {
    let translated = |key: &str, id: &str, ids: &Ids| {
        let found = id.parse().ok().and_then(|id| ids.host(id));
        found.map(|id| id.to_string()).ok_or_else(|| {
            ExecutorError::Invalid(format!(
                "mounts: \"{path}\": {key}={id} is not mapped in the user namespace"
            ))
        })
    };
    let one = |(key, value): &(String, Option<String>)| {
        let value = match (key.as_str(), value) {
            ("uid", Some(id)) => Some(translated("uid", id, &users.uids)?),
            ("gid", Some(id)) => Some(translated("gid", id, &users.gids)?),
            (_, value) => value.clone(),
        };
        Ok((key.clone(), value))
    };
    options.data.iter().map(one).collect()
}

/// Makes a node below a file system nobody else has touched.
fn make_node(
    dev: BorrowedFd<'_>,
    name: &str,
    device: &Device,
    root: (u32, u32),
    owner: (u32, u32),
) -> io::Result<()> {
    let text = |text: &str| CString::new(text).map_err(io::Error::other);
    for (end, _) in name.match_indices('/') {
        let above = text(name.get(..end).unwrap_or_default())?;
        match mkdirat(dev, &above, Mode::from_raw_mode(0o755)) {
            Ok(()) => own(dev, &above, root)?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let name = text(name)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    let kind = file_type(device);
    let number = match kind {
        FileType::Fifo => 0,
        _ => makedev(device.major, device.minor),
    };
    match mknodat(dev, &name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(dev, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number;
            return if same {
                Ok(())
            } else {
                Err(Errno::EXIST.into())
            };
        }
        Err(errno) => return Err(errno.into()),
    }
    own(dev, &name, owner)?;
    // Whatever the caller's umask is.
    Ok(rustix::fs::chmodat(dev, &name, mode, AtFlags::empty())?)
}
