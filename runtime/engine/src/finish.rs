//! Finish: what is undone after a container ended, off everybody's path. Also the whole of it
//! when a supervisor was killed. Every step is idempotent and none stops the next.

use std::fs;

use amphora_cgroup::Cgroup;
use amphora_spec::{Classify, ContainerId, ErrorKind};

use crate::config::{ContainerConfig, MountPoint};
use crate::files::{remove_tree, unlink};
use crate::start::CGROUP_PARENT;
use crate::{Engine, EngineError, Result};

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

impl Engine {
    /// Undoes everything a start made. The caller holds the container's lock.
    ///
    /// # Errors
    /// The first failure; the other steps were carried out all the same.
    pub fn finish(&self, id: &ContainerId) -> Result<()> {
        let config = self.config(id).ok();
        let mut first = Ok(());
        let mut note = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        note(self.networks.release(id).map_err(EngineError::plain));
        note(remove_cgroup(&id.hex()));
        match &config {
            Some(config) if config.host.auto_remove => note(self.erase(config, true)),
            Some(_) => {
                // The kernel's work directory keeps no data between mounts.
                note(remove_tree(&self.container_dir(id).join("work")));
            }
            None => note(self.erase_half_made(id)),
        }
        note(remove_tree(&self.run_dir(id)));
        first
    }

    /// Removes a container's records, name first so that nobody finds half of it.
    pub(crate) fn erase(&self, config: &ContainerConfig, anonymous: bool) -> Result<()> {
        let id = config.id.hex();
        let name = self.name_path(&config.name);
        if fs::read_link(&name).is_ok_and(|t| t.as_os_str() == id.as_str()) {
            unlink(&name)?;
        }
        let volumes = config.host.mounts.iter().filter_map(|m| match m {
            MountPoint::Volume {
                name,
                anonymous: true,
                ..
            } => Some(name),
            _ => None,
        });
        let mut first = Ok(());
        if anonymous {
            for volume in volumes {
                if self.volumes.get(volume).is_ok()
                    && let Err(e) = self.volumes.remove(volume, &|_| Vec::new())
                    && first.is_ok()
                {
                    first = Err(EngineError::plain(e));
                }
            }
        }
        remove_tree(&self.container_dir(&config.id))?;
        first
    }

    /// Removes a container whose create was cut off before its configuration stood.
    fn erase_half_made(&self, id: &ContainerId) -> Result<()> {
        let names = self.options.root.join("names");
        let entries = fs::read_dir(&names).map_err(|e| EngineError::file("read", &names, e))?;
        for entry in entries.flatten() {
            if fs::read_link(entry.path()).is_ok_and(|t| t.as_os_str() == id.hex().as_str()) {
                unlink(&entry.path())?;
            }
        }
        remove_tree(&self.container_dir(id))
    }
}
