//! What a container sees of the host: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use amphora_sys::pidfd::Exit;

use crate::fixture::{Container, field, mounts_of_self};

#[test]
fn namespaces_are_its_own_and_it_is_pid_1() {
    let kinds = ["pid", "net", "ipc", "uts", "mnt", "cgroup"];
    let mut container = Container::sh(
        "for n in pid net ipc uts mnt cgroup user; do readlink /proc/self/ns/$n; done; echo $$",
    );
    let out = container.says();
    let lines: Vec<&str> = out.lines().collect();
    for (index, kind) in kinds.iter().enumerate() {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(lines[index], host.to_str().unwrap());
        assert!(lines[index].starts_with(kind));
    }
    let user = fs::read_link("/proc/self/ns/user").unwrap();
    assert_eq!(lines[6], user.to_str().unwrap());
    assert_eq!(lines[7], "1");
}

#[test]
fn hostname_and_loopback_are_up() {
    let out = Container::sh("hostname; ip addr show lo | grep -c 'inet 127.0.0.1/8'").says();
    assert_eq!(out, "boxed\n1\n");
}

#[test]
fn network_namespace_of_the_bundle_is_joined_and_shown_in_sys() {
    let netns = amphora_sys::ns::new_netns().unwrap();
    let inode = rustix::fs::fstat(&netns).unwrap().st_ino;
    let mut container = Container::sh("readlink /proc/self/ns/net; ls /sys/class/net");
    container.netns = Some(netns);
    assert_eq!(container.says(), format!("net:[{inode}]\nlo\n"));
}

#[test]
fn mount_table_has_the_containers_mounts_only_and_the_hosts_stays_as_it_was() {
    let before = mounts_of_self();
    let out = Container::sh("cat /proc/self/mountinfo").says();
    let points: Vec<&str> = out
        .lines()
        .map(|line| line.split(' ').nth(4).unwrap())
        .collect();
    assert_eq!(points[0], "/");
    let allowed = ["/proc", "/dev", "/sys"];
    for point in &points[1..] {
        let top = point
            .split('/')
            .nth(1)
            .map(|top| format!("/{top}"))
            .unwrap();
        assert!(allowed.contains(&top.as_str()), "{point} in {out}");
    }
    for wanted in [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
        "/proc/sys",
    ] {
        assert!(points.contains(&wanted), "{wanted} not in {out}");
    }
    assert!(
        !out.contains("shared:") && !out.contains("master:"),
        "{out}"
    );
    let after: BTreeSet<_> = mounts_of_self().lines().map(str::to_owned).collect();
    let before: BTreeSet<_> = before.lines().map(str::to_owned).collect();
    assert_eq!(before, after);
}

#[test]
fn cgroup_is_its_own_and_read_only() {
    let out = Container::sh(
        "cat /proc/self/cgroup; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x; \
         mkdir /sys/fs/cgroup/memory/x /sys/fs/cgroup/x; cat /proc/self/mountinfo; true",
    )
    .says();
    let v1 = !fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
    let lines = out
        .lines()
        .filter(|line| line.split(':').count() == 3 && line.contains(":/"));
    for line in lines {
        // The v2 hierarchy beside v1 holds nothing of the container.
        assert!(
            line.ends_with(":/") || line.starts_with("0::"),
            "{line} in {out}"
        );
    }
    if v1 {
        assert!(
            out.contains("\nmemory\n") && out.contains("\npids\n"),
            "{out}"
        );
    }
    assert!(
        out.contains("touch: /sys/fs/cgroup/x: Read-only file system"),
        "{out}"
    );
    let mounts = out.lines().filter(|line| line.contains(" /sys/fs/cgroup"));
    for line in mounts {
        assert!(!line.contains("amphora-it"), "{line}");
    }
}

#[test]
fn cgroup_v2_is_entered_at_birth_and_mounted_alone() {
    let mut container = Container::sh(
        "grep ^0: /proc/self/cgroup; head -n 1 /sys/fs/cgroup/cgroup.procs; \
         mkdir /sys/fs/cgroup/x; true",
    );
    if !fs::exists("/sys/fs/cgroup/unified/cgroup.procs").unwrap() {
        println!("skipped: no v2 hierarchy beside v1");
        return;
    }
    container.v2 = true;
    let out = container.says();
    assert!(out.starts_with("0::/\n1\n"), "{out}");
    assert!(out.ends_with("Read-only file system\n"), "{out}");
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_refuse_writes() {
    let out = Container::sh(
        "for p in asound acpi scsi; do [ -d /proc/$p ] && ls -A /proc/$p | wc -l; done; \
         ls -A /sys/firmware | wc -l; \
         cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | wc -c; \
         (echo 1 > /proc/sys/kernel/domainname) 2>&1; chmod 700 /proc/bus 2>&1; \
         (touch /sys/firmware/x) 2>&1; true",
    )
    .says();
    let (zeros, refused): (Vec<_>, Vec<_>) = out.lines().partition(|line| *line == "0");
    assert!(zeros.len() >= 2, "{out}");
    assert_eq!(refused.len(), 3, "{out}");
    assert!(
        refused
            .iter()
            .all(|line| line.ends_with("Read-only file system")),
        "{out}"
    );
}

#[test]
fn masks_do_not_lead_to_the_hosts_devices() {
    use std::os::unix::fs::MetadataExt;
    let before = fs::metadata("/dev/null").unwrap().mode();
    Container::sh("chmod 600 /proc/kcore /dev/null; chmod 600 /proc/keys; true").says();
    assert_eq!(fs::metadata("/dev/null").unwrap().mode(), before);
}

#[test]
fn links_in_the_image_do_not_lead_mounts_out_of_it() {
    let out_dir = tempdir("escape");
    let mut container = Container::sh("cat /etc/conf /data/x /etc2/new");
    let root = container.root();
    fs::remove_dir(root.join("etc")).unwrap();
    symlink(
        format!("../../../../../..{}", out_dir.display()),
        root.join("etc"),
    )
    .unwrap();
    symlink("/proc/self/cwd/../../..", root.join("data")).unwrap();
    symlink("/../../etc2", root.join("link")).unwrap();
    let file = container.dir.join("file");
    fs::write(&file, "mounted\n").unwrap();
    for target in ["/etc/conf", "/link/new"] {
        container
            .mounts
            .push((target.into(), Container::clone_of(&file)));
    }
    // A link through /proc/self is one of the kernel's magic ones: refused, not followed.
    container
        .mounts
        .push(("/data/x".into(), Container::clone_of(&file)));
    let error = container.run().unwrap_err().to_string();
    assert_eq!(error, "failed to mount \"/data/x\"");
    fs::remove_file(root.join("data")).unwrap();
    for target in ["/etc/conf", "/data/x", "/link/new"] {
        container
            .mounts
            .push((target.into(), Container::clone_of(&file)));
    }
    let out = container.says();
    assert_eq!(out, "mounted\nmounted\nmounted\n");
    assert!(fs::read_dir(&out_dir).unwrap().next().is_none());
    fs::remove_dir_all(out_dir).unwrap();
}

#[test]
fn proc_as_a_link_in_the_image_is_refused() {
    let mut container = Container::sh("true");
    let root = container.root();
    fs::remove_dir(root.join("proc")).unwrap();
    symlink("/tmp", root.join("proc")).unwrap();
    let error = container.run().unwrap_err().to_string();
    assert_eq!(error, "failed to mount proc at \"/proc\"");
}

#[test]
fn descriptors_of_the_caller_do_not_come_along() {
    use std::os::fd::AsRawFd;
    // One without close-on-exec, as a careless caller has it.
    let leaked = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let out = Container::new(&["ls", "/proc/self/fd"]).says();
    // 3 is the directory being listed.
    assert_eq!(out, "0\n1\n2\n3\n", "leaked {}", leaked.as_raw_fd());
}

#[test]
fn no_child_is_left_behind() {
    let said = Container::sh("exit 7").run().unwrap();
    assert_eq!(said.exit, Exit::Code(7));
    let said = Container::sh("kill -9 $$; sleep 1; exit 3").run().unwrap();
    // Signals of its own do not touch pid 1.
    assert_eq!(said.exit, Exit::Code(3));
    let status = fs::read_to_string("/proc/self/status").unwrap();
    assert!(!field(&status, "SigQ").is_empty());
}

pub(crate) fn tempdir(name: &str) -> std::path::PathBuf {
    let dir = std::path::Path::new("/dev/shm").join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}
