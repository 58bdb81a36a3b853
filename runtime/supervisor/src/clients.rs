//! The connections a supervisor serves, and what each of them is owed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};

use crate::clock;
use crate::frame::{Frame, send_bytes};
use crate::server::TOKEN_CLIENT;
use crate::session::MAIN;

/// Most connections at a time; further ones are closed at once.
pub(crate) const CLIENTS_MAX: usize = 256;
/// Kernel memory that one client's unread output may take once the container has ended.
const FINAL_BUFFER: usize = 8 << 20;
/// Kernel memory for the unread output of a client that attached later.
const LATE_BUFFER: usize = 1 << 20;
const NOW: SendFlags = SendFlags::DONTWAIT;
/// How long an ended container waits for a client whose buffer cannot be made larger.
const FINAL_WAIT_NS: u64 = 10 * clock::NANOS;

/// A small answer that must not get lost behind output.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owed {
    Attached = 1,
    StdinReady = 2,
    Done = 4,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    /// The session it belongs to.
    pub(crate) session: usize,
    /// Whether it started the session: then the session waits for it, as for the reader of a pipe.
    /// Anybody else misses what does not fit.
    pub(crate) owner: bool,
    /// Whether the session it starts is killed when it goes.
    pub(crate) leash: bool,
    /// Bytes it has missed and not been told of.
    pub(crate) skipped: u64,
    /// Whether it was told the end, after which it hears nothing more.
    pub(crate) ended: bool,
    /// The last message for it, when that did not fit at once.
    pub(crate) last: Option<Vec<u8>>,
    /// Streams it wants: bits of [`crate::frame::STDOUT`] and so on.
    pub(crate) streams: u8,
    /// Its next message is standard input, which has no room now.
    pub(crate) parked: bool,
    /// The chunk at hand did not fit into its socket.
    pub(crate) blocked: bool,
    owed: u8,
}

/// All connections, at stable indices.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    slots: Vec<Option<Client>>,
}

impl Clients {
    pub(crate) fn get(&mut self, index: usize) -> Option<&mut Client> {
        self.slots.get_mut(index)?.as_mut()
    }

    pub(crate) fn iter(&mut self) -> impl Iterator<Item = (usize, &mut Client)> {
        self.slots
            .iter_mut()
            .enumerate()
            .filter_map(|(i, c)| Some((i, c.as_mut()?)))
    }

    /// The clients of a session.
    pub(crate) fn of(&mut self, session: usize) -> impl Iterator<Item = (usize, &mut Client)> {
        self.iter().filter(move |(_, c)| c.session == session)
    }

    pub(crate) fn any(&self, what: impl Fn(&Client) -> bool) -> bool {
        self.slots.iter().flatten().any(what)
    }

    /// Adds a connection; `None` (and it is closed) when there are too many.
    pub(crate) fn add(&mut self, epoll: &OwnedFd, socket: OwnedFd, streams: u8) -> Option<usize> {
        let index = match self.slots.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.slots.len() < CLIENTS_MAX => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        let token = EventData::new_u64(TOKEN_CLIENT + index as u64);
        epoll::add(epoll, &socket, token, EventFlags::IN).ok()?;
        let client = Client {
            socket,
            session: MAIN,
            owner: false,
            leash: false,
            skipped: 0,
            ended: false,
            last: None,
            streams,
            parked: false,
            blocked: false,
            owed: 0,
        };
        self.slots[index] = Some(client);
        Some(index)
    }

    /// Closes a connection (epoll forgets it by itself).
    pub(crate) fn remove(&mut self, index: usize) -> Option<Client> {
        self.slots.get_mut(index)?.take()
    }

    /// Asks epoll for what matters about a connection now.
    pub(crate) fn update(&mut self, epoll: &OwnedFd, index: usize) {
        let Some(client) = self.get(index) else {
            return;
        };
        let mut flags = EventFlags::empty();
        if !client.parked {
            flags |= EventFlags::IN;
        }
        if client.blocked || client.owed != 0 || client.last.is_some() {
            flags |= EventFlags::OUT;
        }
        let token = EventData::new_u64(TOKEN_CLIENT + index as u64);
        let _ = epoll::modify(epoll, &client.socket, token, flags);
    }
}

impl Client {
    /// Sends a small answer now, or notes it for later.
    pub(crate) fn owe(&mut self, what: Owed) -> Result<(), Errno> {
        self.owed |= what as u8;
        self.pay()
    }

    /// Sends what is owed, as far as there is room.
    pub(crate) fn pay(&mut self) -> Result<(), Errno> {
        let all = [
            (Owed::Attached, Frame::Attached),
            (Owed::StdinReady, Frame::StdinReady),
            (Owed::Done, Frame::Done),
        ];
        for (bit, frame) in all {
            if self.owed & bit as u8 == 0 {
                continue;
            }
            match frame.send(self.socket.as_fd(), SendFlags::DONTWAIT) {
                Ok(()) => self.owed &= !(bit as u8),
                Err(Errno::AGAIN) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        match &self.last {
            Some(last) if !self.blocked => match send_bytes(self.socket.as_fd(), last, NOW) {
                Ok(()) => self.last = None,
                Err(Errno::AGAIN) => {}
                Err(e) => return Err(e),
            },
            _ => {}
        }
        Ok(())
    }

    /// Gives a client that the container does not wait for room for what it has not read yet.
    pub(crate) fn widen(&self) {
        if set_socket_send_buffer_size_force(&self.socket, LATE_BUFFER).is_err() {
            let _ = set_socket_send_buffer_size(&self.socket, LATE_BUFFER);
        }
    }

    /// Passes on a chunk of output; `AGAIN` when the session has to wait for this client.
    pub(crate) fn output(&mut self, message: &[u8]) -> Result<(), Errno> {
        let socket = self.socket.as_fd();
        if self.skipped > 0 {
            match Frame::Skipped(self.skipped).send(socket, NOW) {
                Ok(()) => self.skipped = 0,
                Err(Errno::AGAIN | Errno::NOBUFS) => return self.miss(message.len()),
                Err(e) => return Err(e),
            }
        }
        match send_bytes(socket, message, NOW) {
            Err(Errno::AGAIN | Errno::NOBUFS) if self.owner => {
                self.blocked = true;
                Err(Errno::AGAIN)
            }
            Err(Errno::AGAIN | Errno::NOBUFS) => self.miss(message.len()),
            other => other,
        }
    }

    fn miss(&mut self, message: usize) -> Result<(), Errno> {
        // A message is a type byte and what came.
        self.skipped += message.saturating_sub(1) as u64;
        Ok(())
    }

    /// Says at the container's end what was left out.
    pub(crate) fn tell_skipped(&mut self) {
        if self.skipped > 0 {
            let skipped = Frame::Skipped(std::mem::take(&mut self.skipped));
            let _ = self.send_final(&skipped.encode());
        }
    }

    /// Sends what a session ends with, at once or as soon as there is room.
    pub(crate) fn end(&mut self, message: &[u8]) -> Result<(), Errno> {
        self.ended = true;
        self.last = Some(message.to_vec());
        self.pay()
    }

    /// Sends a message after the container's end: the supervisor is about to go, so whatever the
    /// client has not read yet must find room in its socket, which keeps it for the client.
    pub(crate) fn send_final(&self, message: &[u8]) -> Result<(), Errno> {
        let socket = self.socket.as_fd();
        match send_bytes(socket, message, SendFlags::DONTWAIT) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
        if set_socket_send_buffer_size_force(socket, FINAL_BUFFER).is_err() {
            let _ = set_socket_send_buffer_size(socket, FINAL_BUFFER);
        }
        let deadline = clock::monotonic() + FINAL_WAIT_NS;
        loop {
            match send_bytes(socket, message, SendFlags::DONTWAIT) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
            let left = deadline.saturating_sub(clock::monotonic());
            if left == 0 {
                return Err(Errno::TIMEDOUT);
            }
            let timeout = Timespec {
                tv_sec: i64::try_from(left / clock::NANOS).unwrap_or(0),
                tv_nsec: i64::try_from(left % clock::NANOS).unwrap_or(0),
            };
            let _ = poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&timeout));
        }
    }
}
