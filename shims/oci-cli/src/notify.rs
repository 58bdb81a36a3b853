//! `NOTIFY_SOCKET`: a service manager that has started us hears when the container is ready. The
//! container gets a socket of its own; of what is said there, `READY=` goes on to the manager, with the
//! number of the process that it is to watch from then on.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use amphora_spec::runtime::{Mount, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, recv, send, sendmsg, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Result, RuncError};
use crate::log::Log;
use crate::state::Container;

/// The socket's name in its directory.
const SOCKET: &str = "notify.sock";
/// Where the container finds that directory.
const INSIDE: &str = "/run/notify";
/// The longest message that is read whole.
const MESSAGE: usize = 4096;
/// How long the manager may take to hear us.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the service manager listens.
fn manager() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

/// Gives the container a place for its socket, if a service manager has started us.
pub(crate) fn announce(container: &Container, spec: &mut Spec) -> Result {
    if manager().is_none() {
        return Ok(());
    }
    let dir = container.notify();
    let failed = || RuncError::file(format!("failed to make {}", dir.display()));
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o755).create(&dir).map_err(failed())?;
    // A process without a mask of ours may have to look in.
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).map_err(failed())?;
    let source = std::fs::canonicalize(&dir).map_err(failed())?;
    let source = source.into_os_string().into_string();
    spec.mounts.push(Mount {
        destination: INSIDE.to_owned(),
        source: source.map_err(|_| RuncError::usage("--root: is not UTF-8"))?,
        options: ["bind", "nosuid", "noexec", "nodev", "ro"]
            .map(str::to_owned)
            .to_vec(),
        ..Mount::default()
    });
    let variable = format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}");
    spec.process.env.push(variable);
    Ok(())
}

/// The container's socket, and the way to the manager.
#[derive(Debug)]
pub(crate) struct Notify {
    own: OwnedFd,
    manager: OwnedFd,
}

impl Notify {
    /// Begins to listen, before the program runs; nothing where nobody wants to hear. A manager that
    /// cannot be reached keeps no container from running.
    pub(crate) fn listen(container: &Container, log: &Log) -> Result<Option<Self>> {
        let Some(name) = manager() else {
            return Ok(None);
        };
        let dir = container.notify();
        if !dir.is_dir() {
            // It was made for nobody.
            return Ok(None);
        }
        let manager = match reach(&name) {
            Ok(manager) => manager,
            Err(error) => {
                let name = Path::new(&name).display();
                log.warning(&format!("failed to reach NOTIFY_SOCKET {name}: {error}"));
                return Ok(None);
            }
        };
        let failed = RuncError::file(format!("failed to listen in {}", dir.display()));
        let own = listen_in(&dir).map_err(failed)?;
        Ok(Some(Self { own, manager }))
    }

    /// To be waited on.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }

    /// Reads some of what there is, and tells the manager if the container is ready; whether it is.
    pub(crate) fn hear(&self, watch: i32) -> io::Result<bool> {
        /// Messages that are read at once: whoever sends on and on holds nothing else up.
        const AT_ONCE: usize = 16;
        for _ in 0..AT_ONCE {
            let mut buffer = [0_u8; MESSAGE];
            let length = match recv(&self.own, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let message = buffer.get(..length).unwrap_or_default();
            let Some(line) = ready(message) else { continue };
            self.tell(&[line, b"\n"].concat())?;
            self.tell(format!("MAINPID={watch}\n").as_bytes())?;
            return Ok(true);
        }
        Ok(false)
    }

    fn tell(&self, message: &[u8]) -> io::Result<()> {
        send(&self.manager, message, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits until the container's process is ready or has ended; then until the manager has heard it,
    /// which asks who we were.
    pub(crate) fn follow(self, process: BorrowedFd<'_>, watch: i32) -> io::Result<()> {
        loop {
            let mut fds = [
                PollFd::new(&self.own, PollFlags::IN),
                PollFd::from_borrowed_fd(process, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let [_, ended] = fds.map(|fd| !fd.revents().is_empty());
            if self.hear(watch)? {
                return self.barrier();
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// The manager closes what it is sent when it has come to it (`sd_notify_barrier`).
    fn barrier(&self) -> io::Result<()> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [write.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let parts = [IoSlice::new(b"BARRIER=1")];
        sendmsg(&self.manager, &parts, &mut control, SendFlags::NOSIGNAL)?;
        drop(write);
        let timeout = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The line that says so.
fn ready(message: &[u8]) -> Option<&[u8]> {
    let mut lines = message.split(|byte| *byte == b'\n');
    lines.find(|line| line.starts_with(b"READY="))
}

fn datagrams() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
}

/// A socket that leads to the manager's: of a file, or after `@` of a name alone.
fn reach(name: &OsStr) -> io::Result<OwnedFd> {
    let socket = datagrams()?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(Path::new(name))?,
    };
    connect(&socket, &address)?;
    Ok(socket)
}

/// Everybody in the container may write to it. The directory's path may be longer than an address.
fn listen_in(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = openat(CWD, dir, flags, Mode::empty())?;
    let path: PathBuf = format!("/proc/self/fd/{}/{SOCKET}", place.as_raw_fd()).into();
    // One of a start that failed.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = datagrams()?;
    bind(&socket, &SocketAddrUnix::new(&path)?)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_a_line_of_its_own() {
        assert_eq!(ready(b"READY=1"), Some(&b"READY=1"[..]));
        assert_eq!(ready(b"STATUS=x\nREADY=1\n"), Some(&b"READY=1"[..]));
        assert_eq!(ready(b"STATUS=READY=1"), None);
        assert_eq!(ready(b""), None);
    }
}
