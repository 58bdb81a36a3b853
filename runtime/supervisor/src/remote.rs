//! Lines that are sent away: to the journal, to syslog. A datagram each, never waited for.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
};

use crate::clock;
use crate::config::{LogRemote, SyslogAddress};
use crate::jsonlog::Stream;

/// Severities of syslog: what is written to standard output, and to standard error.
const INFO: u8 = 6;
const ERROR: u8 = 3;

/// One receiver of lines.
#[derive(Debug)]
pub(crate) struct Remote {
    what: LogRemote,
    socket: Option<OwnedFd>,
    message: Vec<u8>,
    dropped: u64,
}

impl Remote {
    /// Opens nothing yet.
    pub(crate) fn new(what: &LogRemote) -> Self {
        Self {
            what: what.clone(),
            socket: None,
            message: Vec::new(),
            dropped: 0,
        }
    }

    /// Bytes of lines that were not taken.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Sends one line, or what there is of it.
    pub(crate) fn send(&mut self, stream: Stream, text: &[u8], ended: bool) {
        let severity = match stream {
            Stream::Stdout => INFO,
            Stream::Stderr => ERROR,
        };
        self.message.clear();
        let sent = match &self.what {
            LogRemote::Journald { socket, fields } => {
                journal_entry(&mut self.message, severity, text, ended, fields);
                let at = SocketAddrUnix::new(socket.as_path());
                at.and_then(|at| deliver(&mut self.socket, &self.message, &Target::Unix(at)))
            }
            LogRemote::Syslog {
                address,
                facility,
                tag,
            } => {
                syslog_message(&mut self.message, (facility << 3) | severity, tag, text);
                target(address).and_then(|at| deliver(&mut self.socket, &self.message, &at))
            }
        };
        if sent.is_err() {
            self.dropped += text.len() as u64;
        }
    }
}

enum Target {
    Unix(SocketAddrUnix),
    Udp(SocketAddr),
}

fn target(address: &SyslogAddress) -> Result<Target, Errno> {
    match address {
        SyslogAddress::Unix(path) => SocketAddrUnix::new(path.as_path() as &Path).map(Target::Unix),
        SyslogAddress::Udp(address) => Ok(Target::Udp(*address)),
    }
}

fn deliver(socket: &mut Option<OwnedFd>, message: &[u8], to: &Target) -> Result<(), Errno> {
    let family = match to {
        Target::Unix(_) => AddressFamily::UNIX,
        Target::Udp(SocketAddr::V4(_)) => AddressFamily::INET,
        Target::Udp(SocketAddr::V6(_)) => AddressFamily::INET6,
    };
    let socket = match socket {
        Some(socket) => socket,
        None => socket.insert(socket_with(
            family,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?),
    };
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match to {
        Target::Unix(at) => sendto(&*socket, message, flags, at)?,
        Target::Udp(at) => sendto(&*socket, message, flags, at)?,
    };
    Ok(())
}

/// An entry in the journal's native protocol: `KEY=value` lines; a value with a line end in it as
/// its key, its length in eight bytes and itself.
fn journal_entry(
    out: &mut Vec<u8>,
    severity: u8,
    text: &[u8],
    ended: bool,
    fields: &[(String, String)],
) {
    field(out, "PRIORITY", &[b'0' + severity]);
    field(
        out,
        "SYSLOG_TIMESTAMP",
        clock::text(clock::now()).as_bytes(),
    );
    for (key, value) in fields {
        field(out, key, value.as_bytes());
    }
    if !ended {
        field(out, "CONTAINER_PARTIAL_MESSAGE", b"true");
    }
    field(out, "MESSAGE", text);
}

fn field(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend(key.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend((value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend(value);
    out.push(b'\n');
}

/// A message as `syslog(3)` writes it, in UTC.
fn syslog_message(out: &mut Vec<u8>, priority: u8, tag: &str, text: &[u8]) {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let now = clock::text(clock::now());
    let part = |from: usize, to: usize| now.get(from..to).unwrap_or_default();
    let month = part(5, 7).parse::<usize>().unwrap_or(1);
    let month = MONTHS.get(month.saturating_sub(1)).unwrap_or(&"Jan");
    let day = part(8, 10).trim_start_matches('0');
    let pid = std::process::id();
    let time = part(11, 19);
    let _ = write!(out, "<{priority}>{month} {day:>2} {time} {tag}[{pid}]: ");
    out.extend(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_in_the_journal_s_own_protocol() {
        let mut out = Vec::new();
        let fields = [("CONTAINER_NAME".to_owned(), "web".to_owned())];
        journal_entry(&mut out, ERROR, b"two\nlines", false, &fields);
        let text = String::from_utf8_lossy(&out);
        assert!(text.starts_with("PRIORITY=3\nSYSLOG_TIMESTAMP=20"));
        assert!(text.contains("\nCONTAINER_NAME=web\nCONTAINER_PARTIAL_MESSAGE=true\n"));
        assert!(out.ends_with(b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n"));
    }

    #[test]
    fn messages_are_as_syslog_writes_them() {
        let mut out = Vec::new();
        syslog_message(&mut out, 30, "web", b"hello");
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("<30>"), "{text}");
        assert!(text.ends_with(&format!(" web[{}]: hello", std::process::id())));
        assert_eq!(
            text.len() - "<30>".len(),
            "Jan  2 15:04:05 ".len() + text.len() - text.find(" web").unwrap() - 1
        );
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted() {
        let mut remote = Remote::new(&LogRemote::Syslog {
            address: SyslogAddress::Unix("/nonexistent/log".into()),
            facility: 3,
            tag: "x".to_owned(),
        });
        remote.send(Stream::Stdout, b"12345", true);
        assert_eq!(remote.dropped(), 5);
    }
}
