//! A parent of its own for each test, removed with everything in it; processes inside a cgroup.

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use amphora_cgroup::{Cgroup, Hierarchies, Version};
use amphora_spec::runtime::Resources;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The hierarchies with a parent that no other test uses.
pub(crate) struct Scene {
    pub(crate) host: Hierarchies,
    pub(crate) parent: String,
    root: PathBuf,
}

impl Scene {
    /// `None`, loudly, where it cannot be tested.
    pub(crate) fn at(root: &str, version: Version) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("amphora-test-{}-{number}", std::process::id());
        let host = Hierarchies::at(Path::new(root));
        let host = host.ok().filter(|host| host.version() == version);
        if !rustix::process::geteuid().is_root() || host.is_none() {
            eprintln!(
                "SKIPPED: {}: needs root and cgroup {version} at {root}",
                test_name()
            );
            return None;
        }
        let host = host?.with_default_parent(&parent);
        Some(Self {
            host,
            parent,
            root: root.into(),
        })
    }

    pub(crate) fn create(&self, name: &str, resources: &str) -> Cgroup {
        self.host
            .create(&self.parent, name, &parse(resources))
            .expect("create")
    }

    pub(crate) fn create_error(&self, name: &str, resources: &str) -> String {
        let result = self.host.create(&self.parent, name, &parse(resources));
        result.expect_err("it should be refused").to_string()
    }

    /// Every directory below the hierarchies whose path has `part` in it.
    pub(crate) fn find(&self, part: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.root.clone()];
        while let Some(dir) = open.pop() {
            let Ok(entries) = std::fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.path().to_string_lossy().contains(part) {
                        found.push(entry.path());
                    }
                    open.push(entry.path());
                }
            }
        }
        found
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let mut left = self.find(&self.parent);
        left.sort();
        for dir in left.iter().rev() {
            let _ = std::fs::remove_dir(dir);
        }
        if !std::thread::panicking() {
            assert_eq!(
                self.find(&self.parent),
                Vec::<PathBuf>::new(),
                "cgroups are left"
            );
        }
    }
}

pub(crate) fn parse(resources: &str) -> Resources {
    serde_json::from_str(resources).expect("test input")
}

/// Starts a shell that moves itself into the cgroup and runs `script` there.
pub(crate) fn spawn(cgroup: &Cgroup, script: &str) -> Child {
    let tasks = cgroup.tasks_fds().expect("tasks files");
    let own = std::process::id();
    let mut files: Vec<String> = tasks
        .iter()
        .map(|fd| format!("/proc/{own}/fd/{}", fd.as_raw_fd()))
        .collect();
    if cgroup.version() == Version::V2 {
        files.push(cgroup.paths()[0].join("cgroup.procs").display().to_string());
    }
    let enter: String = files
        .iter()
        .map(|file| format!("echo 0 > {file} || exit 99\n"))
        .collect();
    let mut child = Command::new("/bin/busybox")
        .args(["sh", "-c", &format!("{enter}echo in\n{script}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("busybox");
    // The files may be closed once the shell says that it is in.
    let mut first = [0_u8; 3];
    let stdout = child.stdout.as_mut().expect("piped");
    std::io::Read::read_exact(stdout, &mut first).expect("the shell enters");
    drop(tasks);
    child
}

pub(crate) fn run(cgroup: &Cgroup, script: &str) -> Output {
    spawn(cgroup, script).wait_with_output().expect("wait")
}

/// A process over the memory limit is killed.
pub(crate) fn killed_for_memory(scene: &Scene) -> Cgroup {
    let cgroup = scene.create("memory", r#"{"memory":{"limit":16777216,"swap":16777216}}"#);
    let script = "exec dd if=/dev/zero of=/dev/null bs=67108864 count=1";
    let output = run(&cgroup, script);
    assert_eq!(output.status.signal(), Some(9), "{}", stderr(&output));
    assert!(cgroup.oom_kills().expect("count") >= 1);
    let stats = cgroup.stats().expect("stats");
    assert_eq!(stats.memory_limit_bytes, Some(16_777_216));
    assert!(stats.memory_peak_bytes > Some(8 << 20), "{stats:?}");
    cgroup
}

/// A process over the CPU quota is throttled; `look` sees the cgroup meanwhile.
pub(crate) fn throttled(scene: &Scene, look: impl FnOnce(&Cgroup)) {
    let limits = r#"{"cpu":{"quota":10000,"period":100000,"shares":512}}"#;
    let cgroup = scene.create("cpu", limits);
    let mut child = spawn(&cgroup, "while :; do :; done");
    eventually("throttled", || {
        let stats = cgroup.stats().expect("stats");
        stats.cpu_throttled_periods.is_some_and(|n| n > 1)
    });
    assert!(cgroup.stats().expect("stats").cpu_throttled_ns > Some(0));
    look(&cgroup);
    cgroup.kill().expect("kill");
    assert_eq!(child.wait().expect("wait").signal(), Some(9));
    cgroup.remove().expect("remove");
}

/// A fork over the limit is refused.
pub(crate) fn forks_are_refused(scene: &Scene) {
    let cgroup = scene.create("pids", r#"{"pids":{"limit":3}}"#);
    let script = "for i in 1 2 3 4 5; do sleep 100 > /dev/null 2>&1 & done";
    let output = run(&cgroup, script);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("fork"), "{}", stderr(&output));
    assert_eq!(cgroup.stats().expect("stats").pids_limit, Some(3));
    cgroup.kill().expect("kill");
    cgroup.remove().expect("remove");
}

/// Memory limits go up and down while a process is inside; `more` has it on one CPU with seven
/// processes, then `look` sees the cgroup.
pub(crate) fn limits_change(scene: &Scene, more: &str, look: impl FnOnce(&mut Cgroup)) {
    let mut cgroup = scene.create("update", r#"{"memory":{"limit":67108864,"swap":67108864}}"#);
    let child = spawn(&cgroup, "exec sleep 100");
    for bytes in [134_217_728_u64, 33_554_432] {
        let limits = format!(r#"{{"memory":{{"limit":{bytes},"swap":{bytes}}}}}"#);
        cgroup.update(&parse(&limits)).expect("update");
        let stats = cgroup.stats().expect("stats");
        assert_eq!(stats.memory_limit_bytes, Some(bytes));
    }
    cgroup.update(&parse(more)).expect("update");
    assert_eq!(cgroup.stats().expect("stats").pids_limit, Some(7));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    look(&mut cgroup);
    cgroup.kill().expect("kill");
    drop(child.wait_with_output());
    cgroup.remove().expect("remove");
}

/// The standard policy, one of one's own, and everything allowed.
pub(crate) fn device_policies_hold(scene: &Scene) {
    let cgroup = scene.create("std", "{}");
    let output = run(
        &cgroup,
        "echo x > /dev/null && head -c 1 /dev/zero && head -c 1 /dev/kmsg",
    );
    assert!(stderr(&output).contains("not permitted"), "{output:?}");
    assert!(stderr(&output).contains("kmsg"), "{output:?}");
    let own = scene.create(
        "own",
        r#"{"devices":[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#,
    );
    let output = run(
        &own,
        "echo x > /dev/null && (exec 3< /dev/kmsg) && ! (exec 3> /dev/kmsg)",
    );
    assert!(output.status.success(), "{output:?}");
    let all = scene.create("all", r#"{"devices":[{"allow":true,"access":"rwm"}]}"#);
    let output = run(&all, "exec 3<> /dev/kmsg");
    assert!(output.status.success(), "{output:?}");
    for cgroup in [cgroup, own, all] {
        cgroup.remove().expect("remove");
    }
}

/// A node that is made inside, allowed, refused again, and as before after a refused update; a
/// process that has another one open all the time is not disturbed.
pub(crate) fn devices_change(scene: &Scene) {
    let kmsg = |allow: bool, more: &str| {
        format!(
            r#"{{"devices":[{{"allow":false,"access":"rwm"}},
            {{"allow":{allow},"type":"c","major":1,"minor":11,"access":"rwm"}}]{more}}}"#
        )
    };
    let mut cgroup = scene.create("devices", &kmsg(false, ""));
    let dir = std::env::temp_dir().join(&scene.parent);
    std::fs::create_dir_all(&dir).expect("make a directory");
    let node = dir.join("node");
    let node = node.display();
    let made = run(&cgroup, &format!("mknod {node} c 1 11"));
    assert!(made.status.success(), "{made:?}");
    let opens = |cgroup: &Cgroup| {
        let output = run(cgroup, &format!("echo x > /dev/null && exec 3< {node}"));
        let refused = stderr(&output).contains("not permitted");
        assert_ne!(output.status.success(), refused, "{output:?}");
        !refused
    };
    let script = "while echo x > /dev/null; do :; done 2> /dev/null; exit 3";
    let mut child = spawn(&cgroup, script);
    assert!(!opens(&cgroup));
    for round in [true, false, true] {
        cgroup.update(&parse(&kmsg(round, ""))).expect("update");
        assert_eq!(opens(&cgroup), round);
    }
    let refused = kmsg(false, r#","unified":{"nosuch.max":"1"}"#);
    cgroup.update(&parse(&refused)).expect_err("no such file");
    assert!(opens(&cgroup), "a refused update has changed the devices");
    let before = cgroup.update(&parse(&kmsg(false, ""))).expect("update");
    assert!(!opens(&cgroup));
    cgroup.restore(&before);
    assert!(opens(&cgroup));
    assert!(
        child.try_wait().expect("look").is_none(),
        "it was disturbed"
    );
    cgroup.kill().expect("kill");
    child.wait().expect("wait");
    cgroup.remove().expect("remove");
    std::fs::remove_dir_all(&dir).expect("remove the directory");
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for a condition; fails at the deadline.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "never happened: {what}");
        std::thread::yield_now();
    }
}

/// Name of the running test: its thread is called so.
pub(crate) fn test_name() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}
