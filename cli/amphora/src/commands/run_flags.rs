//! Flags of `run` and `create` that limit, share and confine.

use std::collections::BTreeMap;

use amphora_engine::HostConfig;
use amphora_engine::devices::device_spec;
use amphora_engine::limits::DeviceRate;
use amphora_spec::runtime::IPC_SYSCTLS;
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::parse::{bad_flag, os_text, size, size_flag};

// Limits beside those that most people use.
#[derive(Debug, Args)]
pub(crate) struct LimitFlags {
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Block IO weight (relative device weight)
    #[arg(long, value_name = "DEVICE:WEIGHT")]
    blkio_weight_device: Vec<String>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long, allow_hyphen_values = true)]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Limit read rate (bytes per second) from a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_bps: Vec<String>,
    /// Limit read rate (IO per second) from a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_iops: Vec<String>,
    /// Limit write rate (bytes per second) to a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_bps: Vec<String>,
    /// Limit write rate (IO per second) to a device
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_iops: Vec<String>,
    /// Memory soft limit
    #[arg(long)]
    memory_reservation: Option<String>,
    /// Tune container memory swappiness (0 to 100)
    #[arg(long, allow_hyphen_values = true)]
    memory_swappiness: Option<i64>,
    /// Disable OOM Killer
    #[arg(long)]
    oom_kill_disable: bool,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
}

// What a container shares with the host and with others, and what it may do.
#[derive(Debug, Args)]
pub(crate) struct ShareFlags {
    /// Cgroup namespace to use (host|private)
    #[arg(long)]
    cgroupns: Option<String>,
    /// Add a host device to the container
    #[arg(long)]
    device: Vec<String>,
    /// Add a rule to the cgroup allowed devices list
    #[arg(long)]
    device_cgroup_rule: Vec<String>,
    /// Container NIS domain name
    #[arg(long)]
    pub(crate) domainname: Option<String>,
    /// Expose a port or a range of ports
    #[arg(long)]
    pub(crate) expose: Vec<String>,
    /// Add additional groups to join
    #[arg(long)]
    group_add: Vec<String>,
    /// IPC mode to use
    #[arg(long)]
    ipc: Option<String>,
    /// Read in a line delimited file of labels
    #[arg(long)]
    pub(crate) label_file: Vec<String>,
    /// Attach a filesystem mount to the container
    #[arg(long)]
    mount: Vec<String>,
    /// PID namespace to use
    #[arg(long)]
    pid: Option<String>,
    /// Give extended privileges to this container
    #[arg(long)]
    privileged: bool,
    /// Sysctl options
    #[arg(long)]
    sysctl: Vec<String>,
    /// User namespace to use: host, the only one there is
    #[arg(long)]
    userns: Option<String>,
    /// UTS namespace to use
    #[arg(long)]
    uts: Option<String>,
    /// Mount volumes from the specified container(s)
    #[arg(long)]
    volumes_from: Vec<String>,
}

/// Reads the limits.
pub(crate) fn limits(host: &mut HostConfig, flags: &LimitFlags) -> Outcome {
    host.memory_reservation =
        size_flag("--memory-reservation", flags.memory_reservation.as_deref())?;
    // -1 is Docker's default and means "as the host has it".
    host.memory_swappiness = flags.memory_swappiness.filter(|value| *value != -1);
    if let Some(value) = host.memory_swappiness.filter(|v| !(0..=100).contains(v)) {
        return Err(Failure::Usage(format!(
            "invalid value: {value}. Valid memory swappiness range is 0-100"
        )));
    }
    host.oom_kill_disable = flags.oom_kill_disable;
    host.oom_score_adj = flags.oom_score_adj.unwrap_or(0);
    host.cpu_period = flags.cpu_period;
    host.cpu_quota = flags.cpu_quota;
    host.cpuset_mems.clone_from(&flags.cpuset_mems);
    let io = &mut host.block_io;
    io.weight = flags.blkio_weight.unwrap_or(0);
    let weight = |text: &str| {
        text.parse()
            .ok()
            .filter(|w| *w == 0 || (10..=1000).contains(w))
    };
    let bytes = |text: &str| size(text).and_then(|v| u64::try_from(v).ok());
    let count = |text: &str| text.parse().ok();
    io.weight_device = rates("--blkio-weight-device", &flags.blkio_weight_device, weight)?;
    io.read_bps = rates("--device-read-bps", &flags.device_read_bps, bytes)?;
    io.write_bps = rates("--device-write-bps", &flags.device_write_bps, bytes)?;
    io.read_iops = rates("--device-read-iops", &flags.device_read_iops, count)?;
    io.write_iops = rates("--device-write-iops", &flags.device_write_iops, count)?;
    Ok(())
}

fn rates(
    flag: &str,
    values: &[String],
    number: impl Fn(&str) -> Option<u64>,
) -> Outcome<Vec<DeviceRate>> {
    let rate = |text: &String| {
        let bad = || bad_flag(flag, text, &format!("bad format: {text}"));
        let (path, value) = text.split_once(':').ok_or_else(bad)?;
        if !path.starts_with("/dev/") {
            return Err(bad_flag(
                flag,
                text,
                &format!("bad format for device path: {text}"),
            ));
        }
        let rate = number(value).ok_or_else(|| {
            bad_flag(
                flag,
                text,
                &format!("invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"),
            )
        })?;
        Ok(DeviceRate {
            path: path.to_owned(),
            rate,
        })
    };
    values.iter().map(rate).collect()
}

/// Reads what is shared and allowed.
pub(crate) fn shares(host: &mut HostConfig, flags: &ShareFlags) -> Outcome {
    let mode = |value: &Option<String>| value.clone().unwrap_or_default();
    let refuse = |flag: &str, kind: &str| Failure::Usage(format!("--{flag}: invalid {kind} mode"));
    host.ipc_mode = mode(&flags.ipc);
    host.pid_mode = mode(&flags.pid);
    host.uts_mode = mode(&flags.uts);
    host.cgroupns_mode = mode(&flags.cgroupns);
    host.userns_mode = mode(&flags.userns);
    let container = host.pid_mode.starts_with("container:");
    if !matches!(host.pid_mode.as_str(), "" | "host") && !container {
        return Err(refuse("pid", "PID"));
    }
    if !matches!(host.uts_mode.as_str(), "" | "host") {
        return Err(refuse("uts", "UTS"));
    }
    if !matches!(host.cgroupns_mode.as_str(), "" | "host" | "private") {
        return Err(refuse("cgroupns", "CGROUP"));
    }
    if !matches!(host.userns_mode.as_str(), "" | "host") {
        return Err(refuse("userns", "USER"));
    }
    host.privileged = flags.privileged;
    for text in &flags.device {
        let device = device_spec(text).map_err(|e| bad_flag("--device", text, &e.to_string()))?;
        host.devices.push(device);
    }
    host.device_cgroup_rules
        .clone_from(&flags.device_cgroup_rule);
    host.group_add.clone_from(&flags.group_add);
    host.volumes_from.clone_from(&flags.volumes_from);
    for text in &flags.sysctl {
        let (name, value) = sysctl(text).ok_or_else(|| {
            bad_flag("--sysctl", text, &format!("sysctl '{text}' is not allowed"))
        })?;
        host.sysctls.insert(name, value);
    }
    mounts(host, &flags.mount)
}

/// Only parameters that belong to a namespace.
fn sysctl(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let known =
        IPC_SYSCTLS.contains(&name) || name.starts_with("net.") || name.starts_with("fs.mqueue.");
    known.then(|| (name.to_owned(), value.to_owned()))
}

fn mounts(host: &mut HostConfig, values: &[String]) -> Outcome {
    if values.is_empty() {
        return Ok(());
    }
    let cwd = std::env::current_dir()
        .map_err(|e| Failure::Local(format!("failed to find the working directory: {e}")))?;
    let bytes = |text: &str| size(text).and_then(|v| u64::try_from(v).ok());
    for text in values {
        let parsed = amphora_engine::mount_spec(text, &cwd, bytes);
        let (point, shown) = parsed.map_err(|e| match e.to_string() {
            // The daemon's words stand alone, the client's name the flag.
            why if why.starts_with("invalid mount config") || why.starts_with("create ") => {
                Failure::Daemon(why)
            }
            why => bad_flag("--mount", text, &why),
        })?;
        host.mounts.push(point);
        host.mounts_given.push(shown);
    }
    Ok(())
}

/// Reads `--security-opt`.
pub(crate) fn security(host: &mut HostConfig, values: &[String]) -> Outcome {
    for text in values {
        let (key, value) = text
            .split_once(['=', ':'])
            .map_or((text.as_str(), None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("no-new-privileges", None | Some("true")) => host.no_new_privileges = true,
            ("no-new-privileges", Some("false")) => host.no_new_privileges = false,
            ("seccomp", Some("unconfined")) => host.seccomp_unconfined = true,
            ("seccomp", Some("builtin")) => {}
            ("seccomp", Some(path)) => host.seccomp_profile = Some(profile(path)?),
            ("systempaths", Some("unconfined")) => host.unmasked = true,
            // Neither module confines anything here.
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
            ("apparmor" | "label", Some(_)) => {
                return Err(Failure::Usage(format!(
                    "security option \"{text}\" is not supported: this engine drives neither AppArmor nor SELinux"
                )));
            }
            (_, None) => {
                return Err(Failure::Usage(format!(
                    "invalid --security-opt: \"{text}\""
                )));
            }
            _ => {
                return Err(Failure::Daemon(format!(
                    "invalid --security-opt 2: \"{text}\""
                )));
            }
        }
        host.security_opt.push(text.clone());
    }
    Ok(())
}

fn profile(path: &str) -> Outcome<String> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::Usage(format!(
            "opening seccomp profile ({path}) failed: open {path}: {}",
            os_text(&e)
        ))
    })?;
    let parsed: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
        Failure::Usage(format!(
            "compacting json for seccomp profile ({path}) failed: {e}"
        ))
    })?;
    Ok(parsed.to_string())
}

/// Reads `--tmpfs` values: options that a tmpfs or a mount has.
pub(crate) fn tmpfs(text: &str) -> Outcome<(String, Vec<String>)> {
    const PLAIN: [&str; 22] = [
        "async",
        "atime",
        "defaults",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "relatime",
        "ro",
        "rw",
        "strictatime",
        "suid",
        "sync",
        "private",
        "rprivate",
    ];
    const VALUED: [&str; 7] = [
        "gid",
        "mode",
        "mpol",
        "nr_blocks",
        "nr_inodes",
        "size",
        "uid",
    ];
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let mut out = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        let known = match option.split_once('=') {
            Some((key, _)) => VALUED.contains(&key),
            None => PLAIN.contains(&option),
        };
        if !known {
            return Err(Failure::Usage(format!(
                "invalid tmpfs option [\"{option}\"]"
            )));
        }
        out.push(option.to_owned());
    }
    Ok((destination.to_owned(), out))
}

/// Reads `--label` and `--label-file`.
pub(crate) fn labels(values: &[String], files: &[String]) -> Outcome<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::Usage(format!("open {path}: {}", os_text(&e))))?;
        let lines: Vec<String> = text
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        out.extend(crate::parse::pairs(&lines));
    }
    out.extend(crate::parse::pairs(values));
    Ok(out)
}
