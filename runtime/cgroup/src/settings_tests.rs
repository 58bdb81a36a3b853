//! From fields to files, for both versions.

use amphora_spec::runtime::Resources;

use super::{Present, from_resources, previous_value};
use crate::Version;
use crate::cpu::weight_from_shares;

fn parse(json: &str) -> Resources {
    serde_json::from_str(json).expect("test input")
}

fn files(version: Version, json: &str) -> Result<Vec<(String, String)>, String> {
    let settings =
        from_resources(version, &parse(json), None).map_err(|error| error.to_string())?;
    Ok(settings
        .into_iter()
        .map(|s| (s.file.into_owned(), s.value))
        .collect())
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn limits_become_v1_files() {
    let json = r#"{"memory":{"limit":1048576,"swap":2097152,"reservation":524288,"swappiness":0},
        "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0","mems":"0"},
        "pids":{"limit":100}}"#;
    let want = pairs(&[
        ("memory.limit_in_bytes", "1048576"),
        ("memory.memsw.limit_in_bytes", "2097152"),
        ("memory.soft_limit_in_bytes", "524288"),
        ("memory.swappiness", "0"),
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "100"),
    ]);
    assert_eq!(files(Version::V1, json), Ok(want));
}

#[test]
fn limits_become_v2_files() {
    let json = r#"{"memory":{"limit":1048576,"swap":2097152,"reservation":524288},
        "cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0"},
        "pids":{"limit":100},"unified":{"memory.high":"900000"}}"#;
    let want = pairs(&[
        ("memory.max", "1048576"),
        ("memory.swap.max", "1048576"),
        ("memory.low", "524288"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "100"),
        ("memory.high", "900000"),
    ]);
    assert_eq!(files(Version::V2, json), Ok(want));
}

#[test]
fn unlimited_is_spelt_out() {
    let json = r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1}}"#;
    let v1 = pairs(&[
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("cpu.cfs_quota_us", "-1"),
    ]);
    let v2 = pairs(&[
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("cpu.max", "max"),
    ]);
    assert_eq!(files(Version::V1, json), Ok(v1));
    assert_eq!(files(Version::V2, json), Ok(v2));
    let same = r#"{"memory":{"limit":4096,"swap":4096}}"#;
    let none = pairs(&[("memory.max", "4096"), ("memory.swap.max", "0")]);
    assert_eq!(files(Version::V2, same), Ok(none));
}

#[test]
fn zero_means_not_given() {
    let json = r#"{"memory":{"limit":0,"swap":0,"reservation":0},
        "cpu":{"shares":0,"quota":0,"period":0,"realtimeRuntime":0},"pids":{"limit":0},
        "network":{},"hugepageLimits":[],"blockIO":{"weight":0,"weightDevice":null}}"#;
    for version in [Version::V1, Version::V2] {
        assert_eq!(files(version, json), Ok(Vec::new()));
    }
}

#[test]
fn the_rest_of_memory_and_cpu_is_written_too() {
    let json = r#"{"memory":{"limit":-1,"kernel":4096,"kernelTCP":8192,"useHierarchy":true,
            "disableOOMKiller":true,"checkBeforeUpdate":true},
        "cpu":{"quota":5000,"burst":1000,"realtimePeriod":1000000,"realtimeRuntime":500,"idle":1}}"#;
    let want = pairs(&[
        ("memory.limit_in_bytes", "-1"),
        ("memory.kmem.limit_in_bytes", "4096"),
        ("memory.kmem.tcp.limit_in_bytes", "8192"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.use_hierarchy", "1"),
        ("memory.oom_control", "1"),
        ("cpu.cfs_quota_us", "5000"),
        ("cpu.cfs_burst_us", "1000"),
        ("cpu.rt_period_us", "1000000"),
        ("cpu.rt_runtime_us", "500"),
        ("cpu.idle", "1"),
    ]);
    assert_eq!(files(Version::V1, json), Ok(want));
    let json = r#"{"memory":{"useHierarchy":true},"cpu":{"quota":5000,"burst":1000,"idle":1}}"#;
    let want = pairs(&[
        ("cpu.max", "5000"),
        ("cpu.max.burst", "1000"),
        ("cpu.idle", "1"),
    ]);
    assert_eq!(files(Version::V2, json), Ok(want));
}

#[test]
fn a_limit_below_what_is_used_is_refused_when_asked() {
    let present = Some(Present {
        cpu_quota: "max",
        memory_bytes: 5000,
    });
    let check = |json| from_resources(Version::V2, &parse(json), present).is_ok();
    assert!(!check(
        r#"{"memory":{"limit":5000,"checkBeforeUpdate":true}}"#
    ));
    assert!(check(
        r#"{"memory":{"limit":5001,"checkBeforeUpdate":true}}"#
    ));
    assert!(check(
        r#"{"memory":{"limit":4000,"checkBeforeUpdate":false}}"#
    ));
    assert!(check(r#"{"memory":{"limit":-1,"checkBeforeUpdate":true}}"#));
}

#[test]
fn every_kind_of_file_gives_back_what_it_said() {
    let cases = [
        ("memory.max", "1", "max\n", "max"),
        (
            "memory.oom_control",
            "1",
            "oom_kill_disable 0\nunder_oom 0\n",
            "0",
        ),
        (
            "io.max",
            "8:0 rbps=5",
            "8:16 rbps=1 wbps=max\n",
            "8:0 rbps=max",
        ),
        (
            "io.max",
            "8:0 rbps=5",
            "8:0 rbps=1 wbps=2\n",
            "8:0 rbps=1 wbps=2",
        ),
        ("io.weight", "200", "default 100\n8:0 50\n", "100"),
        ("io.weight", "8:0 200", "default 100\n", "8:0 default"),
        ("io.bfq.weight", "200", "100\n", "100"),
        ("blkio.throttle.read_bps_device", "8:0 5", "", "8:0 0"),
        (
            "blkio.throttle.read_bps_device",
            "8:0 5",
            "8:0 7\n",
            "8:0 7",
        ),
        ("net_prio.ifpriomap", "lo 5", "lo 0\neth0 3\n", "lo 0"),
    ];
    for (file, wanted, says, back) in cases {
        let value = previous_value(file, wanted, says);
        assert_eq!(value.as_deref(), Some(back), "{file} {wanted}");
    }
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    for version in [Version::V1, Version::V2] {
        let error = files(version, r#"{"memory":{"limit":1000,"swap":999}}"#).unwrap_err();
        assert!(error.contains("linux.resources.memory.swap"), "{error}");
        // What the specification does not know asks for nothing (config.md, "Extensibility").
        let unheard = r#"{"nosuch":{"x":1},"memory":{"nosuch":1},"cpu":{"nosuch":1}}"#;
        let known = r#"{"memory":{},"cpu":{}}"#;
        assert_eq!(files(version, unheard), files(version, known));
    }
    let v2 = [
        (
            r#"{"memory":{"kernel":1000}}"#,
            "linux.resources.memory.kernel",
        ),
        (r#"{"memory":{"kernelTCP":1000}}"#, "memory.kernelTCP"),
        (
            r#"{"memory":{"useHierarchy":false}}"#,
            "memory.useHierarchy",
        ),
        (r#"{"cpu":{"realtimeRuntime":5}}"#, "cpu.realtimeRuntime"),
        (r#"{"cpu":{"realtimePeriod":5}}"#, "cpu.realtimePeriod"),
        (r#"{"blockIO":{"leafWeight":500}}"#, "blockIO.leafWeight"),
        (r#"{"memory":{"swappiness":10}}"#, "memory.swappiness"),
        (
            r#"{"memory":{"disableOOMKiller":true}}"#,
            "memory.disableOOMKiller",
        ),
        (r#"{"memory":{"swap":1000}}"#, "memory.swap"),
        (
            r#"{"unified":{"cgroup.procs":"1"}}"#,
            "unified[\"cgroup.procs\"]",
        ),
        (r#"{"unified":{"../memory.max":"1"}}"#, "unified"),
        (r#"{"unified":{"memory":"1"}}"#, "unified"),
    ];
    for (json, field) in v2 {
        let error = files(Version::V2, json).expect_err(json);
        assert!(error.contains(field), "{error}");
    }
    let error = files(Version::V1, r#"{"unified":{"memory.high":"1"}}"#).expect_err("v1");
    assert!(error.contains("linux.resources.unified"), "{error}");
}

#[test]
fn a_period_alone_keeps_the_quota() {
    let resources = parse(r#"{"cpu":{"period":50000}}"#);
    let present = Some(Present {
        cpu_quota: "20000",
        memory_bytes: 0,
    });
    let settings = from_resources(Version::V2, &resources, present).expect("valid");
    assert_eq!(settings[0].value, "20000 50000");
}

#[test]
fn weights_meet_at_the_three_points() {
    assert_eq!(weight_from_shares(2), 1);
    assert_eq!(weight_from_shares(1024), 100);
    assert_eq!(weight_from_shares(262_144), 10_000);
    assert_eq!(weight_from_shares(0), 1);
    let weights: Vec<u32> = (1..20)
        .map(|shift| weight_from_shares(1 << shift))
        .collect();
    assert!(weights.is_sorted(), "{weights:?}");
}
