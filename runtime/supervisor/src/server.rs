//! The loop: one epoll over init, its streams, the socket, the clients and spliced connections.
//!
//! Output is handled a chunk at a time. A chunk that does not fit into some client's socket stays
//! at hand and nothing more is read until it fits: a slow reader slows the container, as a pipe
//! would, and loses nothing. A dead one is closed at once.

use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::pidfd;
use amphora_sys::supervise::PageBuf;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with};

use crate::clients::{Clients, Owed};
use crate::config::Config;
use crate::frame::{self, FRAME_MAX, Frame};
use crate::jsonlog::{Logger, Stream};
use crate::splice::Splices;
use crate::state::State;
use crate::stdio::Stdio;
use crate::{SupervisorError, frame::TYPE_STDIN};

const TOKEN_INIT: u64 = 0;
const TOKEN_STDOUT: u64 = 1;
const TOKEN_STDERR: u64 = 2;
const TOKEN_STDIN: u64 = 3;
const TOKEN_CONTROL: u64 = 4;
pub(crate) const TOKEN_CLIENT: u64 = 1 << 16;
pub(crate) const TOKEN_LISTENER: u64 = 2 << 16;
pub(crate) const TOKEN_SPLICE: u64 = 3 << 16;
const EVENTS: usize = 32;
/// Quiet time after which buffers are given back.
const IDLE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Longest message of a client that is not standard input.
const SMALL: usize = 64;

/// The container's first process.
#[derive(Debug)]
pub(crate) struct Init {
    pub(crate) pidfd: OwnedFd,
    /// Whether we are its parent, and its wait status is ours to collect.
    pub(crate) child: bool,
}

/// What a server is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) run_dir: OwnedFd,
    pub(crate) data_dir: OwnedFd,
    pub(crate) lock: OwnedFd,
    pub(crate) hold: Vec<OwnedFd>,
    pub(crate) control: OwnedFd,
    /// `None`: it had ended before this supervisor came.
    pub(crate) init: Option<Init>,
    pub(crate) stdio: Stdio,
    pub(crate) state: State,
}

/// A running supervisor.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) parts: Parts,
    pub(crate) clients: Clients,
    pub(crate) splices: Splices,
    pub(crate) log: Logger,
    epoll: OwnedFd,
    chunk: PageBuf,
    /// The chunk at hand: length of its message and the stream's bit.
    pending: Option<(usize, u8)>,
    inbox: PageBuf,
    /// What of the inbox has still to go to standard input: from, to, and whose it is.
    input: Option<(usize, usize, usize)>,
    close_stdin: bool,
    used: bool,
}

pub(crate) const STREAMS: [(Stream, u8, u8); 2] = [
    (Stream::Stdout, frame::STDOUT, frame::TYPE_STDOUT),
    (Stream::Stderr, frame::STDERR, frame::TYPE_STDERR),
];

impl Server {
    pub(crate) fn new(parts: Parts) -> Result<Self, SupervisorError> {
        let kernel = SupervisorError::kernel;
        let map = |len| PageBuf::new(len).map_err(|e| SupervisorError::Kernel("map a buffer", e));
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(kernel("make an epoll"))?;
        let watch = |fd: &OwnedFd, token: u64| {
            epoll::add(&epoll, fd, EventData::new_u64(token), EventFlags::IN)
                .map_err(kernel("watch a descriptor"))
        };
        if let Some(init) = &parts.init {
            watch(&init.pidfd, TOKEN_INIT)?;
        }
        watch(&parts.stdio.out[0], TOKEN_STDOUT)?;
        watch(&parts.stdio.out[1], TOKEN_STDERR)?;
        watch(&parts.control, TOKEN_CONTROL)?;
        Ok(Self {
            log: Logger::new(parts.config.data_dir.clone(), parts.config.log.clone())?,
            clients: Clients::default(),
            splices: Splices::default(),
            chunk: map(FRAME_MAX)?,
            inbox: map(FRAME_MAX)?,
            pending: None,
            input: None,
            close_stdin: false,
            used: true,
            epoll,
            parts,
        })
    }

    /// Takes over a listening socket, or just keeps it.
    pub(crate) fn add_listeners(&mut self, sockets: Vec<OwnedFd>) -> Result<(), SupervisorError> {
        let targets = self.parts.config.listeners.iter().map(|l| l.target);
        for (socket, target) in sockets
            .into_iter()
            .zip(targets.chain(std::iter::repeat(None)))
        {
            match target {
                Some(target) => self
                    .splices
                    .listen(&self.epoll, socket, target)
                    .map_err(SupervisorError::kernel("listen for the container"))?,
                None => self.parts.hold.push(socket),
            }
        }
        Ok(())
    }

    /// Adds the connection this supervisor was born with.
    pub(crate) fn add_client(&mut self, socket: OwnedFd, streams: u8) {
        let _ = self.clients.add(&self.epoll, socket, streams);
    }

    /// Serves until init has ended.
    pub(crate) fn run(&mut self) -> Result<(), SupervisorError> {
        let mut events: [Event; EVENTS] = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; EVENTS];
        loop {
            let timeout = match (self.splices.hot(), self.used && self.pending.is_none()) {
                (true, _) => Some(Timespec::default()),
                (false, true) => Some(IDLE),
                (false, false) => None,
            };
            let n = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(SupervisorError::kernel("wait for events")(e)),
            };
            if n == 0 && !self.splices.hot() {
                self.release_pages();
            }
            let mut ended = false;
            for event in events.iter().take(n) {
                ended |= event.data.u64() == TOKEN_INIT;
                self.dispatch(event.data.u64(), event.flags);
            }
            if ended {
                return Ok(());
            }
            self.splices.pump_hot(&self.epoll);
        }
    }

    fn release_pages(&mut self) {
        self.used = false;
        self.chunk.release();
        self.log.release_pages();
        if self.input.is_none() {
            self.inbox.release();
        }
    }

    fn dispatch(&mut self, token: u64, flags: EventFlags) {
        let index = usize::try_from(token & 0xffff).unwrap_or(0);
        match token & !0xffff {
            TOKEN_CLIENT => self.client_event(index, flags),
            TOKEN_LISTENER => self.splices.accept(&self.epoll, index),
            TOKEN_SPLICE => self.splices.pump(&self.epoll, index),
            _ => match token {
                TOKEN_STDOUT => drop(self.output(0)),
                TOKEN_STDERR => drop(self.output(1)),
                TOKEN_STDIN => self.write_stdin(),
                TOKEN_CONTROL => self.accept(),
                _ => {}
            },
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(socket) = accept_with(&self.parts.control, flags) {
            let _ = self.clients.add(&self.epoll, socket, 0);
        }
    }

    /// Reads a chunk of a stream and passes it on; `false` when there is nothing to read.
    pub(crate) fn output(&mut self, which: usize) -> bool {
        if self.pending.is_some() {
            return false;
        }
        let (stream, bit, kind) = STREAMS[which];
        self.used = true;
        let n = match rustix::io::read(&self.parts.stdio.out[which], &mut self.chunk[1..]) {
            Ok(n) if n > 0 => n,
            _ => return false,
        };
        self.chunk[0] = kind;
        let message = 1 + n;
        let mut dead = None;
        for (i, client) in self.clients.iter().filter(|(_, c)| c.streams & bit != 0) {
            match frame::send_bytes(
                client.socket.as_fd(),
                &self.chunk[..message],
                SendFlags::DONTWAIT,
            ) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    client.blocked = true;
                    self.pending = Some((message, bit));
                }
                Err(_) => dead = Some(i),
            }
        }
        self.log.append(stream, &self.chunk[1..message]);
        if self.pending.is_some() {
            self.watch_output(EventFlags::empty());
            for i in 0..crate::clients::CLIENTS_MAX {
                if self.clients.get(i).is_some_and(|c| c.blocked) {
                    self.clients.update(&self.epoll, i);
                }
            }
        }
        if let Some(dead) = dead {
            self.drop_client(dead);
        }
        true
    }

    fn watch_output(&self, flags: EventFlags) {
        for (fd, token) in self
            .parts
            .stdio
            .out
            .iter()
            .zip([TOKEN_STDOUT, TOKEN_STDERR])
        {
            let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags);
        }
    }

    /// Once the last slow client has the chunk at hand, reading goes on.
    fn settle(&mut self) {
        if self.pending.is_some() && !self.clients.any(|c| c.blocked) {
            self.pending = None;
            self.watch_output(EventFlags::IN);
        }
    }

    /// The container has ended: sends the chunk at hand to those who lack it, however slow.
    pub(crate) fn flush_pending(&mut self) {
        let Some((len, _)) = self.pending.take() else {
            return;
        };
        let mut dead = Vec::new();
        for (i, client) in self.clients.iter().filter(|(_, c)| c.blocked) {
            client.blocked = false;
            if client.send_final(&self.chunk[..len]).is_err() {
                dead.push(i);
            }
        }
        for i in dead {
            self.drop_client(i);
        }
    }

    fn client_event(&mut self, index: usize, flags: EventFlags) {
        if flags.intersects(EventFlags::OUT) && self.client_writable(index).is_err() {
            return self.drop_client(index);
        }
        if flags.intersects(EventFlags::IN) {
            if !self.client_readable(index) {
                return self.drop_client(index);
            }
        } else if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            return self.drop_client(index);
        }
        self.clients.update(&self.epoll, index);
    }

    fn client_writable(&mut self, index: usize) -> Result<(), Errno> {
        let Some(client) = self.clients.get(index) else {
            return Ok(());
        };
        client.pay()?;
        if let (true, Some((len, _))) = (client.blocked, self.pending) {
            match frame::send_bytes(
                client.socket.as_fd(),
                &self.chunk[..len],
                SendFlags::DONTWAIT,
            ) {
                Ok(()) => client.blocked = false,
                Err(Errno::AGAIN | Errno::NOBUFS) => {}
                Err(e) => return Err(e),
            }
            self.settle();
        }
        Ok(())
    }

    /// Handles one message; `false` when the client is gone or makes no sense.
    fn client_readable(&mut self, index: usize) -> bool {
        let Some(client) = self.clients.get(index) else {
            return true;
        };
        let socket = client.socket.as_fd();
        let mut head = [0];
        match frame::receive(socket, &mut head, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok(1) => {}
            Err(Errno::AGAIN) => return true,
            _ => return false,
        }
        if head[0] == TYPE_STDIN {
            if self.input.is_some() {
                client.parked = true;
                return true;
            }
            self.used = true;
            return match frame::receive(socket, &mut self.inbox, RecvFlags::DONTWAIT) {
                Ok(n) if n > 0 => {
                    self.input = Some((1, n, index));
                    self.write_stdin();
                    true
                }
                _ => false,
            };
        }
        let mut small = [0; SMALL];
        let n = match frame::receive(socket, &mut small, RecvFlags::DONTWAIT) {
            Ok(n) if n > 0 => n,
            _ => return false,
        };
        match Frame::decode(&small[..n]) {
            Some(message) => self.request(index, message).is_ok(),
            None => false,
        }
    }

    fn request(&mut self, index: usize, message: Frame<'_>) -> Result<(), Errno> {
        let stop_signal = self.parts.config.stop_signal;
        let Some(client) = self.clients.get(index) else {
            return Ok(());
        };
        match message {
            Frame::Attach(streams) => {
                client.streams = streams;
                client.owe(Owed::Attached)
            }
            Frame::Detach => {
                client.streams = 0;
                Ok(())
            }
            Frame::Wait => Ok(()),
            Frame::Signal(number) => {
                let number = if number == 0 { stop_signal } else { number };
                let init = self.parts.init.as_ref();
                let sent = init.map_or(Ok(false), |i| pidfd::signal(i.pidfd.as_fd(), number));
                let why = match sent {
                    Ok(true) => return client.owe(Owed::Done),
                    Ok(false) => "the container has ended".to_owned(),
                    Err(e) => format!("failed to send signal {number}: {e}"),
                };
                Frame::Error(&why).send(client.socket.as_fd(), SendFlags::DONTWAIT)
            }
            Frame::StdinEof => {
                if client.streams & frame::STDIN != 0 && self.parts.config.stdin_once {
                    self.end_stdin();
                }
                Ok(())
            }
            _ => Err(Errno::PROTO),
        }
    }

    /// Closes standard input, after what is still in the inbox.
    fn end_stdin(&mut self) {
        if self.input.is_some() {
            self.close_stdin = true;
        } else {
            self.parts.stdio.stdin = None;
        }
    }

    /// Writes the inbox to standard input as far as it goes.
    fn write_stdin(&mut self) {
        let Some((mut from, to, owner)) = self.input else {
            return;
        };
        let allowed = self
            .clients
            .get(owner)
            .is_none_or(|c| c.streams & frame::STDIN != 0);
        while allowed && from < to {
            let Some(stdin) = &self.parts.stdio.stdin else {
                break;
            };
            match rustix::io::write(stdin, &self.inbox[from..to]) {
                Ok(n) => from += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.input = Some((from, to, owner));
                    let token = EventData::new_u64(TOKEN_STDIN);
                    let flags = EventFlags::OUT;
                    if epoll::modify(&self.epoll, stdin, token, flags).is_err() {
                        let _ = epoll::add(&self.epoll, stdin, token, flags);
                    }
                    return;
                }
                // The container closed its standard input: the rest has nowhere to go.
                Err(_) => break,
            }
        }
        self.input = None;
        if let Some(stdin) = &self.parts.stdio.stdin {
            let _ = epoll::delete(&self.epoll, stdin);
        }
        if self.close_stdin {
            self.close_stdin = false;
            self.parts.stdio.stdin = None;
        }
        if self
            .clients
            .get(owner)
            .is_some_and(|c| c.owe(Owed::StdinReady).is_err())
        {
            self.drop_client(owner);
        }
        self.clients.update(&self.epoll, owner);
        for index in 0..crate::clients::CLIENTS_MAX {
            if self
                .clients
                .get(index)
                .is_some_and(|c| std::mem::take(&mut c.parked))
            {
                self.clients.update(&self.epoll, index);
            }
        }
    }

    fn drop_client(&mut self, index: usize) {
        let Some(client) = self.clients.remove(index) else {
            return;
        };
        let had_stdin = client.streams & frame::STDIN != 0;
        drop(client);
        if let Some((from, to, owner)) = self.input
            && owner == index
        {
            // Its index may be given away again; nobody is to be told.
            self.input = Some((from, to, usize::MAX));
        }
        if had_stdin
            && self.parts.config.stdin_once
            && !self.clients.any(|c| c.streams & frame::STDIN != 0)
        {
            self.end_stdin();
        }
        self.settle();
    }
}
