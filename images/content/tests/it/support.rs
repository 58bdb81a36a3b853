//! Places and archives for tests.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use amphora_content::Store;
use amphora_spec::Digest;
use sha2::{Digest as _, Sha256};

/// A directory on tmpfs that goes with the value.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!(
            "/dev/shm/amphora-content-{}-{next}",
            std::process::id()
        ));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A tmpfs of a few bytes that is mounted nowhere and goes with the value.
pub(crate) struct SmallDisk(OwnedFd);

impl SmallDisk {
    pub(crate) fn new(size: &str) -> Self {
        let options = [("size", Some(size)), ("mode", Some("0700"))];
        Self(amphora_sys::mount::new_fs(c"tmpfs", None, &options, 0).unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

pub(crate) fn store() -> (TempDir, Store) {
    let dir = TempDir::new();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// Lists blobs, records and what is left in the ingest directory.
pub(crate) fn content(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["blobs/sha256", "images", "ingest"] {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            found.push(format!(
                "{dir}/{}",
                entry.unwrap().file_name().to_str().unwrap()
            ));
        }
    }
    found.sort();
    found
}

/// Builds a tar of files (`Some`) and symbolic links (`None`, the bytes are the target).
pub(crate) fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match path.strip_prefix("link:") {
            Some(path) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                let target = std::str::from_utf8(bytes).unwrap();
                builder.append_link(&mut header, path, target).unwrap();
            }
            None => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, *bytes).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// A layer tar, a config that names it, and their digests in hex.
pub(crate) struct Image {
    pub(crate) layer: Vec<u8>,
    pub(crate) config: Vec<u8>,
}

impl Image {
    pub(crate) fn new(seed: &str) -> Self {
        let layer = tar_of(&[("hello", seed.as_bytes())]);
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": null,
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        Self {
            layer,
            config: config.to_string().into_bytes(),
        }
    }

    pub(crate) fn config_hex(&self) -> String {
        digest(&self.config).hex()
    }

    pub(crate) fn manifest(&self, layer: &[u8], media_type: &str) -> Vec<u8> {
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&self.config), "size": self.config.len(),
            },
            "layers": [{"mediaType": media_type, "digest": digest(layer), "size": layer.len()}],
        })
        .to_string()
        .into_bytes()
    }
}
