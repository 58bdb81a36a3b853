//! v2 with controllers: limits that bite, which takes a host that gives them to v2.

use amphora_cgroup::{Cgroup, Version};

use crate::support::{Scene, eventually, run, spawn, test_name};

const NEEDED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

fn scene() -> Option<Scene> {
    let root = std::path::Path::new("/sys/fs/cgroup");
    let have = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if NEEDED
        .iter()
        .all(|name| have.split_whitespace().any(|word| word == *name))
    {
        return Scene::at("/sys/fs/cgroup", Version::V2);
    }
    eprintln!("MACHINE: {}", test_name());
    None
}

fn file(cgroup: &Cgroup, name: &str) -> String {
    let path = cgroup.paths()[0].join(name);
    let text = std::fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

#[test]
fn a_process_over_the_memory_limit_is_killed() {
    let Some(scene) = scene() else { return };
    let cgroup = crate::support::killed_for_memory(&scene);
    assert_eq!(file(&cgroup, "memory.swap.max"), "0");
    cgroup.remove().expect("remove");
}

#[test]
fn a_process_over_the_cpu_quota_is_throttled() {
    let Some(scene) = scene() else { return };
    crate::support::throttled(&scene, |cgroup| {
        assert_eq!(file(cgroup, "cpu.max"), "10000 100000");
        assert_ne!(file(cgroup, "cpu.weight"), "100");
    });
}

#[test]
fn a_fork_over_the_pids_limit_is_refused() {
    let Some(scene) = scene() else { return };
    crate::support::forks_are_refused(&scene);
}

#[test]
fn a_fork_bomb_is_killed_although_it_is_frozen() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("bomb", r#"{"pids":{"limit":100}}"#);
    let child = spawn(&cgroup, "f() { f & f & sleep 100; }; f 2>/dev/null");
    eventually("many processes", || cgroup.pids().expect("pids").len() > 50);
    cgroup.freeze().expect("freeze");
    assert!(file(&cgroup, "cgroup.events").contains("frozen 1"));
    cgroup.kill().expect("kill what is frozen");
    assert!(cgroup.pids().expect("pids").is_empty());
    drop(child.wait_with_output());
    cgroup.remove().expect("remove");
}

#[test]
fn cpusets_hold_tasks_to_a_cpu() {
    let Some(scene) = scene() else { return };
    let cgroup = scene.create("set", r#"{"cpu":{"cpus":"1","mems":"0"}}"#);
    let output = run(&cgroup, "grep Cpus_allowed_list /proc/self/status");
    let allowed = String::from_utf8_lossy(&output.stdout);
    assert!(allowed.trim().ends_with("\t1"), "{output:?}");
    assert_eq!(file(&cgroup, "cpuset.cpus.effective"), "1");
    cgroup.remove().expect("remove");
    let error = scene.create_error("set", r#"{"cpu":{"cpus":"4000"}}"#);
    assert!(error.contains("linux.resources.cpu.cpus"), "{error}");
    assert_eq!(scene.find("/set"), Vec::<std::path::PathBuf>::new());
}

#[test]
fn rates_of_a_device_reach_the_kernel() {
    let Some(scene) = scene() else { return };
    let mut disks = std::fs::read_dir("/sys/block").expect("disks").flatten();
    let disk = disks.find_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok());
    let disk = disk.expect("a disk");
    let (major, minor) = disk.trim().split_once(':').expect("major:minor");
    let rate = |rate: u32| format!(r#"[{{"major":{major},"minor":{minor},"rate":{rate}}}]"#);
    let limits = format!(
        r#"{{"blockIO":{{"throttleReadBpsDevice":{},"throttleWriteIOPSDevice":{}}}}}"#,
        rate(1_048_576),
        rate(40)
    );
    let cgroup = scene.create("io", &limits);
    let max = file(&cgroup, "io.max");
    for part in [disk.trim(), "rbps=1048576", "wbps=max", "wiops=40"] {
        assert!(max.contains(part), "{max}");
    }
    cgroup.remove().expect("remove");
}

#[test]
fn update_changes_limits_up_and_down() {
    let Some(scene) = scene() else { return };
    // With a controller that the parent did not give so far.
    let limits = r#"{"cpu":{"cpus":"0"},"pids":{"limit":7},"unified":{"memory.high":"16777216"}}"#;
    crate::support::limits_change(&scene, limits, |cgroup| {
        assert_eq!(file(cgroup, "memory.high"), "16777216");
    });
}

#[test]
fn a_parent_with_processes_gives_no_limits_and_stays_as_it_was() {
    let Some(mut scene) = scene() else { return };
    // As a service's own cgroup is: processes, and no controllers for what lies below.
    let service = scene.create("service", "{}");
    let child = spawn(&service, "exec sleep 100");
    scene.parent.push_str("/service");
    for (json, field) in [
        (r#"{"memory":{"limit":16777216}}"#, "memory.limit"),
        (r#"{"pids":{"limit":3}}"#, "pids.limit"),
        (r#"{"cpu":{"quota":10000}}"#, "cpu.quota"),
    ] {
        let error = scene.create_error("limited", json);
        assert!(error.contains(field), "{error}");
        assert_eq!(file(&service, "cgroup.type"), "domain");
        assert_eq!(file(&service, "cgroup.subtree_control"), "");
    }
    assert_eq!(scene.find("/limited"), Vec::<std::path::PathBuf>::new());
    let plain = scene.create("plain", "{}");
    assert!(run(&plain, "true").status.success());
    plain.remove().expect("remove");
    service.kill().expect("kill");
    drop(child.wait_with_output());
    service.remove().expect("remove");
}

#[test]
fn a_threaded_parent_is_refused() {
    let Some(mut scene) = scene() else { return };
    let threads = scene.create("threads", "{}");
    let worker = threads.paths()[0].join("worker");
    std::fs::create_dir(&worker).expect("mkdir");
    std::fs::write(worker.join("cgroup.type"), "threaded").expect("threaded");
    assert_eq!(file(&threads, "cgroup.type"), "domain threaded");
    scene.parent.push_str("/threads");
    let error = scene.create_error("below", "{}");
    assert!(error.contains("threads is threaded"), "{error}");
    assert_eq!(scene.find("/below"), Vec::<std::path::PathBuf>::new());
    threads.remove().expect("remove");
}
