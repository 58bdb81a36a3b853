//! Taking content in: resumable when the digest is known, spooled when it is not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use amphora_spec::Digest;
use sha2::{Digest as _, Sha256};

use crate::store::{finish, remove_file, unique};
use crate::{ContentError, Result, Store};

const HASH_BUFFER_BYTES: usize = 256 << 10;

/// Adds what is left of a file to a digest; returns the number of bytes.
pub(crate) fn hash_rest(file: &mut File, hash: &mut Sha256) -> std::io::Result<u64> {
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    let mut done = 0;
    loop {
        let n = file.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..n).filter(|c| !c.is_empty()) else {
            return Ok(done);
        };
        hash.update(chunk);
        done += n as u64;
    }
}

/// A blob on its way in. Partial data stays on drop, for the next attempt to resume; only one
/// `Ingest` per digest exists at a time, over all processes.
#[derive(Debug)]
pub struct Ingest {
    digest: Digest,
    size: u64,
    offset: u64,
    target: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The store holds the blob already; writes are accepted and dropped.
    Present,
    Partial(Partial),
}

#[derive(Debug)]
struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    discard: bool,
}

impl Store {
    /// Starts or resumes taking in the blob `digest` of `size` bytes. Waits while another thread
    /// or process takes in the same blob; if that one succeeds, [`Ingest::is_present`] is true.
    ///
    /// # Errors
    /// When the partial file cannot be opened, locked or read.
    pub fn ingest(&self, digest: &Digest, size: u64) -> Result<Ingest> {
        let target = self.blob_path(digest);
        let path = self.ingest_dir().join(format!("{}.part", digest.hex()));
        let mut ingest = Ingest {
            digest: *digest,
            size,
            offset: size,
            target,
            state: State::Present,
        };
        if self.has(digest)? == Some(size) {
            return Ok(ingest);
        }
        let file = lock_partial(&path)?;
        if self.has(digest)? == Some(size) {
            remove_file(&path)?;
            return Ok(ingest);
        }
        let mut partial = Partial {
            path,
            file,
            hash: Sha256::new(),
            discard: false,
        };
        ingest.offset = partial.resume(size)?;
        ingest.state = State::Partial(partial);
        Ok(ingest)
    }
}

/// Opens and locks the partial file; makes sure that the path still names it afterwards, because
/// the one we waited for has renamed or removed it.
fn lock_partial(path: &Path) -> Result<File> {
    loop {
        let file = crate::lock::open(path)?;
        file.lock().map_err(ContentError::io("lock", path))?;
        let ours = file.metadata().map_err(ContentError::io("stat", path))?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ContentError::io("stat", path)(e)),
        }
    }
}

impl Partial {
    /// Hashes what is there already; starts over when it is longer than the blob.
    fn resume(&mut self, size: u64) -> Result<u64> {
        let length = self
            .file
            .metadata()
            .map_err(ContentError::io("stat", &self.path))?
            .len();
        if length > size {
            self.truncate()?;
            return Ok(0);
        }
        if length == 0 {
            return Ok(0);
        }
        hash_rest(&mut self.file, &mut self.hash).map_err(ContentError::io("read", &self.path))
    }

    fn truncate(&mut self) -> Result<()> {
        self.hash = Sha256::new();
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map(drop)
            .map_err(ContentError::io("truncate", &self.path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.discard {
            // Best effort: a leftover is found by the next attempt or by the collector.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Ingest {
    /// Returns how many bytes are there already: where a download goes on.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the announced size.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Says whether the store holds the blob already, so that nothing need be written.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        matches!(self.state, State::Present)
    }

    /// Throws the partial data away and starts at offset 0, for a server that cannot resume.
    ///
    /// # Errors
    /// When the partial file cannot be truncated.
    pub fn restart(&mut self) -> Result<()> {
        if let State::Partial(partial) = &mut self.state {
            partial.truncate()?;
            self.offset = 0;
        }
        Ok(())
    }

    /// Appends bytes. A blob that grows over its announced size is refused at once; when the disk
    /// is full the partial data is given back on drop.
    ///
    /// # Errors
    /// [`ContentError::SizeMismatch`], or what the file system answers.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let State::Partial(partial) = &mut self.state else {
            return Ok(());
        };
        let length = self.offset.saturating_add(bytes.len() as u64);
        if length > self.size {
            partial.discard = true;
            return Err(ContentError::SizeMismatch {
                digest: self.digest,
                expected: self.size,
                actual: length,
            });
        }
        if let Err(source) = partial.file.write_all(bytes) {
            partial.discard = is_full(&source);
            return Err(ContentError::io("write", &partial.path)(source));
        }
        partial.hash.update(bytes);
        self.offset = length;
        Ok(())
    }

    /// Opens what is there already: the first [`Ingest::offset`] bytes of the blob.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn partial(&self) -> Result<io::Take<File>> {
        let path = match &self.state {
            State::Present => &self.target,
            State::Partial(partial) => &partial.path,
        };
        let file = File::open(path).map_err(ContentError::io("open", path))?;
        Ok(file.take(self.offset))
    }

    /// Verifies size and digest and leaves the blob invisible, for whoever has more to verify
    /// before [`Ingest::commit`]. Data that fails is removed on drop.
    ///
    /// # Errors
    /// [`ContentError::SizeMismatch`], [`ContentError::DigestMismatch`].
    pub fn verify(&mut self) -> Result<()> {
        let State::Partial(partial) = &mut self.state else {
            return Ok(());
        };
        if self.offset != self.size {
            return Err(ContentError::SizeMismatch {
                digest: self.digest,
                expected: self.size,
                actual: self.offset,
            });
        }
        let actual = finish(partial.hash.clone());
        if actual != self.digest {
            partial.discard = true;
            return Err(ContentError::DigestMismatch {
                expected: self.digest,
                actual,
            });
        }
        Ok(())
    }

    /// Gives the partial data up: nothing stays.
    pub fn discard(mut self) {
        if let State::Partial(partial) = &mut self.state {
            partial.discard = true;
        }
    }

    /// Verifies size and digest and makes the blob visible. Data that fails is removed; data that
    /// is merely too short stays, to be resumed.
    ///
    /// # Errors
    /// [`ContentError::SizeMismatch`], [`ContentError::DigestMismatch`].
    pub fn commit(self) -> Result<()> {
        let State::Partial(mut partial) = self.state else {
            return Ok(());
        };
        if self.offset != self.size {
            return Err(ContentError::SizeMismatch {
                digest: self.digest,
                expected: self.size,
                actual: self.offset,
            });
        }
        let actual = finish(std::mem::take(&mut partial.hash));
        if actual != self.digest {
            partial.discard = true;
            return Err(ContentError::DigestMismatch {
                expected: self.digest,
                actual,
            });
        }
        fs::rename(&partial.path, &self.target).map_err(ContentError::io("create", &self.target))
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes).map_err(into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the class of an error that has to travel through `std::io`.
fn into_io(error: ContentError) -> io::Error {
    match error {
        ContentError::Io { source, .. } => source,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Content whose digest is known only at its end. Removed on drop unless committed.
#[derive(Debug)]
pub struct Spool {
    temp: Temp,
    file: File,
    hash: Sha256,
    size: u64,
}

/// A finished [`Spool`]: readable, not yet visible as a blob. Removed on drop.
#[derive(Debug)]
pub struct Spooled {
    temp: Temp,
    digest: Digest,
    size: u64,
}

#[derive(Debug)]
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

impl Store {
    /// Starts taking in content of unknown digest.
    ///
    /// # Errors
    /// When the temporary file cannot be made.
    pub fn spool(&self) -> Result<Spool> {
        let path = self.ingest_dir().join(unique("spool"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(ContentError::io("create", &path))?;
        Ok(Spool {
            temp: Temp(path),
            file,
            hash: Sha256::new(),
            size: 0,
        })
    }
}

impl Spool {
    /// Appends bytes.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(ContentError::io("write", &self.temp.0))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Ends the content.
    #[must_use]
    pub fn finish(self) -> Spooled {
        Spooled {
            temp: self.temp,
            digest: finish(self.hash),
            size: self.size,
        }
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes).map_err(into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Spooled {
    /// Returns the digest of the content.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the size of the content.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Opens the content for reading.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn open(&self) -> Result<File> {
        File::open(&self.temp.0).map_err(ContentError::io("open", &self.temp.0))
    }

    /// Makes the content visible as a blob.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn commit(self, store: &Store) -> Result<Digest> {
        let target = store.blob_path(&self.digest);
        if !store.has_whole(&self.digest, self.size)? {
            fs::rename(&self.temp.0, &target).map_err(ContentError::io("create", &target))?;
        }
        Ok(self.digest)
    }
}
