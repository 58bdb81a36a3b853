//! Route netlink messages in a fixed buffer: written, sent and acknowledged without the heap.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const CAPACITY: usize = 2048;
const ACK: u16 = 1 | 4;
const CREATE: u16 = 0x400 | 0x200;
const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const PREFIX: u8 = 16;
const PREFIX6: u8 = 64;
/// `IFA_F_NODAD`: the address is good at once.
const NO_DAD: u8 = 2;

const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// A batch of requests; each asks for an acknowledgement.
struct Batch {
    bytes: [u8; CAPACITY],
    len: usize,
    message: usize,
    requests: u32,
}

impl Batch {
    fn new() -> Self {
        Self {
            bytes: [0; CAPACITY],
            len: 0,
            message: 0,
            requests: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(bytes);
        }
        self.len = end.next_multiple_of(4);
    }

    fn set(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.message = self.len;
        self.requests += 1;
        let mut start = [0; 16];
        let [_, _, _, _, k0, k1, f0, f1, s0, ..] = &mut start;
        [*k0, *k1] = kind.to_ne_bytes();
        [*f0, *f1] = (ACK | flags).to_ne_bytes();
        *s0 = self.requests.to_le_bytes()[0];
        self.put(&start);
        self.put(header);
    }

    fn end(&mut self) {
        let len = u32::try_from(self.len - self.message).unwrap_or(0);
        self.set(self.message, &len.to_ne_bytes());
    }

    fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(0);
        self.put(&len.to_ne_bytes());
        self.len -= 2;
        self.put(&kind.to_ne_bytes());
        self.put(value);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Opens a nested attribute and returns its place for [`Batch::close`].
    fn open(&mut self, kind: u16) -> usize {
        let at = self.len;
        self.attr(kind, &[]);
        at
    }

    fn close(&mut self, at: usize) {
        let len = u16::try_from(self.len - at).unwrap_or(0);
        self.set(at, &len.to_ne_bytes());
    }

    fn send(&self, socket: &Socket) -> io::Result<()> {
        let bytes = self
            .bytes
            .get(..self.len)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        send(&socket.0, bytes, SendFlags::empty())?;
        let mut left = self.requests;
        let mut buffer = [0; 4096];
        while left > 0 {
            let (got, _) = recv(&socket.0, &mut buffer, RecvFlags::empty())?;
            left = left.saturating_sub(answers(buffer.get(..got).unwrap_or_default())?);
        }
        Ok(())
    }
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Counts the acknowledgements in what the kernel sent; the first refusal is the error.
fn answers(mut bytes: &[u8]) -> io::Result<u32> {
    let mut count = 0;
    while let (Some(len), Some(kind)) = (word(bytes, 0), word(bytes, 4)) {
        let len = usize::try_from(u32::from_ne_bytes(len)).unwrap_or(0);
        if u16::from_ne_bytes(kind) == NLMSG_ERROR {
            let code = word(bytes, 16).map_or(0, i32::from_ne_bytes);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            count += 1;
        }
        bytes = bytes
            .get(len.max(16).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(count)
}

/// `struct ifinfomsg`, with the link up or left as it is.
fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    let [_, _, _, _, i @ .., _, _, _, _, _, _, _, _] = &mut header;
    i.copy_from_slice(&index.to_ne_bytes());
    if up {
        let [_, _, _, _, _, _, _, _, flags, _, _, _, change, _, _, _] = &mut header;
        *flags = 1;
        *change = 1;
    }
    debug_assert_eq!(IFF_UP, 1);
    header
}

/// A route netlink socket of the namespace it was opened in.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        Ok(Self(socket_with(family, kind, SocketFlags::CLOEXEC, None)?))
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(self.0.as_fd(), name)?)
    }

    /// Makes a bridge with an address, up.
    pub(super) fn add_bridge(&self, name: &str, address: Ipv4Addr) -> io::Result<u32> {
        let mut batch = Batch::new();
        batch.begin(NEWLINK, CREATE, &link_header(0, true));
        batch.attr(IFLA_IFNAME, &c_name(name));
        let info = batch.open(IFLA_LINKINFO);
        batch.attr(INFO_KIND, b"bridge");
        batch.close(info);
        batch.end();
        batch.send(self)?;
        let index = self.index(name)?;
        let mut batch = Batch::new();
        add_address(&mut batch, index, address);
        batch.send(self)?;
        Ok(index)
    }

    pub(super) fn remove_link(&self, name: &str) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.begin(DELLINK, 0, &link_header(0, false));
        batch.attr(IFLA_IFNAME, &c_name(name));
        batch.end();
        batch.send(self)
    }

    /// Makes a veth pair in one message: the host's end up and a port of `bridge`, the other end
    /// born as `eth0` in the namespace.
    pub(super) fn add_veth(&self, name: &str, bridge: u32, into: Namespace<'_>) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.begin(NEWLINK, CREATE, &link_header(0, true));
        batch.attr(IFLA_IFNAME, &c_name(name));
        batch.number(IFLA_MASTER, bridge);
        batch.number(IFLA_TXQLEN, 1000);
        batch.number(IFLA_NUM_TX_QUEUES, 1);
        batch.number(IFLA_NUM_RX_QUEUES, 1);
        let info = batch.open(IFLA_LINKINFO);
        batch.attr(INFO_KIND, b"veth");
        let data = batch.open(INFO_DATA);
        let peer = batch.open(VETH_INFO_PEER);
        batch.put(&link_header(0, false));
        batch.attr(IFLA_IFNAME, b"eth0\0");
        batch.number(IFLA_NUM_TX_QUEUES, 1);
        batch.number(IFLA_NUM_RX_QUEUES, 1);
        match into {
            Namespace::OfProcess(pid) => batch.number(IFLA_NET_NS_PID, pid.cast_unsigned()),
            Namespace::Open(fd) => batch.number(IFLA_NET_NS_FD, fd.as_raw_fd().cast_unsigned()),
        }
        for place in [peer, data, info] {
            batch.close(place);
        }
        batch.end();
        batch.send(self)
    }

    /// Brings the loopback of a fresh namespace up.
    pub(super) fn loopback_up(&self) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.begin(NEWLINK, 0, &link_header(1, true));
        batch.end();
        batch.send(self)
    }

    /// Gives a link an IPv6 address of its own, up or not.
    pub(super) fn add_address6(&self, index: u32, address: Ipv6Addr) -> io::Result<()> {
        let mut batch = Batch::new();
        add_address6(&mut batch, index, address);
        batch.send(self)
    }

    /// Addresses, link up and default routes of `eth0`, in one message.
    pub(super) fn configure(&self, own: Addresses, gateway: Addresses) -> io::Result<()> {
        let index = self.index("eth0")?;
        let mut batch = Batch::new();
        add_address(&mut batch, index, own.v4);
        if let Some(address) = own.v6 {
            add_address6(&mut batch, index, address);
        }
        batch.begin(NEWLINK, 0, &link_header(index, true));
        batch.end();
        add_default(&mut batch, index, AF_INET, &gateway.v4.octets());
        if let Some(gateway) = gateway.v6 {
            add_default(&mut batch, index, AF_INET6, &gateway.octets());
        }
        batch.send(self)
    }
}

/// Addresses of one end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Option<Ipv6Addr>,
}

/// Where a link's other end is born.
#[derive(Debug, Clone, Copy)]
pub(super) enum Namespace<'a> {
    OfProcess(i32),
    Open(BorrowedFd<'a>),
}

fn add_default(batch: &mut Batch, index: u32, family: u8, gateway: &[u8]) {
    const MAIN: u8 = 254;
    const BOOT: u8 = 3;
    const UNICAST: u8 = 1;
    batch.begin(
        NEWROUTE,
        CREATE,
        &[family, 0, 0, 0, MAIN, BOOT, 0, UNICAST, 0, 0, 0, 0],
    );
    batch.attr(RTA_GATEWAY, gateway);
    batch.number(RTA_OIF, index);
    batch.end();
}

fn add_address6(batch: &mut Batch, index: u32, address: Ipv6Addr) {
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    batch.begin(
        NEWADDR,
        CREATE,
        &[AF_INET6, PREFIX6, NO_DAD, 0, i0, i1, i2, i3],
    );
    batch.attr(IFA_ADDRESS, &address.octets());
    batch.end();
}

fn add_address(batch: &mut Batch, index: u32, address: Ipv4Addr) {
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    batch.begin(NEWADDR, CREATE, &[AF_INET, PREFIX, 0, 0, i0, i1, i2, i3]);
    batch.attr(IFA_LOCAL, &address.octets());
    batch.attr(IFA_ADDRESS, &address.octets());
    batch.end();
}

/// A link name with its NUL, in the kernel's fixed size.
fn c_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *place = byte;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_messages_carry_their_length() {
        let mut batch = Batch::new();
        batch.begin(NEWLINK, 0, &link_header(7, true));
        batch.attr(IFLA_IFNAME, b"abcde");
        batch.end();
        assert_eq!(batch.len, 16 + 16 + 12);
        assert_eq!(word(&batch.bytes, 0).map(u32::from_ne_bytes), Some(44));
        assert_eq!(word(&batch.bytes, 20).map(u32::from_ne_bytes), Some(7));
        assert_eq!(word(&batch.bytes, 32).map(u16::from_ne_bytes), Some(9));
        assert_eq!(
            word(&batch.bytes, 34).map(u16::from_ne_bytes),
            Some(IFLA_IFNAME)
        );
        assert_eq!(&batch.bytes[36..41], b"abcde");
    }

    #[test]
    fn a_refusal_is_the_error() {
        let mut message = [0; 36];
        message[0] = 36;
        message[4] = 2;
        assert_eq!(answers(&message).unwrap(), 1);
        message[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(answers(&message).unwrap_err().raw_os_error(), Some(17));
    }
}
