//! Pulls that go well.

use std::time::Instant;

use amphora_distribution::{DistributionError, PullEvent, PullStatus, Silent};
use amphora_spec::error::chain;
use amphora_spec::{Classify, ErrorKind, Platform, media};

use crate::front::{Act, Front};
use crate::image::{self, Layer, Pack, noise};
use crate::registry::Registry;
use crate::site::{Events, Site, quick};

fn three_layers() -> Vec<Layer> {
    vec![
        Layer::new(Pack::Gzip, "base", &noise(300_000, 1)),
        Layer::new(Pack::Zstd, "middle", b"zstd inside"),
        Layer::new(Pack::Plain, "top", b"plain inside"),
    ]
}

#[test]
fn an_image_arrives_whole_whatever_its_compression() {
    let registry = Registry::start();
    let layers = three_layers();
    let pushed = image::push(&registry, "hello", &layers);
    let (site, events) = (Site::new(), Events::default());
    let pulled = site
        .pull_with(quick(), &registry.name("hello"), None, &events)
        .unwrap();

    assert_eq!(pulled.status, PullStatus::Downloaded);
    assert_eq!(pulled.manifest.digest, pushed.manifest);
    assert_eq!(pulled.target, pulled.manifest);
    assert_eq!(site.file(&layers[0].diff_id, "base"), noise(300_000, 1));
    assert_eq!(site.file(&layers[1].diff_id, "middle"), b"zstd inside");
    assert_eq!(site.file(&layers[2].diff_id, "top"), b"plain inside");
    for blob in [
        pushed.manifest,
        pushed.config,
        layers[0].digest(),
        layers[2].digest(),
    ] {
        assert!(site.store.has(&blob).unwrap().is_some(), "{blob}");
    }
    let reference = registry.name("hello:latest").parse().unwrap();
    assert_eq!(
        site.store.resolve(&reference).unwrap().unwrap().digest,
        pushed.manifest
    );
    for layer in &layers {
        let seen = events.of(&layer.digest());
        assert_eq!(seen.first(), Some(&PullEvent::PullingFsLayer));
        assert_eq!(seen.last(), Some(&PullEvent::PullComplete));
        let total = layer.bytes.len() as u64;
        assert!(
            seen.contains(&PullEvent::Downloading {
                current: total,
                total
            }),
            "{seen:?}"
        );
        assert!(!site.part(&layer.digest()).exists());
    }
}

#[test]
fn plain_progress_reads_like_dockers() {
    let registry = Registry::start();
    let layers = vec![Layer::new(Pack::Gzip, "a", b"alpha")];
    let pushed = image::push(&registry, "team/web", &layers);
    let site = Site::new();
    let name = registry.name("team/web");
    let id = layers[0].digest().short();
    let (_, first) = site.pull_plainly(&name);
    assert_eq!(
        first,
        format!(
            "latest: Pulling from team/web\n{id}: Pulling fs layer\n{id}: Verifying Checksum\n\
             {id}: Download complete\n{id}: Pull complete\nDigest: {0}\n\
             Status: Downloaded newer image for {name}:latest\n{name}:latest\n",
            pushed.manifest
        )
    );
    let (again, second) = site.pull_plainly(&name);
    assert_eq!(again.status, PullStatus::UpToDate);
    assert_eq!(
        second,
        format!(
            "latest: Pulling from team/web\nDigest: {0}\n\
             Status: Image is up to date for {name}:latest\n{name}:latest\n",
            pushed.manifest
        )
    );
}

#[test]
fn an_unchanged_tag_costs_one_request_and_a_moved_one_is_followed() {
    let registry = Registry::start();
    image::push(&registry, "app", &three_layers());
    let front = Front::start(registry.port, |_, _| Act::Pass);
    let site = Site::new();
    let name = front.name("app");
    assert_eq!(site.pull(&name).unwrap().status, PullStatus::Downloaded);
    let before = front.seen().len();
    assert_eq!(site.pull(&name).unwrap().status, PullStatus::UpToDate);
    let seen = front.seen().split_off(before);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].method, "HEAD");
    assert!(
        seen[0]
            .header("user-agent")
            .unwrap()
            .starts_with("amphora/")
    );

    let moved = image::push(&registry, "app", &[Layer::new(Pack::Gzip, "new", b"new")]);
    let pulled = site.pull(&name).unwrap();
    assert_eq!(
        (pulled.status, pulled.target.digest),
        (PullStatus::Downloaded, moved.manifest)
    );
}

#[test]
fn a_shared_layer_is_not_downloaded_again() {
    let registry = Registry::start();
    let base = Layer::new(Pack::Gzip, "base", &noise(100_000, 4));
    image::push(&registry, "one", std::slice::from_ref(&base));
    let more = vec![base.clone(), Layer::new(Pack::Zstd, "own", b"own")];
    image::push(&registry, "two", &more);
    let front = Front::start(registry.port, |_, _| Act::Pass);
    let (site, events) = (Site::new(), Events::default());
    site.pull(&front.name("one")).unwrap();
    site.pull_with(quick(), &front.name("two"), None, &events)
        .unwrap();
    assert_eq!(events.of(&base.digest()), [PullEvent::AlreadyExists]);
    let blob = base.digest().to_string();
    assert_eq!(
        front
            .seen()
            .iter()
            .filter(|s| s.path.ends_with(&blob))
            .count(),
        1
    );
}

#[test]
fn what_is_missing_locally_is_made_up_for() {
    let registry = Registry::start();
    let layers = three_layers();
    image::push(&registry, "app", &layers);
    let site = Site::new();
    let name = registry.name("app");
    site.pull(&name).unwrap();
    // The directory of one layer and the blob of another are gone.
    assert!(site.layers.remove(&layers[0].diff_id).unwrap());
    std::fs::remove_file(site.store.blob_path(&layers[1].digest())).unwrap();
    let front = Front::start(registry.port, |_, _| Act::Pass);
    site.pull(&front.name("app")).unwrap();
    assert_eq!(site.file(&layers[0].diff_id, "base"), noise(300_000, 1));
    assert!(site.store.has(&layers[1].digest()).unwrap().is_some());
    let blobs: Vec<String> = front.blobs().into_iter().map(|s| s.path).collect();
    assert_eq!(blobs, [format!("/v2/app/blobs/{}", layers[1].digest())]);
}

#[test]
fn a_blob_that_rotted_comes_anew_for_a_layer_that_is_gone() {
    let registry = Registry::start();
    let layers = three_layers();
    image::push(&registry, "app", &layers);
    let site = Site::new();
    site.pull(&registry.name("app")).unwrap();
    for layer in &layers {
        assert!(site.layers.remove(&layer.diff_id).unwrap());
        let blob = site.store.blob_path(&layer.digest());
        // As long as it was: only the digest tells.
        std::fs::write(blob, vec![0; layer.bytes.len()]).unwrap();
    }
    site.pull(&registry.name("app")).unwrap();
    assert_eq!(site.file(&layers[0].diff_id, "base"), noise(300_000, 1));
    for layer in &layers {
        assert!(site.layers.has(&layer.diff_id));
        let bytes = std::fs::read(site.store.blob_path(&layer.digest())).unwrap();
        assert!(bytes == layer.bytes);
    }
}

#[test]
fn a_layer_that_comes_twice_is_pulled_once() {
    let registry = Registry::start();
    let layer = Layer::new(Pack::Gzip, "x", b"twice");
    image::push(&registry, "twice", &[layer.clone(), layer.clone()]);
    let front = Front::start(registry.port, |_, _| Act::Pass);
    let site = Site::new();
    site.pull(&front.name("twice")).unwrap();
    let blob = layer.digest().to_string();
    assert_eq!(
        front
            .seen()
            .iter()
            .filter(|s| s.path.ends_with(&blob))
            .count(),
        1
    );
}

#[test]
fn an_index_gives_linux_unless_wasm_is_asked_for() {
    let registry = Registry::start();
    let native = vec![Layer::new(Pack::Gzip, "native", b"elf")];
    let module = b"\0asm\x01\0\0\0".to_vec();
    let host = Platform::host();
    let platform = (host.os.as_str(), host.architecture.as_str());
    let linux = image::push_for(&registry, "both", "linux", platform, &native);
    let wasm = image::push_wasm(&registry, "both", "wasm", &module);
    let host = host.to_string();
    let entries = [(&wasm, Some("wasip1/wasm")), (&linux, Some(host.as_str()))];
    let index = image::push_index(&registry, "both", "latest", &entries);
    image::push_index(&registry, "both", "only", &[(&wasm, Some("wasip1/wasm"))]);
    image::push_index(&registry, "both", "mute", &[(&wasm, None), (&linux, None)]);
    let site = Site::new();
    let pull = |tag: &str, platform| {
        site.pull_with(
            quick(),
            &registry.name(&format!("both{tag}")),
            platform,
            &Silent,
        )
    };

    let pulled = pull("", None).unwrap();
    assert_eq!(
        (pulled.manifest.digest, pulled.target.digest),
        (linux.manifest, index)
    );
    assert_eq!(site.file(&native[0].diff_id, "native"), b"elf");
    // The same tag for the other platform: its manifest is fetched although the index is known.
    let pulled = pull("", Some("wasi/wasm32")).unwrap();
    assert_eq!(pulled.status, PullStatus::Downloaded);
    assert_eq!(
        (pulled.manifest.digest, pulled.target.digest),
        (wasm.manifest, index)
    );
    assert_eq!(pull("", Some("wasm")).unwrap().status, PullStatus::UpToDate);
    assert_eq!(pull(":only", None).unwrap().manifest.digest, wasm.manifest);
    // Entries without a platform are told apart by their configs.
    assert_eq!(pull(":mute", None).unwrap().manifest.digest, linux.manifest);
    assert_eq!(
        pull(":mute", Some("wasip1/wasm")).unwrap().manifest.digest,
        wasm.manifest
    );

    let error = pull(":only", Some("linux/amd64")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no matching manifest for linux/amd64 in the manifest list entries"
    );
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_wasm_artifact_is_stored_and_not_unpacked() {
    let registry = Registry::start();
    let module = b"\0asm\x01\0\0\0".to_vec();
    let pushed = image::push_wasm(&registry, "module", "latest", &module);
    let site = Site::new();
    let pulled = site.pull(&registry.name("module")).unwrap();
    assert_eq!(pulled.manifest.digest, pushed.manifest);
    let blob = crate::registry::digest(&module);
    assert_eq!(site.store.read_blob(&blob, 100).unwrap(), module);
    assert!(site.layers.list().unwrap().is_empty());
    assert_eq!(
        site.pull(&registry.name("module")).unwrap().status,
        PullStatus::UpToDate
    );
}

#[test]
fn dockers_own_media_types_work() {
    let registry = Registry::start();
    let mut layer = Layer::new(Pack::Gzip, "d", b"docker");
    layer.media_type = media::DOCKER_LAYER_GZIP.to_owned();
    let config = image::config("linux", "amd64", std::slice::from_ref(&layer));
    registry.push_blob("docker", &layer.bytes);
    registry.push_blob("docker", &config);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::DOCKER_MANIFEST,
        "config": image::descriptor(media::DOCKER_CONFIG, &config),
        "layers": [image::descriptor(&layer.media_type, &layer.bytes)],
    });
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let digest = registry.push_manifest("docker", "1", media::DOCKER_MANIFEST, &bytes);
    let site = Site::new();
    assert_eq!(
        site.pull(&registry.name("docker:1"))
            .unwrap()
            .manifest
            .digest,
        digest
    );
    assert_eq!(site.file(&layer.diff_id, "d"), b"docker");
}

#[test]
fn a_digest_names_the_image_and_is_kept_as_name() {
    let registry = Registry::start();
    let pushed = image::push(&registry, "app", &three_layers());
    let site = Site::new();
    let name = registry.name(&format!("app:ignored@{}", pushed.manifest));
    assert_eq!(site.pull(&name).unwrap().status, PullStatus::Downloaded);
    let reference = registry
        .name(&format!("app@{}", pushed.manifest))
        .parse()
        .unwrap();
    assert_eq!(
        site.store.resolve(&reference).unwrap().unwrap().digest,
        pushed.manifest
    );
    drop(registry);
    // All of it is here and cannot change: no registry is needed.
    assert_eq!(site.pull(&name).unwrap().status, PullStatus::UpToDate);
}

#[test]
fn pulls_of_one_image_at_the_same_time_share_the_work() {
    let registry = Registry::start();
    let layers = vec![Layer::new(Pack::Gzip, "big", &noise(3_000_000, 9))];
    image::push(&registry, "busy", &layers);
    let front = Front::start(registry.port, |_, _| Act::Pass);
    let site = Site::new();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| site.pull(&front.name("busy")).map(drop)))
            .collect();
        pulls
            .into_iter()
            .for_each(|pull| pull.join().unwrap().unwrap());
    });
    let blob = layers[0].digest().to_string();
    assert_eq!(
        front
            .seen()
            .iter()
            .filter(|s| s.path.ends_with(&blob))
            .count(),
        1
    );
}

#[test]
fn an_image_of_many_layers_keeps_the_bound_on_connections() {
    let registry = Registry::start();
    let layers: Vec<Layer> = (0..12u8)
        .map(|n| Layer::new(Pack::Gzip, "f", &noise(40_000, u64::from(n) + 20)))
        .collect();
    image::push(&registry, "many", &layers);
    let (site, events) = (Site::new(), Events::default());
    site.pull_with(quick(), &registry.name("many"), None, &events)
        .unwrap();
    let waiting = layers
        .iter()
        .filter(|l| events.of(&l.digest()).contains(&PullEvent::Waiting));
    assert_eq!(waiting.count(), 8);
    assert_eq!(site.layers.list().unwrap().len(), 12);
}

#[test]
fn a_manifest_that_disagrees_with_its_config_is_refused() {
    let registry = Registry::start();
    let layers = three_layers();
    for layer in &layers {
        registry.push_blob("odd", &layer.bytes);
    }
    let config = image::config("linux", "amd64", &layers[..2]);
    image::push_config(&registry, "odd", "latest", &config, &layers);
    let site = Site::new();
    let error = site.pull(&registry.name("odd")).unwrap_err();
    assert!(
        matches!(
            error,
            DistributionError::LayerCount {
                layers: 3,
                diff_ids: 2,
                ..
            }
        ),
        "{error}"
    );
    site.assert_clean();
}

#[test]
fn an_unknown_layer_type_is_named() {
    let registry = Registry::start();
    let mut layer = Layer::new(Pack::Gzip, "x", b"x");
    layer.media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".to_owned();
    image::push(&registry, "secret", std::slice::from_ref(&layer));
    let site = Site::new();
    let error = site.pull(&registry.name("secret")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(chain(&error).contains("tar+gzip+encrypted"), "{error}");
    site.assert_clean();
}

/// Prints how long a pull of 100 MB in 3 layers takes: run it alone, with `AMPHORA_MEASURE=1`.
#[test]
fn measure_a_pull_of_100_mb() {
    if std::env::var_os("AMPHORA_MEASURE").is_none() {
        return;
    }
    let registry = Registry::start();
    for (pack, name) in [
        (Pack::Gzip, "gzip"),
        (Pack::Zstd, "zstd"),
        (Pack::Plain, "plain"),
    ] {
        let layers: Vec<Layer> = (0..3u64).map(|n| text_layer(pack, n)).collect();
        image::push(&registry, name, &layers);
        let bytes: usize = layers.iter().map(|l| l.bytes.len()).sum();
        for _ in 0..3 {
            let site = Site::new();
            let start = Instant::now();
            site.pull(&registry.name(name)).unwrap();
            let taken = start.elapsed().as_secs_f64();
            println!("{name}: {} bytes over the wire, {taken:.3} s", bytes);
        }
    }
}

/// A third of 100 MB of files that compress like programs do.
fn text_layer(pack: Pack, seed: u64) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..500u64 {
        let raw = noise(33_000, seed * 1000 + number + 1);
        let data: Vec<u8> = raw.iter().flat_map(|b| [*b, b'a' + b % 3]).collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        let path = format!("usr/lib/{seed}/{number}");
        builder
            .append_data(&mut header, path, data.as_slice())
            .unwrap();
    }
    Layer::of_tar(pack, &builder.into_inner().unwrap())
}
