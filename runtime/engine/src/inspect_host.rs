//! The part of `HostConfig` in `inspect` that says what a container shares with others and what
//! it may do.

use serde_json::{Map, Value, json};

use crate::config::{HostConfig, MountPoint};

/// Describes modes, mounts as they were given, devices and security.
pub(crate) fn json(host: &HostConfig) -> Map<String, Value> {
    let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
    let tmpfs: Map<String, Value> = host
        .mounts
        .iter()
        .filter_map(|m| match m {
            MountPoint::Tmpfs {
                destination,
                options,
            } if !given(host, destination) => Some((destination.clone(), json!(options.join(",")))),
            _ => None,
        })
        .collect();
    let devices: Vec<Value> = host
        .devices
        .iter()
        .map(|d| {
            json!({
                "PathOnHost": d.host, "PathInContainer": d.container,
                "CgroupPermissions": d.permissions,
            })
        })
        .collect();
    let (masked, readonly) = crate::spec_builder::hidden_paths(host);
    let value = json!({
        "Binds": host.binds,
        "Mounts": host.mounts_given,
        "Tmpfs": tmpfs,
        "VolumesFrom": host.volumes_from,
        "Privileged": host.privileged,
        "Devices": devices,
        "DeviceCgroupRules": host.device_cgroup_rules,
        "GroupAdd": host.group_add,
        "Sysctls": host.sysctls,
        "SecurityOpt": host.security_opt,
        "IpcMode": or(&host.ipc_mode, "private"),
        "PidMode": host.pid_mode,
        "UTSMode": host.uts_mode,
        "UsernsMode": host.userns_mode,
        "CgroupnsMode": or(&host.cgroupns_mode, "private"),
        "MaskedPaths": masked,
        "ReadonlyPaths": readonly,
    });
    match value {
        Value::Object(mut map) => {
            map.extend(host.init.map(|init| ("Init".to_owned(), json!(init))));
            map
        }
        _ => Map::new(),
    }
}

/// Says whether a mount came from `--mount`.
fn given(host: &HostConfig, destination: &str) -> bool {
    host.mounts_given
        .iter()
        .any(|mount| mount["Target"] == destination)
}
