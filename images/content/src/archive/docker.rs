//! Docker's own archive format: `manifest.json`, configs and layers by path.

use std::collections::BTreeMap;

use amphora_spec::image::{Descriptor, ImageConfig, Manifest};
use amphora_spec::media::{self, Compression};
use amphora_spec::{Digest, Reference};
use serde::Deserialize;

use super::files::{Files, Held};
use super::{Image, MAX_ARCHIVE_IMAGES, parse_name};
use crate::wasm::descriptor;
use crate::{ContentError, Result};

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Listed {
    pub(super) fn names(&self) -> Result<Vec<Reference>> {
        self.repo_tags
            .iter()
            .flatten()
            .map(|name| parse_name(name))
            .collect()
    }

    /// The digest that the path of the config holds.
    pub(super) fn config_digest(&self) -> Option<Digest> {
        let name = self.config.rsplit('/').next()?;
        Digest::from_hex(name.strip_suffix(".json").unwrap_or(name)).ok()
    }
}

pub(super) fn listed(files: &Files<'_>) -> Result<Vec<Listed>> {
    let bytes = files.document("manifest.json").unwrap_or(b"[]");
    let listed: Vec<Listed> =
        serde_json::from_slice(bytes).map_err(|source| ContentError::Json {
            what: "\"manifest.json\"".to_owned(),
            source,
        })?;
    if listed.len() > MAX_ARCHIVE_IMAGES {
        let limit = MAX_ARCHIVE_IMAGES as u64;
        return Err(ContentError::Limit {
            what: "number of images".to_owned(),
            limit,
        });
    }
    Ok(listed)
}

/// Converts each image to an OCI manifest; config and layers keep their bytes, so that the image
/// id stays Docker's.
pub(super) fn plan(files: &mut Files<'_>) -> Result<Vec<Image>> {
    let listed = listed(files)?;
    listed.iter().map(|image| plan_one(files, image)).collect()
}

fn plan_one(files: &mut Files<'_>, image: &Listed) -> Result<Image> {
    let names = image.names()?;
    let config_held = find(files, &image.config)?;
    if let Some(expected) = image.config_digest()
        && expected != config_held.digest
    {
        return Err(ContentError::DigestMismatch {
            expected,
            actual: config_held.digest,
        });
    }
    let bytes = files.read_document(&image.config)?;
    let config: ImageConfig =
        serde_json::from_slice(&bytes).map_err(|source| ContentError::Json {
            what: format!("\"{}\"", image.config),
            source,
        })?;
    let paths = image.layers.as_deref().unwrap_or_default();
    let diff_ids = &config.rootfs.diff_ids;
    if paths.len() != diff_ids.len() {
        return Err(ContentError::Archive(format!(
            "\"{}\" names {} layers, manifest.json {}",
            image.config,
            diff_ids.len(),
            paths.len()
        )));
    }
    let layers: Vec<Descriptor> = paths
        .iter()
        .zip(diff_ids)
        .map(|(path, diff_id)| layer(files, path, diff_id))
        .collect::<Result<_>>()?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: descriptor(media::OCI_CONFIG, config_held.digest, config_held.size),
        layers,
        annotations: BTreeMap::new(),
    };
    files.want(&image.config);
    let bytes = serde_json::to_vec(&manifest).map_err(|source| ContentError::Json {
        what: "manifest".to_owned(),
        source,
    })?;
    let made = files.make(&bytes)?;
    Ok(Image {
        names,
        target: descriptor(media::OCI_MANIFEST, made.digest, made.size),
    })
}

fn layer(files: &mut Files<'_>, path: &str, diff_id: &Digest) -> Result<Descriptor> {
    let held = find(files, path)?;
    let (kind, plain) = files.plain_digest(path, held)?;
    if plain != *diff_id {
        return Err(ContentError::DigestMismatch {
            expected: *diff_id,
            actual: plain,
        });
    }
    files.want(path);
    let media_type = match kind {
        Compression::None => media::OCI_LAYER,
        Compression::Gzip => media::OCI_LAYER_GZIP,
        Compression::Zstd => media::OCI_LAYER_ZSTD,
    };
    Ok(descriptor(media_type, held.digest, held.size))
}

fn find(files: &Files<'_>, path: &str) -> Result<Held> {
    files
        .find(path)
        .ok_or_else(|| ContentError::Archive(format!("\"{path}\" is missing")))
}
