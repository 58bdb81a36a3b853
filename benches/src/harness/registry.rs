//! A registry's storage with one image in two compressions, written as the distribution registry
//! keeps it on disk, so that nothing has to be pushed.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::fixtures::{Blob, LAYER_GZIP, LAYER_ZSTD, append_file, digest, manifest};

/// Repository name; the tags are `gzip` and `zstd`.
pub(super) const REPOSITORY: &str = "bench/big";
const LAYERS: usize = 5;
const MEGABYTE: usize = 1_000_000;

/// Makes the storage below `dir` if it is not there in this size.
pub(super) fn make(dir: &Path, megabytes: usize) -> Result<()> {
    let done = dir.join("done");
    if fs::read_to_string(&done).is_ok_and(|text| text == megabytes.to_string()) {
        return Ok(());
    }
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let storage = Storage {
        root: dir.join("docker/registry/v2"),
    };
    let mut gzip = Vec::new();
    let mut zstd = Vec::new();
    let mut diffs = Vec::new();
    for index in 0..LAYERS {
        let tar = layer(index, megabytes * MEGABYTE / LAYERS)?;
        diffs.push(digest(&tar));
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(&tar)?;
        gzip.push((storage.layer(&encoder.finish()?)?, LAYER_GZIP));
        zstd.push((
            storage.layer(&zstd::encode_all(tar.as_slice(), 3)?)?,
            LAYER_ZSTD,
        ));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    });
    let config = storage.layer(config.to_string().as_bytes())?;
    storage.tag("gzip", manifest(&config, &gzip).to_string().as_bytes())?;
    storage.tag("zstd", manifest(&config, &zstd).to_string().as_bytes())?;
    fs::write(done, megabytes.to_string())?;
    Ok(())
}

/// A layer of files of mixed sizes whose content compresses like programs and text do.
fn layer(index: usize, size: usize) -> Result<Vec<u8>> {
    let mut random = Random(0x9E37_79B9 + index as u64);
    let words: Vec<Vec<u8>> = (0..4096).map(|_| random.word()).collect();
    let mut tar = tar::Builder::new(Vec::with_capacity(size + size / 10));
    let mut left = size;
    let mut count = 0;
    while left > 0 {
        // Many small files, few large ones, as in a distribution's tree.
        let scale = 10 + random.below(10);
        let length = (1_usize << scale).min(left) / 2 + random.below(1 << scale) / 2;
        let length = length.clamp(1, left);
        let mut content = Vec::with_capacity(length + 32);
        while content.len() < length {
            let word = words
                .get(random.below(words.len()))
                .map_or(&[][..], Vec::as_slice);
            content.extend_from_slice(word);
        }
        content.truncate(length);
        let path = format!("usr/share/layer{index}/{:02}/file{count}", count % 50);
        append_file(&mut tar, &path, &content, 0o644)?;
        left -= length;
        count += 1;
    }
    Ok(tar.into_inner()?)
}

/// xorshift64*: the same image on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = bound.max(1) as u64;
        usize::try_from((self.next() >> 16) % bound).unwrap_or(0)
    }

    fn word(&mut self) -> Vec<u8> {
        let length = 3 + self.below(10);
        (0..length).map(|_| self.next().to_le_bytes()[7]).collect()
    }
}

struct Storage {
    root: std::path::PathBuf,
}

impl Storage {
    fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(path);
        let parent = path.parent().context("a file has a directory")?;
        fs::create_dir_all(parent)?;
        fs::write(&path, bytes).with_context(|| format!("failed to write {path:?}"))
    }

    fn blob(&self, bytes: &[u8]) -> Result<Blob> {
        let digest = digest(bytes);
        let hex = digest.trim_start_matches("sha256:");
        let first: String = hex.chars().take(2).collect();
        self.put(&format!("blobs/sha256/{first}/{hex}/data"), bytes)?;
        Ok(Blob {
            digest,
            size: bytes.len(),
        })
    }

    fn link(&self, place: &str, blob: &Blob) -> Result<()> {
        let path = format!("repositories/{REPOSITORY}/{place}/link");
        self.put(&path, blob.digest.as_bytes())
    }

    fn layer(&self, bytes: &[u8]) -> Result<Blob> {
        let blob = self.blob(bytes)?;
        let hex = blob.digest.replace(':', "/");
        self.link(&format!("_layers/{hex}"), &blob)?;
        Ok(blob)
    }

    fn tag(&self, tag: &str, manifest: &[u8]) -> Result<()> {
        let blob = self.blob(manifest)?;
        let hex = blob.digest.replace(':', "/");
        self.link(&format!("_manifests/revisions/{hex}"), &blob)?;
        self.link(&format!("_manifests/tags/{tag}/current"), &blob)?;
        self.link(&format!("_manifests/tags/{tag}/index/{hex}"), &blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_the_size_asked_for_and_is_the_same_again() {
        let first = layer(1, 300_000).unwrap();
        assert_eq!(first, layer(1, 300_000).unwrap());
        assert_ne!(first, layer(2, 300_000).unwrap());
        let mut sum = 0;
        for entry in tar::Archive::new(first.as_slice()).entries().unwrap() {
            sum += entry.unwrap().size();
        }
        assert_eq!(sum, 300_000);
    }

    #[test]
    fn the_content_compresses_like_a_distribution() {
        let tar = layer(0, 2_000_000).unwrap();
        let small = zstd::encode_all(tar.as_slice(), 3).unwrap();
        let ratio = tar.len() / small.len();
        assert!((1..=5).contains(&ratio), "ratio {ratio}");
    }
}
