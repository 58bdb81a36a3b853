//! Filters that ask: the listener of a seccomp filter goes to whoever answers, over the socket that
//! the profile names, with the state of the process (`SCMP_ACT_NOTIFY`).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use amphora_spec::runtime::Spec;
use amphora_sys::launch::{Launched, Pending, start};
use amphora_sys::plan::LaunchPlan;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Result, RuncError};

/// How long who answers may take to be told.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who answers for a container's filter.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    path: String,
    metadata: String,
}

impl Agent {
    /// As the profile names them.
    pub(crate) fn of(spec: &Spec) -> Self {
        let named = spec.linux.seccomp.as_ref();
        named.map_or_else(Self::default, |seccomp| Self {
            path: seccomp.listener_path.clone(),
            metadata: seccomp.listener_metadata.clone(),
        })
    }
}

/// What a process with a filter that asks waits for; nothing when the plan has none.
pub(crate) fn expect(plan: &mut LaunchPlan) -> Result<Option<OwnedFd>> {
    if !plan.listens() {
        return Ok(None);
    }
    if !amphora_executor::is_privileged() {
        return Err(RuncError::unsupported(
            "linux.seccomp: SCMP_ACT_NOTIFY without the host's rights",
        ));
    }
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC).map_err(RuncError::file("failed to make a pipe"))?;
    plan.answer_filter(read, write.as_fd());
    Ok(Some(write))
}

/// Sends the listener of a process that has loaded its filter, and lets the process go on.
pub(crate) fn hand_over(
    pending: &Pending<'_>,
    ack: &OwnedFd,
    agent: &Agent,
    state: impl FnOnce() -> Result<serde_json::Value>,
) -> Result {
    let listener = pending.listener().map_err(RuncError::Launch)?;
    let message = serde_json::json!({
        "ociVersion": "1.2.1",
        "fds": ["seccompFd"],
        "pid": pending.launched().pid,
        "metadata": agent.metadata,
        "state": state()?,
    });
    let path = &agent.path;
    let failed = || RuncError::file(format!("failed to send the seccomp listener to {path}"));
    send(path, message.to_string().as_bytes(), &listener).map_err(failed())?;
    rustix::io::write(ack, &[1])
        .map(drop)
        .map_err(RuncError::file("failed to let the process go on"))
}

/// As [`amphora_sys::launch::launch`], for a plan whose filter may ask.
pub(crate) fn launch(
    plan: &mut LaunchPlan,
    agent: &Agent,
    state: impl FnOnce() -> Result<serde_json::Value>,
) -> Result<Launched> {
    let ack = expect(plan)?;
    let pending = start(plan).map_err(RuncError::Launch)?;
    if let Some(ack) = ack {
        hand_over(&pending, &ack, agent, state)?;
    }
    pending.finish().map_err(RuncError::Launch)
}

fn send(path: &str, bytes: &[u8], listener: &OwnedFd) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let mut rest = bytes;
    while !rest.is_empty() {
        let parts = [IoSlice::new(rest)];
        match sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(sent) => {
                // The descriptor went with the first part.
                control.clear();
                rest = rest.get(sent..).unwrap_or_default();
            }
        }
    }
    Ok(())
}
