//! Clones of volumes on file systems that can share the blocks of files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::sandbox::{Sandbox, path, skipped, tool};

/// Large enough for blocks of its own on any of them.
const SIZE: usize = 4 << 20;

#[test]
fn a_clone_on_xfs_shares_the_blocks() {
    shares(
        "xfs",
        &["mkfs.xfs", "-q"],
        "a_clone_on_xfs_shares_the_blocks",
    );
}

#[test]
fn a_clone_on_btrfs_shares_the_blocks() {
    let test = "a_clone_on_btrfs_shares_the_blocks";
    shares("btrfs", &["mkfs.btrfs", "-q"], test);
}

/// Where the blocks of a file lie, and whether all of them are marked as shared.
fn blocks(file: &Path) -> (BTreeSet<String>, bool) {
    let told = tool(&["filefrag", "-s", "-v", path(file)]);
    let mut places = BTreeSet::new();
    let mut shared = true;
    for line in told.lines() {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        // "ext: logical_offset: physical_offset: length: expected: flags:"
        if fields.first().is_some_and(|f| f.parse::<u32>().is_ok()) {
            places.insert(fields.get(2).expect("a physical offset").to_string());
            shared &= line.contains("shared");
        }
    }
    assert!(!places.is_empty(), "{told}");
    (places, shared)
}

fn shares(kind: &str, mkfs: &[&str], test: &str) {
    let known = fs::read_to_string("/proc/filesystems").expect("file systems");
    if !known
        .lines()
        .any(|l| l.split_whitespace().last() == Some(kind))
    {
        return skipped(test, &format!("this kernel has no {kind}"));
    }
    let s = Sandbox::ready();
    let disk = s.dir.join("disk");
    let file = fs::File::create(&disk).expect("a disk");
    file.set_len(512 << 20).expect("a disk");
    tool(&[mkfs, &[path(&disk)]].concat());
    let device = tool(&["losetup", "--find", "--show", path(&disk)]);
    let device = device.trim();
    let volumes = s.root().join("volumes");
    mount(device, &volumes, kind, MountFlags::empty(), None).expect("mount");

    s.run(&["volume", "create", "old"]).ok();
    let data = |name: &str| volumes.join(name).join("_data");
    fs::create_dir(data("old").join("d")).expect("a folder");
    let text = b"0123456789abcde\n".repeat(SIZE / 16);
    fs::write(data("old").join("d/large"), &text).expect("a file");
    let (before, shared) = blocks(&data("old").join("d/large"));
    assert!(!shared);
    s.run(&["volume", "clone", "old", "new"]).ok();
    let (now, shared) = blocks(&data("old").join("d/large"));
    assert!(shared && now == before);
    assert_eq!(blocks(&data("new").join("d/large")), (before.clone(), true));

    // What is written to one is not written to the other.
    let run = ["run", "--rm", "-v", "new:/v", "probe-linux"];
    s.run(&[&run[..], &["write", "/v/d/large", "other"]].concat())
        .ok();
    assert!(fs::read(data("old").join("d/large")).expect("the file") == text);
    assert_ne!(blocks(&data("new").join("d/large")).0, before);
    assert_eq!(blocks(&data("old").join("d/large")), (before, false));
    s.run(&["volume", "rm", "old", "new"]).ok();
    unmount(&volumes, UnmountFlags::empty()).expect("unmount");
    tool(&["losetup", "--detach", device]);
    fs::remove_file(&disk).expect("remove the disk");
}
