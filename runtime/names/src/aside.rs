//! A name server that leaves its port to the container: packets for it are given another port on
//! their way, and answers the right one on theirs. No connections are tracked for that.

use std::io;

use amphora_sys::netlink::{NETFILTER, Socket};
use amphora_sys::wire::{Attributes, Batch, F_APPEND, F_CREATE};

use crate::socket::{ADDRESS, PORT};

const TABLE: &str = "amphora-names";
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
/// `NFPROTO_IPV4`.
const FAMILY: u8 = 2;
/// `NF_INET_LOCAL_OUT`.
const OUTPUT: u32 = 3;
/// Before and behind the tracking of connections, should the container want that: it sees one
/// connection, with the port it really goes to.
const BEFORE: i32 = -300;
const BEHIND: i32 = 300;

const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// Where a header has its addresses, its protocol, its ports: offset, length.
const SOURCE: (u32, u32) = (12, 4);
const DESTINATION: (u32, u32) = (16, 4);
const PROTOCOL: (u32, u32) = (9, 1);
const SOURCE_PORT: (u32, u32) = (0, 2);
const DESTINATION_PORT: (u32, u32) = (2, 2);
/// Number of a protocol, and where its header has its sum.
const PROTOCOLS: [(u8, u32); 2] = [(17, 6), (6, 16)];

/// Leads packets for the name server's port to another one, in the network namespace of the calling
/// thread; whatever was led before is forgotten.
pub(crate) fn lead(port: u16) -> io::Result<()> {
    let socket = Socket::open(NETFILTER)?;
    socket.transact(&batch(port)).map_err(|e| e.source)
}

fn batch(port: u16) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, 0, &frame(), |_| ());
    // Made so that it can be removed whether it was there or not.
    let verbs = [
        (NEW_TABLE, F_CREATE),
        (DELETE_TABLE, 0),
        (NEW_TABLE, F_CREATE),
    ];
    for (verb, flags) in verbs {
        put(&mut batch, verb, flags, |a| a.text(1, TABLE));
    }
    chain(&mut batch, "there", BEFORE);
    chain(&mut batch, "back", BEHIND);
    for (protocol, sum) in PROTOCOLS {
        let there = Rewrite {
            address: DESTINATION,
            place: DESTINATION_PORT,
            from: PORT,
            to: port,
        };
        let back = Rewrite {
            address: SOURCE,
            place: SOURCE_PORT,
            from: port,
            to: PORT,
        };
        rule(&mut batch, "there", protocol, sum, &there);
        rule(&mut batch, "back", protocol, sum, &back);
    }
    batch.acknowledged();
    batch.message(BATCH_END, 0, &frame(), |_| ());
    batch.into_bytes()
}

/// One port for another, where an address is the name server's.
struct Rewrite {
    address: (u32, u32),
    place: (u32, u32),
    from: u16,
    to: u16,
}

fn put(batch: &mut Batch, verb: u16, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
    batch.message(SUBSYSTEM << 8 | verb, flags, &[FAMILY, 0, 0, 0], fill);
}

fn chain(batch: &mut Batch, name: &str, priority: i32) {
    put(batch, NEW_CHAIN, F_CREATE, |a| {
        a.text(1, TABLE);
        a.text(3, name);
        a.nest(4, |h| {
            h.be32(1, OUTPUT);
            h.be32(2, priority.cast_unsigned());
        });
        a.text(7, "filter");
    });
}

fn rule(batch: &mut Batch, chain: &str, protocol: u8, sum: u32, rewrite: &Rewrite) {
    put(batch, NEW_RULE, F_CREATE | F_APPEND, |a| {
        a.text(1, TABLE);
        a.text(2, chain);
        a.nest(4, |list| {
            is(list, NETWORK_HEADER, rewrite.address, &ADDRESS.octets());
            is(list, NETWORK_HEADER, PROTOCOL, &[protocol]);
            let from = rewrite.from.to_be_bytes();
            is(list, TRANSPORT_HEADER, rewrite.place, &from);
            expression(list, "immediate", |a| {
                a.be32(1, REGISTER);
                a.nest(2, |data| data.bytes(1, &rewrite.to.to_be_bytes()));
            });
            expression(list, "payload", |a| {
                a.be32(5, REGISTER);
                a.be32(2, TRANSPORT_HEADER);
                a.be32(3, rewrite.place.0);
                a.be32(4, rewrite.place.1);
                // `NFT_PAYLOAD_CSUM_INET`.
                a.be32(6, 1);
                a.be32(7, sum);
            });
        });
    });
}

/// Goes on only when a part of the packet is this.
fn is(list: &mut Attributes<'_>, base: u32, (offset, length): (u32, u32), value: &[u8]) {
    expression(list, "payload", |a| {
        a.be32(1, REGISTER);
        a.be32(2, base);
        a.be32(3, offset);
        a.be32(4, length);
    });
    expression(list, "cmp", |a| {
        a.be32(1, REGISTER);
        a.be32(2, 0);
        a.nest(3, |data| data.bytes(1, value));
    });
}

fn expression(list: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(1, |element| {
        element.text(1, name);
        element.nest(2, fill);
    });
}

fn frame() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}
