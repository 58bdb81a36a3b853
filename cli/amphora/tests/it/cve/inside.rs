//! What a program inside can get at.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{load, naive, outside, world, world_with_image};
use crate::fixtures::{Wrap, busybox_image, file};
use crate::sandbox::{path, wait_until};

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// Looks for an open directory with the host's file in all processes, until told to stop.
const LOOK: &str = "echo looking; until test -e /tmp/stop; do for d in /proc/[0-9]*/fd/*; do \
    test -e $d/secret && echo seen > /tmp/seen; done 2>/dev/null; done; \
    until test -e /tmp/end; do busybox usleep 10000; done";

#[test]
fn who_enters_brings_no_descriptor() {
    let w = world();
    let tmp = w.s.dir.join("rootfs/tmp");
    w.bundle(&["sh", "-c", LOOK], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    wait_until("it to look", SOON, || w.said().contains("looking"));
    let pid = w.state("one")["pid"].to_string();
    // With the host's directory open in whoever enters.
    let entered = |words: &str| {
        let script = format!("exec 7<{}; exec {words}", path(&outside(&w)));
        let status = Command::new("sh")
            .args(["-c", &script])
            .current_dir(&w.s.dir)
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{words}");
    };
    let seen = || tmp.join("seen").exists();
    let runc = format!(
        "{} --root {}",
        path(&w.program),
        path(&w.s.dir.join("state"))
    );
    for _ in 0..40 {
        entered(&format!("{runc} exec one sh -c 'busybox usleep 3000'"));
    }
    assert!(!seen(), "a descriptor of the host was seen");
    // One that has given up its rights before it closes what it has open.
    let rights = "-all,+kill,+chown,+dac_override,+setuid,+setgid";
    entered(&format!(
        "nsenter -t {pid} -p setpriv --bounding-set {rights} sh -c \
         'for i in $(seq 100); do test -e {} || sleep 0.1; done'",
        path(&tmp.join("seen"))
    ));
    wait_until("the naive runtime to be looked into", SOON, seen);
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

#[test]
fn nothing_is_inheritable() {
    const LINES: &str = "grep -E '^Cap(Inh|Amb)' /proc/self/status";
    let none = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
    let w = world_with_image();
    let leaky = "mount -t proc proc $R/proc; \
        exec setpriv --inh-caps +kill chroot $R /bin/sh -c 'grep CapInh /proc/self/status'";
    let said = naive(&w, leaky).ok();
    assert!(
        said.contains("0000000000000020"),
        "the naive runtime withstands: {said}"
    );
    // Nor from the caller.
    let with = |program: &str, args: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--inh-caps", "+kill", program])
            .args(args)
            .env("AMPHORA_ROOT", w.s.root())
            .env("AMPHORA_RUN_ROOT", w.s.run_root())
            .current_dir(&w.s.dir);
        crate::sandbox::finish(command).ok()
    };
    let amphora = env!("CARGO_BIN_EXE_amphora");
    for extra in [
        &["--user", "0"][..],
        &["--user", "1000"],
        &["--cap-add", "NET_ADMIN"],
    ] {
        let args = [&["run", "--rm"], extra, &["bb", "sh", "-c", LINES]].concat();
        assert_eq!(with(amphora, &args), none, "{extra:?}");
    }
    w.s.run(&["run", "-d", "--name", "cc", "bb", "sleep", "600"])
        .ok();
    assert_eq!(with(amphora, &["exec", "cc", "sh", "-c", LINES]), none);
    assert_eq!(
        with(amphora, &["exec", "--privileged", "cc", "sh", "-c", LINES]),
        none
    );
    w.s.run(&["rm", "-f", "cc"]).ok();
    let state = w.s.dir.join("state");
    let runc = |args: &[&str]| {
        let all = [&["--root", path(&state)], args].concat();
        with(path(&w.program), &all)
    };
    w.bundle(&["sh", "-c", LINES], |_| {});
    assert_eq!(runc(&["run", "one"]), none);
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    assert_eq!(runc(&["exec", "one", "sh", "-c", LINES]), none);
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

/// Mounts a v1 hierarchy and names a program for the host to run when a cgroup of it is empty.
const AGENT: &str = "mkdir /tmp/cg && mount -t cgroup -o none,name=amphora-cve cve /tmp/cg && \
    mkdir /tmp/cg/x && echo 1 > /tmp/cg/x/notify_on_release && \
    echo /attack > /tmp/cg/release_agent && echo written";

#[test]
fn no_release_agent_is_written() {
    let w = world_with_image();
    // All hierarchies that are there already, and one of the attacker's own.
    let there = "for f in /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do \
        (echo /x > $f) 2>/dev/null && echo written; done; ";
    let attack = format!(
        "{there}{AGENT}; unshare -U -r -m -C sh -c '{}'; echo tried",
        AGENT.replace("/tmp/cg", "/tmp/cg2")
    );
    let script = format!("chroot $R /bin/sh -c '{AGENT}'; rmdir $R/tmp/cg/x; umount $R/tmp/cg");
    let said = naive(&w, &script).ok();
    assert_eq!(said, "written\n", "the naive runtime withstands");
    let _ = std::fs::remove_dir_all(w.s.dir.join("rootfs/tmp/cg"));
    let said = w.s.run(&["run", "--rm", "bb", "sh", "-c", &attack]);
    assert_eq!(said.stdout, "tried\n", "{said:?}");
    w.bundle(&["sh", "-c", &attack], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.extend([
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "ro"]}),
        ]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "cgroup"}));
        // As engines give it.
        let denied = ["unshare", "mount"];
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": denied, "action": "SCMP_ACT_ERRNO"}]});
    });
    let said = w.run(&["run", "one"]);
    assert_eq!(said.stdout, "tried\n", "{said:?}");
    w.done();
}

/// A program that makes a user namespace, in which it has all capabilities, and calls `fsopen`;
/// it ends with the error. For `x86_64`.
fn fsopen_program() -> Vec<u8> {
    const CODE: &[u8] = &[
        0xbf, 0x00, 0x00, 0x02, 0x10, // edi = CLONE_NEWUSER | CLONE_NEWNS
        0xb8, 0x10, 0x01, 0x00, 0x00, 0x0f, 0x05, // unshare
        0x85, 0xc0, 0x78, 0x16, // on an error to the end
        0x48, 0x8d, 0x3d, 0x1a, 0x00, 0x00, 0x00, // rdi = "tmpfs"
        0x31, 0xf6, // esi = 0
        0xb8, 0xae, 0x01, 0x00, 0x00, 0x0f, 0x05, // fsopen
        0x85, 0xc0, 0x78, 0x02, // on an error to the end
        0x31, 0xc0, // eax = 0
        0xf7, 0xd8, 0x89, 0xc7, // edi = -eax
        0xb8, 0x3c, 0x00, 0x00, 0x00, 0x0f, 0x05, // exit
        b't', b'm', b'p', b'f', b's', 0,
    ];
    const BASE: u64 = 0x40_0000;
    let length = 120 + CODE.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [BASE + 120, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // One segment, to read and to execute.
    for word in [1u32, 5] {
        elf.extend(word.to_le_bytes());
    }
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    elf
}

#[test]
fn nobody_gets_to_fsconfig() {
    let w = world_with_image();
    let program = file("bin/attack", 0o755, fsopen_program());
    load(
        &w.s,
        &busybox_image("hostile").layer(&[program], Wrap::Plain),
    );
    // The same container without the filter: the attack succeeds.
    let open = [
        "run",
        "--rm",
        "--security-opt",
        "seccomp=unconfined",
        "hostile",
        "/bin/attack",
    ];
    let said = w.s.run(&open);
    assert_eq!(said.code, 0, "without a filter it withstands: {said:?}");
    let said = w.s.run(&["run", "--rm", "hostile", "/bin/attack"]);
    assert_eq!(said.code, 1, "EPERM is what the filter says: {said:?}");
    w.s.run(&["run", "-d", "--name", "cc", "hostile", "sleep", "600"])
        .ok();
    assert_eq!(w.s.run(&["exec", "cc", "/bin/attack"]).code, 1);
    w.s.run(&["rm", "-f", "cc"]).ok();
    w.s.run(&["rmi", "hostile"]).ok();
    w.done();
}

/// The abstract sockets that can be reached from here.
fn abstract_sockets(text: &str) -> Vec<String> {
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    let mut found: Vec<String> = names
        .filter(|name| name.starts_with('@'))
        .map(str::to_owned)
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn no_abstract_socket_is_there_to_talk_to() {
    use std::os::linux::net::SocketAddrExt;
    let w = world_with_image();
    let host = || std::fs::read_to_string("/proc/thread-self/net/unix").unwrap();
    let before = abstract_sockets(&host());
    let args = [
        "run",
        "-d",
        "--name",
        "cc",
        "--network",
        "host",
        "bb",
        "sleep",
        "600",
    ];
    w.s.run(&args).ok();
    w.bundle(&["sleep", "600"], |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace: &Value| namespace["type"] != "network");
    });
    w.detached(&["run", "-d", "one"]).ok();
    let inside = || {
        let ours = w.s.run(&["exec", "cc", "cat", "/proc/net/unix"]).ok();
        let runc = w.run(&["exec", "one", "cat", "/proc/net/unix"]).ok();
        assert_eq!(abstract_sockets(&ours), abstract_sockets(&runc));
        abstract_sockets(&ours)
    };
    assert_eq!(inside(), before);
    // An engine that listens there: its socket is seen.
    let address = std::os::unix::net::SocketAddr::from_abstract_name("amphora-cve").unwrap();
    let naive = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    assert!(
        inside().contains(&"@amphora-cve".to_owned()),
        "the naive engine withstands"
    );
    drop(naive);
    w.s.run(&["rm", "-f", "cc"]).ok();
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

/// A user id as it was read once: a wide number, cut to 32 bits.
fn naive_uid(text: &str) -> u32 {
    let wide: i64 = text.parse().unwrap();
    u32::try_from(wide & 0xffff_ffff).unwrap()
}

#[test]
fn a_user_id_does_not_overflow() {
    let w = world_with_image();
    for id in ["4294967296", "-4294967296", "18446744069414584320"] {
        if id.len() < 12 {
            assert_eq!(naive_uid(id), 0, "the naive runtime withstands");
        }
        for user in [id.to_owned(), format!("{id}:{id}"), format!("1000:{id}")] {
            let said = w.s.run(&["run", "--rm", "--user", &user, "bb", "id"]);
            assert!(
                said.code == 125 && said.stdout.is_empty(),
                "{user}: {said:?}"
            );
        }
    }
    let mut image = busybox_image("hostile");
    image.config["User"] = "4294967296".into();
    load(&w.s, &image);
    let said = w.s.run(&["run", "--rm", "hostile", "id"]);
    assert!(said.code == 125 && said.stdout.is_empty(), "{said:?}");
    w.s.run(&["rmi", "hostile"]).ok();
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    for user in ["4294967296", "0:4294967296", "-1"] {
        let said = w.run(&["exec", "--user", user, "one", "id"]);
        assert!(said.code == 255 || said.code == 1, "{user}: {said:?}");
        assert_eq!(said.stdout, "");
    }
    w.run(&["delete", "-f", "one"]).ok();
    for uid in [json!(4_294_967_296_u64), json!(-1), json!(0.5)] {
        w.bundle(&["id"], |spec| spec["process"]["user"]["uid"] = uid);
        let said = w.run(&["run", "one"]);
        assert_eq!((said.code, &*said.stdout), (1, ""), "{said:?}");
    }
    w.done();
}
