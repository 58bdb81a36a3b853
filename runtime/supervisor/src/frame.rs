//! The messages on `supervisor.sock`: one SEQPACKET message each, a type byte and a payload of at
//! most 64 KiB, integers little-endian. The table is in `docs/formats.md`.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Most bytes in one payload; also what a pipe holds.
pub(crate) const PAYLOAD_MAX: usize = 64 << 10;
/// Most bytes in one message.
pub(crate) const FRAME_MAX: usize = PAYLOAD_MAX + 1;
/// Most bytes of text in an error message.
const TEXT_MAX: usize = 16 << 10;

/// Streams in an attach message.
pub(crate) const STDIN: u8 = 1;
/// See [`STDIN`].
pub(crate) const STDOUT: u8 = 2;
/// See [`STDIN`].
pub(crate) const STDERR: u8 = 4;

/// Type byte of a message with standard output.
pub(crate) const TYPE_STDOUT: u8 = 0x41;
/// Type byte of a message with standard error.
pub(crate) const TYPE_STDERR: u8 = 0x42;
/// Type byte of a message with standard input.
pub(crate) const TYPE_STDIN: u8 = 0x02;
/// Type byte of the answer to [`Frame::Held`]; the descriptor comes with it.
pub(crate) const TYPE_HELD: u8 = 0x4e;
/// Type byte of a message that hands an exec session over; its descriptors come with it, so that
/// it is no [`Frame`].
pub(crate) const TYPE_EXEC: u8 = 0x07;
/// Type byte of a message that changes the container's ports; descriptors come with it too.
pub(crate) const TYPE_PORTS: u8 = 0x09;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// Client: send me these streams from now on.
    Attach(u8),
    /// Client: bytes for standard input; one message at a time, until `StdinReady`.
    Stdin(&'a [u8]),
    /// Client: no more standard input.
    StdinEof,
    /// Client: signal init; 0 means the container's stop signal.
    Signal(i32),
    /// Client: tell me the exit code when there is one.
    Wait,
    /// Client: no more streams; the container keeps its standard input.
    Detach,
    /// Client: the terminal has this size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
        /// Of which exec session; empty: the one that the client belongs to, or the container's.
        exec: &'a str,
    },
    /// Client: look again whether the container is to be restarted.
    Wake,
    /// Client: hand me the descriptor you hold that has this device and inode.
    Held {
        /// Device.
        dev: u64,
        /// Inode.
        ino: u64,
    },
    /// Supervisor: bytes of standard output.
    Stdout(&'a [u8]),
    /// Supervisor: bytes of standard error.
    Stderr(&'a [u8]),
    /// Supervisor: the container has ended, everything before this was its output.
    Exit {
        /// As in the exit record.
        code: i32,
        /// As in the exit record.
        signal: i32,
        /// As in the exit record.
        oom_killed: bool,
    },
    /// Supervisor: a request was refused.
    Error(&'a str),
    /// Supervisor: the last `Stdin` is written, the next one may come.
    StdinReady,
    /// Supervisor, to the maker of a check: the process of the check, which begins only now.
    Born {
        /// Its process id.
        pid: i32,
        /// When it was made, in clock ticks since boot.
        start: u64,
    },
    /// Supervisor, to whoever started it: init runs; 0 when it had ended already (adoption).
    Started(i32),
    /// Supervisor, to whoever started it: nothing runs and nothing is left.
    Failed {
        /// Class of the error.
        kind: u8,
        /// Error number, 0 when there is none.
        errno: i32,
        /// The failed step and its cause.
        text: &'a str,
    },
    /// Supervisor: attached; the streams begin after this.
    Attached,
    /// Supervisor: a signal was sent, or the terminal has its size.
    Done,
    /// Supervisor: so many bytes of output did not fit into the client's socket and are left out.
    Skipped(u64),
}

impl<'a> Frame<'a> {
    /// The message's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, number, bytes): (u8, Option<i32>, &[u8]) = match self {
            Self::Attach(streams) => return vec![0x01, *streams],
            Self::Stdin(bytes) => (TYPE_STDIN, None, bytes),
            Self::StdinEof => (0x03, None, &[]),
            Self::Signal(n) => (0x04, Some(*n), &[]),
            Self::Wait => (0x05, None, &[]),
            Self::Detach => (0x06, None, &[]),
            Self::Resize { rows, cols, exec } => {
                let mut out = vec![0x08];
                out.extend(rows.to_le_bytes());
                out.extend(cols.to_le_bytes());
                out.extend(exec.as_bytes());
                return out;
            }
            Self::Skipped(n) => {
                let mut out = vec![0x4a];
                out.extend(n.to_le_bytes());
                return out;
            }
            Self::Wake => (0x0f, None, &[]),
            Self::Held { dev, ino } => {
                let mut out = vec![0x0e];
                out.extend(dev.to_le_bytes());
                out.extend(ino.to_le_bytes());
                return out;
            }
            Self::Stdout(bytes) => (TYPE_STDOUT, None, bytes),
            Self::Stderr(bytes) => (TYPE_STDERR, None, bytes),
            Self::Exit {
                code,
                signal,
                oom_killed,
            } => {
                let mut out = vec![0x43];
                out.extend(code.to_le_bytes());
                out.extend(signal.to_le_bytes());
                out.push(u8::from(*oom_killed));
                return out;
            }
            Self::Error(text) => (0x44, None, cut(text).as_bytes()),
            Self::StdinReady => (0x45, None, &[]),
            Self::Born { pid, start } => {
                let mut out = vec![0x4b];
                out.extend(pid.to_le_bytes());
                out.extend(start.to_le_bytes());
                return out;
            }
            Self::Started(pid) => (0x46, Some(*pid), &[]),
            Self::Failed { kind, errno, text } => {
                let mut out = vec![0x47, *kind];
                out.extend(errno.to_le_bytes());
                out.extend(cut(text).as_bytes());
                return out;
            }
            Self::Attached => (0x48, None, &[]),
            Self::Done => (0x49, None, &[]),
        };
        let mut out = Vec::with_capacity(1 + bytes.len() + 4);
        out.push(kind);
        out.extend(number.into_iter().flat_map(i32::to_le_bytes));
        out.extend(bytes);
        out
    }

    /// Reads a message; `None` for an unknown or malformed one.
    pub(crate) fn decode(message: &'a [u8]) -> Option<Self> {
        let (kind, rest) = message.split_first()?;
        let number = |at: usize| {
            let bytes = rest.get(at..at + 4)?;
            Some(i32::from_le_bytes(bytes.try_into().ok()?))
        };
        Some(match kind {
            0x01 => Self::Attach(*rest.first()?),
            0x02 => Self::Stdin(rest),
            0x03 => Self::StdinEof,
            0x04 => Self::Signal(number(0)?),
            0x05 => Self::Wait,
            0x06 => Self::Detach,
            0x08 => Self::Resize {
                rows: u16::from_le_bytes(rest.get(..2)?.try_into().ok()?),
                cols: u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?),
                exec: std::str::from_utf8(rest.get(4..)?).ok()?,
            },
            0x4a => Self::Skipped(u64::from_le_bytes(rest.get(..8)?.try_into().ok()?)),
            0x0f => Self::Wake,
            0x0e => Self::Held {
                dev: u64::from_le_bytes(rest.get(..8)?.try_into().ok()?),
                ino: u64::from_le_bytes(rest.get(8..16)?.try_into().ok()?),
            },
            0x41 => Self::Stdout(rest),
            0x42 => Self::Stderr(rest),
            0x43 => Self::Exit {
                code: number(0)?,
                signal: number(4)?,
                oom_killed: *rest.get(8)? != 0,
            },
            0x44 => Self::Error(std::str::from_utf8(rest).ok()?),
            0x45 => Self::StdinReady,
            0x4b => Self::Born {
                pid: number(0)?,
                start: u64::from_le_bytes(rest.get(4..12)?.try_into().ok()?),
            },
            0x46 => Self::Started(number(0)?),
            0x47 => Self::Failed {
                kind: *rest.first()?,
                errno: number(1)?,
                text: std::str::from_utf8(rest.get(5..)?).ok()?,
            },
            0x48 => Self::Attached,
            0x49 => Self::Done,
            _ => return None,
        })
    }

    /// Sends the message; a full socket answers `EAGAIN` when `flags` say so.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, flags: SendFlags) -> Result<(), Errno> {
        send_bytes(socket, &self.encode(), flags)
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Sends one encoded message, never raising SIGPIPE.
pub(crate) fn send_bytes(
    socket: BorrowedFd<'_>,
    message: &[u8],
    flags: SendFlags,
) -> Result<(), Errno> {
    loop {
        match send(socket, message, flags | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Receives one message into `buffer`; 0 when the other side is gone.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<usize, Errno> {
    loop {
        match recv(socket, &mut *buffer, flags) {
            Ok((n, _)) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(0),
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_and_short_ones_are_refused() {
        let all = [
            Frame::Attach(7),
            Frame::Stdin(b"x"),
            Frame::StdinEof,
            Frame::Signal(15),
            Frame::Wait,
            Frame::Detach,
            Frame::Resize {
                rows: 24,
                cols: 80,
                exec: "ab12",
            },
            Frame::Skipped(1 << 40),
            Frame::Wake,
            Frame::Held {
                dev: 4,
                ino: 1 << 40,
            },
            Frame::Stdout(b"out"),
            Frame::Stderr(b""),
            Frame::Exit {
                code: 137,
                signal: 9,
                oom_killed: true,
            },
            Frame::Error("no"),
            Frame::StdinReady,
            Frame::Born {
                pid: 42,
                start: 1 << 40,
            },
            Frame::Started(42),
            Frame::Failed {
                kind: 3,
                errno: 2,
                text: "exec \"x\"",
            },
            Frame::Attached,
            Frame::Done,
        ];
        for frame in all {
            let bytes = frame.encode();
            assert_eq!(Frame::decode(&bytes), Some(frame));
        }
        for short in [
            &[][..],
            &[1],
            &[4, 0, 0],
            &[0x43, 0, 0, 0, 0],
            &[0x47, 1],
            &[0x08, 1, 0, 2],
            &[0x4a, 1],
            &[0x4b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            &[0x0e, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            &[0x99],
        ] {
            assert_eq!(Frame::decode(short), None, "{short:?}");
        }
    }

    #[test]
    fn long_errors_are_cut_at_a_character() {
        let text = "é".repeat(TEXT_MAX);
        let bytes = Frame::Error(&text).encode();
        assert!(bytes.len() <= TEXT_MAX + 1);
        assert!(Frame::decode(&bytes).is_some());
    }
}
