//! Messages of bytes and descriptors over a `SOCK_SEQPACKET` socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

/// The kernel's limit of descriptors in one message (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// Makes a connected pair of sockets.
///
/// # Errors
/// What `socketpair(2)` answers.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Sends one message.
///
/// # Errors
/// What `sendmsg(2)` answers; `InvalidInput` for more than [`MAX_FDS`] descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Sends one descriptor with a byte, without touching the heap.
pub(crate) fn send_one(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}

/// Receives one message of at most `limit` bytes; `None` when the other side has closed.
///
/// # Errors
/// What `recvmsg(2)` answers; `InvalidData` for a message that is longer or whose descriptors
/// were cut off (too many, or no room in the descriptor table).
pub fn recv(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let size = retry(|| {
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        rustix::net::recv(socket, &mut [0u8; 0], peek).map(|(_, size)| size)
    })?;
    if size > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0u8; size];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        ) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if message.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    Ok(Some((bytes, fds)))
}

fn retry<T>(mut f: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match f() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn bytes_and_descriptors_cross_together_and_the_end_is_seen() {
        let (a, b) = pair().unwrap();
        let file = std::fs::File::open("/proc/version").unwrap();
        send(a.as_fd(), b"hello", &[file.as_fd(), file.as_fd()]).unwrap();
        let (bytes, mut fds) = recv(b.as_fd(), 64).unwrap().unwrap();
        assert_eq!((&bytes[..], fds.len()), (&b"hello"[..], 2));
        let mut text = String::new();
        std::fs::File::from(fds.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert!(text.contains("Linux"));
        drop(a);
        assert!(recv(b.as_fd(), 64).unwrap().is_none());
    }

    #[test]
    fn messages_beyond_the_limits_are_refused() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[7; 65], &[]).unwrap();
        assert_eq!(
            recv(b.as_fd(), 64).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let many = vec![a.as_fd(); MAX_FDS + 1];
        assert!(send(a.as_fd(), b"x", &many).is_err());
        let most = vec![a.as_fd(); MAX_FDS];
        let (c, d) = pair().unwrap();
        send(c.as_fd(), b"x", &most).unwrap();
        assert_eq!(recv(d.as_fd(), 64).unwrap().unwrap().1.len(), MAX_FDS);
    }
}
