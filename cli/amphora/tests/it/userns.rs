//! `amphora-runc` with namespaces of users and time, id-mapped mounts and callers without rights. Where
//! the installed runc can do it, it runs the same case.

use std::io::BufRead;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::runc::World;
use crate::sandbox::{Output, finish, path, tool, wait_until};

const SOON: Duration = Duration::from_secs(10);
/// The first id outside.
const BASE: u32 = 100_000;
/// A user without rights.
const USER: u32 = 1000;

/// Makes `ours` and `runc` tests of one function.
macro_rules! calibrated {
    ($($name:ident),* $(,)?) => {
        mod ours { $( #[test] fn $name() { super::$name(&super::World::ours()); } )* }
        mod runc { $( #[test] fn $name() { super::$name(&super::World::runc()); } )* }
    };
}

calibrated!(
    ids_are_seen_from_both_sides,
    the_usual_mounts_are_there,
    exec_joins_the_user_namespace,
    a_terminal_belongs_to_the_container,
    a_user_namespace_is_joined_by_path,
    hooks_see_the_namespaces,
    what_cannot_run_leaves_nothing,
    a_tmpfs_begins_with_what_it_covers,
);

fn map(size: u32) -> Value {
    json!([{"containerID": 0, "hostID": BASE, "size": size}])
}

/// A bundle with a user namespace, whose files belong to its root.
fn bundle(w: &World, args: &[&str], edit: impl FnOnce(&mut Value)) {
    let rootfs = w.s.dir.join("rootfs");
    tool(&["chown", "-R", &format!("{BASE}:{BASE}"), path(&rootfs)]);
    tool(&["chmod", "1777", path(&rootfs.join("tmp"))]);
    w.bundle(args, |spec| {
        add(&mut spec["linux"]["namespaces"], json!({"type": "user"}));
        spec["linux"]["uidMappings"] = map(65_536);
        spec["linux"]["gidMappings"] = map(65_536);
        edit(spec);
    });
}

fn add(list: &mut Value, value: Value) {
    list.as_array_mut().unwrap().push(value);
}

fn namespace(spec: &mut Value, kind: &str, path: &str) {
    for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == kind {
            namespace["path"] = path.into();
        }
    }
}

fn status_line(pid: &str, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace()
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The text stands in a log, in quotation marks.
fn refused(output: &Output, text: &str) {
    let said = output.stderr.replace("\\\"", "\"");
    assert_eq!(output.code, 1, "{text}: {said}");
    assert!(said.contains(text), "\"{text}\" is not in: {said}");
}

fn clean(w: &World) {
    let tmp = w.s.dir.join("rootfs/tmp");
    for entry in std::fs::read_dir(tmp).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

fn ids_are_seen_from_both_sides(w: &World) {
    let script = "id -u; id -g; cat /proc/self/uid_map; echo x > /tmp/made; \
                  cat /proc/self/oom_score_adj; exec sleep 600";
    bundle(w, &["sh", "-c", script], |spec| {
        spec["process"]["oomScoreAdj"] = 10.into();
        spec["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    });
    w.detached(&["run", "-d", "one"]).ok();
    wait_until("it to run", SOON, || w.said().ends_with("\n10\n"));
    let said: Vec<String> = w.said().split_whitespace().map(str::to_owned).collect();
    assert_eq!(said, ["5", "6", "0", "100000", "65536", "10"]);
    let pid = w.state("one")["pid"].to_string();
    assert_eq!(status_line(&pid, "Uid:"), "100005 100005 100005 100005");
    assert_eq!(status_line(&pid, "Gid:"), "100006 100006 100006 100006");
    assert_eq!(status_line(&pid, "Groups:"), "100007");
    let made = std::fs::metadata(w.s.dir.join("rootfs/tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (BASE + 5, BASE + 6));
    // Its other namespaces belong to it: it may do in them what the host's root may.
    let own = std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_ne!(own, std::fs::read_link("/proc/self/ns/user").unwrap());
    w.run(&["delete", "-f", "one"]).ok();
    clean(w);
    w.done();
}

fn the_usual_mounts_are_there(w: &World) {
    let script = "busybox head -c 3 /dev/urandom | busybox wc -c; echo gone > /dev/null; \
                  for m in /proc /sys /dev /dev/pts /dev/shm /dev/mqueue /sys/fs/cgroup; do \
                  busybox grep -c \" $m \" /proc/self/mounts; done; \
                  busybox stat -c '%u %g' /dev /dev/shm; busybox wc -c < /proc/keys; \
                  busybox hostname other 2>/dev/null || echo refused; \
                  echo x > /proc/sys/kernel/hostname; cat /proc/sys/net/ipv4/ip_forward; \
                  busybox mknod /tmp/node c 1 3";
    bundle(w, &["sh", "-c", script], |spec| {
        add(&mut spec["linux"]["namespaces"], json!({"type": "cgroup"}));
        spec["mounts"][2]["options"] = json!(["newinstance", "ptmxmode=0666", "gid=5"]);
        for (at, kind, options) in [
            ("/dev/shm", "tmpfs", json!(["mode=1777", "size=65536k"])),
            ("/dev/mqueue", "mqueue", json!(["nosuid"])),
            ("/sys", "sysfs", json!(["ro", "nosuid"])),
            ("/sys/fs/cgroup", "cgroup", json!(["ro", "nosuid"])),
        ] {
            let mount = json!({"destination": at, "type": kind, "source": kind,
                "options": options});
            add(&mut spec["mounts"], mount);
        }
        spec["linux"]["maskedPaths"] = json!(["/proc/keys"]);
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        for set in ["bounding", "effective", "permitted"] {
            add(
                &mut spec["process"]["capabilities"][set],
                "CAP_MKNOD".into(),
            );
        }
    });
    let said = w.run(&["run", "one"]);
    let words: Vec<&str> = said.stdout.split_whitespace().collect();
    let expected = [
        "3", "1", "1", "1", "1", "1", "1", "1", "0", "0", "0", "0", "0", "refused", "1",
    ];
    assert_eq!(words, expected, "{said:?}");
    assert!(said.stderr.contains("/tmp/node: Operation not permitted"));
    assert_eq!(said.code, 1);
    w.done();
}

fn exec_joins_the_user_namespace(w: &World) {
    bundle(w, &["sleep", "600"], |_| {});
    w.detached(&["create", "one"]).ok();
    let inside = "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user";
    let args = ["exec", "--user", "7:8", "one", "sh", "-c", inside];
    let created = w.run(&args).ok();
    w.run(&["start", "one"]).ok();
    assert_eq!(w.run(&args).ok(), created);
    let words: Vec<&str> = created.split_whitespace().collect();
    let pid = w.state("one")["pid"].to_string();
    let own = std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(words, ["7", "0", "100000", "65536", path(&own)]);
    // All rights of the namespace's root are there to be had, and none outside.
    let caps = "busybox grep -E 'CapEff' /proc/self/status; busybox mount -t tmpfs x /tmp; \
                busybox chroot /proc/1/root echo in; busybox date -s 2000-01-01";
    let said = w.run(&["exec", "--cap", "CAP_SYS_ADMIN", "one", "sh", "-c", caps]);
    assert!(said.stdout.contains("CapEff:\t0000000000"), "{said:?}");
    assert!(said.stderr.contains("date: can't set date"), "{said:?}");
    let refused = w.run(&["exec", "--user", "70000", "one", "id"]);
    assert_eq!(refused.code, 255, "{refused:?}");
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

fn a_terminal_belongs_to_the_container(w: &World) {
    let socket = w.s.dir.join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let script = "test -t 0 && busybox stat -c '%u %g %t' /dev/console; exec sleep 600";
    bundle(w, &["sh", "-c", script], |spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["user"] = json!({"uid": 5, "gid": 6});
        spec["mounts"][2]["options"] = json!(["newinstance", "ptmxmode=0666", "gid=5"]);
    });
    w.detached(&["create", "--console-socket", path(&socket), "one"])
        .ok();
    let (connection, _) = listener.accept().unwrap();
    let terminal = crate::runc::received(&connection);
    w.run(&["start", "one"]).ok();
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(std::fs::File::from(terminal));
    reader.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "5 5 88");
    drop(reader);
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

fn a_user_namespace_is_joined_by_path(w: &World) {
    bundle(w, &["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    let pid = w.state("one")["pid"].to_string();
    let script = "id -u; for n in user net ipc; do readlink /proc/self/ns/$n; done; \
                  readlink /proc/self/ns/pid; echo x > /tmp/made; cat /proc/1/cmdline | busybox wc -c";
    bundle(w, &["sh", "-c", script], |spec| {
        spec["linux"]["cgroupsPath"] = "/amphora-it-runc/second".into();
        // The installed runc wants them all the same.
        if w.program.ends_with("amphora-runc") {
            let linux = spec["linux"].as_object_mut().unwrap();
            linux.remove("uidMappings");
            linux.remove("gidMappings");
        }
        for (kind, file) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
            namespace(spec, kind, &format!("/proc/{pid}/ns/{file}"));
        }
    });
    let said = w.run(&["run", "two"]);
    let said = said.ok();
    let words: Vec<&str> = said.split_whitespace().collect();
    let theirs = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        path(&link).to_owned()
    };
    assert_eq!(
        words[..4],
        ["0", &theirs("user"), &theirs("net"), &theirs("ipc")]
    );
    assert_ne!(words[4], theirs("pid"));
    let made = std::fs::metadata(w.s.dir.join("rootfs/tmp/made")).unwrap();
    assert_eq!(made.uid(), BASE);
    if w.program.ends_with("amphora-runc") {
        bundle(w, &["sh"], |spec| {
            spec["linux"]["cgroupsPath"] = "/amphora-it-runc/second".into();
            spec["linux"]["gidMappings"] = map(5);
            namespace(spec, "user", &format!("/proc/{pid}/ns/user"));
        });
        let failed = w.detached(&["create", "two"]);
        refused(
            &failed,
            "linux.gidMappings: not those of the user namespace",
        );
    }
    w.run(&["delete", "-f", "one"]).ok();
    clean(w);
    w.done();
}

/// Those outside are the host's root, those inside the container's.
fn hooks_see_the_namespaces(w: &World) {
    let file = w.s.dir.join("hook");
    let outside = format!(
        "cat > /dev/null; echo $(id -u) $(cat /proc/self/uid_map) >> {}",
        path(&file)
    );
    let hook = |script: &str| {
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/bin:/bin"]}])
    };
    bundle(w, &["sh", "-c", "busybox sleep 0.1"], |spec| {
        spec["hooks"] = json!({
            "prestart": hook(&outside),
            "createContainer": hook("cat > /dev/null; echo $(id -u) $(cat /proc/self/uid_map)"),
            "startContainer": hook("cat > /dev/null; echo $(id -u) $(cat /proc/self/uid_map) > /tmp/hook"),
            "poststop": hook(&outside),
        });
    });
    w.detached(&["create", "one"]).ok();
    w.run(&["start", "one"]).ok();
    w.until("one", "stopped");
    w.run(&["delete", "one"]).ok();
    let told = std::fs::read_to_string(&file).unwrap();
    assert_eq!(told, "0 0 0 4294967295\n".repeat(2));
    let inside = std::fs::read_to_string(w.s.dir.join("rootfs/tmp/hook")).unwrap();
    assert_eq!(inside, "0 0 100000 65536\n");
    if w.program.ends_with("amphora-runc") {
        assert_eq!(w.said(), inside);
    }
    clean(w);
    w.done();
}

fn a_tmpfs_begins_with_what_it_covers(w: &World) {
    let covered = w.s.dir.join("rootfs/full");
    std::fs::create_dir_all(covered.join("dir")).unwrap();
    std::fs::write(covered.join("dir/file"), "words\n").unwrap();
    let script = "cat /full/dir/file; busybox stat -c '%u %g %a' /full /full/dir /full/dir/file; \
                  echo more >> /full/dir/file && busybox rm -r /full/dir && busybox touch /full/new; \
                  ls /full; busybox stat -f -c %T /full; busybox stat -c '%u %g' /new/empty";
    bundle(w, &["sh", "-c", script], |spec| {
        for at in ["/full", "/new/empty"] {
            let mount = json!({"destination": at, "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "tmpcopyup", "size=1m"]});
            add(&mut spec["mounts"], mount);
        }
    });
    let chown = |path: &Path, uid, gid| {
        std::os::unix::fs::chown(path, Some(BASE + uid), Some(BASE + gid)).unwrap();
    };
    chown(&covered.join("dir"), 7, 8);
    chown(&covered.join("dir/file"), 0, 9);
    tool(&["chmod", "750", path(&covered.join("dir"))]);
    tool(&["chmod", "640", path(&covered.join("dir/file"))]);
    let said = w.run(&["run", "one"]).ok();
    assert_eq!(said, "words\n0 0 755\n7 8 750\n0 9 640\nnew\ntmpfs\n0 0\n");
    let below = std::fs::read_to_string(covered.join("dir/file")).unwrap();
    assert_eq!(below, "words\n", "the covered file has changed");
    std::fs::remove_dir_all(covered).unwrap();
    std::fs::remove_dir_all(w.s.dir.join("rootfs/new")).unwrap();
    w.done();
}

fn what_cannot_run_leaves_nothing(w: &World) {
    bundle(w, &["nothing"], |_| {});
    w.detached(&["create", "one"])
        .fails(1, "executable file not found in $PATH");
    for (user, value) in [("uid", 70_000), ("gid", 70_000)] {
        bundle(w, &["sh"], |spec| {
            spec["process"]["user"][user] = value.into();
        });
        assert_eq!(w.detached(&["create", "one"]).code, 1);
    }
    // A directory that is not the container's root's.
    bundle(w, &["sh"], |spec| {
        let mount = json!({"destination": "/nowhere/deep", "type": "tmpfs", "source": "x"});
        add(&mut spec["mounts"], mount);
    });
    let rootfs = w.s.dir.join("rootfs");
    tool(&["chown", "0:0", path(&rootfs)]);
    w.detached(&["create", "one"]).fails(1, "ermission denied");
    bundle(w, &["sh"], |spec| {
        spec["linux"]["uidMappings"] = json!([
            {"containerID": 0, "hostID": BASE, "size": 10},
            {"containerID": 5, "hostID": 1, "size": 10},
        ]);
    });
    assert_eq!(w.detached(&["create", "one"]).code, 1);
    bundle(w, &["sh"], |spec| {
        namespace(spec, "user", "/proc/self/ns/nothing");
    });
    assert_eq!(w.detached(&["create", "one"]).code, 1);
    bundle(w, &["sh"], |spec| {
        spec["hooks"] = json!({"prestart": [{"path": "/bin/false"}]});
    });
    w.detached(&["create", "one"]).fails(1, "hook");
    w.done();
}

type Edit = fn(&mut Value);

const USERS: [(Edit, &str); 9] = [
    (
        |s| s["linux"]["uidMappings"] = map(0),
        "linux.uidMappings: the range of 0 is empty",
    ),
    (
        |s| s["linux"]["gidMappings"][0]["hostID"] = u32::MAX.into(),
        "linux.gidMappings: the range of 0 is too long",
    ),
    (
        |s| add(&mut s["linux"]["uidMappings"], map(1)[0].clone()),
        "linux.uidMappings: the range of 0 overlaps another",
    ),
    (
        |s| s["linux"]["gidMappings"] = json!([]),
        "linux.gidMappings: a new user namespace needs mappings",
    ),
    (
        |s| s["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}]),
        "linux.uidMappings: needs a user namespace",
    ),
    (
        |s| s["process"]["user"]["uid"] = 65_536.into(),
        "process.user.uid: 65536 is not mapped",
    ),
    (
        |s| s["process"]["user"]["additionalGids"] = json!([1, 70_000]),
        "process.user.additionalGids: 70000 is not mapped",
    ),
    (
        |s| namespace(s, "mount", "/proc/self/ns/mnt"),
        "linux.namespaces: mount by path",
    ),
    (
        |s| namespace(s, "user", "/proc/self/ns/user"),
        "failed to join the user namespace",
    ),
];

const TIME_AND_MOUNTS: [(Edit, &str); 6] = [
    (
        |s| s["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}}),
        "linux.timeOffsets: needs a new time namespace",
    ),
    (
        |s| {
            add(&mut s["linux"]["namespaces"], json!({"type": "time"}));
            s["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}});
        },
        "linux.timeOffsets: unknown clock \"realtime\"",
    ),
    (
        |s| {
            add(&mut s["linux"]["namespaces"], json!({"type": "time"}));
            s["linux"]["timeOffsets"] = json!({"boottime": {"secs": -4_000_000_000_i64}});
        },
        "failed to make a time namespace",
    ),
    (
        |s| s["mounts"][1]["uidMappings"] = map(1),
        "mounts: \"/dev\": uidMappings and gidMappings are needed both",
    ),
    (
        |s| s["mounts"][1]["options"] = json!(["idmap"]),
        "mounts: \"/dev\": only a bind mount has mapped ids",
    ),
    (
        |s| {
            s["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": 1,
                "minor": 3, "uid": 70_000}]);
        },
        "linux.devices: the owner of \"/dev/x\" is not mapped",
    ),
];

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let w = World::ours();
    for (edit, text) in USERS.into_iter().chain(TIME_AND_MOUNTS) {
        bundle(&w, &["sh"], edit);
        refused(&w.detached(&["create", "one"]), text);
    }
    bundle(&w, &["sh"], |_| {});
    w.detached(&["create", "--no-pivot", "one"])
        .fails(1, "a user namespace with --no-pivot");
    refused(
        &w.detached(&["--rootless", "perhaps", "create", "one"]),
        "invalid value \"perhaps\" for flag --rootless",
    );
    w.done();
}

/// Nodes are what the specification says, though nobody inside could make them.
#[test]
fn devices_have_their_modes_and_owners() {
    let w = World::ours();
    let script = "busybox stat -c '%n %F %t:%T %a %u %g' /dev/net/one /dev/fifo /dev/null; \
                  echo x > /dev/net/one; busybox chmod 600 /dev/null; \
                  busybox mount -o remount,dev /dev 2>/dev/null; echo end";
    bundle(&w, &["sh", "-c", script], |spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/net/one", "type": "c", "major": 1, "minor": 3, "fileMode": 0o620,
                "uid": 0, "gid": 9},
            {"path": "/dev/fifo", "type": "p", "fileMode": 0o600},
        ]);
    });
    let said = w.run(&["run", "one"]).ok();
    assert_eq!(
        said,
        "/dev/net/one character special file 1:3 620 0 9\n/dev/fifo fifo 0:0 600 0 0\n\
         /dev/null character special file 1:3 666 0 0\nend\n"
    );
    w.done();
}

/// Who stands before the program can be looked into by nobody who is not the host's root.
#[test]
fn what_waits_is_hidden_and_holds_nothing() {
    let w = World::ours();
    bundle(&w, &["sleep", "600"], |_| {});
    w.detached(&["create", "one"]).ok();
    let pid = w.state("one")["pid"].to_string();
    let files = std::fs::metadata(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(files.uid(), 0, "another's processes may look into it");
    let held: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .map(|target| path(&target).to_owned())
        .filter(|target| !target.starts_with("/dev/null") && !target.ends_with("/out"))
        .collect();
    let waits = |t: &String| t.ends_with("/exec.fifo") || t.starts_with("pipe:");
    assert!(held.len() == 2 && held.iter().all(waits), "{held:?}");
    let seen = "for p in /proc/[0-9]*; do readlink $p/exe $p/root $p/cwd; done";
    let said = w.run(&["exec", "one", "sh", "-c", seen]);
    assert!(!said.stdout.contains("amphora"), "{said:?}");
    w.run(&["delete", "one"]).ok();
    w.done();
}

#[test]
fn clocks_are_ahead_as_asked() {
    let w = World::ours();
    const AHEAD: u64 = 86_400_000;
    let uptime = |text: &str| -> f64 {
        let word = text.split_whitespace().next().unwrap();
        word.parse().unwrap()
    };
    let host = || uptime(&std::fs::read_to_string("/proc/uptime").unwrap());
    for users in [false, true] {
        let edit = |spec: &mut Value| {
            add(&mut spec["linux"]["namespaces"], json!({"type": "time"}));
            spec["linux"]["timeOffsets"] = json!({
                "boottime": {"secs": AHEAD, "nanosecs": 500_000_000},
                "monotonic": {"secs": -5},
            });
        };
        let args = ["sh", "-c", "cat /proc/uptime; exec sleep 600"];
        if users {
            bundle(&w, &args, edit);
        } else {
            w.bundle(&args, edit);
        }
        w.detached(&["create", "one"]).ok();
        let early = uptime(&w.run(&["exec", "one", "cat", "/proc/uptime"]).ok());
        w.run(&["start", "one"]).ok();
        wait_until("the program", SOON, || w.said().contains('\n'));
        for seen in [early, uptime(&w.said())] {
            let ahead = seen - host();
            assert!((ahead - AHEAD as f64).abs() < 60.0, "{ahead} seconds ahead");
        }
        let pid = w.state("one")["pid"].to_string();
        let offsets = std::fs::read_to_string(format!("/proc/{pid}/timens_offsets")).unwrap();
        let words: Vec<&str> = offsets.split_whitespace().collect();
        assert_eq!(
            words,
            ["monotonic", "-5", "0", "boottime", "86400000", "500000000"]
        );
        // Another container joins it.
        w.bundle(&["cat", "/proc/uptime"], |spec| {
            spec["linux"]["cgroupsPath"] = "/amphora-it-runc/second".into();
            let time = json!({"type": "time", "path": format!("/proc/{pid}/ns/time")});
            add(&mut spec["linux"]["namespaces"], time);
        });
        let joined = uptime(&w.run(&["run", "two"]).ok()) - host();
        assert!(
            (joined - AHEAD as f64).abs() < 60.0,
            "{joined} seconds ahead"
        );
        w.run(&["delete", "-f", "one"]).ok();
    }
    w.done();
}

#[test]
fn a_mount_with_mapped_ids_shifts_owners() {
    let w = World::ours();
    let shared = w.s.dir.join("shared");
    std::fs::create_dir(&shared).unwrap();
    let tmpfs = |at: &Path| tool(&["mount", "-t", "tmpfs", "-o", "mode=755", "x", path(at)]);
    tmpfs(&shared);
    std::fs::create_dir(shared.join("below")).unwrap();
    tmpfs(&shared.join("below"));
    std::fs::write(shared.join("theirs"), "x").unwrap();
    tool(&["chown", "7:8", path(&shared.join("theirs"))]);
    let script = "busybox stat -c '%u %g' /shared /shared/theirs /shared/below; \
                  echo x > /shared/made; busybox stat -c '%u %g' /shared/made";
    let all = "0 0\n7 8\n0 0\n0 0\n";
    let top = "0 0\n7 8\n65534 65534\n0 0\n";
    let plain = "65534 65534\n65534 65534\n65534 65534\n";
    for (option, own, users, expected) in [
        ("ridmap", false, true, all),
        ("idmap", false, true, top),
        ("rw", true, true, top),
        ("rw", false, true, plain),
        // Without a user namespace the ids themselves are seen.
        ("rw", true, false, "100000 100000\n100007 100008\n0 0\n"),
    ] {
        let edit = |spec: &mut Value| {
            let mut mount = json!({"destination": "/shared", "type": "bind",
                "source": path(&shared), "options": ["rbind", option]});
            if own {
                mount["uidMappings"] = map(65_536);
                mount["gidMappings"] = map(65_536);
            }
            add(&mut spec["mounts"], mount);
            for set in ["bounding", "effective", "permitted"] {
                let caps = &mut spec["process"]["capabilities"][set];
                *caps = json!(["CAP_SETUID"]);
            }
        };
        if users {
            bundle(&w, &["sh", "-c", script], edit);
        } else {
            w.bundle(&["sh", "-c", script], edit);
        }
        let said = w.run(&["run", "one"]);
        assert_eq!(said.stdout, expected, "{option} {own} {users}: {said:?}");
        let made = shared.join("made");
        if expected == all || expected == top {
            let made = std::fs::metadata(&made).unwrap();
            assert_eq!((made.uid(), made.gid()), (0, 0), "written as another");
        }
        let _ = std::fs::remove_file(made);
    }
    tool(&["umount", "-R", path(&shared)]);
    std::fs::remove_dir(shared).unwrap();
    let _ = std::fs::remove_dir(w.s.dir.join("rootfs/shared"));
    w.done();
}

#[test]
fn a_file_system_without_mapped_ids_is_refused() {
    let w = World::ours();
    w.bundle(&["sh"], |spec| {
        add(
            &mut spec["mounts"],
            json!({"destination": "/tmp", "type": "bind", "source": "/sys", "options": ["bind"],
                "uidMappings": map(1), "gidMappings": map(1)}),
        );
    });
    refused(
        &w.detached(&["create", "one"]),
        "mounts: \"/tmp\": uidMappings and idmap: on this file system",
    );
    w.done();
}

/// A directory of a user without rights, with a bundle and the runtime in it.
struct Rootless<'a> {
    w: &'a World,
    dir: std::path::PathBuf,
}

impl<'a> Rootless<'a> {
    fn new(w: &'a World) -> Self {
        let dir = w.s.dir.join("user");
        std::fs::create_dir_all(dir.join("run")).unwrap();
        tool(&["cp", "-a", path(&w.s.dir.join("rootfs")), path(&dir)]);
        std::fs::copy(env!("CARGO_BIN_EXE_amphora"), dir.join("amphora-runc")).unwrap();
        tool(&["chown", "-R", &format!("{USER}:{USER}"), path(&dir)]);
        // Not the user's own, as programs usually are not.
        tool(&["chown", "0:0", path(&dir.join("amphora-runc"))]);
        Self { w, dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        let id = USER.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(self.dir.join("amphora-runc"))
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("XDG_RUNTIME_DIR", self.dir.join("run"))
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        finish(self.command(args))
    }

    fn detached(&self, args: &[&str]) -> Output {
        crate::runc::logged(self.command(args), &self.dir.join("out"))
    }

    /// What `spec --rootless` makes, with another program and whatever a case wants.
    fn bundle(&self, args: &[&str], edit: impl FnOnce(&mut Value)) {
        let file = self.dir.join("config.json");
        let _ = std::fs::remove_file(&file);
        self.run(&["spec", "--rootless"]).ok();
        let mut spec: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(args);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        spec["root"]["readonly"] = false.into();
        edit(&mut spec);
        std::fs::write(&file, spec.to_string()).unwrap();
    }

    fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.run(&["state", id]).ok()).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    fn done(self) {
        assert_eq!(self.run(&["list", "-q"]).ok(), "");
        let left = std::fs::read_dir(self.dir.join("run/amphora-runc")).unwrap();
        assert_eq!(left.count(), 0, "a state directory is left");
        let processes = Command::new("pgrep")
            .args(["-r", "R,S,D", "-u", &USER.to_string()])
            .output();
        assert_eq!(processes.unwrap().stdout, b"", "a process is left");
        std::fs::remove_dir_all(&self.dir).unwrap();
        self.w.done();
    }
}

#[test]
fn a_user_without_rights_runs_containers() {
    let w = World::ours();
    let user = Rootless::new(&w);
    let script = "id -u; cat /proc/self/uid_map; echo x > /dev/null; echo y > /tmp/made; \
                  busybox mount -t tmpfs x /tmp || echo refused; ls /sys/fs/cgroup > /dev/null; exit 3";
    user.bundle(&["sh", "-c", script], |_| {});
    let said = user.run(&["run", "one"]);
    assert_eq!(said.code, 3, "{said:?}");
    let words: Vec<&str> = said.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "1000", "1", "refused"], "{said:?}");
    let made = std::fs::metadata(user.dir.join("rootfs/tmp/made")).unwrap();
    assert_eq!(made.uid(), USER);

    user.bundle(&["sh", "-c", "sleep 601 & exec sleep 600"], |spec| {
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/busybox",
            "args": ["sh", "-c", "echo hook > /tmp/hook"], "env": ["PATH=/bin"]}]});
        add(
            &mut spec["mounts"],
            json!({"destination": "/again", "type": "bind",
            "source": path(&user.dir.join("rootfs/bin")), "options": ["bind", "ro"]}),
        );
    });
    user.detached(&["create", "one"]).ok();
    assert_eq!(user.status("one"), "created");
    assert_eq!(user.run(&["exec", "one", "id", "-u"]).ok(), "0\n");
    user.run(&["start", "one"]).ok();
    assert!(user.dir.join("rootfs/tmp/hook").exists());
    let inside = "echo $(id -u) $(ls /again | busybox wc -l); echo x > /again/y";
    let said = user.run(&["exec", "one", "sh", "-c", inside]);
    assert!(
        said.stdout.starts_with("0 ") && said.stderr.contains("Read-only"),
        "{said:?}"
    );
    wait_until("both processes", SOON, || {
        let listed = user.run(&["ps", "-f", "json", "one"]).ok();
        serde_json::from_str::<Vec<i32>>(&listed).unwrap().len() == 2
    });
    let listed = user.run(&["list"]).ok();
    assert!(
        listed.contains(" running ") && listed.ends_with("1000\n"),
        "{listed}"
    );
    for args in [
        &["pause", "one"][..],
        &["update", "--pids-limit", "5", "one"],
        &["events", "--stats", "one"],
    ] {
        user.run(args).fails(1, "the container has no cgroup");
    }
    user.run(&["delete", "one"]).fails(1, "that is not stopped");
    user.run(&["kill", "--all", "one", "KILL"]).ok();
    wait_until("it to end", SOON, || user.status("one") == "stopped");
    user.run(&["delete", "one"]).ok();
    user.detached(&["run", "-d", "two"]).ok();
    user.run(&["delete", "--force", "two"]).ok();
    user.done();
}

#[test]
fn what_a_user_without_rights_cannot_do_is_refused() {
    let w = World::ours();
    let user = Rootless::new(&w);
    let cases: [(Edit, &str); 6] = [
        (
            |s| s["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}]),
            "rootless container requires user namespaces",
        ),
        (
            |s| s["linux"]["resources"] = json!({"pids": {"limit": 5}}),
            "ermission denied",
        ),
        (
            |s| s["process"]["user"]["additionalGids"] = json!([0]),
            "process.user.additionalGids: the user namespace forbids supplementary groups",
        ),
        (
            |s| s["linux"]["uidMappings"][0]["hostID"] = 0.into(),
            "failed to make the user namespace",
        ),
        (
            |s| {
                add(
                    &mut s["mounts"],
                    json!({"destination": "/tmp", "type": "bind", "source": "/etc",
                "options": ["bind", "idmap"]}),
                );
            },
            "mounts: \"/tmp\": idmap without the host's rights",
        ),
        (
            |s| {
                s["linux"]["devices"] = json!([{"path": "/dev/kmsg", "type": "c", "major": 1,
                "minor": 3}]);
            },
            "linux.devices: \"/dev/kmsg\" in a user namespace: the host has another file there",
        ),
    ];
    for (edit, text) in cases {
        user.bundle(&["sh"], edit);
        refused(&user.detached(&["create", "one"]), text);
    }
    user.bundle(&["sh"], |_| {});
    user.detached(&["--rootless=false", "create", "one"])
        .fails(1, "ermission denied");
    user.bundle(&["nothing"], |_| {});
    user.detached(&["create", "one"])
        .fails(1, "executable file not found in $PATH");
    // A failure when the process waits already.
    user.bundle(&["sleep", "600"], |_| {});
    user.detached(&["create", "--pid-file", "/nowhere/pid", "one"])
        .fails(1, "/nowhere/pid");
    user.done();
}

/// As an engine of a user without rights calls: root, of a user namespace.
#[test]
fn root_of_a_user_namespace_runs_containers() {
    let w = World::ours();
    let user = Rootless::new(&w);
    let script = "echo x > /dev/null; busybox head -c 3 /dev/zero | busybox wc -c; \
                  cat /proc/self/uid_map; exec sleep 600";
    for hooked in [false, true] {
        user.bundle(&["sh", "-c", script], |spec| {
            let linux = spec["linux"].as_object_mut().unwrap();
            linux.remove("uidMappings");
            linux.remove("gidMappings");
            let namespaces = linux["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "user");
            if hooked {
                spec["hooks"] = json!({"prestart": [{"path": "/bin/sh",
                    "args": ["sh", "-c", "echo hook >> hook"], "env": ["PATH=/usr/bin:/bin"]}]});
            }
        });
        let runtime = "r() { ./amphora-runc --root run/amphora-runc \"$@\"; }";
        let script = format!(
            "{runtime}; r run -d one > out 2>&1 || cat out; r exec one id -u; \
             r ps -f json one | wc -l; n=0; \
             until [ $(wc -w < out) -ge 4 ] || [ $n -ge 500 ]; do n=$((n+1)); sleep 0.02; done; \
             r delete -f one; cat out; r list -q"
        );
        let mut command = Command::new("setpriv");
        let id = USER.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .args(["unshare", "-r", "-m", "sh", "-c", &script])
            .current_dir(&user.dir)
            .stdin(Stdio::null());
        let said = finish(command);
        let words: Vec<&str> = said.stdout.split_whitespace().collect();
        assert_eq!(words, ["0", "1", "3", "0", "1000", "1"], "{said:?}");
    }
    let hooks = std::fs::read_to_string(user.dir.join("hook")).unwrap();
    assert_eq!(hooks, "hook\n", "a hook is run once");
    user.done();
}

/// Without a cgroup only the record leads to the process: it is written early.
#[test]
fn a_create_without_rights_that_is_killed_is_removed() {
    let w = World::ours();
    let user = Rootless::new(&w);
    user.bundle(&["sleep", "600"], |_| {});
    let delays = (0..16).map(|step| Duration::from_micros(step * 700));
    let log = user.dir.join("out");
    crate::runc::killed_creates(delays, |args| user.command(args), &log);
    user.done();
}

/// Ranges of `/etc/subuid` are mapped by the programs that the system has for it.
#[test]
fn a_user_without_rights_maps_its_ranges() {
    if !Path::new("/usr/bin/newuidmap").exists() {
        crate::sandbox::skipped(
            "userns::a_user_without_rights_maps_its_ranges",
            "newuidmap is not installed",
        );
        return;
    }
    let w = World::ours();
    let user = Rootless::new(&w);
    let ranges = w.s.dir.join("ranges");
    std::fs::write(&ranges, format!("{USER}:300000:65536\n")).unwrap();
    for file in ["/etc/subuid", "/etc/subgid"] {
        tool(&["mount", "--bind", path(&ranges), file]);
    }
    let wide = |spec: &mut Value| {
        for field in ["uidMappings", "gidMappings"] {
            let range = json!({"containerID": 1, "hostID": 300_000, "size": 65_536});
            add(&mut spec["linux"][field], range);
        }
        spec["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    };
    user.bundle(&["sleep", "600"], wide);
    user.detached(&["run", "-d", "one"]).ok();
    let state: Value = serde_json::from_str(&user.run(&["state", "one"]).ok()).unwrap();
    let pid = state["pid"].to_string();
    assert_eq!(status_line(&pid, "Uid:"), "300004 300004 300004 300004");
    assert_eq!(status_line(&pid, "Groups:"), "300006");
    assert_eq!(user.run(&["exec", "one", "id", "-u"]).ok(), "5\n");
    user.run(&["delete", "-f", "one"]).ok();
    std::fs::write(&ranges, format!("{USER}:300000:65535\n")).unwrap();
    user.bundle(&["sleep", "600"], wide);
    user.detached(&["create", "one"])
        .fails(1, "newuidmap refused");
    for file in ["/etc/subuid", "/etc/subgid"] {
        tool(&["umount", file]);
    }
    std::fs::remove_file(ranges).unwrap();
    user.done();
}

/// The first process is known by its number here, wherever it was born.
#[test]
fn a_pid_namespace_is_joined_with_a_clock_of_its_own() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    let first = w.state("one")["pid"].to_string();
    w.bundle(&["sleep", "601"], |spec| {
        add(&mut spec["linux"]["namespaces"], json!({"type": "time"}));
        namespace(spec, "pid", &format!("/proc/{first}/ns/pid"));
        spec["linux"]["cgroupsPath"] = "/amphora-it-runc/other".into();
    });
    w.detached(&["run", "-d", "two"]).ok();
    let pid = w.state("two")["pid"].to_string();
    wait_until("its program", SOON, || {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words == b"sleep\x00601\0"
    });
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(of(&pid), of(&first));
    for id in ["two", "one"] {
        w.run(&["delete", "-f", id]).ok();
    }
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    w.done();
}

/// What the caller has set and the configuration does not name stays, whoever root is inside.
#[test]
fn settings_of_the_caller_stay() {
    let w = World::ours();
    bundle(
        &w,
        &["sh", "-c", "ulimit -S -c; cat /proc/self/oom_score_adj"],
        |_| {},
    );
    let runtime = path(&w.program).to_owned();
    let state = path(&w.s.dir.join("state")).to_owned();
    let script = "ulimit -S -c 7; echo 100 > /proc/self/oom_score_adj; \
                  cd \"$3\"; exec \"$1\" --root \"$2\" run one";
    let dir = path(&w.s.dir).to_owned();
    let said = tool(&["busybox", "sh", "-c", script, "sh", &runtime, &state, &dir]);
    assert_eq!(said, "7\n100\n");
    w.done();
}
