//! The hand-over: configuration, plan and descriptors, over the socket a supervisor is born with.
//!
//! The first message is a header; then come messages of at most 64 KiB, each with at most
//! [`FDS_PER_MESSAGE`] descriptors, until everything the header announced has arrived.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::SupervisorError;
use crate::error::kind_from;
use crate::frame::{FRAME_MAX, Frame};
use crate::start::raise_file_limit;

const MAGIC: &[u8; 8] = b"amphhand";
const VERSION: u8 = 2;
const HEADER_LEN: usize = 32;
/// Most descriptors in one message; the kernel allows 253.
const FDS_PER_MESSAGE: usize = 128;
const CHUNK: usize = 64 << 10;
/// Most bytes of configuration or plan; an argument list may take 2 MiB alone.
const BYTES_MAX: usize = 16 << 20;
/// Most descriptors of one kind.
const FDS_MAX: usize = 32_768;
/// Descriptors that fit beside our own into any sane limit.
const FDS_FEW: usize = 256;

const UNKNOWN: &str = "unknown header";

/// Why a supervisor is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To launch a plan.
    Launch,
    /// To take over from a killed supervisor.
    Adopt,
}

/// Everything that crosses.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) mode: Mode,
    /// Streams the starting process is attached to, 0 for none.
    pub(crate) attach: u8,
    pub(crate) config: Vec<u8>,
    pub(crate) plan: Vec<u8>,
    pub(crate) lock: OwnedFd,
    /// What the supervisor was executed from: closing it unmounts a clone, so it is kept.
    pub(crate) exe: OwnedFd,
    pub(crate) listeners: Vec<OwnedFd>,
    pub(crate) hold: Vec<OwnedFd>,
    pub(crate) plan_fds: Vec<OwnedFd>,
}

fn malformed(why: &str) -> SupervisorError {
    SupervisorError::Malformed {
        what: "hand-over",
        why: why.to_owned(),
    }
}

/// What the sender still owns.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) mode: Mode,
    /// Not sent; for messages.
    pub(crate) run_dir: &'a Path,
    pub(crate) attach: u8,
    pub(crate) config: &'a [u8],
    pub(crate) plan: &'a [u8],
    pub(crate) lock: BorrowedFd<'a>,
    pub(crate) exe: BorrowedFd<'a>,
    pub(crate) listeners: &'a [OwnedFd],
    pub(crate) hold: &'a [OwnedFd],
    pub(crate) plan_fds: &'a [OwnedFd],
}

impl Outgoing<'_> {
    fn header(&self) -> Result<[u8; HEADER_LEN], SupervisorError> {
        let long = |_| malformed("too much to hand over");
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(MAGIC);
        out[8] = VERSION;
        out[9] = u8::from(self.mode == Mode::Adopt);
        out[10] = self.attach;
        let lengths = [self.config.len(), self.plan.len()];
        for (place, len) in out[12..20].chunks_exact_mut(4).zip(lengths) {
            place.copy_from_slice(&u32::try_from(len).map_err(long)?.to_le_bytes());
        }
        let counts = [self.listeners.len(), self.hold.len(), self.plan_fds.len()];
        for (place, count) in out[20..26].chunks_exact_mut(2).zip(counts) {
            place.copy_from_slice(&u16::try_from(count).map_err(long)?.to_le_bytes());
        }
        Ok(out)
    }

    /// Sends everything; blocks while the other side reads.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> Result<(), SupervisorError> {
        let kernel = SupervisorError::kernel;
        send_part(socket, &self.header()?, &[]).map_err(kernel("hand over the header"))?;
        let lists = [self.listeners, self.hold, self.plan_fds];
        let fds: Vec<BorrowedFd<'_>> = [self.lock, self.exe]
            .into_iter()
            .chain(lists.into_iter().flatten().map(AsFd::as_fd))
            .collect();
        let mut batches = fds.chunks(FDS_PER_MESSAGE);
        for chunk in self.config.chunks(CHUNK).chain(self.plan.chunks(CHUNK)) {
            let batch = batches.next().unwrap_or(&[]);
            send_part(socket, chunk, batch).map_err(kernel("hand over the configuration"))?;
        }
        for batch in batches {
            send_part(socket, &[0], batch).map_err(kernel("hand over descriptors"))?;
        }
        Ok(())
    }
}

fn send_part(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    loop {
        match sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn receive_part(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, SupervisorError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // Said once when the sender ended without reading all of ours; what it sent follows.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other.map_err(SupervisorError::kernel("receive the hand-over"))?,
        }
    };
    if message.flags.contains(ReturnFlags::CTRUNC) {
        // They are closed already: whoever waited for them would wait for ever.
        return Err(SupervisorError::Kernel(
            "receive descriptors of the hand-over",
            Errno::MFILE.into(),
        ));
    }
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = part {
            fds.extend(arrived);
        }
    }
    if message.bytes == 0 {
        return Err(malformed("it ended early"));
    }
    Ok(message.bytes)
}

impl Handover {
    /// Receives everything; in its place may come word that there is nothing to launch.
    pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Self, SupervisorError> {
        let mut first = vec![0; FRAME_MAX];
        let mut fds = Vec::new();
        let n = receive_part(socket, &mut first, &mut fds)?;
        let first = first.get(..n).unwrap_or_default();
        if let Some(Frame::Failed { kind, errno, text }) = Frame::decode(first) {
            return Err(SupervisorError::Launch {
                message: text.to_owned(),
                errno,
                kind: kind_from(kind),
            });
        }
        let header: [u8; HEADER_LEN] = first.try_into().map_err(|_| malformed(UNKNOWN))?;
        if &header[0..8] != MAGIC || header[8] != VERSION {
            return Err(malformed(UNKNOWN));
        }
        let [config_len, plan_len] = [12, 16].map(|at| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
        });
        let counts =
            [20, 22, 24].map(|at| usize::from(u16::from_le_bytes([header[at], header[at + 1]])));
        if config_len > BYTES_MAX || plan_len > BYTES_MAX || counts.iter().any(|c| *c > FDS_MAX) {
            return Err(malformed("it is too large"));
        }
        let total = 2 + counts.iter().sum::<usize>();
        if total > FDS_FEW {
            raise_file_limit();
        }
        let config = receive_bytes(socket, config_len, &mut fds)?;
        let plan = receive_bytes(socket, plan_len, &mut fds)?;
        while fds.len() < total {
            receive_part(socket, &mut [0], &mut fds)?;
        }
        let mut fds = fds.into_iter();
        let lock = fds.next().ok_or_else(|| malformed("there is no lock"))?;
        let exe = fds.next();
        let exe = exe.ok_or_else(|| malformed("there is no program"))?;
        let mut take = |n: usize| fds.by_ref().take(n).collect::<Vec<_>>();
        Ok(Self {
            mode: if header[9] == 0 {
                Mode::Launch
            } else {
                Mode::Adopt
            },
            attach: header[10],
            config,
            plan,
            lock,
            exe,
            listeners: take(counts[0]),
            hold: take(counts[1]),
            plan_fds: take(counts[2]),
        })
    }
}

fn receive_bytes(
    socket: BorrowedFd<'_>,
    len: usize,
    fds: &mut Vec<OwnedFd>,
) -> Result<Vec<u8>, SupervisorError> {
    let mut bytes = vec![0; len];
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        let part = rest.len().min(CHUNK);
        let n = receive_part(socket, &mut rest[..part], fds)?;
        rest = &mut rest[n..];
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::fs::File;

    #[test]
    fn large_plans_and_many_descriptors_arrive_whole_and_in_order() {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let files: Vec<OwnedFd> = (0..300)
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect();
        let (three, rest) = files.split_at(3);
        let lock: OwnedFd = File::open("/dev/zero").unwrap().into();
        let config: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let sender = std::thread::spawn({
            let (three, rest) = (
                three
                    .iter()
                    .map(|f| f.try_clone().unwrap())
                    .collect::<Vec<_>>(),
                rest.iter()
                    .map(|f| f.try_clone().unwrap())
                    .collect::<Vec<_>>(),
            );
            let config = config.clone();
            let lock = lock.try_clone().unwrap();
            move || {
                Outgoing {
                    mode: Mode::Adopt,
                    run_dir: Path::new("/"),
                    attach: 6,
                    config: &config,
                    plan: b"plan",
                    lock: lock.as_fd(),
                    exe: lock.as_fd(),
                    listeners: &three,
                    hold: &[],
                    plan_fds: &rest,
                }
                .send(a.as_fd())
                .unwrap();
            }
        });
        let got = Handover::receive(b.as_fd()).unwrap();
        sender.join().unwrap();
        assert_eq!((got.mode, got.attach), (Mode::Adopt, 6));
        assert_eq!(got.config, config);
        assert_eq!(got.plan, b"plan");
        assert_eq!((got.listeners.len(), got.plan_fds.len()), (3, 297));
        let device = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_rdev;
        assert_eq!(device(&got.lock), device(&lock));
        assert_eq!(device(&got.plan_fds[296]), device(&files[0]));
    }

    #[test]
    fn descriptors_that_did_not_fit_are_an_error() {
        let (a, b) = amphora_sys::channel::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        let fds = [file.as_fd(); 2 * FDS_PER_MESSAGE - 10];
        amphora_sys::channel::send(a.as_fd(), &[1], &fds).unwrap();
        let received = receive_part(b.as_fd(), &mut [0], &mut Vec::new());
        let errno = received.unwrap_err().errno();
        assert_eq!(errno, Errno::MFILE.raw_os_error());
    }

    #[test]
    fn word_of_a_failure_arrives_from_a_sender_that_did_not_listen() {
        let (a, b) = amphora_sys::channel::pair().unwrap();
        amphora_sys::channel::send(b.as_fd(), &[0; 4], &[]).unwrap();
        let failed = Frame::Failed {
            kind: 0,
            errno: 0,
            text: "port is already allocated",
        };
        failed
            .send(a.as_fd(), rustix::net::SendFlags::empty())
            .unwrap();
        drop(a);
        let error = Handover::receive(b.as_fd()).unwrap_err();
        assert_eq!(error.to_string(), "port is already allocated");
    }

    #[test]
    fn a_dead_sender_and_garbage_are_refused() {
        let pair = || {
            socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .unwrap()
        };
        let (a, b) = pair();
        drop(a);
        assert!(Handover::receive(b.as_fd()).is_err());
        let (a, b) = pair();
        send_part(a.as_fd(), &[1; HEADER_LEN], &[]).unwrap();
        assert!(Handover::receive(b.as_fd()).is_err());
    }
}
