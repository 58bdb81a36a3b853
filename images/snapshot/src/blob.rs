//! Layers from blobs of the content store.

use amphora_content::Store;
use amphora_content::compress::{self, decompress};
use amphora_content::tarball::TarError;
use amphora_spec::Digest;
use amphora_spec::image::{ImageConfig, Manifest};
use amphora_spec::media::{Compression, LayerKind, layer_kind};

use crate::{Layers, Limits, Result, SnapshotError, Unpacked};

/// A layer as an image names it.
#[derive(Debug, Clone, Copy)]
pub struct BlobLayer<'a> {
    /// The blob, as it was transferred.
    pub blob: &'a Digest,
    /// What the media type says of its compression.
    pub label: Compression,
    /// The digest of its plain tar.
    pub diff_id: &'a Digest,
}

impl Layers {
    /// Unpacks a layer from its blob; inflating and unpacking overlap.
    ///
    /// # Errors
    /// Those of [`Layers::unpack`], and those of reading the blob.
    pub fn unpack_blob(
        &self,
        store: &Store,
        layer: BlobLayer<'_>,
        limits: &Limits,
    ) -> Result<Unpacked> {
        if self.has(layer.diff_id) {
            return Ok(Unpacked {
                reused: true,
                ..Unpacked::default()
            });
        }
        let file = store.open_blob(layer.blob)?;
        let plain = decompress(layer.label, file).map_err(TarError::Read)?;
        self.unpack(layer.diff_id, compress::read_ahead(plain), limits)
    }

    /// Unpacks the layers of an image that are not unpacked yet, base first, and returns their
    /// diff-ids. Layers that are no tar (a Wasm module) belong to no root file system.
    ///
    /// # Errors
    /// [`SnapshotError::LayerCount`] when config and manifest disagree, and those of
    /// [`Layers::unpack_blob`].
    pub fn unpack_image(
        &self,
        store: &Store,
        manifest: &Manifest,
        config: &ImageConfig,
        limits: &Limits,
    ) -> Result<Vec<Digest>> {
        let diff_ids = &config.rootfs.diff_ids;
        let mut named = diff_ids.iter();
        // A config may name the raw layers of a mixed image or leave them out.
        let names_all = diff_ids.len() == manifest.layers.len();
        let mut unpacked = Vec::new();
        let mut tars = 0;
        for layer in &manifest.layers {
            let kind = layer_kind(&layer.media_type);
            let LayerKind::Tar(label) = kind else {
                if names_all {
                    named.next();
                }
                continue;
            };
            tars += 1;
            let Some(diff_id) = named.next() else {
                continue;
            };
            self.unpack_blob(
                store,
                BlobLayer {
                    blob: &layer.digest,
                    label,
                    diff_id,
                },
                limits,
            )?;
            unpacked.push(*diff_id);
        }
        if tars != unpacked.len() || (tars > 0 && named.next().is_some()) {
            return Err(SnapshotError::LayerCount {
                tars,
                diff_ids: diff_ids.len(),
            });
        }
        Ok(unpacked)
    }
}
