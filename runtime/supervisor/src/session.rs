//! A process with its streams: the container itself, and every exec session.
//!
//! Output is handled a chunk at a time. A chunk that does not fit into the socket of the client
//! that started the session stays at hand and nothing more is read until it fits: its reader slows
//! the session, as the reader of a pipe would, and loses nothing. Clients that attached later never
//! slow anybody: what does not fit is left out, and they are told how much that was.

use std::os::fd::OwnedFd;

use amphora_sys::supervise::PageBuf;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::SupervisorError;
use crate::clients::{CLIENTS_MAX, Owed};
use crate::execs::Exec;
use crate::frame::{self, FRAME_MAX};
use crate::jsonlog::Stream;
use crate::server::Server;
use crate::stdio::Stdio;

/// The session of the container's own process.
pub(crate) const MAIN: usize = 0;
/// Most sessions at a time, the container's own among them.
pub(crate) const SESSIONS_MAX: usize = 1024;

/// Tokens of sessions: this, the index above [`PART_BITS`], and the part.
pub(crate) const TOKEN_SESSION: u64 = 4 << 16;
pub(crate) const PART_BITS: u32 = 3;
pub(crate) const PART_STDOUT: u64 = 0;
pub(crate) const PART_STDERR: u64 = 1;
pub(crate) const PART_STDIN: u64 = 2;
pub(crate) const PART_PROCESS: u64 = 3;
pub(crate) const PART_LAUNCH: u64 = 4;

pub(crate) const STREAMS: [(Stream, u8, u8); 2] = [
    (Stream::Stdout, frame::STDOUT, frame::TYPE_STDOUT),
    (Stream::Stderr, frame::STDERR, frame::TYPE_STDERR),
];

/// The token of a session's part.
pub(crate) fn token(session: usize, part: u64) -> EventData {
    EventData::new_u64(TOKEN_SESSION | ((session as u64) << PART_BITS) | part)
}

/// One process and its streams.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) stdio: Stdio,
    /// Whether standard input ends when nobody is attached to it any more.
    pub(crate) stdin_once: bool,
    /// What there is to an exec session beside its streams; `None` for the container's own.
    pub(crate) exec: Option<Box<Exec>>,
    chunk: PageBuf,
    /// The chunk at hand: length of its message and the stream's bit.
    pub(crate) pending: Option<(usize, u8)>,
    pub(crate) inbox: PageBuf,
    /// What of the inbox has still to go to standard input: from, to, and whose it is.
    pub(crate) input: Option<(usize, usize, usize)>,
    close_stdin: bool,
}

impl Session {
    pub(crate) fn new(
        stdio: Stdio,
        stdin_once: bool,
        exec: Option<Box<Exec>>,
    ) -> Result<Self, SupervisorError> {
        let map = |len| PageBuf::new(len).map_err(|e| SupervisorError::Kernel("map a buffer", e));
        Ok(Self {
            stdio,
            stdin_once,
            exec,
            chunk: map(FRAME_MAX)?,
            pending: None,
            inbox: map(FRAME_MAX)?,
            input: None,
            close_stdin: false,
        })
    }

    /// Gives the buffers' pages back, where nothing is in them.
    pub(crate) fn release_pages(&mut self) {
        if self.pending.is_none() {
            self.chunk.release();
        }
        if self.input.is_none() {
            self.inbox.release();
        }
    }

    /// Has the loop look at the output.
    pub(crate) fn watch(&self, epoll: &OwnedFd, index: usize) -> Result<(), Errno> {
        for (fd, part) in self.stdio.out.iter().zip([PART_STDOUT, PART_STDERR]) {
            if let Some(fd) = fd {
                epoll::add(epoll, fd, token(index, part), EventFlags::IN)?;
            }
        }
        Ok(())
    }

    fn set_watch(&self, epoll: &OwnedFd, index: usize, flags: EventFlags) {
        for (fd, part) in self.stdio.out.iter().zip([PART_STDOUT, PART_STDERR]) {
            if let Some(fd) = fd {
                let _ = epoll::modify(epoll, fd, token(index, part), flags);
            }
        }
    }
}

impl Server {
    /// The session, when there is one under that index.
    pub(crate) fn session(&mut self, index: usize) -> Option<&mut Session> {
        self.sessions.get_mut(index)?.as_mut()
    }

    /// Something happened to a part of a session.
    pub(crate) fn session_event(&mut self, index: usize, part: u64) {
        match part {
            PART_STDOUT | PART_STDERR => {
                self.output(index, usize::from(part == PART_STDERR));
            }
            PART_STDIN => self.write_stdin(index),
            PART_PROCESS => self.exec_exited(index),
            PART_LAUNCH => self.exec_launched(index),
            _ => {}
        }
    }

    /// Reads a chunk of a stream and passes it on; `false` when there is nothing to read.
    pub(crate) fn output(&mut self, index: usize, which: usize) -> bool {
        let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) else {
            return false;
        };
        let Some(fd) = &session.stdio.out[which] else {
            return false;
        };
        if session.pending.is_some() {
            return false;
        }
        let (stream, bit, kind) = STREAMS[which];
        self.used = true;
        let n = match rustix::io::read(fd, &mut session.chunk[1..]) {
            Ok(n) if n > 0 => n,
            Err(Errno::AGAIN | Errno::INTR) => return false,
            // The end: whoever wrote here has closed it.
            _ => {
                let _ = epoll::delete(&self.epoll, fd);
                session.stdio.out[which] = None;
                return false;
            }
        };
        session.chunk[0] = kind;
        let message = 1 + n;
        let mut dead = [None; 4];
        let mut count = 0;
        for (i, client) in self.clients.of(index).filter(|(_, c)| c.streams & bit != 0) {
            match client.output(&session.chunk[..message]) {
                Ok(()) => {}
                Err(Errno::AGAIN) => session.pending = Some((message, bit)),
                Err(_) => {
                    // Those beyond are found with the next chunk.
                    if let Some(place) = dead.get_mut(count) {
                        *place = Some(i);
                        count += 1;
                    }
                }
            }
        }
        if index == MAIN {
            self.log.append(stream, &session.chunk[1..message]);
        }
        if session.pending.is_some() {
            session.set_watch(&self.epoll, index, EventFlags::empty());
            for i in 0..CLIENTS_MAX {
                if self.clients.get(i).is_some_and(|c| c.blocked) {
                    self.clients.update(&self.epoll, i);
                }
            }
        }
        for dead in dead.into_iter().flatten() {
            self.drop_client(dead);
        }
        true
    }

    /// Once the last slow client has the chunk at hand, reading goes on.
    pub(crate) fn settle(&mut self, index: usize) {
        let blocked = self.clients.any(|c| c.blocked && c.session == index);
        let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if session.pending.is_some() && !blocked {
            session.pending = None;
            session.set_watch(&self.epoll, index, EventFlags::IN);
            if session.exec.as_ref().is_some_and(|e| e.exit.is_some()) {
                self.conclude_exec(index);
            }
        }
    }

    /// Sends the chunk at hand to a client that lacks it, as soon as it has room.
    pub(crate) fn resend(&mut self, client: usize) -> Result<(), Errno> {
        let Some(client) = self.clients.get(client).filter(|c| c.blocked) else {
            return Ok(());
        };
        let index = client.session;
        let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        if let Some((len, _)) = session.pending {
            client.blocked = false;
            match client.output(&session.chunk[..len]) {
                Ok(()) | Err(Errno::AGAIN) => {}
                Err(e) => return Err(e),
            }
        }
        self.settle(index);
        Ok(())
    }

    /// The container has ended: sends the chunk at hand to those who lack it, however slow.
    pub(crate) fn flush_pending(&mut self, index: usize) {
        let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let Some((len, _)) = session.pending.take() else {
            return;
        };
        let mut dead = Vec::new();
        for (i, client) in self.clients.of(index).filter(|(_, c)| c.blocked) {
            client.blocked = false;
            if client.send_final(&session.chunk[..len]).is_err() {
                dead.push(i);
            }
        }
        for i in dead {
            self.drop_client(i);
        }
    }

    /// Closes standard input, after what is still in the inbox. A terminal has no such end.
    pub(crate) fn end_stdin(&mut self, index: usize) {
        let Some(session) = self.session(index) else {
            return;
        };
        if session.stdio.is_terminal() {
            return;
        }
        if session.input.is_some() {
            session.close_stdin = true;
        } else {
            session.stdio.stdin = None;
        }
    }

    /// Writes the inbox to standard input as far as it goes.
    pub(crate) fn write_stdin(&mut self, index: usize) {
        let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let Some((mut from, to, owner)) = session.input else {
            return;
        };
        let allowed = self
            .clients
            .get(owner)
            .is_none_or(|c| c.streams & frame::STDIN != 0);
        while allowed && from < to {
            let Some(stdin) = &session.stdio.stdin else {
                break;
            };
            match rustix::io::write(stdin, &session.inbox[from..to]) {
                Ok(n) => from += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    session.input = Some((from, to, owner));
                    let (token, flags) = (token(index, PART_STDIN), EventFlags::OUT);
                    if epoll::modify(&self.epoll, stdin, token, flags).is_err() {
                        let _ = epoll::add(&self.epoll, stdin, token, flags);
                    }
                    return;
                }
                // The container closed its standard input: the rest has nowhere to go.
                Err(_) => break,
            }
        }
        session.input = None;
        if let Some(stdin) = &session.stdio.stdin {
            let _ = epoll::delete(&self.epoll, stdin);
        }
        if std::mem::take(&mut session.close_stdin) {
            session.stdio.stdin = None;
        }
        let told = self.clients.get(owner).map(|c| c.owe(Owed::StdinReady));
        if told.is_some_and(|t| t.is_err()) {
            self.drop_client(owner);
        }
        self.clients.update(&self.epoll, owner);
        for i in 0..CLIENTS_MAX {
            let parked = |c: &mut crate::clients::Client| {
                c.session == index && std::mem::take(&mut c.parked)
            };
            if self.clients.get(i).is_some_and(parked) {
                self.clients.update(&self.epoll, i);
            }
        }
    }
}
