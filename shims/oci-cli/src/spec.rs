//! `spec` and `features`.

use std::fs;
use std::io::Write;
use std::path::Path;

use amphora_executor::seccomp;
use serde_json::{Value, json};

use crate::Code;
use crate::args::{Flag, Order, parse};
use crate::error::RuncError;
use crate::list::print;

const FLAGS: &[Flag] = &[
    Flag::value("bundle", Some('b')),
    Flag::switch("rootless", None),
];

/// `spec`: an example to start from.
pub(crate) fn spec(words: &[String]) -> Code {
    let parsed = parse(FLAGS, words, Order::Any)?;
    let mut example = example();
    if parsed.on("rootless") {
        rootless(&mut example);
    }
    let path = Path::new(parsed.get("bundle").unwrap_or(".")).join("config.json");
    let failed = || RuncError::file(format!("failed to write {}", path.display()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(failed())?;
    let written = file.write_all(format!("{example:#}\n").as_bytes());
    written.map_err(failed()).map(|()| 0)
}

/// What a user without the host's rights can run: the user as root of a user namespace, with the
/// host's network and nothing that needs rights in it.
fn rootless(spec: &mut Value) {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let linux = &mut spec["linux"];
    let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    linux["uidMappings"] = map(user);
    linux["gidMappings"] = map(group);
    linux["resources"] = json!({});
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        }
        if let Some(options) = mount["options"].as_array_mut() {
            let of_others = |option: &Value| {
                let text = option.as_str().unwrap_or_default();
                text.starts_with("gid=") || text.starts_with("uid=")
            };
            options.retain(|option| !of_others(option));
        }
    }
}

fn example() -> Value {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    json!({
        "ociVersion": "1.2.1",
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "runc",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs",
                &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces.map(|kind| json!({"type": kind})),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

/// `features`: what a caller may ask for.
pub(crate) fn features(words: &[String]) -> Code {
    let parsed = parse(&[], words, Order::Any)?;
    if !parsed.rest().is_empty() {
        return Err(RuncError::usage("features takes no arguments"));
    }
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": amphora_executor::mount_options(),
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
        "linux": {
            "namespaces": [
                "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
            ],
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true,
            },
            "capabilities": amphora_executor::capabilities(),
            "seccomp": {
                "enabled": true,
                "actions": seccomp::ACTIONS,
                "operators": seccomp::OPERATORS,
                "archs": seccomp::ARCHITECTURES,
                "knownFlags": seccomp::FLAGS,
                "supportedFlags": seccomp::FLAGS,
            },
            "apparmor": {"enabled": amphora_executor::lsm::apparmor()},
            "selinux": {"enabled": amphora_executor::lsm::selinux()},
            "netDevices": {"enabled": true},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    });
    print(&format!("{features:#}\n"))
}
