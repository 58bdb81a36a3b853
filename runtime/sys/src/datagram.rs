//! Datagrams with an address of the sender's choice.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

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
