//! Fixtures: layers, images, indexes, artifacts.

use std::io::Write;

use amphora_spec::{Digest, media};
use serde_json::{Value, json};

use crate::registry::{Registry, digest};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pack {
    Plain,
    Gzip,
    Zstd,
}

/// A layer with one file.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: Digest,
}

/// A pushed image.
pub(crate) struct Image {
    pub(crate) manifest: Digest,
    pub(crate) size: usize,
    pub(crate) config: Digest,
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

pub(crate) fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Layer {
    pub(crate) fn new(pack: Pack, path: &str, data: &[u8]) -> Self {
        Self::of_tar(pack, &tarball(&[(path, data)]))
    }

    pub(crate) fn of_tar(pack: Pack, tar: &[u8]) -> Self {
        let (media_type, bytes) = match pack {
            Pack::Plain => (media::OCI_LAYER, tar.to_vec()),
            Pack::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(tar).unwrap();
                (media::OCI_LAYER_GZIP, encoder.finish().unwrap())
            }
            Pack::Zstd => (media::OCI_LAYER_ZSTD, zstd::encode_all(tar, 1).unwrap()),
        };
        Self {
            media_type: media_type.to_owned(),
            bytes,
            diff_id: digest(tar),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        digest(&self.bytes)
    }

    fn descriptor(&self) -> Value {
        descriptor(&self.media_type, &self.bytes)
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes).to_string(), "size": bytes.len() })
}

pub(crate) fn config(os: &str, architecture: &str, layers: &[Layer]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| l.diff_id.to_string()).collect();
    let config = json!({
        "os": os, "architecture": architecture,
        "config": { "Cmd": ["/hello"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    serde_json::to_vec(&config).unwrap()
}

pub(crate) fn manifest(config: &Value, layers: &[Value]) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers,
    });
    serde_json::to_vec(&manifest).unwrap()
}

/// Pushes an image of the layers for a platform.
pub(crate) fn push_for(
    registry: &Registry,
    repository: &str,
    tag: &str,
    platform: (&str, &str),
    layers: &[Layer],
) -> Image {
    for layer in layers {
        registry.push_blob(repository, &layer.bytes);
    }
    let config = config(platform.0, platform.1, layers);
    push_config(registry, repository, tag, &config, layers)
}

/// Pushes a manifest with a config of the test's own.
pub(crate) fn push_config(
    registry: &Registry,
    repository: &str,
    tag: &str,
    config: &[u8],
    layers: &[Layer],
) -> Image {
    registry.push_blob(repository, config);
    let layers: Vec<Value> = layers.iter().map(Layer::descriptor).collect();
    let bytes = manifest(&descriptor(media::OCI_CONFIG, config), &layers);
    let manifest = registry.push_manifest(repository, tag, media::OCI_MANIFEST, &bytes);
    Image {
        manifest,
        size: bytes.len(),
        config: digest(config),
    }
}

pub(crate) fn push(registry: &Registry, repository: &str, layers: &[Layer]) -> Image {
    push_for(registry, repository, "latest", ("linux", "amd64"), layers)
}

/// Pushes an index of `(image, platform)`.
pub(crate) fn push_index(
    registry: &Registry,
    repository: &str,
    tag: &str,
    entries: &[(&Image, Option<&str>)],
) -> Digest {
    let entry = |(image, platform): &(&Image, Option<&str>)| {
        let mut entry = json!({
            "mediaType": media::OCI_MANIFEST,
            "digest": image.manifest.to_string(),
            "size": image.size,
        });
        if let Some((os, architecture)) = platform.and_then(|p| p.split_once('/')) {
            entry["platform"] = json!({ "os": os, "architecture": architecture });
        }
        entry
    };
    let manifests: Vec<Value> = entries.iter().map(entry).collect();
    let index =
        json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests });
    let bytes = serde_json::to_vec(&index).unwrap();
    registry.push_manifest(repository, tag, media::OCI_INDEX, &bytes)
}

/// Pushes the artifact that holds one raw module.
pub(crate) fn push_wasm(registry: &Registry, repository: &str, tag: &str, module: &[u8]) -> Image {
    let config = br#"{"os":"wasip1","architecture":"wasm","layerDigests":[]}"#;
    registry.push_blob(repository, config);
    registry.push_blob(repository, module);
    let layers = vec![descriptor(media::WASM_LAYER, module)];
    let bytes = manifest(&descriptor(media::WASM_CONFIG_V0, config), &layers);
    let manifest = registry.push_manifest(repository, tag, media::OCI_MANIFEST, &bytes);
    Image {
        manifest,
        size: bytes.len(),
        config: digest(config),
    }
}
