//! A supervisor for the next run of a container whose own was killed between two: it begins where that
//! one would have gone on, prepares by itself, and tries again after a pause what fails.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use amphora_cgroup::SupervisorCgroup;

use crate::config::Config;
use crate::files::open_dir;
use crate::lock::FINISH_LOCK_FD;
use crate::spawn::execute;
use crate::state::{State, Status};
use crate::{SupervisorError, again};

/// What such a supervisor is started with.
#[derive(Debug)]
pub struct GoOnRequest<'a> {
    /// As in [`crate::SpawnRequest`].
    pub exe: &'a OwnedFd,
    /// `R/containers/<id>`.
    pub run_dir: PathBuf,
    /// The container's lock, just taken.
    pub lock: OwnedFd,
    /// What the killed supervisor was told.
    pub config: Config,
    /// What it left on record.
    pub state: State,
    /// The supervisors' own cgroup; `None`: the caller's.
    pub cgroup: Option<SupervisorCgroup>,
}

/// Starts a supervisor that runs the container again. Nobody waits for that run.
///
/// # Errors
/// When the records cannot be written or nothing can be executed.
pub fn go_on(request: GoOnRequest<'_>) -> Result<(), SupervisorError> {
    let GoOnRequest {
        exe,
        run_dir,
        lock,
        config,
        mut state,
        cgroup,
    } = request;
    let dir = open_dir(&run_dir)?;
    if !state.restarts_soon() {
        state.restarts = state.restarts.saturating_add(1);
    }
    state.status = Status::Restarting;
    state.init_pid = 0;
    Config::keep(dir.as_fd(), &config.encode()?)?;
    state.write(dir.as_fd())?;
    let path = run_dir.to_string_lossy();
    let words = again::words(&config, &path);
    execute(exe, &words, cgroup.as_ref(), (lock.as_fd(), FINISH_LOCK_FD)).map(drop)
}
