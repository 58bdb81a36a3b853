//! What a supervisor holds for its container and hands on to whoever starts another: the mount
//! namespaces that keep the file systems of volumes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use amphora_sys::channel;
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::SupervisorError;
use crate::client::Client;
use crate::frame::{FRAME_MAX, Frame, TYPE_HELD};
use crate::server::Server;

/// Longest wait for the answer of a supervisor.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

impl Server {
    /// Answers with the descriptor that has this device and inode.
    pub(crate) fn hand_out(&mut self, client: usize, wanted: (u64, u64)) -> Result<(), Errno> {
        let is = |fd: &&OwnedFd| fstat(fd).is_ok_and(|s| (s.st_dev, s.st_ino) == wanted);
        let found = self.parts.hold.iter().find(is);
        let Some(client) = self.clients.get(client) else {
            return Ok(());
        };
        let socket = client.socket.as_fd();
        match found {
            Some(fd) => send(socket, fd.as_fd()),
            None => Frame::Error("there is no such descriptor").send(socket, SendFlags::DONTWAIT),
        }
    }
}

fn send(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    channel::send(socket, &[TYPE_HELD], &[fd])
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Asks the supervisor of a container that runs for the descriptor that has this device and inode;
/// nothing when it does not hold it, is about to end, or is of a version that hands nothing on.
///
/// # Errors
/// When it does not answer.
pub fn held(run_dir: &Path, dev: u64, ino: u64) -> Result<Option<OwnedFd>, SupervisorError> {
    let client = match Client::connect(run_dir) {
        Err(SupervisorError::NotRunning(_)) => return Ok(None),
        other => other?,
    };
    let failed = || {
        let run_dir = run_dir.to_owned();
        move |e: std::io::Error| SupervisorError::file("ask the supervisor in", &run_dir, e)
    };
    set_socket_timeout(&client, Timeout::Recv, Some(ANSWER_TIMEOUT))
        .map_err(|e| failed()(e.into()))?;
    client.send(&Frame::Held { dev, ino })?;
    match channel::recv(client.as_fd(), FRAME_MAX) {
        Ok(Some((bytes, mut fds))) if bytes.first() == Some(&TYPE_HELD) => Ok(fds.pop()),
        Ok(_) => Ok(None),
        Err(e) if e.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => Ok(None),
        Err(e) => Err(failed()(e)),
    }
}
