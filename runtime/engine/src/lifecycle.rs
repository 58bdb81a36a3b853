//! Stop, kill, wait, remove.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use amphora_spec::{ContainerId, signal};
use amphora_supervisor::SupervisorError;
use amphora_sys::pidfd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::container::{ContainerView, Status};
use crate::files::Lock;
use crate::finish::remove_cgroup;
use crate::{Engine, EngineError, Result};

/// SIGKILL.
const KILL: i32 = 9;
/// Longest a command waits for a supervisor that is on its way out.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long what comes behind an end that is on record is waited for.
const REMOVAL_GRACE: Duration = Duration::from_secs(1);

/// Options of stop.
#[derive(Debug, Clone, Default)]
pub struct StopOptions {
    /// Signal in place of the container's own.
    pub signal: Option<String>,
    /// Seconds in place of the container's own; negative waits for ever.
    pub timeout: Option<i64>,
}

/// Options of remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Kill it first.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

impl Engine {
    /// Stops a container: its signal, then a kill. A stopped one is left alone.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`]; an unknown signal.
    pub fn stop(&self, id: &ContainerId, options: &StopOptions) -> Result<()> {
        self.reconcile_one(id)?;
        let view = self.stopped_by_hand(id)?;
        if view.status != Status::Running {
            return Ok(());
        }
        let name = options
            .signal
            .as_deref()
            .unwrap_or(&view.config.stop_signal);
        let number = parse_signal(name)?;
        let seconds = options
            .timeout
            .unwrap_or_else(|| i64::try_from(view.config.stop_timeout).unwrap_or(i64::MAX));
        let timeout = u64::try_from(seconds).ok().map(Duration::from_secs);
        let Some(supervisor) = self.supervisor(&view)? else {
            return Ok(());
        };
        self.send(&view, number)?;
        if !ended(&supervisor, timeout)? {
            self.send(&view, KILL)?;
            self.wait_gone(id, &supervisor)?;
        }
        self.note_container(&view.config, "stop", &[]);
        Ok(())
    }

    /// Sends a signal to a running container's init. Behind a kill it has ended, as with Docker.
    ///
    /// # Errors
    /// [`EngineError::State`] when it is not running; an unknown signal.
    pub fn kill(&self, id: &ContainerId, signal: &str) -> Result<()> {
        let number = parse_signal(signal)?;
        self.reconcile_one(id)?;
        let mut view = self.view(id)?;
        let stop = signal::parse(&view.config.stop_signal).unwrap_or(15);
        if number == KILL || number == stop {
            let restarting = view.status == Status::Restarting;
            view = self.stopped_by_hand(id)?;
            if restarting && view.status != Status::Running {
                return Ok(());
            }
        }
        if view.status != Status::Running {
            return Err(EngineError::State(format!(
                "cannot kill container: {}: container {} is not running",
                view.config.name, view.config.id
            )));
        }
        let supervisor = if number == KILL {
            self.supervisor(&view)?
        } else {
            None
        };
        self.send(&view, number)?;
        supervisor.map_or(Ok(()), |supervisor| self.wait_gone(id, &supervisor))
    }

    /// Signals the run that `view` shows, and lets it go on where it is to end. A pause comes before
    /// or after all of that: what it froze in the middle would not end.
    fn send(&self, view: &ContainerView, number: i32) -> Result<()> {
        let _lock = match self.lock_config(&view.config.id) {
            Err(EngineError::NoSuchContainer(_)) => return Ok(()),
            lock => lock?,
        };
        self.note_kill(view, number);
        self.signal(view, number)?;
        self.thaw_for(view, number)
    }

    fn note_kill(&self, view: &ContainerView, number: i32) {
        let number = number.to_string();
        self.note_container(&view.config, "kill", &[("signal", &number)]);
    }

    /// Waits until a container is not running and returns its exit code.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`].
    pub fn wait(&self, id: &ContainerId) -> Result<i32> {
        loop {
            self.reconcile_one(id)?;
            let view = self.view(id)?;
            if view.status != Status::Running {
                return Ok(view.exit.map_or(0, |e| e.code));
            }
            match amphora_supervisor::wait(&self.run_dir(id), &self.container_dir(id)) {
                Ok(status) => return Ok(status.code),
                // Its supervisor was killed: the next round puts that right.
                Err(SupervisorError::Lost(_) | SupervisorError::NotRunning(_)) => {}
                Err(e) => return Err(EngineError::plain(e)),
            }
        }
    }

    /// Removes a container.
    ///
    /// # Errors
    /// [`EngineError::State`] when it runs and `force` is not given.
    pub fn remove(&self, id: &ContainerId, options: RemoveOptions) -> Result<()> {
        let mut ends_itself = false;
        let lock = loop {
            self.reconcile_one(id)?;
            let mut view = match self.view(id) {
                Err(e) if self.is_damage(id, &e) => return self.remove_damaged(id, options, e),
                other => other?,
            };
            ends_itself |= view.config.host.auto_remove;
            if view.status.is_active() && options.force {
                view = self.stopped_by_hand(id)?;
            }
            if view.status.is_active() {
                self.end_for_removal(&view, options.force)?;
            }
            if let Some(lock) = self.lock_idle(id)? {
                break lock;
            }
        };
        let config = match self.config(id) {
            Ok(config) => config,
            Err(e) => {
                lock.remove_dir()?;
                // `--rm`: its supervisor removed it on the way out, as was wanted. Any other was
                // removed by somebody else, who is told so.
                return match e {
                    EngineError::NoSuchContainer(_) if ends_itself => Ok(()),
                    e => Err(e),
                };
            }
        };
        self.erase(&config, options.volumes || config.host.auto_remove)?;
        lock.remove_dir()
    }

    /// Says whether a container's records cannot be read.
    fn is_damage(&self, id: &ContainerId, error: &EngineError) -> bool {
        !matches!(error, EngineError::NoSuchContainer(_)) || self.lost_its_config(id)
    }

    /// Removes a container whose records cannot be read, as far as it is there. Its anonymous
    /// volumes are not known any more.
    fn remove_damaged(
        &self,
        id: &ContainerId,
        options: RemoveOptions,
        damage: EngineError,
    ) -> Result<()> {
        let held = Lock::is_held(&self.run_dir(id));
        if held && !options.force {
            return Err(damage);
        }
        if held {
            remove_cgroup(&id.hex())?;
        }
        let lock = match self.lock_idle(id)? {
            Some(lock) => lock,
            None => return Err(damage),
        };
        let released = self.networks.release(id).map_err(EngineError::plain);
        let cgroup = remove_cgroup(&id.hex());
        self.erase_half_made(id)?;
        lock.remove_dir()?;
        released.and(cgroup)
    }

    /// Kills a running container that is to be removed, when that is wanted.
    fn end_for_removal(&self, view: &ContainerView, force: bool) -> Result<()> {
        if !force {
            let advice = if view.paused {
                " and must be unpaused first"
            } else {
                ": stop the container before removing or force remove"
            };
            return Err(EngineError::State(format!(
                "cannot remove container \"/{}\": container is {}{advice}",
                view.config.name,
                view.state_word()
            )));
        }
        if let Some(supervisor) = self.supervisor(view)? {
            self.send(view, KILL)?;
            self.wait_gone(&view.config.id, &supervisor)?;
        }
        Ok(())
    }

    /// Takes the lock of a container that is not running, waiting for one that is on its way out;
    /// `None` when it came up meanwhile.
    pub(crate) fn lock_idle(&self, id: &ContainerId) -> Result<Option<Lock>> {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        let mut waited = false;
        loop {
            if let Some(lock) = Lock::try_acquire(&self.run_dir(id))? {
                if !waited {
                    return Ok(Some(lock));
                }
                // Whoever held it may have died in the middle of a start.
                drop(lock);
                self.reconcile_one(id)?;
                waited = false;
                continue;
            }
            waited = true;
            if self.view(id).is_ok_and(|v| v.status.is_active()) {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Err(EngineError::State(format!("container {id} is busy")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nothing is left of a container that is being removed behind its exit.
    pub(crate) fn wait_erased(&self, id: &ContainerId) -> Result<()> {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while self.container_dir(id).exists() {
            self.reconcile_one(id)?;
            if Instant::now() > deadline {
                return Err(EngineError::State(format!("container {id} is busy")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Opens the supervisor's process; `None` when it has just gone.
    fn supervisor(&self, view: &ContainerView) -> Result<Option<OwnedFd>> {
        let state = view.state.as_ref().ok_or_else(|| not_running(view))?;
        pidfd::open(state.supervisor_pid, state.supervisor_start).map_err(EngineError::io(format!(
            "failed to open the supervisor of {}",
            view.config.id
        )))
    }

    /// Signals init. One that is gone already is what the caller wanted, or `wait` will show it.
    fn signal(&self, view: &ContainerView, number: i32) -> Result<()> {
        let state = view.state.as_ref().ok_or_else(|| not_running(view))?;
        let sent = pidfd::open(state.init_pid, state.init_start)
            .and_then(|init| init.map_or(Ok(false), |init| pidfd::signal(init.as_fd(), number)));
        sent.map(|_| ()).map_err(EngineError::io(format!(
            "failed to signal container {}",
            view.config.id
        )))
    }

    /// Waits until a container has ended. What is removed behind its end may take any time.
    fn wait_gone(&self, id: &ContainerId, supervisor: &OwnedFd) -> Result<()> {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while !ended(supervisor, Some(REMOVAL_GRACE))? {
            if self.exit_record(id)?.is_some() {
                break;
            }
            if Instant::now() > deadline {
                return Err(EngineError::State(format!(
                    "container {id} did not end in time"
                )));
            }
        }
        Ok(())
    }
}

/// Waits until a process has ended; says whether it did in time.
fn ended(process: &OwnedFd, timeout: Option<Duration>) -> Result<bool> {
    // A time that the clock cannot hold is for ever.
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let spec = left.and_then(|l| Timespec::try_from(l).ok());
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, spec.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(EngineError::io("failed to wait for the supervisor")(e)),
        }
    }
}

pub(crate) fn not_running(view: &ContainerView) -> EngineError {
    EngineError::State(format!("container {} is not running", view.config.id))
}

pub(crate) fn parse_signal(text: &str) -> Result<i32> {
    signal::parse(text).ok_or_else(|| {
        EngineError::Invalid(match text.parse::<i32>() {
            Ok(number) => format!("the linux daemon does not support signal {number}"),
            Err(_) => format!("invalid signal: {text}"),
        })
    })
}
