//! Netlink sockets: one datagram out, the kernel's answers in, with its extended error texts.
//!
//! The kernel works a datagram off before `send` returns, so the answers are read without ever
//! waiting. Encoding is the business of whoever makes the messages; this file knows the common
//! header and the acknowledgement only.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Netlink protocol of links, addresses and routes.
pub const ROUTE: u32 = 0;
/// Netlink protocol of nftables.
pub const NETFILTER: u32 = 12;

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// `NLM_F_ACK`.
pub const F_ACK: u16 = 0x4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_CAPPED: u16 = 0x100;
const F_ACK_TLVS: u16 = 0x200;
const ERR_ATTR_MSG: u16 = 1;
/// Larger than any datagram the kernel makes for a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// A batch larger than this needs a larger send buffer.
const SEND_BYTES_PLAIN: usize = 64 * 1024;

/// A refusal by the kernel.
#[derive(Debug, thiserror::Error)]
#[error("netlink message {sequence} was refused{}", .text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default())]
pub struct NetlinkError {
    /// Sequence number of the refused message; 0 when the exchange itself failed.
    pub sequence: u32,
    /// The kernel's own explanation, where it gives one.
    pub text: Option<String>,
    /// The error number.
    #[source]
    pub source: io::Error,
}

impl NetlinkError {
    /// Says whether the kernel answered with this error number.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }

    fn exchange(errno: Errno) -> Self {
        Self {
            sequence: 0,
            text: None,
            source: errno.into(),
        }
    }
}

/// One message of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Message type.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Sequence number of the request it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// A netlink socket; it belongs to the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What `socket(2)` and `setsockopt(2)` answer.
    pub fn open(protocol: u32) -> io::Result<Self> {
        const NETLINK_CAP_ACK: libc::c_int = 10;
        const NETLINK_EXT_ACK: libc::c_int = 11;
        let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        set_option(fd.as_fd(), libc::SOL_NETLINK, NETLINK_EXT_ACK, 1)?;
        set_option(fd.as_fd(), libc::SOL_NETLINK, NETLINK_CAP_ACK, 1)?;
        Ok(Self { fd })
    }

    /// Sends messages as one datagram and waits for the answer to the last one that asks for an
    /// acknowledgement. Messages before it need no `NLM_F_ACK`: a refusal is always told.
    ///
    /// # Errors
    /// The first refusal.
    pub fn transact(&self, batch: &[u8]) -> Result<(), NetlinkError> {
        self.exchange(batch, &mut |_| ())
    }

    /// Sends one request and gives every message of the answer to `each`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn request(
        &self,
        message: &[u8],
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.exchange(message, each)
    }

    fn exchange(
        &self,
        batch: &[u8],
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.send_all(batch)?;
        let last = last_acknowledged(batch);
        let mut buffer = take_buffer();
        let result = self.receive(last, &mut buffer, each);
        BUFFER.set(buffer);
        result
    }

    fn receive(
        &self,
        last: Option<u32>,
        buffer: &mut [u8],
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        let mut refused: Option<NetlinkError> = None;
        loop {
            let got = match recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, got)) => got.min(buffer.len()),
                Err(Errno::INTR) => continue,
                // Nothing more will come: a batch refused as a whole has no last answer.
                Err(Errno::AGAIN) => {
                    return Err(refused.unwrap_or_else(|| NetlinkError::exchange(Errno::PROTO)));
                }
                Err(errno) => return Err(refused.unwrap_or_else(|| NetlinkError::exchange(errno))),
            };
            let mut done = false;
            for message in messages(buffer.get(..got).unwrap_or_default()) {
                match message.kind {
                    NLMSG_ERROR => {
                        if let Some(error) = refusal(&message) {
                            refused.get_or_insert(error);
                        }
                        done |= Some(message.sequence) == last;
                    }
                    NLMSG_DONE => done = true,
                    _ => each(message),
                }
            }
            if done {
                return refused.map_or(Ok(()), Err);
            }
        }
    }

    fn send_all(&self, batch: &[u8]) -> Result<(), NetlinkError> {
        if batch.len() > SEND_BYTES_PLAIN {
            let size = libc::c_int::try_from(batch.len().saturating_mul(2)).unwrap_or(i32::MAX);
            set_option(
                self.fd.as_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                size,
            )
            .map_err(|source| NetlinkError {
                sequence: 0,
                text: None,
                source,
            })?;
        }
        let sent = send(&self.fd, batch, SendFlags::empty()).map_err(NetlinkError::exchange)?;
        if sent == batch.len() {
            Ok(())
        } else {
            Err(NetlinkError::exchange(Errno::MSGSIZE))
        }
    }
}

/// Returns the index of a link that is there and turned on. Unlike a netlink message this waits
/// for nobody: the kernel may be taking a namespace apart, and messages queue behind that.
///
/// # Errors
/// What `ioctl(2)` answers otherwise.
pub fn index_if_up(socket: &Socket, name: &str) -> io::Result<Option<u32>> {
    let Some(index) = interface(socket, libc::SIOCGIFINDEX as libc::c_long, name)? else {
        return Ok(None);
    };
    let flags = interface(socket, libc::SIOCGIFFLAGS as libc::c_long, name)?;
    let up = flags.is_some_and(|[low, ..]| libc::c_int::from(low) & libc::IFF_UP != 0);
    Ok(up.then(|| u32::from_ne_bytes(index)))
}

/// Asks about an interface; `None` when there is none of this name.
fn interface(socket: &Socket, ask: libc::c_long, name: &str) -> io::Result<Option<[u8; 4]>> {
    /// `struct ifreq`.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        answer: [u8; 24],
    }
    let mut request = Request {
        name: [0; 16],
        answer: [0; 24],
    };
    let Some(place) = request.name.get_mut(..name.len()).filter(|p| p.len() < 16) else {
        return Ok(None);
    };
    place.copy_from_slice(name.as_bytes());
    // SAFETY: these commands read the name from, and write the answer to, a `struct ifreq`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            libc::c_long::from(socket.fd.as_raw_fd()),
            ask,
            std::ptr::from_mut(&mut request),
        )
    };
    if result == 0 {
        return Ok(request.answer.first_chunk().copied());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        error => Err(error),
    }
}

thread_local! {
    /// Room for one datagram, kept from one exchange to the next.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn take_buffer() -> Vec<u8> {
    let mut buffer = BUFFER.take();
    if buffer.is_empty() {
        buffer = vec![0; RECEIVE_BYTES];
    }
    buffer
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

/// Carries out [`amphora_spec::release::Release::Netlink`]: sends one prepared datagram from the
/// calling thread's network namespace. What is gone already is fine.
///
/// The socket is handed back to be closed when nobody waits any more: closing a netfilter socket
/// while removed elements await their RCU grace period blocks until it is over, 10 ms and more.
///
/// # Errors
/// Every refusal other than "no such object".
#[must_use = "closing the socket may block: keep it until nobody waits"]
pub fn replay(protocol: u32, batch: &[u8]) -> Result<Socket, NetlinkError> {
    let socket = Socket::open(protocol).map_err(|source| NetlinkError {
        sequence: 0,
        text: None,
        source,
    })?;
    match socket.transact(batch) {
        Err(error) if error.is(Errno::NOENT) || error.is(Errno::NODEV) => Ok(socket),
        Err(error) => Err(error),
        Ok(()) => Ok(socket),
    }
}

/// Walks the messages of a datagram; a malformed length ends it.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let payload = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Walks attributes (type without its flag bits, payload).
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

fn last_acknowledged(batch: &[u8]) -> Option<u32> {
    const F_DUMP: u16 = 0x300;
    messages(batch)
        .filter(|m| m.flags & F_ACK != 0 || m.flags & F_DUMP == F_DUMP)
        .last()
        .map(|m| m.sequence)
}

fn refusal(message: &Message<'_>) -> Option<NetlinkError> {
    let code = u32_at(message.payload, 0)?.cast_signed();
    if code == 0 {
        return None;
    }
    let mut text = None;
    if message.flags & F_ACK_TLVS != 0 {
        // The refused message's header follows the code, and its payload unless capped.
        let inner = usize::try_from(u32_at(message.payload, 4)?).ok()?;
        let skip = if message.flags & F_CAPPED != 0 {
            HEADER
        } else {
            inner.max(HEADER)
        };
        let tlvs = message
            .payload
            .get(4 + skip.next_multiple_of(4)..)
            .unwrap_or_default();
        text = attributes(tlvs)
            .find(|(kind, _)| *kind == ERR_ATTR_MSG)
            .map(|(_, bytes)| {
                String::from_utf8_lossy(bytes)
                    .trim_end_matches('\0')
                    .to_owned()
            });
    }
    let source = io::Error::from_raw_os_error(code.saturating_neg());
    Some(NetlinkError {
        sequence: message.sequence,
        text,
        source,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: `value` lives on this frame for the call and its size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link_query(name: &str, flags: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 16];
        let mut attribute = vec![0, 0, 3, 0];
        attribute.extend(name.as_bytes());
        attribute.push(0);
        let length = u16::try_from(attribute.len()).unwrap();
        attribute[..2].copy_from_slice(&length.to_ne_bytes());
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        bytes.extend(attribute);
        let total = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&total.to_ne_bytes());
        bytes[4..6].copy_from_slice(&18u16.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | 1).to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    #[test]
    fn the_loopback_link_answers() {
        let socket = Socket::open(ROUTE).unwrap();
        let mut seen = 0;
        socket
            .request(&link_query("lo", F_ACK, 7), &mut |m| {
                seen += u32::from(m.kind == 16);
            })
            .unwrap();
        assert_eq!(seen, 1);
    }

    #[test]
    fn links_are_asked_for_without_a_message() {
        let socket = Socket::open(ROUTE).unwrap();
        // Whether it is up is the namespace's business.
        let index = index_if_up(&socket, "lo").unwrap();
        assert!(index.is_none_or(|index| index == 1), "{index:?}");
        assert_eq!(index_if_up(&socket, "no-such-link").unwrap(), None);
        assert_eq!(index_if_up(&socket, &"x".repeat(40)).unwrap(), None);
    }

    #[test]
    fn a_missing_link_is_refused_with_its_number() {
        let socket = Socket::open(ROUTE).unwrap();
        let error = socket
            .transact(&link_query("no-such-link", F_ACK, 9))
            .unwrap_err();
        assert!(error.is(Errno::NODEV), "{error:?}");
        assert_eq!(error.sequence, 9);
        replay(ROUTE, &link_query("no-such-link", F_ACK, 9)).unwrap();
    }
}
