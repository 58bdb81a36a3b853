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

/// Most connections at a time; further ones are closed at once.
pub(crate) const CLIENTS_MAX: usize = 256;
/// Kernel memory that one client's unread output may take once the container has ended.
const FINAL_BUFFER: usize = 8 << 20;
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
        if client.blocked || client.owed != 0 {
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
        Ok(())
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
