//! The loop: one epoll over init, the sessions, the socket, the clients and spliced connections.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::pidfd;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with};

use crate::SupervisorError;
use crate::clients::{Client, Clients, Owed};
use crate::config::Config;
use crate::early::Early;
use crate::frame::{self, Frame, TYPE_EXEC, TYPE_PORTS, TYPE_STDIN};
use crate::health::HealthAction;
use crate::jsonlog::Logger;
use crate::overlay::Overlays;
use crate::probes::HealthClock;
use crate::session::{MAIN, PART_BITS, Session, TOKEN_SESSION};
use crate::splice::Splices;
use crate::state::State;
use crate::stdio::Stdio;

const TOKEN_INIT: u64 = 0;
const TOKEN_CONTROL: u64 = 4;
pub(crate) const TOKEN_PROBE: u64 = 5;
pub(crate) const TOKEN_CLIENT: u64 = 1 << 16;
pub(crate) const TOKEN_LISTENER: u64 = 2 << 16;
pub(crate) const TOKEN_SPLICE: u64 = 3 << 16;
pub(crate) const TOKEN_NAMES: u64 = 5 << 16;
pub(crate) const TOKEN_RELAY: u64 = 6 << 16;
pub(crate) const TOKEN_OVERLAY: u64 = 7 << 16;
const EVENTS: usize = 32;
/// Quiet time after which buffers are given back.
const IDLE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Longest message of a client that is not standard input.
const SMALL: usize = 128;

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
    /// What takes time to close, and keeps nobody out: closed with the process.
    pub(crate) late: Vec<OwnedFd>,
    /// Given back in the first quiet moment.
    pub(crate) early: Early,
    /// The sockets of its name server, until that serves.
    pub(crate) names: Option<amphora_names::Sockets>,
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
    /// `None`: it has no names to ask for.
    pub(crate) names: Option<Box<amphora_names::NameServer>>,
    /// `None`: none of its networks has other hosts.
    pub(crate) overlays: Option<Box<Overlays>>,
    pub(crate) log: Logger,
    /// The container's own session, then those of exec.
    pub(crate) sessions: Vec<Option<Session>>,
    /// Ended exec sessions that are still on record, oldest first.
    pub(crate) ended_execs: VecDeque<String>,
    pub(crate) epoll: OwnedFd,
    pub(crate) used: bool,
    /// `None`: nothing is checked.
    pub(crate) health: Option<Box<HealthClock>>,
    /// What it was ended for because it was unhealthy.
    pub(crate) ended_for: HealthAction,
}

impl Server {
    pub(crate) fn new(mut parts: Parts) -> Result<Self, SupervisorError> {
        let kernel = SupervisorError::kernel;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(kernel("make an epoll"))?;
        let watch = |fd: &OwnedFd, token: u64| {
            epoll::add(&epoll, fd, EventData::new_u64(token), EventFlags::IN)
                .map_err(kernel("watch a descriptor"))
        };
        if let Some(init) = &parts.init {
            watch(&init.pidfd, TOKEN_INIT)?;
        }
        let main = std::mem::take(&mut parts.stdio);
        let main = Session::new(main, parts.config.stdin_once, None)?;
        main.watch(&epoll, MAIN)
            .map_err(kernel("watch a descriptor"))?;
        watch(&parts.control, TOKEN_CONTROL)?;
        let names = crate::name_server::serve(&epoll, &mut parts)?;
        Ok(Self {
            log: Logger::new(parts.config.data_dir.clone(), parts.config.log.clone())?,
            clients: Clients::default(),
            splices: Splices::default(),
            names,
            overlays: None,
            sessions: vec![Some(main)],
            ended_execs: VecDeque::new(),
            used: true,
            health: HealthClock::new(&parts),
            ended_for: HealthAction::None,
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
            // In the place of a port that somebody took meanwhile stands what is no socket.
            let is_socket = socket_type(&socket) != Err(Errno::NOTSOCK);
            match target.filter(|_| is_socket) {
                Some(target) => {
                    let gate = self.splices.listen(&self.epoll, socket, target);
                    gate.map_err(SupervisorError::kernel("listen for the container"))?;
                }
                None => self.parts.hold.push(socket),
            }
        }
        Ok(())
    }

    /// Adds the connection this supervisor was born with.
    pub(crate) fn add_client(&mut self, socket: OwnedFd, streams: u8) {
        let added = self.clients.add(&self.epoll, socket, streams);
        if let Some(client) = added.and_then(|index| self.clients.get(index)) {
            client.owner = true;
        }
    }

    /// Serves until init has ended.
    pub(crate) fn run(&mut self) -> Result<(), SupervisorError> {
        let mut events: [Event; EVENTS] = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; EVENTS];
        loop {
            self.health_tick();
            self.names_tick();
            self.overlay_tick();
            let timeout = match (self.splices.hot(), self.used || self.splices.paused()) {
                (true, _) => Some(Timespec::default()),
                (false, true) => Some(IDLE),
                (false, false) => None,
            };
            let timeout = self.names_timeout(self.health_timeout(timeout));
            let timeout = self.splices.relay.timeout(timeout);
            let timeout = self.overlay_timeout(timeout);
            let n = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(SupervisorError::kernel("wait for events")(e)),
            };
            if n == 0 && !self.splices.hot() {
                self.release_pages();
            }
            self.used |= n > 0;
            let mut ended = false;
            for event in events.iter().take(n) {
                ended |= event.data.u64() == TOKEN_INIT;
                self.dispatch(event.data.u64(), event.flags);
            }
            if ended {
                return Ok(());
            }
            self.splices.pump_hot(&self.epoll);
            self.splices.retry(&self.epoll);
            self.splices.relay.tick();
        }
    }

    fn release_pages(&mut self) {
        self.used = false;
        let early = std::mem::take(&mut self.parts.early);
        self.parts.early = early.settled(&self.parts.config.run_dir);
        self.log.release_pages();
        if let Some(names) = &mut self.names {
            names.release();
        }
        self.splices.relay.release();
        for session in self.sessions.iter_mut().flatten() {
            session.release_pages();
        }
        amphora_sys::supervise::release_program();
    }

    fn dispatch(&mut self, token: u64, flags: EventFlags) {
        let index = usize::try_from(token & 0xffff).unwrap_or(0);
        match token & !0xffff {
            TOKEN_CLIENT => self.client_event(index, flags),
            TOKEN_LISTENER => self.splices.accept(&self.epoll, index),
            TOKEN_SPLICE => self.splices.pump(&self.epoll, index),
            TOKEN_RELAY => self.splices.relay_back(index),
            TOKEN_NAMES => self.names_event(token, flags),
            TOKEN_OVERLAY => self.overlay_event(token),
            TOKEN_SESSION => {
                let part = token & ((1 << PART_BITS) - 1);
                self.session_event(index >> PART_BITS, part);
            }
            _ if token == TOKEN_CONTROL => self.accept(),
            _ if token == TOKEN_PROBE => self.probe_ended(),
            _ => {}
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(socket) = accept_with(&self.parts.control, flags) {
            let _ = self.clients.add(&self.epoll, socket, 0);
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
        self.resend(index)
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
        if head[0] == TYPE_EXEC {
            return self.exec_arrives(index);
        }
        if head[0] == TYPE_PORTS {
            return self.ports_arrive(index);
        }
        if head[0] == TYPE_STDIN {
            let at = client.session;
            let Some(session) = self.sessions.get_mut(at).and_then(Option::as_mut) else {
                return false;
            };
            if session.input.is_some() {
                client.parked = true;
                return true;
            }
            self.used = true;
            return match frame::receive(socket, &mut session.inbox, RecvFlags::DONTWAIT) {
                Ok(n) if n > 0 => {
                    session.input = Some((1, n, index));
                    self.write_stdin(at);
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
                client.widen();
                client.owe(Owed::Attached)
            }
            Frame::Detach => {
                client.streams = 0;
                Ok(())
            }
            Frame::Wait => Ok(()),
            Frame::Signal(number) => {
                let number = if number == 0 { stop_signal } else { number };
                let session = client.session;
                let sent = self.signal(session, number);
                let why = match sent {
                    Ok(true) => None,
                    Ok(false) => Some("the container has ended".to_owned()),
                    Err(e) => Some(format!("failed to send signal {number}: {e}")),
                };
                self.answer(index, why)
            }
            Frame::Resize { rows, cols, exec } => {
                let session = self.session_of(index, exec).unwrap_or(usize::MAX);
                let resized = match self.session(session) {
                    Some(session) => session.stdio.resize(rows, cols),
                    None => Err(Errno::SRCH),
                };
                let why = resized.err().map(|e| match e {
                    Errno::NOTTY => "there is no terminal".to_owned(),
                    Errno::SRCH => "there is no such exec session".to_owned(),
                    e => format!("failed to resize the terminal: {e}"),
                });
                self.answer(index, why)
            }
            Frame::StdinEof => {
                let at = client.session;
                let feeds = client.streams & frame::STDIN != 0;
                if feeds && self.session(at).is_some_and(|s| s.stdin_once) {
                    self.end_stdin(at);
                }
                Ok(())
            }
            Frame::Held { dev, ino } => self.hand_out(index, (dev, ino)),
            _ => Err(Errno::PROTO),
        }
    }

    /// Signals the process of a session; `false` when it has ended.
    fn signal(&mut self, session: usize, number: i32) -> std::io::Result<bool> {
        if let Some(sent) = self.signal_exec(session, number) {
            return sent;
        }
        let init = self.parts.init.as_ref();
        init.map_or(Ok(false), |i| pidfd::signal(i.pidfd.as_fd(), number))
    }

    /// Tells a client that its request is done, or why not.
    pub(crate) fn answer(&mut self, client: usize, why: Option<String>) -> Result<(), Errno> {
        let Some(client) = self.clients.get(client) else {
            return Ok(());
        };
        match why {
            None => client.owe(Owed::Done),
            Some(why) => Frame::Error(&why).send(client.socket.as_fd(), SendFlags::DONTWAIT),
        }
    }

    pub(crate) fn drop_client(&mut self, index: usize) {
        let Some(client) = self.clients.remove(index) else {
            return;
        };
        let (had_stdin, at) = (client.streams & frame::STDIN != 0, client.session);
        if client.leash {
            self.kill_bound(at);
        }
        drop(client);
        let feeds = |c: &Client| c.session == at && c.streams & frame::STDIN != 0;
        let last = had_stdin && !self.clients.any(feeds);
        if let Some(session) = self.session(at) {
            if let Some((from, to, owner)) = session.input
                && owner == index
            {
                // Its index may be given away again; nobody is to be told.
                session.input = Some((from, to, usize::MAX));
            }
            if last && session.stdin_once {
                self.end_stdin(at);
            }
        }
        self.settle(at);
    }
}
