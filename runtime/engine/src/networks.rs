//! Networks as the command line sees them, and containers that join and leave them.

use amphora_network::{CreateNetwork, NetworkAttachment, NetworkConfig, NetworkError};
use amphora_spec::ContainerId;

use crate::config::ContainerConfig;
use crate::files::{Lasting, write_json};
use crate::{Engine, EngineError, Result};

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
    /// When networks or containers cannot be listed, or one cannot be removed.
    pub fn prune_networks(
        &self,
        keep: &dyn Fn(&NetworkConfig) -> bool,
    ) -> Result<Vec<NetworkConfig>> {
        let mut wanted = Vec::new();
        for id in self.ids()? {
            if let Ok(config) = self.config(&id) {
                wanted.extend(config.host.attachments().into_iter().map(|a| a.network));
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
        if self.view(&id)?.status.is_active() {
            return Err(EngineError::Unsupported(
                "a running container cannot join a network yet".to_owned(),
            ));
        }
        all.push(asked);
        config.host.unconnected = false;
        config.host.networks = all;
        self.keep_config(&config)?;
        Ok(Vec::new())
    }

    /// Takes a container out of a network, a running one at once.
    ///
    /// # Errors
    /// It is not in the network, or a step failed.
    pub fn disconnect_network(&self, container: &str, network: &str) -> Result<()> {
        let network = self.network(network)?;
        let id = self.find(container)?;
        self.reconcile_one(&id)?;
        let _lock = self.lock_config(&id)?;
        let mut config = self.config(&id)?;
        let mut all = config.host.attachments();
        let before = all.len();
        all.retain(|a| !names(a, &network));
        if all.len() == before {
            return Err(plain(NetworkError::NotConnected {
                container: id.hex(),
                network: network.name,
            }));
        }
        if self.view(&id)?.status.is_active() {
            return Err(EngineError::Unsupported(
                "a running container cannot leave a network yet".to_owned(),
            ));
        }
        config.host.unconnected = all.is_empty();
        config.host.networks = all;
        self.keep_config(&config)
    }

    fn keep_config(&self, config: &ContainerConfig) -> Result<()> {
        let path = self.container_dir(&config.id).join("config.json");
        write_json(&path, config, Lasting::Long)
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
    let private = config.host.network == crate::config::NetworkMode::None;
    match network.name.as_str() {
        "host" => Err(EngineError::Invalid(
            "container cannot be connected to host network".to_owned(),
        )),
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
