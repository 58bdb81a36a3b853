//! What `amphora-runc` gives a process: scheduling, CPUs, keyrings, sockets, interfaces, labels.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::runc::World;
use crate::sandbox::{finish, path, tool, wait_for, wait_until};

const SOON: Duration = Duration::from_secs(10);

mod ours {
    #[test]
    fn sockets_of_the_caller_are_the_containers() {
        super::sockets_of_the_caller_are_the_containers(&super::World::ours());
    }

    #[test]
    fn the_callers_keyring_is_left_unless_it_is_to_be_kept() {
        super::the_callers_keyring_is_left_unless_it_is_to_be_kept(&super::World::ours());
    }

    #[test]
    fn errors_say_what_was_tried() {
        super::errors_say_what_was_tried(&super::World::ours());
    }

    #[test]
    fn a_home_is_found_unless_there_is_one() {
        super::a_home_is_found_unless_there_is_one(&super::World::ours());
    }

    #[test]
    fn hooks_of_the_runtime_see_the_containers_tree() {
        super::hooks_of_the_runtime_see_the_containers_tree(&super::World::ours());
    }

    #[test]
    fn parameters_of_what_hooks_make_are_set() {
        super::parameters_of_what_hooks_make_are_set(&super::World::ours());
    }
}

/// What the installed runc knows too.
mod runc {
    #[test]
    fn sockets_of_the_caller_are_the_containers() {
        super::sockets_of_the_caller_are_the_containers(&super::World::runc());
    }

    #[test]
    fn the_callers_keyring_is_left_unless_it_is_to_be_kept() {
        super::the_callers_keyring_is_left_unless_it_is_to_be_kept(&super::World::runc());
    }

    #[test]
    fn errors_say_what_was_tried() {
        super::errors_say_what_was_tried(&super::World::runc());
    }

    #[test]
    fn a_home_is_found_unless_there_is_one() {
        super::a_home_is_found_unless_there_is_one(&super::World::runc());
    }

    #[test]
    fn hooks_of_the_runtime_see_the_containers_tree() {
        super::hooks_of_the_runtime_see_the_containers_tree(&super::World::runc());
    }

    #[test]
    fn parameters_of_what_hooks_make_are_set() {
        super::parameters_of_what_hooks_make_are_set(&super::World::runc());
    }
}

/// What engines hand on to people.
fn errors_say_what_was_tried(w: &World) {
    let missing = "unable to start container process: exec: \\\"nothing\\\": \
                   executable file not found in $PATH";
    w.bundle(&["nothing"], |_| {});
    for verb in ["create", "run"] {
        let text = format!("msg=\"runc {verb} failed: {missing}\"");
        w.detached(&[verb, "one"]).fails(1, &text);
    }
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    let text = format!("msg=\"exec failed: {missing}\"");
    w.run(&["exec", "one", "nothing"]).fails(255, &text);
    let text = "msg=\"runc create failed: container with given ID already exists\"";
    w.detached(&["create", "one"]).fails(1, text);
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

fn a_home_is_found_unless_there_is_one(w: &World) {
    let passwd = w.s.dir.join("rootfs/etc/passwd");
    std::fs::write(
        &passwd,
        "root:x:0:0::/root-home:/bin/sh\nb:x:7:7::/b-home:\n",
    )
    .unwrap();
    for (uid, set, want) in [
        (0, None, "/root-home\n"),
        (7, None, "/b-home\n"),
        (9, None, "/\n"),
        (7, Some("HOME=/own"), "/own\n"),
    ] {
        w.bundle(&["sh", "-c", "echo $HOME"], |spec| {
            spec["process"]["user"]["uid"] = uid.into();
            let env = spec["process"]["env"].as_array_mut().unwrap();
            env.extend(set.map(Value::from));
        });
        assert_eq!(w.run(&["run", "one"]).ok(), want);
    }
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    let args = ["exec", "--user", "7", "one", "sh", "-c", "echo $HOME"];
    assert_eq!(w.run(&args).ok(), "/b-home\n");
    w.run(&["delete", "-f", "one"]).ok();
    std::fs::remove_file(passwd).unwrap();
    w.done();
}

/// Such a hook may add to the container's tree before the host's is left.
fn hooks_of_the_runtime_see_the_containers_tree(w: &World) {
    let root = w.s.dir.join("rootfs");
    let script = format!(
        "pid=$(cat | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$'); nsenter -t $pid -m sh -c \
         'mount --bind {0}/etc {0}/tmp && mount -t tmpfs none {0}/etc'",
        path(&root)
    );
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]);
    for stage in ["prestart", "createRuntime"] {
        std::fs::write(w.s.dir.join("rootfs/etc/seen"), "yes").unwrap();
        w.bundle(&["sh", "-c", "cat /tmp/seen; ls /etc"], |spec| {
            spec["hooks"] = json!({stage: hook});
            spec["process"]["cwd"] = "/".into();
        });
        assert_eq!(w.run(&["run", "one"]).ok(), "yes", "{stage}");
        std::fs::remove_file(w.s.dir.join("rootfs/etc/seen")).unwrap();
    }
    w.done();
}

/// Engines make interfaces in such hooks.
fn parameters_of_what_hooks_make_are_set(w: &World) {
    let script = "pid=$(cat | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$'); \
                  nsenter -t $pid -n ip link add am-x type veth peer am-y";
    let file = "/proc/sys/net/ipv4/conf/am-x/arp_announce";
    w.bundle(&["cat", file], |spec| {
        spec["hooks"] = json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]});
        spec["linux"]["sysctl"] = json!({"net.ipv4.conf.am-x.arp_announce": "2"});
    });
    assert_eq!(w.run(&["run", "one"]).ok(), "2\n");
    w.done();
}

#[test]
fn a_hook_that_hangs_keeps_nobody_from_the_container() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |spec| {
        let hangs = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo >/tmp/in; sleep 600"],
            "env": ["PATH=/bin"]});
        spec["hooks"] = json!({"startContainer": [hangs]});
    });
    w.detached(&["create", "one"]).ok();
    let mut start = w
        .command(&["start", "one"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let told = w.s.dir.join("rootfs/tmp/in");
    wait_until("the hook", SOON, || told.exists());
    assert_eq!(w.status("one"), "created");
    w.run(&["start", "one"])
        .fails(1, "cannot start a container that is being started");
    w.run(&["update", "--pids-limit", "50", "one"]).ok();
    w.run(&["delete", "--force", "one"]).ok();
    assert_eq!(wait_for(&mut start), 1);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut start.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("startContainer hook /bin/sh"), "{said}");
    std::fs::remove_file(told).unwrap();
    w.done();
}

fn sockets_of_the_caller_are_the_containers(w: &World) {
    std::fs::write(w.s.dir.join("hook"), "first\n").unwrap();
    std::fs::write(w.s.dir.join("out"), "second\n").unwrap();
    let said = |pid: &str| {
        w.bundle(
            &["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4"],
            |_| {},
        );
        let script = format!(
            "exec 3<hook 4<out; LISTEN_FDS=1 LISTEN_PID={pid} exec {} --root {} run \
             --preserve-fds 1 one",
            path(&w.program),
            path(&w.s.dir.join("state"))
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(&w.s.dir);
        finish(command).stdout
    };
    assert_eq!(said("$$"), "1 1\nfirst\nsecond\n");
    // Those of another are none.
    assert_eq!(said("1"), "\nfirst\n");
    w.done();
}

/// The serial numbers of session keyrings that may be seen.
const KEYRINGS: &str = "while read n rest; do case $rest in *' _ses'*) echo $n;; esac; \
                        done < /proc/keys";

fn the_callers_keyring_is_left_unless_it_is_to_be_kept(w: &World) {
    let new = |flags: &[&str]| {
        let host = tool(&["sh", "-c", KEYRINGS]);
        w.bundle(&["sh", "-c", KEYRINGS], |spec| {
            spec["linux"]["maskedPaths"] = json!([]);
        });
        // The installed runc has one keyring a name, which outlives its container for a while.
        let id = format!("keys-{}-{}", std::process::id(), flags.len());
        let said = w.run(&[&["run"], flags, &[id.as_str()]].concat()).ok();
        let there = |n: &&str| !host.lines().any(|old| old == *n);
        said.lines().filter(there).count()
    };
    assert_eq!(new(&[]), 1);
    assert_eq!(new(&["--no-new-keyring"]), 0);
    w.done();
}

#[test]
fn a_personality_is_set() {
    let w = World::ours();
    for (domain, want) in [("LINUX32", "00000008\n"), ("LINUX", "00000000\n")] {
        w.bundle(&["cat", "/proc/self/personality"], |spec| {
            spec["linux"]["personality"] = json!({"domain": domain});
        });
        assert_eq!(w.run(&["run", "one"]).ok(), want, "{domain}");
    }
    w.done();
}

/// Niceness, real-time priority and policy.
const SCHEDULING: &str = "s=$(cat /proc/self/stat); set -- ${s##*) }; echo ${17} ${38} ${39}";

#[test]
fn scheduling_and_io_priority_are_set_for_all_processes() {
    let w = World::ours();
    let cases = [
        (
            json!({"policy": "SCHED_BATCH", "nice": 7}),
            json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
            "7 0 3\nbest-effort: prio 6\n",
        ),
        (
            json!({"policy": "SCHED_IDLE"}),
            json!({"class": "IOPRIO_CLASS_IDLE"}),
            "0 0 5\nidle\n",
        ),
    ];
    let script = format!("{SCHEDULING}; busybox ionice -p $$");
    for (scheduler, priority, want) in cases {
        w.bundle(&["sh", "-c", &script], |spec| {
            spec["process"]["scheduler"] = scheduler.clone();
            spec["process"]["ioPriority"] = priority.clone();
        });
        assert_eq!(w.run(&["run", "one"]).ok(), want);
        w.bundle(&["sleep", "600"], |spec| {
            spec["process"]["scheduler"] = scheduler;
            spec["process"]["ioPriority"] = priority;
        });
        w.detached(&["run", "-d", "one"]).ok();
        let said = w.run(&["exec", "one", "sh", "-c", &script]).ok();
        assert_eq!(said, want);
        w.run(&["delete", "-f", "one"]).ok();
    }
    w.done();
}

#[test]
fn processes_that_join_run_on_the_cpus_they_are_given() {
    let w = World::ours();
    let script = "while read k v; do case $k in Cpus_allowed_list:) echo $v;; esac; \
                  done < /proc/self/status";
    let with = |affinity: Value| {
        w.bundle(&["sleep", "600"], |spec| {
            spec["process"]["execCPUAffinity"] = affinity;
        });
        w.detached(&["run", "-d", "one"]).ok();
        let said = w.run(&["exec", "one", "sh", "-c", script]);
        w.run(&["delete", "-f", "one"]).ok();
        said
    };
    let all = tool(&["sh", "-c", script]);
    assert_eq!(with(json!({"initial": "0", "final": "0"})).ok(), "0\n");
    assert_eq!(with(json!({"initial": "0"})).ok(), all);
    with(json!({"initial": "8191"})).fails(255, "process.execCPUAffinity.initial");
    with(json!({"final": "8191"})).fails(255, "CPU affinity");
    w.bundle(&["sh"], |spec| {
        spec["process"]["execCPUAffinity"] = json!({"final": "3-1"});
    });
    w.detached(&["create", "one"])
        .fails(1, r#"process.execCPUAffinity: \"3-1\""#);
    w.done();
}

#[test]
fn interfaces_of_the_host_move_into_the_container_or_stay_as_they_were() {
    let w = World::ours();
    let here = |args: &[&str]| tool(&[&["ip"], args].concat());
    here(&["link", "add", "am-it-0", "type", "veth", "peer", "am-it-1"]);
    here(&["addr", "add", "10.97.3.7/24", "dev", "am-it-0"]);
    here(&["addr", "add", "fd97::7/64", "dev", "am-it-0", "nodad"]);
    here(&["link", "set", "am-it-0", "up"]);
    let shown = || here(&["-br", "addr", "show", "am-it-0"]);
    let before = shown();
    let with = |devices: Value| {
        w.bundle(&["busybox", "ip", "addr"], |spec| {
            spec["linux"]["netDevices"] = devices;
        });
    };
    // A second one that cannot be moved takes the first one back.
    for (second, wrong) in [
        (
            json!({"am-it-1": {"name": "lo"}}),
            r#"\"am-it-1\": File exists"#,
        ),
        (json!({"nosuch": {}}), r#"\"nosuch\": no interface"#),
        (json!({"a/b": {}}), r#"\"a/b\" is no name"#),
    ] {
        let mut devices = second;
        devices["am-it-0"] = json!({"name": "eth7"});
        with(devices);
        w.detached(&["create", "one"]).fails(1, wrong);
        assert_eq!(shown(), before);
    }
    // As does whatever fails later.
    w.bundle(&["sh"], |spec| {
        spec["linux"]["netDevices"] = json!({"am-it-0": {"name": "eth7"}});
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    });
    w.detached(&["create", "one"])
        .fails(1, "createRuntime hook");
    assert_eq!(shown(), before);
    w.bundle(&["sh"], |spec| {
        spec["linux"]["netDevices"] = json!({"am-it-0": {}});
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
    });
    w.detached(&["create", "one"])
        .fails(1, "linux.netDevices: needs a network namespace");
    with(json!({"am-it-0": {"name": "net%d"}, "am-it-1": {}}));
    let said = w.run(&["run", "one"]).ok();
    for part in ["net0@", "am-it-1@", "inet 10.97.3.7/24", "inet6 fd97::7/64"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let up = said.lines().filter(|line| line.contains(",UP,"));
    assert_eq!(up.count(), 3, "{said}");
    w.done();
}

#[test]
fn properties_that_mean_nothing_are_refused_by_name() {
    let w = World::ours();
    let host = |file: &str| std::path::Path::new(file).exists();
    let mut cases = vec![
        ("linux", "personality", json!({"domain": "BSD"}), "domain"),
        (
            "linux",
            "personality",
            json!({"domain": "LINUX", "flags": ["X"]}),
            "flags",
        ),
        ("process", "scheduler", json!({"policy": "SCHED_ISO"}), ""),
        (
            "process",
            "ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "priority",
        ),
    ];
    if !host("/sys/module/apparmor") {
        cases.push(("process", "apparmorProfile", json!("some"), ""));
    }
    if !host("/sys/fs/selinux/enforce") {
        let label = json!("some_u:some_r:some_t:s0");
        cases.push(("process", "selinuxLabel", label.clone(), ""));
        cases.push(("linux", "mountLabel", label, ""));
    }
    for (object, field, value, part) in cases {
        w.bundle(&["sh"], |spec| spec[object][field] = value);
        let said = w
            .detached(&["create", "one"])
            .fails(1, &format!("{object}.{field}"));
        assert!(said.contains(part), "{said}");
    }
    w.done();
}
