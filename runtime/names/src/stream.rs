//! Connections of clients: one query at a time, each behind its length.

use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::wire::DATAGRAM_MAX;

/// Longest query.
const QUERY_MAX: usize = DATAGRAM_MAX as usize;
/// Most that is read ahead: one query with its length.
const INPUT_MAX: usize = 2 + QUERY_MAX;

/// One connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    token: u64,
    input: Vec<u8>,
    /// How much of the input was taken.
    taken: usize,
    output: Vec<u8>,
    sent: usize,
    /// A query of it is being forwarded: until then nothing more is read.
    pub(crate) busy: bool,
    /// Tells it from others that had its place before.
    pub(crate) serial: u64,
    /// When it is closed for want of queries.
    pub(crate) due: u64,
    /// An answer found no room, and there has been more to answer ever since.
    behind: bool,
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
            taken: 0,
            output: Vec::new(),
            sent: 0,
            busy: false,
            serial,
            due,
            behind: false,
            interest: EventFlags::IN,
        })
    }

    /// Reads what there is, once, and only when it has nothing to answer: whoever asks faster than
    /// it reads has its questions wait on its own side.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Result<(), Over> {
        if self.busy || !self.output.is_empty() || self.waiting()?.is_some() {
            return Ok(());
        }
        self.input.drain(..self.taken);
        self.taken = 0;
        let room = INPUT_MAX.saturating_sub(self.input.len());
        let Some(scratch) = scratch.get_mut(..room).filter(|s| !s.is_empty()) else {
            return Ok(());
        };
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
        let Some(query) = self.waiting()?.map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.taken += 2 + query.len();
        Ok(Some(query))
    }

    /// The next query, when it is whole.
    fn waiting(&self) -> Result<Option<&[u8]>, Over> {
        let input = self.input.get(self.taken..).unwrap_or_default();
        let Some((length, rest)) = input.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > QUERY_MAX {
            return Err(Over);
        }
        Ok(rest.get(..length))
    }

    /// A query came: the connection lasts until `due`, unless it is behind with reading.
    pub(crate) fn renew(&mut self, due: u64) {
        if !self.behind {
            self.due = due;
        }
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
            self.behind = true;
            EventFlags::OUT
        } else if self.busy {
            EventFlags::empty()
        } else {
            self.behind = self.behind && ioctl_fionread(&self.socket).map_err(|_| Over)? > 0;
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const QUERY: [u8; 40] = [7; 40];

    fn pair() -> (OwnedFd, Stream, UnixStream) {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let stream = Stream::new(&epoll, here.into(), 0, 1, 100).unwrap();
        there.set_nonblocking(true).unwrap();
        (epoll, stream, there)
    }

    /// Asks as often as there is room for.
    fn ask(client: &mut UnixStream) -> usize {
        let framed = [&[0, 40][..], &QUERY].concat();
        std::iter::from_fn(|| client.write_all(&framed).ok()).count()
    }

    fn turn(epoll: &OwnedFd, stream: &mut Stream, scratch: &mut [u8], now: u64) -> usize {
        stream.flush().unwrap();
        stream.receive(scratch).unwrap();
        let mut answered = 0;
        while let Some(query) = stream.next_query().unwrap() {
            assert_eq!(query, QUERY);
            stream.renew(now);
            stream.answer(&[1; 4000]).unwrap();
            answered += 1;
            assert!(stream.input.len() <= INPUT_MAX && stream.output.len() <= 4002);
        }
        stream.watch(epoll).unwrap();
        answered
    }

    #[test]
    fn whoever_reads_slowly_has_its_queries_wait_outside() {
        let (epoll, mut stream, mut client) = pair();
        let mut scratch = vec![0; 64 << 10];
        let (mut asked, mut answered) = (0, 0);
        for _ in 0..1000 {
            asked += ask(&mut client);
            answered += turn(&epoll, &mut stream, &mut scratch, 100);
            assert!(stream.input.capacity() <= 4 * INPUT_MAX);
            let _ = client.read(&mut [0; 4002]);
        }
        assert!(answered > 500, "{answered}");
        // All the rest is in the socket, whose room does not grow.
        let rest = (asked - answered) * (2 + QUERY.len());
        assert!(rest < 1 << 20, "{rest} bytes unanswered");
    }

    #[test]
    fn queries_do_not_prolong_a_connection_that_is_behind() {
        let (epoll, mut stream, mut client) = pair();
        let mut scratch = vec![0; 64 << 10];
        let mut bytes = vec![0; 1 << 20];
        ask(&mut client);
        while stream.output.is_empty() {
            turn(&epoll, &mut stream, &mut scratch, 200);
        }
        assert_eq!((stream.due, stream.interest), (200, EventFlags::OUT));
        let _ = client.read(&mut bytes).unwrap();
        assert!(turn(&epoll, &mut stream, &mut scratch, 300) > 0);
        assert_eq!(stream.due, 200);
        while stream.interest != EventFlags::IN || stream.behind {
            let _ = client.read(&mut bytes);
            turn(&epoll, &mut stream, &mut scratch, 400);
            assert_eq!(stream.due, 200);
        }
        // All is answered: it begins anew.
        assert!(ask(&mut client) > 0);
        turn(&epoll, &mut stream, &mut scratch, 500);
        assert_eq!(stream.due, 500);
    }
}
