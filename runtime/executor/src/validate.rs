//! Refuses what a plan would not honour, by the name of its field.

use std::collections::{BTreeMap, BTreeSet};

use amphora_spec::runtime::{IPC_SYSCTLS, Linux, Mount, Namespace, Process, Spec};

use crate::ids::Ids;
use crate::{Bundle, ExecutorError, caps, mounts, options, properties, userns};

type Result<T = ()> = std::result::Result<T, ExecutorError>;

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(ExecutorError::Invalid(text.into()))
}

/// Checks everything that both kinds of workload share.
///
/// # Errors
/// The first field that is malformed or not supported.
pub fn validate(bundle: &Bundle) -> Result {
    let spec = &bundle.spec;
    let version = &spec.oci_version;
    if !version.is_empty() && !version.starts_with("1.") {
        return invalid(format!("ociVersion: \"{version}\" is not a version 1"));
    }
    not_honoured("", &spec.unknown)?;
    text("hostname", &spec.hostname)?;
    text("domainname", &spec.domainname)?;
    namespaces(spec)?;
    process(&spec.process)?;
    properties::check(spec)?;
    for mount in &spec.mounts {
        check_mount(mount)?;
    }
    for mount in &bundle.mounts {
        absolute("mount destination", &mount.destination)?;
    }
    linux(&spec.linux)
}

/// Properties that the specification has and that nothing here honours. What it does not know either
/// is ignored (config.md, "Extensibility"), and so is what is for other platforms than Linux.
const NOT_HONOURED: [&str; 3] = ["linux.intelRdt", "linux.memoryPolicy", "vm"];

/// Refuses those, unless they say nothing.
fn not_honoured(prefix: &str, fields: &BTreeMap<String, serde_json::Value>) -> Result {
    use serde_json::Value;
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    let asked = |(name, value): (&String, &Value)| {
        let name = format!("{prefix}{name}");
        (says_something(value) && NOT_HONOURED.contains(&&*name)).then_some(name)
    };
    match fields.iter().find_map(asked) {
        Some(name) => Err(ExecutorError::unsupported(name)),
        None => Ok(()),
    }
}

fn text(field: &str, value: &str) -> Result {
    if value.contains('\0') {
        invalid(format!("{field}: contains a null byte"))
    } else {
        Ok(())
    }
}

fn absolute(field: &str, path: &str) -> Result {
    text(field, path)?;
    if path.starts_with('/') {
        return Ok(());
    }
    invalid(format!("{field}: \"{path}\" is not an absolute path"))
}

fn has(namespaces: &[Namespace], kind: &str) -> bool {
    namespaces.iter().any(|ns| ns.kind == kind)
}

fn namespaces(spec: &Spec) -> Result {
    let list = &spec.linux.namespaces;
    let mut seen = BTreeSet::new();
    for ns in list {
        match ns.kind.as_str() {
            "pid" | "network" | "ipc" | "uts" | "cgroup" | "user" | "time" => {}
            "mount" if ns.path.is_none() => {}
            "mount" => {
                return Err(ExecutorError::unsupported(
                    "linux.namespaces: mount by path",
                ));
            }
            kind => return invalid(format!("linux.namespaces: unknown type \"{kind}\"")),
        }
        if let Some(path) = &ns.path {
            absolute("linux.namespaces.path", path)?;
        }
        if !seen.insert(&ns.kind) {
            return invalid(format!("linux.namespaces: \"{}\" is listed twice", ns.kind));
        }
    }
    if !has(list, "mount") {
        return Err(ExecutorError::unsupported("linux.namespaces without mount"));
    }
    users_and_time(spec)?;
    let named = !spec.hostname.is_empty() || !spec.domainname.is_empty();
    if named && !has(list, "uts") {
        return invalid("hostname: needs a uts namespace");
    }
    spec.linux
        .sysctl
        .iter()
        .try_for_each(|(name, value)| sysctl(list, name, value))
}

/// Maps and offsets, and the namespaces that they are for.
fn users_and_time(spec: &Spec) -> Result {
    let linux = &spec.linux;
    let (uids, gids) = userns::maps(spec)?;
    let user = linux.namespaces.iter().find(|ns| ns.kind == "user");
    for (field, map) in [("uidMappings", &uids), ("gidMappings", &gids)] {
        match (user, map.ranges().is_empty()) {
            (None, false) => return invalid(format!("linux.{field}: needs a user namespace")),
            (Some(user), true) if user.path.is_none() => {
                return invalid(format!(
                    "linux.{field}: a new user namespace needs mappings"
                ));
            }
            _ => {}
        }
    }
    if user.is_some_and(|user| user.path.is_none()) {
        userns::check_user(&spec.process, &uids, &gids)?;
    }
    let time = linux.namespaces.iter().find(|ns| ns.kind == "time");
    if !linux.time_offsets.is_empty() && time.is_none_or(|time| time.path.is_some()) {
        return invalid("linux.timeOffsets: needs a new time namespace");
    }
    for (clock, offset) in &linux.time_offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return invalid(format!("linux.timeOffsets: unknown clock \"{clock}\""));
        }
        if offset.nanosecs >= 1_000_000_000 {
            return invalid(format!(
                "linux.timeOffsets.{clock}: nanosecs is a second or more"
            ));
        }
    }
    Ok(())
}

/// Only parameters that belong to a namespace of the container's own.
fn sysctl(namespaces: &[Namespace], name: &str, value: &str) -> Result {
    text("linux.sysctl", value)?;
    let dotted = name.replace('/', ".");
    let needed = if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        "ipc"
    } else if dotted.starts_with("net.") {
        "network"
    } else if dotted == "kernel.domainname" {
        "uts"
    } else {
        return invalid(format!(
            "linux.sysctl: \"{name}\" is not in a namespace of its own"
        ));
    };
    let plain = name.split(['.', '/']).all(|part| !part.is_empty());
    if !plain || name.contains('\0') {
        return invalid(format!("linux.sysctl: \"{name}\" is not a name"));
    }
    if has(namespaces, needed) {
        return Ok(());
    }
    invalid(format!(
        "linux.sysctl: \"{name}\" needs a {needed} namespace"
    ))
}

fn process(process: &Process) -> Result {
    absolute("process.cwd", &process.cwd)?;
    process
        .args
        .iter()
        .try_for_each(|arg| text("process.args", arg))?;
    process
        .env
        .iter()
        .try_for_each(|variable| text("process.env", variable))?;
    caps::sets(process.capabilities.as_ref())?;
    let mut seen = BTreeSet::new();
    for limit in &process.rlimits {
        let kind = &limit.kind;
        if rlimit(kind).is_none() {
            return invalid(format!("process.rlimits: unknown type \"{kind}\""));
        }
        if limit.soft > limit.hard {
            return invalid(format!(
                "process.rlimits: soft {kind} is above the hard one"
            ));
        }
        if !seen.insert(kind) {
            return invalid(format!("process.rlimits: \"{kind}\" is listed twice"));
        }
    }
    match process.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => invalid(format!(
            "process.oomScoreAdj: {score} is not in -1000 to 1000"
        )),
        _ => Ok(()),
    }
}

/// The number of a limit by its name.
pub(crate) fn rlimit(name: &str) -> Option<u32> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let short = name.strip_prefix("RLIMIT_")?;
    u32::try_from(NAMES.iter().position(|known| *known == short)?).ok()
}

fn check_mount(mount: &Mount) -> Result {
    absolute("mounts.destination", &mount.destination)?;
    text("mounts.source", &mount.source)?;
    mount
        .options
        .iter()
        .try_for_each(|option| text("mounts.options", option))?;
    let options = options::parse(&mount.options);
    let what = |detail: &str| format!("mounts: \"{}\": {detail}", mount.destination);
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return invalid(what("uidMappings and gidMappings are needed both"));
    }
    Ids::new(&what("uidMappings"), &mount.uid_mappings)?;
    Ids::new(&what("gidMappings"), &mount.gid_mappings)?;
    let mapped = options.ids.is_some() || !mount.uid_mappings.is_empty();
    if mapped && mounts::kind(mount, &options) != Some(mounts::Kind::Bind) {
        return invalid(what("only a bind mount has mapped ids"));
    }
    let kind = mounts::kind(mount, &options);
    if options.copy_up && kind != Some(mounts::Kind::Tmpfs) {
        return invalid(what("tmpcopyup: needs a tmpfs"));
    }
    match kind {
        Some(kind @ (mounts::Kind::Bind | mounts::Kind::Remount)) => {
            if kind == mounts::Kind::Bind {
                absolute("mounts.source", &mount.source)?;
            }
            // A file system that is there already is not made another.
            match options.data.first() {
                Some((key, _)) => invalid(what(&format!("unknown option \"{key}\""))),
                None => Ok(()),
            }
        }
        Some(_) => Ok(()),
        None => Err(ExecutorError::unsupported(what(&format!(
            "type \"{}\"",
            mount.kind
        )))),
    }
}

fn linux(linux: &Linux) -> Result {
    not_honoured("linux.", &linux.unknown)?;
    if let Some(seccomp) = &linux.seccomp {
        crate::seccomp::compile(seccomp)?;
    }
    for path in linux.masked_paths.iter().chain(&linux.readonly_paths) {
        absolute("linux.maskedPaths and readonlyPaths", path)?;
    }
    for device in &linux.devices {
        absolute("linux.devices.path", &device.path)?;
        if !matches!(device.kind.as_str(), "c" | "b" | "u" | "p") {
            return invalid(format!("linux.devices: unknown type \"{}\"", device.kind));
        }
    }
    if options::propagation_of(&linux.rootfs_propagation).is_none() {
        let value = &linux.rootfs_propagation;
        return invalid(format!(
            "linux.rootfsPropagation: unknown value \"{value}\""
        ));
    }
    Ok(())
}
