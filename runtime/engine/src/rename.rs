//! Rename: the new name is claimed before the old one is given up.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

use amphora_spec::{Classify, ContainerId};
use rustix::fs::{FlockOperation, flock};

use crate::files::{Lasting, free_name, open_dir, unlink};
use crate::undo::Undo;
use crate::{Engine, EngineError, Result};

impl Engine {
    /// Gives a container another name; it may be running.
    ///
    /// # Errors
    /// [`EngineError::NameInUse`], a name that is none, or the one it has.
    pub fn rename(&self, id: &ContainerId, name: &str) -> Result<()> {
        let name = name.strip_prefix('/').unwrap_or(name);
        let _lock = self.lock_config(id)?;
        let mut config = self.config(id)?;
        if config.name == name {
            let text = "Renaming a container with the same name as its current name";
            return Err(EngineError::Invalid(text.to_owned()));
        }
        // Docker names it with the slash that it is kept with.
        let shown = |text: String| text.replacen(name, &format!("/{name}"), 1);
        amphora_spec::id::check_name(name)
            .map_err(|e| allocating(EngineError::Invalid(shown(e.to_string()))))?;
        let mut undo = Undo::default();
        self.claim(id, name, &mut undo)?;
        let old = std::mem::replace(&mut config.name, name.to_owned());
        self.write_config(&mut config, Lasting::Long)?;
        undo.commit();
        self.tell_attributes(&config);
        let before = format!("/{old}");
        self.note_container(&config, "rename", &[("oldName", &before)]);
        free_name(&self.name_path(&old), id)
    }

    fn claim(&self, id: &ContainerId, name: &str, undo: &mut Undo) -> Result<()> {
        let path = self.name_path(name);
        for _ in 0..2 {
            match symlink(id.hex(), &path) {
                Ok(()) => {
                    let id = *id;
                    undo.push(move || free_name(&path, &id));
                    return Ok(());
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    let holder = fs::read_link(&path).unwrap_or_default();
                    if holder.as_os_str() == id.hex().as_str() {
                        // Left by a rename that was cut off: its lock is ours now.
                        unlink(&path)?;
                    } else if !self.sweep_name(name)? {
                        break;
                    }
                }
                Err(e) => return Err(EngineError::file("create", &path, e)),
            }
        }
        let holder = fs::read_link(&path).unwrap_or_default();
        Err(allocating(EngineError::NameInUse {
            name: name.to_owned(),
            id: holder.to_string_lossy().into_owned(),
        }))
    }

    /// Takes the lock under which a container's configuration is changed after its creation. It
    /// is not the lock of its life: a running container is renamed, updated and paused too.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`] when it is gone.
    pub(crate) fn lock_config(&self, id: &ContainerId) -> Result<OwnedFd> {
        let path = self.container_dir(id);
        let dir = open_dir(&path).map_err(|_| EngineError::NoSuchContainer(id.hex()))?;
        flock(&dir, FlockOperation::LockExclusive)
            .map_err(|e| EngineError::file("lock", &path, e))?;
        Ok(dir)
    }

    /// Frees a name that its container gave up in a rename that was cut off. Says whether it did.
    pub(crate) fn sweep_renamed(&self, id: &ContainerId, name: &str) -> Result<bool> {
        if !self.config(id).is_ok_and(|config| config.name != name) {
            return Ok(false);
        }
        let _lock = self.lock_config(id)?;
        if self.config(id)?.name == name {
            return Ok(false);
        }
        free_name(&self.name_path(name), id).map(|()| true)
    }
}

fn allocating(why: EngineError) -> EngineError {
    EngineError::Below {
        context: "Error when allocating new name".to_owned(),
        kind: why.kind(),
        source: Box::new(why),
    }
}
