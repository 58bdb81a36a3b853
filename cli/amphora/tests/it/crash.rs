//! Records that a power cut tore: what is damaged is named, everything else goes on, and what is
//! damaged can be removed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::boot::{data, id, power_cut};
use crate::sandbox::{Sandbox, path, wait_until};
use crate::supervisor::{calls_of, kill, supervisor_pid};

const IMAGES: [&str; 2] = ["probe-linux", "probe-wasm"];

/// What a cut makes of a record.
fn tear(file: &Path, how: &str) {
    let whole = fs::read(file).unwrap();
    match how {
        "empty" => fs::write(file, ""),
        "torn" => fs::write(file, &whole[..whole.len() / 2]),
        "zeroes" => fs::write(file, vec![0; whole.len()]),
        _ => fs::remove_file(file),
    }
    .unwrap();
}

#[test]
fn a_damaged_container_is_named_and_stops_nobody() {
    let s = Sandbox::loaded();
    for image in IMAGES {
        for how in ["empty", "torn", "zeroes", "missing"] {
            s.run(&["run", "--name", "hurt", "-v", "kept:/v", image])
                .ok();
            s.run(&["run", "-d", "--name", "well", image, "sleep", "600"])
                .ok();
            let hurt = id(&s, "hurt");
            s.run(&["wait", "hurt"]).ok();
            wait_until("its end", Duration::from_secs(20), || {
                !s.run_root().join("containers").join(&hurt).exists()
            });
            let config = data(&s, &hurt).join("config.json");
            tear(&config, how);
            // Twice: with what is remembered of the first time too.
            for _ in 0..2 {
                let all = s.run(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
                assert!(all.stderr.contains("WARNING: container "), "{how}: {all:?}");
                assert!(all.stderr.contains(path(&config)), "{how}: {all:?}");
                let mut rows: Vec<String> = all.ok().lines().map(str::to_owned).collect();
                rows.sort();
                assert_eq!(rows, ["hurt dead", "well running"], "{how}");
            }
            assert_eq!(s.run(&["ps", "--format", "{{.Names}}"]).ok(), "well\n");
            if how != "missing" {
                s.run(&["inspect", "hurt"]).fails(1, path(&config));
                s.run(&["start", "hurt"]).fails(1, path(&config));
            }
            // All others live on, and the next boot too.
            s.run(&["stop", "-t", "0", "well"]).ok();
            s.run(&["start", "well"]).ok();
            s.run(&["container", "prune", "-f"]).ok();
            assert!(data(&s, &hurt).join("upper").is_dir(), "{how}");
            power_cut(&s);
            assert_eq!(s.run(&["ps", "-aq"]).ok().lines().count(), 2, "{how}");
            if how != "missing" {
                let boot = s.run(&["system", "start"]);
                boot.fails(1, path(&config));
            }
            s.run(&["start", "well"]).ok();
            s.run(&["rm", "hurt"]).ok();
            assert!(!data(&s, &hurt).exists(), "{how}");
            s.run(&["run", "--rm", "--name", "hurt", "-v", "kept:/v", image])
                .ok();
            s.run(&["rm", "-f", "well"]).ok();
            assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
        }
    }
}

#[test]
fn a_damaged_container_that_runs_is_removed_by_force() {
    let s = Sandbox::ready();
    for image in IMAGES {
        s.run(&[
            "run", "-d", "--name", "hurt", "-p", "8095:80", image, "sleep", "600",
        ])
        .ok();
        let config = data(&s, &id(&s, "hurt")).join("config.json");
        tear(&config, "empty");
        s.run(&["rm", "hurt"]).fails(1, path(&config));
        s.run(&["rm", "-f", "hurt"]).ok();
        s.run(&["run", "--rm", "--name", "hurt", "-p", "8095:80", image])
            .ok();
    }
}

#[test]
fn a_damaged_container_that_lost_its_supervisor_lives_on() {
    let s = Sandbox::ready();
    for image in IMAGES {
        s.run(&["run", "-d", "--name", "hurt", image, "sleep", "600"])
            .ok();
        let pid = s.inspect("hurt")["State"]["Pid"].as_i64().unwrap();
        let config = data(&s, &id(&s, "hurt")).join("config.json");
        let whole = fs::read(&config).unwrap();
        kill(supervisor_pid(&s, "hurt"));
        tear(&config, "torn");
        for _ in 0..2 {
            s.run(&["start", "hurt"]).fails(1, path(&config));
            s.run(&["ps", "-a"]).ok();
        }
        fs::write(&config, &whole).unwrap();
        let state = s.inspect("hurt")["State"].clone();
        assert_eq!(
            (state["Status"].as_str(), state["Pid"].as_i64()),
            (Some("running"), Some(pid))
        );
        s.run(&["rm", "-f", "hurt"]).ok();
    }
}

#[test]
fn a_damaged_exit_record_is_told_as_such() {
    let s = Sandbox::ready();
    for how in ["empty", "torn", "zeroes"] {
        s.run(&["run", "--name", "hurt", "probe-linux", "exit", "3"]);
        s.settle();
        let exit = data(&s, &id(&s, "hurt")).join("exit");
        tear(&exit, how);
        let all = s.run(&["ps", "-a"]).ok();
        assert!(all.contains("Exited (255)"), "{how}: {all}");
        let state = s.inspect("hurt")["State"].clone();
        assert_eq!(state["ExitCode"], 255);
        let error = state["Error"].as_str().unwrap();
        assert!(error.contains(path(&exit)), "{how}: {error}");
        // It runs again, and then its end is known.
        assert_eq!(s.run(&["start", "-a", "hurt"]).code, 3);
        assert_eq!(s.inspect("hurt")["State"]["ExitCode"], 3);
        s.run(&["rm", "hurt"]).ok();
    }
}

#[test]
fn a_claim_that_is_none_keeps_no_name() {
    let s = Sandbox::ready();
    let names = s.root().join("names");
    std::os::unix::fs::symlink("nonsense", names.join("one")).unwrap();
    fs::write(names.join("two"), "").unwrap();
    for name in ["one", "two"] {
        s.run(&["inspect", name]).fails(1, "o such object");
        s.run(&["run", "--rm", "--name", name, "probe-linux"]).ok();
    }
    assert_eq!(fs::read_dir(&names).unwrap().count(), 0);
}

#[test]
fn a_damaged_index_is_made_anew() {
    let s = Sandbox::ready();
    for name in ["one", "two"] {
        s.run(&["create", "--name", name, "probe-linux"]).ok();
    }
    let list = [
        "ps",
        "-a",
        "--no-trunc",
        "--format",
        "{{.ID}} {{.Names}} {{.Status}}",
    ];
    let whole = s.run(&list).ok();
    let index = s.run_root().join("index");
    for how in ["empty", "torn", "zeroes", "missing"] {
        tear(&index, how);
        let again = s.run(&list);
        assert_eq!(again.stderr, "");
        assert_eq!(again.ok(), whole, "{how}");
    }
}

#[test]
fn the_records_of_network_volume_and_image_are_made_again() {
    let s = Sandbox::loaded();
    let run = ["run", "--rm", "-v", "kept:/v", "probe-linux"];
    s.run(&[&run[..], &["write", "/v/file", "there"]].concat())
        .ok();
    for how in ["empty", "zeroes"] {
        s.settle();
        power_cut(&s);
        let root = s.root();
        tear(&root.join("networks/bridge/config.json"), how);
        tear(&root.join("volumes/kept/meta.json"), how);
        for record in fs::read_dir(root.join("images")).unwrap().flatten() {
            tear(&record.path(), how);
        }
        assert_eq!(s.run(&["ps", "-a"]).ok().lines().count(), 1);
        assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "kept\n");
        assert_eq!(
            s.run(&[&run[..], &["cat", "/v/file"]].concat()).ok(),
            "there\n"
        );
        assert!(s.run(&["images"]).ok().contains("probe-wasm"), "{how}");
    }
    s.run(&["volume", "rm", "kept"]).ok();
}

/// Where a call comes in a list, from the end.
fn last(calls: &[String], name: &str) -> usize {
    calls
        .iter()
        .rposition(|call| call == name)
        .unwrap_or_else(|| panic!("no {name} in {calls:?}"))
}

#[test]
fn content_is_on_disk_before_it_has_a_name() {
    let s = Sandbox::ready();
    s.run(&["create", "--name", "source", "probe-linux"]).ok();
    let wasm = crate::fixtures::probe("wasm32-wasip2");
    for args in [
        &["commit", "source", "committed"][..],
        &["image", "add", path(&wasm), "-t", "added"],
    ] {
        let calls = calls_of(&s, args);
        let named = calls.iter().filter(|call| *call == "syncfs").count();
        assert_eq!(named, 1, "{args:?}");
        // The name is the last that is waited for.
        assert!(
            last(&calls, "syncfs") < last(&calls, "fdatasync"),
            "{args:?}"
        );
    }
    s.run(&["rm", "source"]).ok();
    s.run(&["rmi", "committed", "added"]);
    s.run(&["image", "prune", "-f"]).ok();
}
