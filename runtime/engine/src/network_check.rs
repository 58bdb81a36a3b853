//! What a container asks of networks, checked before anything is made, in Docker's words.

use std::net::IpAddr;

use amphora_network::{NetworkAttachment, NetworkConfig};

use crate::config::{ContainerConfig, HostConfig, NetworkMode};
use crate::hosts_file::linked_names;
use crate::{Engine, EngineError, Result};

/// Refuses what does not go together with the network mode.
fn check_mode(host: &HostConfig, hostname: bool, expose: bool) -> Result<()> {
    let undefined =
        "type networking can't be used with links. This would result in undefined behavior";
    if host.network == NetworkMode::Host && !host.links.is_empty() {
        return invalid(format!("conflicting options: host {undefined}"));
    }
    let Some(name) = host.network.container() else {
        return Ok(());
    };
    if name.is_empty() {
        let text = "Invalid network mode: invalid container format container:<name|id>";
        return invalid(text.to_owned());
    }
    let ports = !host.ports.is_empty() || host.publish_all;
    let conflicts = [
        (hostname, "hostname and the network mode"),
        (
            !host.links.is_empty(),
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (!host.dns.servers.is_empty(), "dns and the network mode"),
        (
            !host.extra_hosts.is_empty(),
            "custom host-to-IP mapping and the network mode",
        ),
        (ports, "port publishing and the container type network mode"),
        (expose, "port exposing and the container type network mode"),
    ];
    match conflicts.iter().find(|(both, _)| *both) {
        Some((_, what)) => invalid(format!("conflicting options: {what}")),
        None => Ok(()),
    }
}

fn invalid<T>(text: String) -> Result<T> {
    Err(EngineError::Invalid(text))
}

/// Docker's list of what is wrong with an endpoint: one stands alone, more have stars.
fn told(errors: &[String]) -> Option<String> {
    match errors {
        [] => None,
        [one] => Some(format!("invalid endpoint settings:\n{one}")),
        more => {
            let lines: Vec<String> = more.iter().map(|e| format!("* {e}")).collect();
            Some(format!("invalid endpoint settings:\n{}", lines.join("\n")))
        }
    }
}

/// What is wrong with what is asked of a network, where it is known.
fn endpoint_errors(asked: &NetworkAttachment, network: Option<&NetworkConfig>) -> Vec<String> {
    let mut errors = Vec::new();
    let named = |name: &str| matches!(name, "bridge" | "default" | "host" | "none");
    let container = asked.network.starts_with("container:");
    let user =
        !container && !network.map_or_else(|| named(&asked.network), NetworkConfig::is_predefined);
    let addresses: Vec<IpAddr> = asked
        .ip
        .map(IpAddr::from)
        .into_iter()
        .chain(asked.ip6.map(IpAddr::from))
        .collect();
    if !user && !addresses.is_empty() {
        errors.push("user specified IP address is supported on user defined networks only".into());
    }
    if !user && !asked.aliases.is_empty() {
        errors.push(
            "network-scoped alias is supported only for containers in user defined networks".into(),
        );
    }
    let Some(network) = network else {
        return errors;
    };
    for address in addresses {
        let of_family = [network.subnet, network.subnet6].into_iter().flatten();
        let mut subnets = of_family
            .filter(|s| s.base().is_ipv4() == address.is_ipv4())
            .peekable();
        if !user || subnets.peek().is_none() {
            errors.push("user specified IP address is supported only when connecting to networks with user configured subnets".into());
        } else if !subnets.any(|s| s.contains(address)) {
            errors.push(format!(
                "no configured subnet or ip-range contain the IP address {address}"
            ));
        }
    }
    errors
}

/// Checks what is asked of one network that a container is to be connected to.
pub(crate) fn check_endpoint(asked: &NetworkAttachment, network: &NetworkConfig) -> Result<()> {
    match told(&endpoint_errors(asked, Some(network))) {
        Some(text) => invalid(text),
        None => Ok(()),
    }
}

impl Engine {
    /// Checks modes and what a new container asks of its networks, and calls them by their names. One that
    /// is not there is no error yet.
    pub(crate) fn check_networks(
        &self,
        host: &mut HostConfig,
        hostname: bool,
        expose: &[String],
    ) -> Result<()> {
        check_mode(host, hostname, !expose.is_empty())?;
        for link in &mut host.links {
            let (target, alias) = link_parts(link);
            *link = format!("{}:{alias}", self.linked(target)?.name);
        }
        for asked in &mut host.networks {
            let network = self.networks.find(&asked.network).ok();
            if let Some(text) = told(&endpoint_errors(asked, network.as_ref())) {
                let name = &asked.network;
                return invalid(format!("invalid config for network {name}: {text}"));
            }
            if let Some(network) = network {
                asked.network = network.name;
            }
        }
        if host.network.container().is_some() {
            // Whatever else was asked for, the other container has it already.
            host.networks.clear();
        }
        crate::modes::check(host, hostname)
    }

    /// The addresses of the containers that a container is linked to, by alias and names. On the
    /// default network they must run; on others an alias that leads nowhere is none.
    pub(crate) fn link_hosts(&self, host: &HostConfig) -> Result<Vec<(String, IpAddr)>> {
        let mut hosts = Vec::new();
        for link in &host.links {
            let (target, alias) = link_parts(link);
            let config = self.linked(target)?;
            let address = self.address_in(&config, "bridge").ok_or_else(|| {
                EngineError::State(format!(
                    "Cannot link to a non running container: /{} AS /{alias}",
                    config.name
                ))
            })?;
            hosts.push((linked_names(alias, &config), address));
        }
        for asked in &host.networks {
            hosts.extend(self.aliases_of_others(asked));
        }
        Ok(hosts)
    }

    /// What a container calls others in a network of the user's.
    pub(crate) fn aliases_of_others(&self, asked: &NetworkAttachment) -> Vec<(String, IpAddr)> {
        let find = |link: &String| {
            let (target, alias) = link_parts(link);
            let config = self.linked(target).ok()?;
            let address = self.address_in(&config, &asked.network)?;
            Some((alias.to_owned(), address))
        };
        asked.links.iter().filter_map(find).collect()
    }

    fn address_in(&self, config: &ContainerConfig, network: &str) -> Option<IpAddr> {
        let endpoints = self.networks.endpoints_of(&config.id).ok()?;
        let endpoint = endpoints.iter().find(|e| e.network == network)?;
        Some(endpoint.address.into())
    }

    fn linked(&self, target: &str) -> Result<ContainerConfig> {
        let id = self.find(target).map_err(|_| {
            EngineError::Invalid(format!(
                "could not get container for {target}: No such container: {target}"
            ))
        })?;
        self.config(&id)
    }
}

/// Target and alias of a link: `name:alias`, or a name alone.
pub(crate) fn link_parts(link: &str) -> (&str, &str) {
    match link.split_once(':') {
        Some((target, alias)) if !alias.is_empty() => (target, alias),
        Some((target, _)) => (target, target),
        None => (link, link),
    }
}
