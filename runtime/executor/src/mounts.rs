//! The container's file system tree as steps of a plan.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_cgroup::CgroupMounts;
use amphora_spec::runtime::{Device, Mount};
use amphora_sys::mount::{MountAttr, RDONLY, clone_tree_with, set_attr};
use amphora_sys::plan::{Create, LaunchPlan, Op, Place, Reg};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev, openat};

use crate::base::cstr;
use crate::options::{self, Options};
use crate::userns::{self, Users};
use crate::{Bundle, BundleMount, ExecutorError, new_fs};

type Result<T = ()> = std::result::Result<T, ExecutorError>;

const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFIFO: u32 = 0o010_000;

/// What a mount of the spec is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bind,
    Proc,
    Sysfs,
    Tmpfs,
    Devpts,
    Mqueue,
    Cgroup,
    /// Any other that the kernel has: it belongs to no namespace and is made outside.
    Other,
    /// None: the mount that is there already changes.
    Remount,
}

pub(crate) fn kind(mount: &Mount, options: &Options) -> Option<Kind> {
    match mount.kind.as_str() {
        _ if options.remount => Some(Kind::Remount),
        _ if options.bind => Some(Kind::Bind),
        "bind" => Some(Kind::Bind),
        "proc" => Some(Kind::Proc),
        "sysfs" => Some(Kind::Sysfs),
        "tmpfs" => Some(Kind::Tmpfs),
        "devpts" => Some(Kind::Devpts),
        "mqueue" => Some(Kind::Mqueue),
        "cgroup" | "cgroup2" => Some(Kind::Cgroup),
        "" | "none" => None,
        _ => Some(Kind::Other),
    }
}

/// Adds the steps that build the tree, from the entered root on.
pub(crate) struct Mounts<'a> {
    pub(crate) bundle: &'a Bundle,
    pub(crate) plan: &'a mut LaunchPlan,
    /// The container's user namespace.
    pub(crate) users: Option<&'a Users>,
    /// The `/dev` that was made outside it.
    pub(crate) dev: Option<OwnedFd>,
    /// The registers that hold a fresh file system at its usual place.
    fresh: BTreeSet<u8>,
    /// `/dev` is to be read-only in the end.
    dev_readonly: bool,
}

/// `/a//b/` as `/a/b`.
pub(crate) fn normal(path: &str) -> String {
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    parts.fold(String::new(), |path, part| path + "/" + part)
}

fn under(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// A mount that comes after the system's own, the outer before the inner.
enum Later<'a> {
    /// One of the specification that lies in a bundle mount, with its path.
    Spec(String, &'a Mount),
    Bundle(&'a BundleMount),
}

impl Later<'_> {
    fn depth(&self) -> usize {
        let path = match self {
            Self::Spec(path, _) => path.clone(),
            Self::Bundle(mount) => normal(&mount.destination),
        };
        path.matches('/').count()
    }
}

impl<'a> Mounts<'a> {
    pub(crate) fn new(
        bundle: &'a Bundle,
        users: Option<&'a Users>,
        plan: &'a mut LaunchPlan,
    ) -> Self {
        Self {
            bundle,
            plan,
            users,
            dev: None,
            fresh: BTreeSet::new(),
            dev_readonly: false,
        }
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.plan.ops.push(op);
    }

    pub(crate) fn is_fresh(&self, reg: Reg) -> bool {
        self.fresh.contains(&(reg as u8))
    }

    /// The place of a path: below one of our own mounts where that is possible.
    pub(crate) fn place(&self, path: &str, create: Create) -> Result<Place> {
        let inside = |dir: &str, reg: Reg| {
            let name = path.strip_prefix(dir)?;
            let plain = self.is_fresh(reg) && !name.is_empty() && !name.contains('/');
            plain.then_some((reg, name.to_owned()))
        };
        let found = inside("/dev/", Reg::Dev).or_else(|| inside("/sys/fs/cgroup/", Reg::Cgroup));
        match found {
            Some((reg, name)) if create != Create::File => Ok(Place::reg(reg, cstr(name)?, create)),
            _ if path == "/sys/fs/cgroup" && self.is_fresh(Reg::Sys) => {
                Ok(Place::reg(Reg::Sys, c"fs/cgroup".to_owned(), Create::No))
            }
            _ => Ok(Place::root(cstr(path)?, create)),
        }
    }

    /// Every mount: those of the spec in their order, then the bundle's from the top down. One of
    /// the bundle takes the place of one of the spec, and `/dev` all that lies below it.
    pub(crate) fn build(mut self) -> Result {
        let bundle = self.bundle;
        let own: BTreeSet<String> = bundle
            .mounts
            .iter()
            .map(|mount| normal(&mount.destination))
            .collect();
        let replaced =
            |path: &str| own.contains(path) || (own.contains("/dev") && under(path, "/dev"));
        let mut dev_is_ours = !own.contains("/dev");
        let mut later = Vec::new();
        for mount in &bundle.spec.mounts {
            let path = normal(&mount.destination);
            if replaced(&path) {
                continue;
            }
            // What lies in a volume is mounted after it, or the volume would cover it.
            if own.iter().any(|volume| under(&path, volume)) {
                later.push(Later::Spec(path, mount));
                continue;
            }
            let kind = self.any_spec_mount(&path, mount)?;
            if path == "/dev" && matches!(kind, Kind::Bind | Kind::Other) {
                dev_is_ours = false;
            }
            if path == "/dev" && kind == Kind::Tmpfs {
                self.devices()?;
            }
        }
        if dev_is_ours && !self.is_fresh(Reg::Dev) {
            self.devices()?;
        }
        later.extend(bundle.mounts.iter().map(Later::Bundle));
        later.sort_by_key(Later::depth);
        for mount in later {
            match mount {
                Later::Spec(path, mount) => {
                    self.any_spec_mount(&path, mount)?;
                }
                Later::Bundle(mount) => self.bundle_mount(mount)?,
            }
        }
        self.finish()
    }

    fn any_spec_mount(&mut self, path: &str, mount: &Mount) -> Result<Kind> {
        let options = options::parse(&mount.options);
        let kind = kind(mount, &options)
            .ok_or_else(|| ExecutorError::unsupported(format!("mounts: \"{path}\"")))?;
        self.spec_mount(path, mount, kind, &options)?;
        Ok(kind)
    }

    /// What is made outside is the host's, and cannot be everybody's.
    fn check_users(&self, path: &str, mount: &Mount, kind: Kind, options: &Options) -> Result {
        let Some(users) = self.users else {
            return Ok(());
        };
        if kind == Kind::Other && !users.privileged {
            return Err(ExecutorError::unsupported(format!(
                "mounts: \"{path}\": type \"{}\" without the host's rights",
                mount.kind
            )));
        }
        if kind == Kind::Tmpfs && options.copy_up && !users.privileged {
            return Err(ExecutorError::unsupported(format!(
                "mounts: \"{path}\": tmpcopyup without the host's rights"
            )));
        }
        Ok(())
    }

    fn spec_mount(&mut self, path: &str, mount: &Mount, kind: Kind, options: &Options) -> Result {
        self.check_users(path, mount, kind, options)?;
        let (fstype, reg, usual) = match kind {
            Kind::Bind => return self.bind(path, mount, options),
            Kind::Cgroup => return self.cgroup(path, options),
            Kind::Other => return self.other(path, mount, options),
            Kind::Remount => return self.remount(path, options),
            Kind::Tmpfs if options.copy_up => return self.copied(path, mount, options),
            Kind::Proc => (c"proc", Some(Reg::Proc), "/proc"),
            Kind::Sysfs => (c"sysfs", Some(Reg::Sys), "/sys"),
            Kind::Devpts => (c"devpts", Some(Reg::Pts), "/dev/pts"),
            Kind::Mqueue => (c"mqueue", None, ""),
            Kind::Tmpfs => (c"tmpfs", Some(Reg::Dev), "/dev"),
        };
        let keep = reg.filter(|_| path == usual);
        let mut attr = options.attr.set | options.recursive_attr.set;
        if keep == Some(Reg::Dev) {
            self.dev_readonly = attr & RDONLY != 0;
            attr &= !RDONLY;
        }
        if let Some(users) = self.users.filter(|users| users.privileged)
            && keep == Some(Reg::Dev)
        {
            self.dev_from_outside(users, mount, options, attr)?;
            self.fresh.insert(Reg::Dev as u8);
            return Ok(());
        }
        let has_mode = options.data.iter().any(|(key, _)| key == "mode");
        let source = if mount.source.is_empty() {
            fstype.to_owned()
        } else {
            cstr(&*mount.source)?
        };
        let at = self.place(path, Create::Dir)?;
        let inherit_mode = kind == Kind::Tmpfs && !has_mode;
        // What cannot be written cannot be given its mode either.
        let late = if inherit_mode { attr & RDONLY } else { 0 };
        self.op(Op::NewFs {
            fstype: fstype.to_owned(),
            source: Some(source),
            options: self.data(kind, options)?,
            attr: attr & !late,
            at: Some(at),
            keep,
            inherit_mode,
        });
        let at = match keep {
            Some(reg) => {
                self.fresh.insert(reg as u8);
                Place::reg(reg, c".".to_owned(), Create::No)
            }
            None => self.place(path, Create::No)?,
        };
        if late != 0 {
            self.op(Op::SetAttr {
                at: at.clone(),
                attr: late,
                propagation: 0,
            });
        }
        self.propagate(at, options);
        Ok(())
    }

    /// What the file system itself is told.
    fn data(&self, kind: Kind, options: &Options) -> Result<Vec<(CString, Option<CString>)>> {
        let mut data = Vec::new();
        for (key, value) in &options.data {
            // Not known to the kernel any more; every instance is a new one.
            if !(kind == Kind::Devpts && key == "newinstance") {
                data.push((cstr(key.as_str())?, value.as_deref().map(cstr).transpose()?));
            }
        }
        // The kernel's own instances of the others have their labels already.
        if matches!(kind, Kind::Tmpfs | Kind::Devpts)
            && let Some(label) = new_fs::label(&self.bundle.spec)
        {
            data.push((c"context".to_owned(), Some(cstr(label)?)));
        }
        Ok(data)
    }

    /// Sets the propagation of a new mount, which is private by itself.
    fn propagate(&mut self, at: Place, options: &Options) {
        let private = options::propagation_of("private").unwrap_or(0);
        if options.propagation != 0 && options.propagation != private {
            self.op(Op::SetAttr {
                at,
                attr: 0,
                propagation: options.propagation,
            });
        }
    }

    /// A file system of any other type, made outside: what it is made of are the host's files.
    fn other(&mut self, path: &str, mount: &Mount, options: &Options) -> Result {
        let made = new_fs::make(path, mount, options, &self.bundle.spec)?;
        self.attach(path, made)?;
        let at = self.place(path, Create::No)?;
        self.propagate(at, options);
        Ok(())
    }

    /// A tmpfs with what its place has when it comes to be mounted.
    fn copied(&mut self, path: &str, mount: &Mount, options: &Options) -> Result {
        let refused = |place: &str| {
            let text = format!("mounts: \"{path}\": tmpcopyup of what is mounted at \"{place}\"");
            Err(ExecutorError::unsupported(text))
        };
        let mut from = Some((new_fs::Covered::Root, path.to_owned()));
        for other in &self.bundle.spec.mounts {
            if std::ptr::eq(other, mount) {
                break;
            }
            let place = normal(&other.destination);
            if under(&place, path) {
                return refused(&place);
            }
            if place != path && !under(path, &place) {
                continue;
            }
            let rest = path.strip_prefix(&place).unwrap_or_default();
            let options = options::parse(&other.options);
            from = match kind(other, &options) {
                Some(Kind::Remount) => continue,
                // They belong to others there than where they come from.
                Some(Kind::Bind) if options.ids.is_some() || !other.uid_mappings.is_empty() => {
                    return refused(&place);
                }
                Some(Kind::Bind) => {
                    let source = new_fs::Covered::Host(&other.source);
                    Some((source, format!("./{rest}")))
                }
                // As empty as they are made.
                Some(Kind::Tmpfs | Kind::Devpts | Kind::Mqueue) if !options.copy_up => None,
                _ => return refused(&place),
            };
        }
        // Made outside: what is copied keeps its owners, whom the container sees as before.
        let ours = self
            .users
            .map(|users| self.translated_owner(path, users, options));
        let ours = ours.transpose()?;
        let options = ours.as_ref().map_or(options, |(options, _)| options);
        let owner = ours.as_ref().map(|(_, owner)| *owner);
        let begin = new_fs::Beginning { from, owner };
        let made = new_fs::copied(path, mount, options, self.bundle, begin)?;
        self.attach(path, made)?;
        let at = self.place(path, Create::No)?;
        self.propagate(at, options);
        Ok(())
    }

    fn remount(&mut self, path: &str, options: &Options) -> Result {
        let attr = options.remounted();
        let at = self.place(path, Create::No)?;
        self.op(Op::ChangeMount {
            at,
            set: attr.set,
            clear: attr.clear,
            propagation: options.propagation,
        });
        Ok(())
    }

    fn bind(&mut self, path: &str, mount: &Mount, options: &Options) -> Result {
        let failed = |action: &str| format!("{action} \"{}\"", mount.source);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let source = openat(CWD, mount.source.as_str(), flags, Mode::empty())
            .map_err(ExecutorError::kernel(failed("open mount source")))?;
        let propagation = match options.propagation {
            0 => options::propagation_of("private").unwrap_or(0),
            other => other,
        };
        if self.users.is_some_and(|users| !users.privileged) {
            return self.bind_inside(path, source, options, propagation);
        }
        let tree = clone_tree_with(
            source.as_fd(),
            Path::new(""),
            options.recursive,
            propagation,
        )
        .map_err(ExecutorError::kernel(failed("clone mount")))?;
        for (recursive, change) in [(false, options.attr), (true, options.recursive_attr)] {
            if change.set | change.clear != 0 {
                let attr = MountAttr {
                    attr_set: change.set,
                    attr_clr: change.clear,
                    ..MountAttr::default()
                };
                set_attr(tree.as_fd(), recursive, &attr)
                    .map_err(ExecutorError::kernel(failed("set mount options of")))?;
            }
        }
        self.map_ids(mount, options, &tree)?;
        self.attach(path, tree)
    }

    fn bundle_mount(&mut self, mount: &BundleMount) -> Result {
        let path = normal(&mount.destination);
        let fd = mount
            .fd
            .try_clone()
            .map_err(ExecutorError::kernel(format!("hold \"{path}\"")))?;
        self.attach(&path, fd)
    }

    pub(crate) fn attach(&mut self, path: &str, tree: OwnedFd) -> Result {
        let stat = fstat(&tree).map_err(ExecutorError::kernel(format!("look at \"{path}\"")))?;
        let create = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Create::Dir,
            _ => Create::File,
        };
        let at = Place::root(cstr(path)?, create);
        let mount = self.plan.add_fd(tree);
        self.op(Op::Attach { mount, at });
        Ok(())
    }

    fn cgroup(&mut self, path: &str, options: &Options) -> Result {
        let attr = options.attr.set | options.recursive_attr.set;
        let readonly = attr & RDONLY != 0;
        let unprivileged = self.users.is_some_and(|users| !users.privileged);
        if unprivileged || self.bundle.cgroup.paths().is_empty() {
            return self.cgroup_inside(path, options);
        }
        match self.bundle.cgroup.mounts()? {
            CgroupMounts::V2(fd) => {
                let at = self.place(path, Create::Dir)?;
                let mount = self.plan.add_fd(writable_unless(readonly, fd)?);
                self.op(Op::Attach { mount, at });
                Ok(())
            }
            CgroupMounts::V1(hierarchies) => self.cgroup_v1(path, hierarchies, options, readonly),
        }
    }

    fn cgroup_v1(
        &mut self,
        path: &str,
        hierarchies: Vec<(String, OwnedFd)>,
        options: &Options,
        readonly: bool,
    ) -> Result {
        let at = self.place(path, Create::Dir)?;
        let mode = (c"mode".to_owned(), Some(c"755".to_owned()));
        self.op(Op::NewFs {
            fstype: c"tmpfs".to_owned(),
            source: Some(c"cgroup".to_owned()),
            options: vec![mode],
            attr: options.attr.set & !RDONLY,
            at: Some(at),
            keep: Some(Reg::Cgroup),
            inherit_mode: false,
        });
        let place = |name: &str, create| -> Result<Place> {
            Ok(Place::reg(Reg::Cgroup, cstr(name)?, create))
        };
        for (name, fd) in hierarchies {
            let mount = self.plan.add_fd(writable_unless(readonly, fd)?);
            self.op(Op::Attach {
                mount,
                at: place(&name, Create::Dir)?,
            });
            for part in name.split(',').filter(|part| *part != name) {
                let target = cstr(name.as_str())?;
                self.op(Op::Symlink {
                    target,
                    at: place(part, Create::No)?,
                });
            }
        }
        if readonly {
            let at = place(".", Create::No)?;
            self.op(Op::SetAttr {
                at,
                attr: RDONLY,
                propagation: 0,
            });
        }
        Ok(())
    }

    fn devices(&mut self) -> Result {
        const LINKS: [(&str, &str); 6] = [
            ("/proc/self/fd", "/dev/fd"),
            ("/proc/self/fd/0", "/dev/stdin"),
            ("/proc/self/fd/1", "/dev/stdout"),
            ("/proc/self/fd/2", "/dev/stderr"),
            ("pts/ptmx", "/dev/ptmx"),
            ("/proc/kcore", "/dev/core"),
        ];
        const NODES: [(&str, u32, u32); 6] = [
            ("/dev/null", 1, 3),
            ("/dev/zero", 1, 5),
            ("/dev/full", 1, 7),
            ("/dev/random", 1, 8),
            ("/dev/urandom", 1, 9),
            ("/dev/tty", 5, 0),
        ];
        let given = &self.bundle.spec.linux.devices;
        let mut nodes: Vec<Device> = Vec::with_capacity(NODES.len() + given.len());
        for (path, major, minor) in NODES {
            if !given.iter().any(|device| normal(&device.path) == path) {
                let (kind, path) = ("c".to_owned(), path.to_owned());
                nodes.push(Device {
                    kind,
                    path,
                    major,
                    minor,
                    ..Device::default()
                });
            }
        }
        nodes.extend(given.iter().cloned());
        for device in &nodes {
            match self.users {
                Some(users) => self.node_from_outside(users, device)?,
                None if userns::known_inside() => {
                    self.hosts_node(None, &normal(&device.path), device)?;
                }
                None => self.node(device)?,
            }
        }
        for (target, path) in LINKS {
            let at = self.place(path, Create::No)?;
            self.op(Op::Symlink {
                target: cstr(target)?,
                at,
            });
        }
        Ok(())
    }

    fn node(&mut self, device: &Device) -> Result {
        let kind = match device.kind.as_str() {
            "b" => S_IFBLK,
            "p" => S_IFIFO,
            _ => S_IFCHR,
        };
        let owner = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
        let at = self.place(&normal(&device.path), Create::No)?;
        self.op(Op::Mknod {
            at,
            mode: kind | (device.file_mode.unwrap_or(0o666) & 0o7777),
            dev: if kind == S_IFIFO {
                0
            } else {
                makedev(device.major, device.minor)
            },
            owner: (owner != (0, 0)).then_some(owner),
        });
        Ok(())
    }

    /// What can only be done when everything is mounted: parameters, masks, read-only paths.
    fn finish(mut self) -> Result {
        let spec = &self.bundle.spec;
        for (name, value) in &spec.linux.sysctl {
            // A name with slashes may have dots in its parts, as an interface's name has.
            let path = if name.contains('/') {
                name.clone()
            } else {
                name.replace('.', "/")
            };
            let path = cstr(format!("sys/{path}"))?;
            self.op(Op::WriteProc {
                path,
                value: value.clone().into_bytes(),
            });
        }
        let score = spec.process.oom_score_adj.filter(|score| *score != 0);
        if let Some(score) = score.filter(|_| self.users.is_none()) {
            let path = c"self/oom_score_adj".to_owned();
            self.op(Op::WriteProc {
                path,
                value: score.to_string().into_bytes(),
            });
        }
        for path in &spec.linux.readonly_paths {
            let at = self.hidden(path)?;
            self.op(Op::ReadonlyPath { at });
        }
        if !spec.linux.masked_paths.is_empty() && !self.is_fresh(Reg::Dev) {
            self.null_source()?;
        }
        for path in &spec.linux.masked_paths {
            let at = self.hidden(path)?;
            self.op(Op::MaskPath { at });
        }
        if self.dev_readonly {
            let at = Place::reg(Reg::Dev, c".".to_owned(), Create::No);
            self.op(Op::SetAttr {
                at,
                attr: RDONLY,
                propagation: 0,
            });
        }
        Ok(())
    }

    /// The place of a path that is to be masked or made read-only.
    fn hidden(&self, path: &str) -> Result<Place> {
        let path = normal(path);
        for (dir, reg) in [("/proc/", Reg::Proc), ("/sys/", Reg::Sys)] {
            if let Some(rest) = path.strip_prefix(dir).filter(|_| self.is_fresh(reg)) {
                return Ok(Place::reg(reg, cstr(rest)?, Create::No));
            }
        }
        Ok(Place::root(cstr(path)?, Create::No))
    }

    /// A null device of our own, where `/dev` is not: a mount nobody else sees (cloned out of
    /// while detached, kernel 6.15).
    fn null_source(&mut self) -> Result {
        if self.users.is_some() || userns::known_inside() {
            return self.null_from_outside();
        }
        self.op(Op::NewFs {
            fstype: c"tmpfs".to_owned(),
            source: Some(c"tmpfs".to_owned()),
            options: Vec::new(),
            attr: 0,
            at: None,
            keep: Some(Reg::Null),
            inherit_mode: false,
        });
        let at = Place::reg(Reg::Null, c"null".to_owned(), Create::No);
        self.op(Op::Mknod {
            at,
            mode: S_IFCHR | 0o666,
            dev: makedev(1, 3),
            owner: None,
        });
        Ok(())
    }
}

fn writable_unless(readonly: bool, fd: OwnedFd) -> Result<OwnedFd> {
    if !readonly {
        let attr = MountAttr {
            attr_clr: RDONLY,
            ..MountAttr::default()
        };
        set_attr(fd.as_fd(), false, &attr)
            .map_err(ExecutorError::kernel("make the cgroup writable"))?;
    }
    Ok(fd)
}
