//! The sockets that queries arrive at, made in the container's network namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::sockopt::{set_ip_freebind, set_socket_reuseaddr};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, bind, getsockname, listen, socket_with,
};

use crate::aside;

/// What `/etc/resolv.conf` names, as Docker's does.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port of name servers.
pub(crate) const PORT: u16 = 53;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 32;
/// How often a port is looked for that is free for datagrams and streams.
const TRIES: usize = 8;

/// Where the name server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Place {
    /// On the port of name servers itself: nothing else is needed, and nothing the container does
    /// to its firewall takes it away.
    #[default]
    Here,
    /// On another port, which packets are led to: the container wants that one for itself.
    Aside,
}

/// The two sockets of a name server.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) udp: OwnedFd,
    pub(crate) tcp: OwnedFd,
}

impl Sockets {
    /// Makes the sockets in the network namespace of the calling thread, whose loopback need not be
    /// up yet.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open(place: Place) -> io::Result<Self> {
        match place {
            Place::Here => Ok(Self::bound(PORT)?.0),
            Place::Aside => {
                for _ in 1..TRIES {
                    match Self::aside() {
                        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                        other => return other,
                    }
                }
                Self::aside()
            }
        }
    }

    fn aside() -> io::Result<Self> {
        let (sockets, port) = Self::bound(0)?;
        aside::lead(port)?;
        Ok(sockets)
    }

    fn bound(port: u16) -> io::Result<(Self, u16)> {
        let udp = socket(SocketType::DGRAM)?;
        bind(&udp, &SocketAddrV4::new(ADDRESS, port))?;
        let port = if port == 0 { port_of(&udp)? } else { port };
        let tcp = socket(SocketType::STREAM)?;
        // Connections of a name server before this one may still be on their way out.
        set_socket_reuseaddr(&tcp, true)?;
        bind(&tcp, &SocketAddrV4::new(ADDRESS, port))?;
        listen(&tcp, BACKLOG)?;
        Ok((Self { udp, tcp }, port))
    }
}

fn socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
    // The address is the loopback's, which is brought up later.
    set_ip_freebind(&socket, true)?;
    Ok(socket)
}

fn port_of(socket: &OwnedFd) -> io::Result<u16> {
    let address = address_of(getsockname(socket)?);
    address
        .map(|a| a.port())
        .ok_or_else(|| Errno::AFNOSUPPORT.into())
}

/// An address of the internet.
pub(crate) fn address_of(any: SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(any).ok()
}

/// Draws a number that cannot be guessed.
pub(crate) fn random() -> u16 {
    let mut bytes = [0; 2];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u16::from_ne_bytes(bytes)
}
