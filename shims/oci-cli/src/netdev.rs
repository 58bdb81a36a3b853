//! `linux.netDevices`: interfaces of the host that become the container's.
//!
//! A move keeps addresses that are meant to last, turns the interface on, and is taken back as a
//! whole unless the container is made. At the container's end the kernel gives physical ones back.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use amphora_spec::runtime::NetDevice;
use amphora_sys::netlink::{Message, NetlinkError, ROUTE, Socket, attributes};
use amphora_sys::ns::{current_netns, in_netns};
use amphora_sys::wire::{Batch, F_CREATE, F_DUMP, F_REPLACE};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use crate::error::{Result, RuncError};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
/// No duplicate detection, home address, managed temporaries, no route for the prefix.
const IFA_F_KEPT: u32 = 0x02 | 0x10 | 0x100 | 0x200;
/// Address, local address, broadcast address, metric of the route.
const IFA_KEPT: [u16; 4] = [1, 2, 4, 9];
const IFF_UP: u32 = 1;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// An address as `RTM_NEWADDR` takes it, without its interface.
#[derive(Debug, Clone)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// One interface that was moved.
#[derive(Debug)]
struct Device {
    /// Its name on the host.
    name: String,
    /// Its number in the container.
    index: u32,
    up: bool,
    addresses: Vec<Address>,
}

/// What was moved; moved back when it goes, unless it is [`Moved::keep`]t.
#[derive(Debug)]
pub(crate) struct Moved {
    host: OwnedFd,
    here: Socket,
    there: Socket,
    devices: Vec<Device>,
}

impl Drop for Moved {
    fn drop(&mut self) {
        for device in std::mem::take(&mut self.devices).iter().rev() {
            // As far as it goes: what comes first failed already, and is what is told.
            let name = Some(device.name.as_str());
            let moved = change(&self.there, device.index, false, name, Some(&self.host));
            if moved.is_ok()
                && let Ok(Some(link)) = find(&self.here, &device.name)
            {
                let _ = settle(&self.here, link.index, device.up, &device.addresses);
            }
        }
    }
}

impl Moved {
    /// They stay.
    pub(crate) fn keep(mut self) {
        self.devices.clear();
    }
}

/// Moves interfaces into the network namespace of a process.
pub(crate) fn attach(devices: &BTreeMap<String, NetDevice>, pid: i32) -> Result<Moved> {
    let failed = || RuncError::file("linux.netDevices: failed to enter the network namespace");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let there = openat(CWD, format!("/proc/{pid}/ns/net"), flags, Mode::empty())
        .map_err(|errno| failed()(io::Error::from(errno)))?;
    let host = current_netns().map_err(failed())?;
    let number = |ns: &OwnedFd| fstat(ns).map(|stat| (stat.st_dev, stat.st_ino));
    if number(&there).ok() == number(&host).ok() {
        return Err(RuncError::usage(
            "linux.netDevices: needs a network namespace of the container's own",
        ));
    }
    let open = || Socket::open(ROUTE);
    let mut moved = Moved {
        here: open().map_err(failed())?,
        there: in_netns(there.as_fd(), open).map_err(failed())?,
        host,
        devices: Vec::new(),
    };
    for (name, wanted) in devices {
        move_one(&mut moved, name, wanted, &there)
            .map_err(RuncError::file(format!("linux.netDevices: \"{name}\"")))?;
    }
    Ok(moved)
}

fn move_one(moved: &mut Moved, name: &str, wanted: &NetDevice, there: &OwnedFd) -> io::Result<()> {
    let link = find(&moved.here, name)?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no interface of that name on the host",
        )
    })?;
    let addresses = addresses(&moved.here, link.index)?;
    let before = links(&moved.there)?;
    let theirs = match wanted.name.as_str() {
        "" => name,
        other => other,
    };
    // One message moves it and then renames it: when only the second fails, it is there already.
    let change = change(&moved.here, link.index, false, Some(theirs), Some(there));
    let after = links(&moved.there)?;
    let new = after
        .iter()
        .find(|link| before.iter().all(|old| old.index != link.index));
    if let Some(new) = new {
        moved.devices.push(Device {
            name: name.to_owned(),
            index: new.index,
            up: link.up,
            addresses: addresses.clone(),
        });
    }
    change?;
    let new = new.ok_or(io::ErrorKind::NotFound)?;
    settle(&moved.there, new.index, true, &addresses)
}

/// Gives a link its addresses and turns it on.
fn settle(socket: &Socket, index: u32, up: bool, addresses: &[Address]) -> io::Result<()> {
    for address in addresses {
        let mut header = [0; ADDRESS_HEADER];
        header[0] = address.family;
        header[1] = address.prefix;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut batch = Batch::default();
        batch.message(RTM_NEWADDR, F_CREATE | F_REPLACE, &header, |put| {
            for (kind, value) in &address.attributes {
                put.bytes(*kind, value);
            }
        });
        socket.transact(&batch.finish()).map_err(told)?;
    }
    if up {
        change(socket, index, true, None, None)?;
    }
    Ok(())
}

/// Sets a link's state, name and namespace.
fn change(
    socket: &Socket,
    index: u32,
    up: bool,
    name: Option<&str>,
    ns: Option<&OwnedFd>,
) -> io::Result<()> {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&(if up { IFF_UP } else { 0 }).to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    let mut batch = Batch::default();
    batch.message(RTM_NEWLINK, 0, &header, |put| {
        if let Some(name) = name {
            put.text(IFLA_IFNAME, name);
        }
        if let Some(ns) = ns {
            put.native(IFLA_NET_NS_FD, ns.as_raw_fd().cast_unsigned());
        }
    });
    socket.transact(&batch.finish()).map_err(told)
}

#[derive(Debug)]
struct Link {
    index: u32,
    up: bool,
    name: String,
}

fn find(socket: &Socket, name: &str) -> io::Result<Option<Link>> {
    let all = links(socket)?;
    Ok(all.into_iter().find(|link| link.name == name))
}

fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    let ask = dump(RTM_GETLINK, &[0; LINK_HEADER]);
    let mut each = |answer: Message<'_>| {
        let (Some(index), Some(flags)) = (u32_at(answer.payload, 4), u32_at(answer.payload, 8))
        else {
            return;
        };
        let rest = answer.payload.get(LINK_HEADER..).unwrap_or_default();
        let name = attributes(rest).find(|(kind, _)| *kind == IFLA_IFNAME);
        let name = name.map(|(_, name)| name.strip_suffix(&[0]).unwrap_or(name));
        found.push(Link {
            index,
            up: flags & IFF_UP != 0,
            name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        });
    };
    socket.request(&ask, &mut each).map_err(told)?;
    Ok(found)
}

/// The addresses of an interface that are meant to last and to be reached from elsewhere.
fn addresses(socket: &Socket, index: u32) -> io::Result<Vec<Address>> {
    let mut found = Vec::new();
    let ask = dump(RTM_GETADDR, &[0; ADDRESS_HEADER]);
    let mut each = |answer: Message<'_>| {
        let Some(&[family, prefix, few, scope]) = answer.payload.first_chunk() else {
            return;
        };
        if u32_at(answer.payload, 4) != Some(index) || scope != 0 {
            return;
        }
        let rest = answer.payload.get(ADDRESS_HEADER..).unwrap_or_default();
        let all = attributes(rest).find(|(kind, _)| *kind == IFA_FLAGS);
        let flags = all
            .and_then(|(_, value)| u32_at(value, 0))
            .unwrap_or(few.into());
        if flags & IFA_F_PERMANENT == 0 {
            return;
        }
        let mut kept = Vec::new();
        for (kind, value) in attributes(rest) {
            if IFA_KEPT.contains(&kind) {
                kept.push((kind, value.to_vec()));
            }
        }
        let flags = flags & IFA_F_KEPT;
        kept.push((IFA_FLAGS, flags.to_ne_bytes().to_vec()));
        found.push(Address {
            family,
            prefix,
            attributes: kept,
        });
    };
    socket.request(&ask, &mut each).map_err(told)?;
    Ok(found)
}

fn told(error: NetlinkError) -> io::Error {
    match error.text {
        Some(text) => io::Error::new(error.source.kind(), format!("{}: {text}", error.source)),
        None => error.source,
    }
}

/// Asks for all of a kind.
fn dump(kind: u16, header: &[u8]) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.message(kind, F_DUMP, header, |_| ());
    batch.into_bytes()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
