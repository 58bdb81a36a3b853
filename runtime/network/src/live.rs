//! Networks that a running container joins and leaves.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;

use amphora_spec::ContainerId;
use amphora_spec::release::Release;

use crate::attachment::{Endpoint, Listing, NetworkAttachment, gateway_of, ways_out};
use crate::endpoint::{Undo, configure, inside};
use crate::ensure::{Host, look};
use crate::error::{NetworkError, Result, kernel, netlink};
use crate::networks::Networks;
use crate::ports::PublishedPort;
use crate::{conntrack, nft, route};

/// A running container that is to join a network.
#[derive(Debug)]
pub struct ConnectRequest<'a> {
    /// The container.
    pub container: ContainerId,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// What it asks of the network.
    pub attachment: NetworkAttachment,
    /// Its host name, where others are to find it by that.
    pub hostname: Option<String>,
}

/// Where a running container is after a change.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The endpoint that came or went.
    pub endpoint: Endpoint,
    /// All endpoints that it has now.
    pub endpoints: Vec<Endpoint>,
    /// What its supervisor is to release when it has exited.
    pub release: Vec<Release>,
    /// Address that its ports lead to; `None` while they lead nowhere.
    pub inside: Option<Ipv4Addr>,
    /// What other firewalls do to its packets in a network that it joined.
    pub hints: Vec<String>,
}

/// Has a container's supervisor know what it is to release from now on.
pub type Tell<'a> = &'a mut dyn FnMut(&Reached) -> io::Result<()>;

/// Default routes: index of the link, gateway.
type Routes = Vec<(u32, IpAddr)>;

impl Networks {
    /// Lets a running container join a network. The caller keeps others from changing the
    /// container meanwhile.
    ///
    /// # Errors
    /// [`NetworkError`], with everything undone.
    pub fn connect(&self, request: &ConnectRequest<'_>, tell: Tell<'_>) -> Result<Reached> {
        let host = Host::open()?;
        let mut undo = Vec::new();
        let done = self.connect_steps(request, tell, &host, &mut undo);
        done.inspect_err(|_| self.undo(&host, &undo))
    }

    fn connect_steps(
        &self,
        request: &ConnectRequest<'_>,
        tell: Tell<'_>,
        host: &Host,
        undo: &mut Vec<Undo>,
    ) -> Result<Reached> {
        let id = request.container;
        let before = self.listing(&id)?;
        let asked = &request.attachment;
        let (place, mut endpoint) = self.take_place(id, asked, host, &before.endpoints, undo)?;
        endpoint.dns_names.extend(request.hostname.clone());
        let mut after = before.clone();
        after.endpoints.push(endpoint.clone());
        after.settle_ports();

        self.step()?;
        undo.push(Undo::Listing(id, before.clone()));
        self.write_listing(&id, &after)?;
        self.add_names(&endpoint, undo)?;
        let index = self.link(host, &place, &endpoint, request.netns, None, undo)?;
        self.step()?;
        configure(request.netns, &id, &[endpoint.inside(index, Vec::new())])?;
        self.move_gateway(request.netns, &before, &after, undo)?;
        self.move_ports(host, &before, &after, undo)?;
        self.step()?;
        let hints = if place.0.driver.bridged() {
            self.ensure_accepted(&host.nft, &place.0)?
        } else {
            Vec::new()
        };
        let reached = self.reached(host, after, endpoint, hints);
        self.step()?;
        tell(&reached).map_err(kernel("tell the container's supervisor"))?;
        Ok(reached)
    }

    /// Takes a running container out of a network. The caller keeps others from changing the
    /// container meanwhile.
    ///
    /// # Errors
    /// [`NetworkError::NotConnected`]; a step that failed: the container then stays in it.
    pub fn disconnect(
        &self,
        id: &ContainerId,
        netns: BorrowedFd<'_>,
        network_id: &str,
        tell: Tell<'_>,
    ) -> Result<Reached> {
        let host = Host::open()?;
        let before = self.listing(id)?;
        let mut after = before.clone();
        let at = before
            .endpoints
            .iter()
            .position(|e| e.network_id == network_id);
        let Some(at) = at else {
            return Err(NetworkError::NotConnected {
                container: id.short(),
                network: network_id.to_owned(),
            });
        };
        let gone = after.endpoints.remove(at);
        after.parked.extend(gone.ports.iter().copied());
        after.settle_ports();
        let mut undo = Vec::new();
        let left = self.leave(netns, &host, (&before, &after), gone, tell, &mut undo);
        let reached = left.inspect_err(|_| self.undo(&host, &undo))?;
        // Its addresses are free only now: the supervisor would have taken them from the next one.
        self.release_one(&Endpoint {
            ports: Vec::new(),
            ..reached.endpoint.clone()
        })?;
        self.settle()?;
        Ok(reached)
    }

    fn leave(
        &self,
        netns: BorrowedFd<'_>,
        host: &Host,
        (before, after): (&Listing, &Listing),
        gone: Endpoint,
        tell: Tell<'_>,
        undo: &mut Vec<Undo>,
    ) -> Result<Reached> {
        let id = gone.container;
        self.step()?;
        undo.push(Undo::Listing(id, before.clone()));
        self.write_listing(&id, after)?;
        self.move_ports(host, before, after, undo)?;
        self.move_gateway(netns, before, after, undo)?;
        let reached = self.reached(host, after.clone(), gone, Vec::new());
        self.step()?;
        tell(&reached).map_err(kernel("tell the container's supervisor"))?;
        let deleted = self.delete_link_of(netns, host, &reached.endpoint);
        if deleted.is_err() {
            let back = self.reached(host, before.clone(), reached.endpoint.clone(), Vec::new());
            let _ = tell(&back);
        }
        deleted.map(|()| reached)
    }

    fn reached(
        &self,
        host: &Host,
        after: Listing,
        endpoint: Endpoint,
        hints: Vec<String>,
    ) -> Reached {
        let forget = |e| conntrack::forget(&host.nft, e);
        let talks: Vec<_> = after.endpoints.iter().filter_map(forget).collect();
        let release = self.release_of(&endpoint.container, &after.endpoints, talks);
        let publishing = after.endpoints.iter().find(|e| !e.ports.is_empty());
        Reached {
            inside: publishing.map(|e| e.address),
            endpoints: after.endpoints,
            endpoint,
            release,
            hints,
        }
    }

    /// Takes a link away: from the host's side, or inside where it has none there.
    fn delete_link_of(&self, netns: BorrowedFd<'_>, host: &Host, gone: &Endpoint) -> Result<()> {
        self.step()?;
        let (socket, name);
        let (at, link) = if gone.driver.bridged() {
            (&host.route, &gone.link)
        } else {
            (socket, name) = (inside(netns)?, gone.interface.clone());
            (&socket, &name)
        };
        route::delete_link(at, link).map_err(netlink(format!("remove link \"{link}\"")))
    }

    fn move_gateway(
        &self,
        netns: BorrowedFd<'_>,
        before: &Listing,
        after: &Listing,
        undo: &mut Vec<Undo>,
    ) -> Result<()> {
        let ways = |l: &Listing| -> Vec<(Endpoint, IpAddr)> {
            let found = ways_out(&l.endpoints);
            found
                .filter_map(|(at, to)| Some((l.endpoints.get(at)?.clone(), to)))
                .collect()
        };
        let (from, to) = (ways(before), ways(after));
        let lacks = |all: &[(Endpoint, IpAddr)], (e, to): &(Endpoint, IpAddr)| {
            !all.iter()
                .any(|(other, there)| other.id == e.id && there == to)
        };
        let gone: Vec<_> = from.iter().filter(|way| lacks(&to, way)).collect();
        let new: Vec<_> = to.iter().filter(|way| lacks(&from, way)).collect();
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        self.step()?;
        let socket = inside(netns)?;
        let routes = |ways: Vec<&(Endpoint, IpAddr)>| -> Result<Routes> {
            let mut routes = Vec::new();
            for (e, to) in ways {
                // A link that the container took away itself leads nowhere.
                let name = &e.interface;
                let link = route::link(&socket, name).map_err(netlink(look(name)))?;
                routes.extend(link.map(|link| (link.index, *to)));
            }
            Ok(routes)
        };
        let (from, to) = (routes(gone)?, routes(new)?);
        let fd = netns.try_clone_to_owned();
        let fd = fd.map_err(kernel("hold a network namespace"))?;
        undo.push(Undo::Gateways(fd, to.clone(), from.clone()));
        change_gateways(netns, &from, &to)
    }

    fn move_ports(
        &self,
        host: &Host,
        before: &Listing,
        after: &Listing,
        undo: &mut Vec<Undo>,
    ) -> Result<()> {
        let elements =
            |l: &Listing| -> Vec<_> { l.endpoints.iter().flat_map(Endpoint::elements).collect() };
        let (old, new) = (elements(before), elements(after));
        if old == new {
            return Ok(());
        }
        self.step()?;
        undo.push(Undo::Moved {
            old: old.clone(),
            new: new.clone(),
        });
        let step = || netlink("move published ports");
        nft::add(&host.nft, &new).map_err(step())?;
        nft::delete(&host.nft, &old).map_err(step())
    }
}

/// Has the default routes of a namespace lead elsewhere.
pub(crate) fn change_gateways(
    netns: BorrowedFd<'_>,
    from: &[(u32, IpAddr)],
    to: &[(u32, IpAddr)],
) -> Result<()> {
    let changed = route::change_gateways(&inside(netns)?, from, to);
    changed.map_err(netlink("change the default route of a container"))
}

impl Listing {
    /// Has all ports lead to the endpoint that the default route leads to, or nowhere.
    fn settle_ports(&mut self) {
        let mut all: Vec<PublishedPort> = std::mem::take(&mut self.parked);
        for endpoint in &mut self.endpoints {
            all.append(&mut endpoint.ports);
        }
        let at = gateway_of(&self.endpoints).and_then(|at| self.endpoints.get_mut(at));
        match at.filter(|e| e.publishes()) {
            Some(endpoint) => endpoint.ports = all,
            None => self.parked = all,
        }
    }
}
