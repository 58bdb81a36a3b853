//! Tars made to harm: each is refused or harmless, and the host's files stay as they were.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use amphora_content::Store;
use amphora_content::compress::{Ratio, decompress_within};
use amphora_snapshot::{Limits, SnapshotError};
use amphora_spec::media::Compression;
use tar::EntryType;

use crate::support::{Tar, TempDir, digest, layers, list, names, plain, unpack};

struct Canary {
    outside: TempDir,
    before: (u64, u32, u64, i64, i64, String),
}

fn look(dir: &Path) -> (u64, u32, u64, i64, i64, String) {
    let file = dir.join("canary");
    let m = fs::symlink_metadata(&file).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    (
        m.ino(),
        m.mode(),
        m.nlink(),
        m.mtime(),
        m.ctime_nsec(),
        text,
    )
}

impl Canary {
    fn new() -> Self {
        let outside = TempDir::new();
        fs::write(outside.path().join("canary"), "alive").unwrap();
        let before = look(outside.path());
        Self { outside, before }
    }

    fn check(&self, case: &str) {
        assert_eq!(look(self.outside.path()), self.before, "{case}");
        assert_eq!(list(self.outside.path()), ["canary"], "{case}");
    }
}

fn zero_device(h: &mut tar::Header) {
    h.set_device_major(0).unwrap();
    h.set_device_minor(0).unwrap();
}

/// Name, tar, and what is expected: the text of the refusal, or the paths of the layer, `OUT` for
/// the directory outside as a path inside.
type Case = (
    &'static str,
    Tar,
    Result<&'static [&'static str], &'static str>,
);

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases(out: &str) -> Vec<Case> {
    let abs = format!("{out}/canary");
    let up = format!("../../../../../../../..{out}/canary");
    let outside = Err("hard link target");
    vec![
        (
            "dotdot",
            Tar::new().file("../evil", "x"),
            Err("leaves the root"),
        ),
        (
            "deep dotdot",
            Tar::new().file("a/b/../../../evil", "x"),
            Err("leaves the root"),
        ),
        (
            "absolute dotdot",
            Tar::new().file("/../evil", "x"),
            Err("leaves the root"),
        ),
        (
            "dotdot to canary",
            Tar::new().file(&up, "x"),
            Err("leaves the root"),
        ),
        ("dotdot dir", Tar::new().dir(".."), Err("leaves the root")),
        (
            "absolute file",
            Tar::new().file("/abs/f", "x"),
            Ok(&["abs/", "abs/f"]),
        ),
        ("inner dotdot", Tar::new().file("a/../b", "x"), Ok(&["b"])),
        (
            "absolute link kept",
            Tar::new().symlink("l", &abs),
            Ok(&["l"]),
        ),
        (
            "write over link",
            Tar::new().symlink("l", &abs).file("l", "x"),
            Ok(&["l"]),
        ),
        (
            "chmod over link",
            Tar::new().symlink("l", out).dir("l"),
            Ok(&["l/"]),
        ),
        (
            "through link",
            Tar::new().symlink("l", out).file("l/evil", "x"),
            Ok(&["OUT/", "OUT/evil", "dev/", "dev/shm/", "l"]),
        ),
        (
            "through own link",
            Tar::new().dir("d").symlink("l", "d").file("l/x", ""),
            Ok(&["d/", "d/x", "l"]),
        ),
        (
            "through dotdot link",
            Tar::new().symlink("l", "..").file("l/x", ""),
            Ok(&["l", "x"]),
        ),
        (
            "through two links",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", out)
                .file("a/evil", ""),
            Ok(&["OUT/", "OUT/evil", "a", "b", "dev/", "dev/shm/"]),
        ),
        (
            "deep through link",
            Tar::new().symlink("d/l", out).file("d/l/e/f", ""),
            Ok(&["OUT/", "OUT/e/", "OUT/e/f", "d/", "d/l", "dev/", "dev/shm/"]),
        ),
        (
            "dir through link",
            Tar::new().symlink("l", out).dir("l/evil"),
            Ok(&["OUT/", "OUT/evil/", "dev/", "dev/shm/", "l"]),
        ),
        (
            "whiteout through link",
            Tar::new().symlink("l", out).file("l/.wh.canary", ""),
            Ok(&["OUT/", "OUT/canary", "dev/", "dev/shm/", "l"]),
        ),
        (
            "opaque through link",
            Tar::new().symlink("l", out).file("l/.wh..wh..opq", ""),
            Ok(&["OUT/", "dev/", "dev/shm/", "l"]),
        ),
        (
            "through proc",
            Tar::new().symlink("l", "/proc/self/root").file("l/x", ""),
            Ok(&[
                "l",
                "proc/",
                "proc/self/",
                "proc/self/root/",
                "proc/self/root/x",
            ]),
        ),
        (
            "usr merge",
            Tar::new()
                .dir("usr/lib")
                .symlink("lib", "usr/lib")
                .file("lib/f", "")
                .file("lib/sub/g", ""),
            Ok(&[
                "lib",
                "usr/",
                "usr/lib/",
                "usr/lib/f",
                "usr/lib/sub/",
                "usr/lib/sub/g",
            ]),
        ),
        (
            "far above the root",
            Tar::new()
                .symlink("a/l", "../../../../../../etc")
                .file("a/l/x", ""),
            Ok(&["a/", "a/l", "etc/", "etc/x"]),
        ),
        (
            "absolute and above the root",
            Tar::new()
                .symlink("a/l", "/../..//./etc/../var")
                .file("a/l/x", ""),
            Ok(&["a/", "a/l", "etc/", "var/", "var/x"]),
        ),
        (
            "link loop",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", ""),
            Err("too many links"),
        ),
        (
            "link to itself",
            Tar::new().symlink("l", "l/l").file("l/x", ""),
            Err("too many links"),
        ),
        (
            "link to a file",
            Tar::new().file("f", "").symlink("l", "f").file("l/x", ""),
            Err("through a file"),
        ),
        (
            "hard link through own link",
            Tar::new()
                .file("d/f", "")
                .symlink("l", "/d")
                .hardlink("h", "l/f"),
            Ok(&["d/", "d/f", "h", "l"]),
        ),
        (
            "directory becomes a loop",
            Tar::new().dir("d/e").symlink("d", "d"),
            Ok(&["d"]),
        ),
        (
            "hard link through a loop",
            Tar::new().symlink("l", "l").hardlink("h", "l/f"),
            Err("too many links"),
        ),
        (
            "through file",
            Tar::new().file("f", "").file("f/x", ""),
            Err("through a file"),
        ),
        (
            "dir swapped for link",
            Tar::new()
                .file("d/x", "")
                .symlink("d", out)
                .file("d/evil", ""),
            Ok(&["OUT/", "OUT/evil", "d", "dev/", "dev/shm/"]),
        ),
        ("hard link outside", Tar::new().hardlink("h", &abs), outside),
        (
            "hard link passwd",
            Tar::new().hardlink("h", "/etc/passwd"),
            outside,
        ),
        ("hard link dotdot", Tar::new().hardlink("h", &up), outside),
        (
            "hard link through link",
            Tar::new().symlink("l", out).hardlink("h", "l/canary"),
            outside,
        ),
        // The link itself is shared, what it points at is not touched by the write that follows.
        (
            "hard link to link, then write",
            Tar::new()
                .symlink("l", &abs)
                .hardlink("h", "l")
                .file("h", "x"),
            Ok(&["h", "l"]),
        ),
        (
            "hard link to dir",
            Tar::new().dir("d").hardlink("h", "d"),
            Err("is a directory"),
        ),
        ("hard link to root", Tar::new().hardlink("h", "/"), outside),
        (
            "hard link to whiteout",
            Tar::new().file(".wh.a", "").hardlink("h", "a"),
            outside,
        ),
        (
            "hard link to nothing",
            Tar::new().hardlink("h", "nothing"),
            outside,
        ),
        (
            "whiteout of nothing",
            Tar::new().file(".wh.", ""),
            Err("names no file"),
        ),
        (
            "whiteout of dot",
            Tar::new().file("a/.wh..", ""),
            Err("names no file"),
        ),
        (
            "whiteout of dotdot",
            Tar::new().file("a/.wh...", ""),
            Err("names no file"),
        ),
        (
            "below a whiteout",
            Tar::new().file(".wh.a/b", ""),
            Err("below a whiteout"),
        ),
        (
            "whiteout dotdot",
            Tar::new().file("a/../../.wh.x", ""),
            Err("leaves the root"),
        ),
        (
            "aufs metadata",
            Tar::new().file(".wh..wh.plnk/1", "x").file("a", ""),
            Ok(&["a"]),
        ),
        (
            "forged whiteout",
            Tar::new().raw("gone", EntryType::Char, "", b"", zero_device),
            Ok(&["gone"]),
        ),
        (
            "root is a file",
            Tar::new().file("./", "x"),
            Err("root of a layer"),
        ),
        (
            "root is a link",
            Tar::new().raw(".", EntryType::Symlink, out, b"", plain),
            Err("root of a layer"),
        ),
        (
            "nul in path",
            Tar::new().pax(&[("path", b"a\0b")]).file("a", ""),
            Err("zero byte"),
        ),
        (
            "nul in link",
            Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("a", ""),
            Err("zero byte"),
        ),
        (
            "owner minus one",
            Tar::new().pax(&[("uid", b"4294967295")]).file("a", ""),
            Err("out of range"),
        ),
        (
            "owner too large",
            Tar::new()
                .pax(&[("gid", b"18446744073709551615")])
                .file("a", ""),
            Err("out of range"),
        ),
        (
            "sparse",
            Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("a", ""),
            Err("sparse"),
        ),
        (
            "unknown type",
            Tar::new().raw("a", EntryType::new(b'Z'), "", b"", plain),
            Err("unknown type"),
        ),
        (
            "device over dir",
            Tar::new()
                .file("d/x", "")
                .raw("d", EntryType::Fifo, "", b"", plain),
            Ok(&["d"]),
        ),
    ]
}

#[test]
fn hostile_tars_touch_nothing_outside() {
    let passwd = fs::read("/etc/passwd").unwrap();
    let nlink = fs::metadata("/etc/passwd").unwrap().nlink();
    let canary = Canary::new();
    let out = canary.outside.path().to_str().unwrap().to_owned();
    for (name, tar, expected) in cases(&out) {
        let (dir, layers) = layers();
        let tar = tar.done();
        let result = unpack(&layers, &tar);
        match expected {
            Ok(paths) => {
                result.unwrap_or_else(|e| panic!("{name}: {e:?}"));
                let mut made = list(&layers.path(&digest(&tar)));
                for path in &mut made {
                    *path = path.replace(out.trim_start_matches('/'), "OUT");
                }
                made.sort();
                assert_eq!(made, paths, "{name}");
            }
            Err(text) => {
                let error = result.expect_err(name);
                assert!(error.to_string().contains(text), "{name}: {error}");
                assert!(names(&layers).is_empty(), "{name}");
            }
        }
        assert_eq!(
            list(dir.path())
                .iter()
                .filter(|p| p.matches('/').count() < 2)
                .count(),
            1
        );
        canary.check(name);
    }
    assert_eq!(fs::read("/etc/passwd").unwrap(), passwd);
    assert_eq!(fs::metadata("/etc/passwd").unwrap().nlink(), nlink);
}

#[test]
fn a_link_that_is_written_over_is_a_file_of_its_own() {
    let canary = Canary::new();
    let (_dir, layers) = layers();
    let target = canary.outside.path().join("canary");
    let tar = Tar::new()
        .symlink("l", target.to_str().unwrap())
        .file("l", "mine")
        .done();
    unpack(&layers, &tar).unwrap();
    let made = layers.path(&digest(&tar)).join("l");
    assert!(fs::symlink_metadata(&made).unwrap().is_file());
    assert_eq!(fs::read_to_string(made).unwrap(), "mine");
    canary.check("written over");
}

#[test]
fn bombs_stop_early_and_leave_nothing() {
    let (dir, layers) = layers();
    let store = Store::open(dir.path()).unwrap();
    let zeros = Tar::new()
        .raw("zeros", EntryType::Regular, "", &vec![0; 64 << 20], plain)
        .done();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut gzip, &zeros).unwrap();
    let ratio = Ratio {
        floor_bytes: 1 << 20,
        max_ratio: 100,
    };
    for bomb in [
        gzip.finish().unwrap(),
        zstd::stream::encode_all(&*zeros, 19).unwrap(),
    ] {
        assert!(bomb.len() < 100_000);
        let plain = decompress_within(Compression::None, &*bomb, ratio).unwrap();
        let error = layers
            .unpack(&digest(&zeros), plain, &Limits::default())
            .unwrap_err();
        let text = amphora_spec::error::chain(&error);
        assert!(text.contains("exceeds the limit of 100 times"), "{text}");
        let blob = store.write_blob(&bomb).unwrap();
        let limits = Limits {
            bytes: 1 << 20,
            ..Limits::default()
        };
        let layer = amphora_snapshot::BlobLayer {
            blob: &blob,
            label: Compression::Gzip,
            diff_id: &digest(&zeros),
        };
        let error = layers.unpack_blob(&store, layer, &limits).unwrap_err();
        assert!(matches!(error, SnapshotError::Tar(_)), "{error}");
        assert!(names(&layers).is_empty());
    }
}

#[test]
fn oversize_headers_are_refused_unread() {
    let (_dir, layers) = layers();
    for kind in [
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::GNULongName,
    ] {
        let tar = Tar::new()
            .raw("h", kind, "", b"", |h| h.set_size(1 << 40))
            .done();
        let error = unpack(&layers, &tar).unwrap_err();
        assert!(error.to_string().contains("extended header"), "{error}");
    }
    let limit = Limits::default().header_bytes;
    let value = vec![b'v'; usize::try_from(limit).unwrap() - 30];
    let fits = Tar::new().pax(&[("comment", &value)]).file("a", "").done();
    unpack(&layers, &fits).unwrap();
    let value = vec![b'v'; usize::try_from(limit).unwrap()];
    let over = Tar::new().pax(&[("comment", &value)]).file("a", "").done();
    assert!(unpack(&layers, &over).is_err());
}

#[test]
fn links_do_not_make_a_tree_deeper() {
    let (_dir, layers) = layers();
    let limits = Limits {
        depth: 4,
        ..Limits::default()
    };
    let deep = Tar::new().dir("a/b/c").symlink("l", "a/b/c");
    let fits = deep.file("l/x", "").done();
    layers.unpack(&digest(&fits), &*fits, &limits).unwrap();
    for (path, link) in [("l/x/y", "a/b/c"), ("l/x", "a/b/c/d"), ("m", "a/b/c/d/e/f")] {
        let tar = Tar::new()
            .dir("a/b/c/d")
            .symlink("l", link)
            .symlink("m", "l")
            .file(&format!("{path}/z"), "")
            .done();
        let error = layers.unpack(&digest(&tar), &*tar, &limits).unwrap_err();
        assert!(error.to_string().contains("too many components"), "{error}");
    }
}
