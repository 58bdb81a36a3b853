//! The kernel's memory of UDP conversations. A datagram follows what was decided about the first
//! of its kind, for as long as they keep coming: also past the publishing of its port, and past
//! the end of the container that had answered. TCP needs none of this, it connects anew.
//!
//! All of it is best effort: a kernel without this interface forgets by itself, within minutes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use amphora_spec::release::Release;
use amphora_sys::netlink::{NETFILTER, Socket, attributes};
use amphora_sys::wire::{Attributes, Batch, F_DUMP};

use crate::endpoint::Endpoint;
use crate::ports::{Protocol, PublishedPort};

/// `NFNL_SUBSYS_CTNETLINK`, in the place of a message type.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const UDP: u8 = 17;

/// `CTA_*`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const FILTER: u16 = 25;
/// In a tuple.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
/// What of a tuple a filter looks at (`CTA_FILTER_F_*`; Linux 5.8 for lists, 6.10 for removal).
const BY_SOURCE: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;

/// Has the kernel forget the conversations that are led elsewhere from now on: those with the
/// endpoint's host ports, and those with whoever had its address before. Returns what makes it
/// forget those with the endpoint, when that has ended.
pub(crate) fn forget(socket: &Socket, endpoint: &Endpoint) -> Option<Release> {
    let udp = |port: &&PublishedPort| port.protocol == Protocol::Udp;
    let ports: Vec<_> = endpoint.ports.iter().filter(udp).collect();
    if ports.is_empty() {
        return None;
    }
    forget_ports(socket, &ports);
    let bytes = answered_by(endpoint.address, endpoint.address6);
    // Where the kernel cannot do it at once it will not at the end either.
    socket.transact(&bytes).ok().map(|()| Release::Netlink {
        protocol: NETFILTER,
        bytes,
    })
}

/// Has the kernel forget the conversations with these host ports.
pub(crate) fn forget_ports(socket: &Socket, ports: &[&PublishedPort]) {
    for family in [AF_INET, AF_INET6] {
        let own = |port: &&PublishedPort| port.host_ip.is_ipv4() == (family == AF_INET);
        let ports: Vec<_> = ports.iter().copied().filter(own).collect();
        if ports.is_empty() {
            continue;
        }
        let mut ask = Batch::default();
        ask.message(GET, F_DUMP, &[family, 0, 0, 0], |a| {
            tuple(a, TUPLE_ORIG, None);
            filter(a, BY_PROTOCOL, 0);
        });
        let mut stale = Batch::default();
        let mut any = false;
        let _ = socket.request(&ask.into_bytes(), &mut |message| {
            let body = message.payload.get(4..).unwrap_or_default();
            let Some(entry) = Entry::read(body).filter(|e| ports.iter().any(|p| e.is_of(p))) else {
                return;
            };
            any = true;
            stale.message(DELETE, 0, &[family, 0, 0, 0], |a| {
                a.bytes(TUPLE_ORIG | NESTED, entry.tuple);
                a.bytes(ID, entry.id);
            });
        });
        if any {
            let _ = socket.transact(&stale.finish());
        }
    }
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// What is to be known of an entry.
struct Entry<'a> {
    /// The whole of its first direction.
    tuple: &'a [u8],
    id: &'a [u8],
    to: IpAddr,
    port: u16,
}

impl<'a> Entry<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let of = |bytes: &'a [u8], kind: u16| {
            attributes(bytes)
                .find(|(k, _)| *k == kind)
                .map(|(_, data)| data)
        };
        let tuple = of(body, TUPLE_ORIG)?;
        let (ip, proto) = (of(tuple, TUPLE_IP)?, of(tuple, TUPLE_PROTO)?);
        let to = match of(ip, V4_DST) {
            Some(v4) => Ipv4Addr::from(<[u8; 4]>::try_from(v4).ok()?).into(),
            None => Ipv6Addr::from(<[u8; 16]>::try_from(of(ip, V6_DST)?).ok()?).into(),
        };
        (of(proto, PROTO_NUM)? == [UDP]).then_some(())?;
        let port = u16::from_be_bytes(of(proto, PROTO_DST_PORT)?.try_into().ok()?);
        let id = of(body, ID)?;
        Some(Self {
            tuple,
            id,
            to,
            port,
        })
    }

    fn is_of(&self, port: &PublishedPort) -> bool {
        port.host_port == self.port && (port.host_ip.is_unspecified() || port.host_ip == self.to)
    }
}

/// What makes the kernel forget the UDP conversations that these addresses answer in.
fn answered_by(v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> Vec<u8> {
    let mut batch = Batch::default();
    let all = [
        (AF_INET, Some(IpAddr::from(v4))),
        (AF_INET6, v6.map(IpAddr::from)),
    ];
    for (family, address) in all {
        let Some(address) = address else { continue };
        batch.message(DELETE, 0, &[family, 0, 0, 0], |a| {
            tuple(a, TUPLE_REPLY, Some(address));
            filter(a, 0, BY_SOURCE | BY_PROTOCOL);
        });
    }
    batch.finish()
}

fn tuple(a: &mut Attributes<'_>, which: u16, source: Option<IpAddr>) {
    a.nest(which, |tuple| {
        if let Some(source) = source {
            let kind = if source.is_ipv4() { V4_SRC } else { V6_SRC };
            tuple.nest(TUPLE_IP, |ip| ip.ip(kind, source));
        }
        tuple.nest(TUPLE_PROTO, |proto| proto.bytes(PROTO_NUM, &[UDP]));
    });
}

fn filter(a: &mut Attributes<'_>, orig: u32, reply: u32) {
    a.nest(FILTER, |flags| {
        flags.native(1, orig);
        flags.native(2, reply);
    });
}
