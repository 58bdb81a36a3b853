//! Registries and networks that misbehave.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use amphora_distribution::{DistributionError, PullStatus, Silent};
use amphora_spec::error::chain;
use amphora_spec::{Classify, Digest, ErrorKind, media};

use crate::front::{Act, Front};
use crate::image::{self, Image, Layer, Pack, noise};
use crate::registry::{Registry, free_port};
use crate::site::{Site, TempDir, quick};

const SIZE: usize = 1_500_000;

/// A registry with an image of one incompressible layer.
fn one_layer() -> (Registry, Layer, Image) {
    let registry = Registry::start();
    let layer = Layer::new(Pack::Gzip, "data", &noise(SIZE, 7));
    let pushed = image::push(&registry, "app", std::slice::from_ref(&layer));
    (registry, layer, pushed)
}

/// Faults for the blob of the layer; all else passes.
fn front_for(
    registry: &Registry,
    layer: &Layer,
    act: impl Fn(usize) -> Act + Send + Sync + 'static,
) -> Front {
    let path = format!("/v2/app/blobs/{}", layer.digest());
    Front::start(registry.port, move |before, seen| {
        if seen.path == path {
            act(before)
        } else {
            Act::Pass
        }
    })
}

fn ranges(front: &Front, layer: &Layer) -> Vec<Option<String>> {
    let blob = layer.digest().to_string();
    let seen = front.seen().into_iter().filter(|s| s.path.ends_with(&blob));
    seen.map(|s| s.header("range").map(str::to_owned)).collect()
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let (registry, layer, pushed) = one_layer();
    let front = front_for(&registry, &layer, |_| Act::Cut(400_000));
    let site = Site::new();
    site.pull(&front.name("app")).unwrap();
    assert_eq!(site.file(&layer.diff_id, "data"), noise(SIZE, 7));
    let wanted: Vec<Option<String>> = [0, 400_000, 800_000, 1_200_000]
        .map(|n| (n > 0).then(|| format!("bytes={n}-")))
        .into();
    assert_eq!(ranges(&front, &layer), wanted);
    // Every byte of the layer crossed once; the rest is the config.
    let config = site.store.has(&pushed.config).unwrap().unwrap();
    assert_eq!(front.blob_bytes(), layer.bytes.len() as u64 + config);
}

#[test]
fn a_registry_without_ranges_is_read_again_from_the_start() {
    let (registry, layer, _) = one_layer();
    let front = front_for(&registry, &layer, |before| {
        Act::IgnoreRange(if before == 0 { 500_000 } else { usize::MAX })
    });
    let site = Site::new();
    site.pull(&front.name("app")).unwrap();
    assert_eq!(site.file(&layer.diff_id, "data"), noise(SIZE, 7));
}

#[test]
fn wrong_bytes_are_refused_and_leave_nothing() {
    let (registry, layer, _) = one_layer();
    let front = front_for(&registry, &layer, |_| {
        Act::Change(|_, body| body[1_000_000] ^= 1)
    });
    let site = Site::new();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", chain(&error));
    assert!(
        chain(&error).contains(&layer.digest().to_string()),
        "{}",
        chain(&error)
    );
    site.assert_clean();
}

#[test]
fn wrong_bytes_in_a_plain_layer_never_become_a_layer() {
    // Without a checksum of its own, only the digests stand between the bytes and the layer.
    let registry = Registry::start();
    let layer = Layer::new(Pack::Plain, "data", &noise(SIZE, 8));
    image::push(&registry, "app", std::slice::from_ref(&layer));
    let front = front_for(&registry, &layer, |_| {
        Act::Change(|_, body| body[1_000_000] ^= 1)
    });
    let site = Site::new();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert!(
        matches!(error, DistributionError::WrongDigest { what: "layer", .. }),
        "{error}"
    );
    site.assert_clean();
}

#[test]
fn a_truncated_layer_is_data_loss() {
    let (registry, layer, _) = one_layer();
    let file = registry.blob_file(&layer.digest());
    fs::write(&file, &layer.bytes[..900_000]).unwrap();
    let site = Site::new();
    let error = site.pull(&registry.name("app")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", chain(&error));
    assert!(
        error.to_string().contains(&layer.digest().to_string()),
        "{error}"
    );
    site.assert_clean();
}

#[test]
fn a_layer_that_always_ends_at_the_same_byte_is_data_loss() {
    let (registry, layer, _) = one_layer();
    let front = front_for(&registry, &layer, |before| {
        Act::Cut(if before == 0 { 600_000 } else { 0 })
    });
    let site = Site::new();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert!(
        matches!(error, DistributionError::WrongSize { found: 600_000, .. }),
        "{}",
        chain(&error)
    );
    site.assert_clean();
}

#[test]
fn a_layer_longer_than_announced_is_data_loss() {
    let (registry, layer, _) = one_layer();
    let front = front_for(&registry, &layer, |_| {
        Act::Change(|head, body| {
            // Without a length the body ends with the connection.
            head.retain(|line| !line.to_ascii_lowercase().starts_with("content-length"));
            body.extend_from_slice(b"more");
        })
    });
    let site = Site::new();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert!(
        matches!(error, DistributionError::WrongSize { .. }),
        "{}",
        chain(&error)
    );
    site.assert_clean();
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_data_loss() {
    let registry = Registry::start();
    let mut layer = Layer::new(Pack::Gzip, "data", &noise(SIZE, 7));
    layer.diff_id = Digest::from_sha256([5; 32]);
    image::push(&registry, "liar", std::slice::from_ref(&layer));
    let site = Site::new();
    let error = site.pull(&registry.name("liar")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", chain(&error));
    assert!(
        error.to_string().contains(&layer.digest().to_string()),
        "{error}"
    );
    site.assert_clean();
}

#[test]
fn a_layer_that_is_no_tar_is_refused_before_its_end() {
    let registry = Registry::start();
    let mut layer = Layer::new(Pack::Plain, "data", b"");
    layer.bytes = noise(SIZE, 11);
    image::push(&registry, "app", std::slice::from_ref(&layer));
    // The rest of the download never comes: the unpacker's failure must end the wait.
    let front = front_for(&registry, &layer, |_| Act::Cut(SIZE / 2));
    let site = Site::new();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert!(
        matches!(error, DistributionError::Unpack { .. }),
        "{}",
        chain(&error)
    );
    site.assert_clean();
}

#[test]
fn the_first_failure_stops_the_other_layers() {
    let registry = Registry::start();
    let good = Layer::new(Pack::Gzip, "good", &noise(SIZE, 1));
    let bad = Layer::new(Pack::Plain, "bad", b"bad");
    image::push(&registry, "app", &[good.clone(), bad.clone()]);
    fs::remove_file(registry.blob_file(&bad.digest())).unwrap();
    let path = format!("/v2/app/blobs/{}", good.digest());
    let front = Front::start(registry.port, move |_, seen| {
        if seen.path == path {
            Act::Stall(100_000)
        } else {
            Act::Pass
        }
    });
    let site = Site::new();
    let start = Instant::now();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert!(
        matches!(error, DistributionError::BlobUnknown { digest, .. } if digest == bad.digest()),
        "{}",
        chain(&error)
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(site.store.list_all().unwrap().is_empty());
}

#[test]
fn an_overloaded_registry_is_asked_again_when_it_says() {
    let (registry, layer, _) = one_layer();
    let busy = || {
        Act::Answer(
            429,
            vec![("Retry-After".to_owned(), "1".to_owned())],
            Vec::new(),
        )
    };
    let manifest = "/v2/app/manifests/latest";
    let blob = format!("/v2/app/blobs/{}", layer.digest());
    let front = Front::start(registry.port, move |before, seen| match before {
        0 if seen.path == manifest => Act::Answer(503, Vec::new(), Vec::new()),
        0 if seen.path == blob => busy(),
        _ => Act::Pass,
    });
    let site = Site::new();
    let start = Instant::now();
    site.pull(&front.name("app")).unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "Retry-After was not heeded"
    );
}

#[test]
fn an_overload_without_end_is_reported() {
    let (registry, layer, _) = one_layer();
    let asked = vec![("Retry-After".to_owned(), "99999".to_owned())];
    let front = front_for(&registry, &layer, move |_| {
        Act::Answer(429, asked.clone(), Vec::new())
    });
    let mut config = quick();
    config.retry.retry_after_max = Duration::from_millis(10);
    let site = Site::new();
    let error = site
        .pull_with(config, &front.name("app"), None, &Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
    assert_eq!(
        front.blobs().len(),
        1 + 4,
        "the config, and four attempts for the layer"
    );
    site.assert_clean();
}

#[test]
fn a_silent_registry_is_left_and_asked_again() {
    let (registry, layer, _) = one_layer();
    let front = front_for(&registry, &layer, |before| match before {
        0 => Act::Hang,
        1 => Act::Stall(700_000),
        _ => Act::Pass,
    });
    let site = Site::new();
    site.pull(&front.name("app")).unwrap();
    assert_eq!(
        ranges(&front, &layer),
        [None, None, Some("bytes=700000-".to_owned())]
    );
}

#[test]
fn a_registry_that_stays_silent_is_unavailable() {
    let registry = Registry::start();
    let front = Front::start(registry.port, |_, _| Act::Hang);
    let mut config = quick();
    config.silence_timeout = Duration::from_millis(50);
    let site = Site::new();
    let error = site
        .pull_with(config, &front.name("app"), None, &Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let url = format!("http://{}", front.name("v2/app/manifests/latest"));
    assert_eq!(
        chain(&error),
        format!("failed to do request: Get \"{url}\": i/o timeout")
    );
}

#[test]
fn bad_bytes_of_an_earlier_pull_do_not_spoil_the_next() {
    let (registry, layer, _) = one_layer();
    let site = Site::new();
    fs::write(site.part(&layer.digest()), noise(300_000, 99)).unwrap();
    assert_eq!(
        site.pull(&registry.name("app")).unwrap().status,
        PullStatus::Downloaded
    );
    assert_eq!(site.file(&layer.diff_id, "data"), noise(SIZE, 7));
    assert!(!site.part(&layer.digest()).exists());
}

#[test]
fn a_download_that_was_whole_is_not_repeated() {
    let (registry, layer, _) = one_layer();
    let front = front_for(&registry, &layer, |_| Act::Hang);
    let site = Site::new();
    fs::write(site.part(&layer.digest()), &layer.bytes).unwrap();
    site.pull(&front.name("app")).unwrap();
    assert_eq!(ranges(&front, &layer), Vec::<Option<String>>::new());
    assert_eq!(site.file(&layer.diff_id, "data"), noise(SIZE, 7));
}

/// Not a test of its own: the process that [`a_killed_pull_is_resumed`] kills.
#[test]
fn killed_child() {
    let (Some(root), Some(name)) = (
        std::env::var_os("PULL_ROOT"),
        std::env::var("PULL_NAME").ok(),
    ) else {
        return;
    };
    let store = amphora_content::Store::open(root.as_ref()).unwrap();
    let layers = amphora_snapshot::Layers::open(root.as_ref()).unwrap();
    let config = amphora_distribution::ClientConfig::default();
    let client = amphora_distribution::Client::new(config).unwrap();
    drop(client.pull(&store, &layers, &name.parse().unwrap(), None, &Silent));
}

#[test]
fn a_killed_pull_is_resumed() {
    let (registry, layer, _) = one_layer();
    let front = front_for(&registry, &layer, |before| {
        if before == 0 {
            Act::Stall(800_000)
        } else {
            Act::Pass
        }
    });
    let site = Site::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::killed_child"])
        .env("PULL_ROOT", site.dir.path())
        .env("PULL_NAME", front.name("app"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let written = || fs::metadata(site.part(&layer.digest())).map_or(0, |m| m.len());
    while written() < 800_000 {
        assert!(
            Instant::now() < deadline,
            "only {} bytes arrived",
            written()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!site.layers.has(&layer.diff_id));
    assert!(site.store.list_all().unwrap().is_empty());

    site.pull(&front.name("app")).unwrap();
    assert_eq!(
        ranges(&front, &layer),
        [None, Some("bytes=800000-".to_owned())]
    );
    assert_eq!(site.file(&layer.diff_id, "data"), noise(SIZE, 7));
    assert!(!site.part(&layer.digest()).exists());
}

#[test]
fn a_lying_header_is_not_believed() {
    let (registry, _, pushed) = one_layer();
    let front = Front::start(registry.port, |_, _| {
        Act::Change(|head, _| {
            head.retain(|line| {
                !line
                    .to_ascii_lowercase()
                    .starts_with("docker-content-digest")
            });
            head.push(format!("Docker-Content-Digest: sha256:{}", "0".repeat(64)));
        })
    });
    let site = Site::new();
    assert_eq!(
        site.pull(&front.name("app")).unwrap().target.digest,
        pushed.manifest
    );
    assert_eq!(
        site.pull(&front.name("app")).unwrap().status,
        PullStatus::UpToDate
    );
}

#[test]
fn a_manifest_that_is_not_the_digest_asked_for_is_refused() {
    let (registry, _, pushed) = one_layer();
    let front = Front::start(registry.port, |_, seen| {
        match seen.path.contains("/manifests/") {
            true => Act::Change(|head, body| {
                head.retain(|line| !line.to_ascii_lowercase().starts_with("content-length"));
                body.push(b' ');
            }),
            false => Act::Pass,
        }
    });
    let site = Site::new();
    let name = front.name(&format!("app@{}", pushed.manifest));
    let error = site.pull(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", chain(&error));
    assert!(
        error.to_string().contains(&pushed.manifest.to_string()),
        "{error}"
    );
    site.assert_clean();
}

#[test]
fn a_config_that_is_not_its_digest_is_refused() {
    let (registry, _, pushed) = one_layer();
    let config = format!("/v2/app/blobs/{}", pushed.config);
    let front = Front::start(registry.port, move |_, seen| {
        if seen.path == config {
            Act::Change(|_, body| body[0] = b' ')
        } else {
            Act::Pass
        }
    });
    let site = Site::new();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert!(
        matches!(error, DistributionError::WrongDigest { what: "config", .. }),
        "{error}"
    );
    site.assert_clean();
}

#[test]
fn an_endless_manifest_is_refused() {
    let registry = Registry::start();
    let front = Front::start(registry.port, |_, _| {
        let headers = vec![("Content-Type".to_owned(), media::OCI_MANIFEST.to_owned())];
        Act::Answer(200, headers, vec![b' '; (4 << 20) + 1])
    });
    let site = Site::new();
    let error = site.pull(&front.name("app")).unwrap_err();
    assert!(
        matches!(
            error,
            DistributionError::TooLarge {
                what: "manifest",
                ..
            }
        ),
        "{error}"
    );
    site.assert_clean();
}

#[test]
fn an_unreachable_registry_is_named() {
    let site = Site::new();
    let port = free_port();
    let error = site.pull(&format!("localhost:{port}/app")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(
        chain(&error),
        format!(
            "failed to do request: Get \"http://localhost:{port}/v2/app/manifests/latest\": \
             dial tcp localhost:{port}: connection refused"
        )
    );
    let error = site.pull("registry.invalid/app").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = chain(&error);
    let start = "failed to do request: Get \"https://registry.invalid/v2/app/manifests/latest\": \
                 dial tcp registry.invalid:443: ";
    assert!(text.starts_with(start), "{text}");
    site.assert_clean();
}

#[test]
fn an_unknown_image_is_named_in_dockers_words() {
    let (registry, ..) = one_layer();
    let site = Site::new();
    let name = registry.name("app:nope");
    let error = site.pull(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        chain(&error),
        format!("manifest for {name} not found: manifest unknown: manifest unknown")
    );
    let name = registry.name("nobody");
    let error = site.pull(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        chain(&error),
        format!("manifest for {name}:latest not found: manifest unknown: manifest unknown")
    );
    site.assert_clean();
}

/// A full disk must fail the pull, name itself, and give the space back.
#[test]
fn a_full_disk_is_reported_and_leaves_nothing() {
    let (registry, ..) = one_layer();
    let dir = TempDir::new();
    let small = match Small::mount(dir.path()) {
        Ok(small) => small,
        Err(error) => {
            eprintln!("skipped: failed to mount a tmpfs: {error}");
            return;
        }
    };
    let store = amphora_content::Store::open(dir.path()).unwrap();
    let layers = amphora_snapshot::Layers::open(dir.path()).unwrap();
    let client = amphora_distribution::Client::new(quick()).unwrap();
    let reference = registry.name("app").parse().unwrap();
    let error = client
        .pull(&store, &layers, &reference, None, &Silent)
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ResourceExhausted,
        "{}",
        chain(&error)
    );
    assert!(store.list_all().unwrap().is_empty());
    assert!(layers.list().unwrap().is_empty());
    for folder in ["ingest", "blobs/sha256"] {
        assert_eq!(
            fs::read_dir(dir.path().join(folder)).unwrap().count(),
            0,
            "{folder}"
        );
    }
    let mut text = String::new();
    fs::File::open(dir.path().join("oci-layout"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    drop(small);
}

/// A file system of 1 MiB.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: &std::path::Path) -> rustix::io::Result<Self> {
        use rustix::mount::{MountFlags, mount};
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"size=1m")?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn documents_torn_by_a_power_failure_are_fetched_again() {
    let (registry, _, pushed) = one_layer();
    let site = Site::new();
    let name = registry.name("app");
    let pulled = site.pull(&name).unwrap();
    for torn in [pushed.manifest, pushed.config] {
        let path = site.store.blob_path(&torn);
        let whole = fs::read(&path).unwrap();
        for damage in [Vec::new(), vec![0; whole.len()]] {
            fs::write(&path, damage).unwrap();
            let again = site.pull(&name).unwrap();
            assert_eq!(again.status, PullStatus::Downloaded);
            assert_eq!(again.target, pulled.target);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }
    assert_eq!(site.pull(&name).unwrap().status, PullStatus::UpToDate);
}

#[test]
fn a_fetched_image_is_named_when_it_is_published() {
    let (registry, _, pushed) = one_layer();
    let site = Site::new();
    let client = amphora_distribution::Client::new(quick()).unwrap();
    let reference = registry.name("app").parse().unwrap();
    let fetch = || {
        client
            .pull(&site.store, &site.layers, &reference, None, &Silent)
            .unwrap()
    };
    drop(fetch());
    assert!(site.store.list_all().unwrap().is_empty());
    let fetched = fetch();
    assert!(
        site.store.try_exclusive().unwrap().is_none(),
        "the collector stays away"
    );
    assert_eq!(fetched.manifest().digest, pushed.manifest);
    fetched.publish().unwrap();
    assert_eq!(site.store.list().unwrap().len(), 1);
}
