//! Containers as they are found: configuration, state, lookup.

use std::fs;
use std::os::fd::AsFd;

use amphora_spec::ContainerId;
use amphora_supervisor::{self as supervisor, ExitRecord, State};

use crate::config::{CONFIG_VERSION, ContainerConfig, FIRST_VERSION};
use crate::files::{Lasting, Lock, open_dir, read_json, write_json};
use crate::{Engine, EngineError, Result};

/// Versions of a configuration that are understood.
const KNOWN: std::ops::RangeInclusive<u32> = FIRST_VERSION..=CONFIG_VERSION;

/// Docker's container states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Ended, and about to run again by itself.
    Restarting,
    /// Ended.
    Exited,
    /// Its records are damaged.
    Dead,
}

impl Status {
    /// Says whether its supervisor is there: it runs, or will run again by itself.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Restarting)
    }

    /// Returns Docker's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}

/// A container with all its records.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Configuration.
    pub config: ContainerConfig,
    /// Status.
    pub status: Status,
    /// Its processes are stopped; its status is running all the same.
    pub paused: bool,
    /// State record, while it runs.
    pub state: Option<State>,
    /// Exit record, once it ended.
    pub exit: Option<ExitRecord>,
    /// Health, of this run or of the last one.
    pub health: Option<amphora_supervisor::HealthRecord>,
    /// Network endpoints, while it runs.
    pub endpoints: Vec<amphora_network::Endpoint>,
    /// Published ports, while it runs on a bridge.
    pub ports: Vec<amphora_network::PublishedPort>,
}

impl ContainerView {
    /// Returns Docker's word for its state.
    #[must_use]
    pub const fn state_word(&self) -> &'static str {
        if self.paused {
            "paused"
        } else {
            self.status.as_str()
        }
    }

    /// Returns when it was started, RFC 3339, while it runs.
    #[must_use]
    pub fn started_at(&self) -> Option<String> {
        self.state
            .as_ref()
            .map(|s| crate::list::time_text(s.started_at))
    }
}

impl Engine {
    /// Finds one container by id, id prefix or name (with or without a leading slash).
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`], [`EngineError::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<ContainerId> {
        let missing = || EngineError::NoSuchContainer(text.to_owned());
        let name = text.strip_prefix('/').unwrap_or(text);
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(missing());
        }
        if let Ok(id) = name.parse::<ContainerId>()
            && self.container_dir(&id).is_dir()
        {
            return Ok(id);
        }
        if let Ok(target) = fs::read_link(self.name_path(name))
            && let Some(Ok(id)) = target.to_str().map(str::parse::<ContainerId>)
        {
            return Ok(id);
        }
        let mut found = None;
        if name.bytes().all(|b| b.is_ascii_hexdigit()) {
            for id in self.ids()? {
                if id.hex().starts_with(name) && found.replace(id).is_some() {
                    return Err(EngineError::Ambiguous(text.to_owned()));
                }
            }
        }
        found.ok_or_else(missing)
    }

    /// Lists the ids of all containers, in no order.
    pub(crate) fn ids(&self) -> Result<Vec<ContainerId>> {
        let dir = self.options.root.join("containers");
        let entries = fs::read_dir(&dir).map_err(|e| EngineError::file("read", &dir, e))?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// Reads a container's configuration.
    pub(crate) fn config(&self, id: &ContainerId) -> Result<ContainerConfig> {
        let path = self.container_dir(id).join("config.json");
        let read: Result<Option<ContainerConfig>> = read_json(&path);
        match read {
            Ok(Some(config)) if KNOWN.contains(&config.version) => Ok(config),
            Ok(None) => Err(EngineError::NoSuchContainer(id.hex())),
            Ok(Some(config)) => Err(EngineError::Version {
                path,
                found: u64::from(config.version),
                known: CONFIG_VERSION,
            }),
            // Another version may have other fields.
            Err(error) => match read_json::<serde_json::Value>(&path) {
                Ok(Some(value)) => match value["version"].as_u64() {
                    Some(found) if !u32::try_from(found).is_ok_and(|v| KNOWN.contains(&v)) => {
                        Err(EngineError::Version {
                            path,
                            found,
                            known: CONFIG_VERSION,
                        })
                    }
                    _ => Err(error),
                },
                _ => Err(error),
            },
        }
    }

    /// Writes a container's configuration, in the oldest version that says all of it.
    pub(crate) fn write_config(
        &self,
        config: &mut ContainerConfig,
        lasting: Lasting,
    ) -> Result<()> {
        config.version = config.least_version();
        let path = self.container_dir(&config.id).join("config.json");
        write_json(&path, config, lasting)
    }

    /// Reads how a container ended. A record that cannot be read says just that: what else is
    /// known of the container does not depend on it.
    pub(crate) fn ended(&self, id: &ContainerId) -> Option<ExitRecord> {
        let error = match self.exit_record(id) {
            Ok(record) => return record,
            Err(error) => error,
        };
        let path = self.container_dir(id).join("exit");
        let time = crate::boot::changed(&path).unwrap_or(0);
        let text = format!(
            "cannot read {}: {}",
            path.display(),
            amphora_spec::error::chain(&error)
        );
        Some(ExitRecord::unknown(&text, time, time))
    }

    /// Reads everything that is known of a container.
    ///
    /// # Errors
    /// [`EngineError::NoSuchContainer`] when it is gone.
    pub fn view(&self, id: &ContainerId) -> Result<ContainerView> {
        let config = self.config(id)?;
        let run = self.run_dir(id);
        let exit = self.ended(id);
        let state = match open_dir(&run) {
            Ok(dir) => State::read(dir.as_fd()).map_err(EngineError::plain)?,
            Err(_) => None,
        };
        let running = state
            .as_ref()
            .is_some_and(|s| s.status == supervisor::Status::Running)
            && Lock::is_held(&run);
        let again = state.as_ref().is_some_and(|s| s.restarts_soon()) && Lock::is_held(&run);
        let status = match (&exit, running) {
            (_, true) => Status::Running,
            _ if again => Status::Restarting,
            (Some(_), false) => Status::Exited,
            (None, false) => Status::Created,
        };
        if status == Status::Created && !self.container_dir(id).join("config.json").exists() {
            // Removed while its records were read.
            return Err(EngineError::NoSuchContainer(id.hex()));
        }
        if status == Status::Exited && config.host.auto_remove {
            // Its supervisor is removing it; name, ports and address are free already.
            return Err(EngineError::NoSuchContainer(id.hex()));
        }
        let endpoints = if running {
            self.networks.endpoints_of(id).unwrap_or_default()
        } else {
            Vec::new()
        };
        let paused = running && crate::pause::is_paused(&run, id);
        Ok(ContainerView {
            health: self.health_record(&config, status),
            config,
            status,
            paused,
            state: if status.is_active() { state } else { None },
            exit,
            ports: endpoints.iter().flat_map(|e| e.ports.clone()).collect(),
            endpoints,
        })
    }

    /// Reads how a container ended; `None` when it never did.
    pub(crate) fn exit_record(&self, id: &ContainerId) -> Result<Option<ExitRecord>> {
        for dir in [self.container_dir(id), self.run_dir(id)] {
            if let Ok(dir) = open_dir(&dir)
                && let Some(record) = ExitRecord::read(dir.as_fd()).map_err(EngineError::plain)?
            {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }
}
