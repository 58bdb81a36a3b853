//! Wasm artifacts made of a bare module.

use std::collections::BTreeMap;

use amphora_spec::image::{Descriptor, Manifest};
use amphora_spec::{Reference, media};

use crate::{ContentError, Result, Store};

/// A module to be wrapped as a CNCF Wasm OCI artifact.
#[derive(Debug, Clone)]
pub struct WasmImage<'a> {
    /// The module or component.
    pub bytes: &'a [u8],
    /// `wasip1` or `wasip2`.
    pub os: &'a str,
    /// The `component` part of the config (`exports`, `imports`, `target`), for components.
    pub component: Option<serde_json::Value>,
}

/// Stores a module as an artifact (config `application/vnd.wasm.config.v0+json`, one layer
/// `application/wasm`) and names it, or keeps it without a name. The same bytes give the same
/// manifest.
///
/// # Errors
/// When the store cannot be written.
pub fn add_wasm(
    store: &Store,
    image: &WasmImage<'_>,
    reference: Option<&Reference>,
) -> Result<Descriptor> {
    let _lease = store.lease()?;
    let layer = store.write_blob(image.bytes)?;
    let mut config = serde_json::json!({
        // The time is fixed so that the same module is the same image.
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": image.os,
        "layerDigests": [layer],
    });
    if let (Some(component), Some(config)) = (&image.component, config.as_object_mut()) {
        config.insert("component".to_owned(), component.clone());
    }
    let config = config.to_string();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::OCI_MANIFEST.to_owned()),
        artifact_type: Some(media::WASM_CONFIG_V0.to_owned()),
        config: descriptor(
            media::WASM_CONFIG_V0,
            store.write_blob(config.as_bytes())?,
            config.len() as u64,
        ),
        layers: vec![descriptor(
            media::WASM_LAYER,
            layer,
            image.bytes.len() as u64,
        )],
        annotations: BTreeMap::new(),
    };
    let target = write_manifest(store, &manifest)?;
    match reference {
        Some(reference) => drop(store.tag(reference, &target)?),
        None => store.keep_untagged(&target)?,
    }
    Ok(target)
}

/// Stores a manifest and returns its descriptor.
pub(crate) fn write_manifest(store: &Store, manifest: &Manifest) -> Result<Descriptor> {
    let bytes = serde_json::to_vec(manifest).map_err(|source| ContentError::Json {
        what: "manifest".to_owned(),
        source,
    })?;
    let digest = store.write_blob(&bytes)?;
    let mut target = descriptor(media::OCI_MANIFEST, digest, bytes.len() as u64);
    target.artifact_type.clone_from(&manifest.artifact_type);
    Ok(target)
}

pub(crate) fn descriptor(media_type: &str, digest: amphora_spec::Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
        artifact_type: None,
    }
}
