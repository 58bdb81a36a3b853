//! What only a machine shows whose first process is systemd and whose cgroups are pure v2. It is
//! the tests' own: they change its configuration (`cargo xtask machine`).

mod limits;
mod runtimes;
mod sessions;
mod shares;

use std::process::Command;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::fixtures::{busybox_image, probe, probe_image};
use crate::sandbox::{Output, finish, path, tool, wait_until};

/// Set in the machine.
const HERE: &str = "AMPHORA_MACHINE";
/// Emulation is slow.
const SLOW: Duration = Duration::from_secs(60);
const IMAGES: [&str; 2] = ["probe-linux", "probe-wasm"];

/// Processes of a service or a session that is ended: they must go with it.
fn control(number: u32) -> String {
    format!("sleep {number} & ")
}

fn runs(words: &str) -> bool {
    let output = Command::new("pgrep").args(["-fx", words]).output();
    output.unwrap().status.success()
}

/// The machine, with the images loaded into the usual roots.
struct Machine(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Machine {
    /// `None`, loudly, anywhere else.
    fn here() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        static LOAD: Once = Once::new();
        if std::env::var_os(HERE).is_none() {
            let test = std::thread::current().name().unwrap_or("?").to_owned();
            crate::sandbox::for_machine(&test);
            return None;
        }
        let machine = Self(TURN.lock().unwrap_or_else(PoisonError::into_inner));
        LOAD.call_once(|| machine.load());
        Some(machine)
    }

    fn load(&self) {
        for name in ["amphora", "amphora-runc"] {
            let link = format!("/usr/local/bin/{name}");
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_amphora"), link).unwrap();
        }
        let archive = std::env::temp_dir().join("image.tar");
        for image in [probe_image(), busybox_image("bb")] {
            image.write_oci(&archive);
            self.run(&["load", "-q", "-i", path(&archive)]).ok();
        }
        std::fs::remove_file(&archive).unwrap();
        let wasm = probe("wasm32-wasip2");
        self.run(&["image", "add", path(&wasm), "-t", "probe-wasm"])
            .ok();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new("/usr/local/bin/amphora");
        command.args(args).stdin(std::process::Stdio::null());
        finish(command)
    }

    /// Starts a container that sleeps.
    fn sleeper(&self, name: &str, image: &str, flags: &[&str]) {
        let args = ["run", "-d", "--name", name];
        self.run(&[&args[..], flags, &[image, "sleep", "600"]].concat())
            .ok();
    }

    fn inspect(&self, name: &str) -> Value {
        let text = self.run(&["inspect", name]).ok();
        serde_json::from_str::<Vec<Value>>(&text).unwrap().remove(0)
    }

    fn pid(&self, name: &str) -> i64 {
        let state = &self.inspect(name)["State"];
        assert_eq!(state["Status"], "running", "{state}");
        state["Pid"].as_i64().unwrap()
    }

    /// A file of a container's cgroup.
    fn file(&self, name: &str, file: &str) -> String {
        file_of(self.pid(name), file)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let all = self.run(&["ps", "-aq"]);
        for id in all.stdout.split_whitespace() {
            let _ = self.run(&["rm", "-f", id]);
        }
    }
}

/// The cgroup of a process.
fn cgroup_of(pid: i64) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = text.trim().strip_prefix("0::");
    own.unwrap_or_else(|| panic!("no pure v2: {text}"))
        .to_owned()
}

/// A file of the cgroup of a process.
fn file_of(pid: i64, file: &str) -> String {
    let path = format!("/sys/fs/cgroup{}/{file}", cgroup_of(pid));
    let text = std::fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
        .trim()
        .to_owned()
}

/// The machine's disk: its node, and its number as cgroups name it.
fn disk() -> (&'static str, String) {
    let number = std::fs::read_to_string("/sys/block/nvme0n1/dev").unwrap();
    ("/dev/nvme0n1", number.trim().to_owned())
}

/// Writes a unit and has systemd read it.
fn unit(name: &str, text: &str) {
    std::fs::write(format!("/etc/systemd/system/{name}"), text).unwrap();
    tool(&["systemctl", "daemon-reload"]);
}

#[test]
fn the_machine_is_what_these_tests_need() {
    let Some(_machine) = Machine::here() else {
        return;
    };
    let first = std::fs::read_to_string("/proc/1/comm").unwrap();
    assert_eq!(first.trim(), "systemd");
    let have = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    for name in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"] {
        assert!(have.split_whitespace().any(|word| word == name), "{have}");
    }
    wait_until("the login manager", SLOW, || {
        let output = Command::new("loginctl").arg("list-sessions").output();
        output.unwrap().status.success()
    });
}
