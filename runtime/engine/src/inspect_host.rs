//! The part of `HostConfig` in `inspect` that says what a container shares with others and what
//! it may do.

use serde_json::{Map, Value, json};

use crate::config::{HostConfig, MountPoint};
use crate::inspect::null_if_empty;

/// Describes modes, mounts as they were given, devices and security.
pub(crate) fn json(name: &str, host: &HostConfig) -> Map<String, Value> {
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
        "Binds": null_if_empty(json!(host.binds)),
        "VolumesFrom": null_if_empty(json!(host.volumes_from)),
        "Links": null_if_empty(json!(links(name, host))),
        "Privileged": host.privileged,
        "Devices": devices,
        "DeviceCgroupRules": null_if_empty(json!(host.device_cgroup_rules)),
        "GroupAdd": null_if_empty(json!(host.group_add)),
        "SecurityOpt": null_if_empty(json!(host.security_opt)),
        "IpcMode": or(&host.ipc_mode, "private"),
        "PidMode": host.pid_mode,
        "UTSMode": host.uts_mode,
        "UsernsMode": host.userns_mode,
        "CgroupnsMode": or(&host.cgroupns_mode, "private"),
        "MaskedPaths": masked,
        "ReadonlyPaths": readonly,
        // What the flags that are refused would say.
        "Cgroup": "",
        "CgroupParent": "",
        "ConsoleSize": [0, 0],
        "CpuCount": 0,
        "CpuPercent": 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "DeviceRequests": null,
        "IOMaximumBandwidth": 0,
        "IOMaximumIOps": 0,
        "Isolation": "",
        "VolumeDriver": "",
    });
    let optional = [
        ("Mounts", json!(host.mounts_given)),
        ("Tmpfs", Value::Object(tmpfs)),
        ("Sysctls", json!(host.sysctls)),
    ];
    match value {
        Value::Object(mut map) => {
            map.extend(host.init.map(|init| ("Init".to_owned(), json!(init))));
            let given = optional.into_iter();
            let given = given.map(|(key, value)| (key.to_owned(), null_if_empty(value)));
            map.extend(given.filter(|(_, value)| !value.is_null()));
            map
        }
        _ => Map::new(),
    }
}

/// Links as Docker writes them: from whom, and by what name.
fn links(name: &str, host: &HostConfig) -> Vec<String> {
    let shown = |link: &String| {
        let (target, alias) = crate::network_check::link_parts(link);
        format!("/{target}:/{name}/{alias}")
    };
    host.links.iter().map(shown).collect()
}

/// Says whether a mount came from `--mount`.
pub(crate) fn given(host: &HostConfig, destination: &str) -> bool {
    host.mounts_given
        .iter()
        .any(|mount| mount["Target"] == destination)
}
