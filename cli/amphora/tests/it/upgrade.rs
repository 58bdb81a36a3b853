//! Another version of the binary: running supervisors of an older one, which is gone from the disk
//! by now, and records of a newer one.

use std::fs;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::boot::{data, id};
use crate::sandbox::{Output, Sandbox, finish, line_within, path, wait_for, wait_until};
use crate::supervisor::{kill, supervisor_pid};

const SLOW: Duration = Duration::from_secs(20);
const IMAGES: [&str; 2] = ["probe-linux", "probe-wasm"];
const OLD: &str = "0.0.7";

/// A program that was built earlier, in place of the patched copy (`cargo xtask upgrade`).
const GIVEN: &str = "AMPHORA_OLD";

/// An older program: the one that is given, else a copy of ours that says it is an older version.
fn older(s: &Sandbox) -> PathBuf {
    let ours = fs::read(env!("CARGO_BIN_EXE_amphora")).unwrap();
    let given = std::env::var_os(GIVEN);
    let bytes = match &given {
        Some(program) => fs::read(program).unwrap(),
        None => patched(&ours),
    };
    assert_ne!(bytes, ours, "the older program is the one under test");
    let file = s.dir.join("older").join("amphora");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, bytes).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&file, mode).unwrap();
    let version = run_old(s, &file, &["--version"]).ok();
    assert!(given.is_some() || version.contains(OLD), "{version}");
    file
}

fn patched(ours: &[u8]) -> Vec<u8> {
    let own = env!("CARGO_PKG_VERSION").as_bytes();
    assert_eq!(own.len(), OLD.len(), "choose another old version");
    let mut bytes = ours.to_vec();
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(own.len()).position(|w| w == own) {
        at += found;
        bytes[at..at + own.len()].copy_from_slice(OLD.as_bytes());
    }
    bytes
}

fn run_old(s: &Sandbox, old: &PathBuf, args: &[&str]) -> Output {
    let mut command = Command::new(old);
    command
        .args(args)
        .env_clear()
        .env("AMPHORA_ROOT", s.root())
        .env("AMPHORA_RUN_ROOT", s.run_root())
        .stdin(Stdio::null());
    finish(command)
}

fn state(s: &Sandbox, name: &str, key: &str) -> String {
    let value = s.inspect(name)["State"][key].clone();
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// The older binary goes, or another stands in its place.
fn replace(old: &PathBuf, with_another: bool) {
    fs::remove_file(old).unwrap();
    if with_another {
        fs::write(old, "#!/bin/false\n").unwrap();
    }
}

fn survives(with_another: bool) {
    let s = Sandbox::ready();
    for image in IMAGES {
        let old = older(&s);
        let run = |name: &str, more: &[&str], program: &[&str]| {
            let args = [&["run", "-d", "--name", name], more, &[image], program].concat();
            run_old(&s, &old, &args).ok();
        };
        run(
            "again",
            &["--restart", "always", "-p", "8096:80"],
            &["serve", "80", "answer"],
        );
        run("stopped", &[], &["sleep", "600"]);
        run("removed", &["--rm"], &["sleep", "600"]);
        run("adopted", &[], &["sleep", "600"]);
        run("forced", &["-p", "8097:80"], &["sleep", "600"]);
        crate::both::serving(&s, "again");
        replace(&old, with_another);

        the_new_one_works_with_them(&s, image);
        the_old_ones_go_on(&s);
        the_new_one_takes_over(&s);
        for name in ["again", "stopped", "adopted"] {
            s.run(&["rm", "-f", name]).ok();
        }
        s.settle();
        fs::remove_dir_all(old.parent().unwrap()).unwrap();
    }
}

fn answers() {
    wait_until("the server", SLOW, || {
        crate::both::ask("127.0.0.1:8096").is_ok_and(|answer| answer == "answer\n")
    });
}

fn the_new_one_works_with_them(s: &Sandbox, image: &str) {
    assert_eq!(s.run(&["ps", "-q"]).ok().lines().count(), 5);
    answers();
    if image == "probe-linux" {
        let out = s.run(&["exec", "stopped", "/probe", "args", "in"]);
        assert_eq!(out.ok(), "in\n");
    }
    s.run(&["top", "stopped"]).ok();
    s.run(&["pause", "stopped"]).ok();
    s.run(&["unpause", "stopped"]).ok();
    let limits = ["update", "--memory", "64m", "--memory-swap", "64m"];
    s.run(&[&limits[..], &["stopped"]].concat()).ok();
    assert_eq!(s.run(&["logs", "stopped"]).ok(), "sleeping\n");
}

/// With the `prepare` and the `finish` of their own version.
fn the_old_ones_go_on(s: &Sandbox) {
    let (init, supervisor) = (state(s, "again", "Pid"), supervisor_pid(s, "again"));
    kill(init.parse().unwrap());
    wait_until("the next run", SLOW, || {
        state(s, "again", "Status") == "running" && state(s, "again", "Pid") != init
    });
    assert_eq!(supervisor_pid(s, "again"), supervisor);
    answers();
    s.run(&["stop", "-t", "0", "stopped"]).ok();
    assert_eq!(state(s, "stopped", "Status"), "exited");
    // Its name and port are free at once, by the program that holds them.
    s.run(&["rm", "-f", "forced"]).ok();
    let again = ["run", "--rm", "--name", "forced", "-p", "8097:80"];
    s.run(&[&again[..], &["probe-linux"]].concat()).ok();
    s.run(&["kill", "removed"]).ok();
    wait_until("the removal", SLOW, || {
        s.run(&["inspect", "removed"]).code == 1
    });
}

/// From a supervisor that was killed, and with what ended.
fn the_new_one_takes_over(s: &Sandbox) {
    let init = state(s, "adopted", "Pid");
    kill(supervisor_pid(s, "adopted"));
    assert!(s.run(&["ps"]).ok().contains("adopted"));
    assert_eq!(state(s, "adopted", "Pid"), init);
    s.run(&["stop", "-t", "0", "adopted"]).ok();
    s.run(&["start", "stopped"]).ok();
    assert_eq!(state(s, "stopped", "Status"), "running");
    s.run(&["restart", "-t", "0", "again"]).ok();
    answers();
}

/// Checks, sessions and clients of a container whose program was replaced.
fn lives_on(kind: &str) {
    let check = json!({ "Test": ["CMD", "/probe", "exit", "0"], "Interval": 200_000_000 });
    let s = crate::health::world(kind, &check);
    let old = older(&s);
    let run = ["run", "-d", "-i", "--name", "box", "checked", "echo"];
    run_old(&s, &old, &run).ok();
    let checks = || {
        let log = s.inspect("box")["State"]["Health"]["Log"].clone();
        let last = log.as_array().and_then(|l| l.last().cloned());
        last.map_or_else(String::new, |l| l["Start"].to_string())
    };
    wait_until("the first check", SLOW, || !checks().is_empty());
    replace(&old, true);

    let before = checks();
    wait_until("a check after that", SLOW, || checks() != before);
    let health = s.inspect("box")["State"]["Health"]["Status"].clone();
    assert_eq!(health, "healthy");
    let out = s.run(&["exec", "box", "/probe", "args", "in", "it"]);
    assert_eq!(out.ok(), "in\nit\n");
    assert_eq!(s.run(&["exec", "box", "/probe", "exit", "5"]).code, 5);

    let mut client = s.command(&["attach", "box"]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = client.spawn().unwrap();
    writeln!(client.stdin.as_mut().unwrap(), "typed").unwrap();
    let out = BufReader::new(client.stdout.take().unwrap());
    let (line, out) = line_within(out, SLOW);
    assert_eq!(line, "<typed>\n");
    writeln!(client.stdin.as_mut().unwrap(), "bye").unwrap();
    let (line, out) = line_within(out, SLOW);
    assert_eq!(line, "<bye>\n");
    assert_eq!(line_within(out, SLOW).0, "done\n");
    assert_eq!(wait_for(&mut client), 0);
    assert_eq!(s.run(&["wait", "box"]).ok(), "0\n");
    let lines = "ready\n<typed>\n<bye>\ndone\n";
    assert_eq!(s.run(&["logs", "box"]).ok(), lines);

    // Once more, by the new program.
    s.run(&["start", "box"]).ok();
    wait_until("a check of the next run", SLOW, || !checks().is_empty());
    s.run(&["rm", "-f", "box"]).ok();
    s.settle();
    fs::remove_dir_all(old.parent().unwrap()).unwrap();
}

#[test]
fn checks_sessions_and_clients_of_a_replaced_binary_go_on_linux() {
    lives_on("linux");
}

#[test]
fn checks_sessions_and_clients_of_a_replaced_binary_go_on_wasm() {
    lives_on("wasm");
}

#[test]
fn supervisors_of_a_removed_binary_go_on() {
    survives(false);
}

#[test]
fn supervisors_of_a_replaced_binary_go_on() {
    survives(true);
}

#[test]
fn records_of_a_newer_version_are_refused_by_file_and_version() {
    let s = Sandbox::ready();
    s.run(&["run", "--name", "newer", "probe-linux"]).ok();
    s.run(&["create", "--name", "other", "probe-linux"]).ok();
    s.settle();
    let dir = data(&s, &id(&s, "newer"));
    let config = dir.join("config.json");
    let whole = fs::read_to_string(&config).unwrap();
    // The fields that we know, or quite others.
    for text in [
        whole.replacen("\"version\":1", "\"version\":3", 1),
        "{\"version\":3,\"other\":[]}".to_owned(),
    ] {
        assert_ne!(text, whole);
        fs::write(&config, &text).unwrap();
        let sentence = format!(
            "\"{}\" is of version 3; this amphora knows version 2",
            path(&config)
        );
        for args in [
            &["start", "newer"][..],
            &["inspect", "newer"],
            &["ps", "-a"],
        ] {
            let out = s.run(args);
            assert!(out.stderr.contains(&sentence), "{args:?}: {out:?}");
        }
        assert!(s.run(&["ps", "-a"]).ok().contains("other"));
        // It is not ours to change.
        assert_eq!(fs::read_to_string(&config).unwrap(), text);
    }
    fs::write(&config, &whole).unwrap();
    let exit = dir.join("exit");
    let record = fs::read_to_string(&exit).unwrap();
    fs::write(&exit, record.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
    let error = state(&s, "newer", "Error");
    assert!(
        error.contains("it is of version 2; this amphora knows version 1"),
        "{error}"
    );
    for name in ["newer", "other"] {
        s.run(&["rm", name]).ok();
    }
}

#[test]
fn a_running_state_of_a_newer_version_is_left_alone() {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "--name",
        "newer",
        "probe-linux",
        "sleep",
        "600",
    ])
    .ok();
    let whole = id(&s, "newer");
    let file = s.run_root().join("containers").join(&whole).join("state");
    let old = fs::read(&file).unwrap();
    let mut new = old.clone();
    new[8] += 1;
    let sum: u32 = new[..252].iter().map(|b| u32::from(*b)).sum();
    new[252..].copy_from_slice(&sum.to_le_bytes());
    fs::write(&file, &new).unwrap();
    let listed = s.run(&["ps"]);
    let sentence = "state record: it is of version 2; this amphora knows version 1";
    assert!(listed.stderr.contains(sentence), "{listed:?}");
    s.run(&["stop", "newer"]).fails(1, sentence);
    s.run(&["rm", "newer"]).fails(1, sentence);
    assert_eq!(fs::read(&file).unwrap(), new);
    fs::write(&file, &old).unwrap();
    s.run(&["stop", "-t", "0", "newer"]).ok();
    s.run(&["rm", "newer"]).ok();
}
