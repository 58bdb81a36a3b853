//! Image records: what was learnt about an image when it arrived, one JSON file per manifest.

use std::fs;
use std::io;
use std::path::PathBuf;

use amphora_spec::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::remove_file;
use crate::{ContentError, Result, Store};

impl Store {
    fn record_path(&self, manifest: &Digest) -> PathBuf {
        self.root()
            .join("images")
            .join(format!("{}.json", manifest.hex()))
    }

    /// Writes the record of the image with this manifest.
    ///
    /// # Errors
    /// When the value does not serialise or the file cannot be written.
    pub fn put_record<T: Serialize>(&self, manifest: &Digest, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|source| ContentError::Json {
            what: format!("record of image {manifest}"),
            source,
        })?;
        self.replace(&self.record_path(manifest), &bytes)
    }

    /// Reads the record of the image with this manifest.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn record<T: DeserializeOwned>(&self, manifest: &Digest) -> Result<Option<T>> {
        let path = self.record_path(manifest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ContentError::io("read", &path)(e)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| ContentError::Json {
                what: format!("record of image {manifest}"),
                source,
            })
    }

    /// Removes the record of the image with this manifest; says whether there was one.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_record(&self, manifest: &Digest) -> Result<bool> {
        remove_file(&self.record_path(manifest))
    }

    /// Lists the manifests that have a record.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn records(&self) -> Result<Vec<Digest>> {
        let dir = self.root().join("images");
        let names = digests_in(&dir, ".json").map_err(ContentError::io("read", &dir))?;
        Ok(names)
    }
}

/// Lists the digests that name files `<hex><suffix>` in a directory.
pub(crate) fn digests_in(dir: &std::path::Path, suffix: &str) -> io::Result<Vec<Digest>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let hex = name.to_str().and_then(|n| n.strip_suffix(suffix));
        found.extend(hex.and_then(|h| Digest::from_hex(h).ok()));
    }
    Ok(found)
}
