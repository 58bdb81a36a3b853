//! Ports published and taken back while the container runs.
//!
//! The sockets are had first and the rules come last, so that nobody else is led astray by what
//! fails in between; the record lies between both, so that what was cut off is found by it.

use amphora_spec::ContainerId;
use amphora_spec::release::Release;
use amphora_sys::netlink::NETFILTER;

use crate::conntrack;
use crate::endpoint::{Endpoint, with_host_ip};
use crate::ensure::host_has_ipv6;
use crate::error::{BindFailure, NetworkError, Result, kernel, netlink};
use crate::networks::Networks;
use crate::nft;
use crate::ports::{Listener, PortRequest, Protocol, PublishedPort, is_served, reserve};

/// Other ports for a container that is attached: had, not yet published.
#[derive(Debug)]
pub struct PortChange {
    before: Endpoint,
    after: Endpoint,
    /// What ends UDP conversations, for a container that had none so far.
    conversations: Option<Release>,
    /// Sockets of the new ports, in the order of [`PortChange::added`].
    pub listeners: Vec<Listener>,
}

impl PortChange {
    /// Returns every port as it was.
    #[must_use]
    pub fn before(&self) -> &[PublishedPort] {
        &self.before.ports
    }

    /// Returns every port as it will be.
    #[must_use]
    pub fn after(&self) -> &[PublishedPort] {
        &self.after.ports
    }

    /// Returns the new ports.
    #[must_use]
    pub fn added(&self) -> Vec<PublishedPort> {
        missing(&self.after.ports, &self.before.ports)
    }

    /// Returns the ports that go.
    #[must_use]
    pub fn removed(&self) -> Vec<PublishedPort> {
        missing(&self.before.ports, &self.after.ports)
    }

    /// Returns what the supervisor serves or holds for each port as it will be, in their order.
    #[must_use]
    pub fn targets(&self) -> Vec<Option<std::net::SocketAddr>> {
        let inside = self.after.address;
        let target = |port: &PublishedPort| is_served(port, inside);
        self.after.ports.iter().map(target).collect()
    }

    /// Returns what frees the ports as they were.
    #[must_use]
    pub fn old_release(&self) -> Vec<Release> {
        release(&self.before).into_iter().collect()
    }

    /// Returns what frees the ports as they will be, in the place of [`PortChange::old_release`].
    #[must_use]
    pub fn new_release(&self) -> Vec<Release> {
        let rules = release(&self.after).into_iter();
        rules.chain(self.conversations.clone()).collect()
    }
}

/// What is in `all` and not in `others`.
fn missing<T: PartialEq + Clone>(all: &[T], others: &[T]) -> Vec<T> {
    all.iter()
        .filter(|one| !others.contains(one))
        .cloned()
        .collect()
}

fn has_udp(endpoint: &Endpoint) -> bool {
    let udp = |port: &PublishedPort| port.protocol == Protocol::Udp;
    endpoint.ports.iter().any(udp)
}

fn release(endpoint: &Endpoint) -> Option<Release> {
    nft::remove_batch(&endpoint.elements()).map(|bytes| Release::Netlink {
        protocol: NETFILTER,
        bytes,
    })
}

fn turn_rules(from: &Endpoint, to: &Endpoint) -> Result<()> {
    let socket = nft::open().map_err(kernel("open nftables"))?;
    let (old, new) = (from.elements(), to.elements());
    let step = format!("publish the ports of container {}", to.container.short());
    nft::change(&socket, &missing(&old, &new), &missing(&new, &old)).map_err(netlink(step))?;
    let gone = missing(&from.ports, &to.ports);
    let come = missing(&to.ports, &from.ports);
    let udp = |port: &&PublishedPort| port.protocol == Protocol::Udp;
    let changed: Vec<_> = gone.iter().chain(&come).filter(udp).collect();
    if !changed.is_empty() {
        conntrack::forget_ports(&socket, &changed);
    }
    Ok(())
}

impl Networks {
    /// Has more ports for a container that is attached. Nothing is published yet:
    /// [`Networks::change_ports`].
    ///
    /// # Errors
    /// [`NetworkError::NoEndpoint`]; a taken host port is a conflict.
    pub fn more_ports(&self, id: &ContainerId, requests: &[PortRequest]) -> Result<PortChange> {
        let before = self.publishing(id)?;
        let config = self.find(&before.network_id)?;
        let requests = with_host_ip(requests, &config);
        let reserved = reserve(&requests, before.address, host_has_ipv6());
        let (ports, listeners) = reserved.map_err(|error| self.allocated(error))?;
        let mut after = before.clone();
        after.ports.extend(ports);
        let mut conversations = None;
        if has_udp(&after) && !has_udp(&before) {
            let socket = nft::open().map_err(kernel("open nftables"))?;
            conversations = conntrack::forget(&socket, &after);
        }
        Ok(PortChange {
            before,
            after,
            conversations,
            listeners,
        })
    }

    /// The ports of a container that is attached without those that the requests name: all of a
    /// container's port, or those at a host port and address.
    ///
    /// # Errors
    /// [`NetworkError::NoEndpoint`]; [`NetworkError::NotPublished`] for a request that names none.
    pub fn fewer_ports(&self, id: &ContainerId, requests: &[PortRequest]) -> Result<PortChange> {
        let before = self.publishing(id)?;
        for request in requests {
            if !before.ports.iter().any(|port| request.names(port)) {
                return Err(NetworkError::NotPublished(request.to_string(), id.short()));
            }
        }
        let mut after = before.clone();
        after
            .ports
            .retain(|port| !requests.iter().any(|r| r.names(port)));
        Ok(PortChange {
            before,
            after,
            conversations: None,
            listeners: Vec::new(),
        })
    }

    /// Publishes what a change adds, and takes back what it removes, in one transaction.
    ///
    /// # Errors
    /// When the record or the rules cannot be changed; everything is as before then.
    pub fn change_ports(&self, change: &PortChange) -> Result<()> {
        let (from, to) = (&change.before, &change.after);
        self.step()
            // A container that has ended meanwhile has no directory any more, and gets none.
            .and_then(|()| self.record_ports(from, to))
            .and_then(|()| self.step())
            .and_then(|()| turn_rules(from, to))
            .and_then(|()| self.step())
            .inspect_err(|_| {
                // The failure that led here is the one to tell.
                let _ = self.unchange_ports(change);
            })
    }

    /// Undoes [`Networks::change_ports`], as far as that has come.
    ///
    /// # Errors
    /// As there.
    pub fn unchange_ports(&self, change: &PortChange) -> Result<()> {
        let (from, to) = (&change.after, &change.before);
        let rules = turn_rules(from, to);
        // Another run of the container has a record of its own.
        match self.record_ports(from, to) {
            Err(NetworkError::NoEndpoint(_)) => rules,
            recorded => recorded.and(rules),
        }
    }

    /// Writes an endpoint down in the place of what it was, if it still is that.
    fn record_ports(&self, from: &Endpoint, to: &Endpoint) -> Result<()> {
        let gone = || NetworkError::NoEndpoint(to.container.short());
        let mut listing = self.listing(&to.container)?;
        let place = listing.endpoints.iter_mut().find(|e| *e == from);
        *place.ok_or_else(gone)? = to.clone();
        self.write_listing(&to.container, &listing)
    }

    /// The endpoint that a container's ports are published at.
    fn publishing(&self, id: &ContainerId) -> Result<Endpoint> {
        let endpoint = self.endpoint(id)?.filter(Endpoint::publishes);
        endpoint.ok_or_else(|| NetworkError::NoEndpoint(id.short()))
    }

    /// Says of a port that is in use whether a container of ours has it.
    pub(crate) fn allocated(&self, error: NetworkError) -> NetworkError {
        let NetworkError::Bind {
            address,
            protocol,
            source: BindFailure::InUse,
            ..
        } = &error
        else {
            return error;
        };
        let (address, protocol) = (*address, *protocol);
        let has = |port: &PublishedPort| {
            let both = [port.host_ip, address.ip()];
            port.host_port == address.port()
                && port.protocol == protocol
                && port.host_ip.is_ipv4() == address.is_ipv4()
                && (port.host_ip == address.ip()
                    || both.iter().any(std::net::IpAddr::is_unspecified))
        };
        let others = self.endpoints().unwrap_or_default();
        let ours = others.iter().any(|e| e.ports.iter().any(has));
        if ours {
            NetworkError::Allocated { address, protocol }
        } else {
            error
        }
    }
}
