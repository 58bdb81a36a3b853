//! What a container finds of names: `/etc/resolv.conf`, and what its name server is told.

use std::net::IpAddr;

use amphora_network::files::{self, ResolvOverrides};
use amphora_supervisor::names::{ADDRESS, Place, Settings};

use crate::config::{ContainerConfig, DnsConfig, NetworkMode};
use crate::{Engine, EngineError, Result};

/// The port of name servers.
const PORT: u16 = 53;

/// How a container resolves names.
#[derive(Debug)]
pub(crate) struct Resolving {
    /// `/etc/resolv.conf`.
    pub(crate) text: String,
    /// What its name server is told; `None`: it has none.
    pub(crate) server: Option<Settings>,
}

/// Whether a container has a name server: with a network of ours.
pub(crate) fn has_server(config: &ContainerConfig) -> bool {
    config.host.network.is_connected()
}

/// Where its name server listens: elsewhere, where the container is to serve names itself.
pub(crate) fn place(config: &ContainerConfig) -> Place {
    let exposed = config.exposed.iter().any(|exposed| {
        let port = exposed.split_once('/').map_or(exposed.as_str(), |(p, _)| p);
        port.parse() == Ok(PORT)
    });
    let published = config.host.ports.iter().any(|p| p.container_port == PORT);
    if exposed || published {
        Place::Aside
    } else {
        Place::Here
    }
}

impl Engine {
    pub(crate) fn resolving(&self, config: &ContainerConfig) -> Result<Resolving> {
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let overrides = resolv_overrides(&config.host.dns)?;
        let text = if has_server(config) {
            let own = files::own_resolv_conf(&host, &overrides, IpAddr::from(ADDRESS));
            let server = Settings {
                data: self.options.root.clone(),
                run: self.options.run_root.clone(),
                container: config.id.hex(),
                servers: overrides.servers,
                bare_names_stay: own.bare_names_stay,
                place: place(config),
            };
            return Ok(Resolving {
                text: own.text,
                server: Some(server),
            });
        } else if config.host.network != NetworkMode::Host {
            files::resolv_conf(&host, &overrides, false)
        } else if overrides == ResolvOverrides::default() {
            host
        } else {
            files::resolv_conf(&host, &overrides, true)
        };
        Ok(Resolving { text, server: None })
    }
}

/// What `/etc/resolv.conf` says in place of the host's.
fn resolv_overrides(dns: &DnsConfig) -> Result<ResolvOverrides> {
    let address = |text: &String| {
        text.parse()
            .map_err(|_| EngineError::Invalid(format!("invalid DNS server address: \"{text}\"")))
    };
    Ok(ResolvOverrides {
        servers: dns.servers.iter().map(address).collect::<Result<_>>()?,
        search: dns.search.clone(),
        options: dns.options.clone(),
    })
}
