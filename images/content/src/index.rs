//! References: the entries of `index.json`.

use std::fs;
use std::io;
use std::path::PathBuf;

use amphora_spec::image::{Descriptor, Index};
use amphora_spec::{Digest, Reference, media};

use crate::{ContentError, Result, Store};

/// Annotation with the whole normalised reference.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with the tag alone.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An entry of the index: an image, with or without a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The name; `None` for an image that lost its tag or never had one.
    pub reference: Option<Reference>,
    /// What the name points at: a manifest or an index.
    pub target: Descriptor,
}

impl Store {
    fn index_path(&self) -> PathBuf {
        self.root().join("index.json")
    }

    fn read_index(&self) -> Result<Index> {
        let path = self.index_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(empty()),
            Err(e) => return Err(ContentError::io("read", &path)(e)),
        };
        serde_json::from_slice(&bytes).map_err(|source| ContentError::Json {
            what: format!("\"{}\"", path.display()),
            source,
        })
    }

    /// Changes the index under its lock; writes only what differs.
    fn update<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> T) -> Result<T> {
        let lock_path = self.root().join("index.lock");
        let lock = crate::lock::open(&lock_path)?;
        lock.lock().map_err(ContentError::io("lock", &lock_path))?;
        let mut index = self.read_index()?;
        let before = index.manifests.clone();
        let result = change(&mut index.manifests);
        if index.manifests != before {
            let bytes = serde_json::to_vec(&index).map_err(|source| ContentError::Json {
                what: "image index".to_owned(),
                source,
            })?;
            self.replace_durably(&self.index_path(), &bytes)?;
        }
        Ok(result)
    }

    /// Names an image. Returns what the name pointed at before, if that was another image; it
    /// stays in the store without a name when it has no other.
    ///
    /// # Errors
    /// When the index cannot be read or written.
    pub fn tag(&self, reference: &Reference, target: &Descriptor) -> Result<Option<Descriptor>> {
        let name = reference.clone().with_default_tag();
        let full = name.to_string();
        let mut entry = bare(target);
        entry
            .annotations
            .insert(IMAGE_NAME.to_owned(), full.clone());
        if let Some(tag) = name.tag() {
            entry
                .annotations
                .insert(REF_NAME.to_owned(), tag.to_owned());
        }
        self.update(|entries| {
            let previous = take(entries, &full).filter(|old| old.digest != target.digest);
            entries.retain(|e| e.digest != target.digest || e.annotations.contains_key(IMAGE_NAME));
            entries.push(entry);
            if let Some(old) = &previous
                && entries.iter().all(|e| e.digest != old.digest)
            {
                entries.push(old.clone());
            }
            previous
        })
    }

    /// Keeps an image without a name, unless it has an entry already.
    ///
    /// # Errors
    /// When the index cannot be read or written.
    pub fn keep_untagged(&self, target: &Descriptor) -> Result<()> {
        self.update(|entries| {
            if entries.iter().all(|e| e.digest != target.digest) {
                entries.push(bare(target));
            }
        })
    }

    /// Removes a name and returns what it pointed at. The content stays until the collector runs.
    ///
    /// # Errors
    /// When the index cannot be read or written.
    pub fn untag(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let full = reference.clone().with_default_tag().to_string();
        self.update(|entries| take(entries, &full))
    }

    /// Removes every entry that points at `digest` and returns the names that went.
    ///
    /// # Errors
    /// When the index cannot be read or written.
    pub fn untag_all(&self, digest: &Digest) -> Result<Vec<Reference>> {
        self.update(|entries| {
            let gone = entries
                .iter()
                .filter(|e| e.digest == *digest)
                .filter_map(name_of)
                .collect();
            entries.retain(|e| e.digest != *digest);
            gone
        })
    }

    /// Finds what a reference points at. A reference with a digest also finds an image of the
    /// same repository that is known by a tag only.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let wanted = reference.clone().with_default_tag();
        let full = wanted.to_string();
        let mut entries = self.read_index()?.manifests;
        if let Some(found) = take(&mut entries, &full) {
            return Ok(Some(found));
        }
        let Some(digest) = wanted.digest() else {
            return Ok(None);
        };
        let same = |e: &&Descriptor| {
            e.digest == *digest && name_of(e).is_some_and(|n| n.repository() == wanted.repository())
        };
        Ok(entries.iter().find(same).map(bare))
    }

    /// Lists the named images.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn list(&self) -> Result<Vec<(Reference, Descriptor)>> {
        let entries = self.read_index()?.manifests;
        Ok(entries
            .iter()
            .filter_map(|e| name_of(e).map(|n| (n, bare(e))))
            .collect())
    }

    /// Lists all images, those without a name too.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn list_all(&self) -> Result<Vec<Named>> {
        let entries = self.read_index()?.manifests;
        let named = |e| Named {
            reference: name_of(e),
            target: bare(e),
        };
        Ok(entries.iter().map(named).collect())
    }
}

fn empty() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media::OCI_INDEX.to_owned()),
        manifests: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
    }
}

fn name_of(entry: &Descriptor) -> Option<Reference> {
    entry.annotations.get(IMAGE_NAME)?.parse().ok()
}

/// Returns the descriptor without the annotations that hold its name.
fn bare(entry: &Descriptor) -> Descriptor {
    let mut entry = entry.clone();
    entry.annotations.remove(IMAGE_NAME);
    entry.annotations.remove(REF_NAME);
    entry
}

fn take(entries: &mut Vec<Descriptor>, full: &str) -> Option<Descriptor> {
    let is = |e: &Descriptor| e.annotations.get(IMAGE_NAME).is_some_and(|n| n == full);
    let at = entries.iter().position(is)?;
    Some(bare(&entries.remove(at)))
}
