//! v1: limits that bite, policies, freezing, killing, removing.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use amphora_cgroup::{CgroupMounts, Handle, Version};

use crate::support::{Scene, eventually, parse, run, spawn};

fn scene() -> Option<Scene> {
    Scene::at("/sys/fs/cgroup", Version::V1)
}

#[test]
fn a_process_over_the_memory_limit_is_killed() {
    let Some(scene) = scene() else { return };
    let cgroup = crate::support::killed_for_memory(&scene);
    let stats = cgroup.stats().expect("stats");
    assert!(stats.cpu_usage_ns > Some(0), "{stats:?}");
    cgroup.remove().expect("remove");
    cgroup.remove().expect("remove again");
}

#[test]
fn a_process_over_the_cpu_quota_is_throttled() {
    let Some(scene) = scene() else { return };
    crate::support::throttled(&scene, |_| ());
}

#[test]
fn a_fork_over_the_pids_limit_is_refused() {
    let Some(scene) = scene() else { return };
    crate::support::forks_are_refused(&scene);
}

#[test]
fn cpusets_hold_tasks_to_a_cpu() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("set", r#"{"cpu":{"cpus":"0"}}"#);
    let output = run(&cgroup, "grep Cpus_allowed_list /proc/self/status");
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .ends_with("\t0"),
        "{output:?}"
    );
    cgroup.remove().expect("remove");
}

#[test]
fn the_standard_device_policy_is_inherited() {
    let Some(scene) = scene() else { return };
    crate::support::device_policies_hold(&scene);
}

#[test]
fn freeze_stops_and_thaw_goes_on() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("freeze", "{}");
    let mut child = spawn(&cgroup, "while :; do :; done");
    cgroup.freeze().expect("freeze");
    let before = cgroup.stats().expect("stats").cpu_usage_ns;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(cgroup.stats().expect("stats").cpu_usage_ns, before);
    cgroup.thaw().expect("thaw");
    eventually("runs again", || {
        cgroup.stats().expect("stats").cpu_usage_ns > before
    });
    cgroup.freeze().expect("freeze");
    cgroup.kill().expect("kill what is frozen");
    assert_eq!(child.wait().expect("wait").signal(), Some(9));
    cgroup.remove().expect("remove");
}

#[test]
fn a_fork_bomb_is_killed() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("bomb", r#"{"pids":{"limit":300}}"#);
    let child = spawn(&cgroup, "f() { f & f & sleep 100; }; f 2>/dev/null");
    eventually("many processes", || {
        cgroup.pids().expect("pids").len() > 100
    });
    cgroup.kill().expect("kill");
    assert!(cgroup.pids().expect("pids").is_empty());
    drop(child.wait_with_output());
    cgroup.remove().expect("remove");
}

#[test]
fn remove_takes_along_what_was_made_below() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("nested", "{}");
    for path in cgroup.paths() {
        std::fs::create_dir_all(path.join("a/b")).expect("mkdir");
    }
    let handle = cgroup.handle();
    drop(cgroup);
    let text = serde_json::to_string(&handle).expect("serialise");
    let handle: Handle = serde_json::from_str(&text).expect("parse");
    let cgroup = handle.open().expect("open").expect("it is there");
    assert_eq!(cgroup.handle(), handle);
    cgroup.remove().expect("remove");
    assert!(handle.open().expect("open").is_none());
}

#[test]
fn remove_of_a_busy_cgroup_times_out() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("busy", "{}");
    let child = spawn(&cgroup, "exec sleep 100");
    let error = cgroup
        .remove_within(Duration::from_millis(20))
        .expect_err("busy")
        .to_string();
    assert!(error.contains("timed out"), "{error}");
    cgroup.kill().expect("kill");
    drop(child.wait_with_output());
    cgroup.remove().expect("remove");
}

#[test]
fn a_refused_limit_leaves_nothing() {
    let Some(scene) = scene() else { return };
    let error = scene.create_error("bad", r#"{"cpu":{"quota":1}}"#);
    assert!(error.contains("linux.resources.cpu.quota"), "{error}");
    let error = scene.create_error(
        "bad",
        r#"{"memory":{"limit":8388608},"cpu":{"cpus":"4000"}}"#,
    );
    assert!(error.contains("linux.resources.cpu.cpus"), "{error}");
    assert_eq!(scene.find("/bad"), Vec::<std::path::PathBuf>::new());
    let cgroup = scene.create("twice", "{}");
    let error = scene.create_error("twice", "{}");
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(
        cgroup.paths().iter().filter(|path| path.exists()).count(),
        cgroup.paths().len()
    );
    cgroup.remove().expect("remove");
}

#[test]
fn update_changes_limits_up_and_down() {
    let Some(scene) = scene() else { return };
    let limits = r#"{"cpu":{"cpus":"0"},"pids":{"limit":7}}"#;
    crate::support::limits_change(&scene, limits, |cgroup| {
        let refused = r#"{"pids":{"limit":9},"blockIO":{"leafWeight":500}}"#;
        let error = cgroup
            .update(&parse(refused))
            .expect_err("no scheduler of this kernel has it")
            .to_string();
        assert!(error.contains("blockIO.leafWeight"), "{error}");
        assert_eq!(cgroup.stats().expect("stats").pids_limit, Some(7));
    });
}

#[test]
fn mounts_show_the_own_directories_read_only() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("mounts", r#"{"memory":{"limit":33554432}}"#);
    let CgroupMounts::V1(mounts) = cgroup.mounts().expect("mounts") else {
        panic!("v1")
    };
    let (_, memory) = mounts
        .iter()
        .find(|(name, _)| name == "memory")
        .expect("memory");
    let flags = rustix::fs::OFlags::RDONLY;
    let mode = rustix::fs::Mode::empty();
    let file = rustix::fs::openat(memory, "memory.limit_in_bytes", flags, mode).expect("open");
    let mut text = [0_u8; 32];
    let length = rustix::io::read(file, &mut text).expect("read");
    assert_eq!(&text[..length], b"33554432\n");
    let denied = rustix::fs::mkdirat(memory, "x", rustix::fs::Mode::RWXU);
    assert_eq!(denied, Err(rustix::io::Errno::ROFS));
    drop(mounts);
    cgroup.remove().expect("remove");
}

#[test]
fn supervisors_have_a_cgroup_of_their_own() {
    let Some(scene) = scene() else { return };
    let found = scene.host.supervisors().expect("supervisors");
    assert!(!found.tasks.is_empty());
    let hybrid = std::path::Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists();
    assert_eq!(found.launch.is_some(), hybrid);
}

#[test]
fn concurrent_creates_share_one_parent() {
    let Some(scene) = scene() else { return };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let scene = &scene;
            scope.spawn(move || {
                for number in 0..10 {
                    let name = format!("c{thread}-{number}");
                    // Each as a process of its own would: nothing is remembered.
                    let host = amphora_cgroup::Hierarchies::at("/sys/fs/cgroup".as_ref());
                    let host = host.expect("host").with_default_parent(&scene.parent);
                    let cgroup = host
                        .create(&scene.parent, &name, &parse("{}"))
                        .expect("create");
                    cgroup.remove().expect("remove");
                }
            });
        }
    });
}

/// Not a check: prints what one start pays.
#[test]
fn cost_of_create_and_remove() {
    let Some(scene) = scene() else { return };
    let mut cold = Vec::new();
    let mut create = Vec::new();
    let mut mounts = Vec::new();
    let mut remove = Vec::new();
    for number in 0..200 {
        let start = std::time::Instant::now();
        let host = amphora_cgroup::Hierarchies::at("/sys/fs/cgroup".as_ref()).expect("host");
        let host = host.with_default_parent(&scene.parent);
        let cgroup = host.create(&scene.parent, &format!("n{number}"), &parse("{}"));
        cold.push(start.elapsed());
        let start = std::time::Instant::now();
        let second = host.create(&scene.parent, &format!("m{number}"), &parse("{}"));
        create.push(start.elapsed());
        let (cgroup, second) = (cgroup.expect("create"), second.expect("create"));
        let start = std::time::Instant::now();
        let cloned = second.mounts().expect("mounts");
        mounts.push(start.elapsed());
        drop(cloned);
        let start = std::time::Instant::now();
        second.remove().expect("remove");
        remove.push(start.elapsed());
        cgroup.remove().expect("remove");
    }
    for (what, mut times) in [
        ("first create", cold),
        ("create", create),
        ("mounts", mounts),
        ("remove", remove),
    ] {
        times.sort();
        println!("{what}: median {:?}, best {:?}", times[100], times[0]);
    }
}

#[test]
fn devices_change_while_it_runs() {
    let Some(mut scene) = scene() else { return };
    scene.parent.push_str("-own");
    crate::support::devices_change(&scene);
}
