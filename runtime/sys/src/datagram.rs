//! Datagrams with an address of the sender's choice, and with what is known of how they came.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// How a datagram came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// What is left of its time to live: every router on its way took one.
    pub ttl: i32,
    /// Number of the link it came over.
    pub link: u32,
}

/// Room for what [`tell_arrival`] asks for.
#[repr(C, align(8))]
struct Room([u8; 128]);

/// Has the kernel tell of each datagram how it came; [`receive`] needs that.
///
/// # Errors
/// What `setsockopt(2)` answers.
pub fn tell_arrival(socket: BorrowedFd<'_>) -> io::Result<()> {
    for option in [libc::IP_RECVTTL, libc::IP_PKTINFO] {
        set(socket, libc::IPPROTO_IP, option, &1_i32.to_ne_bytes())?;
    }
    Ok(())
}

/// Has a socket send and receive over one link alone.
///
/// # Errors
/// What `setsockopt(2)` answers, `ENODEV` when there is no such link.
pub fn bind_to_link(socket: BorrowedFd<'_>, link: &str) -> io::Result<()> {
    set(
        socket,
        libc::SOL_SOCKET,
        libc::SO_BINDTODEVICE,
        link.as_bytes(),
    )
}

pub(crate) fn set(socket: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: `value` is that long, and is read only.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            length,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes the next datagram, without waiting, and how it came; `None`: it is not known how. What does
/// not fit is cut off.
///
/// # Errors
/// What `recvmsg(2)` answers.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<Arrival>)> {
    let mut room = Room([0; 128]);
    // SAFETY: plain numbers, for which zeroes are values.
    let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: plain numbers and pointers, for which zeroes are values.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = std::ptr::from_mut(&mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>()
        .try_into()
        .unwrap_or_default();
    message.msg_iov = std::ptr::from_mut(&mut part);
    message.msg_iovlen = 1;
    message.msg_control = std::ptr::from_mut(&mut room).cast();
    message.msg_controllen = size_of::<Room>().try_into().unwrap_or_default();
    // SAFETY: everything the message points at lives on this frame or in `bytes`, with the lengths
    // it says.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let n = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let told = usize::try_from(message.msg_controllen).unwrap_or(0);
    let known = arrival(room.0.get(..told).unwrap_or_default());
    let family = i32::from(name.sin_family) == libc::AF_INET;
    let whole = family && message.msg_flags & libc::MSG_CTRUNC == 0;
    let from = SocketAddrV4::new(
        Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes()),
        u16::from_be(name.sin_port),
    );
    let arrival = known.filter(|_| whole);
    Ok((n, arrival.map(|(ttl, link)| Arrival { from, ttl, link })))
}

/// Time to live and link, of control messages.
fn arrival(mut control: &[u8]) -> Option<(i32, u32)> {
    let (mut ttl, mut link) = (None, None);
    let head = std::mem::offset_of!(Control, info);
    while control.len() >= head {
        let word = |at: usize| -> Option<[u8; 4]> { control.get(at..at + 4)?.try_into().ok() };
        // The kernel's is of the size of a pointer, whatever a C library makes of it.
        let length = usize::from_ne_bytes(*control.first_chunk()?);
        let level = i32::from_ne_bytes(word(std::mem::offset_of!(libc::cmsghdr, cmsg_level))?);
        let kind = i32::from_ne_bytes(word(std::mem::offset_of!(libc::cmsghdr, cmsg_type))?);
        let value = word(head).filter(|_| length >= head + 4);
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TTL) => ttl = value.map(i32::from_ne_bytes),
            // Its first member is the number of the link.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => link = value.map(u32::from_ne_bytes),
            _ => {}
        }
        let step = length.max(head).next_multiple_of(size_of::<usize>());
        control = control.get(step..).unwrap_or_default();
    }
    ttl.zip(link)
}

/// One `struct in_pktinfo` behind its header.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    info: libc::in_pktinfo,
}

/// Sends a datagram from an address of the host's, whatever the socket is bound to, without waiting.
/// One that was bound to an address before the link that has it was up would else send from another.
///
/// # Errors
/// What `sendmsg(2)` answers.
pub fn send_from(
    socket: BorrowedFd<'_>,
    from: Ipv4Addr,
    to: SocketAddrV4,
    bytes: &[u8],
) -> io::Result<()> {
    let address = |ip: Ipv4Addr| libc::in_addr {
        s_addr: u32::from_ne_bytes(ip.octets()),
    };
    let family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2);
    let mut name = libc::sockaddr_in {
        sin_family: family,
        sin_port: to.port().to_be(),
        sin_addr: address(*to.ip()),
        sin_zero: [0; 8],
    };
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: plain numbers, for which zeroes are values.
    let mut control: Control = unsafe { std::mem::zeroed() };
    let length = std::mem::offset_of!(Control, info) + size_of::<libc::in_pktinfo>();
    control.header.cmsg_len = length.try_into().unwrap_or_default();
    control.header.cmsg_level = libc::IPPROTO_IP;
    control.header.cmsg_type = libc::IP_PKTINFO;
    control.info.ipi_spec_dst = address(from);
    // SAFETY: plain numbers and pointers, for which zeroes are values.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = std::ptr::from_mut(&mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>()
        .try_into()
        .unwrap_or_default();
    message.msg_iov = std::ptr::from_mut(&mut part);
    message.msg_iovlen = 1;
    message.msg_control = std::ptr::from_mut(&mut control).cast();
    message.msg_controllen = size_of::<Control>().try_into().unwrap_or_default();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: everything the message points at lives on this frame or in `bytes`, and is read only.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn how_a_datagram_came_is_told() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        tell_arrival(to.as_fd()).unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.set_ttl(77).unwrap();
        bind_to_link(from.as_fd(), "lo").unwrap();
        let error = bind_to_link(from.as_fd(), "no-such-link").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        let empty = receive(to.as_fd(), &mut [0; 4]).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 4];
        let (n, arrival) = receive(to.as_fd(), &mut buffer).unwrap();
        assert_eq!((n, &buffer), (4, b"hell"));
        let arrival = arrival.unwrap();
        assert_eq!((arrival.ttl, arrival.link), (77, 1));
        assert_eq!(
            std::net::SocketAddr::from(arrival.from),
            from.local_addr().unwrap()
        );
    }

    #[test]
    fn the_receiver_sees_the_chosen_address() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("0.0.0.0:0").unwrap();
        let std::net::SocketAddr::V4(address) = to.local_addr().unwrap() else {
            panic!("an IPv4 socket");
        };
        send_from(from.as_fd(), Ipv4Addr::new(127, 0, 0, 77), address, b"hi").unwrap();
        let mut buffer = [0; 8];
        let (n, sender) = to.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"hi");
        assert_eq!(sender.ip().to_string(), "127.0.0.77");
        assert_eq!(sender.port(), from.local_addr().unwrap().port());
    }
}
