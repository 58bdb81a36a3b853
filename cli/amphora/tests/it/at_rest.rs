//! Volumes of containers at rest, while somebody is at their files.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::sandbox::{SETTLE, Sandbox, wait_for, wait_until};
use crate::volumes::tmpfs_volume;

both!(
    a_volume_is_mounted_beside_a_copy_into_a_container_at_rest,
    copies_side_by_side_are_into_the_same_volume,
);

/// Longest that a command may take which waits for nobody: half of what it would wait.
const PROMPT: Duration = Duration::from_secs(10);

/// A file of an archive.
fn entry(name: &str, text: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, name, text.as_bytes())
        .expect("an archive in memory");
    builder.into_inner().expect("an archive in memory")
}

/// A copy of an archive that is not at its end; it has the volume mounted.
fn begin_copy(s: &Sandbox, container: &str) -> Child {
    let mut child = s
        .command(&["cp", "-", &format!("{container}:/v")])
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("start cp");
    let whole = entry(container, "of a copy\n");
    // Without the two empty blocks at the end more may follow.
    let first = whole.get(..1024).expect("a header and a block");
    let mut input = child.stdin.take().expect("its input");
    input.write_all(first).expect("write to cp");
    let record = s.run_root().join("volumes/shm");
    // It looks at the destination, and lets the volume go, before it reads.
    wait_until("the copy to have the volume", SETTLE, || {
        let read = rustix::io::ioctl_fionread(&input).expect("look into a pipe") == 0;
        let text = std::fs::read_to_string(&record).unwrap_or_default();
        read && text.contains(&format!("\"pid\":{},", child.id()))
    });
    child.stdin = Some(input);
    child
}

fn end_copy(mut child: Child) {
    drop(child.stdin.take());
    assert_eq!(wait_for(&mut child), 0);
}

fn cat(s: &Sandbox, image: &str, name: &str) -> String {
    let begun = Instant::now();
    let path = format!("/v/{name}");
    let text = s.run(&["run", "--rm", "-v", "shm:/v", image, "cat", &path]);
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    text.ok()
}

fn a_volume_is_mounted_beside_a_copy_into_a_container_at_rest(image: &str) {
    let s = Sandbox::ready();
    tmpfs_volume(&s, "shm", "size=1m");
    s.run(&["create", "--name", "rest", "-v", "shm:/v", image])
        .ok();
    let copy = begin_copy(&s, "rest");
    // What it has copied so far is there: the file system is the same.
    wait_until("the first file", SETTLE, || {
        let begun = Instant::now();
        let read = s.run(&["run", "--rm", "-v", "shm:/v", image, "cat", "/v/rest"]);
        assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
        read.stdout == "of a copy\n"
    });
    // Who runs on keeps it, with what the copy leaves there.
    let run = ["run", "-d", "--name", "one", "-v", "shm:/v", image];
    s.run(&[&run[..], &["sleep", "600"]].concat()).ok();
    end_copy(copy);
    assert_eq!(cat(&s, image, "rest"), "of a copy\n");
    s.run(&["rm", "-f", "one"]).ok();
    // With the last one it goes.
    let listed = s.run(&["run", "--rm", "-v", "shm:/v", image, "ls", "/v"]);
    assert_eq!(listed.ok(), "");
    s.run(&["rm", "rest"]).ok();
    s.run(&["volume", "rm", "shm"]).ok();
}

fn copies_side_by_side_are_into_the_same_volume(image: &str) {
    let s = Sandbox::ready();
    tmpfs_volume(&s, "shm", "size=1m");
    for name in ["first", "second"] {
        s.run(&["create", "--name", name, "-v", "shm:/v", image])
            .ok();
    }
    let first = begin_copy(&s, "first");
    let second = begin_copy(&s, "second");
    end_copy(first);
    // The one that is left has it still.
    assert_eq!(cat(&s, image, "first"), "of a copy\n");
    // One that was killed is no reason to wait, nor to look for it.
    let mut killed = begin_copy(&s, "first");
    killed.kill().expect("kill cp");
    wait_for(&mut killed);
    assert_eq!(cat(&s, image, "first"), "of a copy\n");
    end_copy(second);
    let listed = s.run(&["run", "--rm", "-v", "shm:/v", image, "ls", "/v"]);
    assert_eq!(listed.ok(), "");
    s.run(&["rm", "first", "second"]).ok();
    s.run(&["volume", "rm", "shm"]).ok();
}
