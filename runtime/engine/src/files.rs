//! Small file operations that name their file, and the locks of containers.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amphora_spec::{Classify, ContainerId, ErrorKind};
use rustix::fs::{Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};

use crate::{EngineError, Result};

/// Longest somebody may take to see that a directory without records holds nothing.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a directory of the given mode; an existing one is fine.
pub(crate) fn ensure_dir(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|e| EngineError::file("create directory", path, e)),
        Err(e) => Err(EngineError::file("create directory", path, e)),
    }
}

/// Makes a directory that must not exist yet.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(|e| EngineError::file("create directory", path, e))
}

/// Removes a tree; a missing one is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(EngineError::file("remove", path, e))
        }
        _ => Ok(()),
    }
}

/// Removes a run directory whose lock the caller holds, the lock last: whoever finds it gone takes
/// the directory over as it is, and finds nothing of ours in it.
pub(crate) fn remove_run_dir(dir: &Path) -> Result<()> {
    const LOCK: &str = "lock";
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(EngineError::file("read", dir, e)),
    };
    for entry in entries.flatten().filter(|e| e.file_name() != LOCK) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        } else {
            unlink(&entry.path())?;
        }
    }
    unlink(&dir.join(LOCK))?;
    match fs::remove_dir(dir) {
        Err(e)
            if !matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(EngineError::file("remove", dir, e))
        }
        _ => Ok(()),
    }
}

/// Unlinks a file; a missing one is fine.
pub(crate) fn unlink(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(EngineError::file("remove", path, e))
        }
        _ => Ok(()),
    }
}

/// Frees a container's name, unless it is somebody else's by now.
pub(crate) fn free_name(path: &Path, id: &ContainerId) -> Result<()> {
    if fs::read_link(path).is_ok_and(|t| t.as_os_str() == id.hex().as_str()) {
        unlink(path)?;
    }
    Ok(())
}

/// Writes a small file.
pub(crate) fn write(path: &Path, data: &[u8]) -> Result<()> {
    write_open(path, data).map(drop)
}

fn write_open(path: &Path, data: &[u8]) -> Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| file.write_all(data).map(|()| file))
        .map_err(|e| EngineError::file("write", path, e))
}

/// How long a file is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// It goes when its container ends.
    Briefly,
    /// It is to survive a power cut.
    Long,
}

/// Writes a JSON record to a temporary file and renames it into place. Nothing is waited for, but
/// what is to last goes on its way to the disk first: a file system that puts off where data go
/// would else have the name there half a minute before them, and a cut would leave an empty file.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T, lasting: Lasting) -> Result<()> {
    let data = serde_json::to_vec(value).map_err(|source| EngineError::Record {
        path: path.to_owned(),
        source,
    })?;
    let temp = path.with_extension("tmp");
    let file = write_open(&temp, &data)?;
    if lasting == Lasting::Long {
        // Advice: what it fails at is no failure of ours.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
    fs::rename(&temp, path).map_err(|e| EngineError::file("rename", &temp, e))
}

/// Reads a JSON record; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let data = match fs::read(path) {
        Ok(data) => data,
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(EngineError::file("read", path, e)),
    };
    serde_json::from_slice(&data)
        .map(Some)
        .map_err(|source| EngineError::Record {
            path: path.to_owned(),
            source,
        })
}

/// Draws random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    let path = Path::new("/dev/urandom");
    let mut filled = 0;
    while filled < N {
        let Some(rest) = bytes.get_mut(filled..) else {
            break;
        };
        filled += rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| EngineError::file("read", path, e))?;
    }
    Ok(bytes)
}

/// The lock of one container: held by whoever creates, starts or removes it, and by its
/// supervisor while it runs. An open file description, so it travels through `exec`.
#[derive(Debug)]
pub(crate) struct Lock {
    file: OwnedFd,
    dir: PathBuf,
}

impl Lock {
    /// Takes the lock in the run directory `dir`, making both; `None` when somebody holds it.
    pub(crate) fn try_acquire(dir: &Path) -> Result<Option<Self>> {
        loop {
            ensure_dir(dir, 0o700)?;
            let Ok(handle) = open_dir(dir) else { continue };
            let file = match amphora_supervisor::try_lock(handle.as_fd()) {
                Ok(Some(file)) => file,
                Ok(None) => return Ok(None),
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(EngineError::plain(e)),
            };
            // Somebody may have removed the directory between open and lock.
            let path = dir.join("lock");
            let same = match (rustix::fs::fstat(&file), fs::metadata(&path)) {
                (Ok(a), Ok(b)) => a.st_ino == b.ino() && a.st_dev == b.dev(),
                _ => false,
            };
            if same {
                return Ok(Some(Self {
                    file,
                    dir: dir.to_owned(),
                }));
            }
        }
    }

    /// Takes the lock of a container that is being made, waiting for whoever found its directory
    /// before it was locked and takes it for a leftover.
    pub(crate) fn acquire_new(dir: &Path) -> Result<Self> {
        let deadline = Instant::now() + LEFTOVER_TIMEOUT;
        loop {
            if let Some(lock) = Self::try_acquire(dir)? {
                return Ok(lock);
            }
            if Instant::now() > deadline {
                return Err(EngineError::State(format!(
                    "{} stays locked",
                    dir.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The lock of the run directory `dir`, inherited from whoever took it.
    pub(crate) fn inherited(file: OwnedFd, dir: PathBuf) -> Self {
        Self { file, dir }
    }

    /// Says whether somebody holds the lock in `dir`.
    pub(crate) fn is_held(dir: &Path) -> bool {
        open_dir(dir).is_ok_and(|d| amphora_supervisor::is_alive(d.as_fd()).unwrap_or(false))
    }

    /// Returns another descriptor of the same lock, to hand over.
    pub(crate) fn share(&self) -> Result<OwnedFd> {
        self.file
            .try_clone()
            .map_err(|e| EngineError::file("duplicate", &self.dir.join("lock"), e))
    }

    /// Removes the run directory while the lock is held.
    pub(crate) fn remove_dir(self) -> Result<()> {
        remove_run_dir(&self.dir)
    }
}

/// Opens a directory.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| EngineError::file("open", path, e))
}
