//! What the other hosts of a container's networks are asked: all of them at once, over the network
//! itself, from this host's own address there to theirs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use amphora_sys::datagram;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::set_ip_freebind;
use rustix::net::{SendFlags, bind, connect, send};

use crate::hosts::{self, PORT, TTL};
use crate::overlay::{Overlay, Peer};
use crate::records::{Addresses, is_name};
use crate::server::{Client, Context, NameServer, Outcome, PART_HOSTS, Work, free_slot, now, take};
use crate::socket::random;
use crate::wire::{
    HEADER, Query, Rcode, Record, is_answer, kinds, question, rcode_of, records_of, reverse,
};

const MILLIS: u64 = 1_000_000;
/// A question that was not answered is asked again, once, from another port: one of those who listen
/// there may have ended or stand still.
const AGAIN_NS: u64 = 150 * MILLIS;
/// After this a host has not answered.
const PATIENCE_NS: u64 = 500 * MILLIS;
/// Once one host knows the name, others that do too have so much time to say so.
const GRACE_NS: u64 = 20 * MILLIS;
/// A host that has not answered of late is asked, but no longer waited for than this.
const SILENT_NS: u64 = 30 * MILLIS;
/// How long it is taken for one that does not answer.
const MEMORY_NS: u64 = 10_000 * MILLIS;
/// Most sockets that wait for answers; what is asked beyond that fails.
const SOCKETS_MAX: usize = 512;
/// Longest message of another host.
const MESSAGE_MAX: usize = 4096;

/// Hosts that did not answer, and until when that counts.
#[derive(Debug, Default)]
pub(crate) struct Silent(Vec<(Ipv4Addr, u64)>);

impl Silent {
    fn has(&self, host: Ipv4Addr, now: u64) -> bool {
        self.0.iter().any(|(h, until)| *h == host && *until > now)
    }

    fn note(&mut self, host: Ipv4Addr, silent: bool, now: u64) {
        self.0.retain(|(known, _)| *known != host);
        if silent {
            self.0.push((host, now.saturating_add(MEMORY_NS)));
        }
    }

    pub(crate) fn forget(&mut self, now: u64) {
        self.0.retain(|(_, until)| *until > now);
    }
}

/// A query that other hosts are asked.
#[derive(Debug)]
pub(crate) struct Question {
    client: Client,
    query: Vec<u8>,
    asked: Vec<Asked>,
    start: u64,
    again: Option<u64>,
    /// When somebody knew.
    known: Option<u64>,
}

/// One host, and what it says.
#[derive(Debug)]
struct Asked {
    /// Which of the networks; the first one that knows a name counts.
    order: usize,
    overlay: Overlay,
    peer: Peer,
    message: Vec<u8>,
    state: State,
    /// It did not answer of late.
    silent: bool,
    /// It was asked again because of an error.
    refused: bool,
}

/// What came from a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Answer,
    Error,
}

#[derive(Debug)]
enum State {
    Waiting(OwnedFd),
    Known(Vec<Record>),
    Unknown,
}

impl Question {
    /// When there is something to do without an answer.
    pub(crate) fn due(&self) -> u64 {
        self.again.map_or(self.end(), |again| again.min(self.end()))
    }

    fn end(&self) -> u64 {
        let patience = if self.awaited().next().is_some() {
            PATIENCE_NS
        } else {
            SILENT_NS
        };
        let end = self.start.saturating_add(patience);
        self.known
            .map_or(end, |known| end.min(known.saturating_add(GRACE_NS)))
    }

    /// Whoever has not answered yet, and is expected to.
    fn awaited(&self) -> impl Iterator<Item = &Asked> {
        self.open().filter(|a| !a.silent)
    }

    fn open(&self) -> impl Iterator<Item = &Asked> {
        let open = |a: &&Asked| matches!(a.state, State::Waiting(_));
        self.asked.iter().filter(open)
    }
}

impl Asked {
    /// Asks, from a port of the kernel's choice.
    fn ask(&mut self, epoll: &OwnedFd, token: u64) {
        self.state = match self.start(epoll, token) {
            Ok(socket) => State::Waiting(socket),
            // Nothing leads there.
            Err(_) => State::Unknown,
        };
    }

    fn start(&self, epoll: &OwnedFd, token: u64) -> io::Result<OwnedFd> {
        let socket = hosts::socket()?;
        datagram::bind_to_link(socket.as_fd(), &self.overlay.link)?;
        set_ip_freebind(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(self.overlay.own, 0))?;
        connect(&socket, &SocketAddrV4::new(self.peer.gateway, PORT))?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(&socket, &self.message, flags) {
            // No room is as good as lost.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        epoll::add(epoll, &socket, EventData::new_u64(token), EventFlags::IN)?;
        Ok(socket)
    }

    /// Asks anew from another port; what was asked before stands when that fails.
    fn ask_anew(&mut self, epoll: &OwnedFd, token: u64) {
        if let Ok(socket) = self.start(epoll, token) {
            self.state = State::Waiting(socket);
        }
    }

    /// Takes what has come.
    fn hear(&mut self, scratch: &mut [u8]) -> Heard {
        let State::Waiting(socket) = &self.state else {
            return Heard::Nothing;
        };
        let room = scratch.len().min(MESSAGE_MAX);
        let room = scratch.get_mut(..room).unwrap_or_default();
        let (n, arrival) = match datagram::receive(socket.as_fd(), room) {
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Heard::Nothing,
            // A refusal may come from anybody: nothing tells how many routers it has passed.
            Err(_) => return Heard::Error,
        };
        let said = room.get(..n).unwrap_or_default();
        let Ok(query) = Query::parse(&self.message) else {
            return Heard::Nothing;
        };
        if arrival.is_none_or(|a| a.ttl != i32::from(TTL)) || !is_answer(query.head(), said) {
            return Heard::Nothing;
        }
        self.state = if rcode_of(said) == 0 {
            let records = records_of(said, query.head().len().max(HEADER));
            let believed = |r: &Record| match r {
                Record::Address(address) => self.peer.may_have(*address),
                Record::Name(name) => is_name(name),
            };
            State::Known(records.into_iter().filter(believed).collect())
        } else {
            State::Unknown
        };
        Heard::Answer
    }
}

impl NameServer {
    /// Asks other hosts; `None` when this is nothing they could know.
    pub(crate) fn ask_hosts(
        &mut self,
        work: &mut Work,
        cx: Context<'_>,
        client: Client,
        query: &Query<'_>,
    ) -> Option<Outcome> {
        let now = now();
        let mut asked = self.whom(work, query, now)?;
        let same = |q: &Question| q.client == client && q.query == query.packet();
        if work.questions.iter().flatten().any(same) {
            // Asked again out of impatience.
            return Some(Outcome::Later);
        }
        let open = work.questions.iter().flatten().map(|q| q.open().count());
        if open.sum::<usize>() + asked.len() > SOCKETS_MAX {
            return Some(Outcome::Answered(query.failure(Rcode::ServerFailure)));
        }
        let slot = free_slot(&mut work.questions);
        let token = self.base + PART_HOSTS + slot as u64;
        for one in &mut asked {
            one.ask(cx.epoll, token);
        }
        let question = Question {
            client,
            query: query.packet().to_vec(),
            asked,
            start: now,
            again: Some(now + AGAIN_NS),
            known: None,
        };
        question.open().next()?;
        if let Some(place) = work.questions.get_mut(slot) {
            *place = Some(question);
        }
        Some(Outcome::Later)
    }

    fn whom(&self, work: &mut Work, query: &Query<'_>, now: u64) -> Option<Vec<Asked>> {
        let name = query.name()?;
        let (asked, address) = match query.kind {
            kinds::PTR => {
                let address = reverse(&name)?;
                let all = work.records.overlays().into_iter();
                let all = all.map(|overlay| (overlay, name.clone()));
                (all.collect(), Some(address))
            }
            kinds::A | kinds::AAAA | kinds::ANY => (work.records.beyond(&name), None),
            _ => (Vec::new(), None),
        };
        let mut out = Vec::new();
        for (order, (overlay, name)) in asked.into_iter().enumerate() {
            let may = |p: &Peer| address.is_none_or(|a: IpAddr| p.may_have(a));
            for peer in overlay.peers().into_iter().filter(may) {
                out.push(Asked {
                    order,
                    overlay: overlay.clone(),
                    peer,
                    message: question(random(), &name, query.kind)?,
                    state: State::Unknown,
                    silent: self.silent.has(peer.gateway, now),
                    refused: false,
                });
            }
        }
        (!out.is_empty()).then_some(out)
    }

    /// Something came from other hosts.
    pub(crate) fn hosts_heard(&mut self, work: &mut Work, cx: Context<'_>, slot: usize) {
        let Some(question) = work.questions.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let now = now();
        let token = self.base + PART_HOSTS + slot as u64;
        for one in &mut question.asked {
            match one.hear(&mut work.scratch) {
                Heard::Nothing => continue,
                Heard::Answer => {}
                Heard::Error => {
                    // Not waited for long, now and for a while: only an answer changes that.
                    one.silent = true;
                    self.silent.note(one.peer.gateway, true, now);
                    if !std::mem::replace(&mut one.refused, true) {
                        one.ask_anew(cx.epoll, token);
                    }
                    continue;
                }
            }
            self.silent.note(one.peer.gateway, false, now);
            if matches!(one.state, State::Known(_)) && question.known.is_none() {
                question.known = Some(now);
            }
        }
        self.hosts_step(work, cx, slot, now);
    }

    /// Does what is due.
    pub(crate) fn hosts_tick(&mut self, work: &mut Work, cx: Context<'_>, now: u64) {
        for slot in 0..work.questions.len() {
            let question = work.questions.get(slot).and_then(Option::as_ref);
            if question.is_some_and(|q| q.due() <= now) {
                self.hosts_step(work, cx, slot, now);
            }
        }
    }

    fn hosts_step(&mut self, work: &mut Work, cx: Context<'_>, slot: usize, now: u64) {
        let token = self.base + PART_HOSTS + slot as u64;
        let Some(question) = work.questions.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        if question.open().next().is_none() || question.end() <= now {
            return self.hosts_conclude(work, cx, slot, now);
        }
        if question.again.is_some_and(|again| again <= now) {
            question.again = None;
            for one in &mut question.asked {
                if matches!(one.state, State::Waiting(_)) && !one.silent {
                    one.ask(cx.epoll, token);
                }
            }
        }
    }

    fn hosts_conclude(&mut self, work: &mut Work, cx: Context<'_>, slot: usize, now: u64) {
        let Some(question) = take(&mut work.questions, slot) else {
            return;
        };
        if now >= question.start.saturating_add(PATIENCE_NS) {
            for one in question.awaited() {
                self.silent.note(one.peer.gateway, true, now);
            }
        }
        let client = question.client;
        let Ok(query) = Query::parse(&question.query) else {
            return;
        };
        let limit = match client {
            Client::Datagram(_) => query.datagram(),
            Client::Stream(..) => Query::stream(),
        };
        let answer = match self.hosts_said(&question, query.kind) {
            Some(records) => query.answer(Rcode::NoError, &records, limit),
            None => match self.unknown(work, cx, client, &query) {
                Outcome::Answered(answer) => answer,
                Outcome::Later | Outcome::Nothing => return,
            },
        };
        self.deliver(work, cx, client, &answer);
    }

    /// What those say who know the name, on the first network where somebody does.
    fn hosts_said(&mut self, question: &Question, kind: u16) -> Option<Vec<Record>> {
        let known = |a: &&Asked| matches!(a.state, State::Known(_));
        let first = question.asked.iter().filter(known).map(|a| a.order).min()?;
        let mut found = Addresses::default();
        for one in question.asked.iter().filter(|a| a.order == first) {
            let State::Known(records) = &one.state else {
                continue;
            };
            for record in records {
                match record {
                    Record::Address(address) => found.add(*address),
                    Record::Name(name) if kind == kinds::PTR => {
                        let whole = format!("{name}.{}", one.overlay.network);
                        return Some(vec![Record::Name(whole)]);
                    }
                    Record::Name(_) => {}
                }
            }
        }
        if kind == kinds::PTR {
            return None;
        }
        found.sort();
        Some(self.in_turn(found, kind))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    fn asked(own: Ipv4Addr, host: Ipv4Addr) -> Asked {
        let [a, b, c, _] = host.octets();
        Asked {
            order: 0,
            overlay: Overlay {
                network: "wide".to_owned(),
                link: "lo".to_owned(),
                own,
                file: "/p".into(),
                applied: "/a".into(),
            },
            peer: crate::overlay::peer(&format!("192.0.2.2 {a}.{b}.{c}.0/24")).unwrap(),
            message: question(7, "there", kinds::A).unwrap(),
            state: State::Unknown,
            silent: false,
            refused: false,
        }
    }

    fn heard(one: &mut Asked) -> Heard {
        for _ in 0..200 {
            match one.hear(&mut [0; MESSAGE_MAX]) {
                Heard::Nothing => std::thread::sleep(Duration::from_millis(5)),
                heard => return heard,
            }
        }
        Heard::Nothing
    }

    #[test]
    fn a_refusal_is_no_answer_and_the_next_socket_hears_one() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let host = Ipv4Addr::new(127, 42, 2, 1);
        let mut one = asked(Ipv4Addr::new(127, 42, 1, 1), host);
        one.ask(&epoll, 1);
        assert_eq!(heard(&mut one), Heard::Error);
        assert!(matches!(one.state, State::Waiting(_)));

        let there = UdpSocket::bind((host, PORT)).unwrap();
        one.ask_anew(&epoll, 1);
        let mut packet = [0; 512];
        let (n, from) = there.recv_from(&mut packet).unwrap();
        let answer = Query::parse(&packet[..n]).unwrap();
        let answer = answer.failure(Rcode::NoSuchName);
        // One that has passed a router is none.
        there.send_to(&answer, from).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(one.hear(&mut [0; MESSAGE_MAX]), Heard::Nothing);
        there.set_ttl(TTL.into()).unwrap();
        there.send_to(&answer, from).unwrap();
        assert_eq!(heard(&mut one), Heard::Answer);
        assert!(matches!(one.state, State::Unknown));
    }
}
