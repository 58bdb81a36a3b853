//! Pause: a container's processes stopped by its cgroup.
//!
//! `paused` in the run directory says that the cgroup may be frozen, and only then is the cgroup
//! asked: a container that was never paused costs no look at it.

use std::path::Path;

use amphora_cgroup::Cgroup;
use amphora_spec::{Classify, ContainerId, ErrorKind};

use crate::container::{ContainerView, Status};
use crate::files::{unlink, write};
use crate::start::CGROUP_PARENT;
use crate::undo::Undo;
use crate::{Engine, EngineError, Result};

const MARK: &str = "paused";
const KILL: i32 = 9;

/// Says whether a running container is paused.
pub(crate) fn is_paused(run: &Path, id: &ContainerId) -> bool {
    run.join(MARK).exists()
        && cgroup(id).is_ok_and(|cgroup| cgroup.is_some_and(|c| c.is_frozen().unwrap_or(false)))
}

/// Says whether a process has been sent SIGKILL and has not ended yet.
fn is_killed(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |line: &str| {
        let mask = line
            .strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status
        .lines()
        .filter_map(pending)
        .any(|mask| mask & (1 << (KILL - 1)) != 0)
}

/// Opens a container's cgroup; `None` when it is gone.
pub(crate) fn cgroup(id: &ContainerId) -> Result<Option<Cgroup>> {
    match Cgroup::open(CGROUP_PARENT, &id.hex()) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(EngineError::plain(e)),
    }
}

impl Engine {
    /// Stops all processes of a container.
    ///
    /// # Errors
    /// [`EngineError::State`] when it is not running or is paused already; a process that cannot
    /// be stopped in time.
    pub fn pause(&self, id: &ContainerId) -> Result<()> {
        let _lock = self.lock_config(id)?;
        self.reconcile_one(id)?;
        let view = self.view(id)?;
        let not_running = || crate::lifecycle::not_running(&view);
        if view.status != Status::Running {
            return Err(not_running());
        }
        if view.paused {
            let text = format!("Container {id} is already paused");
            return Err(EngineError::State(text));
        }
        let mark = self.run_dir(id).join(MARK);
        let mut undo = Undo::default();
        let undo_mark = mark.clone();
        undo.push(move || {
            unlink(&undo_mark)?;
            // Written behind the end of the container, it kept the directory from going.
            let _ = undo_mark.parent().map(std::fs::remove_dir);
            Ok(())
        });
        write(&mark, b"")?;
        let cgroup = cgroup(id)?.ok_or_else(not_running)?;
        let frozen = cgroup.freeze();
        if !self.is_same_run(&view) {
            // On its way out, frozen it would never get there; and its next run, whose cgroup has
            // the same name, would never come to its program. A cgroup that is gone needs nothing.
            let _ = cgroup.thaw();
            return Err(not_running());
        }
        frozen.map_err(|e| EngineError::Below {
            context: format!("Cannot pause container {id}"),
            kind: e.kind(),
            source: Box::new(e),
        })?;
        undo.commit();
        // It is paused; what its health record says is no reason to fail.
        let _ = self.unwatch(id);
        self.note_container(&view.config, "pause", &[]);
        Ok(())
    }

    /// Says whether what a view shows runs now, and is not about to end.
    pub(crate) fn is_same_run(&self, view: &ContainerView) -> bool {
        let pid = |view: &ContainerView| view.state.as_ref().map(|s| (s.init_pid, s.init_start));
        self.view(&view.config.id)
            .is_ok_and(|now| now.status == Status::Running && pid(&now) == pid(view))
            && pid(view).is_some_and(|(pid, _)| !is_killed(pid))
    }

    /// Lets the processes of a paused container go on.
    ///
    /// # Errors
    /// [`EngineError::State`] when it is not paused.
    pub fn unpause(&self, id: &ContainerId) -> Result<()> {
        let _lock = self.lock_config(id)?;
        self.reconcile_one(id)?;
        let view = self.view(id)?;
        if !view.paused {
            return Err(EngineError::State(format!("Container {id} is not paused")));
        }
        self.thaw(id)?;
        self.note_container(&view.config, "unpause", &[]);
        Ok(())
    }

    fn thaw(&self, id: &ContainerId) -> Result<()> {
        if let Some(cgroup) = cgroup(id)? {
            cgroup.thaw().map_err(|e| EngineError::Below {
                context: format!("Cannot unpause container {id}"),
                kind: e.kind(),
                source: Box::new(e),
            })?;
        }
        unlink(&self.run_dir(id).join(MARK))
    }

    /// Docker's rule for a signal to a paused container: one that is to end it lets it go on, so
    /// that it can; any other waits until somebody unpauses it.
    pub(crate) fn thaw_for(&self, view: &ContainerView, number: i32) -> Result<()> {
        let stop = amphora_spec::signal::parse(&view.config.stop_signal).unwrap_or(15);
        let id = &view.config.id;
        let ends = number == KILL || number == stop;
        if ends && is_paused(&self.run_dir(id), id) {
            self.thaw(id)?;
        }
        Ok(())
    }

    /// Returns a container's view unless it is paused.
    pub(crate) fn refuse_paused(&self, id: &ContainerId) -> Result<ContainerView> {
        let view = self.view(id)?;
        if view.paused {
            let text = "cannot start a paused container, try unpause instead";
            return Err(EngineError::State(text.to_owned()));
        }
        Ok(view)
    }
}
