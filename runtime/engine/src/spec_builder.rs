//! Container configuration → OCI runtime spec. Pure: same input, same output, no file touched.
//!
//! The defaults are those of Docker 28: namespaces, mounts, masked and read-only paths,
//! capabilities, device list.

use amphora_spec::runtime::{
    Capabilities, ConsoleSize, Linux, Mount, Namespace, Process, Rlimit, Root, Spec, User,
};

use crate::config::{ContainerConfig, HostConfig, MountPoint};
use crate::devices::Devices;
use crate::modes::Mode;
use crate::{EngineError, Result};

/// Capabilities of a container that asks for none.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All capabilities the kernel of this build knows (Linux 5.9 and later: 41).
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const MASKED_POWERCAP: &str = "/sys/devices/virtual/powercap";
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What is known only at start.
#[derive(Debug, Default)]
pub struct StartFacts {
    /// The resolved user.
    pub user: User,
    /// The user's home directory.
    pub home: String,
    /// Cgroup path relative to every hierarchy's root.
    pub cgroups_path: String,
    /// Paths to mask that only some machines have.
    pub masked: Vec<String>,
    /// Rows and columns of the terminal, when they are known.
    pub terminal_size: Option<(u16, u16)>,
    /// Devices of the host.
    pub devices: Devices,
    /// Namespaces of other containers, by kind and path.
    pub joined: Vec<(&'static str, String)>,
}

/// Builds the spec.
///
/// # Errors
/// A capability or limit that does not exist, by name.
pub fn build(config: &ContainerConfig, facts: &StartFacts) -> Result<Spec> {
    let host = &config.host;
    let everything = ["ALL".to_owned()];
    let add = if host.privileged {
        &everything[..]
    } else {
        &host.cap_add
    };
    let capabilities = capabilities(add, &host.cap_drop, facts.user.uid)?;
    let seccomp = host.seccomp_profile.as_deref().map(|json| {
        amphora_executor::seccomp::docker_profile(json, &capabilities.bounding)
            .map_err(EngineError::plain)
    });
    let mut resources = crate::limits::resources(host)?;
    resources.devices.clone_from(&facts.devices.rules);
    let (mut masked_paths, readonly_paths) = hidden_paths(host);
    if !masked_paths.is_empty() {
        masked_paths.extend(facts.masked.iter().cloned());
    }
    let named = |name: &str| match Mode::of(&host.uts_mode) {
        Mode::Host => String::new(),
        _ => name.to_owned(),
    };
    Ok(Spec {
        oci_version: "1.2.0".to_owned(),
        process: Process {
            terminal: config.tty,
            console_size: facts
                .terminal_size
                .filter(|_| config.tty)
                .map(|(height, width)| ConsoleSize { height, width }),
            user: facts.user.clone(),
            args: config.args(),
            env: environment(config, &facts.home),
            cwd: if config.workdir.is_empty() {
                "/".to_owned()
            } else {
                config.workdir.clone()
            },
            capabilities: Some(capabilities),
            rlimits: rlimits(&host.ulimits),
            no_new_privileges: host.no_new_privileges,
            oom_score_adj: Some(host.oom_score_adj),
            ..Process::default()
        },
        root: Root {
            path: String::new(),
            readonly: host.read_only,
        },
        hostname: named(&config.hostname),
        domainname: named(&config.domainname),
        mounts: mounts(config),
        linux: Linux {
            namespaces: namespaces(host, &facts.joined),
            devices: facts.devices.nodes.clone(),
            sysctl: host.sysctls.clone(),
            seccomp: seccomp.transpose()?,
            cgroups_path: facts.cgroups_path.clone(),
            resources,
            masked_paths,
            readonly_paths,
            ..Linux::default()
        },
        annotations: config.annotations.clone(),
        ..Spec::default()
    })
}

/// Adds what Docker adds to the environment: `PATH` and `HOSTNAME` first, `HOME` last.
fn environment(config: &ContainerConfig, home: &str) -> Vec<String> {
    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let has = |key: &str| {
        config
            .env
            .iter()
            .any(|line| line.split('=').next() == Some(key))
    };
    let mut env = Vec::with_capacity(config.env.len() + 2);
    if !has("PATH") {
        env.push(PATH.to_owned());
    }
    if !has("HOSTNAME") && !config.hostname.is_empty() {
        env.push(format!("HOSTNAME={}", config.hostname));
    }
    if config.tty && !has("TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env.extend(config.env.iter().cloned());
    if !has("HOME") {
        env.push(format!("HOME={home}"));
    }
    env
}

/// The kernel's files that are hidden from a container, and those that are read-only in it.
pub(crate) fn hidden_paths(host: &HostConfig) -> (Vec<String>, Vec<String>) {
    if host.privileged || host.unmasked {
        return (Vec::new(), Vec::new());
    }
    let masked = MASKED.iter().chain([&MASKED_POWERCAP]);
    let own = |s: &&str| (*s).to_owned();
    (
        masked.map(own).collect(),
        READONLY.iter().map(own).collect(),
    )
}

fn namespaces(host: &HostConfig, joined: &[(&'static str, String)]) -> Vec<Namespace> {
    let modes = [
        ("mount", ""),
        ("uts", host.uts_mode.as_str()),
        ("pid", host.pid_mode.as_str()),
        ("ipc", host.ipc_mode.as_str()),
        ("cgroup", host.cgroupns_mode.as_str()),
        ("network", host.network.name()),
    ];
    let path = |kind: &str| {
        joined
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, p)| p.clone())
    };
    modes
        .into_iter()
        .filter(|(_, mode)| Mode::of(mode) != Mode::Host)
        .map(|(kind, _)| Namespace {
            kind: kind.to_owned(),
            path: path(kind),
        })
        .collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|s| (*s).to_owned()).collect(),
        ..Mount::default()
    }
}

fn mounts(config: &ContainerConfig) -> Vec<Mount> {
    let host = &config.host;
    let quiet = |extra: &[&'static str]| [&["nosuid", "noexec", "nodev"], extra].concat();
    let shm = format!("size={}", config.host.shm_size.unwrap_or(64 << 20));
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &quiet(if host.privileged { &[] } else { &["ro"] }),
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &quiet(if host.privileged { &[] } else { &["ro"] }),
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &quiet(&[])),
    ];
    match host.ipc_mode.as_str() {
        "none" => {}
        "host" => list.push(mount("/dev/shm", "bind", "/dev/shm", &quiet(&["rbind"]))),
        _ => list.push(mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        )),
    }
    for point in &config.host.mounts {
        if let MountPoint::Tmpfs {
            destination,
            options,
        } = point
        {
            let clean = destination.trim_end_matches('/');
            list.retain(|mount| mount.destination != clean);
            let mut all = vec!["nosuid", "nodev", "noexec"];
            all.extend(options.iter().map(String::as_str));
            list.push(mount(destination, "tmpfs", "tmpfs", &all));
        }
    }
    list
}

fn rlimits(ulimits: &[Rlimit]) -> Vec<Rlimit> {
    ulimits.to_vec()
}

fn canonical(flag: &str, name: &str) -> Result<&'static str> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    ALL_CAPABILITIES
        .iter()
        .find(|c| **c == full)
        .copied()
        .ok_or_else(|| {
            EngineError::Invalid(format!("invalid {flag}: unknown capability: \"{full}\""))
        })
}

/// Docker's rule: `--cap-add ALL` starts from everything, `--cap-drop ALL` from nothing.
fn capabilities(add: &[String], drop: &[String], uid: u32) -> Result<Capabilities> {
    let all = |list: &[String]| list.iter().any(|c| c.eq_ignore_ascii_case("all"));
    let names = |flag: &str, list: &[String]| {
        list.iter()
            .filter(|c| !c.eq_ignore_ascii_case("all"))
            .map(|c| canonical(flag, c))
            .collect::<Result<Vec<_>>>()
    };
    let (added, dropped) = (names("CapAdd", add)?, names("CapDrop", drop)?);
    let mut set: Vec<&str> = if all(add) {
        ALL_CAPABILITIES.to_vec()
    } else if all(drop) {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES.to_vec()
    };
    set.extend(
        added
            .iter()
            .filter(|c| !all(add) && !DEFAULT_CAPABILITIES.contains(c) || all(drop)),
    );
    set.retain(|c| !dropped.contains(c));
    set.dedup();
    let list: Vec<String> = set.into_iter().map(str::to_owned).collect();
    // A user other than root starts without effective capabilities, as under Docker.
    let active = if uid == 0 { list.clone() } else { Vec::new() };
    Ok(Capabilities {
        bounding: list,
        effective: active.clone(),
        permitted: active,
        inheritable: Vec::new(),
        ambient: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn capability_flags_follow_docker() {
        let caps = |add: &[&str], drop: &[&str]| {
            capabilities(&strings(add), &strings(drop), 0)
                .unwrap()
                .bounding
        };
        assert_eq!(caps(&[], &[]).len(), 14);
        assert_eq!(caps(&["ALL"], &[]).len(), 41);
        assert!(caps(&[], &["ALL"]).is_empty());
        assert_eq!(caps(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert!(!caps(&[], &["chown"]).contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(caps(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert!(capabilities(&strings(&["FLY"]), &[], 0).is_err());
    }

    #[test]
    fn other_users_have_no_effective_capabilities() {
        let caps = capabilities(&[], &[], 1000).unwrap();
        assert!(caps.effective.is_empty() && caps.permitted.is_empty());
        assert_eq!(caps.bounding.len(), 14);
    }
}
