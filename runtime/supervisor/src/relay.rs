//! Datagrams handed on to the container and its answers back: rules lead none of `::1` anywhere.
//!
//! Each client of a published port has a socket of its own towards the container, so that answers
//! find their way; one over which nothing has come for a while is closed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::datagram6::{self, Here};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use crate::clock::{self, NANOS};
use crate::server::TOKEN_RELAY;

/// Most clients at a time; one more ends what has been silent for longest.
const CONVERSATIONS_MAX: usize = 128;
/// Silence that ends a conversation, as with Docker's proxy.
const IDLE_NS: u64 = 90 * NANOS;
/// Datagrams of one socket before others have their turn.
const TURN: usize = 64;
/// Longest datagram.
const DATAGRAM_MAX: usize = 64 << 10;

/// To which socket a datagram came, from whom, and to which address: answers come from there.
type Client = (usize, SocketAddrV6, Here);

#[derive(Debug)]
struct Conversation {
    client: Client,
    /// Connected to the container.
    far: OwnedFd,
    /// When something was last heard of it.
    heard: u64,
}

/// Every conversation of a container.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    conversations: Vec<Option<Conversation>>,
    of: BTreeMap<Client, usize>,
    buffer: Vec<u8>,
    /// When to look for silent ones.
    due: Option<u64>,
}

impl Relay {
    /// Hands on what has come to a socket.
    pub(crate) fn there(
        &mut self,
        epoll: &OwnedFd,
        gate: usize,
        socket: &OwnedFd,
        target: SocketAddr,
    ) {
        self.buffer.resize(DATAGRAM_MAX, 0);
        let now = clock::monotonic();
        for _ in 0..TURN {
            let (n, from) = match datagram6::receive(socket.as_fd(), &mut self.buffer) {
                Ok(came) => came,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let Some((from, here)) = from else {
                continue;
            };
            let client = (gate, from, here);
            let found = match self.of.get(&client) {
                Some(index) => Some(*index),
                // Without descriptors the datagram is lost, as datagrams are.
                None => self.open(epoll, client, target, now).ok(),
            };
            let place = found.and_then(|index| self.conversations.get_mut(index));
            let Some(conversation) = place.and_then(Option::as_mut) else {
                continue;
            };
            conversation.heard = now;
            let bytes = self.buffer.get(..n).unwrap_or_default();
            if send(&conversation.far, bytes, SendFlags::DONTWAIT) == Err(Errno::CONNREFUSED) {
                // That was about an earlier one.
                let _ = send(&conversation.far, bytes, SendFlags::DONTWAIT);
            }
        }
    }

    fn open(
        &mut self,
        epoll: &OwnedFd,
        client: Client,
        target: SocketAddr,
        now: u64,
    ) -> Result<usize, Errno> {
        let family = if target.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let far = socket_with(family, SocketType::DGRAM, flags, None)?;
        connect(&far, &target)?;
        let free = self.conversations.iter().position(Option::is_none);
        let index = free.unwrap_or(self.conversations.len());
        let token = EventData::new_u64(TOKEN_RELAY + index as u64);
        epoll::add(epoll, &far, token, EventFlags::IN)?;
        if self.of.len() >= CONVERSATIONS_MAX {
            self.end_where({
                let silent = |c: &&Conversation| c.heard;
                let oldest = self.conversations.iter().flatten().min_by_key(silent);
                let oldest = oldest.map(|c| c.client);
                move |c| Some(c.client) == oldest
            });
        }
        if index == self.conversations.len() {
            self.conversations.push(None);
        }
        if let Some(place) = self.conversations.get_mut(index) {
            *place = Some(Conversation {
                client,
                far,
                heard: now,
            });
        }
        self.of.insert(client, index);
        self.due.get_or_insert(now + IDLE_NS);
        Ok(index)
    }

    /// Which socket the answers of a conversation are sent from.
    pub(crate) fn gate_of(&self, index: usize) -> Option<usize> {
        let conversation = self.conversations.get(index)?.as_ref()?;
        Some(conversation.client.0)
    }

    /// Hands back what the container has answered.
    pub(crate) fn back(&mut self, index: usize, socket: &OwnedFd) {
        self.buffer.resize(DATAGRAM_MAX, 0);
        let place = self.conversations.get_mut(index);
        let Some(conversation) = place.and_then(Option::as_mut) else {
            return;
        };
        for _ in 0..TURN {
            match recv(&conversation.far, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((n, _)) => {
                    conversation.heard = clock::monotonic();
                    let bytes = self.buffer.get(..n).unwrap_or_default();
                    let (_, to, here) = conversation.client;
                    let _ = datagram6::send(socket.as_fd(), here, to, bytes);
                }
                // Nobody listens there; the client may try again.
                Err(Errno::INTR | Errno::CONNREFUSED) => {}
                Err(_) => return,
            }
        }
    }

    /// What the container has answered before it ended.
    pub(crate) fn drain<'a>(&mut self, socket_of: impl Fn(usize) -> Option<&'a OwnedFd>) {
        for index in 0..self.conversations.len() {
            if let Some(socket) = self.gate_of(index).and_then(&socket_of) {
                self.back(index, socket);
            }
        }
    }

    /// Ends the conversations of a socket.
    pub(crate) fn end(&mut self, gate: usize) {
        self.end_where(|c| c.client.0 == gate);
    }

    fn end_where(&mut self, goes: impl Fn(&Conversation) -> bool) {
        for place in &mut self.conversations {
            if let Some(conversation) = place
                && goes(conversation)
            {
                self.of.remove(&conversation.client);
                *place = None;
            }
        }
    }

    /// Ends what has been silent for too long.
    pub(crate) fn tick(&mut self) {
        if let Some(due) = self.due {
            let now = clock::monotonic();
            if now >= due {
                self.end_silent(now);
            }
        }
    }

    fn end_silent(&mut self, now: u64) {
        self.end_where(|c| c.heard + IDLE_NS <= now);
        let heard = self.conversations.iter().flatten().map(|c| c.heard);
        self.due = heard.min().map(|oldest| oldest + IDLE_NS);
    }

    /// Shortens a wait to what is due first.
    pub(crate) fn timeout(&self, timeout: Option<Timespec>) -> Option<Timespec> {
        let Some(due) = self.due else { return timeout };
        let left = due.saturating_sub(clock::monotonic());
        let left = Timespec {
            tv_sec: i64::try_from(left / NANOS).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(left % NANOS).unwrap_or(0),
        };
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }

    /// Gives memory back that is not needed while nothing comes.
    pub(crate) fn release(&mut self) {
        self.buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// A socket of the host's, an epoll, and where the container is.
    fn setting() -> (OwnedFd, OwnedFd, UdpSocket) {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let gate = UdpSocket::bind("[::1]:0").unwrap();
        datagram6::tell_arrival(gate.as_fd()).unwrap();
        (epoll, gate.into(), UdpSocket::bind("127.0.0.1:0").unwrap())
    }

    fn key(client: &UdpSocket) -> Client {
        let SocketAddr::V6(from) = client.local_addr().unwrap() else {
            panic!("an IPv6 socket");
        };
        let here = Here {
            address: std::net::Ipv6Addr::LOCALHOST,
            link: 0,
        };
        (0, from, here)
    }

    fn client(gate: &OwnedFd, text: &[u8]) -> UdpSocket {
        let at = rustix::net::getsockname(gate).unwrap();
        let client = UdpSocket::bind("[::1]:0").unwrap();
        client.connect(SocketAddr::try_from(at).unwrap()).unwrap();
        client.send(text).unwrap();
        client
    }

    #[test]
    fn silence_ends_a_conversation_and_speech_does_not() {
        let (epoll, gate, container) = setting();
        let mut relay = Relay::default();
        assert!(relay.timeout(None).is_none());
        let first = client(&gate, b"one");
        let second = client(&gate, b"two");
        relay.there(&epoll, 0, &gate, container.local_addr().unwrap());
        assert_eq!(relay.of.len(), 2);
        assert!(relay.timeout(None).is_some_and(|left| left.tv_sec < 90));
        let began = relay.conversations.iter().flatten().map(|c| c.heard);
        let began = began.min().unwrap();
        let index = relay.of[&key(&first)];
        relay.conversations[index].as_mut().unwrap().heard += NANOS;
        relay.end_silent(began + IDLE_NS);
        assert_eq!(relay.of.len(), 1);
        assert_eq!(relay.due, Some(began + NANOS + IDLE_NS));
        relay.end_silent(began + NANOS + IDLE_NS);
        assert!(relay.of.is_empty() && relay.due.is_none());
        drop((first, second));
    }

    #[test]
    fn one_client_too_many_ends_the_longest_silence() {
        let (epoll, gate, container) = setting();
        let target = container.local_addr().unwrap();
        let mut relay = Relay::default();
        let mut clients = Vec::new();
        for n in 0..=CONVERSATIONS_MAX {
            clients.push(client(&gate, &[0]));
            relay.there(&epoll, 0, &gate, target);
            assert_eq!(relay.of.len(), (n + 1).min(CONVERSATIONS_MAX));
        }
        let known = |c: &UdpSocket| relay.of.contains_key(&key(c));
        assert!(!known(&clients[0]));
        assert!(clients[1..].iter().all(known));
        relay.end(1);
        assert_eq!(relay.of.len(), CONVERSATIONS_MAX);
        relay.end(0);
        assert!(relay.of.is_empty() && relay.conversations.iter().all(Option::is_none));
    }

    #[test]
    fn answers_come_from_the_address_that_was_asked() {
        let netns = amphora_sys::ns::new_netns().unwrap();
        let in_it = || {
            for words in ["link set lo up", "-6 addr add fd00:7::2/128 dev lo nodad"] {
                let ip = std::process::Command::new("ip")
                    .args(words.split(' '))
                    .status();
                assert!(ip.unwrap().success(), "ip {words}");
            }
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let gate = UdpSocket::bind("[::]:0").unwrap();
            datagram6::tell_arrival(gate.as_fd()).unwrap();
            let port = gate.local_addr().unwrap().port();
            let container = UdpSocket::bind("127.0.0.1:0").unwrap();
            // One socket that asks at two addresses has two conversations.
            let client = UdpSocket::bind("[::1]:0").unwrap();
            let mut relay = Relay::default();
            let gate = OwnedFd::from(gate);
            for (index, host) in ["fd00:7::2", "::1"].into_iter().enumerate() {
                client.connect((host, port)).unwrap();
                client
                    .set_read_timeout(Some(std::time::Duration::from_secs(5)))
                    .unwrap();
                client.send(b"ask").unwrap();
                relay.there(&epoll, 0, &gate, container.local_addr().unwrap());
                assert_eq!(relay.of.len(), index + 1);
                let mut text = [0; 8];
                let (n, from) = container.recv_from(&mut text).unwrap();
                container.send_to(&text[..n], from).unwrap();
                relay.back(index, &gate);
                let n = client.recv(&mut text).expect(host);
                assert_eq!(&text[..n], b"ask");
            }
            Ok(())
        };
        amphora_sys::ns::in_netns(netns.as_fd(), in_it).unwrap();
    }
}
