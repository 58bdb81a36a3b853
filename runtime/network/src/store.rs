//! Small files: JSON written whole by rename, removal that does not mind, locks.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{NetworkError, Result, file};

/// Reads a JSON file; `None` when it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| NetworkError::Config {
                    path: path.to_owned(),
                    source,
                })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

/// Writes a JSON file so that readers see all of it or the old one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(|source| NetworkError::Config {
        path: path.to_owned(),
        source,
    })?;
    replace(path, &bytes)
}

/// Writes a file so that readers see all of it or the old one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    fs::write(&temporary, bytes).map_err(file("write", Path::new(&temporary)))?;
    fs::rename(&temporary, path).map_err(file("write", path))
}

/// Removes a file; a missing one is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes an empty file; one that is there is fine.
pub(crate) fn touch(path: &Path) -> Result<()> {
    fs::write(path, b"").map_err(file("write", path))
}

/// Makes a directory and those above it.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => fs::create_dir_all(path).map_err(file("create", path)),
    }
}

/// Takes an exclusive lock; closing the descriptor gives it back.
pub(crate) fn lock(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let fd = open(path, flags, Mode::from_raw_mode(0o600)).map_err(file("open", path))?;
    flock(&fd, FlockOperation::LockExclusive).map_err(file("lock", path))?;
    Ok(fd)
}
