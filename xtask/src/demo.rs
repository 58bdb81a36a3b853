//! The main job, from nothing: builds amphora, assembles a Linux and a Wasm image of the same small
//! program, and runs a container of each that share a volume and a network.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The target of everything that is native.
pub(crate) const LINUX: &str = "x86_64-unknown-linux-musl";
const WASM: &str = "wasm32-wasip2";
const MODULE: &str = "wasm32-wasip1";
/// Longest the demo waits for a server.
const PATIENCE: Duration = Duration::from_secs(10);

struct Demo {
    amphora: PathBuf,
    root: bool,
}

/// Runs the demo.
pub(crate) fn run(root: &Path) -> Result<()> {
    crate::setup::targets()?;
    say("Building amphora (the first time takes a few minutes: it contains a Wasm compiler)");
    build(root, &["build", "--release", "--package", "amphora"])?;
    let target = target_dir(root);
    let out = target.join("guests");
    let (linux, wasm) = (guest(root, &out, LINUX)?, guest(root, &out, WASM)?);
    let archive = target.join("demo.oci.tar");
    std::fs::write(&archive, image(&std::fs::read(&linux)?)?)?;
    let whoami = Command::new("id").arg("-u").output()?;
    let demo = Demo {
        amphora: target.join(LINUX).join("release/amphora"),
        root: whoami.stdout.starts_with(b"0"),
    };
    let outcome = demo.show(&archive, &wasm);
    demo.clean();
    outcome
}

impl Demo {
    fn show(&self, archive: &Path, wasm: &Path) -> Result<()> {
        self.clean();
        say("Two images, assembled on the spot: one Linux, one WebAssembly");
        self.run(&["load", "-i", text(archive)?])?;
        self.run(&["image", "add", text(wasm)?, "-t", "amphora-demo-wasm"])?;
        self.run(&["images"])?;

        say("The same command runs both; the image decides how");
        self.run(&["run", "--rm", "amphora-demo-linux"])?;
        self.run(&["run", "--rm", "amphora-demo-wasm"])?;

        say("They share a volume: Wasm writes, Linux reads");
        self.run(&[
            "run",
            "--rm",
            "-v",
            "amphora-demo:/data",
            "amphora-demo-wasm",
            "write",
            "/data/note",
            "written by Wasm",
        ])?;
        self.run(&[
            "run",
            "--rm",
            "-v",
            "amphora-demo:/data:ro",
            "amphora-demo-linux",
            "cat",
            "/data/note",
        ])?;

        say("They share a network: a Linux server, a Wasm server, each asked by the other kind");
        self.serve("amphora-demo-a", "amphora-demo-linux", "18080")?;
        self.serve("amphora-demo-b", "amphora-demo-wasm", "18081")?;
        let linux = format!("{}:80", self.address("amphora-demo-a")?);
        let wasm = format!("{}:80", self.address("amphora-demo-b")?);
        self.run(&["run", "--rm", "amphora-demo-wasm", "fetch", &linux])?;
        self.run(&["run", "--rm", "amphora-demo-linux", "fetch", &wasm])?;

        say("Both ports are published on this machine");
        for port in ["18080", "18081"] {
            println!(
                "$ echo hello | connect 127.0.0.1:{port}\n{}",
                ask(port)?.trim_end()
            );
        }
        self.run(&["ps"])?;
        self.run(&["logs", "amphora-demo-b"])?;
        self.run(&["stop", "-t", "1", "amphora-demo-a", "amphora-demo-b"])?;
        self.run(&["rm", "amphora-demo-a", "amphora-demo-b"])?;
        say("That was the main job: it works.");
        Ok(())
    }

    fn serve(&self, name: &str, image: &str, port: &str) -> Result<()> {
        let publish = format!("{port}:80");
        let answer = format!("answer of {name}, a {image} container");
        self.run(&[
            "run", "-d", "--name", name, "-p", &publish, image, "serve", "80", &answer,
        ])?;
        let deadline = Instant::now() + PATIENCE;
        while ask(port).is_err() {
            ensure!(
                Instant::now() < deadline,
                "{name} does not answer on port {port}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn address(&self, name: &str) -> Result<String> {
        let output = self.command(&["inspect", name]).output()?;
        let list: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let address = list
            .pointer("/0/NetworkSettings/IPAddress")
            .and_then(|a| a.as_str());
        Ok(address.context("the container has no address")?.to_owned())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = if self.root {
            Command::new(&self.amphora)
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg(&self.amphora);
            sudo
        };
        command.args(args);
        command
    }

    /// Shows a command and its output.
    fn run(&self, args: &[&str]) -> Result<()> {
        println!("$ amphora {}", args.join(" "));
        let status = self.command(args).stdin(Stdio::null()).status()?;
        ensure!(
            status.success(),
            "amphora {} failed: {status}",
            args.join(" ")
        );
        Ok(())
    }

    /// Removes what the demo makes, whether it is there or not.
    fn clean(&self) {
        let steps: [&[&str]; 3] = [
            &["rm", "-f", "amphora-demo-a", "amphora-demo-b"],
            &["volume", "rm", "-f", "amphora-demo"],
            &["rmi", "-f", "amphora-demo-linux", "amphora-demo-wasm"],
        ];
        for args in steps {
            let _ = self
                .command(args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn say(line: &str) {
    println!("\n== {line}");
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn ask(port: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{port}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    ensure!(!reply.is_empty(), "no answer");
    Ok(reply)
}

/// Where cargo builds.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn build(root: &Path, args: &[&str]) -> Result<()> {
    let status = crate::cargo(root, args).status()?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}

/// Builds the probe for each of its targets, below `out`.
pub(crate) fn guests(root: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let targets = [LINUX, WASM, MODULE].into_iter();
    targets.map(|triple| guest(root, out, triple)).collect()
}

/// Builds the probe for a target.
fn guest(root: &Path, out: &Path, triple: &str) -> Result<PathBuf> {
    let manifest = root.join("examples/guests/duo/Cargo.toml");
    let args = [
        "build",
        "--release",
        "--quiet",
        "--target",
        triple,
        "--manifest-path",
    ];
    let mut all = args.to_vec();
    all.extend([text(&manifest)?, "--target-dir", text(out)?]);
    build(root, &all)?;
    let name = if triple.starts_with("wasm32") {
        "duo.wasm"
    } else {
        "duo"
    };
    Ok(out.join(triple).join("release").join(name))
}

/// Assembles an OCI archive with one layer that holds the program.
fn image(program: &[u8]) -> Result<Vec<u8>> {
    let layer = archive(&[("probe", 0o755, program)])?;
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "os": "linux", "architecture": architecture, "config": { "Entrypoint": ["/probe"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    })
    .to_string();
    let descriptor = |kind: &str, bytes: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest(bytes), "size": bytes.len(),
        })
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config.as_bytes()),
        "layers": [descriptor("layer.v1.tar", &layer)],
    })
    .to_string();
    let mut entry = descriptor("manifest.v1+json", manifest.as_bytes());
    if let Some(entry) = entry.as_object_mut() {
        let name =
            json!({ "io.containerd.image.name": "docker.io/library/amphora-demo-linux:latest" });
        entry.insert("annotations".to_owned(), name);
    }
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let path = |bytes: &[u8]| digest(bytes).replace(':', "/");
    let blobs =
        [&layer, config.as_bytes(), manifest.as_bytes()].map(|b| format!("blobs/{}", path(b)));
    let [layer_path, config_path, manifest_path] = &blobs;
    archive(&[
        ("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", 0o644, index.as_bytes()),
        (layer_path, 0o644, &layer),
        (config_path, 0o644, config.as_bytes()),
        (manifest_path, 0o644, manifest.as_bytes()),
    ])
}

fn archive(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, *data)?;
    }
    Ok(builder.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}
