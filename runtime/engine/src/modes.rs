//! Which namespaces a container shares: with the host, with another container, with nobody.

use std::os::fd::OwnedFd;

use amphora_executor::BundleMount;
use amphora_spec::ContainerId;

use crate::config::{ContainerConfig, HostConfig, NetworkMode};
use crate::container::Status;
use crate::{Engine, EngineError, Result};

/// One namespace's mode as Docker writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode<'a> {
    /// A namespace of its own.
    Private,
    /// The host's.
    Host,
    /// That of another container.
    Container(&'a str),
}

impl<'a> Mode<'a> {
    /// Reads a mode that was checked at create.
    pub(crate) fn of(text: &'a str) -> Self {
        match text {
            "host" => Self::Host,
            other => other
                .strip_prefix("container:")
                .map_or(Self::Private, Self::Container),
        }
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(EngineError::Invalid(text.into()))
}

/// Checks the modes of a container that is to be created.
pub(crate) fn check(host: &HostConfig, hostname_given: bool) -> Result<()> {
    let container = |text: &str| {
        text.strip_prefix("container:")
            .is_some_and(|id| !id.is_empty())
    };
    let ipc = host.ipc_mode.as_str();
    if !matches!(ipc, "" | "none" | "private" | "shareable" | "host") && !container(ipc) {
        return invalid(format!("invalid IPC mode: {ipc}"));
    }
    let pid = host.pid_mode.as_str();
    if !matches!(pid, "" | "private" | "host") && !container(pid) {
        return invalid(format!("invalid PID mode: {pid}"));
    }
    if !matches!(host.uts_mode.as_str(), "" | "private" | "host") {
        return invalid(format!("invalid UTS mode: {}", host.uts_mode));
    }
    if !matches!(host.cgroupns_mode.as_str(), "" | "private" | "host") {
        return invalid(format!("invalid CGROUP mode: {}", host.cgroupns_mode));
    }
    if host.uts_mode == "host" && hostname_given {
        return invalid("conflicting options: hostname and the UTS mode");
    }
    for name in host.sysctls.keys() {
        let ipc_name = name.starts_with("kernel.") || name.starts_with("fs.mqueue.");
        let place = match Mode::of(ipc) {
            Mode::Host if ipc_name => "host ipc",
            Mode::Container(_) if ipc_name => "container ipc",
            _ if name.starts_with("net.") && host.network == NetworkMode::Host => "host network",
            _ => continue,
        };
        return invalid(format!(
            "sysctl \"{name}\" not allowed in {place} namespace"
        ));
    }
    Ok(())
}

/// Refuses what a guest of the Wasm executor cannot be given, by the name of its flag.
pub(crate) fn check_wasm(host: &HostConfig) -> Result<()> {
    let flags = [
        ("--privileged", host.privileged),
        ("--device", !host.devices.is_empty()),
        ("--device-cgroup-rule", !host.device_cgroup_rules.is_empty()),
        ("--sysctl", !host.sysctls.is_empty()),
        ("--security-opt seccomp", host.seccomp_profile.is_some()),
    ];
    match flags.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(EngineError::Unsupported(format!(
            "{flag} is not supported for Wasm containers"
        ))),
        None => Ok(()),
    }
}

impl Engine {
    /// Puts ids in the place of the names by which other containers are joined.
    pub(crate) fn resolve_modes(&self, host: &mut HostConfig) -> Result<()> {
        for mode in [&mut host.ipc_mode, &mut host.pid_mode] {
            if let Mode::Container(text) = Mode::of(mode) {
                let id = self.find(text)?;
                *mode = format!("container:{id}");
            }
        }
        if let Some(text) = host.network.container() {
            let id = self.find(text)?;
            host.network = NetworkMode::Container(format!("container:{id}"));
        }
        Ok(())
    }

    /// Returns the namespaces of other containers that a container joins, by kind and path.
    pub(crate) fn joined(&self, config: &ContainerConfig) -> Result<Vec<(&'static str, String)>> {
        let mut out = Vec::new();
        let modes = [
            ("ipc", &config.host.ipc_mode),
            ("pid", &config.host.pid_mode),
        ];
        for (kind, mode) in modes {
            if let Mode::Container(text) = Mode::of(mode) {
                let pid = self.donor(text, kind)?;
                out.push((kind, format!("/proc/{pid}/ns/{kind}")));
            }
        }
        Ok(out)
    }

    /// The network namespace of the container whose network is joined.
    pub(crate) fn joined_netns(&self, config: &ContainerConfig) -> Result<Option<OwnedFd>> {
        let Some(text) = config.host.network.container() else {
            return Ok(None);
        };
        let pid = self.donor(text, "network")?;
        let file = std::fs::File::open(format!("/proc/{pid}/ns/net"));
        let failed = EngineError::io(format!("failed to join the network of container {text}"));
        Ok(Some(file.map_err(failed)?.into()))
    }

    /// Names and addresses as the container whose network is joined has them, the same files.
    pub(crate) fn joined_etc(&self, config: &ContainerConfig) -> Result<Option<Vec<BundleMount>>> {
        let Some(text) = config.host.network.container() else {
            return Ok(None);
        };
        let id = self.find(text)?;
        // It is running, or there is nothing to join.
        self.donor(text, "network")?;
        let dir = self.run_dir(&id).join("etc");
        ["hosts", "resolv.conf", "hostname"]
            .into_iter()
            .map(|name| crate::start::bind_file(&dir, name))
            .collect::<Result<_>>()
            .map(Some)
    }

    /// The shared memory of the container whose ipc namespace is joined.
    pub(crate) fn joined_shm(&self, config: &ContainerConfig) -> Result<Option<BundleMount>> {
        let Mode::Container(text) = Mode::of(&config.host.ipc_mode) else {
            return Ok(None);
        };
        let pid = self.donor(text, "ipc")?;
        let failed = || EngineError::io(format!("failed to share /dev/shm of container {text}"));
        let path = format!("/proc/{pid}/ns/mnt");
        let namespace: OwnedFd = std::fs::File::open(path).map_err(failed())?.into();
        let fd = amphora_sys::tree::clone_from(&namespace, c"dev/shm").map_err(failed())?;
        Ok(Some(BundleMount {
            destination: "/dev/shm".to_owned(),
            fd,
        }))
    }

    /// Returns the pid of a running container that lets others in.
    fn donor(&self, text: &str, kind: &str) -> Result<i32> {
        let id: ContainerId = self.find(text)?;
        self.reconcile_one(&id)?;
        let view = self.view(&id)?;
        let open = matches!(view.config.host.ipc_mode.as_str(), "shareable" | "host");
        if kind == "ipc" && !open {
            return Err(EngineError::State(format!(
                "container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
            )));
        }
        match (&view.state, view.status) {
            (Some(state), Status::Running) => Ok(state.init_pid),
            _ if kind == "network" => Err(EngineError::State(format!(
                "cannot join network namespace of a non running container: container {} is {}",
                view.config.name,
                view.status.as_str()
            ))),
            _ => Err(EngineError::State(format!(
                "cannot join {} of a non running container: {id}",
                kind.to_ascii_uppercase()
            ))),
        }
    }
}
