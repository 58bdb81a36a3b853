//! Networks as the command line sees them, and containers that join and leave them.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_network::{
    ConnectRequest, CreateNetwork, NetworkAttachment, NetworkConfig, NetworkError, Reached,
};
use amphora_spec::ContainerId;
use amphora_spec::error::chain;
use amphora_spec::release::Release;
use amphora_supervisor::{Client, Config, Listener, PortsChange};

use crate::config::{ContainerConfig, NetworkMode};
use crate::container::Status;
use crate::files::{Lasting, Lock, open_dir};
use crate::{Engine, EngineError, Result};

const HOST: &str =
    "container cannot be disconnected from host network or connected to host network";

/// A container that runs, its namespace, and its supervisor.
struct Running {
    id: ContainerId,
    netns: OwnedFd,
    client: RefCell<Client>,
}

/// A container's host name, where it is not its id, by which it is found anyway.
pub(crate) fn told_hostname(config: &ContainerConfig) -> Option<String> {
    let name = &config.hostname;
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let told = !name.is_empty() && *name != config.id.short() && *name != config.name;
    let safe = name.bytes().all(fits) && !name.starts_with('.') && name.len() <= 255;
    (told && safe).then(|| name.clone())
}

fn plain(error: NetworkError) -> EngineError {
    EngineError::plain(error)
}

impl Engine {
    /// Makes a network.
    ///
    /// # Errors
    /// A taken name, subnets that overlap, options that are not known, a refusal by the kernel.
    pub fn create_network(&self, wanted: &CreateNetwork) -> Result<NetworkConfig> {
        let config = self.networks.create(wanted).map_err(plain)?;
        self.note_network("create", &config);
        Ok(config)
    }

    /// Removes a network that no running container is in.
    ///
    /// # Errors
    /// It is not there, predefined, or in use.
    pub fn remove_network(&self, text: &str) -> Result<NetworkConfig> {
        let name_of = |id: &ContainerId| self.config(id).map_or_else(|_| id.hex(), |c| c.name);
        let removed = match self.networks.remove(text, &name_of) {
            // Whoever is in it may be the leftover of a container whose supervisor was killed.
            Err(NetworkError::ActiveEndpoints { .. }) if self.reconcile_all()? > 0 => {
                self.networks.remove(text, &name_of)
            }
            other => other,
        };
        let config = removed.map_err(plain)?;
        self.note_network("destroy", &config);
        Ok(config)
    }

    /// Finds a network by name, id, or the beginning of an id.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn network(&self, text: &str) -> Result<NetworkConfig> {
        self.networks.find(text).map_err(plain)
    }

    /// Lists all networks, by name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn list_networks(&self) -> Result<Vec<NetworkConfig>> {
        self.networks.list().map_err(plain)
    }

    /// Lists the places of running containers in a network.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn network_endpoints(
        &self,
        config: &NetworkConfig,
    ) -> Result<Vec<amphora_network::Endpoint>> {
        self.networks.attached(config).map_err(plain)
    }

    /// Removes the networks that no container is to be in, running or not. `keep` says which stay
    /// all the same. Returns those that went.
    ///
    /// # Errors
    /// When networks or containers cannot be listed, or one cannot be removed. What a container
    /// that cannot be read is to be in nobody knows: then none is removed.
    pub fn prune_networks(
        &self,
        keep: &dyn Fn(&NetworkConfig) -> bool,
    ) -> Result<Vec<NetworkConfig>> {
        let mut wanted = Vec::new();
        for id in self.ids()? {
            match self.config(&id) {
                Ok(c) => wanted.extend(c.host.attachments().into_iter().map(|a| a.network)),
                Err(EngineError::NoSuchContainer(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let is_wanted = |c: &NetworkConfig| {
            let by =
                |text: &String| *text == c.name || (text.len() >= 12 && c.id.starts_with(text));
            wanted.iter().any(by)
        };
        let kept = |c: &NetworkConfig| is_wanted(c) || keep(c);
        let (gone, errors) = self.networks.prune(&kept).map_err(plain)?;
        for config in &gone {
            self.note_network("destroy", config);
        }
        match errors.into_iter().next() {
            Some(error) => Err(plain(error)),
            None => Ok(gone),
        }
    }

    /// Has the kernel know of a network's hosts what its changed file says, and tells of it in an
    /// event, also of what is wrong with the file. Started by a supervisor that watches it.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn follow_peers(&self, network: &str) -> Result<()> {
        let (config, told) = self.networks.follow_peers(network).map_err(plain)?;
        let error = told.err().map(|e| amphora_spec::error::chain(&e));
        let mut attributes = vec![
            ("name", config.name.as_str()),
            ("type", config.driver.as_str()),
        ];
        attributes.extend(error.as_deref().map(|e| ("error", e)));
        self.note("network", "peers", &config.id, &attributes);
        Ok(())
    }

    fn note_network(&self, action: &str, config: &NetworkConfig) {
        let attributes = [
            ("name", config.name.as_str()),
            ("type", config.driver.as_str()),
        ];
        self.note("network", action, &config.id, &attributes);
    }

    /// Puts a container into a network, a running one at once. Returns what other firewalls do to
    /// its packets there.
    ///
    /// # Errors
    /// It is in the network already, shares somebody's namespace, or a step failed.
    pub fn connect_network(
        &self,
        container: &str,
        attachment: &NetworkAttachment,
    ) -> Result<Vec<String>> {
        let network = self.network(&attachment.network)?;
        let id = self.find(container)?;
        self.reconcile_one(&id)?;
        let _lock = self.lock_config(&id)?;
        let mut config = self.config(&id)?;
        refuse_shared(&config, &network)?;
        crate::network_check::check_endpoint(attachment, &network)?;
        let mut all = config.host.attachments();
        if all.iter().any(|a| names(a, &network)) {
            return Err(plain(NetworkError::AlreadyConnected {
                container: config.name,
                network: network.name,
            }));
        }
        let asked = NetworkAttachment {
            network: network.name.clone(),
            ..attachment.clone()
        };
        asked.check(&network).map_err(plain)?;
        all.push(asked.clone());
        let hostname = told_hostname(&config);
        let before = config.clone();
        config.host.unconnected = false;
        config.host.networks = all;
        let running = self.running(&id)?;
        self.keep_config(&config)?;
        let Some(running) = running else {
            return Ok(Vec::new());
        };
        let request = ConnectRequest {
            container: id,
            netns: running.netns.as_fd(),
            attachment: asked,
            hostname,
        };
        let reached = self
            .networks
            .connect(&request, &mut |to| self.tell(&running, to));
        let mut reached = reached.map_err(plain).inspect_err(|_| {
            // The failure that led here is the one to tell.
            let _ = self.keep_config(&before);
        })?;
        // It is connected, whatever becomes of what is written in files.
        let hosts = self.add_hosts(&config, &reached.endpoint, &request.attachment);
        reached.hints.extend(hosts.err().map(|e| chain(&e)));
        self.defer_network(&config, "connect", &reached.endpoint);
        self.flush_events();
        Ok(reached.hints)
    }

    /// Takes a container out of a network, a running one at once. Returns what of its files could
    /// not be changed.
    ///
    /// # Errors
    /// It is not in the network, or a step failed.
    pub fn disconnect_network(&self, container: &str, network: &str) -> Result<Vec<String>> {
        let network = self.network(network)?;
        let id = self.find(container)?;
        self.reconcile_one(&id)?;
        let _lock = self.lock_config(&id)?;
        let mut config = self.config(&id)?;
        match (&config.host.network, network.name.as_str()) {
            (NetworkMode::Host, "host") => return Err(EngineError::Invalid(HOST.to_owned())),
            (NetworkMode::None, "none") => {
                // It may join others from now on.
                config.host.network = NetworkMode::Bridge;
                config.host.networks.clear();
                config.host.unconnected = true;
                return self.keep_config(&config).map(|()| Vec::new());
            }
            _ => {}
        }
        let mut all = config.host.attachments();
        let asked = all.iter().position(|a| names(a, &network));
        if asked.map(|at| all.remove(at)).is_none() {
            return Err(plain(NetworkError::NotConnected {
                container: id.hex(),
                network: network.name,
            }));
        }
        let last = config.clone();
        config.host.unconnected = all.is_empty();
        config.host.networks = all;
        let running = self.running(&id)?;
        self.keep_config(&config)?;
        let Some(running) = running else {
            return Ok(Vec::new());
        };
        let mut tell = |to: &Reached| self.tell(&running, to);
        let netns = running.netns.as_fd();
        let left = self.networks.disconnect(&id, netns, &network.id, &mut tell);
        let reached = left.map_err(plain).inspect_err(|_| {
            let _ = self.keep_config(&last);
        })?;
        let hosts = self.remove_hosts(&config, &reached.endpoint);
        self.defer_network(&config, "disconnect", &reached.endpoint);
        self.flush_events();
        Ok(hosts.err().map(|e| chain(&e)).into_iter().collect())
    }

    /// A container that runs and can be changed; `None` for one at rest.
    fn running(&self, id: &ContainerId) -> Result<Option<Running>> {
        let view = self.view(id)?;
        if view.status == Status::Restarting {
            return Err(EngineError::State(format!(
                "Container {id} is restarting, wait until the container is running"
            )));
        }
        let (Some(state), Status::Running) = (&view.state, view.status) else {
            if Lock::is_held(&self.run_dir(id)) {
                // Whoever starts it has read what it is to be by now.
                return Err(EngineError::State(format!(
                    "Container {id} is being started or removed, wait until that is done"
                )));
            }
            return Ok(None);
        };
        let path = format!("/proc/{}/ns/net", state.init_pid);
        let netns = std::fs::File::open(&path);
        let netns = netns.map_err(|e| EngineError::file("open", Path::new(&path), e))?;
        // Had it ended meanwhile, the number could be another's by now.
        if !self.is_same_run(&view) {
            return Err(crate::lifecycle::not_running(&view));
        }
        let client = self.ports_client(&view)?;
        Ok(Some(Running {
            id: *id,
            netns: netns.into(),
            client: RefCell::new(client),
        }))
    }

    /// Has the supervisor release what the container has now, and serve its ports where it is.
    fn tell(&self, running: &Running, reached: &Reached) -> std::io::Result<()> {
        let failed = |e: &dyn std::error::Error| std::io::Error::other(e.to_string());
        let run = open_dir(&self.run_dir(&running.id)).map_err(|e| failed(&e))?;
        let config = Config::read(run.as_fd()).map_err(|e| failed(&e))?;
        let config = config.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        let of_networks = |r: &Release| matches!(r, Release::Netlink { .. } | Release::Unlink(_));
        // While they lead nowhere, the kernel refuses at once to connect there.
        let inside = IpAddr::from(reached.inside.unwrap_or(Ipv4Addr::BROADCAST));
        let moved = |l: &Listener| Listener {
            target: l.target.map(|t| SocketAddr::new(inside, t.port())),
        };
        let change = PortsChange {
            forget: config.release.into_iter().filter(of_networks).collect(),
            release: reached.release.clone(),
            was: config.listeners.len(),
            listeners: config.listeners.iter().map(moved).collect(),
            ..PortsChange::default()
        };
        let mut client = running.client.borrow_mut();
        client.change_ports(change, &[]).map_err(|e| failed(&e))
    }

    fn keep_config(&self, config: &ContainerConfig) -> Result<()> {
        self.write_config(&mut config.clone(), Lasting::Long)
    }
}

/// Whether an attachment is to this network.
fn names(attachment: &NetworkAttachment, network: &NetworkConfig) -> bool {
    let text = attachment.network.as_str();
    text == network.name || (text.len() >= 12 && network.id.starts_with(text))
}

/// Docker's rule: who has somebody else's network, or none, has no other.
fn refuse_shared(config: &ContainerConfig, network: &NetworkConfig) -> Result<()> {
    if !config.host.network.is_own() {
        return Err(EngineError::Invalid(
            "container sharing network namespace with another container or host cannot be \
             connected to any other network"
                .to_owned(),
        ));
    }
    let private = config.host.network == NetworkMode::None;
    match network.name.as_str() {
        "host" => Err(EngineError::Invalid(HOST.to_owned())),
        "none" => Err(private_mode()),
        _ if private => Err(private_mode()),
        _ => Ok(()),
    }
}

fn private_mode() -> EngineError {
    EngineError::Invalid(
        "container cannot be connected to multiple networks with one of the networks in private \
         (none) mode"
            .to_owned(),
    )
}
