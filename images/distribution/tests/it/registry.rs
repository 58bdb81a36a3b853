//! The real registry, and pushing to it by HTTP.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use amphora_spec::Digest;
use sha2::{Digest as _, Sha256};

use crate::site::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running `docker-registry`; ends with the value.
pub(crate) struct Registry {
    child: Child,
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a registry that speaks TLS.
    pub(crate) fn start_tls() -> Self {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata");
        let (pem, key) = (data.join("localhost.pem"), data.join("localhost.key"));
        Self::start_with(&format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            pem.display(),
            key.display()
        ))
    }

    fn start_with(http: &str) -> Self {
        let dir = TempDir::new();
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n{http}",
            dir.path().join("data").display(),
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let mut registry = Self { child, dir, port };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            assert!(
                registry.child.try_wait().unwrap().is_none(),
                "the registry ended"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        registry
    }

    /// Returns `127.0.0.1:port/name`.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    fn url(&self, rest: &str) -> String {
        format!("http://127.0.0.1:{}/v2/{rest}", self.port)
    }

    pub(crate) fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = digest(bytes);
        let begun = ureq::post(self.url(&format!("{repository}/blobs/uploads/")))
            .send_empty()
            .unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let joint = if location.contains('?') { '&' } else { '?' };
        let put = ureq::put(format!("{location}{joint}digest={digest}"))
            .header("content-type", "application/octet-stream")
            .send(bytes)
            .unwrap();
        assert_eq!(put.status(), 201);
        digest
    }

    pub(crate) fn push_manifest(
        &self,
        repository: &str,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Digest {
        let url = self.url(&format!("{repository}/manifests/{name}"));
        let put = ureq::put(url)
            .header("content-type", media_type)
            .send(bytes)
            .unwrap();
        assert_eq!(put.status(), 201);
        digest(bytes)
    }

    /// Returns where the registry keeps the bytes of a blob.
    pub(crate) fn blob_file(&self, blob: &Digest) -> std::path::PathBuf {
        let hex = blob.hex();
        let path = format!(
            "data/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        );
        self.dir.path().join(path)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
