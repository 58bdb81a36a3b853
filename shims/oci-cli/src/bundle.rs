//! From a directory with a `config.json` to what an executor takes.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use amphora_cgroup::Cgroup;
use amphora_executor::{Bundle, SeccompChoice};
use amphora_spec::runtime::{DeviceCgroup, Process, Resources, Spec};
use amphora_sys::mount::clone_tree_with;
use amphora_sys::plan::{LaunchPlan, Op};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::error::{Result, RuncError};

/// The largest configuration that is read.
const CONFIG_MAX: u64 = 16 << 20;

/// Reads a configuration; its bytes stand beside it.
pub(crate) fn read_spec(path: &Path) -> Result<(Spec, Vec<u8>)> {
    let what = || path.display().to_string();
    let failed = || RuncError::file(format!("failed to read {}", what()));
    let length = fs::metadata(path).map_err(failed())?.len();
    if length > CONFIG_MAX {
        return Err(RuncError::usage(format!(
            "{} is longer than {CONFIG_MAX} bytes",
            what()
        )));
    }
    let bytes = fs::read(path).map_err(failed())?;
    let spec = serde_json::from_slice(&bytes).map_err(|source| RuncError::Malformed {
        what: what(),
        source,
    })?;
    Ok((spec, bytes))
}

/// Leaves limits, priorities and the score of the OOM killer as the caller has them, where the
/// specification asks for nothing else; the engine's own containers do not get its caller's.
pub(crate) fn inherit(plan: &mut LaunchPlan, process: &Process) {
    let reset = |op: &Op| matches!(op, Op::ResetInherited);
    for ops in [&mut plan.ops, &mut plan.lead] {
        if process.oom_score_adj == Some(0) {
            let found = ops.iter_mut().find(|op| reset(op));
            found
                .into_iter()
                .for_each(|op| *op = Op::OomScore(b"0".to_vec()));
        } else {
            ops.retain(|op| !reset(op));
        }
    }
}

/// The absolute path of a bundle, from `--bundle` or the working directory.
pub(crate) fn directory(given: Option<&str>) -> Result<PathBuf> {
    let path = given.unwrap_or(".");
    fs::canonicalize(path).map_err(RuncError::file(format!("failed to find bundle {path}")))
}

/// Where the container's cgroup is to be: parent and name. Without a path it is named after the
/// container.
pub(crate) fn cgroup_place(spec: &Spec, id: &str) -> Result<(String, String)> {
    let path = spec.linux.cgroups_path.as_str();
    if path.is_empty() {
        return Ok(("amphora-runc".to_owned(), id.to_owned()));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = |part: &&str| !matches!(*part, "." | "..") && !part.contains('\0');
    match parts.split_last() {
        Some((name, parents)) if parts.iter().all(plain) => {
            Ok((parents.join("/"), (*name).to_owned()))
        }
        _ => Err(RuncError::usage(format!(
            "linux.cgroupsPath: \"{path}\" is no path of a cgroup"
        ))),
    }
}

/// The root file system as a detached mount, with what is mounted below.
pub(crate) fn root(spec: &Spec, bundle: &Path) -> Result<OwnedFd> {
    if spec.root.path.is_empty() {
        return Err(RuncError::usage("root.path: is missing"));
    }
    let path = bundle.join(&spec.root.path);
    let what = format!("failed to open root.path {}", path.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        openat(CWD, &path, flags, Mode::empty()).map_err(RuncError::file(what.clone()))?;
    if !amphora_executor::is_privileged() {
        // The container's process clones it, which may in its user namespace.
        return Ok(directory);
    }
    let propagation = rustix::mount::MountPropagationFlags::DOWNSTREAM.bits();
    clone_tree_with(directory.as_fd(), Path::new(""), true, propagation.into())
        .map_err(RuncError::file(what))
}

/// Beside what every container may use, runc allows the device of network tunnels, and engines rely
/// on it: whoever may make a node and has the right over a network may make a tunnel.
pub(crate) fn allow_tunnels(resources: &mut Resources) {
    resources.devices.push(DeviceCgroup {
        allow: true,
        kind: "c".to_owned(),
        major: Some(10),
        minor: Some(200),
        access: "rwm".to_owned(),
    });
}

/// An environment in which each name stands once: programs look for the first, and mean the last.
fn last_wins(env: Vec<String>) -> Vec<String> {
    let name = |pair: &String| pair.split('=').next().unwrap_or_default().to_owned();
    let mut seen = std::collections::BTreeSet::new();
    let mut kept: Vec<String> = env
        .into_iter()
        .rev()
        .filter(|pair| seen.insert(name(pair)))
        .collect();
    kept.reverse();
    kept
}

/// Has sources of bind mounts begin where the bundle lies, as the specification says.
pub(crate) fn absolute_sources(spec: &mut Spec, bundle: &Path) {
    for mount in &mut spec.mounts {
        let mut options = mount.options.iter();
        let bind =
            mount.kind == "bind" || options.any(|it| matches!(it.as_str(), "bind" | "rbind"));
        if bind
            && !mount.source.is_empty()
            && let Ok(source) = bundle.join(&mount.source).into_os_string().into_string()
        {
            mount.source = source;
        }
    }
}

/// What engines leave to the runtime: `HOME` from the container's list of users.
fn home(root: &OwnedFd, spec: &Spec) -> String {
    let user = spec.process.user.uid.to_string();
    // A list that cannot be read keeps nobody from running.
    let found = amphora_executor::resolve_user(root.as_fd(), &user).ok();
    format!("HOME={}", found.map_or("/".to_owned(), |user| user.home))
}

/// A bundle for the executor.
pub(crate) fn bundle(id: &str, mut spec: Spec, root: OwnedFd, cgroup: Cgroup) -> Bundle {
    spec.process.env = last_wins(std::mem::take(&mut spec.process.env));
    if !spec
        .process
        .env
        .iter()
        .any(|pair| pair.starts_with("HOME="))
    {
        spec.process.env.push(home(&root, &spec));
    }
    // On Linux a destination that is no absolute path is one from the root (config.md, "Mounts").
    for mount in &mut spec.mounts {
        if !mount.destination.is_empty() && !mount.destination.starts_with('/') {
            mount.destination.insert(0, '/');
        }
    }
    Bundle {
        id: id.to_owned(),
        spec,
        root,
        mounts: Vec::new(),
        netns: None,
        join: None,
        cgroup,
        module: None,
        seccomp: SeccompChoice::Spec,
        init: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Result<(String, String)> {
        let mut spec = Spec::default();
        spec.linux.cgroups_path = path.to_owned();
        cgroup_place(&spec, "id")
    }

    #[test]
    fn the_last_of_a_name_wins() {
        let env = ["A=1", "B=2", "A=3", "C", "B="].map(str::to_owned).to_vec();
        assert_eq!(last_wins(env), ["A=3", "C", "B="]);
    }

    #[test]
    fn a_cgroup_lies_where_its_path_says() {
        assert_eq!(place("/a/b/c").unwrap(), ("a/b".into(), "c".into()));
        assert_eq!(place("c").unwrap(), (String::new(), "c".into()));
        assert_eq!(place("").unwrap(), ("amphora-runc".into(), "id".into()));
        for path in ["/", "../a", "/a/../b", "/a/."] {
            assert!(place(path).is_err(), "{path}");
        }
    }
}
