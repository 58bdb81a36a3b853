//! Debian's own `docker-registry` on loopback: pull, run of what is missing, damage, cuts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::fixtures::{Blob, Image, Wrap, busybox_image, digest, file};
use crate::sandbox::{Sandbox, accept_within, path, wait_until};

/// A registry in the test's network namespace.
pub(crate) struct Registry {
    child: Child,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub(crate) fn start(s: &Sandbox) -> Self {
        let port = 5000;
        let dir = s.dir.join("registry");
        std::fs::create_dir_all(&dir).unwrap();
        let config = s.dir.join("registry.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '127.0.0.1:{port}' }}\n",
                path(&dir)
            ),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", path(&config)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { child, port };
        wait_until("the registry", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        registry
    }

    fn request(&self, method: &str, target: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        )
        .unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let code = text.split(' ').nth(1).unwrap().parse().unwrap();
        (code, text)
    }

    fn push_blob(&self, repository: &str, blob: &Blob) {
        let (code, answer) = self.request(
            "POST",
            &format!("/v2/{repository}/blobs/uploads/"),
            "application/octet-stream",
            b"",
        );
        assert_eq!(code, 202, "{answer}");
        let location = answer
            .lines()
            .find_map(|l| {
                l.split_once(": ")
                    .filter(|(k, _)| k.eq_ignore_ascii_case("location"))
            })
            .map(|(_, v)| v.trim().to_owned())
            .unwrap();
        let target = location
            .split_once("://")
            .map_or(location.clone(), |(_, rest)| {
                rest.split_once('/').map(|(_, p)| format!("/{p}")).unwrap()
            });
        let join = if target.contains('?') { '&' } else { '?' };
        let (code, answer) = self.request(
            "PUT",
            &format!("{target}{join}digest={}", digest(&blob.bytes)),
            "application/octet-stream",
            &blob.bytes,
        );
        assert_eq!(code, 201, "{answer}");
    }

    /// Pushes an image; the first blob is its manifest.
    pub(crate) fn push(&self, repository: &str, tag: &str, blobs: &[Blob]) {
        for blob in &blobs[1..] {
            if blob.media_type.contains("manifest") {
                let target = format!("/v2/{repository}/manifests/{}", digest(&blob.bytes));
                let (code, answer) = self.request("PUT", &target, &blob.media_type, &blob.bytes);
                assert_eq!(code, 201, "{answer}");
            } else {
                self.push_blob(repository, blob);
            }
        }
        let target = format!("/v2/{repository}/manifests/{tag}");
        let (code, answer) = self.request("PUT", &target, &blobs[0].media_type, &blobs[0].bytes);
        assert_eq!(code, 201, "{answer}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told in order")]
fn main_job_from_a_registry() {
    let s = Sandbox::new();
    let registry = Registry::start(&s);
    registry.push("web", "latest", &busybox_image("web").blobs());
    let config = Blob::new(
        "application/vnd.wasm.config.v0+json",
        r#"{"os":"wasip2","architecture":"wasm"}"#,
    );
    let layer = Blob::new(
        "application/wasm",
        std::fs::read(crate::fixtures::probe("wasm32-wasip2")).unwrap(),
    );
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": config.media_type, "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    let manifest = Blob::new(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string(),
    );
    registry.push("hello-wasm", "latest", &[manifest, config, layer]);

    let run = s.run(&[
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8080:80",
        "-v",
        "data:/srv",
        "localhost:5000/web",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/srv",
    ]);
    assert!(
        run.stderr
            .contains("Unable to find image 'localhost:5000/web:latest' locally"),
        "{run:?}"
    );
    assert!(
        run.stderr.contains("Pull complete")
            && run.stderr.contains("Status: Downloaded newer image"),
        "{run:?}"
    );
    run.ok();
    s.run(&[
        "run",
        "--rm",
        "-v",
        "data:/srv",
        "localhost:5000/hello-wasm",
        "write",
        "/srv/index.html",
        "from wasm",
    ])
    .ok();
    wait_until("the page", Duration::from_secs(10), || {
        page().ends_with("from wasm\n")
    });
    assert!(s.run(&["ps", "-a"]).ok().contains("0.0.0.0:8080->80/tcp"));
    let images = s.run(&["images"]).ok();
    assert!(
        images.contains("localhost:5000/web") && images.contains("localhost:5000/hello-wasm"),
        "{images}"
    );
    assert_eq!(s.inspect("web")["Mounts"][0]["Name"], "data");
    s.run(&["logs", "web"]).ok();
    s.run(&["stop", "-t", "1", "web"]).ok();
    s.run(&["rm", "web"]).ok();

    let again = s.run(&["pull", "localhost:5000/web"]).ok();
    assert!(
        again.contains("Image is up to date for localhost:5000/web:latest"),
        "{again}"
    );
    s.run(&["rmi", "localhost:5000/web", "localhost:5000/hello-wasm"])
        .ok();
    assert_eq!(s.run(&["images", "-q"]).ok(), "");
    drop(registry);
    s.run(&["pull", "localhost:5000/web"])
        .fails(1, "connection refused");
}

fn page() -> String {
    let Ok(mut stream) = TcpStream::connect("127.0.0.1:8080") else {
        return String::new();
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn layers_of_every_wrapping_and_shared_ones_once() {
    let s = Sandbox::new();
    let registry = Registry::start(&s);
    let base = busybox_image("one");
    let one = base
        .clone()
        .layer(&[file("one", 0o644, "1")], Wrap::Zstd)
        .layer(&[file("more", 0o644, "m")], Wrap::Plain);
    let two = base.layer(&[file("two", 0o644, "2")], Wrap::Gzip);
    registry.push("one", "latest", &one.blobs());
    registry.push("two", "latest", &two.blobs());
    assert_eq!(
        s.run(&["run", "--rm", "localhost:5000/one", "cat", "/one", "/more"])
            .ok(),
        "1m"
    );
    let pulled = s.run(&["pull", "localhost:5000/two"]).ok();
    assert!(pulled.contains("Already exists"), "{pulled}");
    assert_eq!(
        s.run(&["run", "--rm", "localhost:5000/two", "cat", "/two"])
            .ok(),
        "2"
    );
    let layers = std::fs::read_dir(s.root().join("layers"))
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().len() == 64)
        .count();
    assert_eq!(layers, 4);
}

#[test]
fn damage_is_found_and_nothing_stays() {
    let s = Sandbox::new();
    let registry = Registry::start(&s);
    let image = Image::new("bad", serde_json::json!({ "Cmd": ["/x"] }))
        .layer(&[file("x", 0o755, vec![7u8; 100_000])], Wrap::Gzip);
    let blobs = image.blobs();
    registry.push("bad", "latest", &blobs);
    let hex = digest(&blobs[2].bytes)
        .trim_start_matches("sha256:")
        .to_owned();
    let data = s
        .dir
        .join("registry/docker/registry/v2/blobs/sha256")
        .join(&hex[..2])
        .join(&hex)
        .join("data");
    let good = std::fs::read(&data).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    for damaged in [flipped, good[..good.len() / 2].to_vec()] {
        std::fs::write(&data, damaged).unwrap();
        let out = s.run(&["pull", "localhost:5000/bad"]);
        assert_eq!(out.code, 1, "{out:?}");
        assert!(
            out.stderr.contains(&hex[..12]),
            "the layer is not named: {}",
            out.stderr
        );
        assert_eq!(s.run(&["images", "-q"]).ok(), "");
    }
    std::fs::write(&data, &good).unwrap();
    s.run(&["pull", "-q", "localhost:5000/bad"]).ok();
    s.run(&["pull", "localhost:5000/absent"])
        .fails(1, "not found");
}

#[test]
fn a_pull_from_a_silent_registry_can_be_interrupted() {
    let s = Sandbox::ready();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/app", silent.local_addr().unwrap());
    for words in [&["run", "--rm"][..], &["create"], &["pull"]] {
        let args: Vec<&str> = words.iter().copied().chain([image.as_str()]).collect();
        let mut child = s
            .command(&args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let _connection = accept_within(&silent, Duration::from_secs(20));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        wait_until("the command to end", Duration::from_secs(5), || {
            child.try_wait().unwrap().is_some()
        });
    }
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
}
