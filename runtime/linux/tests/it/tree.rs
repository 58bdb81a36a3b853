//! The file system tree of a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use amphora_spec::runtime::{Device, Mount};

use crate::fixture::Container;

#[test]
fn dev_is_what_the_specification_lists() {
    let out = Container::sh("cd /dev; ls; stat -c '%n %F %a %t:%T' null tty; for l in ptmx fd core; do readlink $l; done")
        .says();
    let names = "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
    assert!(out.starts_with(names), "{out}");
    assert!(
        out.contains("null character special file 666 1:3\n"),
        "{out}"
    );
    assert!(
        out.contains("tty character special file 666 5:0\n"),
        "{out}"
    );
    assert!(
        out.ends_with("pts/ptmx\n/proc/self/fd\n/proc/kcore\n"),
        "{out}"
    );
}

#[test]
fn devices_of_the_spec_are_made_and_replace_the_usual_ones() {
    let mut container = Container::sh("stat -c '%n %a %u:%g %t:%T' /dev/net/tun /dev/zero");
    let device = |path: &str, major, minor| Device {
        kind: "c".into(),
        path: path.into(),
        major,
        minor,
        file_mode: Some(0o640),
        uid: Some(5),
        gid: Some(6),
    };
    container.spec.linux.devices = vec![device("/dev/net/tun", 10, 200), device("/dev/zero", 1, 3)];
    let out = container.says();
    assert_eq!(out, "/dev/net/tun 640 5:6 a:c8\n/dev/zero 640 5:6 1:3\n");
}

#[test]
fn bundle_mounts_are_attached_from_the_top_down_with_their_targets_made() {
    let mut container =
        Container::sh("cat /a/b/inner /a/outer /run/conf; ls -ld /a/b | head -c 10");
    let dir = container.dir.clone();
    for (name, file) in [("outer", "outer"), ("inner", "inner")] {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join(file), format!("{name}\n")).unwrap();
    }
    fs::create_dir(dir.join("outer/b")).unwrap();
    // A dangling link, as distributions have for resolv.conf.
    symlink("../run/conf", container.root().join("etc/conf")).unwrap();
    container.mounts = vec![
        ("/a/b".into(), Container::clone_of(&dir.join("inner"))),
        ("/a/".into(), Container::clone_of(&dir.join("outer"))),
        (
            "/etc/conf".into(),
            Container::clone_of(&dir.join("inner/inner")),
        ),
    ];
    assert_eq!(container.says(), "inner\nouter\ninner\ndrwxr-xr-x");
}

#[test]
fn bundle_mount_replaces_the_mount_of_the_spec() {
    let mut container = Container::sh("ls /dev/shm; touch /dev/shm/new; ls /dev | wc -l");
    let dir = container.dir.join("shm");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("mine"), "").unwrap();
    container.mounts = vec![("/dev/shm".into(), Container::clone_of(&dir))];
    assert_eq!(container.says(), "mine\n15\n");
    assert!(dir.join("new").exists());
}

#[test]
fn dev_of_the_bundle_is_taken_as_it_is_and_masks_still_work() {
    let mut container = Container::sh("ls /dev; cat /proc/interrupts; stat -c %F /proc/interrupts");
    let dir = container.dir.join("dev");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("only"), "").unwrap();
    container.mounts = vec![("/dev".into(), Container::clone_of(&dir))];
    assert_eq!(container.says(), "only\ncharacter special file\n");
}

#[test]
fn bind_mounts_of_the_spec_take_their_options() {
    let mut container =
        Container::sh("cat /data/f; touch /data/x 2>&1; grep ' /data ' /proc/mounts");
    let dir = container.dir.join("bind");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), "content\n").unwrap();
    container.spec.mounts.push(Mount {
        destination: "/data".into(),
        kind: "bind".into(),
        source: dir.to_str().unwrap().into(),
        options: ["rbind", "ro", "nosuid", "noatime"]
            .map(str::to_owned)
            .to_vec(),
        ..Mount::default()
    });
    let out = container.says();
    assert!(
        out.starts_with("content\ntouch: /data/x: Read-only file system\n"),
        "{out}"
    );
    assert!(out.contains("ro,nosuid,noatime"), "{out}");
}

#[test]
fn tmpfs_takes_the_mode_of_what_it_covers_unless_one_is_given() {
    let mut container = Container::sh("stat -c '%a' /tmp /etc /new /var/x");
    let root = container.root();
    fs::set_permissions(
        root.join("etc"),
        std::os::unix::fs::PermissionsExt::from_mode(0o750),
    )
    .unwrap();
    for (destination, options) in [
        ("/tmp", "mode=0700"),
        ("/etc", "size=1m"),
        ("/new", "size=1m"),
        ("/var/x", "nr_inodes=9"),
    ] {
        container.spec.mounts.push(Mount {
            destination: destination.into(),
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            options: vec![options.into()],
            ..Mount::default()
        });
    }
    assert_eq!(container.says(), "700\n750\n1777\n1777\n");
}

#[test]
fn read_only_root_refuses_writes_and_still_gets_its_targets() {
    let mut container = Container::sh("touch /x 2>&1; pwd; touch /dev/shm/y && echo ok");
    container.spec.root.readonly = true;
    container.spec.process.cwd = "/made/for/it".into();
    let out = container.says();
    assert_eq!(out, "touch: /x: Read-only file system\n/made/for/it\nok\n");
    let made = fs::metadata(container.root().join("made/for/it")).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o777), (0, 0o755));
}

#[test]
fn sysctls_of_its_namespaces_are_set() {
    let mut container = Container::sh(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax \
         /proc/sys/net/ipv4/conf/lo/forwarding",
    );
    let sysctl = &mut container.spec.linux.sysctl;
    sysctl.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    sysctl.insert("kernel.msgmax".into(), "65536".into());
    sysctl.insert("net/ipv4/conf/lo/forwarding".into(), "1".into());
    assert_eq!(container.says(), "0\n65536\n1\n");
}
