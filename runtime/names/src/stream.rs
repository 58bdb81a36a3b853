//! Connections of clients: one query at a time, each behind its length.

use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::wire::DATAGRAM_MAX;

/// Longest query.
const QUERY_MAX: usize = DATAGRAM_MAX as usize;

/// One connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    token: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// A query of it is being forwarded: until then nothing more is read.
    pub(crate) busy: bool,
    /// Tells it from others that had its place before.
    pub(crate) serial: u64,
    /// When it is closed for want of queries.
    pub(crate) due: u64,
    interest: EventFlags,
}

/// Why a connection ends.
#[derive(Debug)]
pub(crate) struct Over;

impl Stream {
    /// Takes a connection over.
    pub(crate) fn new(
        epoll: &OwnedFd,
        socket: OwnedFd,
        token: u64,
        serial: u64,
        due: u64,
    ) -> Result<Self, Errno> {
        epoll::add(epoll, &socket, EventData::new_u64(token), EventFlags::IN)?;
        Ok(Self {
            socket,
            token,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            busy: false,
            serial,
            due,
            interest: EventFlags::IN,
        })
    }

    /// Reads what there is, once.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Result<(), Over> {
        if self.busy || !self.output.is_empty() {
            return Ok(());
        }
        match recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(Over),
            Ok((_, n)) => {
                self.input.extend(scratch.get(..n).unwrap_or_default());
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Over),
        }
    }

    /// Takes the next whole query.
    pub(crate) fn next_query(&mut self) -> Result<Option<Vec<u8>>, Over> {
        if self.busy || !self.output.is_empty() {
            return Ok(None);
        }
        let Some(length) = self.input.first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > QUERY_MAX {
            return Err(Over);
        }
        let Some(query) = self.input.get(2..2 + length) else {
            return Ok(None);
        };
        let query = query.to_vec();
        self.input.drain(..2 + length);
        Ok(Some(query))
    }

    /// Answers.
    pub(crate) fn answer(&mut self, message: &[u8]) -> Result<(), Over> {
        let length = u16::try_from(message.len()).map_err(|_| Over)?;
        self.busy = false;
        self.output.extend(length.to_be_bytes());
        self.output.extend(message);
        self.flush()
    }

    /// Sends what is left of an answer.
    pub(crate) fn flush(&mut self) -> Result<(), Over> {
        while self.sent < self.output.len() {
            let rest = self.output.get(self.sent..).unwrap_or_default();
            match send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Over),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Has the loop wait for what it can go on with.
    pub(crate) fn watch(&mut self, epoll: &OwnedFd) -> Result<(), Over> {
        let wanted = if !self.output.is_empty() {
            EventFlags::OUT
        } else if self.busy {
            EventFlags::empty()
        } else {
            EventFlags::IN
        };
        if wanted != self.interest {
            let token = EventData::new_u64(self.token);
            epoll::modify(epoll, &self.socket, token, wanted).map_err(|_| Over)?;
            self.interest = wanted;
        }
        Ok(())
    }
}
