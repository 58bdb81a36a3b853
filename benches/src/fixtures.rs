//! What the engines run and pull: made from source on the spot, the same for every contestant.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Mount points that the floor and bundles need, and directories that images have.
const DIRECTORIES: [&str; 9] = [
    "bin",
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sys/fs/cgroup",
    "tmp",
    "var",
];

/// The programs of the root file system.
const PROGRAMS: [&str; 4] = ["hello", "pause", "lines", "stream"];
const HELLO: &str = include_str!("../guests/hello.rs");
const PAUSE: &str = include_str!("../guests/pause.rs");
const LINES: &str = include_str!("../guests/lines.rs");
const STREAM: &str = include_str!("../guests/stream.rs");
const HELLO_WASM: &str = include_str!("../guests/hello_wasm.rs");

/// The fixtures in one directory.
#[derive(Debug, Clone)]
pub struct Fixtures {
    /// The directory itself.
    pub dir: PathBuf,
}

impl Fixtures {
    /// Makes what is not there yet. Compiles with the `rustc` of `PATH`.
    ///
    /// # Errors
    /// When a program cannot be compiled or a file not be written.
    pub fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("failed to make {dir:?}"))?;
        let fixtures = Self {
            dir: fs::canonicalize(dir)?,
        };
        fixtures.compile_static("hello", HELLO)?;
        fixtures.compile_static("pause", PAUSE)?;
        fixtures.compile_static("lines", LINES)?;
        let musl = ["--target=x86_64-unknown-linux-musl", "-Cpanic=abort"];
        fixtures.compile("stream", "stream", STREAM, &musl)?;
        fixtures.compile_wasm()?;
        fixtures.make_rootfs()?;
        fixtures.make_archive()?;
        Ok(fixtures)
    }

    /// A root file system directory with [`PROGRAMS`] in `/bin`.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// An OCI archive of the image `hello`, one layer.
    #[must_use]
    pub fn hello_archive(&self) -> PathBuf {
        self.dir.join("hello.oci.tar")
    }

    /// A WASI 0.1 command.
    #[must_use]
    pub fn hello_wasm(&self) -> PathBuf {
        self.dir.join("hello.wasm")
    }

    fn compile_static(&self, name: &str, source: &str) -> Result<()> {
        let flags = [
            "--target=x86_64-unknown-linux-musl",
            "-Cpanic=abort",
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-nostdlib",
            "-Crelocation-model=static",
            "-Clink-self-contained=no",
        ];
        self.compile(name, name, source, &flags)
    }

    fn compile_wasm(&self) -> Result<()> {
        let flags = ["--target=wasm32-wasip1", "-Cpanic=abort", "-Clto=fat"];
        self.compile("hello_wasm", "hello.wasm", HELLO_WASM, &flags)
    }

    fn compile(&self, name: &str, output: &str, source: &str, flags: &[&str]) -> Result<()> {
        let from = self.dir.join(format!("{name}.rs"));
        let output = self.dir.join(output);
        if output.exists() && fs::read_to_string(&from).is_ok_and(|old| old == source) {
            return Ok(());
        }
        fs::write(&from, source).with_context(|| format!("failed to write {from:?}"))?;
        let mut rustc = Command::new("rustc");
        rustc.args([
            "--edition=2024",
            "--crate-type=bin",
            "-Copt-level=3",
            "-Cstrip=symbols",
        ]);
        rustc.args(flags).arg("-o").arg(&output).arg(&from);
        let status = rustc.status().context("failed to run rustc")?;
        ensure!(status.success(), "rustc did not compile {name}.rs");
        Ok(())
    }

    fn make_rootfs(&self) -> Result<()> {
        let root = self.rootfs();
        for directory in DIRECTORIES {
            fs::create_dir_all(root.join(directory))?;
        }
        for program in PROGRAMS {
            fs::copy(self.dir.join(program), root.join("bin").join(program))?;
        }
        Ok(())
    }

    fn make_archive(&self) -> Result<()> {
        let layer = self.layer()?;
        let mut image = OciArchive::default();
        let diff = digest(&layer);
        let layer = image.blob(layer);
        let config = image.json(&json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": ["/bin/hello"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [diff]},
        }));
        let manifest = image.json(&manifest(&config, &[(layer, LAYER_TAR)]));
        image.write(
            &self.hello_archive(),
            "docker.io/library/hello:latest",
            &manifest,
        )
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for directory in ["bin", "etc", "tmp"] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, directory, std::io::empty())?;
        }
        for program in PROGRAMS {
            let bytes = fs::read(self.dir.join(program))?;
            append_file(&mut tar, &format!("bin/{program}"), &bytes, 0o755)?;
        }
        // What a healthcheck of one word is run by: any program that ends well.
        let shell = fs::read(self.dir.join("hello"))?;
        append_file(&mut tar, "bin/sh", &shell, 0o755)?;
        Ok(tar.into_inner()?)
    }

    /// Writes a runc-style bundle that runs `program`, from the runtime's own default
    /// specification when `spec` makes one.
    ///
    /// # Errors
    /// When the specification is not JSON or a file cannot be written.
    pub fn bundle(&self, dir: &Path, spec: &str, program: &str) -> Result<()> {
        let mut spec: Value = serde_json::from_str(spec).context("not a specification")?;
        let root = dir.join("rootfs");
        for directory in DIRECTORIES {
            fs::create_dir_all(root.join(directory))?;
        }
        for program in PROGRAMS {
            fs::copy(self.dir.join(program), root.join("bin").join(program))?;
        }
        for (pointer, value) in [
            ("/process/args", json!([program])),
            ("/process/terminal", json!(false)),
            ("/root/path", json!("rootfs")),
        ] {
            *spec
                .pointer_mut(pointer)
                .with_context(|| format!("no {pointer}"))? = value;
        }
        fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&spec)?)?;
        Ok(())
    }
}

/// Media type of an uncompressed layer.
pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a gzip layer.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a zstd layer.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// `sha256:…` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A blob by digest and size.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: usize,
}

/// An image manifest.
#[must_use]
pub fn manifest(config: &Blob, layers: &[(Blob, &str)]) -> Value {
    let entry = |blob: &Blob, kind: &str| json!({"mediaType": kind, "digest": blob.digest, "size": blob.size});
    let layers: Vec<Value> = layers
        .iter()
        .map(|(blob, kind)| entry(blob, kind))
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": entry(config, CONFIG), "layers": layers,
    })
}

pub(crate) fn append_file(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)?;
    Ok(())
}

#[derive(Debug, Default)]
struct OciArchive {
    blobs: Vec<(String, Vec<u8>)>,
}

impl OciArchive {
    fn blob(&mut self, bytes: Vec<u8>) -> Blob {
        let blob = Blob {
            digest: digest(&bytes),
            size: bytes.len(),
        };
        self.blobs.push((blob.digest.replace(':', "/"), bytes));
        blob
    }

    fn json(&mut self, value: &Value) -> Blob {
        self.blob(value.to_string().into_bytes())
    }

    fn write(&self, path: &Path, name: &str, manifest: &Blob) -> Result<()> {
        let file = fs::File::create(path).with_context(|| format!("failed to make {path:?}"))?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        let mut tar = tar::Builder::new(file);
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST, "digest": manifest.digest, "size": manifest.size,
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": tag,
                },
            }],
        });
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        append_file(&mut tar, "oci-layout", layout.to_string().as_bytes(), 0o644)?;
        append_file(&mut tar, "index.json", index.to_string().as_bytes(), 0o644)?;
        // Older engines load what `manifest.json` names.
        append_file(
            &mut tar,
            "manifest.json",
            self.docker_list(name).to_string().as_bytes(),
            0o644,
        )?;
        for (place, bytes) in &self.blobs {
            append_file(&mut tar, &format!("blobs/{place}"), bytes, 0o644)?;
        }
        tar.finish()?;
        Ok(())
    }

    fn docker_list(&self, name: &str) -> Value {
        let name = name.trim_start_matches("docker.io/library/");
        let at = |index: usize| {
            self.blobs
                .get(index)
                .map(|(place, _)| format!("blobs/{place}"))
                .unwrap_or_default()
        };
        json!([{"Config": at(1), "RepoTags": [name], "Layers": [at(0)]}])
    }
}
