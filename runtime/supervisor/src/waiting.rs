//! A supervisor that is started ahead of its container: it comes up, and makes what every
//! container needs, while the engine prepares the rest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use amphora_cgroup::SupervisorCgroup;
use amphora_names::Place;
use amphora_sys::{LaunchPlan, Launched, channel, pidfd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use crate::SupervisorError;
use crate::client::{AttachMode, Client};
use crate::config::Config;
use crate::error::kind_from;
use crate::files::open_dir;
use crate::frame::Frame;
use crate::handover::{Mode, Outgoing};
use crate::shared_base;
use crate::spawn::{Spawned, execute};
use crate::start::{HANDOVER_FD, KILL};

/// Argument of a supervisor that makes the container's network namespace.
pub(crate) const NETNS: &str = "netns";
/// Arguments of one that makes the sockets of its name server too: where they are to be.
pub(crate) const NAMES: &str = "names";
pub(crate) const NAMES_ASIDE: &str = "names-aside";
/// Longest message before the hand-over.
const EARLY_MAX: usize = 16;

/// What a supervisor makes while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ahead {
    /// A network namespace with the settings of a container's, for [`Waiting::netns`].
    pub netns: bool,
    /// In it, the sockets of a name server; not on record, where [`Config::names`] says it.
    #[serde(skip)]
    pub names: Option<Place>,
}

/// What a waiting supervisor is given; as in [`crate::SpawnRequest`].
#[derive(Debug)]
pub struct Charge {
    /// What it is told.
    pub config: Config,
    /// What it launches.
    pub plan: LaunchPlan,
    /// The container's lock.
    pub lock: OwnedFd,
    /// Sockets for [`Config::listeners`].
    pub listeners: Vec<OwnedFd>,
    /// Descriptors held until the container ends.
    pub hold: Vec<OwnedFd>,
    /// Streams to be attached to from the first byte on.
    pub attach: Option<AttachMode>,
    /// Whether the container's program waits for [`Launching::go`].
    pub gated: bool,
}

/// A supervisor without a container. Dropped, it ends and is reaped.
#[derive(Debug)]
pub struct Waiting<'a> {
    process: Process,
    exe: &'a OwnedFd,
}

/// A supervisor that is about to launch its container. Dropped before [`Launching::answered`],
/// a gated one launches nothing, ends and is reaped.
#[derive(Debug)]
pub struct Launching {
    process: Process,
    gate: Option<OwnedFd>,
    run_dir: PathBuf,
    attached: bool,
}

/// The started process and our end of its socket.
#[derive(Debug)]
struct Process {
    /// `None` once it lives for itself.
    launched: Option<Launched>,
    socket: Option<OwnedFd>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Without the socket it ends.
        self.socket = None;
        if let Some(launched) = &self.launched {
            reap(launched.pid);
        }
    }
}

impl Process {
    fn socket(&self) -> Result<BorrowedFd<'_>, SupervisorError> {
        let closed = || SupervisorError::Kernel("reach the supervisor", Errno::BADF.into());
        self.socket.as_ref().map(AsFd::as_fd).ok_or_else(closed)
    }

    fn kill(&self) {
        if let Some(launched) = &self.launched {
            let _ = pidfd::signal(launched.pidfd.as_fd(), KILL);
        }
    }

    fn pid(&self) -> i32 {
        self.launched.as_ref().map_or(0, |launched| launched.pid)
    }
}

impl Ahead {
    /// The arguments that ask for it.
    pub(crate) fn words(self) -> &'static [&'static str] {
        match (self.netns, self.names) {
            (false, _) => &[],
            (true, None) => &[NETNS],
            (true, Some(Place::Here)) => &[NETNS, NAMES],
            (true, Some(Place::Aside)) => &[NETNS, NAMES_ASIDE],
        }
    }
}

impl<'a> Waiting<'a> {
    /// Takes the supervisor that started this process to prepare its next run.
    ///
    /// # Errors
    /// When it is gone.
    pub fn inherited(socket: OwnedFd, exe: &'a OwnedFd) -> Result<Self, SupervisorError> {
        let gone = SupervisorError::Died { pid: 0 };
        let parent = rustix::process::getppid().ok_or(gone)?;
        let pidfd = rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty())
            .map_err(SupervisorError::kernel("open the supervisor"))?;
        // It is nobody's child that is reaped here: waiting for it fails at once.
        let launched = Launched {
            pid: parent.as_raw_nonzero().get(),
            pidfd,
        };
        Ok(Self {
            process: Process {
                launched: Some(launched),
                socket: Some(socket),
            },
            exe,
        })
    }

    /// Starts a supervisor for the container with this run directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        exe: &'a OwnedFd,
        argv: &[&str],
        cgroup: Option<&SupervisorCgroup>,
        ahead: Ahead,
        run_dir: &Path,
    ) -> Result<Self, SupervisorError> {
        let pair = channel::pair();
        let (ours, theirs) = pair.map_err(|e| SupervisorError::Kernel("make a socket pair", e))?;
        let base = shared_base::word(run_dir);
        let more = ahead.words().iter().copied().chain(base.as_deref());
        let argv: Vec<&str> = argv.iter().copied().chain(more).collect();
        let launched = execute(exe, &argv, cgroup, (theirs.as_fd(), HANDOVER_FD))?;
        Ok(Self {
            process: Process {
                launched: Some(launched),
                socket: Some(ours),
            },
            exe,
        })
    }

    /// Takes the network namespace it was asked for ([`Ahead::netns`]), waiting for it.
    ///
    /// # Errors
    /// When it could not make one, or died.
    pub fn netns(&self) -> Result<OwnedFd, SupervisorError> {
        let kernel = |e| SupervisorError::Kernel("create a network namespace", e);
        let message = channel::recv(self.process.socket()?, EARLY_MAX).map_err(kernel)?;
        let pid = self.process.pid();
        let (errno, fds) = message.ok_or(SupervisorError::Died { pid })?;
        fds.into_iter().next().ok_or_else(|| {
            let bytes = errno.try_into().unwrap_or_default();
            kernel(std::io::Error::from_raw_os_error(i32::from_le_bytes(bytes)))
        })
    }

    /// Hands the container over.
    ///
    /// # Errors
    /// When its configuration cannot be kept, or the supervisor is gone.
    pub fn hand_over(self, mut charge: Charge) -> Result<Launching, SupervisorError> {
        let run_dir = open_dir(&charge.config.run_dir)?;
        let config = charge.config.encode()?;
        Config::keep(run_dir.as_fd(), &config)?;
        let mut gate = None;
        if charge.gated {
            let pipe = pipe_with(PipeFlags::CLOEXEC);
            let (read, write) = pipe.map_err(SupervisorError::kernel("make the gate"))?;
            charge.plan.await_byte(read);
            gate = Some(write);
        }
        let plan = charge.plan.encode();
        let outgoing = Outgoing {
            mode: Mode::Launch,
            run_dir: &charge.config.run_dir,
            attach: charge.attach.map_or(0, AttachMode::bits),
            config: &config,
            plan: &plan,
            lock: charge.lock.as_fd(),
            exe: self.exe.as_fd(),
            listeners: &charge.listeners,
            hold: &charge.hold,
            plan_fds: &charge.plan.fds,
        };
        self.send(&outgoing, gate)
    }

    pub(crate) fn send(
        self,
        outgoing: &Outgoing<'_>,
        gate: Option<OwnedFd>,
    ) -> Result<Launching, SupervisorError> {
        outgoing.send(self.process.socket()?)?;
        Ok(Launching {
            process: self.process,
            gate,
            run_dir: outgoing.run_dir.to_owned(),
            attached: outgoing.attach != 0,
        })
    }
}

impl Launching {
    /// Lets a gated container run its program.
    ///
    /// # Errors
    /// What `write(2)` answers. A container that has failed meanwhile is no error here:
    /// [`Launching::answered`] tells.
    pub fn go(&mut self) -> Result<(), SupervisorError> {
        let Some(gate) = self.gate.take() else {
            return Ok(());
        };
        match rustix::io::write(&gate, b"g") {
            Ok(_) | Err(Errno::PIPE) => Ok(()),
            Err(e) => Err(SupervisorError::kernel("open the gate")(e)),
        }
    }

    /// Waits until the container's program runs.
    ///
    /// # Errors
    /// [`SupervisorError::Launch`] says why nothing runs.
    pub fn answered(mut self) -> Result<Spawned, SupervisorError> {
        let pid = self.process.pid();
        let died = SupervisorError::Died { pid };
        let Some(socket) = self.process.socket.take() else {
            return Err(died);
        };
        let mut client = Client::from_socket(socket, self.run_dir.clone());
        let n = match &self.process.launched {
            Some(launched) if answers(&client, launched.pidfd.as_fd()) => {
                client.receive().unwrap_or(0)
            }
            _ => 0,
        };
        let init_pid = match client.message(n) {
            Some(Frame::Started(init)) => init,
            Some(Frame::Failed { kind, errno, text }) => {
                return Err(SupervisorError::Launch {
                    message: text.to_owned(),
                    errno,
                    kind: kind_from(kind),
                });
            }
            _ => {
                // One that lives and was not understood has perhaps launched: it must not go on
                // without us. Who is left of the container is found by its cgroup.
                self.process.kill();
                return Err(died);
            }
        };
        self.process.launched = None;
        Ok(Spawned {
            supervisor_pid: pid,
            init_pid,
            client: self.attached.then_some(client),
        })
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        // A child that waits there is what its supervisor waits for.
        self.gate = None;
    }
}

/// Waits for the supervisor's answer; `false` when it ended without one. Its end is watched by
/// itself: a child in the middle of its plan still holds the other end of the socket.
fn answers(client: &Client, supervisor: BorrowedFd<'_>) -> bool {
    let mut fds = [
        PollFd::new(client, PollFlags::IN),
        PollFd::from_borrowed_fd(supervisor, PollFlags::IN),
    ];
    while let Err(Errno::INTR) = poll(&mut fds, None) {}
    !fds[0].revents().is_empty()
}

/// Waits for the end of a supervisor that has nothing more to do.
fn reap(pid: i32) {
    use rustix::process::{Pid, WaitOptions, waitpid};
    if let Some(pid) = Pid::from_raw(pid) {
        while let Err(Errno::INTR) = waitpid(Some(pid), WaitOptions::empty()) {}
    }
}
