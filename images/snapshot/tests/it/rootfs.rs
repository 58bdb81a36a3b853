use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use amphora_snapshot::{MAX_LAYERS, SnapshotError};
use amphora_spec::Digest;
use amphora_sys::mount::Upper;
use tar::EntryType;

use crate::support::{Tar, at, digest, layers, list, unpack_all};

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn whiteouts_hide_in_either_order() {
    let (_dir, layers) = layers();
    let base = Tar::new()
        .file("file", "1")
        .file("dir/a", "1")
        .file("dir/sub/b", "1")
        .file("opq/old", "1")
        .file("late/old", "1")
        .file("swap/old", "1")
        .file("pawn/old", "1")
        .file("dev", "1")
        .done();
    let top = Tar::new()
        .file(".wh.file", "")
        .file("dir/.wh.sub", "")
        .file("opq/.wh..wh..opq", "")
        .file("opq/new", "2")
        .file("late/new", "2")
        .file("late/.wh..wh..opq", "")
        .dir("swap")
        .file("swap/new", "2")
        .file(".wh.swap", "")
        .file(".wh.pawn", "")
        .file("pawn/new", "2")
        .raw("dev", EntryType::Char, "", b"", |h| {
            h.set_device_major(0).unwrap();
            h.set_device_minor(0).unwrap();
        })
        .done();
    let ids = unpack_all(&layers, &[base, top]);
    let root = layers.rootfs(&ids, None).unwrap();
    assert_eq!(
        list(&at(&root)),
        [
            "dir/", "dir/a", "late/", "late/new", "opq/", "opq/new", "pawn/", "pawn/new", "swap/",
            "swap/new"
        ]
    );
}

#[test]
fn an_opaque_root_hides_all_layers_below() {
    let (dir, layers) = layers();
    let ids = unpack_all(
        &layers,
        &[
            Tar::new().file("old", "").done(),
            Tar::new().file(".wh..wh..opq", "").file("new", "").done(),
            Tar::new().file("top", "").done(),
        ],
    );
    let root = layers.rootfs(&ids, None).unwrap();
    assert_eq!(list(&at(&root)), ["new", "top"]);
    let base = dir.path().join("base");
    fs::create_dir_all(base.join("proc")).unwrap();
    let root = layers.rootfs_over(Some(&base), &ids, None).unwrap();
    assert_eq!(list(&at(&root)), ["new", "proc/", "top"]);
    let root = layers.rootfs_over(Some(&base), &[], None).unwrap();
    assert_eq!(list(&at(&root)), ["proc/"]);
}

#[test]
fn a_file_in_the_way_of_a_directory_hides_the_one_below() {
    let (_dir, layers) = layers();
    let ids = unpack_all(
        &layers,
        &[
            Tar::new().file("d/old", "").done(),
            Tar::new()
                .file("d", "file")
                .dir("d")
                .file("d/new", "")
                .done(),
        ],
    );
    let root = layers.rootfs(&ids, None).unwrap();
    assert_eq!(list(&at(&root)), ["d/", "d/new"]);
}

#[test]
fn few_layers_mount_too() {
    let (dir, layers) = layers();
    let empty = layers.rootfs(&[], None).unwrap();
    assert!(list(&at(&empty)).is_empty());
    let ids = unpack_all(&layers, &[Tar::new().file("a", "1").done()]);
    assert_eq!(list(&at(&layers.rootfs(&ids, None).unwrap())), ["a"]);
    for ids in [&ids[..], &[]] {
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        let writable = Upper {
            upper: &upper,
            work: &work,
            volatile: true,
        };
        let root = layers.rootfs(ids, Some(writable)).unwrap();
        fs::write(at(&root).join("a"), "changed").unwrap();
        assert_eq!(text(&at(&root).join("a")), "changed");
        drop(root);
        assert_eq!(text(&upper.join("a")), "changed");
        fs::remove_dir_all(upper).unwrap();
        fs::remove_dir_all(work).unwrap();
    }
    assert_eq!(
        text(&layers.path(&ids[0]).join("a")),
        "1",
        "the layer is as it was"
    );
}

#[test]
fn a_chain_of_many_layers_mounts_with_repeats_taken_once() {
    let (_dir, layers) = layers();
    let tars: Vec<Vec<u8>> = (0..140)
        .map(|i| {
            Tar::new()
                .file(&format!("f{i}"), "x")
                .file("last", &i.to_string())
                .done()
        })
        .collect();
    let mut ids = unpack_all(&layers, &tars);
    ids.push(ids[3]);
    let root = layers.rootfs(&ids, None).unwrap();
    assert_eq!(list(&at(&root)).len(), 141);
    assert_eq!(
        text(&at(&root).join("last")),
        "3",
        "a repeated layer counts where it is topmost"
    );
}

#[test]
fn what_cannot_be_mounted_is_named() {
    let (_dir, layers) = layers();
    let missing = digest(b"missing");
    let error = layers.rootfs(&[missing], None).unwrap_err();
    assert!(
        matches!(error, SnapshotError::NotFound(d) if d == missing),
        "{error}"
    );
    let many: Vec<Digest> = (0..=MAX_LAYERS).map(|i| digest(&i.to_le_bytes())).collect();
    for id in &many {
        fs::create_dir(layers.path(id)).unwrap();
    }
    let error = layers.rootfs(&many, None).unwrap_err();
    assert!(
        matches!(error, SnapshotError::TooManyLayers { count: 501, .. }),
        "{error}"
    );
    layers.rootfs(&many[1..], None).unwrap();
}

#[test]
fn long_paths_of_the_data_root_do_not_matter() {
    let (dir, _) = layers();
    let deep = dir.path().join("long".repeat(60)).join("long".repeat(60));
    fs::create_dir_all(&deep).unwrap();
    let layers = amphora_snapshot::Layers::open(&deep).unwrap();
    let ids = unpack_all(
        &layers,
        &[
            Tar::new().file("a", "").done(),
            Tar::new().file("b", "").done(),
        ],
    );
    let (upper, work) = (deep.join("upper"), deep.join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    let writable = Upper {
        upper: &upper,
        work: &work,
        volatile: false,
    };
    let root = layers.rootfs(&ids, Some(writable)).unwrap();
    assert_eq!(list(&at(&root)), ["a", "b"]);
}

#[test]
fn the_root_directory_is_the_topmost_layers() {
    let (_dir, layers) = layers();
    let tar = Tar::new()
        .raw("./", EntryType::Directory, "", b"", |h| {
            h.set_mode(0o750);
            h.set_gid(12);
        })
        .done();
    let ids = unpack_all(&layers, &[Tar::new().file("a", "").done(), tar]);
    let root = layers.rootfs(&ids, None).unwrap();
    let meta = fs::metadata(at(&root)).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o750, 12));
    let plain = layers.rootfs(&ids[..1], None).unwrap();
    assert_eq!(fs::metadata(at(&plain)).unwrap().mode() & 0o7777, 0o755);
}
