//! Ports published and taken back behind a container's creation, running or not.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use amphora_network::{NetworkError, PortChange, PortRequest, Protocol, PublishedPort};
use amphora_spec::ContainerId;
use amphora_supervisor::{Client, Config, Listener, PortsChange, Reserved, SupervisorError};

use crate::config::ContainerConfig;
use crate::container::{ContainerView, Status};
use crate::files::{Lasting, open_dir};
use crate::start::host_netns;
use crate::{Engine, EngineError, Result};

impl Engine {
    /// Publishes more ports of a container, at once when it runs, and at every start from now on.
    /// Returns those that are published now.
    ///
    /// # Errors
    /// A taken host port; a container without a network of its own; everything is as before then.
    pub fn publish(
        &self,
        id: &ContainerId,
        requests: &[PortRequest],
    ) -> Result<Vec<PublishedPort>> {
        let _lock = self.lock_config(id)?;
        let (mut config, view) = self.for_ports(id)?;
        config.host.ports.extend(requests.iter().cloned());
        let Some(view) = view else {
            self.keep_ports(&config)?;
            return Ok(Vec::new());
        };
        let mut client = self.ports_client(&view)?;
        let change = match self.networks.more_ports(id, requests) {
            Err(e) if self.reconcile_all()? == 0 => return Err(EngineError::plain(e)),
            // What was in the way may have been left by a container whose supervisor was killed.
            Err(_) => self.networks.more_ports(id, requests),
            change => change,
        };
        let mut change = change.map_err(EngineError::plain)?;
        let listeners = std::mem::take(&mut change.listeners);
        let (given, sockets): (Vec<_>, Vec<OwnedFd>) = listeners
            .into_iter()
            .map(|l| (Listener { target: l.target }, l.fd))
            .unzip();
        let told = client.change_ports(forth(&change, given), &sockets);
        let published = told.map_err(|e| no_supervisor(e, &view)).and_then(|()| {
            let rules = self.networks.change_ports(&change);
            rules.map_err(EngineError::plain)?;
            if client.has_ended() || !self.is_same_run(&view) {
                return Err(crate::lifecycle::not_running(&view));
            }
            self.keep_ports(&config)
        });
        match published {
            Ok(()) => Ok(change.added()),
            Err(e) => {
                let _ = self.networks.unchange_ports(&change);
                let _ = client.change_ports(back(&change), &[]);
                Err(e)
            }
        }
    }

    /// Takes ports of a container back, at once when it runs, and for every start from now on.
    /// Connections that have been made go on.
    ///
    /// # Errors
    /// A port that is not published; everything is as before then.
    pub fn unpublish(&self, id: &ContainerId, requests: &[PortRequest]) -> Result<()> {
        let _lock = self.lock_config(id)?;
        let (mut config, view) = self.for_ports(id)?;
        let before = config.clone();
        let Some(view) = view else {
            forget_requests(&mut config, requests)?;
            return self.keep_ports(&config);
        };
        let mut client = self.ports_client(&view)?;
        let change = self.networks.fewer_ports(id, requests);
        let change = change.map_err(EngineError::plain)?;
        forget_published(&mut config, change.before(), &change.removed());
        self.networks
            .change_ports(&change)
            .map_err(EngineError::plain)?;
        let kept = self.keep_ports(&config).and_then(|()| {
            let told = client.change_ports(forth(&change, Vec::new()), &[]);
            told.map_err(|e| no_supervisor(e, &view))
        });
        kept.inspect_err(|_| {
            let _ = self.keep_ports(&before);
            let _ = self.networks.unchange_ports(&change);
        })
    }

    /// Makes the rules of running containers again if somebody removed them, and says so.
    ///
    /// # Errors
    /// When they cannot be looked at or made.
    pub fn repair_rules(&self) -> Result<Option<&'static str>> {
        self.networks.repair().map_err(EngineError::plain)
    }

    /// Says what other firewalls of this host do to the packets of containers.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn firewall_hints(&self) -> Result<Vec<String>> {
        self.networks.hints().map_err(EngineError::plain)
    }

    /// What ports are changed of: the configuration, and the container as it is unless it rests.
    fn for_ports(&self, id: &ContainerId) -> Result<(ContainerConfig, Option<ContainerView>)> {
        self.reconcile_one(id)?;
        let view = self.view(id)?;
        let network = &view.config.host.network;
        if !network.is_connected() {
            return Err(EngineError::State(format!(
                "container {} is in network mode \"{}\", in which no ports are published",
                view.config.name,
                view.config.host.network.name()
            )));
        }
        if view.status == Status::Restarting {
            return Err(EngineError::State(format!(
                "Container {id} is restarting, wait until the container is running"
            )));
        }
        let config = view.config.clone();
        Ok((config, Some(view).filter(|v| v.status == Status::Running)))
    }

    fn keep_ports(&self, config: &ContainerConfig) -> Result<()> {
        self.write_config(&mut config.clone(), Lasting::Long)
    }

    /// A connection to the supervisor, which must have its ports where this process is.
    pub(crate) fn ports_client(&self, view: &ContainerView) -> Result<Client> {
        let run = self.run_dir(&view.config.id);
        let dir = open_dir(&run)?;
        let config = Config::read(dir.as_fd()).map_err(EngineError::plain)?;
        match config.and_then(|c| c.netns) {
            Some(its) if its != host_netns()? => {
                return Err(EngineError::State(format!(
                    "the ports of container {} are in another network namespace (net:[{}]): \
                     change them there",
                    view.config.name, its.1
                )));
            }
            _ => {}
        }
        Client::connect(&run).map_err(|e| no_supervisor(e, view))
    }
}

fn no_supervisor(error: SupervisorError, view: &ContainerView) -> EngineError {
    match error {
        SupervisorError::NotRunning(_) => crate::lifecycle::not_running(view),
        SupervisorError::Lost(_) => EngineError::State(format!(
            "the supervisor of container {} was started by a version of amphora that cannot \
             change ports, or has just ended: restart the container",
            view.config.name
        )),
        e => EngineError::plain(e),
    }
}

/// What the supervisor is told for a change.
fn forth(change: &PortChange, given: Vec<Listener>) -> PortsChange {
    PortsChange {
        forget: change.old_release(),
        release: change.new_release(),
        close: change.removed().iter().map(reserved).collect(),
        was: change.before().len(),
        listeners: listeners(change.targets()),
        given,
    }
}

/// What it is told when the change does not come about after all.
fn back(change: &PortChange) -> PortsChange {
    let mut kept = listeners(change.targets());
    kept.truncate(change.before().len());
    PortsChange {
        forget: change.new_release(),
        release: change.old_release(),
        close: change.added().iter().map(reserved).collect(),
        was: change.after().len(),
        listeners: kept,
        given: Vec::new(),
    }
}

fn listeners(targets: Vec<Option<SocketAddr>>) -> Vec<Listener> {
    targets
        .into_iter()
        .map(|target| Listener { target })
        .collect()
}

fn reserved(port: &PublishedPort) -> Reserved {
    Reserved {
        address: SocketAddr::new(port.host_ip, port.host_port),
        protocol: match port.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        },
    }
}

/// Takes requests out of a configuration that is at rest.
fn forget_requests(config: &mut ContainerConfig, requests: &[PortRequest]) -> Result<()> {
    let goes = |kept: &PortRequest, request: &PortRequest| {
        kept.container_port == request.container_port
            && kept.protocol == request.protocol
            && request.host_ip.is_none_or(|ip| kept.host_ip == Some(ip))
            && (request.host_port.is_none()
                || (request.host_port, request.host_port_end)
                    == (kept.host_port, kept.host_port_end))
    };
    let missing = requests
        .iter()
        .find(|request| !config.host.ports.iter().any(|kept| goes(kept, request)));
    if let Some(request) = missing {
        let error = NetworkError::NotPublished(request.to_string(), config.name.clone());
        return Err(EngineError::plain(error));
    }
    let ports = &mut config.host.ports;
    ports.retain(|kept| !requests.iter().any(|request| goes(kept, request)));
    Ok(())
}

/// Takes published ports out of a configuration. What a request gave beside them is asked for by
/// name from now on; so is what is published for being exposed.
fn forget_published(
    config: &mut ContainerConfig,
    published: &[PublishedPort],
    removed: &[PublishedPort],
) {
    let asked = std::mem::take(&mut config.host.ports);
    let all = std::mem::take(&mut config.host.publish_all);
    let mut given: Vec<Vec<&PublishedPort>> = asked.iter().map(|_| Vec::new()).collect();
    let mut exposed = Vec::new();
    for port in published {
        // The most exact request is the one that it came from.
        let exact = |(_, r): &(usize, &PortRequest)| {
            (
                r.host_ip.is_some(),
                r.host_port.is_some(),
                r.host_port_end.is_none(),
            )
        };
        let named = asked.iter().enumerate().filter(|(_, r)| r.names(port));
        let place = named.max_by_key(exact).and_then(|(n, _)| given.get_mut(n));
        match place {
            Some(place) => place.push(port),
            None => exposed.push(port),
        }
    }
    let stays = |port: &&&PublishedPort| !removed.contains(port);
    for (request, ports) in asked.into_iter().zip(given) {
        if ports.iter().all(|port| !removed.contains(port)) {
            config.host.ports.push(request);
        } else {
            let rest = ports.iter().filter(stays).map(|port| by_name(port));
            config.host.ports.extend(rest);
        }
    }
    config.host.publish_all = all && !exposed.iter().any(|port| removed.contains(port));
    if all && !config.host.publish_all {
        for port in exposed.iter().filter(stays) {
            let request = PortRequest {
                container_port: port.container_port,
                protocol: port.protocol,
                ..PortRequest::default()
            };
            if !config.host.ports.contains(&request) {
                config.host.ports.push(request);
            }
        }
    }
}

fn by_name(port: &PublishedPort) -> PortRequest {
    PortRequest {
        host_ip: Some(port.host_ip),
        host_port: Some(port.host_port),
        host_port_end: None,
        container_port: port.container_port,
        protocol: port.protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ports: &[&str], publish_all: bool) -> ContainerConfig {
        let text = include_str!("../testdata/config-v1.json");
        let mut config: ContainerConfig = serde_json::from_str(text).unwrap();
        config.host.ports = requests(ports);
        config.host.publish_all = publish_all;
        config
    }

    fn requests(specs: &[&str]) -> Vec<PortRequest> {
        let all = specs.iter().map(|s| crate::port_specs(s).unwrap());
        all.flatten().collect()
    }

    fn published(all: &[(&str, u16, u16)]) -> Vec<PublishedPort> {
        let port = |(ip, host_port, container_port): &(&str, u16, u16)| PublishedPort {
            host_ip: ip.parse().unwrap(),
            host_port: *host_port,
            container_port: *container_port,
            protocol: Protocol::Tcp,
        };
        all.iter().map(port).collect()
    }

    #[test]
    fn what_a_request_gave_beside_what_goes_is_kept() {
        let mut config = config(&["8080:80", "8000-8010:81", "80"], false);
        let all = published(&[
            ("0.0.0.0", 8080, 80),
            ("::", 8080, 80),
            ("0.0.0.0", 8000, 81),
            ("0.0.0.0", 32768, 80),
        ]);
        forget_published(&mut config, &all, &all[1..3]);
        assert_eq!(config.host.ports, requests(&["0.0.0.0:8080:80", "80"]));
        forget_published(&mut config, &[all[0], all[3]], &all[3..]);
        assert_eq!(config.host.ports, requests(&["0.0.0.0:8080:80"]));
    }

    #[test]
    fn what_was_exposed_is_published_by_name_once_one_of_it_is_not() {
        let mut config = config(&["8080:80"], true);
        let all = published(&[
            ("0.0.0.0", 8080, 80),
            ("0.0.0.0", 32768, 90),
            ("0.0.0.0", 32769, 91),
        ]);
        forget_published(&mut config, &all, &all[..1]);
        assert!(config.host.publish_all && config.host.ports.is_empty());
        forget_published(&mut config, &all[1..], &all[1..2]);
        assert!(!config.host.publish_all);
        assert_eq!(config.host.ports, requests(&["91"]));
    }

    #[test]
    fn requests_at_rest_go_as_they_were_made() {
        let mut config = config(&["8080:80", "127.0.0.1:81:81", "90-91:90-91/udp"], false);
        let error = forget_requests(&mut config, &requests(&["8081:80"])).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("No public port '8081:80/tcp'"),
            "{error}"
        );
        forget_requests(
            &mut config,
            &requests(&["80", "127.0.0.1:81:81", "91:91/udp"]),
        )
        .unwrap();
        assert_eq!(config.host.ports, requests(&["90:90/udp"]));
    }
}
