//! Links, addresses and routes: rtnetlink requests as this crate needs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use amphora_sys::netlink::{NetlinkError, Socket, attributes};
use rustix::io::Errno;

use crate::address::Subnet;
use crate::sysctl;
use amphora_sys::wire::{Attributes, Batch, F_CREATE, F_DUMP, F_EXCL, F_REPLACE};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_EXT_MASK: u16 = 29;
/// Counters take longer to add up than all the rest to tell.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const AF_BRIDGE: u8 = 7;
const RTNH_F_ONLINK: u32 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const LOOPBACK: u32 = 1;
const QUEUE_PACKETS: u32 = 1000;

fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    let flags = if up { IFF_UP } else { 0 };
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

const fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// A link in the making.
struct NewLink<'a> {
    name: &'a str,
    kind: &'a [u8],
    up: bool,
}

impl NewLink<'_> {
    /// Makes it, with attributes that any link has and `data` that one of its kind has.
    fn make(
        self,
        socket: &Socket,
        attributes: impl FnOnce(&mut Attributes<'_>),
        data: impl FnOnce(&mut Attributes<'_>),
    ) -> Result<(), NetlinkError> {
        let mut batch = Batch::default();
        let header = link_header(0, self.up);
        batch.message(RTM_NEWLINK, F_CREATE | F_EXCL, &header, |a| {
            a.text(IFLA_IFNAME, self.name);
            attributes(a);
            a.nest(IFLA_LINKINFO, |info| {
                info.bytes(IFLA_INFO_KIND, self.kind);
                info.nest(IFLA_INFO_DATA, data);
            });
        });
        socket.transact(&batch.finish())
    }
}

/// Has a new link born in a namespace.
fn born_in(a: &mut Attributes<'_>, netns: BorrowedFd<'_>) {
    let netns = u32::try_from(netns.as_raw_fd()).unwrap_or(u32::MAX);
    a.native(IFLA_NET_NS_FD, netns);
}

/// A veth pair: one end a port of a bridge here, the other born in a namespace.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    pub(crate) netns: BorrowedFd<'a>,
    pub(crate) peer: &'a str,
    /// 0: the kernel chooses.
    pub(crate) peer_index: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
}

/// Makes the pair. The end here is down, and in no bridge yet ([`join_bridge`]).
pub(crate) fn add_veth(socket: &Socket, veth: &Veth<'_>) -> Result<(), NetlinkError> {
    let end = |a: &mut Attributes<'_>| {
        a.native(IFLA_MTU, veth.mtu);
        a.native(IFLA_TXQLEN, QUEUE_PACKETS);
        a.native(IFLA_NUM_TX_QUEUES, 1);
        a.native(IFLA_NUM_RX_QUEUES, 1);
    };
    let link = NewLink {
        name: veth.name,
        kind: b"veth",
        up: false,
    };
    let header = link_header(veth.peer_index, false);
    link.make(socket, end, |data| {
        data.nest_after(VETH_INFO_PEER, &header, |peer| {
            peer.text(IFLA_IFNAME, veth.peer);
            peer.bytes(IFLA_ADDRESS, &veth.mac);
            end(peer);
            born_in(peer, veth.netns);
        });
    })
}

/// A link on top of another one of this host, born in a namespace.
#[derive(Debug)]
pub(crate) struct Macvlan<'a> {
    pub(crate) name: &'a str,
    pub(crate) netns: BorrowedFd<'a>,
    pub(crate) parent: u32,
    pub(crate) mode: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: Option<u32>,
}

/// Makes the link, down.
pub(crate) fn add_macvlan(socket: &Socket, link: &Macvlan<'_>) -> Result<(), NetlinkError> {
    let new = NewLink {
        name: link.name,
        kind: b"macvlan",
        up: false,
    };
    let attributes = |a: &mut Attributes<'_>| {
        a.native(IFLA_LINK, link.parent);
        a.bytes(IFLA_ADDRESS, &link.mac);
        if let Some(mtu) = link.mtu {
            a.native(IFLA_MTU, mtu);
        }
        born_in(a, link.netns);
    };
    new.make(socket, attributes, |data| {
        data.native(IFLA_MACVLAN_MODE, link.mode);
    })
}

/// Makes the link of a VLAN, up.
pub(crate) fn add_vlan(
    socket: &Socket,
    name: &str,
    on: u32,
    number: u16,
) -> Result<(), NetlinkError> {
    let link = NewLink {
        name,
        kind: b"vlan",
        up: true,
    };
    let attributes = |a: &mut Attributes<'_>| a.native(IFLA_LINK, on);
    link.make(socket, attributes, |data| {
        data.bytes(IFLA_VLAN_ID, &number.to_ne_bytes());
    })
}

/// Makes a VXLAN link that learns nothing, up.
pub(crate) fn add_vxlan(
    socket: &Socket,
    name: &str,
    (vni, port, local): (u32, u16, Ipv4Addr),
    mac: [u8; 6],
    mtu: u32,
) -> Result<(), NetlinkError> {
    let link = NewLink {
        name,
        kind: b"vxlan",
        up: true,
    };
    let attributes = |a: &mut Attributes<'_>| {
        a.bytes(IFLA_ADDRESS, &mac);
        a.native(IFLA_MTU, mtu);
    };
    link.make(socket, attributes, |data| {
        data.native(IFLA_VXLAN_ID, vni);
        data.ip(IFLA_VXLAN_LOCAL, local.into());
        data.bytes(IFLA_VXLAN_LEARNING, &[0]);
        data.bytes(IFLA_VXLAN_PORT, &port.to_be_bytes());
    })
}

/// A block of addresses on another host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beyond {
    /// The VXLAN link.
    pub(crate) index: u32,
    pub(crate) block: Subnet,
    /// Stands for the other host's end of the link.
    pub(crate) via: Ipv4Addr,
    pub(crate) mac: [u8; 6],
    pub(crate) host: Ipv4Addr,
}

fn neighbour(batch: &mut Batch, verb: u16, beyond: &Beyond, bridge: bool) {
    let mut header = [0; 12];
    header[0] = if bridge { AF_BRIDGE } else { AF_INET };
    header[4..8].copy_from_slice(&beyond.index.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header[10] = if bridge { NTF_SELF } else { 0 };
    let flags = if verb == RTM_NEWNEIGH {
        F_CREATE | F_REPLACE
    } else {
        0
    };
    let to = if bridge { beyond.host } else { beyond.via };
    batch.message(verb, flags, &header, |a| {
        a.ip(NDA_DST, to.into());
        a.bytes(NDA_LLADDR, &beyond.mac);
    });
}

/// Leads a block to its host.
pub(crate) fn add_beyond(socket: &Socket, beyond: &Beyond) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    neighbour(&mut batch, RTM_NEWNEIGH, beyond, true);
    neighbour(&mut batch, RTM_NEWNEIGH, beyond, false);
    let to = (beyond.block, RTNH_F_ONLINK);
    route_message(
        &mut batch,
        RTM_NEWROUTE,
        beyond.index,
        to,
        beyond.via.into(),
    );
    socket.transact(&batch.finish())
}

/// Leads a block nowhere again; not known is fine.
pub(crate) fn forget_beyond(socket: &Socket, beyond: &Beyond) -> Result<(), NetlinkError> {
    for step in 0..3 {
        let mut batch = Batch::default();
        match step {
            0 => {
                let to = (beyond.block, RTNH_F_ONLINK);
                route_message(
                    &mut batch,
                    RTM_DELROUTE,
                    beyond.index,
                    to,
                    beyond.via.into(),
                );
            }
            1 => neighbour(&mut batch, RTM_DELNEIGH, beyond, false),
            _ => neighbour(&mut batch, RTM_DELNEIGH, beyond, true),
        }
        match socket.transact(&batch.finish()) {
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::SRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

fn route_message(
    batch: &mut Batch,
    verb: u16,
    index: u32,
    (to, flags): (Subnet, u32),
    via: IpAddr,
) {
    let mut header = [0; 12];
    header[0] = family(via);
    header[1] = to.prefix();
    header[4] = RT_TABLE_MAIN;
    header[5] = RTPROT_BOOT;
    header[7] = RTN_UNICAST;
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    let how = if verb == RTM_NEWROUTE {
        F_CREATE | F_REPLACE
    } else {
        0
    };
    batch.message(verb, how, &header, |a| {
        a.ip(RTA_DST, to.base());
        a.ip(RTA_GATEWAY, via);
        a.native(RTA_OIF, index);
    });
}

/// Turns a link on.
pub(crate) fn link_up(socket: &Socket, index: u32) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    batch.message(RTM_NEWLINK, 0, &link_header(index, true), |_| ());
    socket.transact(&batch.finish())
}

/// Makes a link a port of a bridge, up.
///
/// A port needs no addresses of its own. Without this, each would have three routes, and the kernel
/// goes through all of them whenever a link changes.
fn port_of(batch: &mut Batch, name: &str, bridge: u32) {
    // Where it cannot be written everything works all the same.
    let _ = sysctl::set_if_there(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
    batch.message(RTM_NEWLINK, 0, &link_header(0, true), |a| {
        a.text(IFLA_IFNAME, name);
        a.native(IFLA_MASTER, bridge);
    });
}

/// Makes a link a port of a bridge, up and in hairpin mode: one datagram.
///
/// Ports that are `alone` reach no other port that is.
pub(crate) fn join_bridge(
    socket: &Socket,
    name: &str,
    bridge: u32,
    alone: bool,
) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    port_of(&mut batch, name, bridge);
    // The kernel takes port options for existing ports only.
    batch.message(RTM_NEWLINK, 0, &link_header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.nest(IFLA_LINKINFO, |info| {
            info.bytes(IFLA_INFO_SLAVE_KIND, b"bridge");
            info.nest(IFLA_INFO_SLAVE_DATA, |data| {
                data.bytes(IFLA_BRPORT_MODE, &[1]);
                if alone {
                    data.bytes(IFLA_BRPORT_ISOLATED, &[1]);
                }
            });
        });
    });
    socket.transact(&batch.finish())
}

/// A veth pair between two bridges: link and bridge of either side.
#[derive(Debug)]
pub(crate) struct Uplink<'a> {
    pub(crate) above: (&'a str, u32),
    pub(crate) below: (&'a str, u32),
    pub(crate) mtu: u32,
}

/// Makes the pair, both ends ports of their bridges and up.
pub(crate) fn add_uplink(socket: &Socket, uplink: &Uplink<'_>) -> Result<(), NetlinkError> {
    let link = NewLink {
        name: uplink.above.0,
        kind: b"veth",
        up: false,
    };
    let end = |a: &mut Attributes<'_>| a.native(IFLA_MTU, uplink.mtu);
    link.make(socket, end, |data| {
        data.nest_after(VETH_INFO_PEER, &link_header(0, false), |peer| {
            peer.text(IFLA_IFNAME, uplink.below.0);
            end(peer);
        });
    })?;
    let mut batch = Batch::default();
    for (name, bridge) in [uplink.above, uplink.below] {
        port_of(&mut batch, name, bridge);
    }
    socket.transact(&batch.finish())
}

/// Removes a link; a missing one is fine.
pub(crate) fn delete_link(socket: &Socket, name: &str) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    batch.message(RTM_DELLINK, 0, &link_header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
    });
    match socket.transact(&batch.finish()) {
        Err(error) if error.is(Errno::NODEV) => Ok(()),
        other => other,
    }
}

/// Makes a bridge (down); an existing one stays as it is.
pub(crate) fn add_bridge(
    socket: &Socket,
    name: &str,
    mac: [u8; 6],
    mtu: u32,
) -> Result<(), NetlinkError> {
    let link = NewLink {
        name,
        kind: b"bridge",
        up: false,
    };
    let attributes = |a: &mut Attributes<'_>| {
        a.bytes(IFLA_ADDRESS, &mac);
        a.native(IFLA_MTU, mtu);
    };
    // Nobody here asks who listens to which group, so all is sent to all in any case; and each new
    // port would start the timers of all others anew.
    let data = |data: &mut Attributes<'_>| data.bytes(IFLA_BR_MCAST_SNOOPING, &[0]);
    match link.make(socket, attributes, data) {
        Err(error) if error.is(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Gives a link its addresses and turns it on; what is there already is fine.
pub(crate) fn configure_bridge(
    socket: &Socket,
    index: u32,
    addresses: &[(IpAddr, u8)],
) -> Result<(), NetlinkError> {
    for (address, prefix) in addresses {
        let mut batch = Batch::default();
        address_message(&mut batch, index, *address, *prefix);
        match socket.transact(&batch.finish()) {
            Err(error) if error.is(Errno::EXIST) => {}
            other => other?,
        }
    }
    link_up(socket, index)
}

/// Addresses of a container's link, and the gateways that the default routes lead to through it.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    pub(crate) index: u32,
    pub(crate) address: (Ipv4Addr, u8),
    pub(crate) v6: Option<(Ipv6Addr, u8)>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) reach: Option<(Subnet, Ipv4Addr)>,
}

/// Brings a container's loopback and links up, with addresses and default routes: one datagram.
pub(crate) fn configure_inside(socket: &Socket, links: &[Inside]) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    batch.message(RTM_NEWLINK, 0, &link_header(LOOPBACK, true), |_| ());
    for inside in links {
        let (address, prefix) = inside.address;
        address_message(&mut batch, inside.index, address.into(), prefix);
        if let Some((address, prefix)) = inside.v6 {
            address_message(&mut batch, inside.index, address.into(), prefix);
        }
        batch.message(RTM_NEWLINK, 0, &link_header(inside.index, true), |_| ());
    }
    for inside in links {
        for gateway in &inside.gateways {
            default_route(&mut batch, RTM_NEWROUTE, inside.index, *gateway);
        }
        if let Some((subnet, gateway)) = inside.reach {
            route_message(
                &mut batch,
                RTM_NEWROUTE,
                inside.index,
                (subnet, 0),
                gateway.into(),
            );
        }
    }
    socket.transact(&batch.finish())
}

/// Has the default routes of a namespace lead elsewhere. Routes of ours that somebody removed, and
/// ones that lead there already, are fine.
pub(crate) fn change_gateways(
    socket: &Socket,
    from: &[(u32, IpAddr)],
    to: &[(u32, IpAddr)],
) -> Result<(), NetlinkError> {
    let routes = from.iter().map(|r| (RTM_DELROUTE, r));
    for (verb, (index, gateway)) in routes.chain(to.iter().map(|r| (RTM_NEWROUTE, r))) {
        let mut batch = Batch::default();
        default_route(&mut batch, verb, *index, *gateway);
        match socket.transact(&batch.finish()) {
            Err(error) if verb == RTM_DELROUTE && error.is(Errno::SRCH) => {}
            Err(error) if verb == RTM_NEWROUTE && error.is(Errno::EXIST) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Brings the loopback link up.
pub(crate) fn loopback_up(socket: &Socket) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    batch.message(RTM_NEWLINK, 0, &link_header(LOOPBACK, true), |_| ());
    socket.transact(&batch.finish())
}

fn address_message(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    let mut header = [0; 8];
    header[0] = family(address);
    header[1] = prefix;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.message(RTM_NEWADDR, F_CREATE | F_EXCL, &header, |a| {
        a.ip(IFA_LOCAL, address);
        a.ip(IFA_ADDRESS, address);
        if address.is_ipv4() {
            a.ip(IFA_BROADCAST, Subnet::new(address, prefix).last());
        } else {
            // Nobody else can have it: the lease says so. Usable at once.
            a.native(IFA_FLAGS, IFA_F_NODAD);
        }
    });
}

fn default_route(batch: &mut Batch, verb: u16, index: u32, gateway: IpAddr) {
    let mut header = [0; 12];
    header[0] = family(gateway);
    header[4] = RT_TABLE_MAIN;
    header[5] = RTPROT_BOOT;
    header[7] = RTN_UNICAST;
    let flags = if verb == RTM_NEWROUTE {
        F_CREATE | F_EXCL
    } else {
        0
    };
    batch.message(verb, flags, &header, |a| {
        a.ip(RTA_GATEWAY, gateway);
        a.native(RTA_OIF, index);
    });
}

/// What [`link`] tells of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
}

fn link_of(payload: &[u8]) -> Option<Link> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(
            payload.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    let mtu = attributes(payload.get(16..)?).find(|(kind, _)| *kind == IFLA_MTU);
    let mtu = mtu
        .and_then(|(_, data)| data.try_into().ok())
        .map_or(0, u32::from_ne_bytes);
    Some(Link {
        index: word(4)?,
        mtu,
    })
}

/// Looks a link up by name.
pub(crate) fn link(socket: &Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut batch = Batch::default();
    batch.message(RTM_GETLINK, 0, &link_header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.native(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    let mut found = None;
    match socket.request(&batch.finish(), &mut |m| {
        if m.kind == RTM_NEWLINK {
            found = link_of(m.payload);
        }
    }) {
        Err(error) if error.is(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// What the host's routing says that the choice of a subnet must respect.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Subnets of every route and address, both families.
    pub(crate) used: Vec<Subnet>,
    /// The smallest MTU among links that carry an IPv4 default route.
    pub(crate) uplink_mtu: Option<u32>,
}

/// Lists routes and addresses, without those of the link `except`.
pub(crate) fn survey(socket: &Socket, except: u32) -> Result<Survey, NetlinkError> {
    let mut survey = Survey::default();
    let mut uplinks = Vec::new();
    for wanted in [AF_INET, AF_INET6] {
        let mut batch = Batch::default();
        batch.message(
            RTM_GETROUTE,
            F_DUMP,
            &[wanted, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            |_| (),
        );
        socket.request(&batch.into_bytes(), &mut |m| {
            if let Some((subnet, link)) = route_of(m.payload)
                && m.kind == RTM_NEWROUTE
                && link != Some(except)
            {
                if subnet.prefix() == 0 && subnet.base().is_ipv4() {
                    uplinks.extend(link);
                }
                survey.used.push(subnet);
            }
        })?;
        let mut batch = Batch::default();
        batch.message(RTM_GETADDR, F_DUMP, &[wanted, 0, 0, 0, 0, 0, 0, 0], |_| ());
        socket.request(&batch.into_bytes(), &mut |m| {
            if m.kind == RTM_NEWADDR
                && let Some((subnet, link)) = address_of(m.payload)
                && link != except
            {
                survey.used.push(subnet);
            }
        })?;
    }
    let mut batch = Batch::default();
    batch.message(RTM_GETLINK, F_DUMP, &link_header(0, false), |_| ());
    socket.request(&batch.into_bytes(), &mut |m| {
        if m.kind == RTM_NEWLINK
            && let Some(link) = link_of(m.payload)
            && uplinks.contains(&link.index)
        {
            survey.uplink_mtu = Some(survey.uplink_mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)));
        }
    })?;
    Ok(survey)
}

fn ip_of(data: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(data) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(data)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}

fn route_of(payload: &[u8]) -> Option<(Subnet, Option<u32>)> {
    let (family, prefix) = (*payload.first()?, *payload.get(1)?);
    let mut destination = if family == AF_INET {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let mut link = None;
    for (kind, data) in attributes(payload.get(12..)?) {
        match kind {
            RTA_DST => destination = ip_of(data)?,
            RTA_OIF => link = data.try_into().ok().map(u32::from_ne_bytes),
            _ => {}
        }
    }
    Some((Subnet::new(destination, prefix), link))
}

fn address_of(payload: &[u8]) -> Option<(Subnet, u32)> {
    let prefix = *payload.get(1)?;
    let link = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let address = attributes(payload.get(8..)?).find(|(kind, _)| *kind == IFA_ADDRESS)?;
    Some((Subnet::new(ip_of(address.1)?, prefix), link))
}
