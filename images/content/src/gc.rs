//! Collection: what no reference reaches goes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use amphora_spec::image::{Descriptor, ImageConfig, Index, Manifest};
use amphora_spec::{Classify, Digest, ErrorKind, media};

use crate::records::digests_in;
use crate::store::remove_file;
use crate::{ContentError, Exclusive, Result, Store};

/// Deepest nesting of indexes that is followed.
pub(crate) const MAX_INDEX_DEPTH: usize = 8;

/// What is in use although no reference names it.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    /// Manifests or indexes, for example those of existing containers.
    pub manifests: Vec<Digest>,
    /// Unpacked layers by diff-id.
    pub layers: Vec<Digest>,
}

/// What the references and the pins reach.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Blobs: indexes, manifests, configs and layers.
    pub blobs: HashSet<Digest>,
    /// Unpacked layers by diff-id.
    pub layers: HashSet<Digest>,
}

/// What becomes of half-finished downloads that nobody works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partials {
    /// They stay, so that the next pull resumes.
    Keep,
    /// They go.
    Remove,
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// The store was in use, so nothing was looked at; the next collection finds it.
    pub deferred: bool,
    /// Removed blobs.
    pub blobs: Vec<Digest>,
    /// Removed layers, by diff-id (filled in by the owner of the layers).
    pub layers: Vec<Digest>,
    /// Bytes of the removed blobs.
    pub bytes: u64,
}

impl Store {
    /// Finds what the references and `pins` reach. Content that is named but absent (other
    /// platforms of an index) is no error.
    ///
    /// # Errors
    /// When the index or a document cannot be read: then nothing may be removed.
    pub fn live(&self, pins: &Pins) -> Result<Live> {
        let mut live = Live::default();
        live.layers.extend(&pins.layers);
        for entry in self.list_all()? {
            self.mark(&entry.target.digest, 0, &mut live)?;
        }
        for digest in &pins.manifests {
            self.mark(digest, 0, &mut live)?;
        }
        Ok(live)
    }

    fn mark(&self, digest: &Digest, depth: usize, live: &mut Live) -> Result<()> {
        if depth > MAX_INDEX_DEPTH || !live.blobs.insert(*digest) {
            return Ok(());
        }
        let Some(document) = present(self.read_json::<serde_json::Value>(digest))? else {
            return Ok(());
        };
        if document.get("manifests").is_some() {
            let Ok(index) = serde_json::from_value::<Index>(document) else {
                return Ok(());
            };
            for child in &index.manifests {
                self.mark(&child.digest, depth + 1, live)?;
            }
            return Ok(());
        }
        let Ok(manifest) = serde_json::from_value::<Manifest>(document) else {
            return Ok(());
        };
        live.blobs.insert(manifest.config.digest);
        live.blobs.extend(manifest.layers.iter().map(|l| l.digest));
        if is_image_config(&manifest.config)
            && let Some(config) = present(self.read_json::<ImageConfig>(&manifest.config.digest))?
        {
            live.layers.extend(&config.rootfs.diff_ids);
        }
        Ok(())
    }

    /// Removes blobs and image records that are not in `live`, what killed processes left, and
    /// half-finished downloads when asked to. The proof of exclusiveness comes from
    /// [`Store::try_exclusive`].
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn sweep(&self, _proof: &Exclusive, live: &Live, partials: Partials) -> Result<Collected> {
        let mut collected = Collected::default();
        let dir = self.root().join("blobs/sha256");
        for digest in digests_in(&dir, "").map_err(ContentError::io("read", &dir))? {
            if live.blobs.contains(&digest) {
                continue;
            }
            let size = self.has(&digest)?.unwrap_or(0);
            if self.remove_blob(&digest)? {
                collected.bytes = collected.bytes.saturating_add(size);
                collected.blobs.push(digest);
            }
        }
        for digest in self.records()? {
            if !live.blobs.contains(&digest) {
                self.remove_record(&digest)?;
            }
        }
        self.sweep_ingest(partials)?;
        Ok(collected)
    }

    fn sweep_ingest(&self, partials: Partials) -> Result<()> {
        let dir = self.ingest_dir();
        for entry in fs::read_dir(&dir).map_err(ContentError::io("read", &dir))? {
            let path = entry.map_err(ContentError::io("read", &dir))?.path();
            let stale = match path.extension().and_then(|e| e.to_str()) {
                Some("tmp") => !owner_lives(&path),
                Some("part") => partials == Partials::Remove && unlocked(&path),
                _ => false,
            };
            if stale {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Turns "not there", "damaged" and "too large for a document" (an index may name anything) into
/// `None`: such a blob is kept and leads nowhere. A full stop is only for what may be transient.
fn present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ContentError::Limit { .. }) => Ok(None),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DataLoss) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(crate) fn is_image_config(config: &Descriptor) -> bool {
    matches!(
        config.media_type.as_str(),
        media::OCI_CONFIG | media::DOCKER_CONFIG
    )
}

/// Temporary files carry the pid of their maker.
fn owner_lives(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let pid = name.split('-').nth(1).and_then(|p| p.parse::<u32>().ok());
    pid.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

fn unlocked(path: &Path) -> bool {
    match fs::File::open(path) {
        Ok(file) => file.try_lock().is_ok(),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}
