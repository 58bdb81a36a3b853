//! Archives of an OCI image layout.

use std::collections::HashMap;

use amphora_spec::image::{Descriptor, ImageConfig, Index, Manifest};
use amphora_spec::media::{self, LayerKind, layer_kind};
use amphora_spec::{Classify, Digest, ErrorKind, Reference};

use super::files::Files;
use super::{Image, MAX_ARCHIVE_IMAGES, docker, parse_name};
use crate::gc::{MAX_INDEX_DEPTH, is_image_config};
use crate::index::{IMAGE_NAME, REF_NAME};
use crate::{ContentError, Result};

/// What one entry of the index needs.
#[derive(Debug, Default)]
struct Needs {
    blobs: Vec<Digest>,
    /// Config of a single manifest.
    config: Option<Digest>,
}

/// What was found of each document: the config of a single manifest, or what is missing. Each is
/// looked into once, however often indexes name it.
type Seen = HashMap<Digest, std::result::Result<Option<Digest>, Digest>>;

pub(super) fn plan(files: &mut Files<'_>) -> Result<Vec<Image>> {
    let index: Index = parse(
        files.document("index.json").unwrap_or_default(),
        "\"index.json\"",
    )?;
    if index.manifests.len() > MAX_ARCHIVE_IMAGES {
        let limit = MAX_ARCHIVE_IMAGES as u64;
        return Err(ContentError::Limit {
            what: "number of images".to_owned(),
            limit,
        });
    }
    // Since Docker 25 `docker save` writes both forms; the older one may hold the only names.
    let mut docker_names: HashMap<Digest, Vec<Reference>> = HashMap::new();
    for listed in docker::listed(files)? {
        if let Some(config) = listed.config_digest() {
            docker_names
                .entry(config)
                .or_default()
                .extend(listed.names()?);
        }
    }
    let mut images = Vec::new();
    let mut seen = Seen::new();
    for entry in index.manifests {
        let mut needs = Needs::default();
        check(files, &entry, 0, &mut needs, &mut seen)?;
        let mut names: Vec<Reference> = name(&entry)?.into_iter().collect();
        if names.is_empty()
            && let Some(known) = needs.config.and_then(|c| docker_names.get(&c))
        {
            names.clone_from(known);
        }
        for blob in &needs.blobs {
            files.want_blob(blob);
        }
        images.push(Image {
            names,
            target: bare(entry),
        });
    }
    Ok(images)
}

/// Verifies that an entry is complete and gathers its blobs. Of an index, one complete image is
/// enough: archives of one platform carry the whole index. What was seen before adds nothing:
/// whatever needs a complete image needs its blobs.
fn check(
    files: &Files<'_>,
    entry: &Descriptor,
    depth: usize,
    needs: &mut Needs,
    seen: &mut Seen,
) -> Result<()> {
    if depth > MAX_INDEX_DEPTH {
        let limit = MAX_INDEX_DEPTH as u64;
        return Err(ContentError::Limit {
            what: "nesting of indexes".to_owned(),
            limit,
        });
    }
    need(files, entry, needs)?;
    match seen.get(&entry.digest) {
        Some(Ok(config)) => {
            needs.config = *config;
            return Ok(());
        }
        Some(Err(missing)) => return Err(ContentError::BlobNotFound(*missing)),
        None => {}
    }
    let found = look_into(files, entry, depth, needs, seen);
    match &found {
        Ok(()) => drop(seen.insert(entry.digest, Ok(needs.config))),
        Err(ContentError::BlobNotFound(missing)) => {
            seen.insert(entry.digest, Err(*missing));
        }
        // Ends the whole archive.
        Err(_) => {}
    }
    found
}

fn look_into(
    files: &Files<'_>,
    entry: &Descriptor,
    depth: usize,
    needs: &mut Needs,
    seen: &mut Seen,
) -> Result<()> {
    let what = format!("blob {}", entry.digest);
    let bytes = files.read_blob(&entry.digest)?;
    let document: serde_json::Value = parse(&bytes, &what)?;
    if document.get("manifests").is_some() {
        let index = parse(&bytes, &what)?;
        return check_index(files, &index, depth, needs, seen);
    }
    if document.get("config").is_none() {
        let why = format!("{} is neither a manifest nor an index", entry.digest);
        return Err(ContentError::Archive(why));
    }
    let manifest: Manifest = parse(&bytes, &what)?;
    need(files, &manifest.config, needs)?;
    for layer in &manifest.layers {
        need(files, layer, needs)?;
    }
    if is_image_config(&manifest.config) {
        check_config(files, &manifest)?;
    }
    needs.config = Some(manifest.config.digest);
    Ok(())
}

fn check_index(
    files: &Files<'_>,
    index: &Index,
    depth: usize,
    needs: &mut Needs,
    seen: &mut Seen,
) -> Result<()> {
    let mut missing = None;
    let mut complete = 0;
    for child in &index.manifests {
        let mut child_needs = Needs::default();
        match check(files, child, depth + 1, &mut child_needs, seen) {
            Ok(()) => {
                complete += 1;
                needs.blobs.extend(child_needs.blobs);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                missing.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    match missing {
        Some(e) if complete == 0 => Err(e),
        _ => Ok(()),
    }
}

fn check_config(files: &Files<'_>, manifest: &Manifest) -> Result<()> {
    let digest = &manifest.config.digest;
    let config: ImageConfig = parse(&files.read_blob(digest)?, &format!("blob {digest}"))?;
    let is_tar = |l: &&Descriptor| matches!(layer_kind(&l.media_type), LayerKind::Tar(_));
    let tars = manifest.layers.iter().filter(is_tar).count();
    let diff_ids = config.rootfs.diff_ids.len();
    if tars == manifest.layers.len() && tars != diff_ids {
        return Err(ContentError::Archive(format!(
            "config {digest} names {diff_ids} layers, its manifest {tars}"
        )));
    }
    Ok(())
}

fn need(files: &Files<'_>, blob: &Descriptor, needs: &mut Needs) -> Result<()> {
    let held = files.find_blob(&blob.digest)?;
    let held = held.ok_or(ContentError::BlobNotFound(blob.digest))?;
    if held.size != blob.size {
        return Err(ContentError::SizeMismatch {
            digest: blob.digest,
            expected: blob.size,
            actual: held.size,
        });
    }
    needs.blobs.push(blob.digest);
    Ok(())
}

/// Finds the name of an entry. A ref name alone is a whole name in some tools' archives and a
/// mere tag in others'; `latest` and what begins with a digit is a tag of nothing.
fn name(entry: &Descriptor) -> Result<Option<Reference>> {
    if let Some(name) = entry.annotations.get(IMAGE_NAME) {
        return parse_name(name).map(Some);
    }
    let Some(name) = entry.annotations.get(REF_NAME) else {
        return Ok(None);
    };
    let tag_alone = name == "latest" || name.starts_with(|c: char| c.is_ascii_digit());
    if tag_alone && !name.contains(['/', ':']) {
        return Ok(None);
    }
    Ok(parse_name(name).ok())
}

fn bare(mut entry: Descriptor) -> Descriptor {
    entry.annotations.remove(IMAGE_NAME);
    entry.annotations.remove(REF_NAME);
    if entry.media_type.is_empty() {
        entry.media_type = media::OCI_MANIFEST.to_owned();
    }
    entry
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| ContentError::Json {
        what: what.to_owned(),
        source,
    })
}
