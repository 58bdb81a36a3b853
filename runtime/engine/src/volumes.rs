//! Volumes, as the engine offers them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use amphora_network::PortRequest;
use amphora_volume::{Source, Volume};

use crate::config::MountPoint;
use crate::{Engine, EngineError, Result};

impl Engine {
    /// Makes a volume; an existing one of that name is returned as it is.
    ///
    /// # Errors
    /// An invalid name; a full disk.
    pub fn volume_create(
        &self,
        name: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume> {
        match name {
            Some(name) if self.volumes.get(name).is_ok() => self.volume(name),
            _ => {
                let made = self.volumes.create(name, labels);
                let volume = made.map_err(EngineError::plain)?;
                self.note("volume", "create", &volume.name, &[("driver", "local")]);
                Ok(volume)
            }
        }
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
        let unreadable = RefCell::new(None);
        // What cannot be read may use the volume: it counts as a user and stops the removal.
        let users = |name: &str| {
            self.volume_users(name).unwrap_or_else(|e| {
                unreadable.replace(Some(e));
                vec!["unknown".to_owned()]
            })
        };
        let removed = self.volumes.remove(name, &users);
        match unreadable.into_inner() {
            Some(e) => Err(e),
            None => {
                removed.map_err(EngineError::plain)?;
                self.note("volume", "destroy", name, &[("driver", "local")]);
                Ok(())
            }
        }
    }

    /// The same, where what cannot be read counts as a user.
    pub(crate) fn volume_users_or_some(&self, name: &str) -> Vec<String> {
        self.volume_users(name)
            .unwrap_or_else(|_| vec!["unknown".to_owned()])
    }

    /// Lists the ids of the containers that mention a volume.
    fn volume_users(&self, name: &str) -> Result<Vec<String>> {
        let uses = |m: &MountPoint| matches!(m, MountPoint::Volume { name: n, .. } if n == name);
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
                (amphora_volume::Propagation::Private, _) => String::new(),
                (amphora_volume::Propagation::Slave, true) => "rslave".to_owned(),
                (amphora_volume::Propagation::Slave, false) => "slave".to_owned(),
                (amphora_volume::Propagation::Shared, true) => "rshared".to_owned(),
                (amphora_volume::Propagation::Shared, false) => "shared".to_owned(),
            },
            alone: !spec.recursive,
        },
        Source::Named(name) => MountPoint::Volume {
            name,
            destination,
            read_only: spec.readonly,
            no_copy: spec.nocopy,
            anonymous: false,
            subpath: None,
            labels: BTreeMap::new(),
        },
        Source::Anonymous => MountPoint::Volume {
            name: amphora_spec::Digest::from_sha256(crate::files::random()?).hex(),
            destination,
            read_only: spec.readonly,
            no_copy: spec.nocopy,
            anonymous: true,
            subpath: None,
            labels: BTreeMap::new(),
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
