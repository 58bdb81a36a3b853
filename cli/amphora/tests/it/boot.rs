//! A reboot, as far as a test can have one: what a container was and what comes back, the unit
//! that brings it back, and a service that ends without its containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sandbox::{Sandbox, finish, path, tool, wait_until};
use crate::supervisor::kill;

const SLOW: Duration = Duration::from_secs(20);
const IMAGES: [&str; 2] = ["probe-linux", "probe-wasm"];

pub(crate) fn id(s: &Sandbox, name: &str) -> String {
    s.inspect(name)["Id"].as_str().unwrap().to_owned()
}

pub(crate) fn data(s: &Sandbox, id: &str) -> PathBuf {
    s.root().join("containers").join(id)
}

fn field(s: &Sandbox, name: &str, key: &str) -> String {
    let value = s.inspect(name)["State"][key].clone();
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn status(s: &Sandbox, name: &str) -> String {
    field(s, name, "Status")
}

fn time(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

/// Removes the cgroups of a container, whose processes are gone.
fn remove_cgroups(id: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).unwrap().flatten().map(|e| e.path());
    for hierarchy in below.chain([root.to_owned()]) {
        for parent in ["amphora", "amphora-devices"] {
            let dir = hierarchy.join(parent).join(id);
            wait_until("the cgroup to be empty", SLOW, || {
                fs::remove_dir(&dir).is_ok() || !dir.exists()
            });
        }
    }
}

/// The power fails, and comes back: no process, no cgroup, no link, no rule, no run directory.
pub(crate) fn power_cut(s: &Sandbox) {
    let containers = s.run_root().join("containers");
    let mut ids = Vec::new();
    for entry in fs::read_dir(&containers).unwrap().flatten() {
        let Ok(state) = fs::read(entry.path().join("state")) else {
            continue;
        };
        let number = |at: usize| i32::from_le_bytes(state[at..at + 4].try_into().unwrap());
        // The supervisor first: it must not see how its container ends.
        for pid in [number(24), number(12)] {
            if pid > 0 && Path::new(&format!("/proc/{pid}")).exists() {
                kill(pid);
            }
        }
        ids.push(entry.file_name().into_string().unwrap());
    }
    ids.iter().for_each(|id| remove_cgroups(id));
    s.settle();
    fs::remove_dir_all(s.run_root()).unwrap();
    another_boot(s);
    let _ = std::process::Command::new("ip")
        .args(["link", "del", "amphora0"])
        .output();
    tool(&["nft", "flush", "ruleset"]);
}

/// Lets the data root look as if it was last used in another boot.
fn another_boot(s: &Sandbox) {
    let text = format!("another boot\n{}\n", s.run_root().display());
    fs::write(s.root().join("boot"), text).unwrap();
}

fn names(s: &Sandbox) -> Vec<String> {
    let out = s.run(&["ps", "-a", "--format", "{{.Names}}"]).ok();
    let mut names: Vec<String> = out.lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn a_power_cut_is_how_running_containers_ended() {
    let s = Sandbox::loaded();
    for image in IMAGES {
        let sleeper = |name: &str, more: &[&str]| {
            let args = [
                &["run", "-d", "--name", name],
                more,
                &[image, "sleep", "600"],
            ]
            .concat();
            s.run(&args).ok();
        };
        sleeper("plain", &["-p", "8094:80"]);
        sleeper("goes", &["--rm", "-v", "/anonymous"]);
        s.run(&["create", "--name", "made", image]).ok();
        s.run(&["run", "--name", "ended", image, "exit", "3"]);
        let ended = s.inspect("ended")["State"].clone();
        // Twice: the first end is not the last one.
        s.run(&["run", "-d", "--name", "twice", image, "sleep", "600"])
            .ok();
        s.run(&["stop", "-t", "0", "twice"]).ok();
        s.run(&["start", "twice"]).ok();
        // Files were copied: it ran no more than before.
        s.run(&["cp", "made:/etc/hosts", path(&s.dir.join("copy"))])
            .ok();
        fs::remove_file(s.dir.join("copy")).unwrap();
        let started = field(&s, "plain", "StartedAt");
        power_cut(&s);

        assert_eq!(names(&s), ["ended", "made", "plain", "twice"]);
        assert_eq!(status(&s, "made"), "created");
        assert_eq!(s.inspect("ended")["State"], ended);
        for name in ["plain", "twice"] {
            assert_eq!(status(&s, name), "exited", "{name}");
            assert_eq!(field(&s, name, "ExitCode"), "255");
            assert_eq!(
                field(&s, name, "Error"),
                "the machine went down while the container ran"
            );
        }
        // Before the cut another clock told it than after.
        let apart = time(&field(&s, "plain", "StartedAt")).duration_since(time(&started));
        assert!(apart.unsigned_abs() < Duration::from_secs(10), "{apart}");
        assert!(s.run(&["ps", "-a"]).ok().contains("Exited (255)"));
        assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "");
        assert_eq!(s.run(&["logs", "plain"]).ok(), "sleeping\n");
        // Without a policy nothing comes back by itself; by hand all do, and their ports.
        assert_eq!(s.run(&["system", "start"]).ok(), "");
        for name in ["plain", "twice", "made"] {
            s.run(&["start", name]).ok();
        }
        sleeper("goes", &["--rm"]);
        assert_eq!(status(&s, "plain"), "running");
        s.run(&["stop", "-t", "0", "plain"]).ok();
        assert_ne!(field(&s, "plain", "ExitCode"), "255");
        for name in names(&s) {
            s.run(&["rm", "-f", &name]).ok();
        }
    }
}

#[test]
fn what_runs_is_not_taken_for_cut_off() {
    let s = Sandbox::loaded();
    for image in IMAGES {
        s.run(&["run", "-d", "--name", "kept", image, "sleep", "600"])
            .ok();
        s.run(&["run", "-d", "--rm", "--name", "goes", image, "sleep", "600"])
            .ok();
        // By way of another run root nothing of it is seen.
        let other = s.dir.join("other-run");
        let flag = format!("--run-root={}", path(&other));
        let said = s.run(&[&flag, "ps", "-a"]).fails(1, "runs by way of");
        assert!(said.contains(path(&s.run_root())), "{said}");
        // A mark that is lost, and even another boot, judge nothing that lives.
        fs::remove_file(s.run_root().join("settled")).unwrap();
        assert_eq!(names(&s), ["goes", "kept"]);
        fs::remove_file(s.run_root().join("settled")).unwrap();
        another_boot(&s);
        assert_eq!(names(&s), ["goes", "kept"]);
        for name in ["goes", "kept"] {
            assert_eq!(status(&s, name), "running");
            s.run(&["rm", "-f", name]).ok();
        }
        // Nothing runs any more: the data root may be used from elsewhere.
        assert_eq!(s.run(&[&flag, "ps", "-aq"]).ok(), "");
        s.run(&["ps"]).ok();
        let _ = fs::remove_dir_all(&other);
    }
}

#[test]
fn a_failed_start_is_no_run() {
    let s = Sandbox::loaded();
    s.run(&["create", "--name", "bad", "probe-linux", "exit", "4"])
        .ok();
    s.run(&[
        "create",
        "--name",
        "worse",
        "--entrypoint",
        "/nowhere",
        "probe-linux",
    ])
    .ok();
    assert_ne!(s.run(&["start", "worse"]).code, 0);
    assert_ne!(
        s.run(&[
            "run",
            "--name",
            "worst",
            "--entrypoint",
            "/nowhere",
            "probe-linux"
        ])
        .code,
        0
    );
    assert_eq!(s.run(&["start", "-a", "bad"]).code, 4);
    power_cut(&s);
    assert_eq!(status(&s, "worse"), "created");
    assert_eq!(status(&s, "worst"), "created");
    assert_eq!(field(&s, "bad", "ExitCode"), "4");
}

#[test]
fn policies_say_what_comes_back() {
    let s = Sandbox::loaded();
    for image in IMAGES {
        let run = |name: &str, policy: &str, program: &[&str]| {
            let args = ["run", "-d", "--name", name, "--restart", policy, image];
            s.run(&[&args[..], program].concat()).ok();
        };
        let sleep = ["sleep", "600"];
        run("always", "always", &sleep);
        run("always-stopped", "always", &sleep);
        run("unless", "unless-stopped", &sleep);
        run("unless-stopped", "unless-stopped", &sleep);
        run("failing", "on-failure", &sleep);
        run("fine", "on-failure", &["exit", "0"]);
        run("spent", "on-failure:1", &["exit", "3"]);
        run("none", "no", &sleep);
        run("later", "no", &sleep);
        s.run(&["update", "--restart", "always", "later"]).ok();
        s.run(&[
            "create",
            "--name",
            "never",
            "--restart",
            "always",
            image,
            "sleep",
            "600",
        ])
        .ok();
        for name in ["always-stopped", "unless-stopped"] {
            s.run(&["stop", "-t", "0", name]).ok();
        }
        for name in ["fine", "spent"] {
            wait_until("the last end", SLOW, || status(&s, name) == "exited");
            let run = s.run_root().join("containers").join(id(&s, name));
            wait_until("the end of its cleaning", SLOW, || !run.exists());
        }
        power_cut(&s);
        let started = s.run(&["system", "start"]).ok();
        let mut started: Vec<&str> = started.lines().collect();
        started.sort_unstable();
        assert_eq!(
            started,
            ["always", "always-stopped", "failing", "later", "unless"]
        );
        for name in started {
            assert_eq!(status(&s, name), "running", "{name}");
        }
        for name in ["unless-stopped", "fine", "spent", "none"] {
            assert_eq!(status(&s, name), "exited", "{name}");
        }
        assert_eq!(status(&s, "never"), "created");
        assert_eq!(s.run(&["system", "start"]).ok(), "");
        for name in names(&s) {
            s.run(&["rm", "-f", &name]).ok();
        }
        s.settle();
    }
}

#[test]
fn who_is_joined_is_started_first() {
    let s = Sandbox::loaded();
    let run = |name: &str, more: &[&str]| {
        let args = ["run", "-d", "--name", name, "--restart", "always"];
        s.run(&[&args[..], more, &["probe-linux", "sleep", "600"]].concat())
            .ok();
    };
    run("donor", &["--ipc", "shareable"]);
    run("joiner", &["--ipc", "container:donor"]);
    run("third", &["--pid", "container:joiner"]);
    s.run(&["run", "-d", "--name", "gone", "probe-linux", "sleep", "600"])
        .ok();
    run("orphan", &["--pid", "container:gone"]);
    // By age alone the donor would come last.
    let config = data(&s, &id(&s, "donor")).join("config.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    value["created"] = "2999-01-01T00:00:00.000000000Z".into();
    fs::write(&config, value.to_string()).unwrap();
    power_cut(&s);
    let out = s.run(&["system", "start"]);
    assert_eq!(out.stdout, "donor\njoiner\nthird\n");
    out.fails(
        1,
        "failed to start container orphan: cannot join PID of a non running container",
    );
    for name in ["joiner", "third", "orphan", "donor", "gone"] {
        s.run(&["rm", "-f", name]).ok();
    }
}

#[test]
fn what_a_cut_left_half_done_is_put_right() {
    let s = Sandbox::loaded();
    s.run(&["run", "--name", "whole", "probe-linux"]).ok();
    let whole = id(&s, "whole");
    let volume = "b".repeat(64);
    let volume_arg = format!("{volume}:/v");
    s.run(&[
        "create",
        "--name",
        "removing",
        "-v",
        &volume_arg,
        "probe-linux",
    ])
    .ok();
    let removing = id(&s, "removing");
    s.settle();
    power_cut(&s);
    let root = s.root();
    let half = "a".repeat(64);
    // A create before its configuration, a claim without a container, a removal in the middle, a
    // container without its claim, files that were not renamed.
    fs::create_dir(data(&s, &half)).unwrap();
    fs::write(data(&s, &half).join("config.tmp"), "{").unwrap();
    std::os::unix::fs::symlink(&half, root.join("names/half")).unwrap();
    std::os::unix::fs::symlink("c".repeat(64), root.join("names/nobody")).unwrap();
    fs::rename(
        data(&s, &removing),
        root.join(format!("containers/{removing}.removed")),
    )
    .unwrap();
    fs::remove_file(root.join("names/whole")).unwrap();
    fs::write(data(&s, &whole).join("exit.new"), "{").unwrap();
    fs::create_dir(root.join("skeleton.0000abcd")).unwrap();
    fs::write(root.join("networks/bridge/config.json.77"), "{").unwrap();

    assert_eq!(names(&s), ["whole"]);
    let left = |dir: &str| {
        let entries = fs::read_dir(root.join(dir)).unwrap().flatten();
        entries
            .map(|e| e.file_name().into_string().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(left("containers"), std::slice::from_ref(&whole));
    assert_eq!(left("names"), ["whole"]);
    assert!(!root.join("skeleton.0000abcd").exists());
    assert_eq!(left("networks/bridge"), ["config.json"]);
    assert!(!data(&s, &whole).join("exit.new").exists());
    for name in ["half", "nobody", "removing"] {
        s.run(&["run", "--rm", "--name", name, "probe-linux"]).ok();
    }
    s.run(&["rm", "whole"]).ok();
    s.run(&["volume", "rm", &volume]).ok();
}

/// Keys of a unit file, by section; a key may come more than once.
fn unit(text: &str) -> Vec<(String, String, String)> {
    let (mut section, mut keys) = (String::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            name.strip_suffix(']').unwrap().clone_into(&mut section);
            continue;
        }
        let (key, value) = line.split_once('=').expect("key=value");
        keys.push((section.clone(), key.to_owned(), value.to_owned()));
    }
    keys
}

#[test]
fn the_systemd_unit_brings_containers_back() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/systemd/amphora.service");
    let keys = unit(&fs::read_to_string(file).unwrap());
    let get = |section: &str, key: &str| {
        let mut found = keys.iter().filter(|(s, k, _)| s == section && k == key);
        let value = found.next().unwrap_or_else(|| panic!("no {key}")).2.clone();
        assert!(found.next().is_none(), "{key} twice");
        value
    };
    assert_eq!(get("Service", "Type"), "oneshot");
    assert_eq!(get("Service", "RemainAfterExit"), "yes");
    assert_eq!(get("Service", "KillMode"), "process");
    assert_eq!(get("Install", "WantedBy"), "multi-user.target");
    assert!(get("Unit", "After").contains("network-online.target"));
    assert!(get("Unit", "Wants").contains("network-online.target"));
    let line = get("Service", "ExecStart");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(
        words[0].starts_with('/') && words[0].ends_with("/amphora"),
        "{line}"
    );

    let s = Sandbox::loaded();
    s.run(&[
        "run",
        "-d",
        "--name",
        "back",
        "--restart",
        "always",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    power_cut(&s);
    assert_eq!(finish(s.command(&words[1..])).ok(), "back\n");
    assert_eq!(status(&s, "back"), "running");
    s.run(&["rm", "-f", "back"]).ok();
}

/// A cgroup in every hierarchy, as a service or a login session has one.
struct Service(Vec<PathBuf>);

impl Service {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let below = fs::read_dir(root).unwrap().flatten().map(|e| e.path());
        let mut dirs = Vec::new();
        for hierarchy in below.chain([root.to_owned()]) {
            // A task can be moved by its owner everywhere but into a cpuset without processors.
            if hierarchy.join("cgroup.procs").exists() && !hierarchy.ends_with("cpuset") {
                let dir = hierarchy.join("amphora-it-service");
                fs::create_dir_all(&dir).unwrap();
                dirs.push(dir);
            }
        }
        Self(dirs)
    }

    fn pids(&self) -> Vec<i32> {
        let read = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        let all: String = self.0.iter().map(read).collect();
        all.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Ends the service as systemd does with `KillMode=control-group`.
    fn stop(&self) {
        wait_until("the service to end", SLOW, || {
            for pid in self.pids() {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            self.pids().is_empty()
        });
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[test]
fn a_service_that_ends_leaves_its_containers_running() {
    let s = Sandbox::ready();
    for image in IMAGES {
        let service = Service::new();
        let enter: String = service
            .0
            .iter()
            .map(|dir| format!("echo $$ > {}/cgroup.procs && ", path(dir)))
            .collect();
        let mut client = std::process::Command::new("sh")
            .args(["-c", &format!("{enter} exec \"$@\""), "sh"])
            .arg(env!("CARGO_BIN_EXE_amphora"))
            .args([
                "run",
                "--name",
                "served",
                "--restart",
                "always",
                image,
                "sleep",
                "600",
            ])
            .env("AMPHORA_ROOT", s.root())
            .env("AMPHORA_RUN_ROOT", s.run_root())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the container", SLOW, || {
            s.run(&["logs", "served"]).stdout == "sleeping\n"
        });
        assert!(
            service
                .pids()
                .contains(&i32::try_from(client.id()).unwrap())
        );
        let init = field(&s, "served", "Pid");
        let supervisor = crate::supervisor::supervisor_pid(&s, "served");
        service.stop();
        client.wait().unwrap();
        assert_eq!(field(&s, "served", "Pid"), init);
        assert_eq!(crate::supervisor::supervisor_pid(&s, "served"), supervisor);
        // Nor does its next run begin in there.
        kill(init.parse().unwrap());
        wait_until("the next run", SLOW, || {
            status(&s, "served") == "running" && field(&s, "served", "Pid") != init
        });
        assert_eq!(service.pids(), Vec::<i32>::new());
        s.run(&["rm", "-f", "served"]).ok();
    }
}
