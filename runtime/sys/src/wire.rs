//! Netlink encoding: messages, attributes, and the frame of an nftables batch.

use std::net::IpAddr;

use crate::netlink::{F_ACK, HEADER};

/// `NLM_F_REQUEST`.
const F_REQUEST: u16 = 0x1;
/// `NLM_F_REPLACE`.
pub const F_REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const F_EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const F_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const F_APPEND: u16 = 0x800;
/// `NLM_F_DUMP`.
pub const F_DUMP: u16 = 0x300;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Messages that leave as one datagram.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    last: usize,
}

impl Batch {
    /// Adds one message: its family header, then the attributes that `fill` puts.
    pub fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.last = start;
        self.sequence += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | F_REQUEST).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(family);
        pad(&mut self.bytes);
        fill(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        patch(&mut self.bytes, start, &length.to_ne_bytes());
        debug_assert!(self.bytes.len() >= start + HEADER);
    }

    /// Asks for an acknowledgement of the message added last.
    pub fn acknowledged(&mut self) {
        let at = self.last + 6;
        if let Some(old) = self.bytes.get(at..at + 2) {
            let flags = u16::from_ne_bytes([
                old.first().copied().unwrap_or(0),
                old.get(1).copied().unwrap_or(0),
            ]);
            patch(&mut self.bytes, at, &(flags | F_ACK).to_ne_bytes());
        }
    }

    /// Returns the datagram; its last message is acknowledged.
    pub fn finish(mut self) -> Vec<u8> {
        self.acknowledged();
        self.bytes
    }

    /// Returns the datagram as it stands (dumps end by themselves; nftables batches have a tail).
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The attributes of one message or nest.
#[derive(Debug)]
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Puts raw bytes.
    pub fn bytes(&mut self, kind: u16, data: &[u8]) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.close(start);
    }

    /// Puts a number in the machine's byte order (rtnetlink).
    pub fn native(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Puts a number in network byte order (nftables).
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Puts a text with its final NUL.
    pub fn text(&mut self, kind: u16, value: &str) {
        let mut data = value.as_bytes().to_vec();
        data.push(0);
        self.bytes(kind, &data);
    }

    /// Puts an address of either family.
    pub fn ip(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.bytes(kind, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(kind, &v6.octets()),
        }
    }

    /// Puts a nest.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.nest_after(kind, &[], fill);
    }

    /// Puts a nest whose attributes follow a fixed header.
    pub fn nest_after(&mut self, kind: u16, header: &[u8], fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        self.0.extend(header);
        pad(self.0);
        fill(&mut Attributes(self.0));
        self.close(start);
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        patch(self.0, start, &length.to_ne_bytes());
        pad(self.0);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn patch(bytes: &mut [u8], at: usize, data: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + data.len()) {
        place.copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{attributes, messages};

    #[test]
    fn what_is_encoded_is_walked_back() {
        let mut batch = Batch::default();
        batch.message(16, F_CREATE, &[7; 16], |a| {
            a.text(3, "eth0");
            a.nest(18, |n| n.native(1, 5));
        });
        batch.message(17, 0, &[], |_| ());
        let bytes = batch.finish();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(
            (all[0].kind, all[0].flags, all[0].sequence),
            (16, F_CREATE | F_REQUEST, 1)
        );
        assert_eq!((all[1].flags, all[1].sequence), (F_REQUEST | F_ACK, 2));
        let inner: Vec<_> = attributes(&all[0].payload[16..]).collect();
        assert_eq!(inner[0], (3, b"eth0\0".as_slice()));
        assert_eq!(inner[1].0, 18);
        assert_eq!(
            attributes(inner[1].1).next(),
            Some((1, 5u32.to_ne_bytes().as_slice()))
        );
    }
}
