//! Whoever waits at a console socket.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Takes one terminal at `console`, and writes what comes out of it to what the container says.
pub(crate) fn listen(dir: &Path) {
    let listener = UnixListener::bind(dir.join("console")).expect("console socket");
    let said = dir.join("said.out");
    std::thread::spawn(move || {
        let (connection, _) = listener.accept().ok()?;
        let mut terminal = std::fs::File::from(receive(&connection)?);
        let mut bytes = [0; 4096];
        // At its end a terminal gives an error.
        while let Ok(n @ 1..) = terminal.read(&mut bytes) {
            let mut file = std::fs::OpenOptions::new().append(true).open(&said).ok()?;
            file.write_all(bytes.get(..n)?).ok()?;
        }
        Some(())
    });
}

fn receive(connection: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let mut into = [IoSliceMut::new(&mut bytes)];
    recvmsg(connection, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}
