//! Host ports: reserved by bound sockets, so that nobody else can take them while a container
//! publishes them and a second container is told at once.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, getsockname, listen, shutdown,
    socket_with, sockopt,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::error::{BindFailure, NetworkError, Result, kernel};

/// `IPPROTO_SCTP`.
const SCTP: u32 = 132;
/// Pending clients of a socket that the supervisor serves.
const BACKLOG: i32 = 128;
/// Sockets that fit beside our own descriptors into the usual limit of 1024.
const SOCKETS_FEW: usize = 256;
/// How often a random port is drawn again because the other family has it.
const RANDOM_TRIES: usize = 16;

/// A transport protocol.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, where the kernel has it.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port that a container wants published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRequest {
    /// Host address; every address of both families when absent.
    pub host_ip: Option<IpAddr>,
    /// Host port; a free one when absent.
    pub host_port: Option<u16>,
    /// With `host_port`: the last port of a range to take the first free one from.
    #[serde(default)]
    pub host_port_end: Option<u16>,
    /// Port in the container.
    pub container_port: u16,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

impl PortRequest {
    /// Says whether this is one of the published ports that the request speaks of.
    #[must_use]
    pub fn names(&self, port: &PublishedPort) -> bool {
        let last = self.host_port_end.or(self.host_port);
        self.container_port == port.container_port
            && self.protocol == port.protocol
            && self.host_ip.is_none_or(|ip| ip == port.host_ip)
            && self.host_port.is_none_or(|first| first <= port.host_port)
            && last.is_none_or(|last| port.host_port <= last)
    }
}

impl fmt::Display for PortRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            None => {}
        }
        match (self.host_port, self.host_port_end) {
            (Some(first), Some(last)) => write!(f, "{first}-{last}:")?,
            (Some(port), None) => write!(f, "{port}:")?,
            (None, _) if self.host_ip.is_some() => f.write_str(":")?,
            (None, _) => {}
        }
        write!(f, "{}/{}", self.container_port, self.protocol)
    }
}

/// A published port, one per host address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Host address; `0.0.0.0` or `::` for all of a family.
    pub host_ip: IpAddr,
    /// Host port.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A socket that the supervisor holds for as long as the container runs.
#[derive(Debug)]
pub struct Listener {
    /// The socket, of the host's network namespace.
    pub fd: OwnedFd,
    /// For a listening socket: where an accepted client is connected to, from the host's network
    /// namespace, or datagrams are handed on to. `None` for a socket that only reserves its port.
    pub target: Option<SocketAddr>,
}

/// Reserves the host side of every request. Nothing stays reserved when one of them fails.
///
/// What is asked for by number is had first, then what may be any of a range, then what may be
/// any at all: the order of the requests decides nothing. One that is repeated counts once.
/// `inside` is the container's IPv4 address; `dual` says whether this host has IPv6.
pub(crate) fn reserve(
    requests: &[PortRequest],
    inside: Ipv4Addr,
    dual: bool,
) -> Result<(Vec<PublishedPort>, Vec<Listener>)> {
    make_room(2 * requests.len());
    let mut had: Vec<Option<Reserved>> = requests.iter().map(|_| None).collect();
    let mut seen = HashSet::new();
    for turn in 0..=CHOICES {
        for (request, place) in requests.iter().zip(&mut had) {
            if choice(request) == turn && (turn > 0 || seen.insert(request)) {
                *place = Some(reserve_one(
                    request,
                    &host_addresses(request, dual),
                    inside,
                )?);
            }
        }
    }
    let mut published = Vec::new();
    let mut listeners = Vec::new();
    let had = requests.iter().zip(had);
    for (request, (port, sockets)) in had.filter_map(|(r, had)| Some((r, had?))) {
        for (host_ip, fd) in host_addresses(request, dual).iter().zip(sockets) {
            let entry = PublishedPort {
                host_ip: *host_ip,
                host_port: port,
                container_port: request.container_port,
                protocol: request.protocol,
            };
            published.push(entry);
            let target = is_served(&entry, inside);
            listeners.push(Listener { fd, target });
        }
    }
    Ok((published, listeners))
}

/// The highest [`choice`].
const CHOICES: u8 = 2;

/// How much choice a request leaves: none, a range, every port.
const fn choice(request: &PortRequest) -> u8 {
    match (request.host_port, request.host_port_end) {
        (Some(first), Some(last)) if last > first => 1,
        (Some(_), _) => 0,
        (None, _) => CHOICES,
    }
}

/// Reserves ports again that were published before, for a container whose supervisor was lost.
/// In the place of one that somebody took meanwhile stands a descriptor on which nothing happens;
/// `failed` is told why.
pub(crate) fn reserve_published(
    published: &[PublishedPort],
    inside: Ipv4Addr,
    failed: &mut Vec<NetworkError>,
) -> Result<Vec<Listener>> {
    make_room(published.len());
    let mut listeners = Vec::new();
    for port in published {
        let address = SocketAddr::new(port.host_ip, port.host_port);
        let to = SocketAddr::new(inside.into(), port.container_port);
        let fd = match take(address, port.protocol, to) {
            Ok((_, fd)) => fd,
            Err(error) => {
                failed.push(error);
                eventfd(0, EventfdFlags::CLOEXEC).map_err(kernel("hold the place of a port"))?
            }
        };
        let target = is_served(port, inside);
        listeners.push(Listener { fd, target });
    }
    Ok(listeners)
}

/// Raises the limit of descriptors as far as it goes, for many sockets only; a container gets its
/// own limits whatever ours are.
fn make_room(sockets: usize) {
    if sockets > SOCKETS_FEW {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        // Where that fails, a socket says that there are too many.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// Where the clients of a port's socket are connected to, if they are served.
pub(crate) fn is_served(port: &PublishedPort, inside: Ipv4Addr) -> Option<SocketAddr> {
    serves(port.host_ip, port.protocol).then(|| SocketAddr::new(inside.into(), port.container_port))
}

/// Only IPv6 sockets serve: rules cannot lead `::1` anywhere, and whatever else they miss (a
/// network without IPv6) still reaches the container.
const fn serves(host_ip: IpAddr, protocol: Protocol) -> bool {
    host_ip.is_ipv6() && matches!(protocol, Protocol::Tcp | Protocol::Udp)
}

fn host_addresses(request: &PortRequest, dual: bool) -> Vec<IpAddr> {
    match request.host_ip {
        Some(address) => vec![address],
        None if dual => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        None => vec![Ipv4Addr::UNSPECIFIED.into()],
    }
}

type Reserved = (u16, Vec<OwnedFd>);

fn reserve_one(request: &PortRequest, addresses: &[IpAddr], inside: Ipv4Addr) -> Result<Reserved> {
    let protocol = request.protocol;
    let to = SocketAddr::new(inside.into(), request.container_port);
    match (request.host_port, request.host_port_end) {
        (Some(first), Some(last)) if last > first => {
            for port in first..=last {
                match reserve_port(addresses, port, protocol, to) {
                    Err(NetworkError::Bind {
                        source: BindFailure::InUse,
                        ..
                    }) => {}
                    other => return other,
                }
            }
            Err(NetworkError::RangeTaken {
                first,
                last,
                protocol,
            })
        }
        (Some(port), _) => reserve_port(addresses, port, protocol, to),
        (None, _) => {
            let mut tries = 0;
            loop {
                match reserve_port(addresses, 0, protocol, to) {
                    Err(NetworkError::Bind {
                        source: BindFailure::InUse,
                        ..
                    }) if tries < RANDOM_TRIES => {
                        tries += 1;
                    }
                    other => return other,
                }
            }
        }
    }
}

/// Takes the same port on every address; port 0 means the one the kernel picks for the first.
fn reserve_port(
    addresses: &[IpAddr],
    port: u16,
    protocol: Protocol,
    to: SocketAddr,
) -> Result<Reserved> {
    let mut port = port;
    let mut sockets = Vec::with_capacity(addresses.len());
    for address in addresses {
        let (bound, socket) = take(SocketAddr::new(*address, port), protocol, to)?;
        port = bound;
        sockets.push(socket);
    }
    Ok((port, sockets))
}

fn take(address: SocketAddr, protocol: Protocol, to: SocketAddr) -> Result<(u16, OwnedFd)> {
    bound_socket(address, protocol).map_err(|errno| match errno {
        Errno::PROTONOSUPPORT if protocol == Protocol::Sctp => NetworkError::NoSctp,
        errno => NetworkError::Bind {
            address,
            to,
            protocol,
            source: errno.into(),
        },
    })
}

/// Draws a port. The kernel lets go of a port it chose itself when a socket stops listening, so
/// the port is asked for first and then named; the caller tries again if somebody was quicker.
fn free_port(like: &OwnedFd, address: SocketAddr) -> std::result::Result<SocketAddr, Errno> {
    let kind = sockopt::socket_type(like)?;
    let probe = socket_with(
        sockopt::socket_domain(like)?,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&probe, true)?;
    }
    bind(&probe, &address)?;
    SocketAddr::try_from(getsockname(&probe)?).map_err(|_| Errno::AFNOSUPPORT)
}

fn bound_socket(
    address: SocketAddr,
    protocol: Protocol,
) -> std::result::Result<(u16, OwnedFd), Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Sctp => (SocketType::STREAM, NonZeroU32::new(SCTP)),
    };
    let fd = socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        number.map(rustix::net::Protocol::from_raw),
    )?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    if protocol == Protocol::Tcp {
        let address = if address.port() == 0 {
            free_port(&fd, address)?
        } else {
            address
        };
        // SO_REUSEADDR forgives connections in TIME_WAIT; listening is what makes a conflict
        // with another socket certain to show.
        sockopt::set_socket_reuseaddr(&fd, true)?;
        bind(&fd, &address)?;
        listen(&fd, BACKLOG)?;
        if !serves(address.ip(), protocol) {
            // Back to bound: an address the rules do not cover is refused, not left waiting.
            shutdown(&fd, Shutdown::Read)?;
            sockopt::set_socket_reuseaddr(&fd, false)?;
        }
    } else {
        bind(&fd, &address)?;
    }
    let bound = SocketAddr::try_from(getsockname(&fd)?).map_err(|_| Errno::AFNOSUPPORT)?;
    Ok((bound.port(), fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphora_spec::error::chain;
    use amphora_spec::{Classify, ErrorKind};

    fn request(port: Option<u16>) -> PortRequest {
        PortRequest {
            host_port: port,
            container_port: 80,
            ..PortRequest::default()
        }
    }

    const INSIDE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

    #[test]
    fn a_reserved_port_conflicts_in_dockers_words() {
        let (first, held) = reserve(&[request(None)], INSIDE, false).unwrap();
        let port = first[0].host_port;
        let error = reserve(&[request(Some(port))], INSIDE, false).unwrap_err();
        assert_eq!(
            chain(&error),
            format!(
                "failed to bind host port for 0.0.0.0:{port}:172.17.0.2:80/tcp: address already in use"
            )
        );
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let server = std::net::TcpListener::bind(("0.0.0.0", port));
        assert!(
            server.is_err(),
            "a server with SO_REUSEADDR must not get a reserved port"
        );
        drop(held);
        reserve(&[request(Some(port))], INSIDE, false).unwrap();
    }

    #[test]
    fn a_listening_server_conflicts() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        assert!(reserve(&[request(Some(port))], INSIDE, false).is_err());
    }

    #[test]
    fn a_connection_in_time_wait_does_not_conflict() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        drop(server.accept().unwrap());
        drop(client);
        drop(server);
        let (_, held) = reserve(&[request(Some(port))], INSIDE, false).unwrap();
        assert!(reserve(&[request(Some(port))], INSIDE, false).is_err());
        drop(held);
    }

    #[test]
    fn a_range_gives_its_first_free_port() {
        let (first, _held) = reserve(&[request(None)], INSIDE, false).unwrap();
        let port = first[0].host_port.min(65000);
        let range = PortRequest {
            host_port_end: Some(port + 20),
            ..request(Some(port))
        };
        let (got, _) = reserve(&[range], INSIDE, false).unwrap();
        assert!(got[0].host_port > port || first[0].host_port != port);
    }

    #[test]
    fn the_order_of_requests_decides_nothing() {
        let (drawn, free) = reserve(&[request(None)], INSIDE, false).unwrap();
        let port = drawn[0].host_port.min(65000);
        drop(free);
        let range = PortRequest {
            host_port_end: Some(port + 1),
            container_port: 81,
            ..request(Some(port))
        };
        let fixed = request(Some(port));
        for both in [
            [range.clone(), fixed.clone(), fixed.clone()],
            [fixed.clone(), fixed, range],
        ] {
            let (got, _held) = reserve(&both, INSIDE, false).unwrap();
            let mut got: Vec<_> = got
                .iter()
                .map(|p| (p.container_port, p.host_port))
                .collect();
            got.sort_unstable();
            assert_eq!(got, [(80, port), (81, port + 1)]);
        }
    }

    #[test]
    fn a_protocol_the_kernel_lacks_is_refused_by_name() {
        let wanted = PortRequest {
            protocol: Protocol::Sctp,
            ..request(None)
        };
        let has = std::fs::read_to_string("/proc/net/protocols")
            .is_ok_and(|text| text.lines().any(|line| line.starts_with("SCTP ")));
        match reserve(&[wanted], INSIDE, false) {
            Ok((published, held)) => {
                assert!(published[0].host_port > 0 && held.len() == 1);
            }
            Err(error) => {
                assert!(!has, "{error}");
                assert_eq!(
                    chain(&error),
                    "cannot publish a port of sctp: this kernel has no SCTP"
                );
                assert_eq!(error.kind(), ErrorKind::Unsupported);
            }
        }
    }

    #[test]
    fn an_address_the_host_lacks_is_told() {
        let wanted = PortRequest {
            host_ip: Some("203.0.113.77".parse().unwrap()),
            ..request(Some(80))
        };
        let error = reserve(&[wanted], INSIDE, false).unwrap_err();
        assert_eq!(
            chain(&error),
            "failed to bind host port for 203.0.113.77:80:172.17.0.2:80/tcp: cannot assign requested address"
        );
    }
}
