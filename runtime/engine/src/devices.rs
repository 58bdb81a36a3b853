//! Devices of the host in a container: nodes to make, and what its cgroup allows.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use amphora_spec::runtime::{Device, DeviceCgroup};
use rustix::fs::{major, minor};
use serde::{Deserialize, Serialize};

use crate::config::HostConfig;
use crate::{EngineError, Result};

/// Deepest directory of devices looked into.
const DEPTH_MAX: usize = 16;
/// What in `/dev` is no device of the host's, or has an instance of its own in a container.
const OWN: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", ".udev"];

/// A device of the host, given with `--device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMapping {
    /// Path on the host: a device, or a directory of devices.
    pub host: String,
    /// Path in the container.
    pub container: String,
    /// Of `rwm`.
    pub permissions: String,
}

/// What a container gets of devices.
#[derive(Debug, Default)]
pub struct Devices {
    /// Nodes.
    pub nodes: Vec<Device>,
    /// Rules, in order.
    pub rules: Vec<DeviceCgroup>,
}

/// Collects the devices that a container asks for.
///
/// # Errors
/// A device that is not there, or a rule that does not parse.
pub(crate) fn gather(host: &HostConfig) -> Result<Devices> {
    let mut found = Devices::default();
    if host.privileged {
        walk(Path::new("/dev"), "/dev", "rwm", 0, &mut found)?;
        found.rules = vec![DeviceCgroup {
            allow: true,
            kind: "a".to_owned(),
            access: "rwm".to_owned(),
            ..DeviceCgroup::default()
        }];
    }
    for mapping in &host.devices {
        mapped(mapping, &mut found)?;
    }
    for text in &host.device_cgroup_rules {
        found.rules.push(rule(text)?);
    }
    // A later one of the same path takes the place of an earlier one.
    let mut seen = std::collections::BTreeSet::new();
    found.nodes.reverse();
    found.nodes.retain(|node| seen.insert(node.path.clone()));
    found.nodes.reverse();
    Ok(found)
}

fn mapped(mapping: &DeviceMapping, found: &mut Devices) -> Result<()> {
    let path = Path::new(&mapping.host);
    let gathering = |why: &str| {
        EngineError::Invalid(format!(
            "error gathering device information while adding custom device \"{}\": {why}",
            mapping.host
        ))
    };
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => gathering("no such file or directory"),
        _ => gathering(&e.to_string()),
    })?;
    if meta.is_dir() {
        return walk(path, &mapping.container, &mapping.permissions, 0, found);
    }
    let node = node(&meta, &mapping.container).ok_or_else(|| gathering("not a device node"))?;
    add(node, &mapping.permissions, found);
    Ok(())
}

fn walk(
    dir: &Path,
    inside: &str,
    permissions: &str,
    depth: usize,
    found: &mut Devices,
) -> Result<()> {
    if depth > DEPTH_MAX {
        return Ok(());
    }
    let failed = |e| EngineError::file("read", dir, e);
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    for path in entries {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if depth == 0 && dir == Path::new("/dev") && OWN.contains(&name.as_str()) {
            continue;
        }
        // Devices come and go.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let inside = format!("{}/{name}", inside.trim_end_matches('/'));
        if meta.is_dir() {
            walk(&path, &inside, permissions, depth + 1, found)?;
        } else if let Some(node) = node(&meta, &inside) {
            add(node, permissions, found);
        }
    }
    Ok(())
}

fn node(meta: &fs::Metadata, path: &str) -> Option<Device> {
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return None,
    };
    Some(Device {
        kind: kind.to_owned(),
        path: path.to_owned(),
        major: major(meta.rdev()),
        minor: minor(meta.rdev()),
        file_mode: Some(meta.mode() & 0o777),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
    })
}

fn add(node: Device, permissions: &str, found: &mut Devices) {
    found.rules.push(DeviceCgroup {
        allow: true,
        kind: node.kind.clone(),
        major: Some(i64::from(node.major)),
        minor: Some(i64::from(node.minor)),
        access: permissions.to_owned(),
    });
    found.nodes.push(node);
}

/// Parses `--device-cgroup-rule`: `c 1:3 rwm`, with `*` for any number.
fn rule(text: &str) -> Result<DeviceCgroup> {
    let bad = || EngineError::Invalid(format!("invalid device cgroup rule format: '{text}'"));
    let words: Vec<&str> = text.split(' ').collect();
    let [kind, numbers, access] = *words.as_slice() else {
        return Err(bad());
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        _ => text
            .parse::<u32>()
            .map(|n| Some(i64::from(n)))
            .map_err(|_| bad()),
    };
    let known = !access.is_empty() && access.chars().all(|c| "rwm".contains(c));
    if !matches!(kind, "a" | "b" | "c") || !known {
        return Err(bad());
    }
    Ok(DeviceCgroup {
        allow: true,
        kind: kind.to_owned(),
        major: number(major)?,
        minor: number(minor)?,
        access: access.to_owned(),
    })
}

/// Checks rules before anything exists.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    host.device_cgroup_rules
        .iter()
        .try_for_each(|text| rule(text).map(drop))
}

/// Parses a `--device` value: `host[:container][:permissions]`.
///
/// # Errors
/// Docker's words for what is wrong with it.
pub fn device_spec(text: &str) -> Result<DeviceMapping> {
    let bad = |why: String| Err(EngineError::Invalid(why));
    let mode =
        |text: &str| !text.is_empty() && text.len() <= 3 && text.chars().all(|c| "rwm".contains(c));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, permissions) = match *parts.as_slice() {
        [host] => (host, host, "rwm"),
        [host, second] if mode(second) => (host, host, second),
        [host, container] => (host, container, "rwm"),
        [host, container, permissions] => (host, container, permissions),
        _ => return bad(format!("invalid device specification: {text}")),
    };
    if !mode(permissions) {
        return bad(format!("bad mode specified: {permissions}"));
    }
    if !container.starts_with('/') || host.is_empty() {
        return bad(format!("{container} is not an absolute path"));
    }
    Ok(DeviceMapping {
        host: host.to_owned(),
        container: container.to_owned(),
        permissions: permissions.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_rules_parse_as_docker_s() {
        let parsed = |text: &str| {
            device_spec(text)
                .map(|d| (d.host, d.container, d.permissions))
                .map_err(|e| e.to_string())
        };
        let three = |a: &str, b: &str, c: &str| Ok((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(parsed("/dev/a"), three("/dev/a", "/dev/a", "rwm"));
        assert_eq!(parsed("/dev/a:r"), three("/dev/a", "/dev/a", "r"));
        assert_eq!(parsed("/dev/a:/dev/b:rw"), three("/dev/a", "/dev/b", "rw"));
        assert_eq!(parsed("/a:/b:x"), Err("bad mode specified: x".to_owned()));
        assert!(parsed("/a:b").is_err() && parsed("a:/b:r:w").is_err());
        let any = rule("c 10:* rm").unwrap();
        assert_eq!((any.major, any.minor), (Some(10), None));
        for bad in ["c 1:3", "x 1:3 r", "c 1 r", "c 1:3 q", "c -1:3 r"] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }
}
