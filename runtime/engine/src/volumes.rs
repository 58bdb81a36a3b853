//! Volumes, as the engine offers them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use amphora_network::PortRequest;
use amphora_volume::{Found, NewVolume, Source, Users, Volume, VolumeError};

use crate::config::MountPoint;
use crate::{Engine, EngineError, Result};

impl Engine {
    /// Makes a volume; an existing one of that name is returned as it is.
    ///
    /// # Errors
    /// An invalid name, options that make no sense; a conflict when it exists with other options; a
    /// full disk.
    pub fn volume_create(&self, new: NewVolume) -> Result<Volume> {
        let (volume, found) = self.volumes.ensure_with(new).map_err(EngineError::plain)?;
        if found == Found::New {
            self.note("volume", "create", &volume.name, &[("driver", "local")]);
        }
        Ok(volume)
    }

    /// Gives a volume that no container mentions another name.
    ///
    /// # Errors
    /// When there is none; a conflict when a container mentions it, or the new name is taken.
    pub fn volume_rename(&self, old: &str, new: &str) -> Result<()> {
        let more = [("driver", "local"), ("oldName", old)];
        self.unused(old, |users| self.volumes.rename(old, new, users).map(drop))?;
        self.note("volume", "rename", new, &more);
        Ok(())
    }

    /// Makes a volume with a copy of another's files.
    ///
    /// # Errors
    /// When there is none; a conflict when the new name is taken; a full disk.
    pub fn volume_clone(
        &self,
        source: &str,
        name: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume> {
        let made = self.volumes.clone_volume(source, name, labels);
        let volume = made.map_err(EngineError::plain)?;
        self.note("volume", "create", &volume.name, &[("driver", "local")]);
        Ok(volume)
    }

    /// Reads a volume's record.
    ///
    /// # Errors
    /// When there is none.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        self.volumes.get(name).map_err(EngineError::plain)
    }

    /// Lists all volumes by name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        self.volumes.list().map_err(EngineError::plain)
    }

    /// Returns the directory of a volume.
    pub(crate) fn volume_dir(&self, name: &str) -> PathBuf {
        self.options.root.join("volumes").join(name)
    }

    /// Returns the directory of a volume's data.
    #[must_use]
    pub fn volume_path(&self, name: &str) -> PathBuf {
        self.volume_dir(name).join("_data")
    }

    /// Removes a volume that no container mentions.
    ///
    /// # Errors
    /// A conflict with the containers' ids when one does.
    pub fn volume_remove(&self, name: &str) -> Result<()> {
        self.unused(name, |users| self.volumes.remove(name, users))?;
        self.note("volume", "destroy", name, &[("driver", "local")]);
        Ok(())
    }

    /// Does something with a volume that must be used by nobody; `f` asks who uses it while it holds
    /// the volume.
    fn unused(
        &self,
        name: &str,
        f: impl FnOnce(Users<'_>) -> std::result::Result<(), VolumeError>,
    ) -> Result<()> {
        let unreadable = RefCell::new(None);
        // What cannot be read may use the volume: it counts as a user and stops the removal.
        let users = |_: &str| match self.volume_users(name) {
            Ok(users) => {
                if users.is_empty() {
                    self.forget_kept(name);
                }
                users
            }
            Err(e) => {
                unreadable.replace(Some(e));
                vec!["unknown".to_owned()]
            }
        };
        let done = f(&users);
        match unreadable.into_inner() {
            Some(e) => Err(e),
            None => done.map_err(EngineError::plain),
        }
    }

    /// Lists who mentions a volume, where what cannot be read counts as a user. Asked by whoever holds
    /// the volume and is about to remove it.
    pub(crate) fn volume_users_or_some(&self, name: &str) -> Vec<String> {
        let users = self
            .volume_users(name)
            .unwrap_or_else(|_| vec!["unknown".to_owned()]);
        if users.is_empty() {
            self.forget_kept(name);
        }
        users
    }

    /// Lists the ids of the containers that mention a volume.
    fn volume_users(&self, name: &str) -> Result<Vec<String>> {
        let uses = |m: &MountPoint| m.volume() == Some(name);
        let mut users = Vec::new();
        for id in self.ids()? {
            match self.view(&id) {
                Ok(view) if view.config.host.mounts.iter().any(uses) => users.push(id.hex()),
                Ok(_) | Err(EngineError::NoSuchContainer(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(users)
    }
}

/// Parses a `-v` value: `[source:]target[:options]`.
///
/// # Errors
/// Docker's words for what is wrong with it.
pub fn volume_spec(text: &str) -> Result<MountPoint> {
    let bad = |e: amphora_volume::VolumeSpecError| EngineError::Invalid(e.to_string());
    let cwd =
        std::env::current_dir().map_err(EngineError::io("failed to find the working directory"))?;
    let spec = amphora_volume::parse_volume_spec(text, &cwd).map_err(bad)?;
    let destination = spec.target.to_string_lossy().into_owned();
    Ok(match spec.source {
        Source::Bind(path) => MountPoint::Bind {
            source: path.to_string_lossy().into_owned(),
            destination,
            read_only: spec.readonly,
            create: true,
            propagation: match (spec.propagation, spec.recursive) {
                (amphora_volume::Propagation::Private, true) => String::new(),
                (amphora_volume::Propagation::Private, false) => "private".to_owned(),
                (amphora_volume::Propagation::Slave, true) => "rslave".to_owned(),
                (amphora_volume::Propagation::Slave, false) => "slave".to_owned(),
                (amphora_volume::Propagation::Shared, true) => "rshared".to_owned(),
                (amphora_volume::Propagation::Shared, false) => "shared".to_owned(),
            },
            alone: false,
            writable_below: false,
            idmap: None,
            mode: Some(spec.mode),
        },
        Source::Named(name) => MountPoint::Volume {
            name,
            destination,
            read_only: spec.readonly,
            no_copy: spec.nocopy,
            anonymous: false,
            subpath: None,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            mode: Some(spec.mode),
        },
        Source::Anonymous => MountPoint::Volume {
            name: amphora_spec::Digest::from_sha256(crate::files::random()?).hex(),
            destination,
            read_only: spec.readonly,
            no_copy: spec.nocopy,
            anonymous: true,
            subpath: None,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            mode: Some(String::new()),
        },
    })
}

/// Parses a `-p` value: `[[address:]port:]port[/protocol]`, with ranges.
///
/// # Errors
/// Docker's words for what is wrong with it.
pub fn port_specs(text: &str) -> Result<Vec<PortRequest>> {
    amphora_network::parse_port_spec(text).map_err(|e| EngineError::Invalid(e.to_string()))
}
