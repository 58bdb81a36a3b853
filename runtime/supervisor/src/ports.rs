//! Other ports for a container that runs: sockets that its supervisor is given and lets go, and
//! what frees them at the end.
//!
//! A change comes in one message on `supervisor.sock`, in postcard in an anonymous file, with the
//! sockets it speaks of; the answer says that it holds, also for whoever takes over later.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use amphora_spec::release::Release;
use amphora_sys::channel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{SocketType, getsockname, sockopt};
use serde::{Deserialize, Serialize};

use crate::SupervisorError;
use crate::client::{Client, ClientEvent};
use crate::config::{Config, Listener};
use crate::frame::TYPE_PORTS;
use crate::server::Server;
use crate::start::raise_file_limit;

/// Version of the message.
const VERSION: u32 = 1;
/// Most bytes of a change.
const BYTES_MAX: usize = 16 << 20;
/// Type and length.
const MESSAGE_LEN: usize = 5;
/// Most sockets in one message; the kernel allows 253 descriptors.
const SOCKETS_MAX: usize = 128;
/// `IPPROTO_TCP`, of a socket that does not say.
const TCP: u8 = 6;

/// A socket that reserves a port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// What it is bound to.
    pub address: SocketAddr,
    /// Number of its protocol: 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
}

/// What becomes different.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsChange {
    /// What is not done at the end any more.
    pub forget: Vec<Release>,
    /// What is done at the end in its place, before everything else.
    pub release: Vec<Release>,
    /// Sockets that are closed.
    pub close: Vec<Reserved>,
    /// How many of [`Config::listeners`], from the first on, are of ports.
    pub was: usize,
    /// What stands in their place.
    pub listeners: Vec<Listener>,
    /// What the sockets that come with the change are for, in their order.
    pub given: Vec<Listener>,
}

fn malformed(why: &str) -> SupervisorError {
    SupervisorError::Malformed {
        what: "change of ports",
        why: why.to_owned(),
    }
}

/// Where the datagrams of each socket go that comes with a change.
type Targets = Vec<Option<SocketAddr>>;

/// Takes the targets of datagrams out of a change: they come behind it, where a supervisor does not
/// look that would accept connections on those sockets. It only holds them.
fn set_apart(mut change: PortsChange, sockets: &[OwnedFd]) -> (PortsChange, Targets) {
    let given = change.given.iter_mut().zip(sockets);
    let targets = given
        .map(|(listener, socket)| {
            let datagrams = sockopt::socket_type(socket) == Ok(SocketType::DGRAM);
            listener.target.take_if(|_| datagrams)
        })
        .collect();
    (change, targets)
}

fn send(
    socket: BorrowedFd<'_>,
    change: &PortsChange,
    sockets: &[OwnedFd],
) -> Result<(), SupervisorError> {
    let failed = |e: std::io::Error| SupervisorError::Kernel("hand over the change of ports", e);
    let (change, targets) = set_apart(change.clone(), sockets);
    let bytes = postcard::to_allocvec(&(VERSION, change, targets))
        .map_err(|e| malformed(&e.to_string()))?;
    let length = u32::try_from(bytes.len()).map_err(|_| malformed("it is too large"))?;
    let file =
        rustix::fs::memfd_create("ports", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        done += rustix::io::pwrite(&file, rest, done as u64).map_err(|e| failed(e.into()))?;
    }
    let mut message = vec![TYPE_PORTS];
    message.extend(length.to_le_bytes());
    let fds: Vec<_> = std::iter::once(&file)
        .chain(sockets)
        .map(AsFd::as_fd)
        .collect();
    channel::send(socket, &message, &fds).map_err(failed)
}

/// Receives what [`send`] sent; the message waits in the socket.
fn receive(socket: BorrowedFd<'_>) -> Result<(PortsChange, Vec<OwnedFd>), SupervisorError> {
    let failed = |e: std::io::Error| SupervisorError::Kernel("receive the change of ports", e);
    let bad = || malformed("it does not decode");
    let (message, mut fds) = channel::recv(socket, MESSAGE_LEN)
        .map_err(failed)?
        .ok_or_else(bad)?;
    let length = message.get(1..MESSAGE_LEN).and_then(|b| b.try_into().ok());
    let length = length.map(u32::from_le_bytes).ok_or_else(bad)?;
    let length = usize::try_from(length).ok().filter(|n| *n <= BYTES_MAX);
    let mut bytes = vec![0; length.ok_or_else(bad)?];
    if fds.is_empty() {
        return Err(bad());
    }
    let file = fds.remove(0);
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(&file, &mut bytes[done..], done as u64) {
            Ok(n) if n > 0 => done += n,
            Ok(_) => return Err(bad()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    let (version, rest) = postcard::take_from_bytes::<u32>(&bytes).map_err(|_| bad())?;
    if version != VERSION {
        return Err(malformed("unknown version"));
    }
    let (mut change, rest) = postcard::take_from_bytes::<PortsChange>(rest).map_err(|_| bad())?;
    if change.given.len() != fds.len() {
        return Err(bad());
    }
    if !rest.is_empty() {
        let targets: Targets = postcard::from_bytes(rest).map_err(|_| bad())?;
        for (listener, target) in change.given.iter_mut().zip(targets) {
            listener.target = listener.target.or(target);
        }
    }
    Ok((change, fds))
}

impl Config {
    /// The configuration with other ports.
    fn with_ports(&self, change: &PortsChange) -> Self {
        let mut new = self.clone();
        new.release.retain(|one| !change.forget.contains(one));
        new.release.splice(0..0, change.release.iter().cloned());
        let was = change.was.min(new.listeners.len());
        new.listeners
            .splice(0..was, change.listeners.iter().cloned());
        new
    }
}

impl Reserved {
    fn is(&self, socket: &OwnedFd) -> bool {
        let address = getsockname(socket)
            .ok()
            .and_then(|a| SocketAddr::try_from(a).ok());
        let protocol = sockopt::socket_protocol(socket).ok().flatten();
        let protocol = protocol.map_or(TCP, |p| u8::try_from(p.as_raw().get()).unwrap_or(0));
        address == Some(self.address) && protocol == self.protocol
    }
}

impl Server {
    /// A client changes the ports; `false` when it is to be dropped.
    pub(crate) fn ports_arrive(&mut self, client: usize) -> bool {
        let Some(socket) = self.clients.get(client).map(|c| &c.socket) else {
            return true;
        };
        let changed = receive(socket.as_fd()).and_then(|(change, fds)| {
            // What comes may be more than a thousand.
            raise_file_limit();
            self.change_ports(&change, fds)
        });
        // It comes with a change of networks too.
        self.look_at_overlays();
        let why = changed.err().map(|e| amphora_spec::error::chain(&e));
        self.answer(client, why).is_ok()
    }

    /// On record first: what is released at the end includes what fails here.
    fn change_ports(
        &mut self,
        change: &PortsChange,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), SupervisorError> {
        let config = self.parts.config.with_ports(change);
        Config::keep(self.parts.run_dir.as_fd(), &config.encode()?)?;
        let old = std::mem::replace(&mut self.parts.config, config);
        if change.given.is_empty() && change.close.is_empty() {
            // The same sockets: what they serve may be elsewhere now.
            let (old, new) = (&old.listeners, &self.parts.config.listeners);
            let moved = old
                .iter()
                .zip(new)
                .filter_map(|(o, n)| o.target.zip(n.target));
            self.splices.retarget(&moved.collect::<Vec<_>>());
        }
        let (mut opened, held) = (Vec::new(), self.parts.hold.len());
        for (listener, socket) in change.given.iter().zip(sockets) {
            let Some(target) = listener.target else {
                self.parts.hold.push(socket);
                continue;
            };
            let gate = rustix::io::ioctl_fionbio(&socket, true);
            let gate = gate.and_then(|()| self.splices.listen(&self.epoll, socket, target));
            match gate {
                Ok(gate) => opened.push(gate),
                Err(e) => {
                    opened
                        .into_iter()
                        .for_each(|gate| self.splices.unlisten(gate));
                    self.parts.hold.truncate(held);
                    self.parts.config = old;
                    let _ = Config::keep(self.parts.run_dir.as_fd(), &self.parts.config.encode()?);
                    return Err(SupervisorError::kernel("listen for the container")(e));
                }
            }
        }
        let goes = |socket: &OwnedFd| change.close.iter().any(|one| one.is(socket));
        if !change.close.is_empty() {
            self.parts.hold.retain(|socket| !goes(socket));
            self.splices.unlisten_if(goes);
        }
        Ok(())
    }
}

impl Client {
    /// Changes the ports of the container; `sockets` are what [`PortsChange::given`] speaks of.
    /// For a client that is attached to nothing.
    ///
    /// # Errors
    /// [`SupervisorError::Refused`] with the supervisor's words, or when the container has ended;
    /// [`SupervisorError::Lost`] by one that does not know this message.
    pub fn change_ports(
        &mut self,
        change: PortsChange,
        sockets: &[OwnedFd],
    ) -> Result<(), SupervisorError> {
        let mut first = change;
        let given = std::mem::take(&mut first.given);
        let mut parts = given.chunks(SOCKETS_MAX).zip(sockets.chunks(SOCKETS_MAX));
        let (listeners, fds) = parts.next().unwrap_or_default();
        first.given = listeners.to_vec();
        self.send_ports(&first, fds)?;
        for (listeners, fds) in parts {
            let more = PortsChange {
                given: listeners.to_vec(),
                ..PortsChange::default()
            };
            self.send_ports(&more, fds)?;
        }
        Ok(())
    }

    /// Says whether the container has ended, as far as its supervisor has said so.
    pub fn has_ended(&mut self) -> bool {
        let now = Timespec::default();
        loop {
            let mut fds = [PollFd::new(self, PollFlags::IN)];
            if !poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0) {
                return false;
            }
            if let Ok(ClientEvent::Exit(_) | ClientEvent::Lost) | Err(_) = self.next() {
                return true;
            }
        }
    }

    fn send_ports(
        &mut self,
        change: &PortsChange,
        sockets: &[OwnedFd],
    ) -> Result<(), SupervisorError> {
        send(self.as_fd(), change, sockets)?;
        self.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn sockets_are_told_apart_by_address_and_protocol() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).unwrap();
        let other = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let (tcp, udp) = (OwnedFd::from(tcp), OwnedFd::from(udp));
        for (protocol, right, wrong) in [(6, &tcp, &udp), (17, &udp, &tcp)] {
            let one = Reserved { address, protocol };
            assert!(one.is(right) && !one.is(wrong) && !one.is(&other));
        }
    }

    #[test]
    fn a_change_crosses_with_its_sockets() {
        let (here, there) = channel::pair().unwrap();
        let socket = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let change = PortsChange {
            forget: vec![Release::Unlink("/run/x".into())],
            release: vec![Release::Netlink {
                protocol: 12,
                bytes: vec![7; 100_000],
            }],
            was: 2,
            listeners: vec![Listener { target: None }; 3],
            given: vec![Listener { target: None }],
            ..PortsChange::default()
        };
        send(here.as_fd(), &change, std::slice::from_ref(&socket)).unwrap();
        let (arrived, fds) = receive(there.as_fd()).unwrap();
        assert_eq!((arrived, fds.len()), (change.clone(), 1));
        send(here.as_fd(), &change, &[]).unwrap();
        assert!(receive(there.as_fd()).is_err(), "a socket is missing");
    }

    #[test]
    fn one_that_knows_no_datagrams_only_holds_their_sockets() {
        let target = Some("172.17.0.2:53".parse().unwrap());
        let change = PortsChange {
            given: vec![Listener { target }; 2],
            ..PortsChange::default()
        };
        let udp = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let tcp = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let sockets = [udp, tcp];
        let (older, targets) = set_apart(change.clone(), &sockets);
        let told: Vec<_> = older.given.iter().map(|l| l.target).collect();
        assert_eq!((told, &targets), (vec![None, target], &vec![target, None]));
        // What it reads, and what one without datagrams sends.
        let bytes = postcard::to_allocvec(&(older.clone(), targets)).unwrap();
        assert_eq!(postcard::from_bytes::<PortsChange>(&bytes).unwrap(), older);
        let (here, there) = channel::pair().unwrap();
        send(here.as_fd(), &change, &sockets).unwrap();
        assert_eq!(receive(there.as_fd()).unwrap().0, change);
    }
}
