//! A container's configuration: written at create, changed by rename and update, never by start
//! or stop.

use std::collections::BTreeMap;

use amphora_network::{NetworkAttachment, PortRequest};
use amphora_spec::{ContainerId, Digest, select::Executor};
use serde::{Deserialize, Serialize};

/// Newest version of `config.json` under `containers/<id>/`.
pub const CONFIG_VERSION: u32 = 2;
/// The version that says all of a container that asks for nothing which came later.
pub(crate) const FIRST_VERSION: u32 = 1;

/// What a caller asks for at create. Empty fields mean "as the image says".
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Image reference or id as the user wrote it.
    pub image: String,
    /// Container name; generated when `None`.
    pub name: Option<String>,
    /// `--platform`.
    pub platform: Option<String>,
    /// `--runtime`.
    pub runtime: Option<String>,
    /// Command arguments after the image.
    pub cmd: Vec<String>,
    /// `--entrypoint`; an empty string resets it.
    pub entrypoint: Option<String>,
    /// `KEY=value` lines, over the image's.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// NIS domain name.
    pub domainname: String,
    /// Ports exposed beside the image's: `port[-port][/proto]`.
    pub expose: Vec<String>,
    /// Labels, over the image's.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Keep stdin open.
    pub open_stdin: bool,
    /// Whether standard output and standard error are attached to; for `inspect`.
    pub attach_output: [bool; 2],
    /// End stdin when the first client that feeds it goes.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Signal of `stop`.
    pub stop_signal: Option<String>,
    /// Seconds `stop` waits.
    pub stop_timeout: Option<u64>,
    /// How its health is checked, over the image's.
    pub health: Option<amphora_spec::health::Healthcheck>,
    /// Everything about the host's side.
    pub host: HostConfig,
}

/// The host's side of a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostConfig {
    /// Remove the container when it ends.
    pub auto_remove: bool,
    /// Volumes, binds and tmpfs mounts.
    pub mounts: Vec<MountPoint>,
    /// Published ports.
    pub ports: Vec<PortRequest>,
    /// Publish all exposed ports at random host ports.
    pub publish_all: bool,
    /// Network.
    pub network: NetworkMode,
    /// What is asked of each network; empty: to be in `network`, and nothing more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkAttachment>,
    /// It left its last network: that `networks` is empty says just that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unconnected: bool,
    /// `--link` values where the network is the default one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Memory limit in bytes.
    pub memory: Option<i64>,
    /// Memory and swap together in bytes; -1 is unlimited.
    pub memory_swap: Option<i64>,
    /// CPUs in billionths.
    pub nano_cpus: Option<u64>,
    /// CPU weight, 1024 is normal.
    pub cpu_shares: Option<u64>,
    /// CPU list.
    pub cpuset_cpus: Option<String>,
    /// Most tasks.
    pub pids_limit: Option<i64>,
    /// Capabilities added.
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    pub cap_drop: Vec<String>,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// No seccomp filter.
    pub seccomp_unconfined: bool,
    /// Root file system read-only.
    pub read_only: bool,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// `host:address` lines for `/etc/hosts`.
    pub extra_hosts: Vec<String>,
    /// What `/etc/resolv.conf` says in place of the host's.
    pub dns: DnsConfig,
    /// `name=soft[:hard]` resource limits, already parsed.
    pub ulimits: Vec<amphora_spec::runtime::Rlimit>,
    /// Soft memory limit in bytes.
    pub memory_reservation: Option<i64>,
    /// Swappiness, 0 to 100.
    pub memory_swappiness: Option<i64>,
    /// Processes wait when memory runs out, instead of being killed (v1).
    pub oom_kill_disable: bool,
    /// Added to the score by which the kernel chooses whom to kill.
    pub oom_score_adj: i32,
    /// CPU period in microseconds.
    pub cpu_period: Option<i64>,
    /// CPU quota in microseconds a period; -1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// Memory node list.
    pub cpuset_mems: Option<String>,
    /// Limits on block devices.
    pub block_io: crate::limits::BlockLimits,
    /// Whether and when it runs again after its end.
    pub restart: amphora_supervisor::RestartPolicy,
    /// What becomes of it when it is unhealthy.
    pub health_on_failure: amphora_supervisor::HealthAction,
    /// Whether its first process is an init of ours; `None`: as the default says.
    pub init: Option<bool>,
    /// Where output goes.
    pub log: crate::logging::LogSettings,
    /// All capabilities and devices, no filter, nothing hidden or read-only of the kernel.
    pub privileged: bool,
    /// Devices of the host.
    pub devices: Vec<crate::devices::DeviceMapping>,
    /// Rules for the devices cgroup, as given.
    pub device_cgroup_rules: Vec<String>,
    /// Supplementary groups, names or numbers.
    pub group_add: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// `private`, `shareable`, `none`, `host`, `container:<id>`, or empty for the default.
    pub ipc_mode: String,
    /// `host`, `container:<id>`, or empty for one of its own.
    pub pid_mode: String,
    /// `host`, or empty for one of its own.
    pub uts_mode: String,
    /// `host`, `private`, or empty for the default.
    pub cgroupns_mode: String,
    /// `host`, or empty: user namespaces are not used.
    pub userns_mode: String,
    /// Security options as given.
    pub security_opt: Vec<String>,
    /// A seccomp profile in Docker's form, JSON.
    pub seccomp_profile: Option<String>,
    /// Nothing of the kernel's files is hidden or read-only.
    pub unmasked: bool,
    /// Containers whose volumes are taken along, as given.
    pub volumes_from: Vec<String>,
    /// `-v` values as given, absolute.
    pub binds: Vec<String>,
    /// `--mount` values as Docker describes them.
    pub mounts_given: Vec<serde_json::Value>,
}

impl HostConfig {
    /// Returns what is asked of each network that the container is to be in.
    #[must_use]
    pub fn attachments(&self) -> Vec<NetworkAttachment> {
        match &self.network {
            mode if !mode.is_connected() || self.unconnected => Vec::new(),
            mode if self.networks.is_empty() => vec![NetworkAttachment::to(mode.name())],
            _ => self.networks.clone(),
        }
    }

    /// Says whether its supervisor may start it again by itself.
    pub(crate) fn comes_back(&self) -> bool {
        self.restart.is_some()
            || self.health_on_failure == amphora_supervisor::HealthAction::Restart
    }
}

/// Name servers, search domains and options; an empty list leaves the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Addresses.
    pub servers: Vec<String>,
    /// Domains.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

const fn both() -> [bool; 2] {
    [true; 2]
}

/// Which network a container is in; written as Docker writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum NetworkMode {
    /// The default bridge.
    #[default]
    Bridge,
    /// The host's own stack.
    Host,
    /// Only a loopback device.
    None,
    /// That of another container: `container:<id>`, whole.
    Container(String),
    /// A network that was made, by name or id.
    User(String),
}

impl From<String> for NetworkMode {
    fn from(text: String) -> Self {
        match text.as_str() {
            "" | "default" | "bridge" => Self::Bridge,
            "host" => Self::Host,
            "none" => Self::None,
            _ if text.starts_with("container:") => Self::Container(text),
            _ => Self::User(text),
        }
    }
}

impl From<NetworkMode> for String {
    fn from(mode: NetworkMode) -> Self {
        mode.name().to_owned()
    }
}

impl NetworkMode {
    /// Returns Docker's name of the network.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
            Self::Container(text) | Self::User(text) => text,
        }
    }

    /// Returns the container whose network namespace is joined.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Container(text) => text.strip_prefix("container:"),
            _ => None,
        }
    }

    /// Says whether the container has a namespace of its own.
    #[must_use]
    pub const fn is_own(&self) -> bool {
        !matches!(self, Self::Host | Self::Container(_))
    }

    /// Says whether the container is in networks, as it may be in several.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        matches!(self, Self::Bridge | Self::User(_))
    }
}

/// One mount asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum MountPoint {
    /// A named volume; filled from the image when it is new and empty.
    Volume {
        /// Volume name; `None` before create gave an anonymous one its name.
        name: String,
        /// Path inside the container.
        destination: String,
        /// Mounted read-only.
        read_only: bool,
        /// Do not fill it from the image.
        no_copy: bool,
        /// Removed with the container.
        anonymous: bool,
        /// Folder of the volume that is mounted in place of the whole.
        #[serde(default)]
        subpath: Option<String>,
        /// Labels for a volume that is made now.
        #[serde(default)]
        labels: BTreeMap<String, String>,
        /// Driver options for a volume that is made now.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        options: BTreeMap<String, String>,
        /// Options of `-v`, as given; nothing for `--mount` and for what older versions recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<String>,
    },
    /// A path of the host.
    Bind {
        /// Absolute host path.
        source: String,
        /// Path inside the container.
        destination: String,
        /// Mounted read-only.
        read_only: bool,
        /// Make a missing source directory, as `-v` does.
        create: bool,
        /// `shared`, `slave` and their like; private when empty.
        #[serde(default)]
        propagation: String,
        /// The mount alone, without those below it.
        #[serde(default)]
        alone: bool,
        /// Read-only itself, but not the mounts below it.
        #[serde(default, skip_serializing_if = "is_false")]
        writable_below: bool,
        /// Ids that files have on disk, and what they are shown as.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        idmap: Option<crate::id_map::IdMap>,
        /// Options of `-v`, as given; nothing for `--mount` and for what older versions recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<String>,
    },
    /// An image's files, read-only.
    Image {
        /// Reference or id as the user wrote it.
        source: String,
        /// Path inside the container.
        destination: String,
        /// Folder of the image that is mounted in place of the whole.
        #[serde(default)]
        subpath: Option<String>,
        /// Manifest of the image, found at create.
        manifest: Option<Digest>,
        /// Diff ids of the image's layers, base first.
        layers: Vec<Digest>,
    },
    /// A fresh tmpfs.
    Tmpfs {
        /// Path inside the container.
        destination: String,
        /// Mount options.
        options: Vec<String>,
    },
}

impl MountPoint {
    /// Returns the path inside the container.
    #[must_use]
    pub fn destination(&self) -> &str {
        match self {
            Self::Volume { destination, .. }
            | Self::Bind { destination, .. }
            | Self::Image { destination, .. }
            | Self::Tmpfs { destination, .. } => destination,
        }
    }

    /// Returns the volume it is of.
    #[must_use]
    pub fn volume(&self) -> Option<&str> {
        match self {
            Self::Volume { name, .. } => Some(name),
            _ => None,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde wants"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// `containers/<id>/config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Version of the format, found anew whenever it is written: see [`CONFIG_VERSION`].
    pub version: u32,
    /// Id.
    pub id: ContainerId,
    /// Name, without a slash.
    pub name: String,
    /// Creation time, RFC 3339 with nanoseconds.
    pub created: String,
    /// Image as the user wrote it.
    pub image: String,
    /// Image id (digest of its config).
    pub image_id: Digest,
    /// Manifest of the image.
    pub manifest: Digest,
    /// Diff ids of the image's layers, base first.
    pub layers: Vec<Digest>,
    /// Executor.
    pub executor: Executor,
    /// Why this executor.
    pub executor_reason: String,
    /// Wasm module, if the executor is Wasm.
    pub module: Option<ModuleConfig>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Arguments.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: String,
    /// `user[:group]`.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// NIS domain name.
    #[serde(default)]
    pub domainname: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Exposed ports, `port/proto`.
    pub exposed: Vec<String>,
    /// Keep stdin open.
    pub open_stdin: bool,
    /// Whether standard output and standard error were attached to; for `inspect`.
    #[serde(default = "both")]
    pub attach_output: [bool; 2],
    /// End stdin when the first client that feeds it goes.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Signal of `stop`.
    pub stop_signal: String,
    /// Seconds `stop` waits.
    pub stop_timeout: u64,
    /// How its health is checked.
    #[serde(default)]
    pub health: Option<amphora_spec::health::Healthcheck>,
    /// What commands in shell form are handed to; empty: `/bin/sh -c`.
    #[serde(default)]
    pub shell: Vec<String>,
    /// The host's side.
    pub host: HostConfig,
}

impl ContainerConfig {
    /// Returns the oldest version that says all of it. Whoever knows only an older one would run
    /// the container without what it asks for, and so must not read it.
    pub(crate) fn least_version(&self) -> u32 {
        let is_later = |point: &MountPoint| match point {
            MountPoint::Volume { options, .. } => !options.is_empty(),
            MountPoint::Bind { idmap, .. } => idmap.is_some(),
            _ => false,
        };
        let host = &self.host;
        match host.unconnected || !host.networks.is_empty() || host.mounts.iter().any(is_later) {
            true => CONFIG_VERSION,
            false => FIRST_VERSION,
        }
    }

    /// Returns the whole command line: entry point, then arguments.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }
}

/// Where a Wasm container's module comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleConfig {
    /// SHA-256 of the module.
    pub digest: Digest,
    /// Path inside the root file system; `None` when the module is a raw layer.
    pub path: Option<String>,
    /// Export to call in place of the default.
    pub function: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by a version that is out there. It stays as it is: what is added to the format has
    /// a default, or the format another version.
    const RECORDED: &str = include_str!("../testdata/config-v1.json");

    #[test]
    fn a_recorded_configuration_is_understood() {
        let config: ContainerConfig = serde_json::from_str(RECORDED).unwrap();
        assert_eq!(config.version, FIRST_VERSION);
        assert_eq!(config.least_version(), FIRST_VERSION);
        assert_eq!(config.name, "recorded");
        assert_eq!(config.args(), ["probe-wasm.wasm", "exit", "3"]);
        assert_eq!(config.host.restart.to_string(), "on-failure:3");
        assert_eq!(config.host.mounts.len(), 3);
        assert_eq!(config.host.ports.len(), 1);
        assert_eq!(config.host.ulimits.len(), 1);
        assert_eq!(config.host.log.options["max-size"], "5m");
    }

    #[test]
    fn what_an_older_version_would_pass_over_is_of_another_version() {
        let bind = r#"{"type": "bind", "source": "/s", "destination": "/d", "read_only": false,
            "create": false, "idmap": {"uids": [], "gids": []}}"#;
        let bind: MountPoint = serde_json::from_str(bind).unwrap();
        let volume = r#"{"type": "volume", "name": "v", "destination": "/d", "read_only": false,
            "no_copy": false, "anonymous": false, "options": {"type": "tmpfs", "device": "x"}}"#;
        let volume: MountPoint = serde_json::from_str(volume).unwrap();
        let changes: [&dyn Fn(&mut HostConfig); 4] = [
            &|host| host.unconnected = true,
            &|host| host.networks.push(NetworkAttachment::to("blue")),
            &|host| host.mounts.push(bind.clone()),
            &|host| host.mounts.push(volume.clone()),
        ];
        for change in changes {
            let mut config: ContainerConfig = serde_json::from_str(RECORDED).unwrap();
            change(&mut config.host);
            assert_eq!(config.least_version(), 2);
        }
    }

    #[test]
    fn fields_that_came_later_have_defaults() {
        let mut value: serde_json::Value = serde_json::from_str(RECORDED).unwrap();
        let fields: Vec<String> = value["host"].as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let taken = value["host"].as_object_mut().unwrap().remove(&field);
            let read: Result<ContainerConfig, _> = serde_json::from_value(value.clone());
            assert!(read.is_ok(), "without {field}: {read:?}");
            value["host"][field] = taken.unwrap();
        }
        value["host"]["of another version"] = 1.into();
        serde_json::from_value::<ContainerConfig>(value).unwrap();
    }
}
