//! Layers from blobs of the content store.

use amphora_content::Store;
use amphora_content::compress::{self, decompress};
use amphora_content::tarball::TarError;
use amphora_spec::Digest;
use amphora_spec::media::Compression;

use crate::{Layers, Limits, Result, Unpacked};

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
}
