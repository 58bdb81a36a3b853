use std::io::Read;

use amphora_content::archive::{LoadOptions, load, publish};
use amphora_content::compress::Ratio;
use amphora_content::tarball::TarLimits;
use amphora_content::{ContentError, Store};
use amphora_spec::image::Manifest;
use amphora_spec::{Classify, ErrorKind, media};
use serde_json::json;

use crate::support::{Image, SmallDisk, content, digest, gzip, store, tar_of, zstd};

/// What `docker save` wrote before version 25.
pub(crate) fn docker_archive(image: &Image, tags: &[&str]) -> Vec<u8> {
    let config = format!("{}.json", image.config_hex());
    let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": ["l1/layer.tar"]}]);
    tar_of(&[
        (&config, &image.config),
        ("l1/VERSION", b"1.0"),
        ("l1/layer.tar", &image.layer),
        ("manifest.json", manifest.to_string().as_bytes()),
        ("repositories", b"{}"),
    ])
}

fn blob(bytes: &[u8]) -> (String, Vec<u8>) {
    (
        format!("blobs/sha256/{}", digest(bytes).hex()),
        bytes.to_vec(),
    )
}

fn oci_tar(index: &serde_json::Value, blobs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let index = index.to_string();
    let mut entries: Vec<(&str, &[u8])> = vec![("index.json", index.as_bytes())];
    entries.extend(blobs.iter().map(|(p, b)| (p.as_str(), b.as_slice())));
    entries.push(("./oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}"));
    tar_of(&entries)
}

fn entry(bytes: &[u8], media_type: &str, name: Option<(&str, &str)>) -> serde_json::Value {
    let mut entry = json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
    if let Some((key, name)) = name {
        entry["annotations"] = json!({key: name});
    }
    entry
}

const NAME: &str = "io.containerd.image.name";
const REF: &str = "org.opencontainers.image.ref.name";

pub(crate) fn oci_archive(image: &Image, name: Option<&str>) -> Vec<u8> {
    let layer = gzip(&image.layer);
    let manifest = image.manifest(&layer, media::OCI_LAYER_GZIP);
    let entry = entry(&manifest, media::OCI_MANIFEST, name.map(|n| (NAME, n)));
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    oci_tar(
        &index,
        &[blob(&layer), blob(&manifest), blob(&image.config)],
    )
}

fn load_all(store: &Store, bytes: &[u8]) -> Result<Vec<String>, ContentError> {
    let loaded = load(store, bytes, &LoadOptions::default())?;
    publish(store, &loaded)?;
    Ok(loaded
        .iter()
        .map(|l| {
            l.reference
                .as_ref()
                .map_or_else(|| "-".to_owned(), |r| r.familiar())
        })
        .collect())
}

#[test]
fn a_docker_archive_keeps_its_image_id() {
    let (dir, store) = store();
    let image = Image::new("hello");
    let archive = docker_archive(&image, &["hello", "host:5000/a/b:1.2"]);
    assert_eq!(
        load_all(&store, &archive).unwrap(),
        ["hello:latest", "host:5000/a/b:1.2"]
    );
    let found = store.resolve(&"hello".parse().unwrap()).unwrap().unwrap();
    let manifest: Manifest = store.read_json(&found.digest).unwrap();
    assert_eq!(manifest.config.digest.hex(), image.config_hex());
    assert_eq!(manifest.layers[0].digest, digest(&image.layer));
    assert_eq!(manifest.layers[0].media_type, media::OCI_LAYER);
    assert_eq!(
        content(dir.path()).len(),
        3,
        "config, layer, manifest and nothing else"
    );
    load_all(&store, &archive).unwrap();
    assert_eq!(content(dir.path()).len(), 3, "loading again adds nothing");
}

#[test]
fn blobs_that_rotted_are_whole_after_they_are_brought_again() {
    let image = Image::new("hello");
    for archive in [
        docker_archive(&image, &["x"]),
        oci_archive(&image, Some("x")),
    ] {
        let (dir, store) = store();
        load_all(&store, &archive).unwrap();
        let blobs = dir.path().join("blobs/sha256");
        let read = || -> std::collections::BTreeMap<_, _> {
            let all = std::fs::read_dir(&blobs).unwrap().flatten();
            all.map(|e| (e.path(), std::fs::read(e.path()).unwrap()))
                .collect()
        };
        let whole = read();
        assert_eq!(whole.len(), 3);
        for (path, bytes) in &whole {
            // As long as it was: only the digest tells.
            std::fs::write(path, vec![0; bytes.len()]).unwrap();
        }
        load_all(&store, &archive).unwrap();
        assert_eq!(read(), whole);
    }
}

#[test]
fn compressed_archives_load_as_plain_ones() {
    let image = Image::new("hello");
    for archive in [
        docker_archive(&image, &["x"]),
        oci_archive(&image, Some("x")),
    ] {
        for bytes in [gzip(&archive), zstd(&archive), archive.clone()] {
            let (_dir, store) = store();
            assert_eq!(load_all(&store, &bytes).unwrap(), ["x:latest"]);
        }
    }
}

#[test]
fn untagged_images_load() {
    let (_dir, store) = store();
    let image = Image::new("a");
    assert_eq!(
        load_all(&store, &docker_archive(&image, &[])).unwrap(),
        ["-"]
    );
    assert_eq!(
        load_all(&store, &oci_archive(&Image::new("b"), None)).unwrap(),
        ["-"]
    );
    assert_eq!(store.list_all().unwrap().len(), 2);
}

#[test]
fn docker_layers_may_be_links_and_compressed() {
    let (_dir, store) = store();
    let image = Image::new("hello");
    let zipped = gzip(&image.layer);
    let config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
    let diff_id = config["rootfs"]["diff_ids"][0].clone();
    let config = json!({"rootfs": {"diff_ids": [diff_id, diff_id]}}).to_string();
    let manifest =
        json!([{"Config": "c.json", "RepoTags": null, "Layers": ["b/layer.tar", "a/layer.tar"]}]);
    let archive = tar_of(&[
        ("manifest.json", manifest.to_string().as_bytes()),
        ("link:b/layer.tar", b"../a/layer.tar"),
        ("a/layer.tar", &zipped),
        ("c.json", config.as_bytes()),
    ]);
    let loaded = load(&store, &*archive, &LoadOptions::default()).unwrap();
    let manifest: Manifest = store.read_json(&loaded[0].manifest.digest).unwrap();
    let facts: Vec<_> = manifest
        .layers
        .iter()
        .map(|l| (l.digest, &*l.media_type))
        .collect();
    assert_eq!(facts, [(digest(&zipped), media::OCI_LAYER_GZIP); 2]);
}

#[test]
fn oci_names_come_from_either_annotation() {
    for (annotation, expected) in [
        ((NAME, "docker.io/library/x:1"), "x:1"),
        ((REF, "x:1"), "x:1"),
        ((REF, "localhost/x"), "localhost/x:latest"),
        ((REF, "hello"), "hello:latest"),
        ((REF, "latest"), "-"),
        ((REF, "1.0"), "-"),
    ] {
        let (_dir, store) = store();
        let image = Image::new("hello");
        let manifest = image.manifest(&image.layer, media::OCI_LAYER);
        let entry = entry(&manifest, media::OCI_MANIFEST, Some(annotation));
        let archive = oci_tar(
            &json!({"schemaVersion": 2, "manifests": [entry]}),
            &[blob(&image.layer), blob(&manifest), blob(&image.config)],
        );
        assert_eq!(
            load_all(&store, &archive).unwrap(),
            [expected],
            "{annotation:?}"
        );
    }
}

#[test]
fn both_forms_in_one_archive_give_the_names_of_either() {
    let (_dir, store) = store();
    let image = Image::new("hello");
    let manifest = image.manifest(&image.layer, media::OCI_LAYER);
    let index =
        json!({"schemaVersion": 2, "manifests": [entry(&manifest, media::OCI_MANIFEST, None)]});
    let docker = json!([{
        "Config": format!("blobs/sha256/{}", image.config_hex()), "RepoTags": ["both:1"],
        "Layers": [format!("blobs/sha256/{}", digest(&image.layer).hex())],
    }]);
    let blobs = [
        blob(&image.layer),
        blob(&manifest),
        blob(&image.config),
        ("manifest.json".to_owned(), docker.to_string().into_bytes()),
    ];
    assert_eq!(
        load_all(&store, &oci_tar(&index, &blobs)).unwrap(),
        ["both:1"]
    );
}

#[test]
fn a_nested_index_loads_with_the_platforms_that_are_there() {
    let (dir, store) = store();
    let (here, absent) = (Image::new("amd64"), Image::new("arm64"));
    let manifest = here.manifest(&here.layer, media::OCI_LAYER);
    let other = absent.manifest(&absent.layer, media::OCI_LAYER);
    let nested = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [
        entry(&other, media::OCI_MANIFEST, None), entry(&manifest, media::OCI_MANIFEST, None)]});
    let nested = nested.to_string().into_bytes();
    let index = json!({"manifests": [entry(&nested, media::OCI_INDEX, Some((NAME, "multi:1")))]});
    let blobs = [
        blob(&nested),
        blob(&manifest),
        blob(&here.config),
        blob(&here.layer),
    ];
    assert_eq!(
        load_all(&store, &oci_tar(&index, &blobs)).unwrap(),
        ["multi:1"]
    );
    let found = store.resolve(&"multi:1".parse().unwrap()).unwrap().unwrap();
    assert_eq!(found.media_type, media::OCI_INDEX);
    assert_eq!(content(dir.path()).len(), 4);

    let (empty, empty_store) = crate::support::store();
    let error = load_all(&empty_store, &oci_tar(&index, &blobs[..1])).unwrap_err();
    assert!(
        matches!(error, ContentError::BlobNotFound(d) if d == digest(&other)),
        "{error}"
    );
    assert!(content(empty.path()).is_empty());
}

type BadCase = (&'static str, Vec<u8>, ErrorKind, &'static str);

#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_archives() -> Vec<BadCase> {
    let image = Image::new("hello");
    let good = docker_archive(&image, &["x"]);
    let list = |config: &str, layer: &str, tag: &str| {
        json!([{"Config": config, "RepoTags": [tag], "Layers": [layer]}])
            .to_string()
            .into_bytes()
    };
    let with = |manifest: Vec<u8>, layer: &[u8]| {
        tar_of(&[
            ("c.json", &image.config),
            ("l.tar", layer),
            ("manifest.json", &manifest),
        ])
    };
    let hex = format!("{}.json", "0".repeat(64));
    let liar = tar_of(&[
        (&hex, &image.config),
        ("l.tar", &image.layer),
        ("manifest.json", &list(&hex, "l.tar", "x")),
    ]);
    let mut forged = blob(&image.config);
    forged.1.push(b' ');
    let oci_forged = oci_tar(&json!({"manifests": []}), &[forged]);
    let mut flipped = gzip(&good);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    vec![
        (
            "no archive",
            b"hello".repeat(400),
            ErrorKind::InvalidArgument,
            "checksum",
        ),
        (
            "empty",
            Vec::new(),
            ErrorKind::InvalidArgument,
            "neither a manifest.json",
        ),
        (
            "truncated",
            good[..good.len() / 2].to_vec(),
            ErrorKind::DataLoss,
            "ends inside",
        ),
        (
            "truncated gzip",
            gzip(&good)[..400].to_vec(),
            ErrorKind::DataLoss,
            "",
        ),
        ("corrupt gzip", flipped, ErrorKind::DataLoss, ""),
        (
            "xz",
            b"\xfd7zXZ\0abc".to_vec(),
            ErrorKind::Unsupported,
            "failed to read image archive",
        ),
        (
            "other layer",
            with(list("c.json", "l.tar", "x"), b"other"),
            ErrorKind::DataLoss,
            "mismatch",
        ),
        (
            "no layer",
            with(list("c.json", "m.tar", "x"), b""),
            ErrorKind::InvalidArgument,
            "\"m.tar\"",
        ),
        (
            "no config",
            with(list("d.json", "l.tar", "x"), b""),
            ErrorKind::InvalidArgument,
            "\"d.json\"",
        ),
        (
            "layer above",
            with(list("c.json", "../../l", "x"), b""),
            ErrorKind::InvalidArgument,
            "missing",
        ),
        (
            "bad tag",
            with(list("c.json", "l.tar", "X:/"), &image.layer),
            ErrorKind::InvalidArgument,
            "X:/",
        ),
        (
            "bad json",
            with(b"{".to_vec(), b""),
            ErrorKind::DataLoss,
            "manifest.json",
        ),
        ("config lies", liar, ErrorKind::DataLoss, "mismatch"),
        ("blob lies", oci_forged, ErrorKind::DataLoss, "mismatch"),
        (
            "entry above",
            tar_of(&[("a/x", b"")]).replace_path("../x"),
            ErrorKind::InvalidArgument,
            "leaves",
        ),
    ]
}

/// Everything that is wrong with an archive is said, and nothing of it stays.
#[test]
fn bad_archives_leave_nothing() {
    for (name, bytes, kind, text) in bad_archives() {
        let (dir, store) = store();
        let error = load_all(&store, &bytes).expect_err(name);
        assert!(error.to_string().contains(text), "{name}: {error}");
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(
            content(dir.path()).is_empty(),
            "{name}: {:?}",
            content(dir.path())
        );
        assert!(store.list_all().unwrap().is_empty(), "{name}");
    }
}

trait ReplacePath {
    fn replace_path(self, path: &str) -> Self;
}

impl ReplacePath for Vec<u8> {
    /// Writes another path into the first header; the builder refuses to make such ones.
    fn replace_path(mut self, path: &str) -> Self {
        self[..100].fill(0);
        self[..path.len()].copy_from_slice(path.as_bytes());
        self[148..156].fill(b' ');
        let sum: u32 = self[..512].iter().map(|b| u32::from(*b)).sum();
        self[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }
}

#[test]
fn bombs_and_oversize_archives_stop_at_the_limit() {
    let image = Image::new(&"0".repeat(4 << 20));
    let archive = docker_archive(&image, &["x"]);
    let bytes = archive.len() as u64;
    let limits = |bytes, entries| TarLimits {
        bytes,
        entries,
        ..TarLimits::default()
    };
    let run = |data: &[u8], limits, ratio| {
        let (dir, store) = store();
        let result = load(&store, data, &LoadOptions { limits, ratio });
        assert!(result.is_ok() || content(dir.path()).is_empty());
        result.map(drop)
    };
    let none = Ratio::default();
    assert!(run(&archive, limits(bytes, 5), none).is_ok());
    assert!(run(&archive, limits(bytes - 1, 5), none).is_err());
    assert!(run(&archive, limits(bytes, 4), none).is_err());
    let tight = Ratio {
        floor_bytes: 1 << 20,
        max_ratio: 20,
    };
    for squeezed in [gzip(&archive), zstd(&archive)] {
        let error = run(&squeezed, limits(u64::MAX, 5), tight).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss);
        let text = amphora_spec::error::chain(&error);
        assert!(text.contains("exceeds the limit of 20 times"), "{text}");
        let wide = Ratio {
            floor_bytes: bytes,
            max_ratio: 1,
        };
        assert!(
            run(&squeezed, limits(bytes, 5), wide).is_ok(),
            "at the floor it passes"
        );
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let disk = SmallDisk::new("512k");
    let store = Store::open(&disk.path()).unwrap();
    let archive = docker_archive(&Image::new(&"x".repeat(1 << 20)), &["x"]);
    let error = load_all(&store, &archive).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert!(content(&disk.path()).is_empty());
    assert!(store.list_all().unwrap().is_empty());
}

#[test]
fn a_reader_that_fails_is_reported_as_such() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
        }
    }
    let (_dir, store) = store();
    let archive = docker_archive(&Image::new("x"), &["x"]);
    let reader = (&archive[..700]).chain(Broken);
    let error = load(&store, reader, &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("failed to read"), "{error}");
}

/// Eight levels of indexes that each name the next one a hundred times: 40 KB, 10^16 paths.
#[test]
fn documents_that_are_named_often_are_read_once() {
    let (dir, store) = store();
    let image = Image::new("deep");
    let layer = gzip(&image.layer);
    let mut blobs = vec![image.manifest(&layer, media::OCI_LAYER_GZIP)];
    let mut top = entry(&blobs[0], media::OCI_MANIFEST, None);
    for level in 0..8 {
        let name = (level == 7).then_some((NAME, "docker.io/library/deep:1"));
        let index = json!({"schemaVersion": 2, "manifests": vec![top; 100]});
        blobs.push(index.to_string().into_bytes());
        top = entry(blobs.last().unwrap(), media::OCI_INDEX, name);
    }
    blobs.extend([layer, image.config]);
    let named: Vec<_> = blobs.iter().map(|b| blob(b)).collect();
    let index = json!({"schemaVersion": 2, "manifests": [top.clone(), top]});
    assert_eq!(
        load_all(&store, &oci_tar(&index, &named)).unwrap(),
        ["deep:1", "deep:1"]
    );
    assert_eq!(content(dir.path()).len(), blobs.len());
}
