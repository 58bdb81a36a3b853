use std::path::Path;

use super::*;

const FILE: &str = "/etc/amphora/daemon.json";

fn parse(text: &str) -> Result<Settings, String> {
    Settings::parse(Path::new(FILE), text.as_bytes()).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(text: &str, part: &str) {
    let error = parse(text).unwrap_err();
    assert!(
        error.contains(FILE) && error.contains(part),
        "{text}: {error}"
    );
}

#[test]
fn the_keys_stand_in_order_and_once() {
    let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names, sorted);
}

#[test]
fn every_key_is_documented_with_its_state() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (keys, _) = text.split_once("\n## ").unwrap();
    let rows: Vec<(&str, &str)> = keys
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split_once("` | "))
        .collect();
    for (name, key) in KEYS {
        let (_, rest) = rows
            .iter()
            .find(|(key, _)| key == name)
            .unwrap_or_else(|| panic!("no row for {name}"));
        let state = match key {
            Key::Works(_) => "works",
            Key::Only(..) => "only ",
            Key::Refused(_) => "refused",
        };
        assert!(rest.starts_with(state), "{name} is not \"{state}\"");
    }
    for (name, _) in &rows {
        assert!(KEYS.iter().any(|(key, _)| key == name), "{name} is no key");
    }
}

#[test]
fn malformed_files_are_refused_with_line_and_column() {
    refused("{\n  \"debug\": false,\n  oops\n}", "line 3 column 3");
    refused("[]", "line 1 column");
    refused("{\"debug\": false", "EOF");
    refused("{} x", "line 1 column 4");
    assert_eq!(parse(" \n").unwrap(), Settings::default());
    assert_eq!(parse("{}").unwrap(), Settings::default());
}

#[test]
fn unknown_and_refused_keys_are_named() {
    refused("{\"data-rot\": \"/x\"}", "unknown key \"data-rot\"");
    refused("{\"hosts\": []}", "\"hosts\": not supported");
    refused("{\"live-restore\": false}", "\"live-restore\": false");
    refused("{\"init-path\": \"/x\"}", "\"init-path\"");
    refused("{\"runtimes\": {\"crun\": {}}}", "\"runtimes\"");
    refused(
        "{\"exec-opts\": [\"native.cgroupdriver=systemd\"]}",
        "\"exec-opts\"",
    );
    parse("{\"live-restore\": true, \"init\": false, \"runtimes\": {}}").unwrap();
}

#[test]
fn wrong_values_are_named_with_their_key() {
    for (text, part) in [
        ("{\"data-root\": 1}", "\"data-root\": 1 is not a string"),
        ("{\"data-root\": \"x\"}", "not an absolute path"),
        ("{\"exec-root\": \"./x\"}", "not an absolute path"),
        ("{\"bip\": \"10.0.0.0/24\"}", "here \"10.0.0.1/24\""),
        ("{\"bip\": \"10.0.0.1\"}", "\"bip\""),
        ("{\"bip\": \"fd00::1/64\"}", "IPv4"),
        ("{\"default-address-pools\": {}}", "list"),
        (
            "{\"default-address-pools\": [{\"base\": \"10.0.0.0/16\", \"size\": 8}]}",
            "size",
        ),
        (
            "{\"default-address-pools\": [{\"base\": \"10.0.0.0/16\", \"sise\": 24}]}",
            "sise",
        ),
        ("{\"mtu\": 100}", "1280"),
        ("{\"ipv6\": \"yes\"}", "neither true nor false"),
        ("{\"log-driver\": \"gelf\"}", "\"log-driver\""),
        ("{\"log-driver\": \"no\"}", "no log driver named"),
        ("{\"log-opts\": {\"max-size\": 10}}", "write \"10\""),
        ("{\"log-opts\": {\"nope\": \"1\"}}", "\"log-opts\""),
        ("{\"default-ulimits\": {\"x\": {}}}", "no limit \"x\""),
        (
            "{\"default-ulimits\": {\"nofile\": {\"Soft\": 2, \"Hard\": 1}}}",
            "above",
        ),
        ("{\"default-ulimits\": {\"nofile\": {\"Soft\": 2}}}", "both"),
        ("{\"default-shm-size\": \"big\"}", "not a size"),
        ("{\"default-cgroupns-mode\": \"x\"}", "neither"),
        ("{\"default-ipc-mode\": \"host\"}", "neither"),
        ("{\"default-runtime\": \"nvidia\"}", "nvidia"),
        ("{\"init\": 1}", "\"init\": 1 is neither"),
        ("{\"default-init\": \"yes\"}", "\"default-init\""),
        ("{\"dns\": [\"one\"]}", "not an address"),
        ("{\"dns-search\": [\"a b\"]}", "not one word"),
        ("{\"insecure-registries\": [\"10.0.0.0/33\"]}", "range"),
        ("{\"insecure-registries\": [\"http://x\"]}", "scheme"),
        ("{\"registry-mirrors\": [\"mirror\"]}", "URL"),
        ("{\"registry-mirrors\": [\"https://m/x\"]}", "without path"),
    ] {
        refused(text, part);
    }
}

#[test]
fn defaults_fill_what_a_container_leaves_open() {
    let settings = parse(
        r#"{
            "log-driver": "json-file", "log-opts": {"max-size": "5m", "max-file": "2"},
            "default-ulimits": {
                "nofile": {"Name": "nofile", "Hard": 100, "Soft": 50},
                "core": {"Name": "core", "Hard": -1, "Soft": 0}
            },
            "default-shm-size": "32m", "default-cgroupns-mode": "host", "no-new-privileges": true,
            "init": true, "dns": ["10.9.9.9"], "dns-search": ["corp"], "dns-opts": ["ndots:3"]
        }"#,
    )
    .unwrap();
    let mut open = HostConfig::default();
    settings.complete(&mut open, Executor::Linux);
    let mut wasm = HostConfig::default();
    settings.complete(&mut wasm, Executor::Wasm);
    assert_eq!((open.init, wasm.init), (Some(true), None));
    assert_eq!(open.log.driver(), "json-file");
    assert_eq!(open.log.options["max-size"], "5m");
    assert_eq!(open.ulimits.len(), 2);
    assert_eq!(open.ulimits.iter().map(|l| l.hard).max(), Some(u64::MAX));
    assert_eq!(open.shm_size, Some(32 << 20));
    assert_eq!(open.cgroupns_mode, "host");
    assert!(open.no_new_privileges);
    assert_eq!(open.init, Some(true));
    assert_eq!(open.dns.servers, ["10.9.9.9"]);

    let mut own = HostConfig {
        shm_size: Some(1),
        init: Some(false),
        cgroupns_mode: "private".to_owned(),
        security_opt: vec!["no-new-privileges:false".to_owned()],
        ulimits: vec![Rlimit {
            kind: "RLIMIT_NOFILE".to_owned(),
            hard: 7,
            soft: 7,
        }],
        ..HostConfig::default()
    };
    own.log.driver = "local".to_owned();
    own.dns.servers = vec!["10.1.1.1".to_owned()];
    settings.complete(&mut own, Executor::Linux);
    // The options belong to the other driver.
    assert!(own.log.options.is_empty());
    assert_eq!((own.ulimits.len(), own.ulimits[0].hard), (2, 7));
    assert_eq!(own.shm_size, Some(1));
    assert_eq!(own.cgroupns_mode, "private");
    assert!(!own.no_new_privileges);
    assert_eq!(own.init, Some(false));
    assert_eq!(own.dns.servers, ["10.1.1.1"]);
    assert_eq!(own.dns.search, ["corp"]);
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let first = parse(r#"{"log-opts": {"max-file": "9"}, "log-driver": "local"}"#).unwrap();
    let second = parse(r#"{"log-driver": "local", "log-opts": {"max-file": "9"}}"#).unwrap();
    assert_eq!(first, second);
}
