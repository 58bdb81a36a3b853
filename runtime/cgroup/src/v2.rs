//! The unified hierarchy.

use std::io;

use amphora_sys::bpf;
use rustix::fs::{FlockOperation, XattrFlags, fgetxattr, flock, fsetxattr};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::cgroup::{Cgroup, Part};
use crate::devices::Policy;
use crate::dir::Dir;
use crate::hierarchy::{Hierarchies, Parent, ParentDir, READY, Request, below};
use crate::{CgroupError, Version, settings};

/// Controllers turned on for every container where they exist, for its statistics.
const BASE: [&str; 3] = ["cpu", "memory", "pids"];
const CONTROL: &str = "cgroup.subtree_control";
/// A leaf for the processes that were in the root of a nested hierarchy.
const EVACUATED: &str = "init";

/// Opens the parent, making it where it is missing, with the controllers its children need.
pub(crate) fn open_parent(
    host: &Hierarchies,
    parent: &str,
    shared: Option<&Policy>,
    extra: &[&str],
) -> Result<Parent, CgroupError> {
    let dir = match host.root.child(parent) {
        Ok(dir) => dir,
        Err(_) => host.root.make_all(parent)?,
    };
    let marked = fgetxattr(&dir.fd, READY, &mut [0_u8; 1][..]).is_ok();
    if !marked || !extra.is_empty() {
        enable_down(host, parent, extra)?;
    }
    if let (false, Some(policy)) = (marked, shared) {
        share_policy(&dir, policy)?;
    }
    let controllers = enabled(&dir)?;
    Ok(Parent {
        dirs: vec![ParentDir { controllers, dir }],
    })
}

fn enabled(dir: &Dir) -> Result<Vec<String>, CgroupError> {
    let text = dir
        .read(CONTROL)
        .map_err(|source| dir.error("read", CONTROL, source))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Turns controllers on at every level from the root to `parent`. What cannot be turned on is
/// missed by whoever needs it.
fn enable_down(host: &Hierarchies, parent: &str, extra: &[&str]) -> Result<(), CgroupError> {
    enable(&host.root, extra)?;
    if parent.is_empty() {
        return Ok(());
    }
    let mut path = String::new();
    for part in parent.split('/') {
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(part);
        let dir = host.root.child(&path);
        enable(
            &dir.map_err(|source| host.root.error("open", &path, source))?,
            extra,
        )?;
    }
    Ok(())
}

fn enable(dir: &Dir, extra: &[&str]) -> Result<(), CgroupError> {
    let available = dir
        .read("cgroup.controllers")
        .map_err(|source| dir.error("read", "cgroup.controllers", source))?;
    let on = enabled(dir)?;
    let missing: Vec<&str> = BASE
        .iter()
        .chain(extra)
        .copied()
        .filter(|name| available.split_whitespace().any(|have| have == *name))
        .filter(|name| !on.iter().any(|have| have == name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let is = |error: &io::Error, errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    // All or none. Where processes are, a part of them would be worse than nothing: the kernel
    // turns such a cgroup into a root of threads, whose children hold no container.
    match turn_on(dir, &missing) {
        Ok(()) => Ok(()),
        Err(error) if is(&error, Errno::BUSY) => {
            if evacuate(dir)? {
                turn_on(dir, &missing).map_err(|source| dir.error("write", CONTROL, source))?;
            }
            Ok(())
        }
        Err(error) if is(&error, Errno::OPNOTSUPP) => Err(CgroupError::invalid(
            "cgroup parent",
            format!("{} is threaded", dir.path.display()),
        )),
        Err(_) => enable_some(dir, &missing, extra),
    }
}

fn turn_on(dir: &Dir, controllers: &[&str]) -> io::Result<()> {
    let line: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
    dir.write(CONTROL, &line.join(" "))
}

/// Turns on what can be; only what was asked for is missed.
fn enable_some(dir: &Dir, missing: &[&str], extra: &[&str]) -> Result<(), CgroupError> {
    for controller in missing {
        match turn_on(dir, &[controller]) {
            Err(source) if extra.contains(controller) => {
                return Err(dir.error("write", CONTROL, source));
            }
            _ => {}
        }
    }
    Ok(())
}

/// In a container the root of the hierarchy is an ordinary cgroup, and ours: a cgroup with
/// processes gives no controllers to its children, so they move into a leaf. Says whether it did.
fn evacuate(dir: &Dir) -> Result<bool, CgroupError> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let nested = dir
        .open_file("cgroup.type", rustix::fs::OFlags::RDONLY)
        .is_ok();
    let in_root = own.lines().any(|line| line == "0::/");
    if !nested || !in_root {
        return Ok(false);
    }
    let leaf = dir.make_all(EVACUATED)?;
    let procs = dir
        .read("cgroup.procs")
        .map_err(|source| dir.error("read", "cgroup.procs", source))?;
    for pid in procs.lines() {
        // One that is gone meanwhile needs no place.
        let _ = leaf.write("cgroup.procs", pid);
    }
    Ok(true)
}

/// Attaches the policy to the parent, once in its life; children inherit it.
fn share_policy(dir: &Dir, policy: &Policy) -> Result<(), CgroupError> {
    let failed = |action, source: rustix::io::Errno| dir.error(action, "", source.into());
    flock(&dir.fd, FlockOperation::LockExclusive).map_err(|errno| failed("lock", errno))?;
    let result = match bpf::count_device_programs(dir.fd.as_fd()) {
        Ok(0) | Err(_) => load(dir, policy).and_then(|program| attach(dir, &program)),
        Ok(_) => Ok(()),
    };
    if result.is_ok() {
        // Without the mark the next one only looks again.
        let _ = fsetxattr(&dir.fd, READY, b"1", XattrFlags::empty());
    }
    flock(&dir.fd, FlockOperation::Unlock).map_err(|errno| failed("unlock", errno))?;
    result
}

fn load(dir: &Dir, policy: &Policy) -> Result<OwnedFd, CgroupError> {
    let program = bpf::load_device_program(&policy.program());
    program.map_err(|source| dir.error("load a device policy for", "", source))
}

fn attach(dir: &Dir, program: &OwnedFd) -> Result<(), CgroupError> {
    bpf::attach_device_program(dir.fd.as_fd(), program.as_fd())
        .map_err(|source| dir.error("attach a device policy to", "", source))
}

/// Puts the policy in the place of the one that was attached here before, at once; says which it was.
pub(crate) fn replace_policy(dir: &Dir, policy: &Policy) -> Result<Option<OwnedFd>, CgroupError> {
    let program = load(dir, policy)?;
    replace_program(dir, program.as_fd())
}

/// Brings back what [`replace_policy`] found. What led here is told.
pub(crate) fn restore_program(dir: &Dir, old: Option<&OwnedFd>) {
    if let Some(old) = old {
        let _ = replace_program(dir, old.as_fd());
    } else if let Ok(Some(own)) = bpf::own_device_program(dir.fd.as_fd()) {
        let _ = bpf::detach_device_program(dir.fd.as_fd(), own.as_fd());
    }
}

/// Attaches a program in the place of ours.
fn replace_program(dir: &Dir, program: BorrowedFd<'_>) -> Result<Option<OwnedFd>, CgroupError> {
    let failed = |source| dir.error("attach a device policy to", "", source);
    let old = bpf::own_device_program(dir.fd.as_fd()).map_err(failed)?;
    match &old {
        Some(old) => bpf::replace_device_program(dir.fd.as_fd(), program, old.as_fd()),
        None => bpf::attach_device_program(dir.fd.as_fd(), program),
    }
    .map_err(failed)?;
    Ok(old)
}

/// Makes the container's directory and writes its limits.
pub(crate) fn create(parent: &Parent, request: &Request) -> Result<Cgroup, CgroupError> {
    let Some(ParentDir { controllers, dir }) = parent.dirs.first() else {
        return Err(CgroupError::NotFound(request.name.clone()));
    };
    for setting in &request.settings {
        let core = setting.controller == "cgroup";
        if !core && !controllers.contains(&setting.controller.clone().into_owned()) {
            return Err(CgroupError::MissingController {
                controller: setting.controller.to_string(),
                field: setting.field.to_string(),
            });
        }
    }
    let name = request.name.as_str();
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
    let part = Part {
        controllers: controllers.clone(),
        dir: child,
    };
    let made = Cgroup::new(Version::V2, vec![part]);
    let result = fill(&made, request);
    if result.is_err() {
        made.undo();
    }
    result.map(|()| made)
}

/// Opens a cgroup that somebody else has made, and writes its limits. Controllers that a service
/// manager has no hand in are turned on here.
pub(crate) fn adopt(
    host: &Hierarchies,
    parent: &str,
    request: &Request,
) -> Result<Cgroup, CgroupError> {
    let path = below(parent, &request.name);
    let dir = host.root.child(&path);
    let dir = dir.map_err(|source| host.root.error("open", &path, source))?;
    let available = |dir: &Dir| {
        let text = dir.read("cgroup.controllers");
        let text = text.map_err(|source| dir.error("read", "cgroup.controllers", source))?;
        Ok::<Vec<String>, CgroupError>(text.split_whitespace().map(str::to_owned).collect())
    };
    let mut controllers = available(&dir)?;
    for setting in &request.settings {
        let name = setting.controller.as_ref();
        if name == "cgroup" || controllers.iter().any(|have| have == name) {
            continue;
        }
        enable_down(host, parent, &[name])?;
        controllers = available(&dir)?;
        if !controllers.iter().any(|have| have == name) {
            return Err(CgroupError::MissingController {
                controller: name.to_owned(),
                field: setting.field.to_string(),
            });
        }
    }
    let found = Cgroup::new(Version::V2, vec![Part { controllers, dir }]);
    fill(&found, request)?;
    Ok(found)
}

fn fill(made: &Cgroup, request: &Request) -> Result<(), CgroupError> {
    let dir = made.first()?;
    if let Some(program) = &request.program {
        attach(dir, program)?;
    }
    settings::apply(&request.settings, |_| Some(dir))
}

/// Turns one more controller on for the children of `parent`; says whether that worked.
pub(crate) fn extend(
    host: &Hierarchies,
    parent: &str,
    controller: &str,
) -> Result<bool, CgroupError> {
    enable_down(host, parent, &[controller])?;
    let dir = host.root.child(parent);
    let dir = dir.map_err(|source| host.root.error("open", parent, source))?;
    Ok(enabled(&dir)?.iter().any(|have| have == controller))
}

/// Opens an existing cgroup.
pub(crate) fn open(host: &Hierarchies, path: &str) -> Result<Option<Cgroup>, CgroupError> {
    match host.root.child(path) {
        Ok(dir) => {
            // It may go while it is looked at: a service manager removes what is empty.
            let Some(text) = dir.read_optional("cgroup.controllers")? else {
                return Ok(None);
            };
            let controllers = text.split_whitespace().map(str::to_owned).collect();
            Ok(Some(Cgroup::new(
                Version::V2,
                vec![Part { controllers, dir }],
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(host.root.error("open", path, source)),
    }
}
