//! Port elements: one per published port and host address.

use std::net::IpAddr;

use amphora_sys::netlink::{NetlinkError, Socket, attributes};
use rustix::io::Errno;

use crate::ports::{Protocol, PublishedPort};
use amphora_sys::wire::{F_CREATE, F_EXCL};

use super::{Family, TABLE, Transaction, Verb, question};

/// An entry of one of the port maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    map: &'static str,
    key: Vec<u8>,
    data: Vec<u8>,
}

/// Makes the entry of a published port; `None` where the supervisor serves it alone.
pub(crate) fn port_element(port: &PublishedPort, inside: IpAddr) -> Option<Element> {
    if port.host_ip.is_ipv4() != inside.is_ipv4() || port.host_ip == std::net::Ipv6Addr::LOCALHOST {
        return None;
    }
    let map = match (port.host_ip.is_ipv4(), port.host_ip.is_unspecified()) {
        (true, true) => "pub4",
        (true, false) => "pub4a",
        (false, true) => "pub6",
        (false, false) => "pub6a",
    };
    let mut key = Vec::with_capacity(24);
    if !port.host_ip.is_unspecified() {
        put_ip(&mut key, port.host_ip);
    }
    key.extend([protocol_number(port.protocol), 0, 0, 0]);
    put_port(&mut key, port.host_port);
    let mut data = Vec::with_capacity(20);
    put_ip(&mut data, inside);
    put_port(&mut data, port.container_port);
    Some(Element { map, key, data })
}

const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn put_ip(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

/// A port in its 4-byte register.
fn put_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

pub(super) fn put_elements(t: &mut Transaction, verb: Verb, flags: u16, elements: &[Element]) {
    for element in elements {
        t.put(verb, Family::Inet, flags, |a| {
            a.text(1, TABLE);
            a.text(2, element.map);
            a.nest(3, |list| {
                list.nest(1, |e| {
                    e.nest(1, |key| key.bytes(1, &element.key));
                    if verb == Verb::NewElement {
                        e.nest(2, |data| data.bytes(1, &element.data));
                    }
                });
            });
        });
    }
}

/// Adds the entries, all or none. The caller holds the host ports, so an entry that is there
/// already belongs to a container whose supervisor is gone: it is replaced.
pub(crate) fn add(socket: &Socket, elements: &[Element]) -> Result<(), NetlinkError> {
    if elements.is_empty() {
        return Ok(());
    }
    let mut transaction = Transaction::new();
    put_elements(
        &mut transaction,
        Verb::NewElement,
        F_CREATE | F_EXCL,
        elements,
    );
    match socket.transact(&transaction.finish()) {
        Err(error) if error.is(Errno::EXIST) || error.is(Errno::BUSY) => {}
        other => return other,
    }
    let mut transaction = Transaction::new();
    put_elements(&mut transaction, Verb::DestroyElement, 0, elements);
    put_elements(
        &mut transaction,
        Verb::NewElement,
        F_CREATE | F_EXCL,
        elements,
    );
    socket.transact(&transaction.finish())
}

/// Removes and adds entries, all or nothing. As with [`add`], the caller holds the host ports.
pub(crate) fn change(
    socket: &Socket,
    removed: &[Element],
    added: &[Element],
) -> Result<(), NetlinkError> {
    if removed.is_empty() && added.is_empty() {
        return Ok(());
    }
    let mut transaction = Transaction::new();
    for gone in [removed, added] {
        put_elements(&mut transaction, Verb::DestroyElement, 0, gone);
    }
    put_elements(&mut transaction, Verb::NewElement, F_CREATE | F_EXCL, added);
    socket.transact(&transaction.finish())
}

/// The transaction that removes the entries, present or not; `None` when there are none.
pub(crate) fn remove_batch(elements: &[Element]) -> Option<Vec<u8>> {
    if elements.is_empty() {
        return None;
    }
    let mut transaction = Transaction::new();
    put_elements(&mut transaction, Verb::DestroyElement, 0, elements);
    Some(transaction.finish())
}

/// Removes those entries which still lead where they say; a missing table is fine.
pub(crate) fn delete(socket: &Socket, elements: &[Element]) -> Result<(), NetlinkError> {
    let mut ours = Vec::new();
    for element in elements {
        if current(socket, element)?.is_some_and(|data| data == element.data) {
            ours.push(element.clone());
        }
    }
    let Some(batch) = remove_batch(&ours) else {
        return Ok(());
    };
    match socket.transact(&batch) {
        Err(error) if error.is(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Asks where an entry leads.
fn current(socket: &Socket, element: &Element) -> Result<Option<Vec<u8>>, NetlinkError> {
    let ask = question(Verb::GetElement, Family::Inet, 0, |a| {
        a.text(1, TABLE);
        a.text(2, element.map);
        a.nest(3, |list| {
            list.nest(1, |e| e.nest(1, |key| key.bytes(1, &element.key)));
        });
    });
    let mut found = None;
    let answer = socket.request(&ask.finish(), &mut |m| {
        found = nested(m.payload.get(4..).unwrap_or_default(), &[3, 1, 2, 1]).map(<[u8]>::to_vec);
    });
    match answer {
        Err(error) if error.is(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

fn nested<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    let (first, rest) = path.split_first()?;
    let (_, payload) = attributes(bytes).find(|(kind, _)| kind == first)?;
    if rest.is_empty() {
        Some(payload)
    } else {
        nested(payload, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn published(host_ip: IpAddr) -> PublishedPort {
        PublishedPort {
            host_ip,
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn keys_lie_in_registers() {
        let inside = IpAddr::from(Ipv4Addr::new(172, 17, 0, 2));
        let all = port_element(&published(Ipv4Addr::UNSPECIFIED.into()), inside).unwrap();
        assert_eq!(all.map, "pub4");
        assert_eq!(all.key, [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(all.data, [172, 17, 0, 2, 0, 80, 0, 0]);
        let one = port_element(&published(Ipv4Addr::LOCALHOST.into()), inside).unwrap();
        assert_eq!((one.map, one.key.len()), ("pub4a", 12));
    }

    #[test]
    fn the_ipv6_loopback_and_the_other_family_have_no_entry() {
        let v4 = IpAddr::from(Ipv4Addr::new(172, 17, 0, 2));
        assert_eq!(
            port_element(&published(Ipv6Addr::UNSPECIFIED.into()), v4),
            None
        );
        let v6 = IpAddr::from("fd00::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            port_element(&published(Ipv6Addr::LOCALHOST.into()), v6),
            None
        );
        assert_eq!(
            port_element(&published(Ipv6Addr::UNSPECIFIED.into()), v6)
                .unwrap()
                .data
                .len(),
            20
        );
    }
}
