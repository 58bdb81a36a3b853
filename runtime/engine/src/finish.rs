//! Finish: what is undone after a container ended, off everybody's path. Also the whole of it
//! when a supervisor was killed. Every step is idempotent and none stops the next.

use std::fs;
use std::path::{Path, PathBuf};

use amphora_cgroup::Cgroup;
use amphora_spec::{Classify, ContainerId, ErrorKind};

use crate::boot::{WORK_IDLE, remove_work};
use crate::config::{ContainerConfig, MountPoint};
use crate::files::{Lock, free_name, read_json, remove_run_dir, remove_tree, unlink};
use crate::start::CGROUP_PARENT;
use crate::{Engine, EngineError, Result};

/// Suffix of a container directory that is being removed.
const REMOVED: &str = ".removed";
/// The same, and its anonymous volumes go too.
const REMOVED_VOLUMES: &str = ".removed-volumes";

fn with_suffix(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Name of the exit record of the run before the one that is being started.
const LAST_EXIT: &str = "exit.last";

/// Puts the exit record aside for a start.
pub(crate) fn put_exit_aside(dir: &Path) -> Result<()> {
    let exit = dir.join("exit");
    match fs::rename(&exit, dir.join(LAST_EXIT)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(EngineError::file("rename", &exit, e))
        }
        _ => Ok(()),
    }
}

/// After a start that failed the last exit record is the exit record again; after a run there is
/// a new one.
pub(crate) fn settle_exit(dir: &Path) -> Result<()> {
    let (exit, last) = (dir.join("exit"), dir.join(LAST_EXIT));
    if exit.exists() || !last.exists() {
        return unlink(&last);
    }
    fs::rename(&last, &exit).map_err(|e| EngineError::file("rename", &last, e))
}

/// Ends whatever runs in a container's cgroup and removes it; a missing one is fine.
pub(crate) fn remove_cgroup(name: &str) -> Result<()> {
    let removed = Cgroup::open(CGROUP_PARENT, name).and_then(|cgroup| {
        cgroup.kill()?;
        cgroup.remove()
    });
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(EngineError::plain(e)),
        _ => Ok(()),
    }
}

/// Removes what a start that failed may have left: the cgroup, and the run directory unless that
/// is still needed to find the cgroup by. The caller holds the lock.
pub(crate) fn remove_failed(id: &ContainerId, run: &Path) -> Result<()> {
    remove_cgroup(&id.hex())?;
    remove_run_dir(run)
}

impl Engine {
    /// Undoes everything a start made. The caller holds the container's lock.
    ///
    /// # Errors
    /// The first failure; the other steps were carried out all the same.
    pub fn finish(&self, id: &ContainerId) -> Result<()> {
        let config = self.config(id);
        let missing =
            matches!(config, Err(EngineError::NoSuchContainer(_))) && !self.lost_its_config(id);
        let config = config.ok();
        let mut first = Ok(());
        let mut note = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        if let Some(config) = &config {
            self.defer_end(config);
        }
        note(self.networks.release(id).map_err(EngineError::plain));
        let cgroup = remove_cgroup(&id.hex());
        let left = cgroup.is_err();
        note(cgroup);
        match &config {
            Some(config) if config.host.auto_remove => note(self.erase(config, true)),
            Some(_) => {
                note(settle_exit(&self.container_dir(id)));
                note(self.keep_health(id));
                note(remove_work(&self.container_dir(id)));
                note(remove_tree(&self.container_dir(id).join(WORK_IDLE)));
            }
            None if missing => note(self.erase_half_made(id)),
            // Damaged: it stays until it is removed by hand.
            None => {}
        }
        if !left {
            // It is what the next reconcile finds the cgroup by.
            note(remove_run_dir(&self.run_dir(id)));
        }
        self.flush_events();
        first
    }

    /// Removes a container's records. It is gone with the rename; what a crash then leaves lies
    /// under a name that [`Engine::erase_half_made`] and [`Engine::sweep_removed`] find.
    pub(crate) fn erase(&self, config: &ContainerConfig, anonymous: bool) -> Result<()> {
        let suffix = if anonymous { REMOVED_VOLUMES } else { REMOVED };
        let from = self.container_dir(&config.id);
        let to = with_suffix(&from, suffix);
        match fs::rename(&from, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(EngineError::file("rename", &from, e));
            }
            _ => {}
        }
        // It may have been given another name up to this moment; from here on it cannot be.
        let last: Option<ContainerConfig> = read_json(&to.join("config.json"))?;
        let config = last.as_ref().unwrap_or(config);
        free_name(&self.name_path(&config.name), &config.id)?;
        self.erase_renamed(&to, anonymous.then_some(config))?;
        self.defer_container(config, "destroy", &[]);
        Ok(())
    }

    /// Removes a renamed container directory, after the anonymous volumes of `volumes_of`.
    fn erase_renamed(&self, dir: &Path, volumes_of: Option<&ContainerConfig>) -> Result<()> {
        let volumes = volumes_of.into_iter().flat_map(|c| &c.host.mounts);
        for mount in volumes {
            if let MountPoint::Volume {
                name,
                anonymous: true,
                ..
            } = mount
                && self.volumes.get(name).is_ok()
            {
                match self
                    .volumes
                    .remove(name, &|name| self.volume_users_or_some(name))
                {
                    // Whoever uses it by its name keeps it.
                    Err(e) if e.kind() == ErrorKind::Conflict => {}
                    other => other.map_err(EngineError::plain)?,
                }
            }
        }
        remove_tree(dir)
    }

    /// Goes on with the removal of a container that was cut off after the rename.
    fn erase_rest(&self, id: &ContainerId) -> Result<()> {
        let dir = self.container_dir(id);
        let with_volumes = with_suffix(&dir, REMOVED_VOLUMES);
        if let Some(config) = read_json(&with_volumes.join("config.json")).ok().flatten() {
            self.erase_renamed(&with_volumes, Some(&config))?;
        }
        remove_tree(&with_volumes)?;
        remove_tree(&with_suffix(&dir, REMOVED))
    }

    /// Goes on with all removals that were cut off and that nobody is at.
    pub(crate) fn sweep_removed(&self) -> Result<()> {
        let dir = self.options.root.join("containers");
        let entries = fs::read_dir(&dir).map_err(|e| EngineError::file("read", &dir, e))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|n| n.split_once('.'));
            let Some(Ok(id)) = id.map(|(id, _)| id.parse::<ContainerId>()) else {
                continue;
            };
            if let Some(lock) = Lock::try_acquire(&self.run_dir(&id))? {
                self.erase_rest(&id)?;
                lock.remove_dir()?;
            }
        }
        Ok(())
    }

    /// Says whether a container has a writable layer and no configuration any more: what is in it
    /// is its owner's to remove.
    pub(crate) fn lost_its_config(&self, id: &ContainerId) -> bool {
        let dir = self.container_dir(id);
        dir.join("upper").exists() && !dir.join("config.json").exists()
    }

    /// Removes a container whose create was cut off before its configuration stood, or whose
    /// removal was.
    pub(crate) fn erase_half_made(&self, id: &ContainerId) -> Result<()> {
        let names = self.options.root.join("names");
        let entries = fs::read_dir(&names).map_err(|e| EngineError::file("read", &names, e))?;
        for entry in entries.flatten() {
            free_name(&entry.path(), id)?;
        }
        self.erase_rest(id)?;
        remove_tree(&self.container_dir(id))
    }
}
