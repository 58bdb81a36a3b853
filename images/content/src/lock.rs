//! Advisory locks of the store: `flock`, so that a killed process frees them.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::{ContentError, Result, Store};

/// Keeps the collector away while content is added or about to be used. Shared by any number of
/// holders, in this and other processes.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    _file: File,
}

/// Proof that no lease is held and none can be taken. Whoever holds it may remove content.
#[derive(Debug)]
#[must_use]
pub struct Exclusive {
    _file: File,
}

pub(crate) fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(ContentError::io("open", path))
}

impl Store {
    fn lease_path(&self) -> PathBuf {
        self.root().join("store.lock")
    }

    /// Takes a lease; waits only while a collection runs.
    ///
    /// # Errors
    /// When the lock file cannot be opened or locked.
    pub fn lease(&self) -> Result<Lease> {
        let path = self.lease_path();
        let file = open(&path)?;
        file.lock_shared()
            .map_err(ContentError::io("lock", &path))?;
        Ok(Lease { _file: file })
    }

    /// Keeps everybody from taking a lease; `None` when one is held.
    ///
    /// # Errors
    /// When the lock file cannot be opened or locked.
    pub fn try_exclusive(&self) -> Result<Option<Exclusive>> {
        let path = self.lease_path();
        let file = open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Exclusive { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(ContentError::io("lock", &path)(source)),
        }
    }
}
