//! The store itself: where things are, and reading blobs.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amphora_spec::Digest;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::ingest::hash_rest;
use crate::{ContentError, Result};

/// Largest manifest, index or config that is read into memory.
pub const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

const LAYOUT: &[u8] = b"{\"imageLayoutVersion\":\"1.0.0\"}";

/// A content store in a directory. Cloning is cheap and shares nothing but the path.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<Path>,
}

impl Store {
    /// Opens the store at `root`, making its directories on first use.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let store = Self {
            root: Arc::from(root),
        };
        let layout = root.join("oci-layout");
        if !layout.exists() {
            for dir in ["blobs/sha256", "ingest", "images"] {
                let path = root.join(dir);
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(ContentError::io("create directory", &path))?;
            }
            store.replace(&layout, LAYOUT)?;
        }
        Ok(store)
    }

    /// Returns the directory of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns where a blob is, or will be.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.root.join("blobs/sha256");
        path.push(digest.hex());
        path
    }

    pub(crate) fn ingest_dir(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// Returns the size of a blob, or `None` when the store does not hold it.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn has(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.blob_path(digest);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ContentError::io("stat", &path)(e)),
        }
    }

    /// Says whether a blob is there whole: not only its size decides, what it holds does. For a
    /// source that brings the bytes anyway, where a damaged one can be replaced.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn has_whole(&self, digest: &Digest, size: u64) -> Result<bool> {
        if self.has(digest)? != Some(size) {
            return Ok(false);
        }
        let path = self.blob_path(digest);
        let mut file = match self.open_blob(digest) {
            Err(ContentError::BlobNotFound(_)) => return Ok(false),
            opened => opened?,
        };
        let mut sum = Sha256::new();
        hash_rest(&mut file, &mut sum).map_err(ContentError::io("read", &path))?;
        Ok(finish(sum) == *digest)
    }

    /// Removes a blob that is not what its digest says; says whether it was not.
    ///
    /// # Errors
    /// When it cannot be read or removed.
    pub fn remove_damaged(&self, digest: &Digest) -> Result<bool> {
        let Some(size) = self.has(digest)? else {
            return Ok(false);
        };
        Ok(!self.has_whole(digest, size)? && self.remove_blob(digest)?)
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`ContentError::BlobNotFound`], or what the file system answers.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ContentError::BlobNotFound(*digest),
            _ => ContentError::io("open", &path)(e),
        })
    }

    /// Reads a whole blob of at most `limit` bytes and verifies it once more.
    ///
    /// # Errors
    /// [`ContentError::BlobNotFound`], [`ContentError::Limit`], [`ContentError::DigestMismatch`].
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let file = self.open_blob(digest)?;
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(ContentError::io("read", &self.blob_path(digest)))?;
        if bytes.len() as u64 > limit {
            return Err(ContentError::Limit {
                what: format!("size of blob {digest}"),
                limit,
            });
        }
        let actual = sha256(&bytes);
        if actual != *digest {
            return Err(ContentError::DigestMismatch {
                expected: *digest,
                actual,
            });
        }
        Ok(bytes)
    }

    /// Reads a JSON blob (manifest, index, config) of at most [`MAX_DOCUMENT_BYTES`].
    ///
    /// # Errors
    /// Those of [`Store::read_blob`], and [`ContentError::Json`].
    pub fn read_json<T: DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        let bytes = self.read_blob(digest, MAX_DOCUMENT_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|source| ContentError::Json {
            what: format!("blob {digest}"),
            source,
        })
    }

    /// Stores a small blob and returns its digest.
    ///
    /// # Errors
    /// When it cannot be written; nothing is visible then.
    pub fn write_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = sha256(bytes);
        let size = bytes.len() as u64;
        if self.has(&digest)? == Some(size) {
            if !self.has_whole(&digest, size)? {
                return self.rewrite_blob(bytes);
            }
        } else {
            let mut ingest = self.ingest(&digest, size)?;
            ingest.restart()?;
            ingest.put(bytes)?;
            ingest.commit()?;
        }
        Ok(digest)
    }

    /// Stores a small blob even where one of the same digest is: that one is damaged.
    ///
    /// # Errors
    /// When it cannot be written; what was there stays then.
    pub fn rewrite_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = sha256(bytes);
        self.replace(&self.blob_path(&digest), bytes)?;
        Ok(digest)
    }

    /// Waits until all that was written to the store's file system, layers too, is on disk. Called
    /// once before names are given: after a power failure a name leads to whole content.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn sync(&self) -> Result<()> {
        let sync = || rustix::fs::syncfs(File::open(&self.root)?).map_err(io::Error::from);
        sync().map_err(ContentError::io("sync", &self.root))
    }

    /// Removes a blob; says whether there was one. Callers hold [`crate::Exclusive`].
    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<bool> {
        remove_file(&self.blob_path(digest))
    }

    /// Writes a file whole: a temporary name, then a rename.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.replace_with(path, bytes, |_| Ok(()))
    }

    /// The same, on disk before it has its name, and the name too before it returns.
    pub(crate) fn replace_durably(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.replace_with(path, bytes, File::sync_data)?;
        let dir = path.parent().unwrap_or(&self.root);
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(ContentError::io("sync", dir))
    }

    fn replace_with(
        &self,
        path: &Path,
        bytes: &[u8],
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<()> {
        let mut temp = self.ingest_dir();
        temp.push(unique("doc"));
        let write = || {
            let mut file = File::create_new(&temp)?;
            file.write_all(bytes)?;
            sync(&file)
        };
        write()
            .and_then(|()| fs::rename(&temp, path))
            .inspect_err(|_| drop(fs::remove_file(&temp)))
            .map_err(ContentError::io("write", path))
    }
}

/// Returns the SHA-256 digest of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    finish(Sha256::new_with_prefix(bytes))
}

pub(crate) fn finish(hash: Sha256) -> Digest {
    Digest::from_sha256(hash.finalize().into())
}

/// Removes a file that may be gone; says whether it was there.
pub(crate) fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(ContentError::io("remove", path)(e)),
    }
}

/// Makes a name that no other thread or process uses now.
pub(crate) fn unique(kind: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{kind}-{}-{next}-{nanos:x}.tmp", std::process::id())
}
