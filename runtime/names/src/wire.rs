//! The wire protocol (RFC 1035, RFC 6891), as much of it as a stub's name server meets.
//!
//! One question a message. Names in what is parsed are never compressed: a question comes first, so
//! there is nothing it could point at. Records behind it are walked, not read, but for EDNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Types and classes.
pub mod kinds {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name, for an address.
    pub const PTR: u16 = 12;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS.
    pub const OPT: u16 = 41;
    /// The first type that asks for a whole zone (incremental, then full).
    pub const TRANSFERS: [u16; 2] = [251, 252];
    /// Everything there is.
    pub const ANY: u16 = 255;
    /// The internet.
    pub const IN: u16 = 1;
}

/// Length of a message's header.
pub(crate) const HEADER: usize = 12;
/// Longest name on the wire.
const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;
/// Most records a query may carry beside its question.
const RECORDS_MAX: u16 = 16;
/// Most records taken of an answer.
const ANSWERS_MAX: u16 = 512;
/// What a client without EDNS takes in one datagram.
const DATAGRAM_PLAIN: u16 = 512;
/// What we send in one datagram at most, and offer to take; no query is longer.
pub(crate) const DATAGRAM_MAX: u16 = 4096;
/// What fits into one message over a stream.
pub(crate) const STREAM_MAX: usize = u16::MAX as usize;
/// How long an answer of ours may be remembered, in seconds: a burst of questions is one, a
/// container that moved is found.
const TTL: u32 = 1;

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const RCODE: u8 = 0x0f;
/// A pointer to the name of the question.
const TO_QUESTION: [u8; 2] = [0xc0, HEADER as u8];

/// How a question ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rcode {
    /// Answered, perhaps with nothing.
    NoError,
    /// It could not be read.
    Malformed,
    /// Nobody could tell.
    ServerFailure,
    /// There is no such name.
    NoSuchName,
    /// That kind of question is not answered.
    NotImplemented,
    /// The answer is refused.
    Refused,
    /// An EDNS version that is not known.
    BadVersion,
}

impl Rcode {
    /// Bits in the header, and those above them, which EDNS carries.
    const fn bits(self) -> (u8, u8) {
        match self {
            Self::NoError => (0, 0),
            Self::Malformed => (1, 0),
            Self::ServerFailure => (2, 0),
            Self::NoSuchName => (3, 0),
            Self::NotImplemented => (4, 0),
            Self::Refused => (5, 0),
            Self::BadVersion => (0, 1),
        }
    }
}

/// A record of an answer; its name is the question's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An address.
    Address(IpAddr),
    /// A name, as a text of labels with dots between them.
    Name(String),
}

/// A query that makes sense.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    packet: &'a [u8],
    /// Where the question ends.
    end: usize,
    /// Type asked for.
    pub kind: u16,
    /// Class asked for.
    pub class: u16,
    /// With EDNS: the size of datagram the client takes.
    edns: Option<u16>,
}

/// What is no query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// Nothing is to be answered: it is too short, or an answer itself.
    Silent,
    /// This is to be answered.
    Answer(Vec<u8>),
}

/// The part of a query before what is wrong with it.
struct Damaged {
    rcode: Rcode,
}

impl<'a> Query<'a> {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Malformed`] with what to answer.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let Some(header) = packet.first_chunk::<HEADER>() else {
            return Err(Malformed::Silent);
        };
        if header[2] & RESPONSE != 0 {
            return Err(Malformed::Silent);
        }
        if header[2] & OPCODE != 0 {
            return Err(bare(header, Rcode::NotImplemented));
        }
        if packet.len() > usize::from(DATAGRAM_MAX) {
            return Err(bare(header, Rcode::Malformed));
        }
        let (query, edns_version) = Self::read(packet).map_err(|d| bare(header, d.rcode))?;
        if edns_version != 0 {
            return Err(Malformed::Answer(query.failure(Rcode::BadVersion)));
        }
        Ok(query)
    }

    fn read(packet: &'a [u8]) -> Result<(Self, u8), Damaged> {
        const BAD: Damaged = Damaged {
            rcode: Rcode::Malformed,
        };
        let count = |at| number(packet, at).ok_or(BAD);
        if count(4)? != 1 {
            return Err(BAD);
        }
        let after_name = skip_plain_name(packet, HEADER).ok_or(BAD)?;
        let (kind, class) = (count(after_name)?, count(after_name + 2)?);
        let end = after_name + 4;
        let (mut at, mut edns, mut version) = (end, None, 0);
        let before = count(6)?.saturating_add(count(8)?);
        let records = before.saturating_add(count(10)?);
        if records > RECORDS_MAX {
            return Err(BAD);
        }
        for index in 0..records {
            let root = packet.get(at) == Some(&0);
            let fixed = skip_name(packet, at).ok_or(BAD)?;
            let (kind, class) = (count(fixed)?, count(fixed + 2)?);
            let length = count(fixed + 8)?;
            if kind == kinds::OPT {
                if index < before || edns.is_some() || !root {
                    return Err(BAD);
                }
                edns = Some(class);
                version = packet.get(fixed + 5).copied().ok_or(BAD)?;
            }
            at = fixed + 10 + usize::from(length);
        }
        if at != packet.len() {
            return Err(BAD);
        }
        let query = Self {
            packet,
            end,
            kind,
            class,
            edns,
        };
        Ok((query, version))
    }

    /// The name asked for, labels with dots between them and none behind; `None` when it cannot be
    /// a name of ours, having other characters than host names do.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        plain_name(self.packet.get(HEADER..self.end)?)
    }

    /// The message's number.
    #[must_use]
    pub fn id(&self) -> u16 {
        number(self.packet, 0).unwrap_or(0)
    }

    /// The message up to the end of its question.
    #[must_use]
    pub fn head(&self) -> &'a [u8] {
        self.packet.get(..self.end).unwrap_or_default()
    }

    /// The whole message.
    #[must_use]
    pub fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// What a datagram to this client may hold.
    #[must_use]
    pub fn datagram(&self) -> usize {
        let asked = self.edns.unwrap_or(DATAGRAM_PLAIN);
        usize::from(asked.clamp(DATAGRAM_PLAIN, DATAGRAM_MAX))
    }

    /// What a stream may hold.
    #[must_use]
    pub fn stream() -> usize {
        STREAM_MAX
    }

    /// Makes an answer without records.
    #[must_use]
    pub fn failure(&self, rcode: Rcode) -> Vec<u8> {
        self.answer(rcode, &[], usize::from(DATAGRAM_PLAIN))
    }

    /// Makes an answer of at most `limit` bytes; what does not fit is left out and said so.
    #[must_use]
    pub fn answer(&self, rcode: Rcode, records: &[Record], limit: usize) -> Vec<u8> {
        let (low, high) = rcode.bits();
        let mut out = self.head().to_vec();
        let tail = if self.edns.is_some() { 11 } else { 0 };
        let (mut count, mut truncated) = (0_u16, 0);
        for record in records {
            let before = out.len();
            let whole = put_record(&mut out, record);
            if !whole || out.len() + tail > limit || count == u16::MAX {
                out.truncate(before);
                truncated = TRUNCATED;
                break;
            }
            count += 1;
        }
        let asked = self.packet.get(2).copied().unwrap_or(0);
        let flags = RESPONSE | truncated | (asked & RECURSION_DESIRED);
        set(&mut out, 2, &[flags, RECURSION_AVAILABLE | low]);
        set(&mut out, 6, &count.to_be_bytes());
        set(&mut out, 8, &[0; 4]);
        if self.edns.is_some() {
            out.push(0);
            out.extend(kinds::OPT.to_be_bytes());
            out.extend(DATAGRAM_MAX.to_be_bytes());
            out.extend([high, 0, 0, 0, 0, 0]);
            set(&mut out, 10, &1_u16.to_be_bytes());
        }
        out
    }
}

/// An answer to what has no question that could be repeated.
fn bare(header: &[u8; HEADER], rcode: Rcode) -> Malformed {
    let mut out = vec![0; HEADER];
    set(&mut out, 0, &header[..2]);
    let kept = header[2] & (OPCODE | RECURSION_DESIRED);
    set(
        &mut out,
        2,
        &[RESPONSE | kept, RECURSION_AVAILABLE | rcode.bits().0],
    );
    Malformed::Answer(out)
}

fn put_record(out: &mut Vec<u8>, record: &Record) -> bool {
    out.extend(TO_QUESTION);
    let (kind, data) = match record {
        Record::Address(IpAddr::V4(v4)) => (kinds::A, v4.octets().to_vec()),
        Record::Address(IpAddr::V6(v6)) => (kinds::AAAA, v6.octets().to_vec()),
        Record::Name(name) => match encode_name(name) {
            Some(data) => (kinds::PTR, data),
            None => return false,
        },
    };
    out.extend(kind.to_be_bytes());
    out.extend(kinds::IN.to_be_bytes());
    out.extend(TTL.to_be_bytes());
    out.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend(data);
    true
}

/// A text of labels as it goes over the wire.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok()?;
        if length == 0 || usize::from(length) > LABEL_MAX {
            return None;
        }
        out.push(length);
        out.extend(label.as_bytes());
    }
    out.push(0);
    (out.len() <= NAME_MAX).then_some(out)
}

/// The name that some bytes begin with.
fn plain_name(mut rest: &[u8]) -> Option<String> {
    let mut name = String::new();
    loop {
        let (&length, after) = rest.split_first()?;
        if length == 0 {
            return (!name.is_empty()).then_some(name);
        }
        let (label, after) = after.split_at_checked(usize::from(length))?;
        let fits = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        if !label.iter().all(fits) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|c| char::from(*c)));
        rest = after;
    }
}

/// Asks for a name; `None` when it is too long to be asked for.
pub(crate) fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut out = vec![0; HEADER];
    set(&mut out, 0, &id.to_be_bytes());
    set(&mut out, 4, &1_u16.to_be_bytes());
    out.extend(encode_name(name)?);
    out.extend(kind.to_be_bytes());
    out.extend(kinds::IN.to_be_bytes());
    // With room for a long answer.
    set(&mut out, 10, &1_u16.to_be_bytes());
    out.push(0);
    out.extend(kinds::OPT.to_be_bytes());
    out.extend(DATAGRAM_MAX.to_be_bytes());
    out.extend([0; 6]);
    Some(out)
}

/// The records of an answer to a question that ends here, as far as they make sense.
pub(crate) fn records_of(message: &[u8], mut at: usize) -> Vec<Record> {
    let mut out = Vec::new();
    for _ in 0..number(message, 6).unwrap_or(0).min(ANSWERS_MAX) {
        let Some(fixed) = skip_name(message, at) else {
            break;
        };
        let (kind, class) = (number(message, fixed), number(message, fixed + 2));
        let Some(length) = number(message, fixed + 8) else {
            break;
        };
        let start = fixed + 10;
        at = start + usize::from(length);
        let Some(data) = message.get(start..at) else {
            break;
        };
        if class != Some(kinds::IN) {
            continue;
        }
        out.extend(match (kind, data.len()) {
            (Some(kinds::A), 4) => data
                .first_chunk()
                .map(|v4: &[u8; 4]| Record::Address(IpAddr::from(*v4))),
            (Some(kinds::AAAA), 16) => data
                .first_chunk()
                .map(|v6: &[u8; 16]| Record::Address(IpAddr::from(*v6))),
            (Some(kinds::PTR), _) => plain_name(data).map(Record::Name),
            _ => None,
        });
    }
    out
}

/// Whether a message answers a query: same number, same question, or an error without a question.
#[must_use]
pub fn is_answer(query: &[u8], message: &[u8]) -> bool {
    let Some(header) = message.first_chunk::<HEADER>() else {
        return false;
    };
    if query.get(..2) != Some(&header[..2]) || header[2] & (RESPONSE | OPCODE) != RESPONSE {
        return false;
    }
    match number(message, 4) {
        Some(1) => {
            let question = query.get(HEADER..).unwrap_or_default();
            let Some(same) = message.get(HEADER..HEADER + question.len()) else {
                return false;
            };
            // Lengths of labels are no letters, so this changes names only; type and class must be
            // the same to the bit.
            let (name, fixed) = question.split_at(question.len().saturating_sub(4));
            let (its_name, its_fixed) = same.split_at(name.len());
            name.eq_ignore_ascii_case(its_name) && fixed == its_fixed
        }
        Some(0) => message.len() == HEADER && header[3] & RCODE != 0,
        _ => false,
    }
}

/// How an upstream server's answer ends.
pub(crate) fn rcode_of(message: &[u8]) -> u8 {
    message.get(3).map_or(0, |b| b & RCODE)
}

/// Puts another number into a message.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    set(message, 0, &id.to_be_bytes());
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
pub(crate) fn reverse(name: &str) -> Option<IpAddr> {
    let name = name.to_ascii_lowercase();
    if let Some(text) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = text.split('.');
        for octet in octets.iter_mut().rev() {
            let part = parts.next()?;
            let plain = part.len() == 1 || !part.starts_with('0');
            *octet = part.parse().ok().filter(|_| plain)?;
        }
        return parts
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let text = name.strip_suffix(".ip6.arpa")?;
    let mut value = 0_u128;
    let mut digits = 0;
    for part in text.rsplit('.') {
        let mut chars = part.chars();
        let digit = chars.next()?.to_digit(16)?;
        if chars.next().is_some() || digits == 32 {
            return None;
        }
        value = value << 4 | u128::from(digit);
        digits += 1;
    }
    (digits == 32).then(|| Ipv6Addr::from(value).into())
}

/// Where a name that may not be compressed ends.
fn skip_plain_name(packet: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1 + length;
        if length > LABEL_MAX || at - start > NAME_MAX || at > packet.len() {
            return None;
        }
        if length == 0 {
            return Some(at);
        }
    }
}

/// Where a name that may be compressed ends. A pointer ends it, and is not followed.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = usize::from(*packet.get(at)?);
        if length & 0xc0 == 0xc0 {
            return (at + 2 <= packet.len()).then_some(at + 2);
        }
        at += 1 + length;
        if length > LABEL_MAX || at - start > NAME_MAX || at > packet.len() {
            return None;
        }
        if length == 0 {
            return Some(at);
        }
    }
}

fn number(packet: &[u8], at: usize) -> Option<u16> {
    let bytes = packet.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

fn set(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
