//! Kernel settings of the calling thread's network namespace; each change is recorded, so that
//! it can be told (a leak counter) and taken back (`teardown_all`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{NetworkError, Result, file};
use crate::store;

const ROOT: &str = "/proc/sys";

/// A setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its path below `/proc/sys`.
    pub key: String,
    /// What it was.
    pub before: String,
    /// What it was made.
    pub after: String,
}

pub(crate) fn path(key: &str) -> PathBuf {
    Path::new(ROOT).join(key)
}

/// Reads a setting; `None` where the kernel has none of this name.
pub(crate) fn get(key: &str) -> Option<String> {
    fs::read_to_string(path(key))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Writes a setting.
pub(crate) fn set(key: &str, value: &str) -> Result<()> {
    let path = path(key);
    fs::write(&path, value).map_err(file("write", &path))
}

/// Writes a setting if the kernel has it.
pub(crate) fn set_if_there(key: &str, value: &str) -> io::Result<()> {
    match fs::write(path(key), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The record of changes, a file on the run directory (settings die with the boot, too).
#[derive(Debug)]
pub(crate) struct Changes {
    path: PathBuf,
}

impl Changes {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn list(&self) -> Result<Vec<Change>> {
        store::read_json(&self.path).map(Option::unwrap_or_default)
    }

    /// Sets and records, unless the setting is as wanted.
    pub(crate) fn apply(&self, key: &str, value: &str) -> Result<()> {
        let Some(before) = get(key) else {
            return Ok(());
        };
        if before == value {
            return Ok(());
        }
        let mut all = self.list()?;
        if !all.iter().any(|change| change.key == key) {
            all.push(Change {
                key: key.to_owned(),
                before,
                after: value.to_owned(),
            });
            store::write_json(&self.path, &all)?;
        }
        set(key, value)
    }

    /// Takes back every change that nobody else changed since, last one first.
    pub(crate) fn restore(&self) -> Vec<NetworkError> {
        let mut errors = Vec::new();
        match self.list() {
            Err(error) => errors.push(error),
            Ok(all) => {
                for change in all.iter().rev() {
                    if get(&change.key).as_deref() == Some(change.after.as_str()) {
                        errors.extend(set(&change.key, &change.before).err());
                    }
                }
            }
        }
        errors.extend(store::remove(&self.path).err());
        errors
    }
}
