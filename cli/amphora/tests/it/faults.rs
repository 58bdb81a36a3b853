//! Each step of create, start, stop and remove is killed or fails in turn; the next commands find
//! the container as it was or as it was to be, and can go on.

use std::time::Duration;

use crate::sandbox::{Sandbox, wait_until};
use crate::supervisor::{calls_of, harms, traced};

const KILLED: &str = "signal=KILL";
const NO_SPACE: &str = "error=ENOSPC";

/// One command, and the world around it.
struct Case {
    /// Commands before the victim, each time.
    before: &'static [&'static [&'static str]],
    /// The command that is harmed.
    victim: &'static [&'static str],
    /// What the container may be afterwards; `None` is gone.
    allowed: &'static [Option<&'static str>],
}

const CREATE: &[&str] = &[
    "create",
    "--name",
    "victim",
    "-p",
    "8084:80",
    "-v",
    "anon:/v",
    "probe-linux",
    "sleep",
    "600",
];
const CREATE_WASM: &[&str] = &[
    "create",
    "--name",
    "victim",
    "-p",
    "8084:80",
    "-v",
    "anon:/v",
    "probe-wasm",
    "sleep",
    "600",
];

fn state(s: &Sandbox) -> Option<String> {
    let shown = s.run(&["inspect", "victim"]);
    if shown.code != 0 {
        assert!(shown.stderr.contains("o such"), "{shown:?}");
        return None;
    }
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    Some(shown[0]["State"]["Status"].as_str().unwrap().to_owned())
}

/// Makes the harmed command's world, harms it, looks, and goes on as a user would.
fn one(s: &Sandbox, case: &Case, inject: &str, trace: &str) -> bool {
    for words in case.before {
        s.run(words).ok();
    }
    let options = ["-o", "/dev/null", "-e", trace, "-e", inject];
    let harmed = !traced(s, &options, case.victim).success();
    // A supervisor that was just born sees the closed hand-over a moment later.
    wait_until(
        &format!("an allowed state after {inject}"),
        Duration::from_secs(10),
        || case.allowed.contains(&state(s).as_deref()),
    );
    if state(s).is_some() {
        s.run(&["rm", "-f", "victim"]).ok();
    }
    let again = [CREATE, CREATE_WASM];
    s.run(again[usize::from(case.victim.contains(&"probe-wasm"))])
        .ok();
    s.run(&["start", "victim"]).ok();
    assert_eq!(state(s).as_deref(), Some("running"), "after {inject}");
    s.run(&["rm", "-f", "victim"]).ok();
    harmed
}

fn harmed_everywhere(case: &Case, harm: &str, stride: usize) {
    let s = Sandbox::ready();
    for words in case.before {
        s.run(words).ok();
    }
    let calls = calls_of(&s, case.victim);
    assert!(calls.len() > 30, "{calls:?}");
    s.run(&["rm", "-f", "victim"]);
    let (mut harmed, mut tried) = (0, 0);
    for (inject, trace) in harms(&calls, harm, stride) {
        tried += 1;
        harmed += usize::from(one(&s, case, &inject, &trace));
    }
    assert!(harmed * 4 > tried, "only {harmed} of {tried} were harmed");
    s.run(&["volume", "rm", "-f", "anon"]).ok();
}

const CREATES: Case = Case {
    before: &[],
    victim: CREATE,
    allowed: &[None, Some("created")],
};
const CREATES_WASM: Case = Case {
    before: &[],
    victim: CREATE_WASM,
    allowed: &[None, Some("created")],
};
const STARTS: Case = Case {
    before: &[CREATE],
    victim: &["start", "victim"],
    allowed: &[Some("created"), Some("running")],
};
const STARTS_WASM: Case = Case {
    before: &[CREATE_WASM],
    victim: &["start", "victim"],
    allowed: &[Some("created"), Some("running")],
};
const STOPS: Case = Case {
    before: &[CREATE, &["start", "victim"]],
    victim: &["stop", "-t", "0", "victim"],
    allowed: &[Some("running"), Some("exited")],
};
const REMOVES: Case = Case {
    before: &[CREATE],
    victim: &["rm", "victim"],
    allowed: &[Some("created"), None],
};
const REMOVES_RUNNING: Case = Case {
    before: &[CREATE, &["start", "victim"]],
    victim: &["rm", "-f", "victim"],
    allowed: &[Some("running"), Some("exited"), None],
};

#[test]
fn create_killed_at_any_step() {
    harmed_everywhere(&CREATES, KILLED, 5);
    harmed_everywhere(&CREATES_WASM, KILLED, 9);
}

#[test]
fn create_failing_at_any_step() {
    harmed_everywhere(&CREATES, NO_SPACE, 6);
}

#[test]
fn start_killed_at_any_step() {
    harmed_everywhere(&STARTS, KILLED, 9);
    harmed_everywhere(&STARTS_WASM, KILLED, 15);
}

#[test]
fn start_failing_at_any_step() {
    harmed_everywhere(&STARTS, NO_SPACE, 11);
}

#[test]
fn stop_killed_at_any_step() {
    harmed_everywhere(&STOPS, KILLED, 3);
}

#[test]
fn remove_killed_at_any_step() {
    harmed_everywhere(&REMOVES, KILLED, 3);
    harmed_everywhere(&REMOVES_RUNNING, KILLED, 5);
}

#[test]
fn remove_failing_at_any_step() {
    harmed_everywhere(&REMOVES, NO_SPACE, 4);
}
