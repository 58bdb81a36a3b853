//! Mounts of `config.json` of other types and with other options than engines use.

use std::process::Command;

use serde_json::{Value, json};

use crate::runc::World;
use crate::sandbox::{finish, path};

/// Makes `ours` and `runc` tests of one function.
macro_rules! calibrated {
    ($($name:ident),* $(,)?) => {
        mod ours { $( #[test] fn $name() { super::$name(&super::World::ours()); } )* }
        mod runc { $( #[test] fn $name() { super::$name(&super::World::runc()); } )* }
    };
}

calibrated!(
    file_systems_of_any_type_are_made_of_the_hosts_files,
    a_tmpfs_begins_with_what_it_covers,
    a_mount_that_is_there_changes,
);

/// Runs a script with more mounts, and says what it has written. The root is as before afterwards.
fn with(w: &World, mounts: &Value, script: &str) -> String {
    let before = names(w);
    w.bundle(&["sh", "-c", script], |spec| {
        let all = spec["mounts"].as_array_mut().unwrap();
        all.extend(mounts.as_array().unwrap().clone());
        spec["process"]["cwd"] = "/".into();
    });
    let said = w.run(&["run", "one"]).ok();
    for name in names(w).iter().filter(|name| !before.contains(name)) {
        std::fs::remove_dir_all(w.s.dir.join("rootfs").join(name)).unwrap();
    }
    said
}

fn names(w: &World) -> Vec<String> {
    let names = std::fs::read_dir(w.s.dir.join("rootfs")).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Options of the mount, `-`, type, options of the file system: of each mount at a place.
const MOUNTS: &str = "while read a b c d place flags rest; do case $place in /x*) \
                      echo $place $flags $rest;; esac; done < /proc/self/mountinfo";

fn file_systems_of_any_type_are_made_of_the_hosts_files(w: &World) {
    // An overlay cannot lie on the sandbox's, if that is one.
    let host = w.s.dir.join("layers");
    std::fs::create_dir(&host).unwrap();
    tmpfs(&host);
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir(host.join(name)).unwrap();
    }
    std::fs::write(host.join("lower/file"), "below\n").unwrap();
    let layers = ["lowerdir=lower", "upperdir=upper", "workdir=work"]
        .map(|pair| pair.replacen('=', &format!("={}/", path(&host)), 1));
    let said = with(
        w,
        &json!([
            {"destination": "/x/overlay", "type": "overlay", "source": "overlay",
                "options": [layers[0], layers[1], layers[2], "nosuid", "noexec"]},
            {"destination": "/x/ram", "type": "ramfs", "source": "ram", "options": ["mode=700"]},
        ]),
        &format!("{MOUNTS}; cat /x/overlay/file; echo new > /x/overlay/new"),
    );
    assert!(
        said.contains("/x/overlay rw,nosuid,noexec,relatime - overlay"),
        "{said}"
    );
    assert!(said.contains("/x/ram rw,relatime - ramfs ram"), "{said}");
    assert!(said.ends_with("below\n"), "{said}");
    let new = std::fs::read_to_string(host.join("upper/new")).unwrap();
    assert_eq!(new, "new\n");
    let mut umount = Command::new("umount");
    umount.arg(&host);
    finish(umount).ok();
    std::fs::remove_dir(&host).unwrap();
    w.done();
}

fn tmpfs(at: &std::path::Path) {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "tmpfs", path(at)]);
    finish(mount).ok();
}

fn a_tmpfs_begins_with_what_it_covers(w: &World) {
    let covered = w.s.dir.join("rootfs/full");
    std::fs::create_dir_all(covered.join("dir")).unwrap();
    std::fs::write(covered.join("dir/file"), "words\n").unwrap();
    std::os::unix::fs::chown(covered.join("dir/file"), Some(7), Some(8)).unwrap();
    std::os::unix::fs::symlink("dir/file", covered.join("link")).unwrap();
    let said = with(
        w,
        &json!([{"destination": "/full", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "tmpcopyup", "size=1m"]}]),
        "cat /full/link; ls -n /full/dir | (read a; read a b c d e; echo $c $d); \
         busybox rm -r /full/dir; busybox stat -f -c %T /full",
    );
    assert_eq!(said, "words\n7 8\ntmpfs\n");
    // What lies in an earlier mount is copied from there; of a new one there is nothing.
    let said = with(
        w,
        &json!([
            {"destination": "/x", "type": "bind", "source": path(&covered), "options": ["rbind"]},
            {"destination": "/x/dir", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]},
            {"destination": "/dev/own", "type": "tmpfs", "source": "tmpfs",
                "options": ["tmpcopyup"]},
        ]),
        "cat /x/dir/file; ls /dev/own; busybox rm /x/dir/file",
    );
    assert_eq!(said, "words\n");
    assert!(
        covered.join("dir/file").exists(),
        "the covered file is gone"
    );
    std::fs::remove_dir_all(covered).unwrap();
    w.done();
}

/// Sources begin where the bundle lies.
fn a_mount_that_is_there_changes(w: &World) {
    std::fs::create_dir(w.s.dir.join("source")).unwrap();
    let said = with(
        w,
        &json!([
            {"destination": "/x", "type": "bind", "source": "source", "options": ["bind", "nodev"]},
            {"destination": "/x", "type": "none", "options": ["remount", "bind", "ro", "nosuid"]},
        ]),
        MOUNTS,
    );
    let flags = said.split(' ').nth(1).unwrap_or_default();
    assert_eq!(flags, "ro,nosuid,relatime", "{said}");
    std::fs::remove_dir(w.s.dir.join("source")).unwrap();
    w.done();
}

#[test]
fn options_of_file_systems_and_propagation_hold() {
    let w = World::ours();
    let said = with(
        &w,
        &json!([
            {"destination": "/x/a", "type": "tmpfs", "source": "tmpfs",
                "options": ["sync", "dirsync", "lazytime", "rnoatime", "rnosymfollow", "shared",
                    "acl", "noiversion", "silent"]},
            {"destination": "/x/b", "type": "ramfs", "options": ["rro", "unbindable"]},
        ]),
        MOUNTS,
    );
    let line = |place: &str| said.lines().find(|line| line.starts_with(place)).unwrap();
    let first = line("/x/a");
    for part in [
        "rw,noatime,nosymfollow shared:",
        "tmpfs rw,sync,dirsync,lazytime",
    ] {
        assert!(first.contains(part), "{part}: {first}");
    }
    assert!(
        line("/x/b").contains("ro,relatime unbindable - ramfs"),
        "{said}"
    );
    w.done();
}

#[test]
fn mounts_that_nothing_would_come_of_are_refused() {
    let w = World::ours();
    for (mount, text) in [
        (json!({"type": "nosuchfs"}), r#"type \"nosuchfs\""#),
        (json!({"type": "none"}), r#"type \"none\""#),
        (
            json!({"type": "bind", "source": "/", "options": ["sync"]}),
            "unknown option",
        ),
        (
            json!({"type": "none", "options": ["remount", "size=1"]}),
            "unknown option",
        ),
        (
            json!({"type": "ramfs", "options": ["tmpcopyup"]}),
            "tmpcopyup: needs a tmpfs",
        ),
        (
            json!({"type": "tmpfs", "options": ["nosuchoption"]}),
            "mount tmpfs",
        ),
    ] {
        w.bundle(&["sh"], |spec| {
            let mut mount = mount;
            mount["destination"] = "/etc".into();
            spec["mounts"].as_array_mut().unwrap().push(mount);
        });
        w.detached(&["create", "one"]).fails(1, text);
    }
    w.bundle(&["sh"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/etc", "type": "tmpfs", "options": ["tmpcopyup"]}));
        mounts.insert(0, json!({"destination": "/etc/x", "type": "tmpfs"}));
    });
    w.detached(&["create", "one"]).fails(1, "tmpcopyup of what");
    w.done();
}

/// What `create` has found, those who come later find too.
#[test]
fn exec_enters_a_container_with_a_source_from_the_bundle() {
    let w = World::ours();
    std::fs::create_dir(w.s.dir.join("data")).unwrap();
    std::fs::write(w.s.dir.join("data/file"), "from the bundle\n").unwrap();
    w.bundle(&["sleep", "600"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({"destination": "tmp", "type": "bind", "source": "data",
            "options": ["rbind"]}),
        );
    });
    w.detached(&["run", "-d", "one"]).ok();
    let said = w.run(&["exec", "one", "cat", "/tmp/file"]).ok();
    assert_eq!(said, "from the bundle\n");
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}
