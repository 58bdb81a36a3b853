//! Endpoints: a container's places in networks, made and unmade.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use amphora_spec::ContainerId;
use amphora_spec::release::Release;
use amphora_sys::netlink::{NETFILTER, ROUTE, Socket};
use amphora_sys::ns;
use rustix::io::Errno;

use crate::address::parse_hardware_address;
pub use crate::attachment::Endpoint;
use crate::attachment::{Listing, NetworkAttachment, RECORD, gateway_of, name_link, ways_out};
use crate::config::{DEFAULT_NETWORK, Driver, NetworkConfig};
use crate::conntrack;
use crate::ensure::{Host, host_has_ipv6, random_hex};
use crate::error::{NetworkError, Result, kernel, netlink};
use crate::firewall::{Firewall, REPAIRED};
use crate::lease::Lease;
use crate::networks::Networks;
use crate::nft::{self, Element};
use crate::ports::{Listener, PortRequest, PublishedPort, reserve, reserve_published};
use crate::route::{self, Inside, Veth};
use crate::store;

/// Index of a container's first link: the one after loopback, or one that nothing else takes where
/// the kernel puts links of its own into every namespace.
const PEER_INDEXES: [u32; 2] = [2, 1002];

/// How often the folder of a name may go before it can be used.
const NAME_TRIES: usize = 100;

/// Where clients of a port are led that leads nowhere.
const NOWHERE: Ipv4Addr = Ipv4Addr::BROADCAST;

/// What a container asks of networks.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The container.
    pub container: ContainerId,
    /// The networks, in the order of its links.
    pub networks: Vec<NetworkAttachment>,
    /// Its host name, where others are to find it by that.
    pub hostname: Option<String>,
    /// Ports to publish.
    pub ports: Vec<PortRequest>,
}

/// Everything an attached container needs from here on.
#[derive(Debug)]
pub struct Attachment {
    /// The network namespace, with `lo` and its links up; it lives as long as somebody holds it.
    pub netns: OwnedFd,
    /// The endpoint that its ports are published at.
    pub endpoint: Endpoint,
    /// All of its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Published ports (also in the endpoint).
    pub ports: Vec<PublishedPort>,
    /// Descriptors that the supervisor holds until it ends, some of which it serves.
    pub listeners: Vec<Listener>,
    /// What frees ports and addresses when the container has exited.
    pub release: Vec<Release>,
    /// What other firewalls of this host do to the container's packets.
    pub firewall: Firewall,
}

/// What has been done so far, to be undone last first.
#[derive(Debug)]
pub(crate) enum Undo {
    File(PathBuf),
    Name(PathBuf),
    Link(String),
    Inside(OwnedFd, String),
    Elements(Vec<Element>),
    Listing(ContainerId, Listing),
    Gateways(OwnedFd, Vec<(u32, IpAddr)>, Vec<(u32, IpAddr)>),
    Moved {
        old: Vec<Element>,
        new: Vec<Element>,
    },
}

/// A network that works, and the index of its bridge or parent.
pub(crate) type Place = (NetworkConfig, u32);

/// The places that a container has in networks, on record, before its namespace is wired to them.
///
/// Dropped unwired they stay on record: [`Networks::release`] takes them back.
#[derive(Debug)]
pub struct Claim {
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Descriptors that the supervisor holds until it ends, some of which it serves.
    pub listeners: Vec<Listener>,
    /// What frees ports and addresses when the container has exited.
    pub release: Vec<Release>,
    places: Vec<Place>,
    host: Host,
    undo: Vec<Undo>,
}

impl Claim {
    /// Returns the endpoint that ports are published at: the one that the default route leads to,
    /// or else the first one.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoints.get(gateway_of(&self.endpoints).unwrap_or(0))
    }
}

impl Networks {
    /// Gives a container its own network namespace in networks, with ports published.
    ///
    /// Addresses are leased, host ports are reserved and the record is written before anything
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
        let endpoint = claim.endpoint().cloned();
        let endpoint = endpoint.ok_or_else(|| NetworkError::NotFound(String::new()))?;
        Ok(Attachment {
            netns,
            firewall,
            ports: endpoint.ports.clone(),
            endpoint,
            endpoints: claim.endpoints,
            listeners: claim.listeners,
            release: claim.release,
        })
    }

    /// Claims a container's places: addresses, ports, record, rules. What is left to do is
    /// [`Networks::wire`].
    ///
    /// # Errors
    /// [`NetworkError`], with everything undone; a taken host port is a conflict.
    pub fn claim(&self, request: &AttachRequest) -> Result<Claim> {
        if self.endpoint_path(&request.container).exists() {
            self.release(&request.container)?;
        }
        let mut claim = Claim {
            endpoints: Vec::new(),
            listeners: Vec::new(),
            release: Vec::new(),
            places: Vec::new(),
            host: Host::open()?,
            undo: Vec::new(),
        };
        let done = self.claim_steps(request, &mut claim);
        done.inspect_err(|_| self.undo(&claim.host, &claim.undo))?;
        Ok(claim)
    }

    /// Joins a namespace ([`ns::container_netns`]) to the networks it has places in, with `lo`
    /// and its links up in the end. Returns what other firewalls do to its packets.
    ///
    /// # Errors
    /// [`NetworkError`]; the claim is undone then.
    pub fn wire(&self, claim: &mut Claim, netns: BorrowedFd<'_>) -> Result<Firewall> {
        let wired = self.wire_steps(claim, netns);
        wired.inspect_err(|_| self.undo(&claim.host, &claim.undo))
    }

    /// The failure that led here is the one to tell; `reconcile` gets what stays behind.
    pub(crate) fn undo(&self, host: &Host, done: &[Undo]) {
        for action in done.iter().rev() {
            let _ = match action {
                Undo::File(path) => store::remove(path).is_ok(),
                Undo::Name(path) => remove_name(path).is_ok(),
                Undo::Link(name) => route::delete_link(&host.route, name).is_ok(),
                Undo::Inside(netns, name) => inside(netns.as_fd())
                    .is_ok_and(|socket| route::delete_link(&socket, name).is_ok()),
                Undo::Elements(all) => nft::delete(&host.nft, all).is_ok(),
                Undo::Listing(id, listing) => self.write_listing(id, listing).is_ok(),
                Undo::Gateways(netns, from, to) => {
                    crate::live::change_gateways(netns.as_fd(), from, to).is_ok()
                }
                Undo::Moved { old, new } => {
                    nft::add(&host.nft, old).is_ok() && nft::delete(&host.nft, new).is_ok()
                }
            };
        }
        let _ = self.settle();
    }

    fn claim_steps(&self, request: &AttachRequest, claim: &mut Claim) -> Result<()> {
        let id = request.container;
        for asked in &request.networks {
            let (place, mut endpoint) =
                self.take_place(id, asked, &claim.host, &claim.endpoints, &mut claim.undo)?;
            if let Some(name) = &request.hostname {
                endpoint.dns_names.push(name.clone());
            }
            claim.places.push(place);
            claim.endpoints.push(endpoint);
        }

        self.step()?;
        let mut parked = Vec::new();
        if let Some(at) = gateway_of(&claim.endpoints)
            && let Some((config, _)) = claim.places.get(at)
            && let Some(endpoint) = claim.endpoints.get_mut(at)
            && endpoint.publishes()
        {
            let requests = with_host_ip(&request.ports, config);
            let reserved = reserve(&requests, endpoint.address, host_has_ipv6());
            (endpoint.ports, claim.listeners) = reserved.map_err(|e| self.allocated(e))?;
        } else if !request.ports.is_empty() {
            // They lead nowhere until it joins a network that can publish them.
            let reserved = reserve(&request.ports, NOWHERE, host_has_ipv6());
            (parked, claim.listeners) = reserved.map_err(|e| self.allocated(e))?;
        }

        self.step()?;
        self.record(&id, &claim.endpoints, parked, &mut claim.undo)?;
        for endpoint in &claim.endpoints {
            self.add_names(endpoint, &mut claim.undo)?;
        }

        self.step()?;
        let elements: Vec<_> = claim
            .endpoints
            .iter()
            .flat_map(Endpoint::elements)
            .collect();
        claim.undo.push(Undo::Elements(elements.clone()));
        nft::add(&claim.host.nft, &elements).map_err(netlink(ports_of(&id)))?;

        let forget = |endpoint| conntrack::forget(&claim.host.nft, endpoint);
        let talks: Vec<_> = claim.endpoints.iter().filter_map(forget).collect();

        self.step()?;
        // Closing this socket may block until a grace period is over (see `netlink::replay`);
        // the supervisor has all the time in the world.
        let fd = claim.host.nft.as_fd().try_clone_to_owned();
        let fd = fd.map_err(kernel("hold the nftables socket"))?;
        claim.listeners.push(Listener { fd, target: None });
        claim.release = self.release_of(&id, &claim.endpoints, talks);
        Ok(())
    }

    /// Leases a container's addresses in a network that works.
    pub(crate) fn take_place(
        &self,
        id: ContainerId,
        asked: &NetworkAttachment,
        host: &Host,
        others: &[Endpoint],
        undo: &mut Vec<Undo>,
    ) -> Result<(Place, Endpoint)> {
        let name = if crate::networks::is_default(&asked.network) {
            DEFAULT_NETWORK.to_owned()
        } else {
            self.find(&asked.network)?.name
        };
        let place = self.ensure(&name, host)?;
        self.ensure_peers(&place.0, host)?;
        let config = &place.0;
        asked.check(config)?;
        if others.iter().any(|e| e.network_id == config.id) {
            return Err(NetworkError::AlreadyConnected {
                container: id.short(),
                network: name,
            });
        }
        self.step()?;
        let lease = self.lease(id, asked, config, undo)?;
        let address6 = self.lease6(id, asked, config, lease.offset, undo)?;
        if !config.is_predefined() && self.stored(&name)?.is_none_or(|c| c.id != config.id) {
            // It was removed meanwhile, by somebody who saw no lease.
            return Err(NetworkError::NotFound(name));
        }
        let mut endpoint = Endpoint::new(id, config, asked, &lease, address6, random_hex()?);
        endpoint.interface = name_link(config.prefix(), asked.interface.as_deref(), others);
        Ok((place, endpoint))
    }

    fn lease(
        &self,
        id: ContainerId,
        asked: &NetworkAttachment,
        config: &NetworkConfig,
        undo: &mut Vec<Undo>,
    ) -> Result<Lease> {
        let leases = self.leases(&config.name);
        let lease = match asked.ip {
            Some(address) => {
                let taken = config.subnet.is_some_and(|s| {
                    let (_, taken) = config.room(s);
                    taken.contains(&address.into())
                });
                if taken || !leases.take_this(address.into(), &id)? {
                    return Err(NetworkError::AddressInUse);
                }
                Lease {
                    address,
                    offset: config.subnet.map_or(0, |s| s.offset(address.into())),
                    path: leases.path(address),
                }
            }
            None => {
                let lease = leases.take(config, &id)?;
                lease.ok_or_else(|| NetworkError::AddressesExhausted {
                    name: config.name.clone(),
                    id: config.id.clone(),
                })?
            }
        };
        undo.push(Undo::File(lease.path.clone()));
        Ok(lease)
    }

    /// In the default network, where nobody may ask for one, the IPv6 address goes with the IPv4
    /// address and needs no lease of its own.
    fn lease6(
        &self,
        id: ContainerId,
        asked: &NetworkAttachment,
        config: &NetworkConfig,
        offset: u32,
        undo: &mut Vec<Undo>,
    ) -> Result<Option<std::net::Ipv6Addr>> {
        if config.is_predefined() || config.subnet6.is_none() {
            return Ok(config.address6(offset));
        }
        let leases = self.leases(&config.name);
        let address = match asked.ip6 {
            Some(address) => {
                let taken = config.subnet6.is_some_and(|s| {
                    let (_, taken) = config.room(s);
                    taken.contains(&address.into())
                });
                if taken || !leases.take_this(address.into(), &id)? {
                    return Err(NetworkError::AddressInUse);
                }
                address
            }
            None => {
                let found = leases.take6(config, offset, &id)?;
                found.ok_or_else(|| NetworkError::AddressesExhausted {
                    name: config.name.clone(),
                    id: config.id.clone(),
                })?
            }
        };
        undo.push(Undo::File(leases.path(address)));
        Ok(Some(address))
    }

    /// Writes down where a container is.
    fn record(
        &self,
        id: &ContainerId,
        all: &[Endpoint],
        parked: Vec<PublishedPort>,
        undo: &mut Vec<Undo>,
    ) -> Result<()> {
        store::make_dir(&self.container_dir(id))?;
        undo.push(Undo::File(self.endpoint_path(id)));
        let listing = Listing {
            version: RECORD,
            endpoints: all.to_vec(),
            parked,
        };
        self.write_listing(id, &listing)
    }

    pub(crate) fn write_listing(&self, id: &ContainerId, listing: &Listing) -> Result<()> {
        store::write_json(&self.endpoint_path(id), listing)
    }

    /// Makes the names of an endpoint known in its network.
    pub(crate) fn add_names(&self, endpoint: &Endpoint, undo: &mut Vec<Undo>) -> Result<()> {
        for path in self.name_paths(endpoint) {
            undo.push(Undo::Name(path.clone()));
            make_name(&path)?;
        }
        Ok(())
    }

    fn name_paths(&self, endpoint: &Endpoint) -> Vec<PathBuf> {
        let dir = self.run_dir(&endpoint.network).join("aliases");
        let id = endpoint.container.hex();
        let names = endpoint.dns_names.iter();
        names
            .map(|name| dir.join(name.to_lowercase()).join(&id))
            .collect()
    }

    /// The files that an endpoint holds: leases, names.
    pub(crate) fn files_of(&self, endpoint: &Endpoint) -> Vec<PathBuf> {
        let leases = self.leases(&endpoint.network);
        let v6 = endpoint
            .address6
            .filter(|_| endpoint.network != DEFAULT_NETWORK);
        std::iter::once(leases.path(endpoint.address))
            .chain(v6.map(|address| leases.path(address)))
            .chain(self.name_paths(endpoint))
            .collect()
    }

    /// What a supervisor does when the container has exited; `talks`: what has the kernel forget
    /// conversations.
    pub(crate) fn release_of(
        &self,
        id: &ContainerId,
        endpoints: &[Endpoint],
        talks: Vec<Release>,
    ) -> Vec<Release> {
        let elements: Vec<_> = endpoints.iter().flat_map(Endpoint::elements).collect();
        let rules = nft::remove_batch(&elements).map(|bytes| Release::Netlink {
            protocol: NETFILTER,
            bytes,
        });
        let files = endpoints.iter().flat_map(|e| self.files_of(e));
        let names = endpoints.iter().flat_map(|e| self.name_paths(e));
        // Only who empties a folder takes it away.
        let folders = names.filter_map(|path| path.parent().map(Path::to_owned));
        let files = files.chain([self.endpoint_path(id)]).chain(folders);
        rules
            .into_iter()
            .chain(talks)
            .chain(files.map(Release::Unlink))
            .collect()
    }

    fn wire_steps(&self, claim: &mut Claim, netns: BorrowedFd<'_>) -> Result<Firewall> {
        let Claim {
            endpoints,
            places,
            host,
            undo,
            ..
        } = claim;
        let mut wired = Vec::new();
        for (at, (endpoint, place)) in endpoints.iter().zip(&*places).enumerate() {
            self.step()?;
            let nth = u32::try_from(at).unwrap_or(0);
            let index = self.link(host, place, endpoint, netns, Some(nth), undo)?;
            let through = ways_out(endpoints).filter(|(which, _)| *which == at);
            wired.push(endpoint.inside(index, through.map(|(_, to)| to).collect()));
        }

        self.step()?;
        if let Some(first) = endpoints.first() {
            configure(netns, &first.container, &wired)?;
        }

        self.step()?;
        let mut hints = Vec::new();
        let bridged = |c: &NetworkConfig| c.driver.bridged();
        for (config, _) in places.iter().filter(|(c, _)| bridged(c)) {
            hints.extend(self.ensure_accepted(&host.nft, config)?);
        }
        let leading = gateway_of(endpoints).and_then(|at| places.get(at));
        let leading = leading.filter(|(c, _)| bridged(c));
        hints.extend(host.repaired.get().then(|| REPAIRED.to_owned()));
        Ok(Firewall {
            hints,
            bridge: leading.map(|(c, _)| (c.link.clone(), c.subnet6.is_some())),
        })
    }

    /// Makes an endpoint's link, born in its namespace. `nth`: its number in a namespace that has
    /// no other links than ours; otherwise the kernel chooses its index. Returns that.
    pub(crate) fn link(
        &self,
        host: &Host,
        place: &Place,
        endpoint: &Endpoint,
        netns: BorrowedFd<'_>,
        nth: Option<u32>,
        undo: &mut Vec<Undo>,
    ) -> Result<u32> {
        let (config, on) = place;
        if config.driver == Driver::Macvlan {
            return self.link_macvlan(host, config, *on, endpoint, netns, undo);
        }
        let on = self.bridge_for(host, config, *on, &endpoint.link)?;
        undo.push(Undo::Link(endpoint.link.clone()));
        let Some(nth) = nth else {
            add_link(host, config, on, endpoint, netns, 0)?;
            return index_inside(netns, endpoint);
        };
        let mut last = None;
        for first in PEER_INDEXES {
            match add_link(host, config, on, endpoint, netns, first + nth) {
                Err(NetworkError::Netlink { step, source })
                    if source.is(Errno::BUSY) || source.is(Errno::EXIST) =>
                {
                    last = Some(NetworkError::Netlink { step, source });
                }
                other => return other.map(|()| first + nth),
            }
        }
        Err(last.unwrap_or_else(|| NetworkError::NotFound(endpoint.link.clone())))
    }

    /// Frees addresses and ports of a container whose supervisor did not; does nothing without an
    /// endpoint on record. Links are left to their namespace, which died with the container.
    ///
    /// # Errors
    /// When rules or files cannot be removed; the record then stays.
    pub fn release(&self, id: &ContainerId) -> Result<()> {
        let endpoints = self.endpoints_of(id)?;
        for endpoint in &endpoints {
            self.release_one(endpoint)?;
        }
        store::remove(&self.endpoint_path(id))?;
        self.settle()
    }

    /// Frees what an endpoint holds, as far as it is still its own.
    pub(crate) fn release_one(&self, endpoint: &Endpoint) -> Result<()> {
        let id = endpoint.container;
        let leases = self.leases(&endpoint.network);
        // Ports are freed before the address: without the lease there is nothing of ours left,
        // and the same entry may belong to the next holder.
        if leases.holder(endpoint.address) == Some(id) {
            let elements = endpoint.elements();
            if !elements.is_empty() {
                let socket = nft::open().map_err(kernel("open nftables"))?;
                nft::delete(&socket, &elements).map_err(netlink(ports_of(&id)))?;
            }
            store::remove(&leases.path(endpoint.address))?;
        }
        if let Some(address) = endpoint.address6
            && leases.holder(address) == Some(id)
        {
            store::remove(&leases.path(address))?;
        }
        for path in self.name_paths(endpoint) {
            remove_name(&path)?;
        }
        Ok(())
    }

    /// Reserves the ports of a running container again, those that lead nowhere too, for a
    /// supervisor that takes over from a lost one. `failed` gets those that somebody took
    /// meanwhile; rules lead them to the container all the same.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn listeners(
        &self,
        id: &ContainerId,
        failed: &mut Vec<NetworkError>,
    ) -> Result<Vec<Listener>> {
        let listing = self.listing(id)?;
        let mut all = Vec::new();
        for endpoint in &listing.endpoints {
            all.extend(reserve_published(
                &endpoint.ports,
                endpoint.address,
                failed,
            )?);
        }
        all.extend(reserve_published(&listing.parked, NOWHERE, failed)?);
        Ok(all)
    }
}

/// Writes down that somebody has a name. Who had it last may take the folder away meanwhile.
fn make_name(path: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        if let Some(dir) = path.parent() {
            store::make_dir(dir)?;
        }
        match store::touch(path) {
            Err(NetworkError::File { source, .. })
                if source.kind() == ErrorKind::NotFound && tries < NAME_TRIES =>
            {
                tries += 1;
            }
            done => return done,
        }
    }
}

/// The opposite, and the folder goes with the last who has the name.
fn remove_name(path: &Path) -> Result<()> {
    store::remove(path)?;
    if let Some(dir) = path.parent() {
        // Others in it keep it.
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

/// A port that says no host address is published at the network's.
pub(crate) fn with_host_ip(ports: &[PortRequest], config: &NetworkConfig) -> Vec<PortRequest> {
    let host_ip = config.host_ip();
    let whole = |port: &PortRequest| PortRequest {
        host_ip: port.host_ip.or(host_ip),
        ..port.clone()
    };
    ports.iter().map(whole).collect()
}

fn ports_of(id: &ContainerId) -> String {
    format!("change the published ports of container {}", id.short())
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
pub(crate) fn inside(netns: BorrowedFd<'_>) -> Result<Socket> {
    ns::in_netns(netns, || Socket::open(ROUTE)).map_err(kernel("enter a network namespace"))
}

/// Brings a namespace's links up, with their addresses and the default route.
pub(crate) fn configure(netns: BorrowedFd<'_>, id: &ContainerId, links: &[Inside]) -> Result<()> {
    route::configure_inside(&inside(netns)?, links).map_err(netlink(format!(
        "configure the network of container {}",
        id.short()
    )))
}

/// The index of an endpoint's link in its namespace.
pub(crate) fn index_inside(netns: BorrowedFd<'_>, endpoint: &Endpoint) -> Result<u32> {
    let name = &endpoint.interface;
    let found = route::link(&inside(netns)?, name);
    let found = found.map_err(netlink(crate::ensure::look(name)))?;
    found
        .map(|link| link.index)
        .ok_or_else(|| NetworkError::NotFound(name.clone()))
}

fn add_link(
    host: &Host,
    config: &NetworkConfig,
    bridge: u32,
    endpoint: &Endpoint,
    netns: BorrowedFd<'_>,
    peer_index: u32,
) -> Result<()> {
    let step = || netlink(format!("create link \"{}\"", endpoint.link));
    let veth = Veth {
        name: &endpoint.link,
        netns,
        peer: &endpoint.interface,
        peer_index,
        mac: parse_hardware_address(&endpoint.mac).unwrap_or_default(),
        mtu: config.mtu,
    };
    route::add_veth(&host.route, &veth).map_err(step())?;
    let alone = !config.icc() && !frames_are_filtered();
    route::join_bridge(&host.route, &endpoint.link, bridge, alone).map_err(step())
}

/// Whether what passes from port to port of a bridge goes through our rules as well, which then say
/// who may talk to whom. With both, a port published by a neighbour could not be reached: such
/// frames go straight to its port.
fn frames_are_filtered() -> bool {
    ["iptables", "ip6tables"].iter().all(|which| {
        let key = format!("net/bridge/bridge-nf-call-{which}");
        crate::sysctl::get(&key).as_deref() == Some("1")
    })
}
