//! Volumes on a real file system (tmpfs): needs root.

#![expect(clippy::unwrap_used, reason = "a test's way to fail")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use amphora_spec::{Classify, ErrorKind};
use amphora_sys::mount::{Upper, overlay};
use amphora_volume::{CopyUp, Found, VolumeError, Volumes, mount_bind};
use rustix::fs::{Mode, OFlags, XattrFlags, getxattr, openat, setxattr};

struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/dev/shm/amphora-vol-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn volumes(&self) -> Volumes {
        Volumes::open(&self.0.join("data"))
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("data/volumes")).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the rest of the test in a mount namespace of its own; false in the parent, which ran it.
fn in_own_mounts(test: &str) -> bool {
    const MARK: &str = "AMPHORA_TEST_OWN_MOUNTS";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

fn write_in(mount: BorrowedFd<'_>, name: &str, text: &str) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    File::from(openat(mount, name, flags, Mode::from_raw_mode(0o644))?).write_all(text.as_bytes())
}

fn read_in(mount: BorrowedFd<'_>, name: &str) -> std::io::Result<String> {
    let mut text = String::new();
    let fd = openat(mount, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(fd).read_to_string(&mut text)?;
    Ok(text)
}

fn is_read_only(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ReadOnlyFilesystem
}

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

#[test]
fn volumes_are_made_listed_and_removed() {
    let place = Place::new();
    let volumes = place.volumes();
    assert_eq!(volumes.list().unwrap(), []);
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let made = volumes.create(Some("data"), labels).unwrap();
    assert_eq!(volumes.get("data").unwrap(), made);
    assert!(made.created_s > 1_700_000_000);
    let anonymous = volumes.create(None, none()).unwrap();
    assert_eq!((anonymous.name.len(), anonymous.anonymous), (64, true));
    assert_eq!(volumes.list().unwrap().len(), 2);
    let again = volumes.create(Some("data"), none()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    assert_eq!(
        volumes.ensure("data", none()).unwrap(),
        (made, Found::Existing)
    );
    volumes.remove("data", &|_| Vec::new()).unwrap();
    assert_eq!(
        volumes.get("data").unwrap_err().to_string(),
        "get data: no such volume"
    );
    assert_eq!(place.names(), [anonymous.name]);
}

#[test]
fn names_that_leave_the_store_are_refused() {
    let place = Place::new();
    for name in ["../x", ".hidden", "a/b", ""] {
        let error = place.volumes().create(Some(name), none()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}");
        assert!(
            place.volumes().remove(name, &|_| Vec::new()).is_err(),
            "{name}"
        );
    }
}

#[test]
fn a_volume_in_use_stays() {
    let place = Place::new();
    let volumes = place.volumes();
    volumes.create(Some("data"), none()).unwrap();
    let error = volumes
        .remove("data", &|_| vec!["c1".to_owned(), "c2".to_owned()])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "remove data: volume is in use - [c1, c2]"
    );
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let hold = volumes.hold("data").unwrap();
    assert!(volumes.remove("data", &|_| Vec::new()).is_err());
    drop(hold);
    volumes.remove("data", &|_| Vec::new()).unwrap();
    assert!(matches!(
        volumes.hold("data"),
        Err(VolumeError::NotFound(_))
    ));
}

#[test]
fn creations_race_to_one_volume() {
    let place = Place::new();
    let volumes = place.volumes();
    let new = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| volumes.ensure("data", none()).unwrap().1))
            .collect();
        racers
            .into_iter()
            .filter(|_| true)
            .map(|r| r.join().unwrap())
            .filter(|f| *f == Found::New)
            .count()
    });
    assert_eq!(new, 1);
    assert_eq!(place.names(), ["data"]);
}

#[test]
fn what_killed_creations_leave_is_swept() {
    let place = Place::new();
    let volumes = place.volumes();
    volumes.create(Some("data"), none()).unwrap();
    place.dir("data/volumes/.new-00/_data");
    volumes.sweep().unwrap();
    assert_eq!(place.names(), ["data"]);
}

#[test]
fn a_read_only_volume_is_read_only() {
    let place = Place::new();
    let volumes = place.volumes();
    volumes.create(Some("data"), none()).unwrap();
    let writable = volumes.mount_volume("data", None, false).unwrap();
    write_in(writable.as_fd(), "x", "hello").unwrap();
    let readonly = volumes.mount_volume("data", None, true).unwrap();
    assert_eq!(read_in(readonly.as_fd(), "x").unwrap(), "hello");
    assert!(is_read_only(
        &write_in(readonly.as_fd(), "x", "no").unwrap_err()
    ));
    write_in(writable.as_fd(), "x", "HELLO").unwrap();
    let error = volumes.mount_volume("none", None, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_subpath_stays_in_its_volume() {
    let place = Place::new();
    let volumes = place.volumes();
    volumes.create(Some("data"), none()).unwrap();
    let data = volumes.data_path("data");
    fs::create_dir(data.join("sub")).unwrap();
    fs::write(data.join("sub/x"), "in").unwrap();
    symlink("/etc", data.join("out")).unwrap();
    let mount = volumes
        .mount_volume("data", Some(Path::new("sub")), false)
        .unwrap();
    assert_eq!(read_in(mount.as_fd(), "x").unwrap(), "in");
    for bad in ["out", "../..", "missing", "/etc"] {
        assert!(
            volumes
                .mount_volume("data", Some(Path::new(bad)), false)
                .is_err(),
            "{bad}"
        );
    }
}

#[test]
fn binds_make_or_miss_their_source() {
    let place = Place::new();
    let missing = place.0.join("a/b");
    let error = mount_bind(&missing, false, true, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("bind source path does not exist: {}", missing.display())
    );
    let mount = mount_bind(&missing, false, true, true).unwrap();
    write_in(mount.as_fd(), "x", "hello").unwrap();
    assert_eq!(fs::read_to_string(missing.join("x")).unwrap(), "hello");
    let file = mount_bind(&missing.join("x"), true, true, false).unwrap();
    assert!(is_read_only(
        &openat(&file, "", OFlags::WRONLY, Mode::empty()).map_or_else(
            |_| std::io::Error::from(std::io::ErrorKind::ReadOnlyFilesystem),
            |_| std::io::Error::other("opened"),
        )
    ));
}

#[test]
fn a_read_only_bind_protects_mounts_below_it() {
    if !in_own_mounts("a_read_only_bind_protects_mounts_below_it") {
        return;
    }
    let place = Place::new();
    let source = place.dir("source");
    let below = place.dir("source/below");
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "t"])
        .arg(&below)
        .status()
        .unwrap();
    assert!(status.success());
    let plain = mount_bind(&source, false, true, false).unwrap();
    write_in(plain.as_fd(), "below/x", "hello").unwrap();
    let readonly = mount_bind(&source, true, true, false).unwrap();
    assert_eq!(read_in(readonly.as_fd(), "below/x").unwrap(), "hello");
    assert!(is_read_only(
        &write_in(readonly.as_fd(), "below/x", "no").unwrap_err()
    ));
    let alone = mount_bind(&source, false, false, false).unwrap();
    assert!(read_in(alone.as_fd(), "below/x").is_err());
    drop((plain, readonly, alone));
    Command::new("umount").arg(&below).status().unwrap();
}

/// An image with everything a copy must keep, as the overlay a container has for its root.
fn image(place: &Place) -> OwnedFd {
    let lower = place.dir("lower");
    let srv = place.dir("lower/srv");
    fs::write(srv.join("plain"), "text").unwrap();
    fs::set_permissions(srv.join("plain"), fs::Permissions::from_mode(0o4751)).unwrap();
    chown(srv.join("plain"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(srv.join("plain"), fs::Permissions::from_mode(0o4751)).unwrap();
    setxattr(srv.join("plain"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    fs::hard_link(srv.join("plain"), srv.join("again")).unwrap();
    symlink("/outside/nowhere", srv.join("link")).unwrap();
    fs::create_dir_all(srv.join("deep/er")).unwrap();
    fs::write(srv.join("deep/er/leaf"), "leaf").unwrap();
    fs::hard_link(srv.join("plain"), srv.join("deep/er/third")).unwrap();
    chown(srv.join("deep"), Some(7), Some(8)).unwrap();
    fs::set_permissions(srv.join("deep"), fs::Permissions::from_mode(0o1770)).unwrap();
    chown(&srv, Some(33), Some(34)).unwrap();
    fs::set_permissions(&srv, fs::Permissions::from_mode(0o2775)).unwrap();
    symlink("/srv", lower.join("alias")).unwrap();
    symlink("/../../../../etc", lower.join("escape")).unwrap();
    let (upper, work) = (place.dir("upper"), place.dir("work"));
    overlay(
        &[lower],
        Some(Upper {
            upper: &upper,
            work: &work,
            volatile: false,
        }),
    )
    .unwrap()
}

#[test]
fn a_new_volume_is_filled_from_the_image() {
    let place = Place::new();
    let (volumes, rootfs) = (place.volumes(), image(&place));
    volumes.create(Some("data"), none()).unwrap();
    let early = volumes.mount_volume("data", None, false).unwrap();
    let done = volumes
        .copy_up("data", rootfs.as_fd(), Path::new("/alias"))
        .unwrap();
    assert_eq!(done, CopyUp::Copied { entries: 7 });
    let data = volumes.data_path("data");
    let meta = |name: &str| fs::symlink_metadata(data.join(name)).unwrap();
    let (plain, root, deep) = (meta("plain"), meta(""), meta("deep"));
    assert_eq!(
        (plain.mode() & 0o7777, plain.uid(), plain.gid()),
        (0o4751, 1000, 2000)
    );
    assert_eq!(
        (root.mode() & 0o7777, root.uid(), root.gid()),
        (0o2775, 33, 34)
    );
    assert_eq!(
        (deep.mode() & 0o7777, deep.uid(), deep.gid()),
        (0o1770, 7, 8)
    );
    assert_eq!(
        fs::read_link(data.join("link")).unwrap(),
        Path::new("/outside/nowhere")
    );
    assert_eq!(
        (meta("again").ino(), meta("deep/er/third").ino()),
        (plain.ino(), plain.ino())
    );
    assert_eq!(plain.nlink(), 3);
    let original = fs::metadata(place.0.join("lower/srv/plain")).unwrap();
    assert_eq!(
        (plain.mtime(), plain.mtime_nsec()),
        (original.mtime(), original.mtime_nsec())
    );
    let mut note = [0; 16];
    let length = getxattr(data.join("plain"), "user.note", note.as_mut_slice()).unwrap();
    assert_eq!(&note[..length], b"kept");
    // A mount made before the copy sees it: the volume's directory stayed the same.
    assert_eq!(read_in(early.as_fd(), "deep/er/leaf").unwrap(), "leaf");
    let again = volumes
        .copy_up("data", rootfs.as_fd(), Path::new("/srv"))
        .unwrap();
    assert_eq!(again, CopyUp::NotEmpty);
    let folder = place.0.join("data/volumes/data");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 2);
}

#[test]
fn nothing_is_copied_from_outside_the_image() {
    let place = Place::new();
    let (volumes, rootfs) = (place.volumes(), image(&place));
    volumes.create(Some("data"), none()).unwrap();
    for path in ["/escape", "/missing", "/srv/plain"] {
        let done = volumes
            .copy_up("data", rootfs.as_fd(), Path::new(path))
            .unwrap();
        assert_eq!(done, CopyUp::NothingThere, "{path}");
    }
    assert_eq!(fs::read_dir(volumes.data_path("data")).unwrap().count(), 0);
}

#[test]
fn a_killed_copy_is_thrown_away_and_a_killed_move_is_finished() {
    let place = Place::new();
    let (volumes, rootfs) = (place.volumes(), image(&place));
    volumes.create(Some("one"), none()).unwrap();
    let staging = place.dir("data/volumes/one/staging");
    fs::write(staging.join("half"), "ha").unwrap();
    assert!(matches!(
        volumes
            .copy_up("one", rootfs.as_fd(), Path::new("/srv"))
            .unwrap(),
        CopyUp::Copied { .. }
    ));
    assert!(!volumes.data_path("one").join("half").exists());
    volumes.create(Some("two"), none()).unwrap();
    let ready = place.dir("data/volumes/two/ready");
    fs::write(ready.join("second"), "2").unwrap();
    fs::write(volumes.data_path("two").join("first"), "1").unwrap();
    let mount = volumes.mount_volume("two", None, false).unwrap();
    assert_eq!(read_in(mount.as_fd(), "first").unwrap(), "1");
    assert_eq!(read_in(mount.as_fd(), "second").unwrap(), "2");
    assert!(!ready.exists());
}

#[test]
fn an_empty_directory_gives_its_owner_and_mode() {
    let place = Place::new();
    let (volumes, rootfs) = (place.volumes(), image(&place));
    let empty = place.dir("lower/empty");
    chown(&empty, Some(5), Some(6)).unwrap();
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o700)).unwrap();
    volumes.create(Some("data"), none()).unwrap();
    let done = volumes
        .copy_up("data", rootfs.as_fd(), Path::new("empty"))
        .unwrap();
    assert_eq!(done, CopyUp::Copied { entries: 0 });
    let root = fs::metadata(volumes.data_path("data")).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid()), (0o700, 5));
}
