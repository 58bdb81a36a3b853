//! The name server of one container.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use amphora_sys::{datagram, ns};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recvfrom};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::asking::{Question, Silent};
use crate::records::{Addresses, Records};
use crate::socket::{ADDRESS, PORT, Place, Sockets, address_of, random};
use crate::stream::{Over, Stream};
use crate::upstream::{Heard, SERVERS_MAX, Try, servers_of};
use crate::wire::{
    DATAGRAM_MAX, Malformed, Query, Rcode, Record, kinds, rcode_of, reverse, set_id,
};

const NANOS: u64 = 1_000_000_000;
/// Most queries that wait for servers; further ones fail at once.
const PENDING_MAX: usize = 256;
/// Most connections of clients; further ones wait to be accepted.
const STREAMS_MAX: usize = 32;
/// Datagrams answered before others have their turn.
const TURN: usize = 64;
/// After this the next server is asked too, or the same again.
const STEP_NS: u64 = 800_000_000;
const STEPS: usize = 5;
/// After this nobody will answer any more. Clients wait 5 seconds.
const PATIENCE_NS: u64 = 4_500_000_000;
/// A connection without a query is closed after this, and one that lets its answers lie: from the
/// first that found no room on, further queries do not count until all are answered.
const QUIET_NS: u64 = 10 * NANOS;
/// A server that did not answer where another one did is asked last for so long.
const SLOW_NS: u64 = 10 * NANOS;
/// Room for whatever arrives.
const SCRATCH: usize = 64 << 10;
/// Of the numbers that events carry: listener, clients, servers.
const PART_LISTENER: u64 = 1;
const PART_STREAMS: u64 = 0x100;
const PART_TRIES: u64 = 0x1000;
pub(crate) const PART_HOSTS: u64 = 0x8000;

/// What a name server is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The data root.
    pub data: PathBuf,
    /// The run root.
    pub run: PathBuf,
    /// The container's id.
    pub container: String,
    /// Whom other names are asked of; none: those in the host's `/etc/resolv.conf`.
    pub servers: Vec<IpAddr>,
    /// Whether names without a dot are never asked outside: the container's resolver puts its search
    /// domains to them.
    pub bare_names_stay: bool,
    /// Where it listens.
    pub place: Place,
}

/// Who serves.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The loop.
    pub epoll: &'a OwnedFd,
    /// The container's first process, or its network namespace: what `--dns` says of a loopback
    /// address is meant in there.
    pub container: Option<BorrowedFd<'a>>,
}

/// A name server.
#[derive(Debug)]
pub struct NameServer {
    settings: Settings,
    sockets: Sockets,
    /// The number of the first of its events.
    pub(crate) base: u64,
    /// Servers that did not answer, and until when that counts.
    slow: Vec<(SocketAddr, u64)>,
    /// The same of other hosts.
    pub(crate) silent: Silent,
    /// Whose turn it is among several addresses, in either family.
    turns: [usize; 2],
    /// `None` while nobody asks.
    work: Option<Box<Work>>,
}

/// What is there while somebody asks.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) records: Records,
    pub(crate) scratch: Vec<u8>,
    /// What other hosts are asked.
    pub(crate) questions: Vec<Option<Question>>,
    pending: Vec<Option<Pending>>,
    tries: Vec<Option<Try>>,
    streams: Vec<Option<Stream>>,
    /// Whether connections are accepted; otherwise when they are again.
    accepting: Result<(), u64>,
    serial: u64,
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Datagram(SocketAddr),
    Stream(usize, u64),
}

/// A query that waits for servers.
#[derive(Debug)]
struct Pending {
    client: Client,
    /// The number it came with.
    id: u16,
    /// The query, with a number of ours.
    query: Vec<u8>,
    /// Where its question ends.
    head: usize,
    servers: Vec<SocketAddr>,
    steps: usize,
    due: u64,
    end: u64,
    /// How the last server that failed answered.
    failed: Rcode,
}

/// What becomes of a query.
pub(crate) enum Outcome {
    Answered(Vec<u8>),
    Later,
    Nothing,
}

pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(NANOS)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

impl NameServer {
    /// A name server on these sockets; its events carry numbers from `base` on, 65536 at most.
    ///
    /// # Errors
    /// When the sockets cannot be watched.
    pub fn new(
        epoll: &OwnedFd,
        settings: Settings,
        sockets: Sockets,
        base: u64,
    ) -> io::Result<Self> {
        let watch = |socket: &OwnedFd, part: u64| {
            epoll::add(
                epoll,
                socket,
                EventData::new_u64(base + part),
                EventFlags::IN,
            )
        };
        watch(&sockets.udp, 0)?;
        watch(&sockets.tcp, PART_LISTENER)?;
        Ok(Self {
            settings,
            sockets,
            base,
            slow: Vec::new(),
            silent: Silent::default(),
            turns: [0; 2],
            work: None,
        })
    }

    /// Does what an event asks for.
    pub fn ready(&mut self, cx: Context<'_>, token: u64, flags: EventFlags) {
        let mut work = self.work.take().unwrap_or_else(|| Box::new(self.start()));
        let part = token.saturating_sub(self.base);
        let index = |first: u64| usize::try_from(part - first).unwrap_or(usize::MAX);
        match part {
            0 => self.datagrams(&mut work, cx),
            PART_LISTENER => self.accept(&mut work, cx),
            PART_STREAMS..PART_TRIES => {
                self.stream(&mut work, cx, index(PART_STREAMS), flags);
            }
            PART_HOSTS.. => self.hosts_heard(&mut work, cx, index(PART_HOSTS)),
            PART_TRIES.. => self.heard(&mut work, cx, index(PART_TRIES)),
            _ => {}
        }
        self.work = Some(work);
    }

    /// In how many nanoseconds [`NameServer::tick`] has something to do.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        let work = self.work.as_ref()?;
        let queries = work.pending.iter().flatten().map(|p| p.due.min(p.end));
        let streams = work.streams.iter().flatten().filter(|s| !s.busy);
        let due = queries
            .chain(streams.map(|s| s.due))
            .chain(work.accepting.err())
            .chain(work.questions.iter().flatten().map(Question::due))
            .min()?;
        Some(due.saturating_sub(now()))
    }

    /// Does what is due.
    pub fn tick(&mut self, cx: Context<'_>) {
        let Some(mut work) = self.work.take() else {
            return;
        };
        let now = now();
        for index in 0..work.pending.len() {
            let due = |p: &Pending| p.due.min(p.end) <= now;
            if work
                .pending
                .get(index)
                .and_then(Option::as_ref)
                .is_some_and(due)
            {
                self.advance(&mut work, cx, index, now);
            }
        }
        for index in 0..work.streams.len() {
            let quiet = |s: &Stream| !s.busy && s.due <= now;
            if work
                .streams
                .get(index)
                .and_then(Option::as_ref)
                .is_some_and(quiet)
            {
                self.close(&mut work, cx, index);
            }
        }
        self.hosts_tick(&mut work, cx, now);
        if work.accepting.is_err_and(|at| at <= now) {
            self.accept_again(&mut work, cx, true);
        }
        self.work = Some(work);
    }

    /// Gives memory back, unless somebody waits.
    pub fn release(&mut self) {
        self.work = self.work.take().filter(|work| {
            let waits = work.pending.iter().any(Option::is_some)
                || work.questions.iter().any(Option::is_some);
            waits || work.streams.iter().any(Option::is_some) || work.accepting.is_err()
        });
        let now = now();
        self.slow.retain(|(_, until)| *until > now);
        self.silent.forget(now);
    }

    fn start(&self) -> Work {
        let settings = &self.settings;
        Work {
            records: Records::new(&settings.data, &settings.run, &settings.container),
            scratch: vec![0; SCRATCH],
            questions: Vec::new(),
            pending: Vec::new(),
            tries: Vec::new(),
            streams: Vec::new(),
            accepting: Ok(()),
            serial: 0,
        }
    }

    fn datagrams(&mut self, work: &mut Work, cx: Context<'_>) {
        for _ in 0..TURN {
            // One byte more than a query may have tells that it is too long.
            let room = work.scratch.len().min(usize::from(DATAGRAM_MAX) + 1);
            let room = work.scratch.get_mut(..room).unwrap_or_default();
            let got = recvfrom(&self.sockets.udp, room, RecvFlags::DONTWAIT);
            let (n, from) = match got {
                Ok((_, n, from)) => (n, from),
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let Some(from) = from.and_then(address_of) else {
                continue;
            };
            let packet = work.scratch.get(..n).unwrap_or_default().to_vec();
            let client = Client::Datagram(from);
            if let Outcome::Answered(answer) = self.query(work, cx, client, &packet) {
                self.tell(&answer, from);
            }
        }
    }

    /// Sends an answer; one that finds no room is lost, as on any wire.
    fn tell(&self, answer: &[u8], to: SocketAddr) {
        if let SocketAddr::V4(to) = to {
            let _ = datagram::send_from(self.sockets.udp.as_fd(), ADDRESS, to, answer);
        }
    }

    fn accept(&self, work: &mut Work, cx: Context<'_>) {
        if work.streams.iter().flatten().count() >= STREAMS_MAX {
            return self.accept_again(work, cx, false);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.sockets.tcp, flags) {
            Ok(socket) => socket,
            // Without descriptors it would be ready for ever.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                return self.accept_again(work, cx, false);
            }
            Err(_) => return,
        };
        let index = free_slot(&mut work.streams);
        let token = self.base + PART_STREAMS + index as u64;
        work.serial += 1;
        let due = now() + QUIET_NS;
        if let Some(slot) = work.streams.get_mut(index) {
            *slot = Stream::new(cx.epoll, socket, token, work.serial, due).ok();
        }
    }

    fn accept_again(&self, work: &mut Work, cx: Context<'_>, on: bool) {
        let flags = if on {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        let token = EventData::new_u64(self.base + PART_LISTENER);
        let _ = epoll::modify(cx.epoll, &self.sockets.tcp, token, flags);
        work.accepting = if on { Ok(()) } else { Err(now() + NANOS) };
    }

    fn close(&self, work: &mut Work, cx: Context<'_>, index: usize) {
        if let Some(slot) = work.streams.get_mut(index) {
            *slot = None;
        }
        if work.accepting.is_err() {
            self.accept_again(work, cx, true);
        }
    }

    fn stream(&mut self, work: &mut Work, cx: Context<'_>, index: usize, flags: EventFlags) {
        // Who is gone is told of for ever, whatever is waited for.
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        if gone || self.converse(work, cx, index, true).is_err() {
            self.close(work, cx, index);
        }
    }

    /// Goes on with a connection as far as it can.
    fn converse(
        &mut self,
        work: &mut Work,
        cx: Context<'_>,
        index: usize,
        receive: bool,
    ) -> Result<(), Over> {
        let Some(stream) = work.streams.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let client = Client::Stream(index, stream.serial);
        stream.flush()?;
        if receive {
            stream.receive(&mut work.scratch)?;
        }
        loop {
            let Some(stream) = work.streams.get_mut(index).and_then(Option::as_mut) else {
                return Ok(());
            };
            let Some(packet) = stream.next_query()? else {
                return stream.watch(cx.epoll);
            };
            stream.renew(now() + QUIET_NS);
            stream.busy = true;
            let outcome = self.query(work, cx, client, &packet);
            let Some(stream) = work.streams.get_mut(index).and_then(Option::as_mut) else {
                return Ok(());
            };
            match outcome {
                Outcome::Answered(answer) => stream.answer(&answer)?,
                Outcome::Later => {}
                Outcome::Nothing => return Err(Over),
            }
        }
    }

    fn query(
        &mut self,
        work: &mut Work,
        cx: Context<'_>,
        client: Client,
        packet: &[u8],
    ) -> Outcome {
        let query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Malformed::Silent) => return Outcome::Nothing,
            Err(Malformed::Answer(answer)) => return Outcome::Answered(answer),
        };
        let limit = match client {
            Client::Datagram(_) => query.datagram(),
            Client::Stream(..) => Query::stream(),
        };
        match self.known(&mut work.records, &query) {
            Some((rcode, records)) => Outcome::Answered(query.answer(rcode, &records, limit)),
            None => match self.ask_hosts(work, cx, client, &query) {
                Some(outcome) => outcome,
                None => self.unknown(work, cx, client, &query),
            },
        }
    }

    /// What we say ourselves; `None`: it is not ours to say.
    fn known(&mut self, records: &mut Records, query: &Query<'_>) -> Option<(Rcode, Vec<Record>)> {
        if kinds::TRANSFERS.contains(&query.kind) || query.class != kinds::IN {
            return Some((Rcode::Refused, Vec::new()));
        }
        let name = query.name()?;
        if query.kind == kinds::PTR {
            let found = records.name_of(reverse(&name)?)?;
            return Some((Rcode::NoError, vec![Record::Name(found)]));
        }
        let found = records.lookup(&name);
        (!found.is_empty()).then(|| (Rcode::NoError, self.in_turn(found, query.kind)))
    }

    /// Addresses of a kind; each time another one comes first.
    pub(crate) fn in_turn(&mut self, mut found: Addresses, kind: u16) -> Vec<Record> {
        let [v4, v6] = &mut self.turns;
        if [kinds::A, kinds::ANY].contains(&kind) {
            rotate(&mut found.v4, v4);
        }
        if [kinds::AAAA, kinds::ANY].contains(&kind) {
            rotate(&mut found.v6, v6);
        }
        found.records(kind)
    }

    /// Nobody of ours is called so.
    pub(crate) fn unknown(
        &mut self,
        work: &mut Work,
        cx: Context<'_>,
        client: Client,
        query: &Query<'_>,
    ) -> Outcome {
        let dotted = || query.name().is_none_or(|name| name.contains('.'));
        let address = matches!(query.kind, kinds::A | kinds::AAAA);
        if self.settings.bare_names_stay && address && !dotted() {
            let limit = Query::stream();
            return Outcome::Answered(query.answer(Rcode::NoError, &[], limit));
        }
        self.forward(work, cx, client, query)
    }

    fn forward(
        &mut self,
        work: &mut Work,
        cx: Context<'_>,
        client: Client,
        query: &Query<'_>,
    ) -> Outcome {
        let same = |p: &Pending| {
            p.client == client && p.id == query.id() && p.query.get(2..) == query.packet().get(2..)
        };
        if work.pending.iter().flatten().any(same) {
            // Asked again out of impatience.
            return Outcome::Later;
        }
        let full = work.pending.iter().flatten().count() >= PENDING_MAX;
        if full || !work.records.may_leave() {
            return Outcome::Answered(query.failure(Rcode::ServerFailure));
        }
        let mut asked = query.packet().to_vec();
        set_id(&mut asked, random());
        let now = now();
        let pending = Pending {
            client,
            id: query.id(),
            query: asked,
            head: query.head().len(),
            servers: self.servers(now),
            steps: 0,
            due: now,
            end: now + PATIENCE_NS,
            failed: Rcode::ServerFailure,
        };
        let index = free_slot(&mut work.pending);
        if let Some(slot) = work.pending.get_mut(index) {
            *slot = Some(pending);
        }
        match self.step(work, cx, index, now) {
            true => Outcome::Later,
            false => {
                let failed = take(&mut work.pending, index);
                let rcode = failed.map_or(Rcode::ServerFailure, |p| p.failed);
                Outcome::Answered(query.failure(rcode))
            }
        }
    }

    /// Whom to ask, those last who did not answer of late.
    fn servers(&self, now: u64) -> Vec<SocketAddr> {
        let own = &self.settings.servers;
        let mut servers: Vec<SocketAddr> = own
            .iter()
            .take(SERVERS_MAX)
            .map(|address| SocketAddr::new(*address, PORT))
            .collect();
        if servers.is_empty() {
            servers = servers_of(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        }
        let slow = |server: &SocketAddr| {
            let known = self.slow.iter().find(|(slow, _)| slow == server);
            known.is_some_and(|(_, until)| *until > now)
        };
        servers.sort_by_key(slow);
        servers
    }

    /// Asks the next server, or one again; `false` when there is nobody left.
    fn step(&self, work: &mut Work, cx: Context<'_>, index: usize, now: u64) -> bool {
        loop {
            let Some(pending) = work.pending.get_mut(index).and_then(Option::as_mut) else {
                return true;
            };
            let mut asked = work
                .tries
                .iter_mut()
                .flatten()
                .filter(|t| t.pending == index);
            let (count, step) = (pending.servers.len(), pending.steps);
            if now >= pending.end || count == 0 {
                return false;
            }
            pending.due = now + STEP_NS;
            if step >= STEPS.max(count) {
                pending.due = pending.end;
                return asked.next().is_some();
            }
            pending.steps += 1;
            let Some(server) = pending.servers.get(step % count).copied() else {
                return false;
            };
            let over_stream = matches!(pending.client, Client::Stream(..));
            if step >= count {
                match asked.find(|t| t.server == server) {
                    Some(again) if !over_stream => {
                        let _ = again.send_again(&pending.query);
                        return true;
                    }
                    Some(_) => return true,
                    None => continue,
                }
            }
            let inside = !self.settings.servers.is_empty() && server.ip().is_loopback();
            let start = || Try::start(server, &pending.query, over_stream, index);
            let started = match cx.container.filter(|_| inside) {
                None => start().ok(),
                Some(container) => {
                    let start = || start().map_err(io::Error::from);
                    ns::in_netns(container, start).ok()
                }
            };
            let Some(started) = started else { continue };
            let slot = free_slot(&mut work.tries);
            let token = self.base + PART_TRIES + slot as u64;
            if started.watch(cx.epoll, token).is_ok()
                && let Some(place) = work.tries.get_mut(slot)
            {
                *place = Some(started);
                return true;
            }
        }
    }

    fn advance(&mut self, work: &mut Work, cx: Context<'_>, index: usize, now: u64) {
        if !self.step(work, cx, index, now) {
            self.conclude(work, cx, index, None);
        }
    }

    /// Remembers who did not answer where another did.
    fn note(&mut self, work: &Work, index: usize, answered: SocketAddr) {
        let until = now() + SLOW_NS;
        self.slow.retain(|(known, _)| *known != answered);
        for silent in work.tries.iter().flatten().filter(|t| t.pending == index) {
            let known = self.slow.iter().any(|(known, _)| *known == silent.server);
            if silent.server != answered && !known && self.slow.len() < SERVERS_MAX {
                self.slow.push((silent.server, until));
            }
        }
    }

    /// Something came from a server.
    fn heard(&mut self, work: &mut Work, cx: Context<'_>, slot: usize) {
        let Some(asked) = work.tries.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let (index, server) = (asked.pending, asked.server);
        let Some(pending) = work.pending.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        match asked.hear(&pending.query, pending.head, &mut work.scratch) {
            Heard::Nothing => {}
            Heard::Answer(answer) => {
                self.note(work, index, server);
                let Some(pending) = work.pending.get_mut(index).and_then(Option::as_mut) else {
                    return;
                };
                // Whoever cannot or will not say is no reason not to ask the next one.
                pending.failed = match rcode_of(&answer) {
                    2 => Rcode::ServerFailure,
                    5 => Rcode::Refused,
                    _ => return self.conclude(work, cx, index, Some(answer)),
                };
                take(&mut work.tries, slot);
                self.next_or_wait(work, cx, index);
            }
            Heard::Dead => {
                take(&mut work.tries, slot);
                self.next_or_wait(work, cx, index);
            }
        }
    }

    /// One server less: the next one is asked at once.
    fn next_or_wait(&mut self, work: &mut Work, cx: Context<'_>, index: usize) {
        let unasked = |p: &Pending| p.steps < p.servers.len();
        let pending = work.pending.get(index).and_then(Option::as_ref);
        let others = work.tries.iter().flatten().any(|t| t.pending == index);
        if pending.is_some_and(unasked) || !others {
            self.advance(work, cx, index, now());
        }
    }

    /// Answers a query that was forwarded.
    fn conclude(
        &mut self,
        work: &mut Work,
        cx: Context<'_>,
        index: usize,
        answer: Option<Vec<u8>>,
    ) {
        for slot in &mut work.tries {
            if slot.as_ref().is_some_and(|t| t.pending == index) {
                *slot = None;
            }
        }
        let Some(pending) = take(&mut work.pending, index) else {
            return;
        };
        let answer = answer.or_else(|| {
            let query = Query::parse(&pending.query).ok()?;
            Some(query.failure(pending.failed))
        });
        let Some(mut answer) = answer else { return };
        set_id(&mut answer, pending.id);
        self.deliver(work, cx, pending.client, &answer);
    }

    /// Answers what was not answered at once.
    pub(crate) fn deliver(
        &mut self,
        work: &mut Work,
        cx: Context<'_>,
        client: Client,
        answer: &[u8],
    ) {
        match client {
            Client::Datagram(to) => {
                self.tell(answer, to);
            }
            Client::Stream(at, serial) => {
                let stream = work.streams.get_mut(at).and_then(Option::as_mut);
                let Some(stream) = stream.filter(|s| s.serial == serial) else {
                    return;
                };
                let told = stream.answer(answer);
                if told.is_err() || self.converse(work, cx, at, false).is_err() {
                    self.close(work, cx, at);
                }
            }
        }
    }
}

/// Has another address come first.
fn rotate<T>(addresses: &mut [T], turn: &mut usize) {
    if !addresses.is_empty() {
        addresses.rotate_left(*turn % addresses.len());
        *turn = turn.wrapping_add(1);
    }
}

pub(crate) fn take<T>(slots: &mut [Option<T>], index: usize) -> Option<T> {
    slots.get_mut(index).and_then(Option::take)
}

/// The first free place, made where there is none.
pub(crate) fn free_slot<T>(slots: &mut Vec<Option<T>>) -> usize {
    match slots.iter().position(Option::is_none) {
        Some(index) => index,
        None => {
            slots.push(None);
            slots.len() - 1
        }
    }
}
