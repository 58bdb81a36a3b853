//! v2 without controllers, as a private mount of the hierarchy shows it.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use amphora_cgroup::{Cgroup, CgroupMounts, Hierarchies, Version};

use crate::support::{Scene, eventually, parse, run, spawn, stderr, test_name};

fn scene() -> Option<Scene> {
    // A hybrid host has it beside v1.
    let hybrid = std::path::Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists();
    let root = if hybrid {
        "/sys/fs/cgroup/unified"
    } else {
        "/sys/fs/cgroup"
    };
    Scene::at(root, Version::V2)
}

fn available() -> String {
    [
        "/sys/fs/cgroup/cgroup.controllers",
        "/sys/fs/cgroup/unified/cgroup.controllers",
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok())
    .unwrap_or_default()
}

#[test]
fn a_container_without_limits_works() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("plain", "{}");
    assert!(cgroup.launch_fd().is_some());
    assert!(cgroup.tasks_fds().expect("tasks").is_empty());
    let child = spawn(&cgroup, "while :; do :; done");
    eventually("cpu time is seen", || {
        cgroup.stats().expect("stats").cpu_usage_ns > Some(0)
    });
    assert_eq!(
        cgroup.pids().expect("pids"),
        [i32::try_from(child.id()).expect("pid")]
    );
    assert_eq!(cgroup.oom_kills().expect("count"), 0);
    cgroup.freeze().expect("freeze");
    let before = cgroup.stats().expect("stats").cpu_usage_ns;
    cgroup.thaw().expect("thaw");
    eventually("runs again", || {
        cgroup.stats().expect("stats").cpu_usage_ns > before
    });
    cgroup.kill().expect("kill");
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.signal(), Some(9));
    cgroup.remove().expect("remove");
    cgroup.remove().expect("remove again");
}

#[test]
fn a_limit_without_its_controller_names_it() {
    let Some(scene) = scene() else { return };
    let available = available();
    let limits = [
        (
            "memory",
            r#"{"memory":{"limit":16777216}}"#,
            "linux.resources.memory.limit",
        ),
        (
            "cpu",
            r#"{"cpu":{"quota":10000}}"#,
            "linux.resources.cpu.quota",
        ),
        (
            "pids",
            r#"{"pids":{"limit":3}}"#,
            "linux.resources.pids.limit",
        ),
        (
            "cpuset",
            r#"{"cpu":{"cpus":"0"}}"#,
            "linux.resources.cpu.cpus",
        ),
        (
            "memory",
            r#"{"unified":{"memory.high":"1"}}"#,
            "unified[\"memory.high\"]",
        ),
    ];
    for (controller, json, field) in limits {
        if available.split_whitespace().any(|have| have == controller) {
            // That it works is for `limits` to show.
            continue;
        }
        let error = scene.create_error("limited", json);
        assert!(
            error.contains(&format!("\"{controller}\"")) && error.contains(field),
            "{error}"
        );
    }
    assert_eq!(scene.find("/limited"), Vec::<std::path::PathBuf>::new());
    let cgroup = scene.create("core", r#"{"unified":{"cgroup.max.depth":"3"}}"#);
    cgroup.remove().expect("remove");
}

#[test]
fn device_policies_are_programs() {
    let Some(scene) = scene() else { return };
    crate::support::device_policies_hold(&scene);
}

#[test]
fn devices_change_while_it_runs() {
    let Some(mut scene) = scene() else { return };
    scene.parent.push_str("-own");
    crate::support::devices_change(&scene);
}

#[test]
fn remove_takes_along_what_was_made_below() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("nested", "{}");
    std::fs::create_dir_all(cgroup.paths()[0].join("a/b")).expect("mkdir");
    let handle = cgroup.handle();
    let found = handle.open().expect("open").expect("there");
    assert_eq!(found.path(), cgroup.path());
    cgroup.remove().expect("remove");
    assert!(handle.open().expect("open").is_none());
}

#[test]
fn the_mount_is_the_own_directory_read_only() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("mount", "{}");
    let CgroupMounts::V2(mount) = cgroup.mounts().expect("mounts") else {
        panic!("v2")
    };
    let denied = rustix::fs::mkdirat(&mount, "x", rustix::fs::Mode::RWXU);
    assert_eq!(denied, Err(rustix::io::Errno::ROFS));
    drop(mount);
    cgroup.remove().expect("remove");
}

/// Set in the process that the next test runs in a mount namespace of its own.
const INSIDE: &str = "AMPHORA_TEST_V2_VIEW";

#[test]
fn a_private_v2_view_is_detected() {
    if std::env::vars_os().any(|(key, _)| key == INSIDE) {
        assert_eq!(Hierarchies::system().expect("found").version(), Version::V2);
        let parent = format!("amphora-test-view-{}", std::process::id());
        let cgroup = Cgroup::create(&parent, "one", &parse("{}")).expect("create");
        assert!(run(&cgroup, "true").status.success());
        Cgroup::open(&parent, "one")
            .expect("open")
            .remove()
            .expect("remove");
        let host = Hierarchies::at("/sys/fs/cgroup".as_ref()).expect("found");
        let supervisors = host
            .with_default_parent(&parent)
            .supervisors()
            .expect("supervisors");
        assert!(supervisors.launch.is_some() && supervisors.tasks.is_empty());
        for name in [parent.clone(), format!("{parent}-supervisors")] {
            std::fs::remove_dir(format!("/sys/fs/cgroup/{name}")).expect("rmdir");
        }
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {}: needs root", test_name());
        return;
    }
    let exe = std::env::current_exe().expect("own path");
    let script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$0\" --exact --nocapture \
                  v2::a_private_v2_view_is_detected";
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script])
        .arg(exe)
        .env(INSIDE, "1")
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

/// The kernel's number of the device program that is attached to a cgroup.
#[expect(clippy::expect_used, reason = "a test's way to fail")]
fn program_id(cgroup: &Cgroup) -> String {
    let dir = std::fs::File::open(cgroup.paths()[0]).expect("open");
    let program = amphora_sys::bpf::own_device_program(dir.as_fd()).expect("query");
    let program = program.expect("a program");
    let number = program.as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).expect("fdinfo");
    let id = info.lines().find(|line| line.starts_with("prog_id:"));
    id.expect("an id").to_owned()
}

#[test]
fn a_device_policy_is_loaded_once() {
    let Some(scene) = scene() else { return };
    let full = r#"{"devices":[{"allow":false},{"allow":true,"type":"c","major":10,"minor":200}]}"#;
    let other = r#"{"devices":[{"allow":false},{"allow":true,"type":"c","major":10,"minor":201}]}"#;
    let first = scene.create("first", full);
    let id = program_id(&first);
    first.remove().expect("remove");
    let second = scene.create("second", full);
    assert_eq!(program_id(&second), id);
    let third = scene.create("third", other);
    assert_ne!(program_id(&third), id);
    for cgroup in [second, third] {
        cgroup.remove().expect("remove");
    }
}
