//! The configuration file: each key is seen to work, whatever is not understood is refused.

use std::io::Read;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::busybox_image;
use crate::registry::Registry;
use crate::sandbox::{Output, Sandbox, accept_within, finish, path, tool};

const IMAGES: [&str; 2] = ["probe-linux", "probe-wasm"];

fn file(s: &Sandbox) -> PathBuf {
    s.dir.join("daemon.json")
}

/// Runs a command under a configuration.
fn with(s: &Sandbox, config: &Value, args: &[&str]) -> Output {
    with_text(s, &config.to_string(), args)
}

fn with_text(s: &Sandbox, config: &str, args: &[&str]) -> Output {
    std::fs::write(file(s), config).unwrap();
    let mut command = s.command(args);
    command.env("AMPHORA_CONFIG", file(s));
    let output = finish(command);
    std::fs::remove_file(file(s)).unwrap();
    output
}

fn value(s: &Sandbox, name: &str, pointer: &str) -> Value {
    s.inspect(name)
        .pointer(pointer)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn what_is_not_understood_is_refused_by_every_command() {
    let s = Sandbox::ready();
    let name = file(&s);
    for args in [
        &["ps"][..],
        &["images"],
        &["info"],
        &["create", "probe-linux"],
        &["run", "--rm", "probe-linux"],
        &["volume", "ls"],
    ] {
        let text = with_text(&s, "{\n \"debug\": fals }", args).fails(125, "line 2 column");
        assert!(text.contains(path(&name)), "{text}");
        let text = with(&s, &json!({ "data-rot": "/x" }), args).fails(125, "data-rot");
        assert!(text.contains(path(&name)), "{text}");
        with(&s, &json!({ "live-restore": false }), args).fails(125, "\"live-restore\": false");
        with(&s, &json!({ "init-path": "/x" }), args).fails(125, "\"init-path\"");
    }
    let missing = format!("--config-file={}", path(&name));
    s.run(&[&missing, "ps"]).fails(125, "does not exist");
    std::fs::write(&name, "{}").unwrap();
    s.run(&[&missing, "ps"]).ok();
    std::fs::remove_file(&name).unwrap();
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
}

#[test]
fn a_container_gets_the_defaults_and_keeps_its_own() {
    let s = Sandbox::ready();
    let config = json!({
        "log-driver": "json-file", "log-opts": { "max-size": "5m", "max-file": "2" },
        "default-ulimits": { "nofile": { "Name": "nofile", "Hard": 77, "Soft": 66 } },
        "default-shm-size": "3m", "default-cgroupns-mode": "host",
        "default-ipc-mode": "shareable", "no-new-privileges": true,
        "dns": ["10.9.9.9"], "dns-search": ["corp.example"], "dns-opts": ["ndots:3"],
        "live-restore": true, "debug": false, "storage-driver": "overlay2",
    });
    for image in IMAGES {
        let args = ["run", "--name", "dd", image, "cat", "/etc/resolv.conf"];
        assert_eq!(
            with(&s, &config, &args).ok(),
            "nameserver 10.9.9.9\nsearch corp.example\noptions ndots:3\n"
        );
        let host = value(&s, "dd", "/HostConfig");
        assert_eq!(host["LogConfig"]["Config"]["max-size"], "5m");
        assert_eq!(host["LogConfig"]["Config"]["max-file"], "2");
        assert_eq!(host["ShmSize"], 3 << 20);
        assert_eq!(host["CgroupnsMode"], "host");
        assert_eq!(host["IpcMode"], "shareable");
        assert_eq!(host["Ulimits"][0]["Hard"], 77);
        assert_eq!(host["Dns"], json!(["10.9.9.9"]));
        // Without the file it is the same container still.
        s.run(&["start", "-a", "dd"]).ok();
        assert!(s.run(&["logs", "dd"]).ok().ends_with("options ndots:3\n"));
        s.run(&["rm", "dd"]).ok();
        let own = [
            "create",
            "--name",
            "dd",
            "--shm-size",
            "1m",
            "--log-driver",
            "local",
        ];
        let own = [
            &own[..],
            &["--ulimit", "nofile=9", "--cgroupns", "private", image],
        ]
        .concat();
        with(&s, &config, &own).ok();
        let host = value(&s, "dd", "/HostConfig");
        assert_eq!(host["ShmSize"], 1 << 20);
        assert_eq!(host["CgroupnsMode"], "private");
        assert_eq!(host["Ulimits"][0]["Hard"], 9);
        assert_eq!(host["LogConfig"], json!({ "Type": "local", "Config": {} }));
        s.run(&["rm", "dd"]).ok();
    }
    with(
        &s,
        &json!({ "log-driver": "none" }),
        &["run", "--name", "dd", "probe-linux"],
    )
    .ok();
    s.run(&["logs", "dd"]).fails(1, "does not support reading");
    s.run(&["rm", "dd"]).ok();
}

#[test]
fn the_kernel_sees_the_defaults() {
    let s = crate::linux::busybox();
    let config = json!({
        "default-ulimits": { "nofile": { "Name": "nofile", "Hard": 77, "Soft": 66 } },
        "default-shm-size": "3m", "no-new-privileges": true, "default-cgroupns-mode": "host",
    });
    let script = "ulimit -n; grep NoNewPrivs /proc/self/status; df -k /dev/shm | tail -1; \
                  readlink /proc/self/ns/cgroup";
    let run = |options: &[&str]| {
        let args = [&["run", "--rm"], options, &["bb", "sh", "-c", script]].concat();
        with(&s, &config, &args).ok()
    };
    let out = run(&[]);
    assert!(out.starts_with("66\nNoNewPrivs:\t1\n"), "{out}");
    assert!(out.contains(" 3072 "), "{out}");
    let host = std::fs::read_link("/proc/self/ns/cgroup").unwrap();
    assert!(out.contains(path(&host)), "{out}");
    let out = run(&[
        "--security-opt",
        "no-new-privileges:false",
        "--cgroupns",
        "private",
    ]);
    assert!(out.contains("NoNewPrivs:\t0\n"), "{out}");
    assert!(!out.contains(path(&host)), "{out}");
    for key in ["init", "default-init"] {
        let pid = |value: bool, options: &[&str]| {
            let args = [&["run", "--rm"], options, &["bb", "sh", "-c", "echo $$"]].concat();
            with(&s, &json!({ key: value }), &args).ok()
        };
        assert_ne!(pid(true, &[]), "1\n", "{key}");
        assert_eq!(pid(true, &["--init=false"]), "1\n", "{key}");
        assert_eq!(pid(false, &[]), "1\n", "{key}");
    }
}

#[test]
fn roots_come_from_the_file_unless_something_nearer_names_them() {
    let s = Sandbox::ready();
    let (data, run) = (s.dir.join("data"), s.dir.join("exec"));
    let config = json!({ "data-root": data, "exec-root": run });
    std::fs::write(file(&s), config.to_string()).unwrap();
    let mut command = s.command(&["volume", "create", "here"]);
    command
        .env("AMPHORA_CONFIG", file(&s))
        .env_remove("AMPHORA_ROOT")
        .env_remove("AMPHORA_RUN_ROOT");
    finish(command).ok();
    assert!(data.join("volumes/here").is_dir() && run.join("containers").is_dir());
    with(&s, &config, &["volume", "create", "there"]).ok();
    assert!(s.root().join("volumes/there").is_dir());
    s.run(&["volume", "rm", "there"]).ok();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::remove_dir_all(&run).unwrap();
}

/// Gateway and IPv6 prefix of the container `cc`.
fn bridge(s: &Sandbox) -> (String, bool) {
    let network = value(s, "cc", "/NetworkSettings/Networks/bridge");
    let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
    (text("Gateway"), !text("GlobalIPv6Address").is_empty())
}

#[test]
fn the_bridge_is_as_configured_once_nobody_uses_it() {
    let s = Sandbox::loaded();
    let bip = json!({ "bip": "10.123.4.1/24", "mtu": 1400, "ipv6": false });
    let pools = json!({
        "default-address-pools": [{ "base": "10.124.0.0/16", "size": 26 }], "ipv6": true,
    });
    let run = ["run", "-d", "--name", "cc", "-p", "8093:80", "probe-linux"];
    let run = [&run[..], &["serve", "80", "answer"]].concat();
    s.run(&run).ok();
    let (before, _) = bridge(&s);
    // It is in use, and stays.
    with(&s, &bip, &["run", "--rm", "probe-linux"]).ok();
    assert_eq!(bridge(&s).0, before);
    for (config, gateway, six) in [
        (&bip, "10.123.4.1", false),
        (&pools, "10.124.0.1", true),
        (&json!({}), "10.124.0.1", true),
    ] {
        s.run(&["rm", "-f", "cc"]).ok();
        with(&s, config, &run).ok();
        assert_eq!(bridge(&s), (gateway.to_owned(), six));
        crate::both::serving(&s, "cc");
        assert_eq!(crate::both::ask("127.0.0.1:8093").unwrap(), "answer\n");
        let link = tool(&["ip", "link", "show", "amphora0"]);
        assert_eq!(link.contains("mtu 1400"), gateway == "10.123.4.1", "{link}");
    }
    s.run(&["rm", "-f", "cc"]).ok();
    // A restart by policy knows nothing of the file, and keeps to what stands.
    with(
        &s,
        &bip,
        &[
            &["run", "-d", "--name", "cc", "--restart", "always"],
            &["probe-linux", "sleep", "600"][..],
        ]
        .concat(),
    )
    .ok();
    let init = value(&s, "cc", "/State/Pid").as_i64().unwrap();
    crate::supervisor::kill(i32::try_from(init).unwrap());
    crate::sandbox::wait_until("the next run", std::time::Duration::from_secs(20), || {
        value(&s, "cc", "/RestartCount") == 1 && value(&s, "cc", "/State/Status") == "running"
    });
    assert_eq!(bridge(&s), ("10.123.4.1".to_owned(), false));
    s.run(&["rm", "-f", "cc"]).ok();
}

#[test]
fn the_default_runtime_is_that_of_every_container() {
    let s = Sandbox::ready();
    let wasm = json!({ "default-runtime": "wasm" });
    let linux = json!({ "default-runtime": "linux" });
    let runc = json!({ "default-runtime": "runc" });
    assert_eq!(with(&s, &wasm, &["run", "--rm", "probe-linux"]).code, 125);
    assert_eq!(with(&s, &linux, &["run", "--rm", "probe-wasm"]).code, 125);
    for (image, own) in [("probe-linux", "linux"), ("probe-wasm", "wasm")] {
        with(&s, &runc, &["run", "--rm", image]).ok();
        let args = ["run", "--rm", "--runtime", own, image];
        with(&s, &wasm, &args).ok();
    }
}

#[test]
fn mirrors_are_asked_before_docker_hub() {
    let s = Sandbox::new();
    let registry = Registry::start(&s);
    registry.push(
        "library/mirrored",
        "latest",
        &busybox_image("mirrored").blobs(),
    );
    registry.push("own/mirrored", "v1", &busybox_image("other").blobs());
    // Nothing listens at the first; the second has it.
    let config = json!({
        "registry-mirrors": ["http://127.0.0.1:5999/", "http://127.0.0.1:5000"],
    });
    let out = with(
        &s,
        &config,
        &["run", "--rm", "mirrored", "echo", "from a mirror"],
    );
    assert_eq!(out.ok(), "from a mirror\n");
    with(&s, &config, &["pull", "-q", "own/mirrored:v1"]).ok();
    let images = s
        .run(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .ok();
    assert!(images.contains("mirrored:latest\n") && images.contains("own/mirrored:v1\n"));
    // When nobody has it, each says why, and soon.
    let begun = std::time::Instant::now();
    let nobody = with(&s, &config, &["pull", "nosuch"]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    let said = nobody.fails(1, "failed at the mirrors (http://127.0.0.1:5999: ");
    assert!(
        said.contains("connection refused; http://127.0.0.1:5000: "),
        "{said}"
    );
    assert!(said.contains(") and at the registry: "), "{said}");
    // Other registries have no mirrors.
    let other = with(&s, &config, &["pull", "localhost:5999/library/mirrored"]);
    assert_eq!(other.code, 1, "{other:?}");
    let info = with(
        &s,
        &config,
        &["info", "--format", "{{json .RegistryConfig.Mirrors}}"],
    );
    assert!(info.ok().contains("127.0.0.1:5999"));
}

#[test]
fn a_bridge_that_is_not_as_configured_keeps_no_start_waiting() {
    let s = Sandbox::ready();
    s.run(&["run", "-d", "--name", "cc", "probe-linux", "sleep", "600"])
        .ok();
    let lock = std::fs::File::open(s.run_root().join("networks/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for image in IMAGES {
        with(&s, &json!({ "mtu": 1400 }), &["run", "--rm", image]).ok();
    }
    drop(lock);
    s.run(&["rm", "-f", "cc"]).ok();
}

#[test]
fn default_init_says_nothing_of_wasm_containers() {
    let s = Sandbox::ready();
    for (image, init) in [("probe-linux", json!(true)), ("probe-wasm", Value::Null)] {
        let run = ["run", "--name", "ii", image];
        let out = with(&s, &json!({ "default-init": true }), &run);
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{image}");
        assert_eq!(value(&s, "ii", "/HostConfig/Init"), init, "{image}");
        s.run(&["rm", "ii"]).ok();
    }
}

#[test]
fn info_tells_registries_pools_and_log_drivers() {
    let s = Sandbox::ready();
    let plain = s.run(&["info"]).ok();
    let lines = " Insecure Registries:\n  ::1/128\n  127.0.0.0/8\n Live Restore Enabled: true\n";
    assert!(plain.ends_with(lines), "{plain}");
    assert!(
        plain.contains("\n  Log: journald json-file local none syslog\n"),
        "{plain}"
    );
    let config = json!({
        "insecure-registries": ["10.9.0.0/16", "registry.test:5000"],
        "registry-mirrors": ["https://mirror.test"],
        "default-address-pools": [{ "base": "10.77.0.0/16", "size": 24 }],
    });
    let told = with(&s, &config, &["info"]).ok();
    let lines = " Insecure Registries:\n  registry.test:5000\n  10.9.0.0/16\n  ::1/128\n  127.0.0.0/8\n \
                 Registry Mirrors:\n  https://mirror.test\n Live Restore Enabled: true\n \
                 Default Address Pools:\n   Base: 10.77.0.0/16, Size: 24\n";
    assert!(told.ends_with(lines), "{told}");
}

#[test]
fn a_file_that_is_not_there_costs_one_open() {
    let s = Sandbox::ready();
    let log = s.dir.join("calls");
    let run = ["run", "--rm", "probe-linux"];
    assert!(crate::supervisor::traced(&s, &["-f", "-o", path(&log)], &run).success());
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    let calls: Vec<&str> = text.lines().filter(|l| l.contains("daemon.json")).collect();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].contains("open"), "{calls:?}");
}

/// What a pull from `10.77.0.1:5000` says first.
fn first_words(s: &Sandbox, config: &Value) -> Vec<u8> {
    let listener = TcpListener::bind("10.77.0.1:5000").unwrap();
    let heard = std::thread::spawn(move || {
        let mut stream = accept_within(&listener, Duration::from_secs(20));
        let mut words = [0; 8];
        stream.read_exact(&mut words).unwrap();
        words.to_vec()
    });
    std::fs::write(file(s), config.to_string()).unwrap();
    let mut command = s.command(&["pull", "10.77.0.1:5000/x"]);
    command.env("AMPHORA_CONFIG", file(s)).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let words = heard.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_file(file(s)).unwrap();
    words
}

#[test]
fn insecure_registries_are_spoken_to_in_plain_http() {
    let s = Sandbox::new();
    tool(&["ip", "addr", "add", "10.77.0.1/32", "dev", "lo"]);
    let named = json!({ "insecure-registries": ["10.77.0.1:5000"] });
    let other = json!({ "insecure-registries": ["10.77.0.2:5000"] });
    let words = first_words(&s, &named);
    assert!(
        words.starts_with(b"GET /") || words.starts_with(b"HEAD /"),
        "{words:?}"
    );
    // A TLS handshake.
    assert_eq!(first_words(&s, &other)[0], 0x16);
}
