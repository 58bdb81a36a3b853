//! Writing image archives: what `docker save` writes since Docker 25, an OCI image layout with a
//! `manifest.json` beside it. The same images in the same order are the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use amphora_spec::image::{Descriptor, Index, Manifest};
use amphora_spec::media::{self, LayerKind, layer_kind};
use amphora_spec::{Digest, Reference};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::gc::MAX_INDEX_DEPTH;
use crate::index::{IMAGE_NAME, REF_NAME};
use crate::tarball::{Entry, EntryKind, TarWriter};
use crate::{ContentError, Result, Store};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image that goes into an archive.
#[derive(Debug, Clone)]
pub struct Saved {
    /// What the names point at: a manifest, or an index.
    pub target: Descriptor,
    /// Its names; none for an image that was asked for by its id.
    pub names: Vec<Reference>,
    /// The one image of it that readers of `manifest.json` get.
    pub manifest: Descriptor,
}

/// One image of `manifest.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Writes an archive of images. The caller holds a [`Lease`](crate::Lease).
///
/// # Errors
/// When a blob is missing or damaged, or `out` cannot be written.
pub fn save<W: Write>(store: &Store, images: &[Saved], out: W) -> Result<W> {
    let mut blobs = BTreeMap::new();
    let (mut entries, mut listed) = (Vec::new(), Vec::new());
    for image in images {
        gather(store, &image.target, 0, &mut blobs)?;
        entries.extend(named(image));
        listed.extend(list(store, image)?);
    }
    let index = Index {
        schema_version: 2,
        media_type: Some(media::OCI_INDEX.to_owned()),
        manifests: entries,
        annotations: BTreeMap::new(),
    };
    let mut tar = TarWriter::new(out);
    for dir in ["blobs/", "blobs/sha256/"] {
        append(&mut tar, dir, EntryKind::Directory, 0, &mut io::empty())?;
    }
    for (digest, size) in &blobs {
        blob(store, &mut tar, digest, *size)?;
    }
    document(&mut tar, "index.json", &json("index.json", &index)?)?;
    document(&mut tar, "manifest.json", &json("manifest.json", &listed)?)?;
    document(&mut tar, "oci-layout", LAYOUT)?;
    tar.finish().map_err(write_error)
}

/// Gathers the blobs of an image; of an index, those of all images that are here whole.
fn gather(
    store: &Store,
    target: &Descriptor,
    depth: usize,
    blobs: &mut BTreeMap<Digest, u64>,
) -> Result<()> {
    if depth > MAX_INDEX_DEPTH {
        return Err(ContentError::Limit {
            what: "nesting of indexes".to_owned(),
            limit: MAX_INDEX_DEPTH as u64,
        });
    }
    need(store, target, blobs)?;
    if !media::is_index(&target.media_type) {
        let manifest: Manifest = store.read_json(&target.digest)?;
        for part in manifest.layers.iter().chain([&manifest.config]) {
            need(store, part, blobs)?;
        }
        return Ok(());
    }
    let index: Index = store.read_json(&target.digest)?;
    let (mut missing, mut whole) = (None, 0);
    for child in &index.manifests {
        let mut of_child = BTreeMap::new();
        match gather(store, child, depth + 1, &mut of_child) {
            Ok(()) => {
                whole += 1;
                blobs.append(&mut of_child);
            }
            Err(ContentError::BlobNotFound(digest)) => {
                missing.get_or_insert(digest);
            }
            Err(e) => return Err(e),
        }
    }
    match missing {
        Some(digest) if whole == 0 => Err(ContentError::BlobNotFound(digest)),
        _ => Ok(()),
    }
}

fn need(store: &Store, part: &Descriptor, blobs: &mut BTreeMap<Digest, u64>) -> Result<()> {
    let missing = ContentError::BlobNotFound(part.digest);
    let actual = store.has(&part.digest)?.ok_or(missing)?;
    if actual != part.size {
        return Err(ContentError::SizeMismatch {
            digest: part.digest,
            expected: part.size,
            actual,
        });
    }
    blobs.insert(part.digest, part.size);
    Ok(())
}

/// The entries of the index: one a name.
fn named(image: &Saved) -> Vec<Descriptor> {
    let mut bare = image.target.clone();
    bare.platform = None;
    bare.annotations.remove(IMAGE_NAME);
    bare.annotations.remove(REF_NAME);
    if image.names.is_empty() {
        return vec![bare];
    }
    let entry = |name: &Reference| {
        let mut entry = bare.clone();
        let mut note = |key: &str, value: String| entry.annotations.insert(key.to_owned(), value);
        note(IMAGE_NAME, name.to_string());
        if let Some(tag) = name.tag() {
            note(REF_NAME, tag.to_owned());
        }
        entry
    };
    image.names.iter().map(entry).collect()
}

/// The entry of `manifest.json`; none for what has other layers than tars, which its readers do
/// not know.
fn list(store: &Store, image: &Saved) -> Result<Option<Listed>> {
    let manifest: Manifest = store.read_json(&image.manifest.digest)?;
    let is_tar = |l: &Descriptor| matches!(layer_kind(&l.media_type), LayerKind::Tar(_));
    if !manifest.layers.iter().all(is_tar) {
        return Ok(None);
    }
    let tags: BTreeSet<String> = image.names.iter().map(Reference::familiar).collect();
    Ok(Some(Listed {
        config: blob_path(&manifest.config.digest),
        repo_tags: (!tags.is_empty()).then(|| tags.into_iter().collect()),
        layers: manifest
            .layers
            .iter()
            .map(|l| blob_path(&l.digest))
            .collect(),
    }))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Sums up what is read through it.
struct Summing<R> {
    inner: R,
    sum: Sha256,
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.sum.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

fn blob<W: Write>(store: &Store, tar: &mut TarWriter<W>, digest: &Digest, size: u64) -> Result<()> {
    let mut data = Summing {
        inner: store.open_blob(digest)?,
        sum: Sha256::new(),
    };
    append(tar, &blob_path(digest), EntryKind::File, size, &mut data)?;
    let actual = crate::store::finish(data.sum);
    if actual == *digest {
        return Ok(());
    }
    Err(ContentError::DigestMismatch {
        expected: *digest,
        actual,
    })
}

fn document<W: Write>(tar: &mut TarWriter<W>, name: &str, mut bytes: &[u8]) -> Result<()> {
    append(tar, name, EntryKind::File, bytes.len() as u64, &mut bytes)
}

fn append<W: Write>(
    tar: &mut TarWriter<W>,
    path: &str,
    kind: EntryKind,
    size: u64,
    data: &mut dyn Read,
) -> Result<()> {
    let entry = Entry {
        path: path.as_bytes().to_vec(),
        link: Vec::new(),
        kind,
        mode: if kind == EntryKind::Directory {
            0o755
        } else {
            0o644
        },
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size,
        device: (0, 0),
        xattrs: Vec::new(),
    };
    tar.append(&entry, data).map_err(write_error)
}

fn json<T: Serialize>(what: &str, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| ContentError::Json {
        what: format!("\"{what}\""),
        source,
    })
}

fn write_error(source: io::Error) -> ContentError {
    ContentError::Write {
        what: "image archive",
        source,
    }
}
