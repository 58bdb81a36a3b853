//! Places and tars for tests.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use amphora_snapshot::{Layers, Limits, SnapshotError, Unpacked};
use amphora_spec::Digest;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// A directory on tmpfs that goes with the value.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("/dev/shm/amphora-snapshot-{}-{next}", std::process::id());
        fs::create_dir_all(&name).unwrap();
        Self(PathBuf::from(name))
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

pub(crate) fn layers() -> (TempDir, Layers) {
    let dir = TempDir::new();
    let layers = Layers::open(dir.path()).unwrap();
    (dir, layers)
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// A tar in the making that accepts what no archiver would write.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

/// Changes to a header beyond path and type.
pub(crate) type Dress = fn(&mut Header);

pub(crate) fn plain(_: &mut Header) {}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(
        mut self,
        path: &str,
        kind: EntryType,
        link: &str,
        data: &[u8],
        dress: Dress,
    ) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        let name = &mut header.as_mut_bytes()[..path.len()];
        name.copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        dress(&mut header);
        header.set_cksum();
        self.0.write_all(header.as_bytes()).unwrap();
        self.0.write_all(data).unwrap();
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        self.raw(path, EntryType::Regular, "", data.as_bytes(), plain)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.raw(path, EntryType::Directory, "", b"", plain)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path, EntryType::Symlink, target, b"", plain)
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.raw(path, EntryType::Link, target, b"", plain)
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self.0.extend_from_slice(builder.get_ref());
        self
    }

    pub(crate) fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn unpack(layers: &Layers, tar: &[u8]) -> Result<Unpacked, SnapshotError> {
    layers.unpack(&digest(tar), tar, &Limits::default())
}

/// Unpacks layers, base first, and returns their diff-ids.
pub(crate) fn unpack_all(layers: &Layers, tars: &[Vec<u8>]) -> Vec<Digest> {
    tars.iter()
        .map(|tar| unpack(layers, tar).map(|_| digest(tar)).unwrap())
        .collect()
}

/// The path of a detached mount.
pub(crate) fn at(mount: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

/// Lists all paths below `dir`, with `/` behind directories.
pub(crate) fn list(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                found.push(format!("{name}/"));
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found);
    found.sort();
    found
}

/// Names in the directory of layers, the fixed empty ones left out.
pub(crate) fn names(layers: &Layers) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(layers.root())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with(".empty"))
        .collect();
    names.sort();
    names
}
