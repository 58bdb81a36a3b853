//! What a host answers the other hosts of a network: every supervisor of a container in it listens
//! on the host's own address there, and the kernel gives each question to one of them. So no host
//! needs a daemon, and whoever ends is followed by the rest.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::datagram;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::sockopt::{set_ip_freebind, set_ip_ttl, set_socket_reuseport};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, netdevice, sendto, socket_with,
};

use crate::overlay::{Overlay, Peer};
use crate::records::Records;
use crate::server::Settings;
use crate::wire::{DATAGRAM_MAX, Query, Rcode, Record, kinds, reverse};

/// The port of the hosts' own questions.
pub(crate) const PORT: u16 = 4788;
/// What a host sends itself; a container's packets have passed a router, and have less.
pub(crate) const TTL: u8 = 255;
/// Datagrams answered before others have their turn.
const TURN: usize = 64;
/// Most networks that are answered for.
const NETWORKS_MAX: usize = 128;

/// Answers the other hosts of a container's networks.
#[derive(Debug)]
pub struct Hosts {
    settings: Settings,
    /// The number of the first of its events.
    base: u64,
    gates: Vec<Option<Gate>>,
}

/// Where the questions of one network arrive.
#[derive(Debug)]
struct Gate {
    overlay: Overlay,
    /// Number of the link it listens on.
    link: u32,
    socket: OwnedFd,
}

impl Gate {
    /// Whether the link is still the one that is listened on.
    fn stands(&self) -> bool {
        netdevice::name_to_index(&self.socket, &self.overlay.link) == Ok(self.link)
    }
}

impl Hosts {
    /// Answers for the networks of a container; its events carry numbers from `base` on.
    #[must_use]
    pub const fn new(settings: Settings, base: u64) -> Self {
        Self {
            settings,
            base,
            gates: Vec::new(),
        }
    }

    /// Looks which networks over several hosts the container is in, and listens in these, in the
    /// network namespace of the calling thread; anew where the link was made anew. One that cannot
    /// be listened in is left to others.
    pub fn look(&mut self, epoll: &OwnedFd) -> Vec<Overlay> {
        let wanted = self.records().overlays();
        for gate in &mut self.gates {
            let kept = |g: &mut Gate| wanted.contains(&g.overlay) && g.stands();
            // Whoever closes a socket need not tell the loop.
            let _gone = gate.take_if(|g| !kept(g));
        }
        for overlay in wanted.iter().take(NETWORKS_MAX) {
            let open = self.gates.iter().flatten();
            if open.map(|g| &g.overlay).any(|o| o == overlay) {
                continue;
            }
            let at = self.gates.iter().position(Option::is_none);
            let at = at.unwrap_or(self.gates.len());
            let token = EventData::new_u64(self.base + at as u64);
            let made = listen(overlay).and_then(|gate| {
                epoll::add(epoll, &gate.socket, token, EventFlags::IN)?;
                Ok(gate)
            });
            let gate = made.ok();
            match self.gates.get_mut(at) {
                Some(slot) => *slot = gate,
                None => self.gates.push(gate),
            }
        }
        wanted
    }

    /// Does what an event asks for.
    pub fn ready(&mut self, token: u64) {
        let at = usize::try_from(token.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let Some(gate) = self.gates.get(at).and_then(Option::as_ref) else {
            return;
        };
        let mut records = self.records();
        let peers = gate.overlay.peers();
        // One byte more than a query may have tells that it is too long.
        let mut packet = vec![0; usize::from(DATAGRAM_MAX) + 1];
        for _ in 0..TURN {
            let (n, arrival) = match datagram::receive(gate.socket.as_fd(), &mut packet) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let Some(arrival) = arrival.filter(|a| came_from_host(a, gate, &peers)) else {
                continue;
            };
            let packet = packet.get(..n).unwrap_or_default();
            if let Some(answer) = answer(&mut records, &gate.overlay.network, packet) {
                // One that finds no room is lost, as on any wire.
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                let _ = sendto(&gate.socket, &answer, flags, &arrival.from);
            }
        }
    }

    fn records(&self) -> Records {
        let settings = &self.settings;
        Records::new(&settings.data, &settings.run, &settings.container)
    }
}

/// Whether another host of the network has sent this itself.
fn came_from_host(arrival: &datagram::Arrival, gate: &Gate, peers: &[Peer]) -> bool {
    let known = peers.iter().any(|p| p.gateway == *arrival.from.ip());
    known && arrival.ttl == i32::from(TTL) && arrival.link == gate.link
}

fn listen(overlay: &Overlay) -> io::Result<Gate> {
    let socket = socket()?;
    // What others send to this address does not even wake us.
    datagram::bind_to_link(socket.as_fd(), &overlay.link)?;
    let link = netdevice::name_to_index(&socket, &overlay.link)?;
    set_socket_reuseport(&socket, true)?;
    // The bridge may be made anew.
    set_ip_freebind(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(overlay.own, PORT))?;
    Ok(Gate {
        overlay: overlay.clone(),
        link,
        socket,
    })
}

/// A socket of the hosts' own.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    set_ip_ttl(&socket, TTL.into())?;
    datagram::tell_arrival(socket.as_fd())?;
    Ok(socket)
}

/// What another host is answered: who has a name here, or whose an address is, in one network.
fn answer(records: &mut Records, network: &str, packet: &[u8]) -> Option<Vec<u8>> {
    let query = Query::parse(packet).ok()?;
    let limit = usize::from(DATAGRAM_MAX);
    if query.class != kinds::IN {
        return Some(query.failure(Rcode::Refused));
    }
    let name = query.name();
    let found: Option<Vec<Record>> = match (query.kind, name) {
        (_, None) => None,
        (kinds::PTR, Some(name)) => {
            let holder = reverse(&name).and_then(|address| records.holder(network, address));
            holder.map(|name| vec![Record::Name(name)])
        }
        (kinds::A | kinds::AAAA | kinds::ANY, Some(name)) => {
            let found = records.lookup_on(network, &name);
            (!found.is_empty()).then(|| found.records(query.kind))
        }
        _ => return Some(query.failure(Rcode::Refused)),
    };
    Some(match found {
        Some(records) => query.answer(Rcode::NoError, &records, limit),
        None => query.failure(Rcode::NoSuchName),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn listening_is_bound_to_the_link() {
        let mut overlay = Overlay {
            network: "wide".to_owned(),
            link: "lo".to_owned(),
            own: Ipv4Addr::new(127, 0, 0, 41),
            file: "/p".into(),
            applied: "/a".into(),
        };
        let mut gate = listen(&overlay).unwrap();
        assert_eq!(gate.link, 1);
        assert!(gate.stands());
        gate.link = 2;
        assert!(!gate.stands(), "the link was made anew");
        overlay.link = "no-such-link".to_owned();
        assert!(listen(&overlay).is_err());
    }
}
