use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use amphora_content::{Partials, Pins, Store};
use amphora_snapshot::{BlobLayer, Layers, Limits, SnapshotError, collect};
use amphora_spec::image::{ImageConfig, Manifest};
use amphora_spec::media::Compression;
use amphora_spec::{Classify, ErrorKind};
use tar::EntryType;

use crate::support::{Tar, TempDir, at, digest, layers, list, names, unpack};

fn unpacked(tar: Tar) -> (TempDir, PathBuf) {
    let (dir, layers) = layers();
    let tar = tar.done();
    unpack(&layers, &tar).unwrap();
    (dir, layers.path(&digest(&tar)))
}

#[test]
fn owners_modes_and_times_are_the_tars() {
    let tar = Tar::new()
        .raw("./", EntryType::Directory, "", b"", |h| {
            h.set_mode(0o700);
            h.set_mtime(5);
        })
        .raw("d", EntryType::Directory, "", b"", |h| {
            h.set_mode(0o1777);
            h.set_uid(7);
            h.set_gid(8);
        })
        .raw("d/suid", EntryType::Regular, "", b"abc", |h| {
            h.set_mode(0o6755);
            h.set_uid(4_000_000);
        })
        .raw("d/wide", EntryType::Regular, "", b"", |h| h.set_mode(0o666))
        .raw("d/link", EntryType::Symlink, "/etc/passwd", b"", |h| {
            h.set_gid(9);
        })
        .raw("d/fifo", EntryType::Fifo, "", b"", |h| h.set_mode(0o622))
        .pax(&[("mtime", b"12.25"), ("uid", b"70000")])
        .file("d/late", "x");
    let (_dir, root) = unpacked(tar);
    let meta = |p: &str| fs::symlink_metadata(root.join(p)).unwrap();
    let facts = |p: &str| {
        let m = meta(p);
        (m.mode() & 0o7777, m.uid(), m.gid(), m.mtime())
    };
    assert_eq!(facts(""), (0o700, 0, 0, 5));
    assert_eq!(facts("d"), (0o1777, 7, 8, 1_000_000_000));
    assert_eq!(facts("d/suid"), (0o6755, 4_000_000, 0, 1_000_000_000));
    assert_eq!(facts("d/wide"), (0o666, 0, 0, 1_000_000_000));
    assert_eq!(facts("d/link"), (0o777, 0, 9, 1_000_000_000));
    assert_eq!(facts("d/fifo"), (0o622, 0, 0, 1_000_000_000));
    assert_eq!(facts("d/late"), (0o644, 70000, 0, 12));
    assert_eq!(meta("d/late").mtime_nsec(), 250_000_000);
    assert!(meta("d/fifo").file_type().is_fifo());
    assert_eq!(
        fs::read_link(root.join("d/link")).unwrap(),
        PathBuf::from("/etc/passwd")
    );
}

#[test]
fn hard_links_share_an_inode_and_devices_are_made() {
    let device = |h: &mut tar::Header| {
        h.set_device_major(1).unwrap();
        h.set_device_minor(3).unwrap();
    };
    let tar = Tar::new()
        .file("a/one", "data")
        .hardlink("b/two", "/a/one")
        .hardlink("a/one", "a/one")
        .symlink("a/sym", "one")
        .hardlink("a/sym2", "a/sym")
        .raw("null", EntryType::Char, "", b"", device)
        .raw("blk", EntryType::Block, "", b"", device);
    let (_dir, root) = unpacked(tar);
    let meta = |p: &str| fs::symlink_metadata(root.join(p)).unwrap();
    assert_eq!(meta("a/one").ino(), meta("b/two").ino());
    assert_eq!(meta("a/one").nlink(), 2);
    assert!(meta("a/sym2").is_symlink());
    assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
    assert!(meta("blk").file_type().is_block_device());
}

#[test]
fn extended_attributes_pass_an_allow_list() {
    let capability =
        b"\x01\x00\x00\x02\x0a\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.user.note", b"line\nline"),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.system.posix_acl_access", b"x"),
    ];
    let tar = Tar::new()
        .pax(&records)
        .raw("ping", EntryType::Regular, "", b"", |h| h.set_uid(5))
        .pax(&records[2..5])
        .dir("dir");
    let (_dir, root) = unpacked(tar);
    let names = |p: &str| {
        let mut buffer = [0; 4096];
        let n = rustix::fs::llistxattr(root.join(p), &mut buffer[..]).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    let mut found: Vec<_> = names("ping")
        .split_terminator('\0')
        .map(str::to_owned)
        .collect();
    found.sort();
    assert_eq!(found, ["security.capability", "user.note"]);
    assert_eq!(names("dir"), "");
    let mut value = [0; 64];
    let n =
        rustix::fs::lgetxattr(root.join("ping"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(&value[..n], capability);
}

#[test]
fn later_entries_win_and_missing_parents_appear() {
    let long = format!("{}/f", "p/".repeat(40).trim_end_matches('/'));
    let tar = Tar::new()
        .file("deep/er/file", "1")
        .file("deep/er/file", "22")
        .raw("deep", EntryType::Directory, "", b"", |h| h.set_mode(0o711))
        .dir("was-dir")
        .file("was-dir/sub/x", "gone")
        .file("was-dir", "now a file")
        .file("was-file", "gone")
        .dir("was-file/")
        .file("was-file/y", "")
        .symlink("was-link", "deep")
        .dir("was-link")
        .file("was-link/z", "")
        .raw("v7dir/", EntryType::Regular, "", b"", |h| {
            h.as_mut_bytes()[156] = 0;
        })
        .file(&long, "");
    let (_dir, root) = unpacked(tar);
    assert_eq!(fs::read_to_string(root.join("deep/er/file")).unwrap(), "22");
    assert_eq!(
        fs::metadata(root.join("deep")).unwrap().mode() & 0o7777,
        0o711
    );
    assert_eq!(
        fs::metadata(root.join("deep/er")).unwrap().mode() & 0o7777,
        0o755
    );
    assert_eq!(
        fs::metadata(root.join("deep")).unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(
        fs::read_to_string(root.join("was-dir")).unwrap(),
        "now a file"
    );
    let found = list(&root);
    for path in ["was-file/y", "was-link/z", "v7dir/", &long] {
        assert!(found.contains(&path.to_owned()), "{path}: {found:?}");
    }
    assert!(!found.iter().any(|p| p.starts_with("deep/z")));
}

#[test]
fn long_names_work_up_to_the_limit() {
    let (_dir, layers) = layers();
    let component = "c".repeat(254);
    let path = [component.as_str(); 16].join("/");
    assert_eq!(path.len(), 4079);
    let tar = |path: &str| {
        Tar::new()
            .pax(&[("path", path.as_bytes())])
            .file("x", "long")
            .done()
    };
    let good = tar(&path);
    unpack(&layers, &good).unwrap();
    assert_eq!(list(&layers.path(&digest(&good))).len(), 16);
    let error = unpack(&layers, &tar(&format!("{path}/{component}"))).unwrap_err();
    assert!(matches!(error, SnapshotError::Tar(_)), "{error}");
    let error = unpack(&layers, &tar(&"n".repeat(256))).unwrap_err();
    assert!(matches!(error, SnapshotError::Place { .. }), "{error}");
    layers.remove(&digest(&good)).unwrap();
    assert!(names(&layers).is_empty());
}

#[test]
fn a_shared_layer_is_unpacked_once() {
    struct Counting<'a>(&'a [u8], &'a AtomicUsize);
    impl Read for Counting<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = self.0.read(buffer)?;
            self.1.fetch_add(n, Ordering::Relaxed);
            Ok(n)
        }
    }
    let (_dir, layers) = layers();
    let mut tar = Tar::new();
    for i in 0..200 {
        tar = tar.file(&format!("d{i}/f"), "some data");
    }
    let tar = tar.done();
    let read = AtomicUsize::new(0);
    let fresh = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let counting = Counting(&tar, &read);
                let done = layers
                    .unpack(&digest(&tar), counting, &Limits::default())
                    .unwrap();
                fresh.fetch_add(usize::from(!done.reused), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(fresh.into_inner(), 1);
    assert_eq!(read.into_inner(), tar.len(), "the stream was read once");
    assert_eq!(names(&layers), [digest(&tar).hex()]);
}

#[test]
fn damaged_streams_leave_nothing() {
    let (_dir, layers) = layers();
    let tar = Tar::new().file("a", &"x".repeat(2000)).dir("b").done();
    let other = digest(b"other");
    let error = layers
        .unpack(&other, &*tar, &Limits::default())
        .unwrap_err();
    let text = format!("expected {other}, got {}", digest(&tar));
    assert!(error.to_string().ends_with(&text), "{error}");
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    let error = layers
        .unpack(&digest(&tar), &tar[..1500], &Limits::default())
        .unwrap_err();
    assert_eq!(error.to_string(), "tar stream ends inside \"a\"");
    let mut flipped = tar.clone();
    flipped[3000] ^= 1;
    assert!(
        layers
            .unpack(&digest(&tar), &*flipped, &Limits::default())
            .is_err()
    );
    assert!(names(&layers).is_empty());
    let mut trailing = tar.clone();
    trailing.extend_from_slice(b"trailing bytes count for the digest");
    unpack(&layers, &trailing).unwrap();
}

#[test]
fn limits_hold_at_the_limit() {
    let (_dir, layers) = layers();
    let tar = Tar::new().file("a", "x").file("b", "y").done();
    let limits = Limits {
        bytes: tar.len() as u64,
        entries: 2,
        ..Limits::default()
    };
    let run = |limits: Limits| layers.unpack(&digest(&tar), &*tar, &limits);
    for tight in [
        Limits {
            bytes: limits.bytes - 1,
            ..limits
        },
        Limits {
            entries: 1,
            ..limits
        },
    ] {
        let error = run(tight).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(names(&layers).is_empty());
    }
    let done = run(limits).unwrap();
    assert_eq!(
        (done.bytes, done.entries, done.reused),
        (limits.bytes, 2, false)
    );
}

#[test]
fn a_killed_unpack_is_cleared_by_the_next_and_by_the_sweep() {
    let (dir, layers) = layers();
    let tar = Tar::new().file("a", "x").done();
    let left = |name: &str| {
        fs::create_dir_all(layers.root().join(name).join("fs/half")).unwrap();
    };
    left(&format!(".unpack-{}", digest(&tar).hex()));
    unpack(&layers, &tar).unwrap();
    assert_eq!(list(&layers.path(&digest(&tar))), ["a"]);
    left(&format!(".unpack-{}", digest(b"1").hex()));
    left(&format!(".remove-{}-1", digest(b"2").hex()));
    let busy = format!(".unpack-{}", digest(b"3").hex());
    left(&busy);
    let held = fs::File::open(layers.root().join(&busy)).unwrap();
    held.lock().unwrap();
    layers.sweep().unwrap();
    assert_eq!(names(&layers), [busy, digest(&tar).hex()]);
    drop(held);
    let store = Store::open(dir.path()).unwrap();
    let pins = Pins {
        layers: vec![digest(&tar)],
        ..Pins::default()
    };
    assert!(
        collect(&store, &layers, &pins, Partials::Keep)
            .unwrap()
            .layers
            .is_empty()
    );
    let lease = store.lease().unwrap();
    assert!(
        collect(&store, &layers, &Pins::default(), Partials::Keep)
            .unwrap()
            .deferred
    );
    drop(lease);
    let swept = collect(&store, &layers, &Pins::default(), Partials::Keep).unwrap();
    assert_eq!(swept.layers, [digest(&tar)]);
    assert!(names(&layers).is_empty());
}

#[test]
fn a_full_disk_says_so_and_leaves_nothing() {
    let options = [("size", Some("256k")), ("mode", Some("0700"))];
    let disk = amphora_sys::mount::new_fs(c"tmpfs", None, &options, 0).unwrap();
    let layers = Layers::open(&at(&disk)).unwrap();
    let big = Tar::new()
        .file("fits", "x")
        .file("big", &"x".repeat(1 << 20))
        .done();
    let error = unpack(&layers, &big).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error:?}");
    assert_eq!(error.to_string(), "failed to write \"big\" of the layer");
    assert!(names(&layers).is_empty());
    unpack(&layers, &Tar::new().file("fits", "x").done()).unwrap();
}

#[test]
fn blobs_unpack_whatever_their_label_says() {
    let (dir, layers) = layers();
    let store = Store::open(dir.path()).unwrap();
    let mut tar = Tar::new();
    for i in 0..50 {
        tar = tar.file(&format!("f{i}"), &"data ".repeat(5000));
    }
    let tar = tar.done();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    let zstd = zstd::stream::encode_all(&*tar, 1).unwrap();
    for bytes in [gzip.finish().unwrap(), zstd, tar.clone()] {
        let blob = store.write_blob(&bytes).unwrap();
        let layer = BlobLayer {
            blob: &blob,
            label: Compression::Gzip,
            diff_id: &digest(&tar),
        };
        let done = layers
            .unpack_blob(&store, layer, &Limits::default())
            .unwrap();
        assert_eq!((done.bytes, done.entries), (tar.len() as u64, 50));
        assert!(
            layers
                .unpack_blob(&store, layer, &Limits::default())
                .unwrap()
                .reused
        );
        assert!(layers.remove(&digest(&tar)).unwrap());
        assert!(!layers.remove(&digest(&tar)).unwrap());
    }
}

#[test]
fn an_image_from_an_archive_becomes_a_root() {
    let (dir, layers) = layers();
    let store = Store::open(dir.path()).unwrap();
    let tars = [
        Tar::new().file("base", "1").done(),
        Tar::new().file("top", "2").done(),
    ];
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(&tars[0]), digest(&tars[1])]},
    })
    .to_string();
    let manifest = r#"[{"Config": "c.json", "RepoTags": ["hello"], "Layers": ["0.tar", "1.tar"]}]"#;
    let text = |t: &[u8]| String::from_utf8(t.to_vec()).unwrap();
    let archive = Tar::new()
        .file("0.tar", &text(&tars[0]))
        .file("1.tar", &text(&tars[1]))
        .file("c.json", &config)
        .file("manifest.json", manifest)
        .done();
    let loaded = amphora_content::archive::load(&store, &*archive, &Default::default()).unwrap();
    amphora_content::archive::publish(&store, &loaded).unwrap();
    let manifest: Manifest = store.read_json(&loaded[0].manifest.digest).unwrap();
    let config: ImageConfig = store.read_json(&manifest.config.digest).unwrap();
    let ids = config.rootfs.diff_ids;
    for (layer, diff_id) in manifest.layers.iter().zip(&ids) {
        let blob = BlobLayer {
            blob: &layer.digest,
            label: Compression::None,
            diff_id,
        };
        layers
            .unpack_blob(&store, blob, &Limits::default())
            .unwrap();
    }
    let root = layers.rootfs(&ids, None).unwrap();
    assert_eq!(list(&at(&root)), ["base", "top"]);
    drop(root);
    store.untag(&"hello".parse().unwrap()).unwrap();
    let swept = collect(&store, &layers, &Pins::default(), Partials::Keep).unwrap();
    assert_eq!((swept.blobs.len(), swept.layers.len()), (4, 2));
    assert!(names(&layers).is_empty());
}

#[test]
fn a_set_group_id_directory_gives_nothing_away() {
    let fifo = |h: &mut tar::Header| h.set_mode(0o600);
    let (_dir, root) = unpacked(
        Tar::new()
            .raw("lib", EntryType::Directory, "", b"", |h| {
                h.set_mode(0o2775);
                h.set_gid(50);
            })
            .file("lib/f", "x")
            .dir("lib/sub")
            .symlink("lib/l", "f")
            .raw("lib/p", EntryType::Fifo, "", b"", fifo)
            .file("lib/made/g", ""),
    );
    let look = |path: &str| {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!(look("lib"), (0o2775, 0, 50));
    assert_eq!(look("lib/f"), (0o644, 0, 0));
    assert_eq!(look("lib/sub"), (0o755, 0, 0));
    assert_eq!(look("lib/l"), (0o777, 0, 0));
    assert_eq!(look("lib/p"), (0o600, 0, 0));
    assert_eq!(look("lib/made"), (0o755, 0, 0));
    assert_eq!(look("lib/made/g"), (0o644, 0, 0));
}

#[test]
fn times_of_directories_are_bounded_and_the_last_entry_counts() {
    let (_dir, layers) = layers();
    let mut tar = Tar::new();
    for _ in 0..100 {
        tar = tar.dir("again");
    }
    tar = tar.raw("again", EntryType::Directory, "", b"", |h| h.set_mtime(7));
    for n in 0..100 {
        tar = tar.dir(&format!("d{n}"));
    }
    let tar = tar.file("again/late", "").done();
    let mtime = |path: &str| {
        let path = layers.path(&digest(&tar)).join(path);
        fs::symlink_metadata(path).unwrap().mtime()
    };
    layers
        .unpack(&digest(&tar), &*tar, &Limits::default())
        .unwrap();
    assert_eq!((mtime("again"), mtime("d0")), (7, 1_000_000_000));
    layers.remove(&digest(&tar)).unwrap();
    // One directory is remembered at a time: the others have theirs already.
    let limits = Limits {
        dir_bytes: 150,
        ..Limits::default()
    };
    layers.unpack(&digest(&tar), &*tar, &limits).unwrap();
    assert_eq!((mtime("d0"), mtime("d99")), (1_000_000_000, 1_000_000_000));
    assert_ne!(
        mtime("again"),
        7,
        "its times were set before its last entry"
    );
}
