//! The layer directories: names, locks, appearance and removal.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amphora_spec::Digest;

use crate::{Result, SnapshotError};

/// Prefix of the directory in which a layer is unpacked; its lock says whether somebody works.
const UNPACK: &str = ".unpack-";
/// Prefix of layers on their way out.
const REMOVE: &str = ".remove-";
/// Empty directories: the lower layers of images that have too few.
const EMPTY: [&str; 2] = [".empty-0", ".empty-1"];

/// The unpacked layers of a data root. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Layers {
    root: Arc<Path>,
}

/// An unpack in progress. Dropped unfinished, it removes what it made.
#[derive(Debug)]
pub(crate) struct Attempt {
    dir: PathBuf,
    pub(crate) tree: PathBuf,
    _lock: File,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Best effort, still under the lock: the collector finds what stays.
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl Layers {
    /// Opens the layers of the data root `root`, making the directory on first use.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let root = root.join("layers");
        let [first, last] = EMPTY.map(|name| root.join(name));
        if !last.exists() {
            make_dir(&root, 0o700)?;
            make_dir(&first, 0o755)?;
            make_dir(&last, 0o755)?;
        }
        Ok(Self {
            root: Arc::from(root),
        })
    }

    /// Returns the directory of the layers.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns where a layer is, or will be.
    #[must_use]
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join(diff_id.hex())
    }

    pub(crate) fn empty(&self) -> [PathBuf; 2] {
        EMPTY.map(|name| self.root.join(name))
    }

    /// Says whether a layer is unpacked.
    #[must_use]
    pub fn has(&self, diff_id: &Digest) -> bool {
        self.path(diff_id).exists()
    }

    /// Lists the unpacked layers.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Digest>> {
        let names = self.names()?;
        Ok(names
            .iter()
            .filter_map(|n| Digest::from_hex(n).ok())
            .collect())
    }

    fn names(&self) -> Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            let entries = fs::read_dir(&self.root)?;
            entries
                .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        read().map_err(SnapshotError::io("read", &self.root))
    }

    /// Claims the unpacking of a layer; `None` when it is there. Waits for whoever unpacks it.
    pub(crate) fn begin(&self, diff_id: &Digest) -> Result<Option<Attempt>> {
        let dir = self.root.join(format!("{UNPACK}{}", diff_id.hex()));
        loop {
            if self.has(diff_id) {
                return Ok(None);
            }
            let Some(lock) = lock_dir(&dir)? else {
                continue;
            };
            let attempt = Attempt {
                tree: dir.join("fs"),
                dir: dir.clone(),
                _lock: lock,
            };
            if self.has(diff_id) {
                return Ok(None);
            }
            if attempt.tree.exists() {
                fs::remove_dir_all(&attempt.tree)
                    .map_err(SnapshotError::io("remove", &attempt.tree))?;
            }
            make_dir(&attempt.tree, 0o755)?;
            // The mode of the root shows in containers, so the umask must not.
            fs::set_permissions(&attempt.tree, fs::Permissions::from_mode(0o755))
                .map_err(SnapshotError::io("set mode of", &attempt.tree))?;
            return Ok(Some(attempt));
        }
    }

    /// Makes an unpacked layer visible.
    pub(crate) fn finish(&self, attempt: Attempt, diff_id: &Digest) -> Result<()> {
        let target = self.path(diff_id);
        fs::rename(&attempt.tree, &target).map_err(SnapshotError::io("create", &target))?;
        drop(attempt);
        Ok(())
    }

    /// Removes a layer that nothing uses any more; says whether it was there.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(&self, diff_id: &Digest) -> Result<bool> {
        let path = self.path(diff_id);
        let gone = self
            .root
            .join(format!("{REMOVE}{}-{}", diff_id.hex(), std::process::id()));
        match fs::rename(&path, &gone) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(SnapshotError::io("remove", &path)(e)),
        }
        fs::remove_dir_all(&gone).map_err(SnapshotError::io("remove", &gone))?;
        Ok(true)
    }

    /// Removes what killed processes left.
    ///
    /// # Errors
    /// When a directory cannot be removed.
    pub fn sweep(&self) -> Result<()> {
        for name in self.names()? {
            let path = self.root.join(&name);
            let stale = name.starts_with(REMOVE)
                || (name.starts_with(UNPACK)
                    && File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok()));
            if stale {
                match fs::remove_dir_all(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(SnapshotError::io("remove", &path)(e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Makes and locks the directory of an unpack; `None` when it went away meanwhile.
fn lock_dir(dir: &Path) -> Result<Option<File>> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(SnapshotError::io("create directory", dir)(e));
        }
        _ => {}
    }
    let not_found = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let lock = match File::open(dir) {
        Ok(lock) => lock,
        Err(e) if not_found(&e) => return Ok(None),
        Err(e) => return Err(SnapshotError::io("open", dir)(e)),
    };
    lock.lock().map_err(SnapshotError::io("lock", dir))?;
    let ours = lock.metadata().map_err(SnapshotError::io("stat", dir))?;
    match fs::symlink_metadata(dir) {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => Ok(Some(lock)),
        Ok(_) => Ok(None),
        Err(e) if not_found(&e) => Ok(None),
        Err(e) => Err(SnapshotError::io("stat", dir)(e)),
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(SnapshotError::io("create directory", path)),
        other => other.map_err(SnapshotError::io("create directory", path)),
    }
}
