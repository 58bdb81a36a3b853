//! Unpacking: a plain tar stream becomes the directory of a layer.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use amphora_content::tarball::{Entry, EntryKind, TarError, TarLimits, TarReader};
use amphora_content::tarball::{MAX_HEADER_BYTES, MAX_PATH_BYTES};
use amphora_spec::Digest;
use sha2::{Digest as _, Sha256};

use crate::layers::Attempt;
use crate::path::{Intent, RelPath, intent};
use crate::tree::{Fault, Tree};
use crate::{Layers, Result, SnapshotError};

/// Largest plain tar of a layer.
pub const MAX_LAYER_BYTES: u64 = 128 << 30;
/// Most entries of a layer.
pub const MAX_LAYER_ENTRIES: u64 = 4_000_000;
/// Most components of a path; keeps the removal of a tree within the default limit on descriptors.
pub const MAX_PATH_DEPTH: usize = 256;
/// Bytes that the directories of a layer, with their times, may take in memory: about 400,000.
pub const MAX_DIR_BYTES: usize = 64 << 20;

/// Bounds of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the plain tar.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of a path or link target.
    pub path_bytes: usize,
    /// Bytes of an extended header.
    pub header_bytes: u64,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of directories whose times are remembered until the layer is complete.
    pub dir_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: MAX_LAYER_BYTES,
            entries: MAX_LAYER_ENTRIES,
            path_bytes: MAX_PATH_BYTES,
            header_bytes: MAX_HEADER_BYTES,
            depth: MAX_PATH_DEPTH,
            dir_bytes: MAX_DIR_BYTES,
        }
    }
}

/// What an unpack did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Bytes of the plain tar; 0 when the layer was there already.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// The layer was there already, or another unpack made it meanwhile: nothing was read.
    pub reused: bool,
}

impl Layers {
    /// Unpacks a layer from its plain tar and verifies the stream against `diff_id` before the
    /// layer becomes visible. One layer is unpacked once: whoever comes second waits, and reads
    /// nothing of its stream.
    ///
    /// # Errors
    /// [`SnapshotError::Refused`] for entries that a layer must not have, [`SnapshotError::Tar`]
    /// for streams that are malformed or exceed `limits`, [`SnapshotError::DiffId`]; what the
    /// file system answers. Nothing is left behind then.
    pub fn unpack(&self, diff_id: &Digest, tar: impl Read, limits: &Limits) -> Result<Unpacked> {
        let Some(attempt) = self.begin(diff_id)? else {
            return Ok(Unpacked {
                reused: true,
                ..Unpacked::default()
            });
        };
        let unpacked = fill(&attempt, diff_id, tar, limits)?;
        self.finish(attempt, diff_id)?;
        Ok(unpacked)
    }
}

fn fill(attempt: &Attempt, diff_id: &Digest, tar: impl Read, limits: &Limits) -> Result<Unpacked> {
    let mut tree = Tree::new(open_root(&attempt.tree)?.into(), limits);
    let hashing = Hashing {
        inner: tar,
        hash: Sha256::new(),
    };
    let mut reader = TarReader::new(
        hashing,
        TarLimits {
            bytes: limits.bytes,
            entries: limits.entries,
            path_bytes: limits.path_bytes,
            header_bytes: limits.header_bytes,
        },
    );
    while let Some(entry) = reader.next()? {
        place(&mut tree, &entry, &mut reader, limits).map_err(|fault| failure(fault, &entry))?;
    }
    reader.drain()?;
    let (bytes, entries) = (reader.bytes_read(), reader.entries());
    let actual = Digest::from_sha256(reader.into_inner().hash.finalize().into());
    if actual != *diff_id {
        return Err(SnapshotError::DiffId {
            expected: *diff_id,
            actual,
        });
    }
    tree.finish()
        .map_err(|fault| failure_at(fault, "/".to_owned()))?;
    Ok(Unpacked {
        bytes,
        entries,
        reused: false,
    })
}

fn open_root(path: &Path) -> Result<File> {
    File::open(path).map_err(SnapshotError::io("open", path))
}

fn place<R: Read>(
    tree: &mut Tree,
    entry: &Entry,
    data: &mut TarReader<R>,
    limits: &Limits,
) -> std::result::Result<(), Fault> {
    let path = RelPath::parse(&entry.path, limits).map_err(Fault::Refused)?;
    match intent(&path).map_err(Fault::Refused)? {
        Intent::Skip => Ok(()),
        Intent::Opaque => tree.hide_all(path.split().map_or(&[], |(parent, _)| parent)),
        Intent::Hide(name) => tree.hide(path.split().map_or(&[], |(parent, _)| parent), name),
        Intent::Make => {
            let target = match entry.kind {
                EntryKind::HardLink => Some(
                    RelPath::parse(&entry.link, limits)
                        .map_err(|_| Fault::Refused("its hard link target leaves the layer"))?,
                ),
                _ => None,
            };
            tree.make(&path, entry, target.as_ref(), data)
        }
    }
}

fn failure(fault: Fault, entry: &Entry) -> SnapshotError {
    failure_at(fault, entry.name())
}

fn failure_at(fault: Fault, entry: String) -> SnapshotError {
    match fault {
        Fault::Refused(why) => SnapshotError::Refused { entry, why },
        Fault::Step(action, source) => SnapshotError::Place {
            action,
            entry,
            source,
        },
        Fault::Data(error) => match error.downcast::<TarError>() {
            Ok(inner) => SnapshotError::Tar(inner),
            Err(error) => SnapshotError::Tar(TarError::Read(error)),
        },
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}
