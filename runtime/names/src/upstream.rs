//! Queries that others answer: which servers are asked, and one try of one of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use crate::socket::PORT;
use crate::wire::{STREAM_MAX, is_answer};

/// Most servers asked.
pub(crate) const SERVERS_MAX: usize = 3;
/// Asked where the host names nobody, as by Docker.
const PUBLIC: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
];

/// The servers that a `resolv.conf` names.
pub(crate) fn servers_of(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") && servers.len() < SERVERS_MAX {
            servers.extend(words.next().and_then(server));
        }
    }
    if servers.is_empty() {
        servers.extend(PUBLIC.map(|address| SocketAddr::new(address, PORT)));
    }
    servers
}

fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = text.split_once('%') else {
        return text
            .parse()
            .ok()
            .map(|address| SocketAddr::new(address, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let scope = zone.parse().ok().or_else(|| index_of(zone))?;
    Some(SocketAddrV6::new(address, PORT, 0, scope).into())
}

fn index_of(link: &str) -> Option<u32> {
    let flags = SocketFlags::CLOEXEC;
    let any = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).ok()?;
    rustix::net::netdevice::name_to_index(&any, link).ok()
}

/// One server being asked.
#[derive(Debug)]
pub(crate) struct Try {
    socket: OwnedFd,
    /// The query it belongs to.
    pub(crate) pending: usize,
    pub(crate) server: SocketAddr,
    stream: Option<Frames>,
}

/// A query and its answer behind their lengths.
#[derive(Debug)]
struct Frames {
    output: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
}

/// What came of it so far.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Nothing yet.
    Nothing,
    /// This answers the query.
    Answer(Vec<u8>),
    /// It will not answer.
    Dead,
}

impl Try {
    /// Asks a server, from a port of the kernel's choice.
    pub(crate) fn start(
        server: SocketAddr,
        query: &[u8],
        over_stream: bool,
        pending: usize,
    ) -> Result<Self, Errno> {
        let family = match server {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let (kind, stream) = if over_stream {
            let length = u16::try_from(query.len()).map_err(|_| Errno::MSGSIZE)?;
            let mut output = length.to_be_bytes().to_vec();
            output.extend(query);
            let frames = Frames {
                output,
                sent: 0,
                input: Vec::new(),
            };
            (SocketType::STREAM, Some(frames))
        } else {
            (SocketType::DGRAM, None)
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, kind, flags, None)?;
        match connect(&socket, &server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e),
        }
        let mut asked = Self {
            socket,
            pending,
            server,
            stream,
        };
        if asked.stream.is_none() {
            asked.send_again(query)?;
        }
        Ok(asked)
    }

    /// Has the loop wait for the answer.
    pub(crate) fn watch(&self, epoll: &OwnedFd, token: u64) -> Result<(), Errno> {
        let flags = match self.stream {
            Some(_) => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
            None => EventFlags::IN,
        };
        epoll::add(epoll, &self.socket, EventData::new_u64(token), flags)
    }

    /// Sends a datagram again, which may have been lost.
    pub(crate) fn send_again(&mut self, query: &[u8]) -> Result<(), Errno> {
        match send(&self.socket, query, SendFlags::DONTWAIT) {
            // No room is as good as lost.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Takes what has come.
    pub(crate) fn hear(&mut self, query: &[u8], head: usize, scratch: &mut [u8]) -> Heard {
        let head = query.get(..head).unwrap_or_default();
        match &mut self.stream {
            None => {
                let got = recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT);
                match got {
                    Ok((_, n)) => {
                        let message = scratch.get(..n).unwrap_or_default();
                        if is_answer(head, message) {
                            Heard::Answer(message.to_vec())
                        } else {
                            Heard::Nothing
                        }
                    }
                    Err(Errno::AGAIN | Errno::INTR) => Heard::Nothing,
                    Err(_) => Heard::Dead,
                }
            }
            Some(frames) => frames.pump(&self.socket, head, scratch),
        }
    }
}

impl Frames {
    fn pump(&mut self, socket: &OwnedFd, head: &[u8], scratch: &mut [u8]) -> Heard {
        while self.sent < self.output.len() {
            let rest = self.output.get(self.sent..).unwrap_or_default();
            match send(socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOTCONN | Errno::INPROGRESS) => return Heard::Nothing,
                Err(_) => return Heard::Dead,
            }
        }
        // An answer is at most this long, so this ends.
        while self.input.len() < 2 + STREAM_MAX {
            match recv(socket, &mut *scratch, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Heard::Dead,
                Ok((_, n)) => self.input.extend(scratch.get(..n).unwrap_or_default()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Heard::Nothing,
                Err(_) => return Heard::Dead,
            }
            let length = self.input.first_chunk().map(|l| u16::from_be_bytes(*l));
            let whole = length.and_then(|l| self.input.get(2..2 + usize::from(l)));
            if let Some(message) = whole {
                return if is_answer(head, message) {
                    Heard::Answer(message.to_vec())
                } else {
                    Heard::Dead
                };
            }
        }
        Heard::Dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_the_first_three_and_public_ones_stand_in() {
        let text = "# nameserver 1.1.1.1\nnameserver 127.0.0.53\nnameserver nonsense\n\
                    search x\nnameserver fe80::1%7\n nameserver ::1 # local\nnameserver 9.9.9.9\n";
        let texts = servers_of(text)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        assert_eq!(texts, ["127.0.0.53:53", "[fe80::1%7]:53", "[::1]:53"]);
        let texts = servers_of("")
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        assert_eq!(texts, ["8.8.8.8:53", "8.8.4.4:53"]);
    }
}
