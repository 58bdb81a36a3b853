//! `stats` and `top`, for both executors.

use std::time::Duration;

use serde_json::Value;

use crate::sandbox::{Sandbox, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

fn pair(s: &Sandbox) {
    for (name, image) in [("lin", "probe-linux"), ("was", "probe-wasm")] {
        s.run(&["run", "-d", "--name", name, image, "sleep", "600"])
            .ok();
    }
}

#[test]
fn numbers_of_both_executors() {
    let s = Sandbox::ready();
    pair(&s);
    s.run(&["create", "--name", "idle", "probe-linux"]).ok();
    let table = s.run(&["stats", "--no-stream"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT "),
        "{table}"
    );
    assert!(
        lines[0].ends_with("MEM %     NET I/O   BLOCK I/O   PIDS") || lines[0].contains("PIDS"),
        "{table}"
    );
    assert_eq!(lines.len(), 3, "{table}");
    let rows = s
        .run(&["stats", "--no-stream", "--format", "json", "-a"])
        .ok();
    assert_eq!(rows.lines().count(), 3, "{rows}");
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        assert!(
            text("CPUPerc").ends_with('%') && text("MemUsage").contains(" / "),
            "{row}"
        );
        let pids: u32 = text("PIDs").parse().unwrap();
        if text("Name") == "idle" {
            assert_eq!((pids, text("MemUsage")), (0, "0B / 0B".to_owned()));
        } else if crate::sandbox::has_controller("pids") {
            assert!(pids >= 1, "{row}");
        }
    }
    let one = s
        .run(&[
            "stats",
            "--no-stream",
            "--no-trunc",
            "--format",
            "{{len .ID}} {{.Container}} {{.Name}}",
            "lin",
        ])
        .ok();
    assert_eq!(one, "64 lin lin\n");
    s.run(&["stats", "--no-stream", "ghost"])
        .fails(1, "No such container: ghost");
    s.run(&["stats", "--no-stream", "--format", "{{.Nope}}", "lin"])
        .fails(
            1,
            "can't evaluate field Nope in type *container.statsContext",
        );
    s.run(&["rm", "-f", "lin", "was", "idle"]).ok();
}

#[test]
fn processes_of_both_executors() {
    let s = Sandbox::ready();
    pair(&s);
    for name in ["lin", "was"] {
        let text = s.run(&["top", name]).ok();
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            header,
            ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        );
        let pid = s.inspect(name)["State"]["Pid"].to_string();
        assert!(
            lines.any(|l| l.split_whitespace().nth(1) == Some(pid.as_str())),
            "{text}"
        );
    }
    let text = s.run(&["top", "lin", "-o", "pid,comm"]).ok();
    assert!(
        text.lines()
            .next()
            .unwrap()
            .starts_with("PID                 COMMAND"),
        "{text}"
    );
    assert!(s.run(&["top", "lin", "aux"]).ok().starts_with("USER"));
    s.run(&["top", "lin", "--forest"])
        .fails(1, "ps option --forest is not supported");
    s.run(&["top", "lin", "-o", "pid,wchan"])
        .fails(1, "ps column wchan is not supported");
    s.run(&["top", "lin", "-o", "cmd"])
        .fails(1, "Couldn't find PID field in ps output");
    s.run(&["stop", "-t", "0", "lin"]).ok();
    s.run(&["top", "lin"]).fails(1, "is not running");
    s.run(&["rm", "-f", "lin", "was"]).ok();
}

#[test]
fn linear_memory_of_a_wasm_guest() {
    let s = Sandbox::ready();
    pair(&s);
    for (name, image) in [("two", "probe-p1"), ("grown", "probe-wasm")] {
        s.run(&["run", "-d", "--name", name, image, "hold", "48"])
            .ok();
    }
    wait_until("the guests to hold what they have", LIMIT, || {
        let held = |name| s.run(&["logs", name]).ok().contains("holding");
        held("two") && held("grown")
    });
    let look = |name: &str| {
        let format = "{{.LinearMemory}}";
        s.run(&["stats", "--no-stream", "--format", format, name])
            .ok()
    };
    let mib = |text: String| -> f64 { text.trim().strip_suffix("MiB").unwrap().parse().unwrap() };
    assert_eq!(look("lin"), "--\n");
    let idle = mib(look("was"));
    assert!((1.0..16.0).contains(&idle), "{idle}");
    for name in ["two", "grown"] {
        let grown = mib(look(name));
        assert!((48.0..80.0).contains(&grown), "{name}: {grown}");
    }
    let table = s
        .run(&[
            "stats",
            "--no-stream",
            "--format",
            "table {{.Name}}\\t{{.LinearMemory}}",
            "lin",
        ])
        .ok();
    assert!(table.starts_with("NAME      LINEAR MEMORY\n"), "{table}");
    // Docker's JSON stays Docker's.
    let json = s
        .run(&["stats", "--no-stream", "--format", "json", "was"])
        .ok();
    assert!(!json.contains("LinearMemory"), "{json}");
    s.run(&["rm", "-f", "lin", "was", "two", "grown"]).ok();
}
