//! Connections accepted on the host and spliced to the container, both ways, with half-close: the
//! kernel's address translation does not reach `::1`.
//!
//! Bytes go socket → pipe → socket inside the kernel; a pipe is the only buffer a direction has.
//! Datagrams are handed on by the [`Relay`].

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use amphora_sys::datagram6;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
    socket_error, socket_type,
};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, accept_with, connect, shutdown, socket_with,
};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::clock;
use crate::relay::Relay;
use crate::server::{TOKEN_LISTENER, TOKEN_SPLICE};

/// Most spliced connections at a time; further ones wait in the listener's backlog.
pub(crate) const SPLICES_MAX: usize = 128;
/// Bytes moved at once; what a pipe holds.
const STEP: usize = 64 << 10;
/// Steps of one connection before others have their turn.
const TURN: usize = 16;
/// Silence after which a peer is asked whether it is still there, how often, and how many
/// questions may stay unanswered: one that vanished keeps its place for a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// When accepting is tried again after there were no descriptors, in nanoseconds.
const RETRY_NS: u64 = clock::NANOS;

/// One listening socket.
#[derive(Debug)]
struct Gate {
    socket: OwnedFd,
    target: SocketAddr,
    /// Its datagrams are relayed; it has no connections.
    datagrams: bool,
}

#[derive(Debug)]
struct Connection {
    near: OwnedFd,
    far: OwnedFd,
    connected: bool,
    there: Half,
    back: Half,
    hot: bool,
}

/// One direction.
#[derive(Debug)]
struct Half {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
    eof: bool,
    closed: bool,
}

/// Every listener and every connection.
#[derive(Debug, Default)]
pub(crate) struct Splices {
    gates: Vec<Option<Gate>>,
    connections: Vec<Option<Connection>>,
    pub(crate) relay: Relay,
    full: bool,
    /// When to look for descriptors again: no connection of ours may be there to end.
    retry_at: Option<u64>,
}

enum Outcome {
    Waiting,
    MoreToDo,
    Over,
}

impl Splices {
    /// Starts accepting on a socket that does not wait; returns what ends it again
    /// ([`Splices::unlisten`]).
    pub(crate) fn listen(
        &mut self,
        epoll: &OwnedFd,
        socket: OwnedFd,
        target: SocketAddr,
    ) -> Result<usize, Errno> {
        let datagrams = socket_type(&socket)? == SocketType::DGRAM;
        if datagrams {
            // A kernel that cannot tell chooses the address that answers come from.
            let _ = datagram6::tell_arrival(socket.as_fd());
        }
        let free = self.gates.iter().position(Option::is_none);
        let index = free.unwrap_or(self.gates.len());
        let token = EventData::new_u64(TOKEN_LISTENER + index as u64);
        let flags = if self.full && !datagrams {
            EventFlags::empty()
        } else {
            EventFlags::IN
        };
        epoll::add(epoll, &socket, token, flags)?;
        if index == self.gates.len() {
            self.gates.push(None);
        }
        if let Some(place) = self.gates.get_mut(index) {
            *place = Some(Gate {
                socket,
                target,
                datagrams,
            });
        }
        Ok(index)
    }

    /// Closes a listener; its connections go on.
    pub(crate) fn unlisten(&mut self, gate: usize) {
        if let Some(place) = self.gates.get_mut(gate) {
            *place = None;
        }
        self.relay.end(gate);
    }

    /// Has listeners lead elsewhere from the next connection on.
    pub(crate) fn retarget(&mut self, moved: &[(SocketAddr, SocketAddr)]) {
        for (index, gate) in self.gates.iter_mut().enumerate() {
            let Some(gate) = gate else { continue };
            if let Some((_, to)) = moved.iter().find(|(from, _)| *from == gate.target) {
                gate.target = *to;
                self.relay.end(index);
            }
        }
    }

    /// Closes every listener of which `goes` holds.
    pub(crate) fn unlisten_if(&mut self, goes: impl Fn(&OwnedFd) -> bool) {
        for (index, place) in self.gates.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|gate| goes(&gate.socket)) {
                *place = None;
                self.relay.end(index);
            }
        }
    }

    /// Whether some connection used up its turn and has more to do.
    pub(crate) fn hot(&self) -> bool {
        self.connections.iter().flatten().any(|c| c.hot)
    }

    /// Accepts one connection of a listener, or hands its datagrams on.
    pub(crate) fn accept(&mut self, epoll: &OwnedFd, gate: usize) {
        if let Some(Some(from)) = self.gates.get(gate)
            && from.datagrams
        {
            return self.relay.there(epoll, gate, &from.socket, from.target);
        }
        let used = self.connections.iter().flatten().count();
        if used >= SPLICES_MAX {
            self.watch_gates(epoll, false);
            return;
        }
        let Some(gate) = self.gates.get(gate).and_then(Option::as_ref) else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let near = match accept_with(&gate.socket, flags) {
            Ok(near) => near,
            Err(e) if is_shortage(e) => return self.pause(epoll),
            Err(_) => return,
        };
        let connection = match Connection::open(near, gate.target) {
            Ok(connection) => connection,
            Err(e) if is_shortage(e) => return self.pause(epoll),
            Err(_) => return,
        };
        let index = match self.connections.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.connections.push(None);
                self.connections.len() - 1
            }
        };
        let token = EventData::new_u64(TOKEN_SPLICE + index as u64);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watched = epoll::add(epoll, &connection.near, token, flags)
            .and_then(|()| epoll::add(epoll, &connection.far, token, flags));
        if watched.is_ok() {
            self.connections[index] = Some(connection);
        }
    }

    /// Hands back what the container has answered to a client.
    pub(crate) fn relay_back(&mut self, index: usize) {
        let gate = self.relay.gate_of(index);
        if let Some(Some(gate)) = gate.and_then(|gate| self.gates.get(gate)) {
            self.relay.back(index, &gate.socket);
        }
    }

    /// Without descriptors the listeners would be ready forever.
    fn pause(&mut self, epoll: &OwnedFd) {
        self.watch_gates(epoll, false);
        self.retry_at = Some(clock::monotonic() + RETRY_NS);
    }

    /// Whether [`Splices::retry`] has something to wait for.
    pub(crate) const fn paused(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Accepts again once it is time to.
    pub(crate) fn retry(&mut self, epoll: &OwnedFd) {
        if self.retry_at.is_some_and(|at| clock::monotonic() >= at) {
            self.watch_gates(epoll, true);
        }
    }

    fn watch_gates(&mut self, epoll: &OwnedFd, on: bool) {
        self.full = !on;
        self.retry_at = None;
        let flags = if on {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        for (i, gate) in self.gates.iter().enumerate() {
            let Some(gate) = gate.as_ref().filter(|g| !g.datagrams) else {
                continue;
            };
            let token = EventData::new_u64(TOKEN_LISTENER + i as u64);
            let _ = epoll::modify(epoll, &gate.socket, token, flags);
        }
    }

    /// Moves what can be moved on one connection.
    pub(crate) fn pump(&mut self, epoll: &OwnedFd, index: usize) {
        let Some(slot) = self.connections.get_mut(index) else {
            return;
        };
        let Some(connection) = slot else { return };
        match connection.pump() {
            Outcome::Waiting => connection.hot = false,
            Outcome::MoreToDo => connection.hot = true,
            Outcome::Over => {
                *slot = None;
                if self.full {
                    self.watch_gates(epoll, true);
                }
            }
        }
    }

    /// Gives every connection that has more to do another turn.
    pub(crate) fn pump_hot(&mut self, epoll: &OwnedFd) {
        for index in 0..self.connections.len() {
            if self.connections[index].as_ref().is_some_and(|c| c.hot) {
                self.pump(epoll, index);
            }
        }
    }

    /// Delivers what the container has sent before it ended, as far as there is room.
    pub(crate) fn drain(&mut self) {
        for connection in self.connections.iter_mut().flatten() {
            let _ = connection.pump();
        }
        let gates = &self.gates;
        self.relay
            .drain(|gate| Some(&gates.get(gate)?.as_ref()?.socket));
    }
}

impl Connection {
    fn open(near: OwnedFd, target: SocketAddr) -> Result<Self, Errno> {
        let family = if target.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let far = socket_with(family, SocketType::STREAM, flags, None)?;
        let connected = match connect(&far, &target) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(e) => return Err(e),
        };
        for socket in [&near, &far] {
            let _ = set_tcp_nodelay(socket, true);
            keep_alive(socket);
        }
        Ok(Self {
            near,
            far,
            connected,
            there: Half::new()?,
            back: Half::new()?,
            hot: false,
        })
    }

    fn pump(&mut self) -> Outcome {
        if !self.connected {
            match socket_error(&self.far) {
                Ok(Ok(())) if writable(&self.far) => self.connected = true,
                Ok(Ok(())) => return Outcome::Waiting,
                _ => return Outcome::Over,
            }
        }
        let there = self.there.pump(&self.near, &self.far);
        let back = self.back.pump(&self.far, &self.near);
        match (there, back) {
            (Ok(there), Ok(back)) => {
                if self.there.closed && self.back.closed {
                    Outcome::Over
                } else if there || back {
                    Outcome::MoreToDo
                } else {
                    Outcome::Waiting
                }
            }
            _ => Outcome::Over,
        }
    }
}

/// Whether something the whole process or machine shares has run out.
const fn is_shortage(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS
    )
}

/// Has the kernel notice a peer that vanished without a word; best effort.
fn keep_alive(socket: &OwnedFd) {
    let _ = set_tcp_keepidle(socket, KEEPALIVE_IDLE);
    let _ = set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL);
    let _ = set_tcp_keepcnt(socket, KEEPALIVE_PROBES);
    let _ = set_socket_keepalive(socket, true);
}

fn writable(socket: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
}

impl Half {
    fn new() -> Result<Self, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            read,
            write,
            held: 0,
            eof: false,
            closed: false,
        })
    }

    /// Moves bytes until nothing moves; `true` when the turn ended first.
    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<bool, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        for _ in 0..TURN {
            let mut moved = false;
            if !self.eof && self.held < STEP {
                match splice(from.as_fd(), None, self.write.as_fd(), None, STEP, flags) {
                    Ok(0) => self.eof = true,
                    Ok(n) => {
                        self.held += n;
                        moved = true;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(e) => return Err(e),
                }
            }
            if self.held > 0 {
                match splice(self.read.as_fd(), None, to.as_fd(), None, self.held, flags) {
                    Ok(n) => {
                        self.held -= n.min(self.held);
                        moved |= n > 0;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(e) => return Err(e),
                }
            }
            if self.eof && self.held == 0 && !self.closed {
                let _ = shutdown(to, Shutdown::Write);
                self.closed = true;
            }
            if !moved {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::{socket_keepalive, tcp_keepcnt, tcp_keepidle, tcp_keepintvl};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn peers_on_both_sides_are_asked_whether_they_are_there() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(gate.local_addr().unwrap()).unwrap();
        let near = OwnedFd::from(gate.accept().unwrap().0);
        let connection = Connection::open(near, target.local_addr().unwrap()).unwrap();
        for socket in [&connection.near, &connection.far] {
            assert!(socket_keepalive(socket).unwrap());
            assert_eq!(tcp_keepidle(socket).unwrap(), KEEPALIVE_IDLE);
            assert_eq!(tcp_keepintvl(socket).unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(tcp_keepcnt(socket).unwrap(), KEEPALIVE_PROBES);
        }
    }
}
