//! The files of an archive, spooled into the store's ingest directory.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, Read};

use amphora_spec::Digest;
use amphora_spec::media::Compression;

use crate::compress::{MAGIC_BYTES, read_full, sniff};
use crate::tarball::{Entry, EntryKind, TarError, TarReader};
use crate::{ContentError, MAX_DOCUMENT_BYTES, Result, Spooled, Store};

/// Documents with a fixed name, kept in memory.
const DOCUMENTS: [&str; 3] = ["oci-layout", "index.json", "manifest.json"];
/// Longest chain of links inside an archive.
const MAX_LINKS: usize = 16;

/// The files of an archive by normalised path.
#[derive(Debug)]
pub(super) struct Files<'a> {
    store: &'a Store,
    documents: HashMap<String, Vec<u8>>,
    items: HashMap<String, Item>,
    /// Documents made here, such as the manifest of a docker archive.
    made: Vec<Spooled>,
    wanted: HashSet<String>,
}

#[derive(Debug)]
enum Item {
    Spooled(Spooled),
    /// A blob that the store holds already, so that its data was skipped.
    Present(Digest, u64),
    Link(String),
}

/// A file of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl<'a> Files<'a> {
    /// Reads the archive to its end.
    pub(super) fn read<R: Read>(store: &'a Store, mut tar: TarReader<R>) -> Result<Self> {
        let mut files = Self {
            store,
            documents: HashMap::new(),
            items: HashMap::new(),
            made: Vec::new(),
            wanted: HashSet::new(),
        };
        while let Some(entry) = tar.next()? {
            files.take(&entry, &mut tar)?;
        }
        // Sums at the end of a compressed stream are checked only when it is read whole.
        tar.drain()?;
        Ok(files)
    }

    fn take<R: Read>(&mut self, entry: &Entry, tar: &mut TarReader<R>) -> Result<()> {
        let Some(path) = normalise("", &entry.path) else {
            return Err(ContentError::Archive(format!(
                "entry \"{}\" leaves it",
                entry.name()
            )));
        };
        let item = match entry.kind {
            EntryKind::File if DOCUMENTS.contains(&path.as_str()) => {
                let bytes = document(tar, &path)?;
                self.documents.insert(path, bytes);
                return Ok(());
            }
            EntryKind::File => self.spool(&path, entry.size, tar)?,
            EntryKind::Symlink => {
                let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                match normalise(dir, &entry.link) {
                    Some(target) => Item::Link(target),
                    None => return Ok(()),
                }
            }
            EntryKind::HardLink => match normalise("", &entry.link) {
                Some(target) => Item::Link(target),
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        self.items.insert(path, item);
        Ok(())
    }

    fn spool<R: Read>(&self, path: &str, size: u64, tar: &mut TarReader<R>) -> Result<Item> {
        let named = path.strip_prefix("blobs/sha256/").map(Digest::from_hex);
        if let Some(Ok(digest)) = &named
            && self.store.has_whole(digest, size)?
        {
            return Ok(Item::Present(*digest, size));
        }
        let mut spool = self.store.spool()?;
        loop {
            let chunk = tar.fill_buf().map_err(tar_error)?;
            if chunk.is_empty() {
                break;
            }
            spool.put(chunk)?;
            let n = chunk.len();
            tar.consume(n);
        }
        let spooled = spool.finish();
        match named {
            Some(Ok(expected)) if expected != *spooled.digest() => {
                Err(ContentError::DigestMismatch {
                    expected,
                    actual: *spooled.digest(),
                })
            }
            _ => Ok(Item::Spooled(spooled)),
        }
    }

    pub(super) fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(Vec::as_slice)
    }

    /// Finds a file by path, through links.
    pub(super) fn find(&self, path: &str) -> Option<Held> {
        let (held, _) = self.locate(path)?;
        Some(held)
    }

    fn locate(&self, path: &str) -> Option<(Held, &str)> {
        let mut path = normalise("", path.as_bytes())?;
        for _ in 0..MAX_LINKS {
            let (key, item) = self.items.get_key_value(&path)?;
            match item {
                Item::Spooled(s) => {
                    return Some((
                        Held {
                            digest: *s.digest(),
                            size: s.size(),
                        },
                        key,
                    ));
                }
                Item::Present(digest, size) => {
                    return Some((
                        Held {
                            digest: *digest,
                            size: *size,
                        },
                        key,
                    ));
                }
                Item::Link(target) => path.clone_from(target),
            }
        }
        None
    }

    /// Finds a blob in the archive, or in the store.
    pub(super) fn find_blob(&self, digest: &Digest) -> Result<Option<Held>> {
        if let Some(held) = self.find(&blob_path(digest)) {
            return Ok(Some(held));
        }
        Ok(self.store.has(digest)?.map(|size| Held {
            digest: *digest,
            size,
        }))
    }

    fn open(&self, path: &str) -> Result<File> {
        let missing = || ContentError::Archive(format!("\"{path}\" is missing"));
        let (held, key) = self.locate(path).ok_or_else(missing)?;
        match self.items.get(key) {
            Some(Item::Spooled(spooled)) => spooled.open(),
            _ => self.store.open_blob(&held.digest),
        }
    }

    /// Reads a document whole.
    pub(super) fn read_document(&self, path: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limit = MAX_DOCUMENT_BYTES;
        self.open(path)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| ContentError::Read {
                what: "image archive",
                source,
            })?;
        if bytes.len() as u64 > limit {
            return Err(ContentError::Limit {
                what: format!("size of \"{path}\""),
                limit,
            });
        }
        Ok(bytes)
    }

    /// Reads a document that is a blob of the archive or of the store.
    pub(super) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = blob_path(digest);
        match self.find(&path) {
            Some(_) => self.read_document(&path),
            None => self.store.read_blob(digest, MAX_DOCUMENT_BYTES),
        }
    }

    /// Recognises the compression of a file and, where it is compressed, sums up its content.
    pub(super) fn plain_digest(&self, path: &str, held: Held) -> Result<(Compression, Digest)> {
        let read = |source| ContentError::Read {
            what: "layer of the image archive",
            source,
        };
        let mut file = self.open(path)?;
        let mut start = [0; MAGIC_BYTES];
        let n = read_full(&mut file, &mut start).map_err(read)?;
        let kind = sniff(start.get(..n).unwrap_or_default())
            .map_err(|e| read(std::io::Error::new(std::io::ErrorKind::Unsupported, e)))?;
        if kind == Compression::None {
            return Ok((kind, held.digest));
        }
        let mut plain = crate::compress::decompress(kind, self.open(path)?).map_err(read)?;
        let mut sum = <sha2::Sha256 as sha2::Digest>::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = plain.read(&mut buffer).map_err(read)?;
            let Some(chunk) = buffer.get(..n).filter(|c| !c.is_empty()) else {
                break;
            };
            sha2::Digest::update(&mut sum, chunk);
        }
        Ok((kind, crate::store::finish(sum)))
    }

    /// Adds a document.
    pub(super) fn make(&mut self, bytes: &[u8]) -> Result<Held> {
        let mut spool = self.store.spool()?;
        spool.put(bytes)?;
        let spooled = spool.finish();
        let held = Held {
            digest: *spooled.digest(),
            size: spooled.size(),
        };
        self.made.push(spooled);
        Ok(held)
    }

    /// Notes that a file is part of an image.
    pub(super) fn want(&mut self, path: &str) {
        if let Some(key) = self.locate(path).map(|(_, key)| key.to_owned()) {
            self.wanted.insert(key);
        }
    }

    /// Notes that a blob is part of an image.
    pub(super) fn want_blob(&mut self, digest: &Digest) {
        self.want(&blob_path(digest));
    }

    /// Makes all wanted files visible as blobs; the others go.
    pub(super) fn commit(self) -> Result<()> {
        for (key, item) in self.items {
            if let Item::Spooled(spooled) = item
                && self.wanted.contains(&key)
            {
                spooled.commit(self.store)?;
            }
        }
        for spooled in self.made {
            spooled.commit(self.store)?;
        }
        Ok(())
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn document<R: Read>(tar: &mut TarReader<R>, path: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = MAX_DOCUMENT_BYTES;
    Read::take(tar, limit + 1)
        .read_to_end(&mut bytes)
        .map_err(tar_error)?;
    if bytes.len() as u64 > limit {
        return Err(ContentError::Limit {
            what: format!("size of \"{path}\""),
            limit,
        });
    }
    Ok(bytes)
}

fn tar_error(error: std::io::Error) -> ContentError {
    match error.downcast::<TarError>() {
        Ok(inner) => inner.into(),
        Err(source) => TarError::Read(source).into(),
    }
}

/// Joins and normalises a path inside the archive; `None` when it leaves the archive or is no text.
fn normalise(dir: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = Vec::new();
    let dir = if path.starts_with('/') { "" } else { dir };
    for part in dir.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
