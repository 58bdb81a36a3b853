//! Cgroups of `amphora-runc`: what is asked for stands in the kernel's files, changes, and is told. The
//! same cases against the runc that is installed, where it can do the thing.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::runc::World;
use crate::sandbox::{path, tool, wait_until};

const SOON: Duration = Duration::from_secs(20);
/// Where the bundles of these tests have their cgroup.
const PLACE: &str = "amphora-it-runc/case";

macro_rules! calibrated {
    ($($name:ident),* $(,)?) => {
        mod ours { $( #[test] fn $name() { super::$name(&super::World::ours()); } )* }
        mod runc { $( #[test] fn $name() { super::$name(&super::World::runc()); } )* }
    };
}

calibrated!(
    limits_stand_in_the_kernels_files,
    an_update_changes_what_it_names_and_nothing_when_it_fails,
    memory_that_runs_out_is_told,
    devices_are_refused_and_allowed_in_order,
    cgroups_made_below_belong_to_it,
    it_sees_its_own_cgroup_as_the_root,
    a_cgroup_may_lie_at_the_top,
);

fn ours(w: &World) -> bool {
    w.program.ends_with("amphora-runc")
}

fn v2() -> bool {
    PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether limits of memory, processors and processes are there; a skip is told once.
fn limited() -> bool {
    ["memory", "cpu", "cpuset", "pids"]
        .iter()
        .all(|name| crate::sandbox::has_controller(name))
}

fn file_in(place: &str, controller: &str, name: &str) -> PathBuf {
    let root = PathBuf::from("/sys/fs/cgroup");
    let root = if v2() { root } else { root.join(controller) };
    root.join(place).join(name)
}

/// What a file of the container's cgroup says.
fn says(controller: &str, name: &str) -> String {
    let file = file_in(PLACE, controller, name);
    let text = std::fs::read_to_string(&file);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.trim().to_owned()
}

/// A whole disk, as limits of block devices need it.
fn disk() -> Option<(u32, u32)> {
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    let mut found: Vec<(u32, u32)> = disks
        .filter_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok())
        .filter_map(|text| {
            let (major, minor) = text.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .collect();
    found.sort_unstable();
    found.first().copied()
}

fn resources() -> Value {
    let mut resources = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 128 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50},
    });
    if let Some((major, minor)) = disk() {
        let rate = json!([{"major": major, "minor": minor, "rate": 1_048_576}]);
        resources["blockIO"] =
            json!({"throttleReadBpsDevice": rate, "throttleWriteIOPSDevice": rate});
    }
    resources
}

fn disk_limits_stand() {
    if let Some((major, minor)) = disk() {
        if v2() {
            let line = says("io", "io.max");
            assert!(
                line.contains("rbps=1048576") && line.contains("wiops=1048576"),
                "{line}"
            );
        } else {
            for name in ["read_bps_device", "write_iops_device"] {
                let line = says("blkio", &format!("blkio.throttle.{name}"));
                assert_eq!(line, format!("{major}:{minor} 1048576"));
            }
        }
    }
}

fn limits_stand_in_the_kernels_files(w: &World) {
    if !limited() {
        return;
    }
    w.bundle(&["sleep", "600"], |spec| {
        spec["linux"]["resources"] = resources();
        if ours(w) {
            // The installed runc is too old for the first two.
            let cpu = &mut spec["linux"]["resources"]["cpu"];
            cpu["burst"] = json!(7000);
            cpu["idle"] = json!(0);
        }
        if v2() {
            let more = json!({"memory.high": "60000000"});
            spec["linux"]["resources"]["unified"] = more;
        } else {
            let memory = &mut spec["linux"]["resources"]["memory"];
            memory["swappiness"] = json!(10);
            memory["disableOOMKiller"] = json!(true);
            memory["useHierarchy"] = json!(true);
        }
    });
    w.detached(&["run", "-d", "one"]).ok();
    let (pids, cpus) = (says("pids", "pids.max"), says("cpuset", "cpuset.cpus"));
    assert_eq!((pids.as_str(), cpus.as_str()), ("50", "0"));
    let mut want = if v2() {
        vec![
            ("memory", "memory.max", "67108864"),
            ("memory", "memory.low", "33554432"),
            ("memory", "memory.swap.max", "67108864"),
            ("memory", "memory.high", "59998208"),
            ("cpu", "cpu.max", "50000 100000"),
        ]
    } else {
        vec![
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.soft_limit_in_bytes", "33554432"),
            ("memory", "memory.memsw.limit_in_bytes", "134217728"),
            ("memory", "memory.swappiness", "10"),
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "50000"),
            ("cpu", "cpu.cfs_period_us", "100000"),
        ]
    };
    if ours(w) {
        let burst = if v2() {
            "cpu.max.burst"
        } else {
            "cpu.cfs_burst_us"
        };
        want.push(("cpu", burst, "7000"));
    }
    for (controller, name, value) in want {
        assert_eq!(says(controller, name), value, "{name}");
    }
    if !v2() {
        let oom = says("memory", "memory.oom_control");
        assert!(oom.contains("oom_kill_disable 1"), "{oom}");
    }
    disk_limits_stand();
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

fn an_update_changes_what_it_names_and_nothing_when_it_fails(w: &World) {
    if !limited() {
        return;
    }
    w.bundle(&["sleep", "600"], |spec| {
        spec["linux"]["resources"] = resources();
    });
    w.detached(&["run", "-d", "one"]).ok();
    let memory = if v2() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    w.run(&["update", "--memory", "48m", "--memory-swap", "96m", "one"])
        .ok();
    assert_eq!(says("memory", memory), (48 << 20).to_string());
    w.run(&[
        "update",
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "50000",
        "one",
    ])
    .ok();
    let quota = || match v2() {
        true => says("cpu", "cpu.max"),
        false => says("cpu", "cpu.cfs_quota_us") + " " + &says("cpu", "cpu.cfs_period_us"),
    };
    assert_eq!(quota(), "20000 50000");
    w.run(&["update", "--cpu-share", "100", "--pids-limit", "60", "one"])
        .ok();
    assert_eq!(says("pids", "pids.max"), "60");
    // Zero is runc's word for "as it is", -1 for none.
    w.run(&["update", "--pids-limit", "0", "--cpuset-mems", "0", "one"])
        .ok();
    assert_eq!(says("pids", "pids.max"), "60");
    w.run(&["update", "--pids-limit", "-1", "one"]).ok();
    assert_eq!(says("pids", "pids.max"), "max");
    let file = w.s.dir.join("hook");
    std::fs::write(
        &file,
        r#"{"memory": {"limit": 41943040, "swap": 83886080}}"#,
    )
    .unwrap();
    w.run(&["update", "-r", path(&file), "one"]).ok();
    assert_eq!(says("memory", memory), "41943040");

    let failed = ["update", "--memory", "32m", "--cpuset-cpus", "4000", "one"];
    assert_eq!(w.run(&failed).code, 1);
    // On v2 runc says itself that it could not.
    if ours(w) || !v2() {
        assert_eq!(
            says("memory", memory),
            "41943040",
            "a failed update has left a change"
        );
    }
    assert_eq!(says("cpuset", "cpuset.cpus"), "0");
    assert_eq!(quota(), "20000 50000");
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

fn memory_that_runs_out_is_told(w: &World) {
    if !limited() {
        return;
    }
    // Once somebody listens, a child asks for more than there is; the container goes on.
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; \
                  busybox dd if=/dev/zero of=/dev/null bs=64M count=1; exec sleep 600";
    w.bundle(&["sh", "-c", script], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    });
    let go = w.s.dir.join("rootfs/tmp/go");
    w.detached(&["run", "-d", "one"]).ok();
    let mut child = w
        .command(&["events", "--interval", "300ms", "one"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!(
        (&first["type"], &first["id"]),
        (&json!("stats"), &json!("one"))
    );
    std::fs::write(&go, "").unwrap();
    let end = Instant::now() + 3 * SOON;
    let told = loop {
        assert!(Instant::now() < end, "nobody tells of it");
        let line = next();
        if line["type"] != "stats" {
            break line;
        }
    };
    assert_eq!(told, json!({"type": "oom", "id": "one"}));
    assert_eq!(w.status("one"), "running");
    w.run(&["delete", "-f", "one"]).ok();
    // The stream ends with the container.
    wait_until("events to end", SOON, || {
        child.try_wait().unwrap().is_some()
    });
    std::fs::remove_file(go).unwrap();
    w.done();
}

fn devices_are_refused_and_allowed_in_order(w: &World) {
    let kmsg = |allow: bool, access: &str| json!({"allow": allow, "type": "c", "major": 1, "minor": 11, "access": access});
    let deny = json!({"allow": false, "access": "rwm"});
    let every = json!({"allow": true, "type": "c", "major": 1, "access": "rwm"});
    let cases = [
        (json!([deny]), "no no"),
        (json!([deny, kmsg(true, "r")]), "yes no"),
        (json!([deny, kmsg(true, "rw")]), "yes yes"),
        (json!([deny, kmsg(true, "rwm"), kmsg(false, "w")]), "yes no"),
        (json!([kmsg(true, "rwm"), deny]), "no no"),
        (json!([deny, every]), "yes yes"),
        (
            json!([{"allow": true, "access": "rwm"}, kmsg(false, "w")]),
            "yes no",
        ),
        (
            json!([{"allow": true, "type": "a", "access": "rwm"}]),
            "yes yes",
        ),
    ];
    // Whoever may make every node is refused its use all the same.
    let script = "busybox mknod /dev/node c 1 11 || exit 7; (exec 3</dev/node) && a=yes || a=no; \
                  (exec 3>/dev/node) && b=yes || b=no; echo x >/dev/null || exit 8; \
                  busybox mknod /dev/tun c 10 200 || exit 9; echo $a $b";
    for (rules, want) in cases {
        w.bundle(&["sh", "-c", script], |spec| {
            spec["linux"]["resources"]["devices"] = rules.clone();
            let caps = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
            spec["process"]["capabilities"] =
                json!({"bounding": caps, "effective": caps, "permitted": caps});
        });
        let output = w.run(&["run", "one"]);
        assert_eq!(
            (output.code, output.stdout.trim()),
            (0, want),
            "{rules}: {output:?}"
        );
    }
    // What takes a part out of a wildcard has no meaning for the kernel's lists.
    w.bundle(&["sh"], |spec| {
        spec["linux"]["resources"]["devices"] = json!([deny, every, kmsg(false, "r")]);
    });
    let refused = w.detached(&["create", "one"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("wildcard"), "{refused:?}");
    w.done();
}

fn cgroups_made_below_belong_to_it(w: &World) {
    if !crate::sandbox::has_controller("freezer") {
        return;
    }
    w.bundle(&["sh", "-c", "sleep 601 & exec sleep 600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    let listed = || -> Vec<i32> {
        let text = w.run(&["ps", "-f", "json", "one"]).ok();
        serde_json::from_str(&text).unwrap()
    };
    wait_until("both", SOON, || listed().len() == 2);
    let first: i32 = w.state("one")["pid"].to_string().parse().unwrap();
    let second = listed().into_iter().find(|pid| *pid != first).unwrap();
    for controller in ["freezer", "devices", "pids", "memory"] {
        let dir = file_in(PLACE, controller, "below/deeper");
        if dir
            .parent()
            .and_then(std::path::Path::parent)
            .is_some_and(std::path::Path::exists)
        {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("cgroup.procs"), second.to_string()).unwrap();
        }
    }
    let mut both = listed();
    both.sort_unstable();
    let mut want = [first, second];
    want.sort_unstable();
    assert_eq!(both, want);
    w.run(&["pause", "one"]).ok();
    if v2() {
        let events = says("", "cgroup.events");
        assert!(events.contains("frozen 1"), "{events}");
        let below = std::fs::read_to_string(file_in(PLACE, "", "below/deeper/cgroup.events"));
        assert!(below.unwrap().contains("frozen 1"));
    } else {
        assert_eq!(says("freezer", "below/deeper/freezer.state"), "FROZEN");
    }
    assert_eq!(w.status("one"), "paused");
    w.run(&["resume", "one"]).ok();
    w.run(&["kill", "--all", "one", "KILL"]).ok();
    wait_until("all to be gone", SOON, || {
        [first, second].iter().all(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        })
    });
    w.until("one", "stopped");
    w.run(&["delete", "one"]).ok();
    w.done();
}

fn it_sees_its_own_cgroup_as_the_root(w: &World) {
    if !limited() {
        return;
    }
    let script = "cat /proc/self/cgroup; echo; cd /sys/fs/cgroup; \
                  cat memory/memory.limit_in_bytes memory.max 2>/dev/null; \
                  busybox mkdir memory/x pids/x x 2>/dev/null && echo made; true";
    w.bundle(&["sh", "-c", script], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20});
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "cgroup"}));
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}));
        mounts.push(
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "ro"]}),
        );
    });
    let said = w.run(&["run", "one"]).ok();
    let (view, limit) = said.split_once("\n\n").unwrap();
    // A hierarchy that the runtime has no part in shows where it was started.
    let own = ["memory", "pids", "devices", "freezer", ""];
    for line in view.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (name, place) = (parts.next().unwrap(), parts.next().unwrap());
        if own.contains(&name) {
            assert_eq!(place, "/", "{view}");
        }
    }
    assert_eq!(limit, "33554432\n");
    w.done();
}

fn a_cgroup_may_lie_at_the_top(w: &World) {
    if !crate::sandbox::has_controller("cpu") {
        return;
    }
    let name = format!("amphora-it-top-{}", std::process::id());
    let realtime = file_in("", "cpu", "cpu.rt_runtime_us").exists();
    w.bundle(&["sleep", "600"], |spec| {
        spec["linux"]["cgroupsPath"] = format!("/{name}").into();
        if realtime {
            let cpu = json!({"realtimePeriod": 500_000, "realtimeRuntime": 1000});
            spec["linux"]["resources"]["cpu"] = cpu;
        }
    });
    w.detached(&["run", "-d", "one"]).ok();
    let procs = std::fs::read_to_string(file_in(&name, "cpu", "cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), w.state("one")["pid"].to_string());
    if realtime {
        let runtime = std::fs::read_to_string(file_in(&name, "cpu", "cpu.rt_runtime_us"));
        assert_eq!(runtime.unwrap().trim(), "1000");
        w.run(&["update", "--cpu-rt-runtime", "2000", "one"]).ok();
        let runtime = std::fs::read_to_string(file_in(&name, "cpu", "cpu.rt_runtime_us"));
        assert_eq!(runtime.unwrap().trim(), "2000");
    }
    w.run(&["delete", "-f", "one"]).ok();
    assert!(!file_in("", "cpu", &name).exists());
    w.done();
}

/// Paths of all members of a document; what a list holds is not looked at.
fn keys(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                keys(value, &format!("{at}.{key}"), out);
            }
        }
        _ => out.push(at.to_owned()),
    }
}

/// Members that stand there only while they are not zero, and those of the other's process alone.
fn comes_and_goes(key: &str) -> bool {
    // Of huge pages, v2's files tell more than runc looks for.
    let huge = if v2() { ".data.hugetlb" } else { ".none" };
    [
        ".data.memory.cache",
        ".data.blkio",
        ".data.cpu.throttling",
        huge,
    ]
    .iter()
    .any(|start| key.starts_with(start))
        || key.ends_with(".usage")
        || key.ends_with(".max")
}

#[test]
fn figures_are_those_of_runc_key_by_key() {
    if !limited() {
        return;
    }
    let figures = |w: World| {
        w.bundle(&["sleep", "600"], |spec| {
            spec["linux"]["resources"] = resources();
        });
        w.detached(&["run", "-d", "one"]).ok();
        let text = w.run(&["events", "--stats", "one"]).ok();
        w.run(&["delete", "-f", "one"]).ok();
        w.done();
        let told: Value = serde_json::from_str(&text).unwrap();
        let mut found = Vec::new();
        keys(&told, "", &mut found);
        found.retain(|key| !comes_and_goes(key));
        found.sort_unstable();
        (found, told)
    };
    let (want, theirs) = figures(World::runc());
    let (found, own) = figures(World::ours());
    assert!(want.len() > 20, "{want:?}");
    assert_eq!(found, want);
    for fixed in [
        "/type",
        "/id",
        "/data/pids",
        "/data/cpuset",
        "/data/memory/usage/limit",
        "/data/memory/swap/limit",
        "/data/network_interfaces",
    ] {
        assert_eq!(own.pointer(fixed), theirs.pointer(fixed), "{fixed}");
    }
}

#[test]
fn what_the_host_lacks_is_refused_by_field() {
    let w = World::ours();
    let mut cases = vec![
        (
            json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}),
            "linux.resources.rdma[",
        ),
        (
            json!({"blockIO": {"leafWeight": 500}}),
            "linux.resources.blockIO.leafWeight",
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "2QB", "limit": 1}]}),
            "hugepageLimits[0]",
        ),
    ];
    if v2() {
        cases.push((json!({"network": {"classID": 7}}), "network.classID"));
        cases.push((json!({"memory": {"swappiness": 7}}), "memory.swappiness"));
        cases.push((json!({"memory": {"kernel": 4096}}), "memory.kernel"));
        cases.push((
            json!({"cpu": {"realtimeRuntime": 7}}),
            "cpu.realtimeRuntime",
        ));
    } else {
        cases.push((
            json!({"unified": {"memory.high": "7"}}),
            "linux.resources.unified",
        ));
    }
    for (resources, field) in cases {
        w.bundle(&["sh"], |spec| spec["linux"]["resources"] = resources);
        w.detached(&["create", "one"]).fails(1, field);
    }
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    for flag in ["--l3-cache-schema", "--mem-bw-schema"] {
        w.run(&["update", flag, "x", "one"]).fails(1, flag);
    }
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

/// Devices can be changed while it runs, which runc leaves out; what is changed stays on record.
#[test]
fn devices_and_the_newer_limits_change_while_it_runs() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |spec| {
        let caps = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
        spec["process"]["capabilities"] =
            json!({"bounding": caps, "effective": caps, "permitted": caps});
    });
    w.detached(&["run", "-d", "one"]).ok();
    w.run(&[
        "exec",
        "one",
        "busybox",
        "mknod",
        "/dev/node",
        "c",
        "1",
        "11",
    ])
    .ok();
    let opens = || w.run(&["exec", "one", "sh", "-c", "exec 3</dev/node"]).code == 0;
    assert!(!opens());
    let file = w.s.dir.join("hook");
    let rules = |allow: bool| {
        let rule = json!({"allow": allow, "type": "c", "major": 1, "minor": 11, "access": "rw"});
        let list = json!({"devices": [{"allow": false, "access": "rwm"}, rule]});
        std::fs::write(&file, list.to_string()).unwrap();
        w.run(&["update", "-r", path(&file), "one"]).ok();
    };
    rules(true);
    assert!(opens());
    let config = w.s.dir.join("state/one/config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    assert_eq!(config["linux"]["resources"]["devices"][1]["allow"], true);
    rules(false);
    assert!(!opens());
    if limited() {
        w.run(&[
            "update",
            "--cpu-quota",
            "10000",
            "--cpu-burst",
            "5000",
            "one",
        ])
        .ok();
        let burst = if v2() {
            "cpu.max.burst"
        } else {
            "cpu.cfs_burst_us"
        };
        assert_eq!(says("cpu", burst), "5000");
        w.run(&["update", "--cpu-idle", "1", "one"]).ok();
        assert_eq!(says("cpu", "cpu.idle"), "1");
    }
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

/// On a host that mounts the hierarchies of network marks, as this test's own view does.
#[test]
fn network_marks_are_set_where_they_are_mounted() {
    if v2() {
        return;
    }
    let script = "set -e; o=/sys/fs/cgroup; cd $o; mkdir -p $1; mount -t tmpfs x $1; \
        for d in *; do case $d in net_*) continue;; esac; mkdir $1/$d; mount --bind $o/$d $1/$d; done; mkdir $1/net_cls; \
        mount -t cgroup -o net_cls,net_prio x $1/net_cls; ln -s net_cls $1/net_prio; \
        mount --move $1 $o";
    for w in [World::ours as fn() -> World, World::runc] {
        let w = w();
        let dir = w.s.dir.join("view");
        tool(&["sh", "-c", script, "sh", path(&dir)]);
        w.bundle(&["sleep", "600"], |spec| {
            spec["linux"]["resources"]["network"] =
                json!({"classID": 1_048_577, "priorities": [{"name": "lo", "priority": 5}]});
        });
        w.detached(&["run", "-d", "one"]).ok();
        assert_eq!(says("net_cls", "net_cls.classid"), "1048577");
        let priorities = says("net_cls", "net_prio.ifpriomap");
        assert!(
            priorities.lines().any(|line| line == "lo 5"),
            "{priorities}"
        );
        let pid = w.state("one")["pid"].to_string();
        assert_eq!(says("net_cls", "cgroup.procs"), pid);
        w.run(&["delete", "-f", "one"]).ok();
        let place = file_in("", "net_cls", "amphora-it-runc");
        assert!(!place.join("case").exists());
        std::fs::remove_dir(place).unwrap();
        tool(&["umount", "-l", "/sys/fs/cgroup"]);
        std::fs::remove_dir(dir).unwrap();
        w.done();
    }
}

/// Whether systemd runs this host, which may have none.
fn systemd() -> bool {
    PathBuf::from("/run/systemd/system").exists()
}

#[test]
fn without_systemd_its_cgroups_are_refused() {
    let w = World::ours();
    let create = ["--systemd-cgroup", "create", "one"];
    w.bundle(&["sh"], |_| {});
    w.detached(&create).fails(1, "linux.cgroupsPath");
    if !systemd() {
        w.bundle(&["sh"], |spec| {
            spec["linux"]["cgroupsPath"] = "a.slice:b:c".into();
        });
        w.detached(&create)
            .fails(1, "needs systemd, which does not run on this host");
    }
    w.done();
}

mod scopes {
    use super::*;

    #[test]
    fn ours() {
        a_scope_holds_it(World::ours);
    }

    #[test]
    fn runc() {
        a_scope_holds_it(World::runc);
    }

    fn show(property: &str) -> String {
        let args = [
            "systemctl",
            "show",
            "--value",
            "-p",
            property,
            "amphora-it.scope",
        ];
        tool(&args).trim().to_owned()
    }

    /// systemd makes the scope, knows the limits and says them again, and ends it with the container.
    fn a_scope_holds_it(world: fn() -> World) {
        if !systemd() {
            let test = std::thread::current().name().unwrap_or("?").to_owned();
            crate::sandbox::for_machine(&test);
            return;
        }
        let w = world();
        w.bundle(&["sleep", "600"], |spec| {
            spec["linux"]["cgroupsPath"] = "amphora-test.slice:amphora:it".into();
            spec["linux"]["resources"] = resources();
            spec["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "uint64 7"});
        });
        w.detached(&["--systemd-cgroup", "run", "-d", "one"]).ok();
        for (property, value) in [
            ("ActiveState", "active"),
            ("Slice", "amphora-test.slice"),
            ("Delegate", "yes"),
            ("MemoryMax", "67108864"),
            ("MemorySwapMax", "67108864"),
            ("TasksMax", "50"),
            ("CPUQuotaPerSecUSec", "500ms"),
            ("AllowedCPUs", "0"),
            ("DevicePolicy", "strict"),
            ("TimeoutStopUSec", "7s"),
        ] {
            assert_eq!(show(property), value, "{property}");
        }
        let place = "amphora.slice/amphora-test.slice/amphora-it.scope";
        assert_eq!(show("ControlGroup"), format!("/{place}"));
        let pid = w.state("one")["pid"].to_string();
        let procs = std::fs::read_to_string(file_in(place, "", "cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), pid);
        systemd_is_told_of_changes(&w, place);
        it_ends_with_its_container(&w, place);
        w.done();
    }

    fn systemd_is_told_of_changes(w: &World, place: &str) {
        let file = |name: &str| {
            let text = std::fs::read_to_string(file_in(place, "memory", name)).unwrap();
            text.trim().to_owned()
        };
        w.run(&[
            "update",
            "--pids-limit",
            "30",
            "--memory",
            "48m",
            "--memory-swap",
            "96m",
            "one",
        ])
        .ok();
        assert_eq!(
            (show("TasksMax").as_str(), file("pids.max").as_str()),
            ("30", "30")
        );
        tool(&["systemctl", "daemon-reload"]);
        assert_eq!(
            (file("pids.max").as_str(), file("memory.max").as_str()),
            ("30", "50331648")
        );
        if w.program.ends_with("amphora-runc") {
            // The installed runc leaves systemd with what it has refused.
            let failed = [
                "update",
                "--pids-limit",
                "20",
                "--blkio-weight",
                "9999",
                "one",
            ];
            assert_eq!(w.run(&failed).code, 1);
            assert_eq!(
                (show("TasksMax").as_str(), file("pids.max").as_str()),
                ("30", "30")
            );
        }
    }

    fn it_ends_with_its_container(w: &World, place: &str) {
        let said = w
            .run(&["exec", "one", "sh", "-c", "echo x >/dev/null && echo fine"])
            .ok();
        assert_eq!(said, "fine\n");
        w.run(&["pause", "one"]).ok();
        assert_eq!(w.status("one"), "paused");
        w.run(&["resume", "one"]).ok();
        w.run(&["delete", "-f", "one"]).ok();
        wait_until("the scope to go", SOON, || show("LoadState") == "not-found");
        assert!(!file_in("", "", place).exists());
        // One that ends by itself takes the scope along.
        w.detached(&["--systemd-cgroup", "run", "-d", "one"]).ok();
        w.run(&["kill", "one", "KILL"]).ok();
        w.until("one", "stopped");
        w.run(&["delete", "one"]).ok();
        wait_until("the scope to go", SOON, || show("LoadState") == "not-found");
        w.detached(&["--systemd-cgroup", "create", "one"]).ok();
        let ours = w.program.ends_with("amphora-runc");
        let text = if ours {
            "amphora-it.scope"
        } else {
            "not empty"
        };
        w.detached(&["--systemd-cgroup", "create", "two"])
            .fails(1, text);
        w.run(&["delete", "-f", "one"]).ok();
        wait_until("the scope to go", SOON, || show("LoadState") == "not-found");
        tool(&["systemctl", "stop", "amphora-test.slice", "amphora.slice"]);
    }
}
