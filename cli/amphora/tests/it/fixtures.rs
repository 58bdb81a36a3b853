//! Images made on the spot: the probe for Linux and for Wasm, busybox, arbitrary archives.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Digest text of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// Builds the probe for a target, once, and returns the program's path.
pub(crate) fn probe(target: &str) -> PathBuf {
    static ONCE: Mutex<()> = Mutex::new(());
    let _one = ONCE.lock().unwrap_or_else(PoisonError::into_inner);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/guests/duo");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guests");
    // Where no compiler is, whoever brought this program brought the probes too.
    if Path::new(env!("CARGO")).exists() {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--target", target])
            .arg("--manifest-path")
            .arg(source.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&out)
            .status()
            .expect("start cargo");
        assert!(status.success(), "the probe does not build for {target}");
    }
    let name = if target.starts_with("wasm32") {
        "duo.wasm"
    } else {
        "duo"
    };
    out.join(target).join("release").join(name)
}

/// One file of a layer.
#[derive(Debug, Clone)]
pub(crate) struct FileEntry {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) data: Data,
}

/// What a file is.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    Dir,
    File(Vec<u8>),
    Link(String),
}

/// A plain file of root.
pub(crate) fn file(path: &str, mode: u32, data: impl Into<Vec<u8>>) -> FileEntry {
    FileEntry {
        path: path.into(),
        mode,
        uid: 0,
        data: Data::File(data.into()),
    }
}

/// A directory of root.
pub(crate) fn dir(path: &str, mode: u32) -> FileEntry {
    FileEntry {
        path: path.into(),
        mode,
        uid: 0,
        data: Data::Dir,
    }
}

/// A symbolic link.
pub(crate) fn link(path: &str, target: &str) -> FileEntry {
    FileEntry {
        path: path.into(),
        mode: 0o777,
        uid: 0,
        data: Data::Link(target.into()),
    }
}

/// Makes a plain tar.
pub(crate) fn tarball(entries: &[FileEntry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.uid);
        header.set_mtime(1_700_000_000);
        let done = match &entry.data {
            Data::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                builder.append_data(&mut header, &entry.path, std::io::empty())
            }
            Data::File(data) => {
                header.set_size(data.len() as u64);
                builder.append_data(&mut header, &entry.path, data.as_slice())
            }
            Data::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, &entry.path, target)
            }
        };
        done.expect("tar entry");
    }
    builder.into_inner().expect("tar")
}

/// How a layer is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrap {
    Plain,
    Gzip,
    Zstd,
}

/// An image in the making.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) config: Value,
    /// Plain tars, base first, and how each is wrapped.
    pub(crate) layers: Vec<(Vec<u8>, Wrap)>,
}

/// A blob with its descriptor.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Blob {
    pub(crate) fn new(media_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            media_type: media_type.into(),
            bytes: bytes.into(),
        }
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": digest(&self.bytes), "size": self.bytes.len() })
    }
}

impl Image {
    pub(crate) fn new(name: &str, config: Value) -> Self {
        let architecture = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        Self {
            name: name.into(),
            os: "linux".into(),
            architecture: architecture.into(),
            config,
            layers: Vec::new(),
        }
    }

    pub(crate) fn platform(mut self, os: &str, architecture: &str) -> Self {
        self.os = os.into();
        self.architecture = architecture.into();
        self
    }

    pub(crate) fn layer(mut self, entries: &[FileEntry], wrap: Wrap) -> Self {
        self.layers.push((tarball(entries), wrap));
        self
    }

    /// Returns manifest, config and layers as blobs, manifest first.
    pub(crate) fn blobs(&self) -> Vec<Blob> {
        let mut blobs = Vec::new();
        let mut diff_ids = Vec::new();
        for (tar, wrap) in &self.layers {
            diff_ids.push(digest(tar));
            blobs.push(match wrap {
                Wrap::Plain => Blob::new("application/vnd.oci.image.layer.v1.tar", tar.clone()),
                Wrap::Gzip => {
                    let mut gz =
                        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gz.write_all(tar).expect("gzip");
                    Blob::new(
                        "application/vnd.oci.image.layer.v1.tar+gzip",
                        gz.finish().expect("gzip"),
                    )
                }
                Wrap::Zstd => Blob::new(
                    "application/vnd.oci.image.layer.v1.tar+zstd",
                    zstd::encode_all(tar.as_slice(), 3).expect("zstd"),
                ),
            });
        }
        let config = json!({
            "created": "2026-01-01T00:00:00Z", "os": self.os, "architecture": self.architecture,
            "config": self.config, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::new(
            "application/vnd.oci.image.config.v1+json",
            config.to_string(),
        );
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": blobs.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string(),
        );
        let mut all = vec![manifest, config];
        all.append(&mut blobs);
        all
    }

    /// Writes an OCI archive.
    pub(crate) fn write_oci(&self, path: &Path) {
        write_oci(path, &self.name, &self.blobs());
    }

    /// Writes a docker archive, as `docker save` does.
    pub(crate) fn write_docker(&self, path: &Path) {
        let blobs = self.blobs();
        let config = &blobs[1];
        let hex = digest(&config.bytes)
            .trim_start_matches("sha256:")
            .to_owned();
        let mut entries = vec![file(&format!("{hex}.json"), 0o644, config.bytes.clone())];
        let mut names = Vec::new();
        for (n, (tar, _)) in self.layers.iter().enumerate() {
            names.push(format!("layer{n}/layer.tar"));
            entries.push(file(&format!("layer{n}/layer.tar"), 0o644, tar.clone()));
        }
        let manifest =
            json!([{ "Config": format!("{hex}.json"), "RepoTags": [self.name], "Layers": names }]);
        entries.push(file("manifest.json", 0o644, manifest.to_string()));
        std::fs::write(path, tarball(&entries)).expect("archive");
    }
}

/// Writes an OCI archive of blobs; the first one is the manifest or index.
pub(crate) fn write_oci(path: &Path, name: &str, blobs: &[Blob]) {
    let mut top = blobs[0].descriptor();
    top["annotations"] = json!({ "io.containerd.image.name": full_name(name) });
    let index = json!({ "schemaVersion": 2, "manifests": [top] });
    let mut entries = vec![
        file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", 0o644, index.to_string()),
    ];
    for blob in blobs {
        let hex = digest(&blob.bytes).trim_start_matches("sha256:").to_owned();
        entries.push(file(
            &format!("blobs/sha256/{hex}"),
            0o644,
            blob.bytes.clone(),
        ));
    }
    std::fs::write(path, tarball(&entries)).expect("archive");
}

fn full_name(name: &str) -> String {
    if name.contains('/') {
        name.to_owned()
    } else {
        format!("docker.io/library/{name}")
    }
}

/// The probe as a Linux image, with a few files to look at.
pub(crate) fn probe_image() -> Image {
    let program = std::fs::read(probe("x86_64-unknown-linux-musl")).expect("probe");
    Image::new(
        "probe-linux:latest",
        json!({ "Entrypoint": ["/probe"], "Env": ["FROM_IMAGE=yes"] }),
    )
    .layer(
        &[
            dir("tmp", 0o1777),
            dir("data", 0o755),
            file("data/seed", 0o644, "from image\n"),
        ],
        Wrap::Gzip,
    )
    .layer(&[file("probe", 0o755, program)], Wrap::Plain)
}

/// Busybox with its applets that tests use, users and a few directories.
pub(crate) fn busybox_image(name: &str) -> Image {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut entries = vec![
        dir("bin", 0o755),
        dir("etc", 0o755),
        dir("tmp", 0o1777),
        dir("root", 0o700),
        file("bin/busybox", 0o755, busybox),
        file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
        ),
        file(
            "etc/group",
            0o644,
            "root:x:0:\nalice:x:1000:\nwheel:x:10:alice\n",
        ),
    ];
    for applet in [
        "sh", "ls", "cat", "id", "echo", "mount", "sleep", "true", "false", "env", "pwd",
        "hostname", "mknod", "dd", "ps", "ip", "wget", "nc", "httpd", "grep", "touch", "rm",
        "mkdir", "stat", "head", "seq", "kill", "chown", "ln", "unshare", "readlink", "date",
        "cut", "test", "yes",
    ] {
        entries.push(link(&format!("bin/{applet}"), "busybox"));
    }
    Image::new(name, json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] })).layer(&entries, Wrap::Gzip)
}
