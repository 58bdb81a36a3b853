//! One hierarchy per controller.

use rustix::fs::{FlockOperation, XattrFlags, fgetxattr, flock, fsetxattr};

use crate::cgroup::{Cgroup, Location, Part};
use crate::devices::Policy;
use crate::dir::{CGROUP_MAGIC, CGROUP2_MAGIC, Dir};
use crate::hierarchy::{Hierarchies, Parent, ParentDir, READY, Request, below};
use crate::{CgroupError, Version, settings};

/// Controllers every container has a directory for, where they exist.
pub(crate) const ALWAYS: [&str; 6] = ["devices", "memory", "pids", "cpu", "cpuacct", "freezer"];
/// Those that cost a directory only when something is limited by them.
pub(crate) const ON_DEMAND: [&str; 2] = ["cpuset", "blkio"];
/// Those that few hosts mount and nobody is in who does not ask.
const SELDOM: [&str; 4] = ["hugetlb", "net_cls", "net_prio", "rdma"];

const DEVICES_FIELD: &str = "linux.resources.devices";

/// Opens the parent in each hierarchy, making it where it is missing; `shared` is the policy its
/// children inherit.
pub(crate) fn open_parent(
    host: &Hierarchies,
    parent: &str,
    shared: Option<&Policy>,
    extra: &[&str],
) -> Result<Parent, CgroupError> {
    let mut found = Parent {
        dirs: Vec::with_capacity(ALWAYS.len() + extra.len()),
    };
    let mut devices: Vec<u64> = Vec::with_capacity(ALWAYS.len());
    for controller in ALWAYS.iter().chain(extra) {
        let Some(dir) = open_or_make(host, controller, parent)? else {
            continue;
        };
        let device = dir
            .device()
            .map_err(|source| dir.error("inspect", "", source))?;
        match devices.iter().position(|have| *have == device) {
            // Mounted together, such as cpu,cpuacct.
            Some(at) => {
                if let Some(same) = found.dirs.get_mut(at) {
                    same.controllers.push((*controller).to_owned());
                }
            }
            None => {
                devices.push(device);
                let controllers = vec![(*controller).to_owned()];
                found.dirs.push(ParentDir { controllers, dir });
            }
        }
    }
    let Some(devices) = found.of("devices") else {
        return Err(CgroupError::MissingController {
            controller: "devices".to_owned(),
            field: DEVICES_FIELD.to_owned(),
        });
    };
    if let Some(policy) = shared {
        share_policy(&devices.dir, policy)?;
    }
    Ok(found)
}

/// Opens `parent` in the hierarchy called `controller`, making it when it is missing; `None` when
/// there is no such hierarchy.
pub(crate) fn open_or_make(
    host: &Hierarchies,
    controller: &str,
    parent: &str,
) -> Result<Option<Dir>, CgroupError> {
    let path = format!("{controller}/{parent}");
    if let (false, Ok(dir)) = (parent.is_empty(), host.root.child(&path)) {
        return Ok(Some(dir));
    }
    let Ok(root) = host.root.child(controller) else {
        return Ok(None);
    };
    if !matches!(root.magic(), Ok(CGROUP_MAGIC | CGROUP2_MAGIC)) {
        return Ok(None);
    }
    if parent.is_empty() {
        return Ok(Some(root));
    }
    let dir = root.make_all(parent)?;
    if controller == "cpuset" {
        fill_cpusets(&root, parent)?;
    }
    Ok(Some(dir))
}

/// A cpuset without cpus or memory nodes takes no tasks: each level takes its parent's.
fn fill_cpusets(root: &Dir, below: &str) -> Result<(), CgroupError> {
    let mut prefix = String::new();
    for part in below.split('/') {
        let above = prefix.clone();
        if !prefix.is_empty() {
            prefix.push('/');
        }
        prefix.push_str(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = format!("{prefix}/{file}");
            let have = root
                .read(&path)
                .map_err(|source| root.error("read", &path, source))?;
            if !have.trim().is_empty() {
                continue;
            }
            let from = if above.is_empty() {
                file.to_owned()
            } else {
                format!("{above}/{file}")
            };
            let value = root
                .read(&from)
                .map_err(|source| root.error("read", &from, source))?;
            root.write(&path, value.trim())
                .map_err(|source| root.error("write", &path, source))?;
        }
    }
    Ok(())
}

/// Writes the policy into the parent, once in its life. The mark is set last, under a lock: a
/// parent with the mark is complete, and children are made only below such a parent.
fn share_policy(dir: &Dir, policy: &Policy) -> Result<(), CgroupError> {
    let marked = || fgetxattr(&dir.fd, READY, &mut [0_u8; 1][..]).is_ok();
    if marked() {
        return Ok(());
    }
    let failed = |action, source: rustix::io::Errno| dir.error(action, "", source.into());
    flock(&dir.fd, FlockOperation::LockExclusive).map_err(|errno| failed("lock", errno))?;
    let result = if marked() {
        Ok(())
    } else {
        write_policy(dir, policy)
    };
    if result.is_ok() {
        // Without the mark the next one only looks again.
        let _ = fsetxattr(&dir.fd, READY, b"1", XattrFlags::empty());
    }
    flock(&dir.fd, FlockOperation::Unlock).map_err(|errno| failed("unlock", errno))?;
    result
}

fn write_policy(dir: &Dir, policy: &Policy) -> Result<(), CgroupError> {
    let list = dir
        .read("devices.list")
        .map_err(|source| dir.error("read", "devices.list", source))?;
    if policy.equals_v1_list(&list) {
        return Ok(());
    }
    for (file, value) in policy.v1_lines() {
        dir.write(file, &value).map_err(|source| CgroupError::Set {
            field: DEVICES_FIELD.to_owned(),
            value,
            path: dir.path.join(file),
            source,
        })?;
    }
    Ok(())
}

/// Changes the policy of a cgroup in use; says what was there.
pub(crate) fn change_policy(dir: &Dir, policy: &Policy) -> Result<String, CgroupError> {
    let list = dir
        .read("devices.list")
        .map_err(|source| dir.error("read", "devices.list", source))?;
    for (file, value) in policy.v1_changes(&list) {
        if let Err(source) = dir.write(file, &value) {
            restore_policy(dir, &list);
            return Err(CgroupError::Set {
                field: DEVICES_FIELD.to_owned(),
                value,
                path: dir.path.join(file),
                source,
            });
        }
    }
    Ok(list)
}

/// Brings back what `devices.list` said; what is used under both policies is never refused meanwhile.
pub(crate) fn restore_policy(dir: &Dir, list: &str) {
    let lines = match Policy::from_v1_list(list) {
        Some(policy) => policy.v1_changes(&dir.read("devices.list").unwrap_or_default()),
        None => vec![("devices.allow", "a".to_owned())],
    };
    // What led here is told, and what the parent has taken back meanwhile cannot come again.
    for (file, value) in lines {
        let _ = dir.write(file, &value);
    }
}

/// Makes the container's directories and writes its limits.
pub(crate) fn create(parent: &Parent, request: &Request) -> Result<Cgroup, CgroupError> {
    for setting in &request.settings {
        if parent.of(&setting.controller).is_none() {
            return Err(CgroupError::MissingController {
                controller: setting.controller.to_string(),
                field: setting.field.to_string(),
            });
        }
    }
    let mut made = Cgroup::new(Version::V1, Vec::with_capacity(parent.dirs.len()));
    let result = fill(&mut made, parent, request);
    if result.is_err() {
        made.undo();
    }
    result.map(|()| made)
}

fn fill(made: &mut Cgroup, parent: &Parent, request: &Request) -> Result<(), CgroupError> {
    let name = request.name.as_str();
    for ParentDir { controllers, dir } in &parent.dirs {
        if !dir
            .mkdir(name)
            .map_err(|source| dir.error("make", name, source))?
        {
            return Err(CgroupError::Exists(dir.path.join(name)));
        }
        let opened = dir.child(name).inspect_err(|_| {
            let _ = dir.rmdir(name);
        });
        let child = opened.map_err(|source| dir.error("open", name, source))?;
        made.push(Part {
            controllers: controllers.clone(),
            dir: child,
        });
    }
    let made = &*made;
    if let Some(cpuset) = parent.of("cpuset") {
        fill_cpusets(&cpuset.dir, name)?;
    }
    if let (Some(policy), Some(dir)) = (&request.policy, made.dir_of("devices")) {
        write_policy(dir, policy)?;
    }
    settings::apply(&request.settings, |controller| made.dir_of(controller))
}

/// Makes the directory of one more controller; `None` when there is no such hierarchy.
pub(crate) fn extend(
    host: &Hierarchies,
    location: &Location,
    controller: &str,
) -> Result<Option<Part>, CgroupError> {
    let path = below(&location.parent, &location.name);
    let dir = open_or_make(host, controller, &path)?;
    Ok(dir.map(|dir| Part {
        controllers: vec![controller.to_owned()],
        dir,
    }))
}

/// Opens the directories of an existing cgroup, whichever there are.
pub(crate) fn open(host: &Hierarchies, path: &str) -> Result<Option<Cgroup>, CgroupError> {
    let mut found = Cgroup::new(Version::V1, Vec::new());
    let mut devices: Vec<u64> = Vec::new();
    for controller in ALWAYS.iter().chain(&ON_DEMAND).chain(&SELDOM) {
        let name = format!("{controller}/{path}");
        let dir = match host.root.child(&name) {
            Ok(dir) if dir.magic().ok() == Some(CGROUP_MAGIC) => dir,
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(host.root.error("open", &name, source)),
        };
        let device = dir
            .device()
            .map_err(|source| dir.error("inspect", "", source))?;
        match devices.iter().position(|have| *have == device) {
            Some(at) => found.also(at, controller),
            None => {
                devices.push(device);
                found.push(Part {
                    controllers: vec![(*controller).to_owned()],
                    dir,
                });
            }
        }
    }
    Ok((!found.is_empty()).then_some(found))
}
