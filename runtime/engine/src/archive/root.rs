//! A container's root file system, as the container sees it or will see it: running, created or
//! stopped, with its volumes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use amphora_spec::ContainerId;
use amphora_supervisor::State;
use amphora_sys::pidfd;
use rustix::fs::{Mode, OFlags};

use crate::boot::WORK_IDLE;
use crate::config::ContainerConfig;
use crate::container::Status;
use crate::files::{Lock, open_dir, remove_tree};
use crate::kept::{Guard, Opened};
use crate::{Engine, EngineError, Result};

/// The root of a container, held for one operation. Of a container that does not run, the lock is
/// held too: nobody starts it meanwhile.
#[derive(Debug)]
pub(crate) struct ContainerRoot {
    fd: Option<OwnedFd>,
    /// Keeps root and volumes together.
    namespace: Option<OwnedFd>,
    volumes: Vec<OwnedFd>,
    /// Where others find those of the volumes that are file systems of their own.
    kept: Vec<(Opened, OwnedFd)>,
    /// Those of them that are not open to others yet.
    guards: Vec<(Guard, OwnedFd)>,
    idle: Option<(Lock, PathBuf)>,
}

impl ContainerRoot {
    /// Returns the root; everything is resolved beneath it.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd)
    }
}

impl Drop for ContainerRoot {
    fn drop(&mut self) {
        for (opened, _) in &self.kept {
            opened.close();
        }
        // Mounts first, so that nothing is busy.
        drop(self.fd.take());
        drop(self.namespace.take());
        self.volumes.clear();
        let kept = std::mem::take(&mut self.kept);
        let guards = std::mem::take(&mut self.guards);
        // All namespaces before the first lock.
        let (_opened, namespaces): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
        let (_guards, guarded): (Vec<_>, Vec<_>) = guards.into_iter().unzip();
        drop((namespaces, guarded));
        if let Some((lock, work)) = self.idle.take() {
            // What stays is removed by the next start or removal.
            let _ = remove_tree(&work);
            let _ = lock.remove_dir();
        }
    }
}

impl Engine {
    /// Opens the root of a container.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`]; a mount that cannot be made.
    pub(crate) fn container_root(&self, id: &ContainerId) -> Result<ContainerRoot> {
        loop {
            self.reconcile_one(id)?;
            let view = self.view(id)?;
            if view.status == Status::Running
                && let Some(state) = &view.state
                && let Some(fd) = running_root(state)?
            {
                return Ok(ContainerRoot {
                    fd: Some(fd),
                    namespace: None,
                    volumes: Vec::new(),
                    kept: Vec::new(),
                    guards: Vec::new(),
                    idle: None,
                });
            }
            if view.status == Status::Restarting {
                return Err(EngineError::State(format!(
                    "container {id} is restarting, wait until the container is running"
                )));
            }
            // Nothing is returned when it came up between the two looks.
            if let Some(lock) = self.lock_idle(id)? {
                return self.idle_root(&view.config, lock);
            }
        }
    }

    fn idle_root(&self, config: &ContainerConfig, lock: Lock) -> Result<ContainerRoot> {
        let work = self.container_dir(&config.id).join(WORK_IDLE);
        let run = self.run_dir(&config.id);
        let mut root = ContainerRoot {
            fd: None,
            namespace: None,
            volumes: Vec::new(),
            kept: Vec::new(),
            guards: Vec::new(),
            idle: Some((lock, work)),
        };
        let mut config = self.config(&config.id)?;
        // A layer that is to be thrown away is not mounted so here: the mark of that would keep
        // it from being mounted again.
        config.host.auto_remove = false;
        let fd = self.mount_root(&config, WORK_IDLE)?;
        let made = self.mount_volumes(&config, fd.as_fd())?;
        let mounts = made.mounts;
        root.volumes = made.hold;
        root.guards = made.guards;
        while let Some((guard, kept)) = root.guards.last() {
            let opened = guard.open_to_others(kept);
            let opened = opened.map_err(EngineError::io("failed to share a volume"))?;
            let had = root.guards.pop();
            root.kept.extend(had.map(|(_, kept)| (opened, kept)));
        }
        if !mounts.is_empty() {
            let mut sorted: Vec<(CString, &OwnedFd)> = Vec::with_capacity(mounts.len());
            for mount in &mounts {
                let path = CString::new(mount.destination.as_str())
                    .map_err(|_| EngineError::Invalid("a mount path has a zero byte".to_owned()))?;
                sorted.push((path, &mount.fd));
            }
            sorted.sort_by_key(|(path, _)| path.to_bytes().iter().filter(|b| **b == b'/').count());
            let list: Vec<(&CStr, BorrowedFd<'_>)> = sorted
                .iter()
                .map(|(path, fd)| (path.as_c_str(), fd.as_fd()))
                .collect();
            let place = open_dir(&run)?;
            let made = amphora_sys::tree::assemble(fd.as_fd(), place.as_fd(), &list);
            root.namespace = Some(made.map_err(EngineError::io(format!(
                "failed to mount the volumes of container {}",
                config.id
            )))?);
        }
        root.fd = Some(fd);
        Ok(root)
    }
}

/// Opens the root of a running container's init; `None` when it has just ended.
fn running_root(state: &State) -> Result<Option<OwnedFd>> {
    let failed = || format!("failed to open the root of process {}", state.init_pid);
    let Some(_init) =
        pidfd::open(state.init_pid, state.init_start).map_err(EngineError::io(failed()))?
    else {
        return Ok(None);
    };
    let path = format!("/proc/{}/root", state.init_pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(path, flags, Mode::empty()) else {
        return Ok(None);
    };
    // Still the same process, so it was its root that was opened.
    let still = pidfd::open(state.init_pid, state.init_start).map_err(EngineError::io(failed()))?;
    Ok(still.map(|_| root))
}
