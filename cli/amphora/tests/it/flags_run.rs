//! Flags of `run` and `create`: each works, or is refused by name; `inspect` shows what was given.

use std::fs;

use serde_json::json;

use crate::fixtures::busybox_image;
use crate::linux::sh;
use crate::registry::Registry;
use crate::sandbox::{Sandbox, has_controller, path};

/// Both kinds of container.
const BOTH: [&str; 2] = ["probe-linux", "probe-wasm"];

fn busybox() -> Sandbox {
    let s = Sandbox::new();
    s.load_image(&busybox_image("bb"));
    s
}

#[test]
fn mounts_of_every_kind() {
    BOTH.into_iter().for_each(mounts_of_every_kind_in);
}

fn mounts_of_every_kind_in(image: &str) {
    let s = Sandbox::ready();
    let dir = s.dir.join("bound");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), "of the host").unwrap();
    let bind = format!("type=bind,source={},target=/b,readonly", path(&dir));
    let read = s.run(&["run", "--rm", "--mount", &bind, image, "cat", "/b/f"]);
    assert_eq!(read.ok(), "of the host");
    let write = s.run(&["run", "--rm", "--mount", &bind, image, "write", "/b/x", "y"]);
    assert_eq!(write.code, 1, "{write:?}");
    let volume = "src=vol,dst=/v,volume-label=who=me";
    s.run(&[
        "run", "--rm", "--mount", volume, image, "write", "/v/x", "y",
    ])
    .ok();
    assert_eq!(s.inspect("vol")["Labels"], json!({ "who": "me" }));
    s.run(&[
        "run",
        "--rm",
        "--mount",
        "type=volume,src=vol,dst=/v,ro",
        image,
        "cat",
        "/v/x",
    ])
    .ok();
    let tmpfs = "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770";
    s.run(&["run", "--rm", "--mount", tmpfs, image, "write", "/t/x", "y"])
        .ok();
    // A folder of a volume alone.
    fs::create_dir(s.root().join("volumes/vol/_data/sub")).unwrap();
    fs::write(s.root().join("volumes/vol/_data/sub/deep"), "deep").unwrap();
    let sub = "src=vol,dst=/v,volume-subpath=sub";
    let seen = s
        .run(&["run", "--rm", "--mount", sub, image, "ls", "/v"])
        .ok();
    assert_eq!(seen, "deep\n");
    for evil in ["../..", "/etc", "none"] {
        let spec = format!("src=vol,dst=/v,volume-subpath={evil}");
        let out = s.run(&["run", "--rm", "--mount", &spec, image, "ls", "/v"]);
        assert_eq!(out.code, 125, "{evil}: {out:?}");
    }
    s.run(&[
        "create", "--name", "look", "--mount", &bind, "--mount", tmpfs, image,
    ])
    .ok();
    let host = s.inspect("look")["HostConfig"].clone();
    assert_eq!(host["Mounts"][0]["Type"], "bind");
    assert_eq!(host["Mounts"][0]["ReadOnly"], true);
    assert_eq!(
        host["Mounts"][1]["TmpfsOptions"],
        json!({ "SizeBytes": 1 << 20, "Mode": 0o1770 })
    );
    assert_eq!(
        (&host["Binds"], &host["Tmpfs"]),
        (&json!(null), &json!(null))
    );
    s.run(&["rm", "look"]).ok();
    s.run(&["run", "--mount", "type=bind,src=/no/such,dst=/x", image])
        .fails(
            125,
            "invalid mount config for type \"bind\": bind source path does not exist: /no/such",
        );
    s.run(&["run", "--mount", "dst=/x,volume-opt=a=b", image])
        .fails(125, "invalid option: \"a\"");
    s.run(&["run", "--tmpfs", "/x:magic", image])
        .fails(125, "invalid tmpfs option [\"magic\"]");
    s.run(&["volume", "rm", "vol"]).ok();
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn volumes_are_taken_along() {
    BOTH.into_iter().for_each(volumes_are_taken_along_in);
}

fn volumes_are_taken_along_in(image: &str) {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "--name",
        "donor",
        "-v",
        "/anon",
        "-v",
        "vol:/named",
        image,
        "write",
        "/anon/x",
        "kept",
    ])
    .ok();
    let from = |flags: &[&str], words: &[&str]| {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.push(image);
        args.extend(words);
        s.run(&args)
    };
    let read = from(&["--volumes-from", "donor"], &["cat", "/anon/x"]);
    assert_eq!(read.ok(), "kept\n");
    let write = from(&["--volumes-from", "donor:ro"], &["write", "/named/x", "y"]);
    assert_eq!(write.code, 1, "{write:?}");
    from(&["--volumes-from", "ghost"], &[]).fails(125, "No such container: ghost");
    from(&["--volumes-from", "donor:bad"], &[]).fails(125, "invalid mode: bad");
    // The volume outlives its donor while somebody else mentions it.
    s.run(&[
        "create",
        "--name",
        "heir",
        "--volumes-from",
        "donor",
        image,
        "cat",
        "/anon/x",
    ])
    .ok();
    assert_eq!(
        s.inspect("heir")["HostConfig"]["VolumesFrom"],
        json!(["donor"])
    );
    s.run(&["rm", "-v", "donor"]).ok();
    assert_eq!(s.run(&["start", "-a", "heir"]).ok(), "kept\n");
    s.run(&["rm", "-v", "heir"]).ok();
    for name in s.run(&["volume", "ls", "-q"]).ok().lines() {
        s.run(&["volume", "rm", name]).ok();
    }
}

#[test]
fn labels_and_files() {
    BOTH.into_iter().for_each(labels_and_files_in);
}

fn labels_and_files_in(image: &str) {
    let s = Sandbox::ready();
    let file = s.dir.join("labels");
    fs::write(&file, "# a comment\na=1\nb=2\n").unwrap();
    let cid = s.dir.join("cid");
    s.run(&[
        "create",
        "--name",
        "look",
        "--label-file",
        path(&file),
        "-l",
        "b=3",
        "--cidfile",
        path(&cid),
        "--annotation",
        "k=v",
        "--domainname",
        "example.org",
        "-h",
        "box",
        "--stop-signal",
        "SIGINT",
        "--stop-timeout",
        "3",
        image,
    ])
    .ok();
    let seen = s.inspect("look");
    assert_eq!(seen["Config"]["Labels"], json!({ "a": "1", "b": "3" }));
    assert_eq!(seen["Config"]["Domainname"], "example.org");
    assert_eq!(seen["Config"]["StopSignal"], "SIGINT");
    assert_eq!(seen["Config"]["StopTimeout"], 3);
    assert_eq!(
        fs::read_to_string(&cid).unwrap(),
        seen["Id"].as_str().unwrap()
    );
    s.run(&["create", "--cidfile", path(&cid), image])
        .fails(125, "container ID file found");
    s.run(&["create", "--label-file", "/no/such", image])
        .fails(125, "open /no/such: no such file or directory");
    s.run(&["rm", "look"]).ok();
    fs::remove_file(&cid).unwrap();
    fs::remove_file(&file).unwrap();
}

#[test]
fn environment_files() {
    BOTH.into_iter().for_each(environment_files_in);
}

fn environment_files_in(image: &str) {
    let s = Sandbox::ready();
    let file = s.dir.join("env");
    fs::write(
        &file,
        "# a comment\nA=1\n\nB=two words\nUNSET_HERE\nC=x=y\n",
    )
    .unwrap();
    let env = s
        .run(&[
            "run",
            "--rm",
            "--env-file",
            path(&file),
            "-e",
            "A=over",
            image,
            "env",
        ])
        .ok();
    for line in ["A=over", "B=two words", "C=x=y"] {
        assert!(env.lines().any(|l| l == line), "{line}: {env}");
    }
    assert!(!env.contains("UNSET_HERE"), "{env}");
    fs::write(&file, "no name=1\n").unwrap();
    s.run(&["run", "--rm", "--env-file", path(&file), image])
        .fails(125, "variable 'no name' contains whitespaces");
    fs::remove_file(&file).unwrap();
    s.run(&["run", "--rm", "--env-file", path(&file), image])
        .fails(125, "no such file or directory");
}

#[test]
fn exposed_ports_are_published() {
    BOTH.into_iter().for_each(exposed_ports_are_published_in);
}

fn exposed_ports_are_published_in(image: &str) {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "--name",
        "web",
        "--expose",
        "80",
        "--expose",
        "7000-7001/udp",
        "-P",
        image,
        "serve",
        "80",
        "open",
    ])
    .ok();
    crate::both::serving(&s, "web");
    let ports = s.run(&["port", "web"]).ok();
    assert_eq!(ports.matches("0.0.0.0:").count(), 3, "{ports}");
    let address = s.run(&["port", "web", "80"]).ok();
    let port = address
        .lines()
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(
        crate::both::ask(&format!("127.0.0.1:{port}")).unwrap(),
        "open\n"
    );
    let seen = s.inspect("web");
    assert_eq!(seen["HostConfig"]["PublishAllPorts"], true);
    assert!(seen["Config"]["ExposedPorts"]["7001/udp"].is_object());
    s.run(&["rm", "-f", "web"]).ok();
    s.run(&["create", "--expose", "x", image])
        .fails(125, "invalid range format for --expose: x");
}

/// Looks for the limits where the kernel shows them.
fn felt(seen: &serde_json::Value) {
    let pid = seen["State"]["Pid"].as_i64().unwrap();
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .unwrap();
    assert!(files.contains("77") && files.contains("88"), "{files}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    let id = seen["Id"].as_str().unwrap();
    let value = |file: &str| {
        let (controller, name) = file.split_once('/').unwrap();
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{controller}/amphora/{id}/{name}"));
        text.map(|t| t.trim().to_owned()).ok()
    };
    if fs::exists("/sys/fs/cgroup/memory").unwrap() {
        let low = value("memory/memory.soft_limit_in_bytes");
        assert_eq!(low.as_deref(), Some("67108864"));
        assert_eq!(value("cpu/cpu.cfs_quota_us").as_deref(), Some("25000"));
        assert_eq!(value("cpu/cpu.shares").as_deref(), Some("300"));
        assert_eq!(value("cpuset/cpuset.cpus").as_deref(), Some("0"));
    }
}

#[test]
fn limits_reach_the_kernel() {
    BOTH.into_iter().for_each(limits_reach_the_kernel_in);
}

fn limits_reach_the_kernel_in(image: &str) {
    if !["memory", "cpu", "cpuset", "pids"]
        .into_iter()
        .all(has_controller)
    {
        return;
    }
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "--name",
        "tight",
        "-m",
        "128m",
        "--memory-reservation",
        "64m",
        "--memory-swap",
        "128m",
        "--cpu-shares",
        "300",
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "25000",
        "--cpuset-cpus",
        "0",
        "--cpuset-mems",
        "0",
        "--pids-limit",
        "99",
        "--oom-score-adj",
        "500",
        "--ulimit",
        "nofile=77:88",
        "--shm-size",
        "1m",
        image,
        "sleep",
        "600",
    ])
    .ok();
    let seen = s.inspect("tight");
    let host = &seen["HostConfig"];
    for (key, value) in [
        ("Memory", json!(128 << 20)),
        ("MemoryReservation", json!(64 << 20)),
        ("MemorySwap", json!(128 << 20)),
        ("CpuShares", json!(300)),
        ("CpuPeriod", json!(50_000)),
        ("CpuQuota", json!(25_000)),
        ("CpusetCpus", json!("0")),
        ("CpusetMems", json!("0")),
        ("PidsLimit", json!(99)),
        ("OomScoreAdj", json!(500)),
        ("ShmSize", json!(1 << 20)),
    ] {
        assert_eq!(host[key], value, "{key}");
    }
    felt(&seen);
    s.run(&["rm", "-f", "tight"]).ok();
}

/// Looks for the rates where the kernel shows them.
fn rates_are_felt(seen: &serde_json::Value) {
    let id = seen["Id"].as_str().unwrap();
    for (file, text) in [
        (
            "blkio/amphora/{id}/blkio.throttle.read_bps_device",
            " 1048576",
        ),
        (
            "blkio/amphora/{id}/blkio.throttle.write_bps_device",
            " 2097152",
        ),
        ("blkio/amphora/{id}/blkio.throttle.read_iops_device", " 30"),
        ("blkio/amphora/{id}/blkio.throttle.write_iops_device", " 40"),
        ("memory/amphora/{id}/memory.swappiness", "7"),
        (
            "memory/amphora/{id}/memory.oom_control",
            "oom_kill_disable 1",
        ),
    ] {
        let path = format!("/sys/fs/cgroup/{}", file.replace("{id}", id));
        let value = fs::read_to_string(&path).unwrap();
        assert!(value.contains(text), "{path}: {value}");
    }
}

#[test]
fn rates_of_devices_reach_the_kernel() {
    if !has_controller("blkio") || !has_controller("memory") {
        return;
    }
    let s = Sandbox::ready();
    let device = fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let path = format!("/dev/{}", entry.file_name().display());
            fs::exists(&path).unwrap_or(false).then_some(path)
        });
    let Some(device) = device else { return };
    let rate = |value: &str| format!("{device}:{value}");
    s.run(&[
        "run",
        "-d",
        "--name",
        "slow",
        "--device-read-bps",
        &rate("1mb"),
        "--device-write-bps",
        &rate("2mb"),
        "--device-read-iops",
        &rate("30"),
        "--device-write-iops",
        &rate("40"),
        "-m",
        "64m",
        "--memory-swappiness",
        "7",
        "--oom-kill-disable",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    let seen = s.inspect("slow");
    let host = &seen["HostConfig"];
    assert_eq!(
        host["BlkioDeviceReadBps"],
        json!([{ "Path": device, "Rate": 1 << 20 }])
    );
    assert_eq!(
        (&host["MemorySwappiness"], &host["OomKillDisable"]),
        (&json!(7), &json!(true))
    );
    rates_are_felt(&seen);
    s.run(&["rm", "-f", "slow"]).ok();
    s.run(&[
        "run",
        "--rm",
        "--device-read-bps",
        "/dev/null:1mb",
        "probe-linux",
    ])
    .fails(125, "/dev/null is not a block device");
}

/// Flags and a part of what is said to them.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["--blkio-weight-device", "/dev/sda:5"],
        "invalid rate for device: /dev/sda:5",
    ),
    (&["--gpus", "all"], "flag --gpus is not supported"),
    (&["--userns", "private"], "--userns: invalid USER mode"),
    (&["--uts", "x"], "--uts: invalid UTS mode"),
    (&["--pid", "x"], "--pid: invalid PID mode"),
    (&["--cgroupns", "x"], "--cgroupns: invalid CGROUP mode"),
    (&["--ipc", "x"], "invalid IPC mode: x"),
    (
        &["--uts", "host", "-h", "x"],
        "conflicting options: hostname and the UTS mode",
    ),
    (
        &["--security-opt", "apparmor=x"],
        "security option \"apparmor=x\" is not supported",
    ),
    (
        &["--security-opt", "label=type:x"],
        "security option \"label=type:x\" is not supported",
    ),
    (
        &["--security-opt", "magic=x"],
        "invalid --security-opt 2: \"magic=x\"",
    ),
    (
        &["--security-opt", "seccomp=/no/such"],
        "opening seccomp profile (/no/such) failed",
    ),
    (&["--device", "/dev/null:/x:q"], "bad mode specified: q"),
    (
        &["--device-cgroup-rule", "x"],
        "invalid device cgroup rule format: 'x'",
    ),
    (
        &["--sysctl", "kernel.panic=1"],
        "sysctl 'kernel.panic=1' is not allowed",
    ),
    (
        &["--network", "host", "--sysctl", "net.core.somaxconn=1"],
        "not allowed in host network namespace",
    ),
    (
        &["--oom-score-adj", "2000"],
        "Invalid value 2000, range for oom score adj is [-1000, 1000]",
    ),
    (
        &["--memory-swappiness", "200"],
        "Valid memory swappiness range is 0-100",
    ),
    (
        &["--memory-swap", "1g"],
        "You should always set the Memory limit when using Memoryswap limit",
    ),
    (
        &["--cpus", "0.5", "--cpu-quota", "5000"],
        "Nano CPUs and CPU Quota cannot both be set",
    ),
    (
        &["--cpuset-cpus", "4000"],
        "Requested CPUs are not available",
    ),
    (
        &["--blkio-weight", "5"],
        "Range of blkio weight is from 10 to 1000",
    ),
    (
        &["--device-read-bps", "sda:1"],
        "bad format for device path: sda:1",
    ),
    (&["--group-add", "nosuch"], "Unable to find group nosuch"),
    (&["--ulimit", "bogus=1"], "invalid ulimit type: bogus"),
    (
        &["--storage-opt", "size=1g"],
        "flag --storage-opt is not supported",
    ),
    (
        &["--volume-driver", "x"],
        "flag --volume-driver is not supported",
    ),
];

#[test]
fn what_is_refused_is_named() {
    BOTH.into_iter().for_each(what_is_refused_is_named_in);
}

fn what_is_refused_is_named_in(image: &str) {
    let s = Sandbox::ready();
    for (flags, text) in REFUSED {
        let mut args = vec!["run", "--rm"];
        args.extend(*flags);
        args.push(image);
        s.run(&args).fails(125, text);
    }
}

#[test]
fn what_a_guest_cannot_have_is_refused() {
    let s = Sandbox::ready();
    for (flags, text) in [
        (
            &["--privileged"][..],
            "--privileged is not supported for Wasm containers",
        ),
        (
            &["--device", "/dev/null"],
            "--device is not supported for Wasm containers",
        ),
        (
            &["--sysctl", "net.core.somaxconn=1"],
            "--sysctl is not supported for Wasm containers",
        ),
        (
            &["--device-cgroup-rule", "c 1:3 r"],
            "--device-cgroup-rule is not supported for Wasm containers",
        ),
    ] {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.push("probe-wasm");
        s.run(&args).fails(125, text);
    }
    for flags in [
        &["--pid", "host"][..],
        &["--ipc", "host"],
        &["--uts", "host"],
        &["--cgroupns", "host"],
        &["--group-add", "7"],
    ] {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.push("probe-wasm");
        assert_eq!(s.run(&args).ok(), "Hello from Wasm!\n", "{flags:?}");
    }
}

#[test]
fn privileged_sees_devices_and_may_everything() {
    let s = busybox();
    let look = "grep -E '^(CapBnd|Seccomp:|NoNew)' /proc/self/status; ls /dev; \
        grep -c 'proc.*ro,' /proc/self/mounts; grep ' /sys ' /proc/self/mounts; \
        busybox mkdir /m && mount -t tmpfs x /m && echo mounted";
    let seen = sh(&s, &["--privileged"], look);
    assert!(seen.contains("Seccomp:\t0"), "{seen}");
    assert!(seen.contains("mounted"), "{seen}");
    assert!(
        seen.lines()
            .any(|l| l == "kmsg" || l == "mem" || l == "vda"),
        "{seen}"
    );
    assert!(
        seen.contains("sysfs rw,") || seen.contains("/sys sysfs rw"),
        "{seen}"
    );
    s.run(&["create", "--name", "look", "--privileged", "bb"])
        .ok();
    let host = s.inspect("look")["HostConfig"].clone();
    assert_eq!(
        (&host["Privileged"], &host["MaskedPaths"]),
        (&json!(true), &json!([]))
    );
    s.run(&["rm", "look"]).ok();
    // Without it: none of that.
    let seen = sh(&s, &[], look.rsplit_once("; busybox").unwrap().0);
    assert!(
        seen.contains("Seccomp:\t2") && !seen.contains("kmsg"),
        "{seen}"
    );
}

#[test]
fn devices_are_given_one_by_one() {
    let s = busybox();
    let read = "(: < /dev/given) && echo read; stat -c %t:%T /dev/given";
    let fuse = "/dev/fuse:/dev/given:r";
    assert_eq!(sh(&s, &["--device", fuse], read), "read\na:e5\n");
    let write = "(: > /dev/given) || echo refused";
    assert_eq!(sh(&s, &["--device", fuse], write), "refused\n");
    s.run(&["run", "--rm", "--device", "/dev/no", "bb", "true"]).fails(
        125,
        "error gathering device information while adding custom device \"/dev/no\": no such file or directory",
    );
    // A rule without a node.
    let made = "mknod /tmp/n c 10 229 && (: < /tmp/n) && echo opened";
    let rule = ["--device-cgroup-rule", "c 10:229 rw"];
    assert_eq!(sh(&s, &rule, made), "opened\n");
    let denied = s.run(&["run", "--rm", "bb", "sh", "-c", made]);
    assert!(denied.stderr.contains("not permitted"), "{denied:?}");
    s.run(&["create", "--name", "look", "--device", "/dev/fuse", "bb"])
        .ok();
    let devices = s.inspect("look")["HostConfig"]["Devices"].clone();
    let wanted = json!([{
        "PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"
    }]);
    assert_eq!(devices, wanted);
    s.run(&["rm", "look"]).ok();
    s.run(&[
        "run",
        "--rm",
        "--device",
        "/dev/null:/dev/x",
        "bb",
        "ls",
        "/dev/x",
    ])
    .ok();
}

#[test]
fn namespaces_are_shared_on_request() {
    let s = busybox();
    let own = |kind: &str| {
        let link = fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
        format!("{}\n", link.display())
    };
    sh(&s, &["--userns", "host"], "true");
    for (flag, kind) in [
        ("--pid", "pid"),
        ("--ipc", "ipc"),
        ("--uts", "uts"),
        ("--cgroupns", "cgroup"),
    ] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(sh(&s, &[flag, "host"], &link), own(kind), "{flag}");
        if flag != "--pid" && flag != "--uts" {
            assert_ne!(sh(&s, &[flag, "private"], &link), own(kind), "{flag}");
        }
    }
}

#[test]
fn namespaces_of_another_container_are_joined() {
    let s = busybox();
    s.run(&[
        "run",
        "-d",
        "--name",
        "donor",
        "--ipc",
        "shareable",
        "bb",
        "sh",
        "-c",
        "echo shared > /dev/shm/x; sleep 600",
    ])
    .ok();
    let pid = s.inspect("donor")["State"]["Pid"].as_i64().unwrap();
    let theirs = |kind: &str| {
        format!(
            "{}\n",
            fs::read_link(format!("/proc/{pid}/ns/{kind}"))
                .unwrap()
                .display()
        )
    };
    let joined = sh(
        &s,
        &["--pid", "container:donor"],
        "readlink /proc/self/ns/pid; ps | grep -c 'sleep 600'",
    );
    assert!(joined.starts_with(&theirs("pid")), "{joined}");
    crate::sandbox::wait_until("the file", std::time::Duration::from_secs(10), || {
        let out = s.run(&[
            "run",
            "--rm",
            "--ipc",
            "container:donor",
            "bb",
            "cat",
            "/dev/shm/x",
        ]);
        out.stdout == "shared\n"
    });
    s.run(&["run", "-d", "--name", "closed", "bb", "sleep", "600"])
        .ok();
    s.run(&["run", "--rm", "--ipc", "container:closed", "bb", "true"])
        .fails(
            125,
            "non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
        );
    s.run(&["rm", "-f", "closed", "donor"]).ok();
    assert_eq!(
        sh(
            &s,
            &["--ipc", "none"],
            "grep -c ' /dev/shm ' /proc/self/mounts; true"
        ),
        "0\n"
    );
    s.run(&["run", "--rm", "--pid", "container:ghost", "bb", "true"])
        .fails(125, "No such container: ghost");
}

#[test]
fn users_groups_names_and_parameters() {
    let s = busybox();
    let id = sh(
        &s,
        &["-u", "1000", "--group-add", "wheel", "--group-add", "4242"],
        "id -G",
    );
    let mut groups: Vec<&str> = id.split_whitespace().collect();
    groups.sort_unstable();
    assert!(groups.contains(&"10") && groups.contains(&"4242"), "{id}");
    let name =
        "hostname; cat /proc/sys/kernel/domainname; grep box /etc/hosts | cut -f 2 | head -n 1";
    let seen = sh(&s, &["-h", "box", "--domainname", "example.org"], name);
    assert_eq!(seen, "box\nexample.org\nbox.example.org box\n");
    let seen = sh(
        &s,
        &[
            "--sysctl",
            "net.core.somaxconn=1234",
            "--sysctl",
            "kernel.msgmax=9000",
        ],
        "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax",
    );
    assert_eq!(seen, "1234\n9000\n");
    let sizes = "busybox df -k /dev/shm /t | busybox awk 'NR>1 {print $2}'; stat -c %a /t; id -u";
    let seen = sh(
        &s,
        &["--shm-size", "2m", "--tmpfs", "/t:size=1m,mode=750,uid=5"],
        sizes,
    );
    assert_eq!(seen, "2048\n1024\n750\n0\n");
    let run = sh(
        &s,
        &["--tmpfs", "/t:exec"],
        "busybox cp /bin/busybox /t/ && /t/busybox echo ran",
    );
    assert_eq!(run, "ran\n");
    let denied = s.run(&[
        "run",
        "--rm",
        "--tmpfs",
        "/t",
        "bb",
        "sh",
        "-c",
        "busybox cp /bin/busybox /t/ && /t/busybox echo ran",
    ]);
    assert_ne!(denied.code, 0);
    let plain = s
        .run(&["run", "--rm", "--entrypoint", "", "bb", "echo", "bare"])
        .ok();
    assert_eq!(plain, "bare\n");
}

#[test]
fn seccomp_profiles_and_hidden_paths() {
    let s = busybox();
    let file = s.dir.join("profile.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }],
    });
    fs::write(&file, profile.to_string()).unwrap();
    let option = format!("seccomp={}", path(&file));
    let out = s.run(&[
        "run",
        "--rm",
        "--security-opt",
        &option,
        "bb",
        "mkdir",
        "/x",
    ]);
    assert!(out.stderr.contains("not implemented"), "{out:?}");
    fs::write(&file, "{ not json").unwrap();
    s.run(&["run", "--rm", "--security-opt", &option, "bb", "true"])
        .fails(125, "compacting json for seccomp profile");
    fs::remove_file(&file).unwrap();
    let seen = sh(
        &s,
        &["--security-opt", "systempaths=unconfined"],
        "grep -c ' /proc/' /proc/self/mounts; true",
    );
    assert_eq!(seen, "0\n");
    for option in [
        "apparmor=unconfined",
        "label=disable",
        "seccomp=builtin",
        "no-new-privileges",
    ] {
        s.run(&["run", "--rm", "--security-opt", option, "bb", "true"])
            .ok();
    }
}

#[test]
fn binds_keep_their_options() {
    let s = busybox();
    let dir = s.dir.join("bound");
    fs::create_dir(&dir).unwrap();
    let bind = format!("{}:/b:ro", path(&dir));
    s.run(&[
        "create",
        "--name",
        "look",
        "-v",
        &bind,
        "-v",
        "vol:/v",
        "--tmpfs",
        "/t:size=1m",
        "bb",
    ])
    .ok();
    let host = s.inspect("look")["HostConfig"].clone();
    assert_eq!(host["Binds"], json!([bind, "vol:/v"]));
    assert_eq!(host["Tmpfs"], json!({ "/t": "size=1m" }));
    s.run(&["rm", "look"]).ok();
    s.run(&["volume", "rm", "vol"]).ok();
    // What the host mounts later arrives where that was asked for.
    rustix::mount::mount(
        "tmpfs",
        &dir,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    rustix::mount::mount_change(&dir, rustix::mount::MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(dir.join("late")).unwrap();
    let slave = format!(
        "type=bind,src={},dst=/b,bind-propagation=rslave",
        path(&dir)
    );
    s.run(&[
        "run", "-d", "--name", "slave", "--mount", &slave, "bb", "sleep", "600",
    ])
    .ok();
    let private = format!("type=bind,src={},dst=/b", path(&dir));
    s.run(&[
        "run", "-d", "--name", "private", "--mount", &private, "bb", "sleep", "600",
    ])
    .ok();
    rustix::mount::mount(
        "tmpfs",
        dir.join("late"),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    for (name, count) in [("slave", 1), ("private", 0)] {
        let pid = s.inspect(name)["State"]["Pid"].as_i64().unwrap();
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert_eq!(
            mounts.matches(" /b/late ").count(),
            count,
            "{name}: {mounts}"
        );
    }
    s.run(&["rm", "-f", "slave", "private"]).ok();
    rustix::mount::unmount(dir.join("late"), rustix::mount::UnmountFlags::empty()).unwrap();
    rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::empty()).unwrap();
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn quiet_and_terminal_of_create() {
    let s = busybox();
    let id = s
        .run(&["create", "-t", "-a", "stdout", "--name", "made", "bb"])
        .ok();
    let seen = s.inspect("made");
    assert_eq!(seen["Id"], id.trim_end());
    assert_eq!(seen["Config"]["Tty"], true);
    assert_eq!(seen["Config"]["AttachStdout"], true);
    assert_eq!(seen["Config"]["AttachStderr"], false);
    s.run(&["create", "--name", "plain", "bb"]).ok();
    let plain = s.inspect("plain")["Config"].clone();
    assert_eq!(plain["Tty"], false);
    assert_eq!(plain["AttachStderr"], true);
    s.run(&["create", "-a", "stdfoo", "bb"])
        .fails(125, "valid streams are STDIN, STDOUT and STDERR");
    s.run(&["rm", "made", "plain"]).ok();
    // Of a pull nothing is said when so asked.
    let image = "localhost:5000/web";
    let registry = Registry::start(&s);
    registry.push("web", "latest", &busybox_image("web").blobs());
    for (words, quiet) in [
        (&["run", "--rm", image, "true"][..], false),
        (&["run", "--rm", "--quiet", image, "true"], true),
        (&["create", image], false),
        (&["create", "--quiet", image], true),
    ] {
        let out = s.run(words);
        let told = ["Unable to find image", "Pull complete"].map(|t| out.stderr.contains(t));
        assert_eq!(told, [!quiet; 2], "{words:?}: {out:?}");
        assert_eq!(out.stderr.is_empty(), quiet, "{words:?}: {out:?}");
        let id = out.ok();
        if words[0] == "create" {
            s.run(&["rm", id.trim_end()]).ok();
        }
        s.run(&["rmi", image]).ok();
    }
}
