//! Datagrams over IPv6 that are answered from the address they were sent to.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::datagram::set;

/// An address of the host's that a datagram was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Here {
    /// The address; `::`: any, the kernel chooses.
    pub address: Ipv6Addr,
    /// The link that an address of one link belongs to; 0: it does not matter.
    pub link: u32,
}

impl Here {
    const ANY: Self = Self {
        address: Ipv6Addr::UNSPECIFIED,
        link: 0,
    };

    fn new(address: Ipv6Addr, link: u32) -> Self {
        if address.is_multicast() {
            // Nothing may be sent from there.
            return Self::ANY;
        }
        let link = if address.is_unicast_link_local() {
            link
        } else {
            0
        };
        Self { address, link }
    }
}

/// One `struct in6_pktinfo` behind its header.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    info: libc::in6_pktinfo,
}

/// Length of a [`Control`] as the kernel counts it.
const CONTROL: usize = std::mem::offset_of!(Control, info) + size_of::<libc::in6_pktinfo>();

/// Has the kernel tell where each datagram was sent to; [`receive`] needs that.
///
/// # Errors
/// What `setsockopt(2)` answers.
pub fn tell_arrival(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on = 1_i32.to_ne_bytes();
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &on)
}

fn message(
    name: &mut libc::sockaddr_in6,
    part: &mut libc::iovec,
    control: &mut Control,
) -> libc::msghdr {
    // SAFETY: plain numbers and pointers, for which zeroes are values.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = std::ptr::from_mut(name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in6>()
        .try_into()
        .unwrap_or_default();
    message.msg_iov = std::ptr::from_mut(part);
    message.msg_iovlen = 1;
    message.msg_control = std::ptr::from_mut(control).cast();
    message.msg_controllen = size_of::<Control>().try_into().unwrap_or_default();
    message
}

/// Takes the next datagram, without waiting, and tells from whom and to where it came; `None`: it did
/// not come over IPv6. What does not fit is cut off.
///
/// # Errors
/// What `recvmsg(2)` answers.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<(SocketAddrV6, Here)>)> {
    // SAFETY: plain numbers, for which zeroes are values.
    let (mut name, mut control): (libc::sockaddr_in6, Control) = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut message = message(&mut name, &mut part, &mut control);
    // SAFETY: everything the message points at lives on this frame or in `bytes`, with the lengths
    // it says.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let n = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let told = usize::try_from(message.msg_controllen).unwrap_or(0) >= CONTROL
        && control.header.cmsg_level == libc::IPPROTO_IPV6
        && control.header.cmsg_type == libc::IPV6_PKTINFO;
    let here = if told {
        let address = Ipv6Addr::from(control.info.ipi6_addr.s6_addr);
        Here::new(address, control.info.ipi6_ifindex)
    } else {
        Here::ANY
    };
    if i32::from(name.sin6_family) != libc::AF_INET6 {
        return Ok((n, None));
    }
    let from = SocketAddrV6::new(
        Ipv6Addr::from(name.sin6_addr.s6_addr),
        u16::from_be(name.sin6_port),
        0,
        name.sin6_scope_id,
    );
    Ok((n, Some((from, here))))
}

/// Sends a datagram from an address of the host's, without waiting.
///
/// # Errors
/// What `sendmsg(2)` answers.
pub fn send(socket: BorrowedFd<'_>, from: Here, to: SocketAddrV6, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: plain numbers, for which zeroes are values.
    let (mut name, mut control): (libc::sockaddr_in6, Control) = unsafe { std::mem::zeroed() };
    name.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(10);
    name.sin6_port = to.port().to_be();
    name.sin6_addr.s6_addr = to.ip().octets();
    name.sin6_scope_id = to.scope_id();
    control.header.cmsg_len = CONTROL.try_into().unwrap_or_default();
    control.header.cmsg_level = libc::IPPROTO_IPV6;
    control.header.cmsg_type = libc::IPV6_PKTINFO;
    control.info.ipi6_addr.s6_addr = from.address.octets();
    control.info.ipi6_ifindex = from.link;
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let message = message(&mut name, &mut part, &mut control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: everything the message points at lives on this frame or in `bytes`, and is read only.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
