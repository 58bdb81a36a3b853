//! Endpoints: a container's place in a network, made and unmade.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use amphora_spec::ContainerId;
use amphora_spec::release::Release;
use amphora_sys::netlink::{NETFILTER, ROUTE, Socket};
use amphora_sys::ns;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::address::{hardware_address, hardware_text};
use crate::config::NetworkConfig;
use crate::conntrack;
use crate::ensure::random_hex;
use crate::ensure::{Host, host_has_ipv6};
use crate::error::{NetworkError, Result, kernel, netlink};
use crate::firewall::{Firewall, REPAIRED};
use crate::lease::Lease;
use crate::networks::Networks;
use crate::nft::{self, Element};
use crate::ports::{Listener, PortRequest, PublishedPort, reserve, reserve_published};
use crate::route::{self, Inside, Veth};
use crate::store;

/// Index of a container's link: the one after loopback, or one that nothing else takes where
/// the kernel puts links of its own into every namespace.
const PEER_INDEXES: [u32; 2] = [2, 1002];

/// What a container asks of a network.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The container.
    pub container: ContainerId,
    /// The network's name.
    pub network: String,
    /// Ports to publish.
    pub ports: Vec<PortRequest>,
}

/// A container's place in a network, as recorded in `containers/<id>/endpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The container.
    pub container: ContainerId,
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: String,
    /// IPv4 address.
    pub address: Ipv4Addr,
    /// IPv4 prefix length.
    pub prefix: u8,
    /// IPv4 gateway.
    pub gateway: Ipv4Addr,
    /// IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// IPv6 prefix length.
    pub prefix6: u8,
    /// IPv6 gateway.
    pub gateway6: Option<Ipv6Addr>,
    /// Hardware address of the container's `eth0`.
    pub mac: String,
    /// Name of the host's end of the link.
    pub link: String,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
}

/// Everything an attached container needs from here on.
#[derive(Debug)]
pub struct Attachment {
    /// The network namespace, with `lo` and `eth0` up; it lives as long as somebody holds it.
    pub netns: OwnedFd,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Published ports (also in the endpoint).
    pub ports: Vec<PublishedPort>,
    /// Descriptors that the supervisor holds until it ends, some of which it serves.
    pub listeners: Vec<Listener>,
    /// What frees ports and address when the container has exited.
    pub release: Vec<Release>,
    /// What other firewalls of this host do to the container's packets.
    pub firewall: Firewall,
}

impl Endpoint {
    /// `link` is drawn anew for every start: the link of the last one may still be on its way out
    /// with its namespace.
    fn new(
        id: ContainerId,
        config: &NetworkConfig,
        lease: &Lease,
        ports: Vec<PublishedPort>,
        mut link: String,
    ) -> Self {
        link.truncate(11);
        Self {
            container: id,
            network: config.name.clone(),
            network_id: config.id.clone(),
            address: lease.address,
            prefix: config.subnet.prefix(),
            gateway: config.gateway(),
            address6: config.address6(lease.offset),
            prefix6: config.subnet6.map_or(0, |subnet| subnet.prefix()),
            gateway6: config.gateway6(),
            mac: hardware_text(hardware_address(lease.address)),
            link: format!("am{link}"),
            ports,
        }
    }

    /// The entries of this endpoint in the port maps.
    pub(crate) fn elements(&self) -> Vec<Element> {
        let entry = |port: &PublishedPort| {
            if port.host_ip.is_ipv4() {
                nft::port_element(port, self.address.into())
            } else {
                nft::port_element(port, self.address6?.into())
            }
        };
        self.ports.iter().filter_map(entry).collect()
    }

    fn inside(&self, index: u32) -> Inside {
        let v6 = self
            .address6
            .zip(self.gateway6)
            .map(|(a, g)| (a, self.prefix6, g));
        Inside {
            index,
            address: (self.address, self.prefix),
            gateway: self.gateway,
            v6,
        }
    }
}

/// What has been done so far, to be undone last first.
#[derive(Debug)]
enum Undo {
    File(PathBuf),
    Link(String),
    Elements(Vec<Element>),
}

/// A place that a container has in a network, on record, before its namespace is wired to it.
///
/// Dropped unwired it stays on record: [`Networks::release`] takes it back.
#[derive(Debug)]
pub struct Claim {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Descriptors that the supervisor holds until it ends, some of which it serves.
    pub listeners: Vec<Listener>,
    /// What frees ports and address when the container has exited.
    pub release: Vec<Release>,
    config: NetworkConfig,
    host: Host,
    undo: Vec<Undo>,
}

impl Networks {
    /// Gives a container its own network namespace in a network, with ports published.
    ///
    /// The address is leased, host ports are reserved and the record is written before anything
    /// is made; a failure undoes what was done before it.
    ///
    /// # Errors
    /// [`NetworkError`]; a taken host port is a conflict.
    pub fn attach(&self, request: &AttachRequest) -> Result<Attachment> {
        let mut claim = self.claim(request)?;
        let made = ns::container_netns().map_err(kernel("create a network namespace"));
        let netns = made
            .inspect_err(|_| self.undo(&claim.host, &claim.undo))?
            .netns;
        let firewall = self.wire(&mut claim, netns.as_fd())?;
        Ok(Attachment {
            netns,
            firewall,
            ports: claim.endpoint.ports.clone(),
            endpoint: claim.endpoint,
            listeners: claim.listeners,
            release: claim.release,
        })
    }

    /// Claims a container's place: address, ports, record, rules. What is left to do is
    /// [`Networks::wire`].
    ///
    /// # Errors
    /// [`NetworkError`], with everything undone; a taken host port is a conflict.
    pub fn claim(&self, request: &AttachRequest) -> Result<Claim> {
        if self.endpoint_path(&request.container).exists() {
            self.release(&request.container)?;
        }
        let (config, host) = self.ensure(&request.network)?;
        let mut undo = Vec::new();
        match self.claim_steps(request, &config, &host, &mut undo) {
            Ok((endpoint, listeners, release)) => Ok(Claim {
                endpoint,
                listeners,
                release,
                config,
                host,
                undo,
            }),
            Err(error) => {
                self.undo(&host, &undo);
                Err(error)
            }
        }
    }

    /// Joins a namespace ([`ns::container_netns`]) to the network it has a place in, with `lo`
    /// and `eth0` up in the end. Returns what other firewalls do to its packets.
    ///
    /// # Errors
    /// [`NetworkError`]; the claim is undone then.
    pub fn wire(&self, claim: &mut Claim, netns: BorrowedFd<'_>) -> Result<Firewall> {
        let wired = self.wire_steps(claim, netns);
        wired.inspect_err(|_| self.undo(&claim.host, &claim.undo))
    }

    /// The failure that led here is the one to tell; `reconcile` gets what stays behind.
    fn undo(&self, host: &Host, done: &[Undo]) {
        for action in done.iter().rev() {
            let _ = match action {
                Undo::File(path) => store::remove(path).is_ok(),
                Undo::Link(name) => route::delete_link(&host.route, name).is_ok(),
                Undo::Elements(all) => nft::delete(&host.nft, all).is_ok(),
            };
        }
        let _ = self.settle();
    }

    fn claim_steps(
        &self,
        request: &AttachRequest,
        config: &NetworkConfig,
        host: &Host,
        undo: &mut Vec<Undo>,
    ) -> Result<(Endpoint, Vec<Listener>, Vec<Release>)> {
        let id = request.container;
        self.step()?;
        let lease = self.leases(&config.name).take(&config.subnet, &id)?;
        let lease = lease.ok_or_else(|| NetworkError::AddressesExhausted {
            name: config.name.clone(),
            id: config.id.clone(),
        })?;
        undo.push(Undo::File(lease.path.clone()));

        self.step()?;
        let reserved = reserve(&request.ports, lease.address, host_has_ipv6());
        let (ports, mut listeners) = reserved.map_err(|error| self.allocated(error))?;
        let endpoint = Endpoint::new(id, config, &lease, ports, random_hex()?);

        self.step()?;
        let record = self.endpoint_path(&id);
        store::make_dir(&self.container_dir(&id))?;
        undo.push(Undo::File(record.clone()));
        store::write_json(&record, &endpoint)?;

        self.step()?;
        let elements = endpoint.elements();
        undo.push(Undo::Elements(elements.clone()));
        nft::add(&host.nft, &elements).map_err(netlink(format!(
            "publish the ports of container {}",
            id.short()
        )))?;

        let conntrack = conntrack::forget(&host.nft, &endpoint);

        self.step()?;
        // Closing this socket may block until a grace period is over (see `netlink::replay`);
        // the supervisor has all the time in the world.
        let fd = host.nft.as_fd().try_clone_to_owned();
        let fd = fd.map_err(kernel("hold the nftables socket"))?;
        listeners.push(Listener { fd, target: None });
        let release = nft::remove_batch(&elements)
            .map(|bytes| Release::Netlink {
                protocol: NETFILTER,
                bytes,
            })
            .into_iter()
            .chain(conntrack)
            .chain([Release::Unlink(lease.path), Release::Unlink(record)])
            .collect();
        Ok((endpoint, listeners, release))
    }

    fn wire_steps(&self, claim: &mut Claim, netns: BorrowedFd<'_>) -> Result<Firewall> {
        let Claim {
            endpoint,
            config,
            host,
            undo,
            ..
        } = claim;
        self.step()?;
        undo.push(Undo::Link(endpoint.link.clone()));
        let index = add_link(host, endpoint, config.mtu, netns)?;

        self.step()?;
        let socket = inside(netns)?;
        route::configure_inside(&socket, &endpoint.inside(index)).map_err(netlink(format!(
            "configure the network of container {}",
            endpoint.container.short()
        )))?;

        self.step()?;
        let mut hints = self.ensure_accepted(&host.nft, config)?;
        hints.extend(host.repaired.then(|| REPAIRED.to_owned()));
        Ok(Firewall {
            hints,
            bridge: Some((config.link.clone(), config.subnet6.is_some())),
        })
    }

    /// Frees address and ports of a container whose supervisor did not; does nothing without an
    /// endpoint on record. Links are left to their namespace, which died with the container.
    ///
    /// # Errors
    /// When rules or files cannot be removed; the record then stays.
    pub fn release(&self, id: &ContainerId) -> Result<()> {
        let Some(endpoint) = self.endpoint(id)? else {
            return self.settle();
        };
        let leases = self.leases(&endpoint.network);
        // Ports are freed before the address: without the lease there is nothing of ours left,
        // and the same entry may belong to the next holder.
        if leases.holder(endpoint.address) == Some(*id) {
            let socket = nft::open().map_err(kernel("open nftables"))?;
            nft::delete(&socket, &endpoint.elements()).map_err(netlink(format!(
                "remove the ports of container {}",
                id.short()
            )))?;
            store::remove(&leases.path(endpoint.address))?;
        }
        store::remove(&self.endpoint_path(id))?;
        self.settle()
    }

    /// Reserves the ports of a running container again, for a supervisor that takes over from a
    /// lost one.
    ///
    /// # Errors
    /// When somebody took a port meanwhile.
    pub fn listeners(&self, endpoint: &Endpoint) -> Result<Vec<Listener>> {
        reserve_published(&endpoint.ports, endpoint.address)
    }
}

/// Makes a network namespace with nothing but `lo`, up: network mode `none`.
///
/// # Errors
/// When the kernel refuses.
pub fn none() -> Result<OwnedFd> {
    let made = ns::container_netns().map_err(kernel("create a network namespace"))?;
    loopback_up(made.netns.as_fd())?;
    Ok(made.netns)
}

/// Brings `lo` up in a network namespace that has nothing else: network mode `none`.
///
/// # Errors
/// When the kernel refuses.
pub fn loopback_up(netns: BorrowedFd<'_>) -> Result<()> {
    route::loopback_up(&inside(netns)?).map_err(netlink("bring loopback up"))
}

/// Opens a socket into a network namespace.
fn inside(netns: BorrowedFd<'_>) -> Result<Socket> {
    ns::in_netns(netns, || Socket::open(ROUTE)).map_err(kernel("enter a network namespace"))
}

fn add_link(host: &Host, endpoint: &Endpoint, mtu: u32, netns: BorrowedFd<'_>) -> Result<u32> {
    let mut last = None;
    for peer_index in PEER_INDEXES {
        let veth = Veth {
            name: &endpoint.link,
            netns,
            peer_index,
            mac: hardware_address(endpoint.address),
            mtu,
        };
        match route::add_veth(&host.route, &veth) {
            Ok(()) => {
                route::join_bridge(&host.route, &endpoint.link, host.bridge)
                    .map_err(netlink(step_of(endpoint)))?;
                return Ok(peer_index);
            }
            Err(error) if error.is(Errno::BUSY) || error.is(Errno::EXIST) => last = Some(error),
            Err(error) => return Err(netlink(step_of(endpoint))(error)),
        }
    }
    Err(last.map_or_else(
        || NetworkError::NotFound(endpoint.link.clone()),
        netlink(step_of(endpoint)),
    ))
}

fn step_of(endpoint: &Endpoint) -> String {
    format!("create link \"{}\"", endpoint.link)
}
