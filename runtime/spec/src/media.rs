//! Media types of manifests, configs and layers that are understood.

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, plain tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Empty JSON object as config of an artifact.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, plain tar.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// CNCF Wasm artifact config (WASM form A).
pub const WASM_CONFIG_V0: &str = "application/vnd.wasm.config.v0+json";
/// Raw Wasm layer (forms A, C).
pub const WASM_LAYER: &str = "application/wasm";
/// runwasi's raw component layer (form C).
pub const WASM_COMPONENT_LAYER: &str =
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
/// Legacy `wasm-to-oci` config (form E).
pub const WASM_CONFIG_V1: &str = "application/vnd.wasm.config.v1+json";
/// Legacy `wasm-to-oci` layer (form E).
pub const WASM_CONTENT_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// solo.io / Istio proxy-wasm config (form F).
pub const PROXY_WASM_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
/// solo.io / Istio proxy-wasm and wasmCloud layer (forms F, H).
pub const MODULE_WASM_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";
/// Old wasmCloud actor config (form H).
pub const WASMCLOUD_CONFIG: &str = "application/vnd.wasmcloud.actor.archive.config";
/// Spin application (form I), as config or as layer.
pub const SPIN_APPLICATION: &str = "application/vnd.fermyon.spin.application.v1+config";

/// How a layer's bytes are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A tar, with the compression its media type declares.
    Tar(Compression),
    /// A bare Wasm module or component.
    Wasm,
    /// Something that is neither rootfs nor module.
    Other,
}

/// Compression of a tar layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// Classifies the media type of a layer.
#[must_use]
pub fn layer_kind(media_type: &str) -> LayerKind {
    match media_type {
        OCI_LAYER | DOCKER_LAYER => LayerKind::Tar(Compression::None),
        OCI_LAYER_GZIP | DOCKER_LAYER_GZIP => LayerKind::Tar(Compression::Gzip),
        OCI_LAYER_ZSTD => LayerKind::Tar(Compression::Zstd),
        WASM_LAYER | WASM_COMPONENT_LAYER | WASM_CONTENT_LAYER | MODULE_WASM_LAYER => {
            LayerKind::Wasm
        }
        other => match other.rsplit_once('+').or_else(|| other.rsplit_once('.')) {
            Some((base, "gzip")) if base.ends_with("tar") => LayerKind::Tar(Compression::Gzip),
            Some((base, "zstd")) if base.ends_with("tar") => LayerKind::Tar(Compression::Zstd),
            Some((_, "tar")) => LayerKind::Tar(Compression::None),
            _ => LayerKind::Other,
        },
    }
}

/// Says whether a media type names an index or manifest list.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Says whether a media type names a single manifest.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}
