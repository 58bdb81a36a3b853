//! nftables without the `nft` program: our one table, its port elements, and other engines' chains.

mod elements;
mod expressions;
mod foreign;
mod hooks;
mod table;
mod walk;

pub(crate) use elements::{Element, add, change, delete, port_element, remove_batch};
pub(crate) use foreign::{
    Dropping, Foreign, accept_bridges, chain_names_link, forget_bridges, look, names_link,
};
pub(crate) use hooks::{Closed, closed, has_rule, names};
pub(crate) use table::{
    BridgeFacts, add_bridge, drop_table, is_current, is_there, rebuild, remove_bridge,
};

use amphora_sys::netlink::Socket;

use amphora_sys::wire::{Attributes, Batch};

/// The name of our table, family `inet`.
pub(crate) const TABLE: &str = "amphora";

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `NFPROTO_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Family {
    /// In a question: whichever.
    All = 0,
    Inet = 1,
    Ip = 2,
    Ip6 = 10,
}

/// `NFT_MSG_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Verb {
    NewTable = 0,
    GetTable = 1,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    DeleteRule = 8,
    NewSet = 9,
    NewElement = 12,
    GetElement = 13,
    // The kernel has verbs that do not mind a missing object since 6.3.
    DestroyTable = 26,
    DestroyElement = 30,
}

/// One nftables transaction: all of it or nothing.
#[derive(Debug)]
pub(crate) struct Transaction(Batch);

impl Transaction {
    pub(crate) fn new() -> Self {
        let mut batch = Batch::default();
        batch.message(BATCH_BEGIN, 0, &frame(), |_| ());
        Self(batch)
    }

    pub(crate) fn put(
        &mut self,
        verb: Verb,
        family: Family,
        flags: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.0
            .message(kind(verb), flags, &[family as u8, 0, 0, 0], fill);
    }

    /// Returns the datagram; the last real message is acknowledged.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.acknowledged();
        self.0.message(BATCH_END, 0, &frame(), |_| ());
        self.0.into_bytes()
    }
}

/// Makes a question (a single message outside a transaction).
pub(crate) fn question(
    verb: Verb,
    family: Family,
    flags: u16,
    fill: impl FnOnce(&mut Attributes<'_>),
) -> Batch {
    let mut batch = Batch::default();
    batch.message(kind(verb), flags, &[family as u8, 0, 0, 0], fill);
    batch
}

/// Returns the message type of a verb.
pub(crate) const fn kind(verb: Verb) -> u16 {
    (SUBSYSTEM << 8) | verb as u16
}

fn frame() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

/// Opens the netfilter socket.
pub(crate) fn open() -> std::io::Result<Socket> {
    Socket::open(amphora_sys::netlink::NETFILTER)
}
