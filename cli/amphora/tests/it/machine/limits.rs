//! Limits of containers, in the kernel's files and as they are felt.

use super::{IMAGES, Machine, disk};
use crate::sandbox::tool;

#[test]
fn limits_stand_in_the_files_of_v2() {
    let Some(m) = Machine::here() else { return };
    let (node, number) = disk();
    for image in IMAGES {
        let flags = [
            "-m=64m",
            "--memory-swap=64m",
            "--memory-reservation=32m",
            "--pids-limit=50",
            "--cpus=0.5",
            "--cpu-shares=512",
            "--cpuset-cpus=1",
            "--cpuset-mems=0",
            &format!("--device-write-bps={node}:1mb"),
            &format!("--device-read-iops={node}:30"),
        ];
        m.sleeper("limited", image, &flags);
        for (file, value) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.low", "33554432"),
            ("pids.max", "50"),
            ("cpu.max", "50000 100000"),
            ("cpuset.cpus", "1"),
            ("cpuset.cpus.effective", "1"),
            ("cpuset.mems", "0"),
        ] {
            assert_eq!(m.file("limited", file), value, "{image}: {file}");
        }
        assert_ne!(m.file("limited", "cpu.weight"), "100");
        let rates = m.file("limited", "io.max");
        for part in [&number[..], "rbps=max", "wbps=1048576", "riops=30"] {
            assert!(rates.contains(part), "{image}: {rates}");
        }
        m.run(&["update", "-m", "96m", "--memory-swap", "96m", "limited"])
            .ok();
        assert_eq!(m.file("limited", "memory.max"), "100663296");
        m.run(&["pause", "limited"]).ok();
        assert!(m.run(&["ps"]).ok().contains("(Paused)"));
        let pid = m.inspect("limited")["State"]["Pid"].as_i64().unwrap();
        assert!(super::file_of(pid, "cgroup.events").contains("frozen 1"));
        m.run(&["unpause", "limited"]).ok();
        m.run(&["rm", "-f", "limited"]).ok();
    }
    m.sleeper("limited", "bb", &["-m", "64m"]);
    let seen = m.run(&["exec", "limited", "cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(seen.ok(), "67108864\n");
    let own = m.run(&["exec", "limited", "cat", "/proc/self/cgroup"]);
    assert_eq!(own.ok(), "0::/\n");
}

#[test]
fn who_takes_too_much_memory_is_killed_and_told_of() {
    let Some(m) = Machine::here() else { return };
    let args = ["run", "-m", "64m", "--name", "hog", "probe-linux"];
    let out = m.run(&[&args[..], &["alloc", "256"]].concat());
    assert_eq!(out.code, 137, "{out:?}");
    let state = m.inspect("hog")["State"].clone();
    assert_eq!(state["OOMKilled"], true);
    assert_eq!(state["ExitCode"], 137);
}

#[test]
fn a_slow_disk_is_felt() {
    let Some(m) = Machine::here() else { return };
    let (node, _) = disk();
    let device = format!("--device={node}:{node}:r");
    // By the container's own clock: its start is not what is measured.
    let script = format!(
        "read a _ < /proc/uptime; dd if={node} of=/dev/null bs=1M count=4 iflag=direct && \
         read b _ < /proc/uptime && echo $a $b"
    );
    let seconds = |flags: &[&str]| -> f64 {
        let words = ["bb", "sh", "-c", &script];
        let said = m.run(&[&["run", "--rm", &device], flags, &words].concat());
        let said = said.ok();
        let (from, to) = said.trim().split_once(' ').unwrap();
        to.parse::<f64>().unwrap() - from.parse::<f64>().unwrap()
    };
    let free = seconds(&[]);
    let slow = seconds(&[&format!("--device-read-bps={node}:256kb")]);
    assert!(slow > 12.0 && slow > 2.0 * free, "{slow}, without {free}");
}

#[test]
fn systemd_takes_no_setting_away() {
    let Some(m) = Machine::here() else { return };
    let (node, number) = disk();
    let flags = [
        "-m=64m",
        "--pids-limit=50",
        "--cpus=0.5",
        "--cpuset-cpus=1",
        &format!("--device-write-bps={node}:1mb"),
        "--cap-add=MKNOD",
    ];
    m.sleeper("kept", "bb", &flags);
    let files = [
        "memory.max",
        "pids.max",
        "cpu.max",
        "cpuset.cpus.effective",
        "io.max",
        "cgroup.controllers",
    ];
    let all = || files.map(|file| m.file("kept", file));
    let (major, minor) = number.split_once(':').unwrap();
    let script = format!(
        "rm -f /tmp/d; mknod /tmp/d b {major} {minor} && dd if=/tmp/d of=/dev/null count=1"
    );
    let device_is_refused = || {
        let out = m.run(&["exec", "kept", "sh", "-c", &script]);
        assert!(out.stderr.contains("not permitted"), "{out:?}");
    };
    let (before, pid) = (all(), m.pid("kept"));
    device_is_refused();
    for words in [
        &["systemctl", "daemon-reload"][..],
        &["systemctl", "daemon-reexec"],
        // Units that want controllers, and want them no more: what systemd turns off at the root.
        &[
            "systemd-run",
            "--wait",
            "-q",
            "-p",
            "MemoryMax=100M",
            "-p",
            "IOWeight=50",
            "-p",
            "AllowedCPUs=0",
            "-p",
            "CPUWeight=50",
            "-p",
            "TasksMax=20",
            "-p",
            "DevicePolicy=closed",
            "true",
        ],
        &["systemctl", "set-property", "system.slice", "CPUWeight=200"],
        &["systemctl", "revert", "system.slice"],
        &["systemctl", "daemon-reload"],
    ] {
        tool(words);
        assert_eq!(all(), before, "{words:?}");
        device_is_refused();
    }
    assert_eq!(m.pid("kept"), pid);
}

#[test]
fn the_engine_works_in_a_delegated_subtree() {
    let Some(_machine) = Machine::here() else {
        return;
    };
    // A cgroup with processes that is the root of all that is seen: as in a container.
    let script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && cat /proc/self/cgroup && \
                  amphora run --rm -m 64m --cpuset-cpus 1 --name inside bb sh -c \
                  'cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpuset.cpus.effective'";
    let said = tool(&[
        "systemd-run",
        "--wait",
        "--pipe",
        "-q",
        "-p",
        "Delegate=yes",
        "unshare",
        "--cgroup",
        "--mount",
        "--propagation=private",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(said, "0::/\n67108864\n1\n");
}
