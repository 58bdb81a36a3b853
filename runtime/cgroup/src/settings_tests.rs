//! From fields to files, for both versions.

use amphora_spec::runtime::Resources;

use super::{Present, from_resources, weight_from_shares};
use crate::Version;

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
fn what_is_not_honoured_is_refused_by_name() {
    let both = [
        (
            r#"{"memory":{"kernel":1000}}"#,
            "linux.resources.memory.kernel",
        ),
        (r#"{"cpu":{"burst":1000}}"#, "linux.resources.cpu.burst"),
        (
            r#"{"memory":{"limit":1000,"swap":999}}"#,
            "linux.resources.memory.swap",
        ),
    ];
    for (json, field) in both {
        for version in [Version::V1, Version::V2] {
            let error = files(version, json).expect_err(json);
            assert!(error.contains(field), "{error}");
        }
    }
    let v2 = [
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
    let present = Some(Present { cpu_quota: "20000" });
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
