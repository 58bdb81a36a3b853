//! Our table: constant rules, and sets and maps in which everything that changes is an element.
//!
//! ```text
//! bridges  ifname                          links of ours
//! more     ifname                          further bridges, which are ports of one of them
//! internal ifname                          those of them that nothing leads out of
//! pairs    ifname . ifname                 which bridge may send to which (itself, with icc)
//! nets4/6  addresses, intervals            subnets behind our bridges
//! masq4/6  addresses, intervals            those of them that take the host's address outside
//! pub4/6   proto . port        -> address . port     published on every host address
//! pub4a/6a address . proto . port -> address . port  published on one host address
//! ```
//!
//! A connection into a bridge is accepted when it came through one of the maps (its conntrack
//! entry says so), never because a port is published somewhere: `-p 127.0.0.1:…` opens nothing
//! to a neighbour who routes packets here.

use amphora_sys::netlink::{NetlinkError, Socket, attributes};
use rustix::io::Errno;

use crate::address::Subnet;
use amphora_sys::wire::{Attributes, F_APPEND, F_CREATE};

use super::elements::{Element, put_elements};
use super::expressions::{
    Expressions, META_IIFNAME, META_OIFNAME, Member, Side, V4, V6, Verdict, reg32,
};
use super::{Family, TABLE, Transaction, Verb, question};

/// Says which rules a table holds; another text means that it is made anew.
const VERSION: &str = "amphora rules 2";

const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;
const TYPE_IFNAME: u32 = 41;
const IFNAME_BYTES: u32 = 16;

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// What the table must know of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeFacts {
    pub(crate) link: String,
    pub(crate) subnets: Vec<Subnet>,
    /// A link that leads to the same network elsewhere.
    pub(crate) beside: Option<String>,
    pub(crate) internal: bool,
    pub(crate) icc: bool,
    pub(crate) masquerade: bool,
    /// It is a further one, whose frames the network's own bridge sees after it.
    pub(crate) more: bool,
}

/// Says whether the table is there with the rules of this version.
pub(crate) fn is_current(socket: &Socket) -> Result<bool, NetlinkError> {
    const USERDATA: u16 = 6;
    let ask = question(Verb::GetTable, Family::Inet, 0, |a| a.text(1, TABLE));
    let mut current = false;
    let answer = socket.request(&ask.finish(), &mut |m| {
        let mut found = attributes(m.payload.get(4..).unwrap_or_default());
        current |= found.any(|(kind, data)| kind == USERDATA && data == userdata());
    });
    match answer {
        Err(error) if error.is(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(current),
    }
}

/// Says whether the table is there, of whatever version.
pub(crate) fn is_there(socket: &Socket) -> Result<bool, NetlinkError> {
    let ask = question(Verb::GetTable, Family::Inet, 0, |a| a.text(1, TABLE));
    match socket.request(&ask.finish(), &mut |_| ()) {
        Err(error) if error.is(Errno::NOENT) => Ok(false),
        other => other.map(|()| true),
    }
}

/// A comment, in the form the `nft` program shows.
fn userdata() -> Vec<u8> {
    let length = u8::try_from(VERSION.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![0, length];
    data.extend(VERSION.as_bytes());
    data.push(0);
    data
}

/// Removes the table, with all in it.
pub(crate) fn drop_table(socket: &Socket) -> Result<(), NetlinkError> {
    let mut transaction = Transaction::new();
    transaction.put(Verb::DestroyTable, Family::Inet, 0, |a| a.text(1, TABLE));
    socket.transact(&transaction.finish())
}

/// Makes the table anew with these networks and ports, in one transaction: no packet sees less.
pub(crate) fn rebuild(
    socket: &Socket,
    bridges: &[BridgeFacts],
    ports: &[Element],
) -> Result<(), NetlinkError> {
    let mut transaction = Transaction::new();
    transaction.put(Verb::DestroyTable, Family::Inet, 0, |a| a.text(1, TABLE));
    transaction.put(Verb::NewTable, Family::Inet, F_CREATE, |a| {
        a.text(1, TABLE);
        a.be32(2, 0);
        a.bytes(6, &userdata());
    });
    sets(&mut transaction);
    chains(&mut transaction);
    guard_rules(&mut transaction);
    publish_rules(&mut transaction);
    masquerade_rules(&mut transaction);
    for bridge in bridges {
        bridge_elements(&mut transaction, Verb::NewElement, bridge);
    }
    for port in ports {
        put_elements(
            &mut transaction,
            Verb::NewElement,
            F_CREATE,
            std::slice::from_ref(port),
        );
    }
    socket.transact(&transaction.finish())
}

/// Tells the table of a bridge, in one transaction; known already is fine.
pub(crate) fn add_bridge(socket: &Socket, bridge: &BridgeFacts) -> Result<(), NetlinkError> {
    let mut transaction = Transaction::new();
    bridge_elements(&mut transaction, Verb::NewElement, bridge);
    socket.transact(&transaction.finish())
}

/// Has the table forget a bridge; not known, or no table, is fine.
pub(crate) fn remove_bridge(socket: &Socket, bridge: &BridgeFacts) -> Result<(), NetlinkError> {
    let mut transaction = Transaction::new();
    bridge_elements(&mut transaction, Verb::DestroyElement, bridge);
    match socket.transact(&transaction.finish()) {
        Err(error) if error.is(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn sets(t: &mut Transaction) {
    let service = TYPE_PROTOCOL << 6 | TYPE_SERVICE;
    let to4 = (TYPE_IPV4 << 6 | TYPE_SERVICE, 8);
    let to6 = (TYPE_IPV6 << 6 | TYPE_SERVICE, 20);
    let at4 = (TYPE_IPV4 << 12 | service, 12);
    let at6 = (TYPE_IPV6 << 12 | service, 24);
    let pair = (TYPE_IFNAME << 6 | TYPE_IFNAME, 2 * IFNAME_BYTES);
    let all = [
        ("bridges", 0, (TYPE_IFNAME, IFNAME_BYTES), None),
        ("more", 0, (TYPE_IFNAME, IFNAME_BYTES), None),
        ("internal", 0, (TYPE_IFNAME, IFNAME_BYTES), None),
        ("pairs", 0, pair, None),
        ("nets4", SET_INTERVAL, (TYPE_IPV4, 4), None),
        ("nets6", SET_INTERVAL, (TYPE_IPV6, 16), None),
        ("masq4", SET_INTERVAL, (TYPE_IPV4, 4), None),
        ("masq6", SET_INTERVAL, (TYPE_IPV6, 16), None),
        ("pub4", SET_MAP, (service, 8), Some(to4)),
        ("pub6", SET_MAP, (service, 8), Some(to6)),
        ("pub4a", SET_MAP, at4, Some(to4)),
        ("pub6a", SET_MAP, at6, Some(to6)),
    ];
    for (id, (name, flags, key, data)) in (1..).zip(all) {
        set(t, id, name, flags, key, data);
    }
}

/// A type of the `nft` program and its length in bytes.
type Typed = (u32, u32);

fn set(t: &mut Transaction, id: u32, name: &str, flags: u32, key: Typed, data: Option<Typed>) {
    t.put(Verb::NewSet, Family::Inet, F_CREATE, |a| {
        a.text(1, TABLE);
        a.text(2, name);
        a.be32(3, flags);
        a.be32(4, key.0);
        a.be32(5, key.1);
        if let Some((kind, length)) = data {
            a.be32(6, kind);
            a.be32(7, length);
        }
        a.be32(10, id);
    });
}

fn chains(t: &mut Transaction) {
    chain(t, "guard", Some(("filter", PREROUTING, -300)));
    chain(t, "publish", None);
    chain(t, "prerouting", Some(("nat", PREROUTING, -100)));
    chain(t, "output", Some(("nat", OUTPUT, -100)));
    chain(t, "postrouting", Some(("nat", POSTROUTING, 100)));
    chain(t, "forward", Some(("filter", FORWARD, 0)));
}

fn chain(t: &mut Transaction, name: &str, hook: Option<(&str, u32, i32)>) {
    t.put(Verb::NewChain, Family::Inet, F_CREATE, |a| {
        a.text(1, TABLE);
        a.text(3, name);
        if let Some((kind, number, priority)) = hook {
            a.nest(4, |h| {
                h.be32(1, number);
                h.be32(2, priority.cast_unsigned());
            });
            a.text(7, kind);
        }
    });
}

fn rule(t: &mut Transaction, chain: &str, fill: impl FnOnce(&mut Expressions<'_, '_>)) {
    t.put(
        Verb::NewRule,
        Family::Inet,
        F_CREATE | F_APPEND,
        |a: &mut Attributes<'_>| {
            a.text(1, TABLE);
            a.text(2, chain);
            a.nest(4, |list| fill(&mut Expressions(list)));
        },
    );
}

fn guard_rules(t: &mut Transaction) {
    // Where frames pass the filters too: addresses are changed at the network's own bridge, but for
    // a port of this host. Who asked for it may be behind the same link of that bridge as who answers,
    // and so these are routed from here.
    rule(t, "guard", |e| {
        e.link_in(META_IIFNAME, "more", Member::In)
            .is_not_local()
            .untracked()
            .verdict(Verdict::Accept);
    });
    // route_localnet lets the bridge carry 127/8: only answers may use that, and those are
    // still addressed to the bridge at this point.
    for side in [Side::Destination, Side::Source] {
        rule(t, "guard", |e| {
            e.link_in_bridges(META_IIFNAME, Member::In)
                .is_loopback4(side)
                .verdict(Verdict::Drop);
        });
    }
    let forward = "forward";
    // Between a bridge that nothing leads out of and anything else, not even an answer passes.
    rule(t, forward, |e| {
        e.link_in(META_IIFNAME, "internal", Member::In)
            .link_name(META_IIFNAME, 1)
            .link_name(META_OIFNAME, 2)
            .lookup("pairs", Member::NotIn)
            .verdict(Verdict::Drop);
    });
    rule(t, forward, |e| {
        e.link_in_bridges(META_OIFNAME, Member::NotIn)
            .verdict(Verdict::Accept);
    });
    rule(t, forward, |e| {
        e.is_established().verdict(Verdict::Accept);
    });
    rule(t, forward, |e| {
        e.is_published().verdict(Verdict::Accept);
    });
    rule(t, forward, |e| {
        e.link_name(META_IIFNAME, 1)
            .link_name(META_OIFNAME, 2)
            .lookup("pairs", Member::In)
            .verdict(Verdict::Accept);
    });
    rule(t, forward, |e| {
        e.verdict(Verdict::Drop);
    });
}

fn publish_rules(t: &mut Transaction) {
    for (family, on_one, on_all, words) in [(V4, "pub4a", "pub4", 1), (V6, "pub6a", "pub6", 4)] {
        rule(t, "publish", |e| {
            e.protocol_family(family)
                .address(family, Side::Destination)
                .service(words)
                .map(on_one)
                .dnat(family, reg32(words));
        });
        rule(t, "publish", |e| {
            e.protocol_family(family)
                .service(0)
                .map(on_all)
                .dnat(family, reg32(words));
        });
    }
    rule(t, "prerouting", |e| {
        e.is_local().verdict(Verdict::Jump("publish"));
    });
    // IPv6 has no route_localnet: the supervisor accepts there.
    rule(t, "output", |e| {
        e.is_loopback6().verdict(Verdict::Return);
    });
    rule(t, "output", |e| {
        e.is_local().verdict(Verdict::Jump("publish"));
    });
}

fn masquerade_rules(t: &mut Transaction) {
    for (family, nets, masked) in [(V4, "nets4", "masq4"), (V6, "nets6", "masq6")] {
        rule(t, "postrouting", |e| {
            e.protocol_family(family)
                .address(family, Side::Source)
                .lookup(masked, Member::In)
                .link_in_bridges(META_OIFNAME, Member::NotIn)
                .masquerade();
        });
        // A container that reaches a published port of its own bridge: the answer must come
        // back through here.
        rule(t, "postrouting", |e| {
            e.link_in_bridges(META_OIFNAME, Member::In)
                .is_published()
                .protocol_family(family)
                .address(family, Side::Source)
                .lookup(nets, Member::In)
                .masquerade();
        });
    }
    rule(t, "postrouting", |e| {
        e.link_in_bridges(META_OIFNAME, Member::In)
            .is_loopback4(Side::Source)
            .masquerade();
    });
}

fn bridge_elements(t: &mut Transaction, verb: Verb, bridge: &BridgeFacts) {
    let mut name = bridge.link.as_bytes().to_vec();
    name.resize(16, 0);
    if bridge.more {
        key_element(t, verb, "more", &name, 0);
    }
    key_element(t, verb, "bridges", &name, 0);
    if let Some(link) = &bridge.beside {
        let mut beside = link.as_bytes().to_vec();
        beside.resize(16, 0);
        key_element(t, verb, "bridges", &beside, 0);
        for pair in [[&*name, &*beside], [&*beside, &*name]] {
            key_element(t, verb, "pairs", &pair.concat(), 0);
        }
    }
    if bridge.internal {
        key_element(t, verb, "internal", &name, 0);
    }
    if bridge.icc {
        key_element(t, verb, "pairs", &name.repeat(2), 0);
    }
    for subnet in &bridge.subnets {
        let v4 = subnet.base().is_ipv4();
        interval(t, verb, if v4 { "nets4" } else { "nets6" }, subnet);
        if bridge.masquerade {
            interval(t, verb, if v4 { "masq4" } else { "masq6" }, subnet);
        }
    }
}

fn interval(t: &mut Transaction, verb: Verb, set: &str, subnet: &Subnet) {
    key_element(t, verb, set, &octets(subnet.base()), 0);
    if let Some(after) = subnet.after() {
        key_element(t, verb, set, &octets(after), INTERVAL_END);
    }
}

fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn key_element(t: &mut Transaction, verb: Verb, set: &str, key: &[u8], flags: u32) {
    t.put(verb, Family::Inet, F_CREATE, |a| {
        a.text(1, TABLE);
        a.text(2, set);
        a.nest(3, |list| {
            list.nest(1, |element| {
                element.nest(1, |data| data.bytes(1, key));
                if flags != 0 {
                    element.be32(3, flags);
                }
            });
        });
    });
}
