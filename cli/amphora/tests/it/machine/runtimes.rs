//! runc's command line on pure v2: the same case for ours and, so that a wrong case is seen, for the
//! runc that is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Machine, SLOW, disk, file_of};
use crate::sandbox::{Output, finish, wait_until};

macro_rules! calibrated {
    ($($name:ident),* $(,)?) => {
        mod ours { $( #[test] fn $name() { super::case("/usr/local/bin/amphora-runc", super::$name); } )* }
        mod runc { $( #[test] fn $name() { super::case("/usr/sbin/runc", super::$name); } )* }
    };
}

calibrated!(
    all_limits_stand_in_the_files_of_v2,
    a_container_is_frozen_and_changed,
    a_program_over_its_memory_is_killed,
    nothing_of_a_refused_limit_is_left,
);

const PARENT: &str = "/sys/fs/cgroup/machine-test";

/// A bundle and the runtime that it is for.
struct Bundle {
    program: &'static str,
    dir: PathBuf,
}

fn case(program: &'static str, run: fn(&Bundle)) {
    let Some(_machine) = Machine::here() else {
        return;
    };
    let dir = std::env::temp_dir().join("bundle");
    let rootfs = dir.join("rootfs");
    for below in ["bin", "proc", "sys", "dev"] {
        std::fs::create_dir_all(rootfs.join(below)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "sleep", "dd"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let bundle = Bundle { program, dir };
    run(&bundle);
    assert!(!Path::new(PARENT).join("case").exists(), "a cgroup is left");
    std::fs::remove_dir_all(&bundle.dir).unwrap();
    // runc keeps the parent only while something is in it.
    let _ = std::fs::remove_dir(PARENT);
}

impl Bundle {
    fn write(&self, args: &[&str], resources: &Value) {
        // What runc itself says a bundle is.
        let _ = std::fs::remove_file(self.dir.join("config.json"));
        let mut spec = Command::new("/usr/sbin/runc");
        spec.arg("spec").current_dir(&self.dir);
        finish(spec).ok();
        let file = self.dir.join("config.json");
        let mut spec: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(args);
        spec["linux"]["cgroupsPath"] = "/machine-test/case".into();
        for (name, value) in resources.as_object().unwrap() {
            spec["linux"]["resources"][name] = value.clone();
        }
        std::fs::write(&file, spec.to_string()).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(self.program);
        command
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        finish(command)
    }

    /// The same for what leaves a container behind, which must hold nothing of the test's open.
    fn detached(&self, args: &[&str]) {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let mut command = Command::new(self.program);
        command.args(args).current_dir(&self.dir);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        let status = command.stderr(log).status().unwrap();
        let said = std::fs::read_to_string(self.dir.join("log")).unwrap();
        assert!(status.success(), "{said}");
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.run(&["state", "case"]).ok()).unwrap()
    }

    fn file(&self, name: &str) -> String {
        file_of(self.state()["pid"].as_i64().unwrap(), name)
    }
}

fn all_limits_stand_in_the_files_of_v2(b: &Bundle) {
    let (_, number) = disk();
    let (major, minor) = number.split_once(':').unwrap();
    let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    b.write(
        &["sleep", "600"],
        &json!({
            "memory": {"limit": 67_108_864, "swap": 67_108_864, "reservation": 33_554_432},
            "cpu": {"quota": 20_000, "period": 100_000, "shares": 512, "cpus": "1", "mems": "0"},
            "pids": {"limit": 20},
            "blockIO": {"throttleReadBpsDevice":
                [{"major": major, "minor": minor, "rate": 1_048_576}]},
            "unified": {"memory.high": "50331648", "memory.oom.group": "1"},
        }),
    );
    b.detached(&["create", "case"]);
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.low", "33554432"),
        ("memory.high", "50331648"),
        ("memory.oom.group", "1"),
        ("cpu.max", "20000 100000"),
        ("cpuset.cpus", "1"),
        ("cpuset.cpus.effective", "1"),
        ("cpuset.mems", "0"),
        ("pids.max", "20"),
    ] {
        assert_eq!(b.file(file), value, "{file}");
    }
    assert_ne!(b.file("cpu.weight"), "100");
    let rates = b.file("io.max");
    assert!(
        rates.contains(&number) && rates.contains("rbps=1048576"),
        "{rates}"
    );
    b.run(&["start", "case"]).ok();
    let seen = b.run(&["exec", "case", "cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(seen.ok(), "67108864\n");
    assert_eq!(
        b.run(&["exec", "case", "cat", "/proc/self/cgroup"]).ok(),
        "0::/\n"
    );
    b.run(&["delete", "-f", "case"]).ok();
}

fn a_container_is_frozen_and_changed(b: &Bundle) {
    b.write(&["sleep", "600"], &json!({"pids": {"limit": 20}}));
    b.detached(&["run", "-d", "case"]);
    b.run(&["pause", "case"]).ok();
    assert_eq!(b.state()["status"], "paused");
    assert!(b.file("cgroup.events").contains("frozen 1"));
    b.run(&["resume", "case"]).ok();
    assert!(b.file("cgroup.events").contains("frozen 0"));
    b.run(&[
        "update",
        "--memory",
        "83886080",
        "--pids-limit",
        "9",
        "case",
    ])
    .ok();
    assert_eq!(b.file("memory.max"), "83886080");
    assert_eq!(b.file("pids.max"), "9");
    b.run(&["update", "--cpuset-cpus", "0", "case"]).ok();
    assert_eq!(b.file("cpuset.cpus.effective"), "0");
    b.run(&["kill", "case", "KILL"]).ok();
    wait_until("its end", SLOW, || b.state()["status"] == "stopped");
    b.run(&["delete", "case"]).ok();
}

fn a_program_over_its_memory_is_killed(b: &Bundle) {
    let limit = json!({"memory": {"limit": 33_554_432, "swap": 33_554_432}});
    b.write(&["dd", "if=/dev/zero", "of=/dev/null", "bs=64M"], &limit);
    assert_eq!(b.run(&["run", "case"]).code, 137);
}

fn nothing_of_a_refused_limit_is_left(b: &Bundle) {
    b.write(&["sleep", "600"], &json!({"cpu": {"cpus": "4000"}}));
    let said = b.run(&["run", "case"]);
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.stderr.contains("cpus"), "{said:?}");
    b.write(&["sleep", "600"], &json!({"unified": {"no.such": "1"}}));
    assert_ne!(b.run(&["run", "case"]).code, 0);
}
