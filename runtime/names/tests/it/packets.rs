//! Messages as a client makes and reads them.

use std::net::IpAddr;

/// A query with recursion asked for.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend(wire_name(name));
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

/// The same, with EDNS and the size it takes.
pub(crate) fn edns(id: u16, name: &str, kind: u16, size: u16) -> Vec<u8> {
    let mut out = query(id, name, kind);
    out[11] = 1;
    out.extend([0, 0, 41]);
    out.extend(size.to_be_bytes());
    out.extend([0; 6]);
    out
}

pub(crate) fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

/// What an upstream server answers: one address.
pub(crate) fn answer(query: &[u8], rcode: u8, address: Option<[u8; 4]>) -> Vec<u8> {
    let mut at = 12;
    while query[at] != 0 {
        at += 1 + usize::from(query[at]);
    }
    let mut out = query[..at + 5].to_vec();
    out[2] |= 0x80;
    out[3] = 0x80 | rcode;
    out[6..12].fill(0);
    if let Some(address) = address {
        out[7] = 1;
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
        out.extend(address);
    }
    out
}

/// An answer, read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) id: u16,
    pub(crate) rcode: u8,
    pub(crate) truncated: bool,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) names: Vec<String>,
    pub(crate) edns: bool,
}

/// Reads an answer, strictly.
pub(crate) fn read(message: &[u8]) -> Answer {
    let number = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    assert_eq!(message[2] & 0x80, 0x80, "an answer");
    let mut at = 12;
    for _ in 0..number(4) {
        at = skip(message, at) + 4;
    }
    let mut answer = Answer {
        id: number(0),
        rcode: message[3] & 0xf,
        truncated: message[2] & 2 != 0,
        addresses: Vec::new(),
        names: Vec::new(),
        edns: false,
    };
    for _ in 0..number(6) + number(8) + number(10) {
        at = skip(message, at);
        let (kind, length) = (number(at), usize::from(number(at + 8)));
        let data = &message[at + 10..at + 10 + length];
        match kind {
            1 => answer
                .addresses
                .push(<[u8; 4]>::try_from(data).unwrap().into()),
            28 => answer
                .addresses
                .push(<[u8; 16]>::try_from(data).unwrap().into()),
            12 => answer.names.push(text(data)),
            41 => answer.edns = true,
            other => panic!("type {other}"),
        }
        at += 10 + length;
    }
    assert_eq!(at, message.len(), "bytes behind the answer");
    answer
}

fn text(mut data: &[u8]) -> String {
    let mut out = String::new();
    while data[0] != 0 {
        let (label, rest) = data[1..].split_at(usize::from(data[0]));
        out.push_str(std::str::from_utf8(label).unwrap());
        out.push('.');
        data = rest;
    }
    out
}

fn skip(message: &[u8], mut at: usize) -> usize {
    loop {
        match message[at] {
            0 => return at + 1,
            length if length & 0xc0 == 0xc0 => return at + 2,
            length => at += 1 + usize::from(length),
        }
    }
}
