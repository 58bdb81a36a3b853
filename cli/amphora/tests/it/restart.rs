//! Restart policies: the count, the pause, what breaks it, and what a killed supervisor leaves.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::sandbox::{Sandbox, wait_until};
use crate::supervisor::kill;

const SLOW: Duration = Duration::from_secs(20);
const IMAGES: [&str; 2] = ["probe-linux", "probe-wasm"];

fn state(s: &Sandbox, name: &str) -> String {
    let state = s.inspect(name)["State"]["Status"].clone();
    state.as_str().unwrap().to_owned()
}

fn count(s: &Sandbox, name: &str) -> u64 {
    s.inspect(name)["RestartCount"].as_u64().unwrap()
}

pub(crate) fn supervisor(s: &Sandbox, name: &str) -> i32 {
    let id = s.inspect(name)["Id"].as_str().unwrap().to_owned();
    let record = s.run_root().join("containers").join(id).join("state");
    let bytes = std::fs::read(record).unwrap();
    i32::from_le_bytes(bytes[24..28].try_into().unwrap())
}

/// Starts a container with a restart policy; `rest` is what comes behind.
fn restarting(s: &Sandbox, policy: &str, rest: &[&str]) -> String {
    let words = ["run", "-d", "--name", "cc", "--restart", policy];
    s.run(&[&words, rest].concat()).ok()
}

/// Starts one that fails again and again, and waits for a pause in which there is time to look.
fn in_a_long_pause(s: &Sandbox, policy: &str, code: &str) {
    restarting(s, policy, &["probe-linux", "exit", code]);
    // The pauses double: from the fifth on they are long.
    wait_until("a long pause", SLOW, || {
        count(s, "cc") >= 5 && state(s, "cc") == "restarting"
    });
}

#[test]
fn failures_are_retried_as_often_as_asked() {
    let s = Sandbox::ready();
    for image in IMAGES {
        let id = restarting(&s, "on-failure:2", &[image, "exit", "3"]);
        wait_until("the last failure", SLOW, || state(&s, "cc") == "exited");
        assert_eq!(count(&s, "cc"), 2);
        let shown = s.inspect("cc");
        let code = shown["State"]["ExitCode"].clone();
        // A component only says that it failed.
        assert_eq!(code, if image == "probe-wasm" { 1 } else { 3 });
        assert_eq!(shown["State"]["Restarting"], false);
        let policy = &shown["HostConfig"]["RestartPolicy"];
        assert_eq!(policy["Name"], "on-failure");
        assert_eq!(policy["MaximumRetryCount"], 2);
        assert!(
            s.run(&["ps", "-a"])
                .ok()
                .contains(&format!("Exited ({code})"))
        );
        s.run(&["rm", id.trim()]).ok();
        // Success is no failure.
        restarting(&s, "on-failure", &[image]);
        assert_eq!(s.run(&["wait", "cc"]).ok(), "0\n");
        wait_until("the end", SLOW, || state(&s, "cc") == "exited");
        assert_eq!(count(&s, "cc"), 0);
        s.run(&["rm", "cc"]).ok();
    }
}

#[test]
fn the_supervisor_stays_and_everything_is_made_again() {
    let s = Sandbox::ready();
    for image in IMAGES {
        restarting(
            &s,
            "always",
            &["-p", "8085:80", "-v", "keep:/v", image, "sleep", "600"],
        );
        let before = supervisor(&s, "cc");
        let init = s.inspect("cc")["State"]["Pid"].as_i64().unwrap();
        kill(i32::try_from(init).unwrap());
        wait_until("the next run", SLOW, || {
            count(&s, "cc") == 1 && state(&s, "cc") == "running"
        });
        assert_eq!(supervisor(&s, "cc"), before);
        assert!(s.run(&["port", "cc"]).ok().contains("0.0.0.0:8085"));
        assert_ne!(s.inspect("cc")["State"]["Pid"].as_i64().unwrap(), init);
        wait_until("both runs in the log", SLOW, || {
            s.run(&["logs", "cc"]).ok() == "sleeping\nsleeping\n"
        });
        s.run(&["stop", "-t", "0", "cc"]).ok();
        wait_until("the stop", SLOW, || state(&s, "cc") == "exited");
        s.run(&["start", "cc"]).ok();
        assert_eq!(count(&s, "cc"), 0);
        s.run(&["rm", "-f", "cc"]).ok();
        s.run(&["volume", "rm", "keep"]).ok();
    }
}

#[test]
fn pauses_are_shown_and_broken_by_stop_kill_and_rm() {
    let s = Sandbox::ready();
    let breaks: [&[&str]; 3] = [&["stop", "cc"], &["kill", "cc"], &["rm", "-f", "cc"]];
    for words in breaks {
        in_a_long_pause(&s, "always", "1");
        let shown = s.inspect("cc");
        assert_eq!(shown["State"]["Restarting"], true);
        assert_eq!(shown["State"]["Running"], true);
        assert_eq!(shown["State"]["Pid"], 0);
        assert_eq!(shown["State"]["ExitCode"], 1);
        let listed = s.run(&["ps"]).ok();
        assert!(listed.contains("Restarting (1) "), "{listed}");
        s.run(&["rm", "cc"]).fails(
            1,
            "container is restarting: stop the container before removing or force remove",
        );
        s.run(words).ok();
        if words[0] == "rm" {
            assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
        } else {
            wait_until("the end", SLOW, || state(&s, "cc") == "exited");
            s.run(&["rm", "cc"]).ok();
        }
    }
}

#[test]
fn a_stop_by_hand_is_final() {
    let s = Sandbox::ready();
    for policy in ["always", "unless-stopped", "on-failure"] {
        restarting(&s, policy, &["probe-linux", "sleep", "600"]);
        s.run(&["stop", "-t", "0", "cc"]).ok();
        assert_eq!(state(&s, "cc"), "exited");
        s.settle();
        assert_eq!(state(&s, "cc"), "exited");
        s.run(&["rm", "cc"]).ok();
    }
}

#[test]
fn policies_are_changed_and_refused() {
    let s = Sandbox::ready();
    s.run(&["run", "-d", "--name", "cc", "probe-linux", "sleep", "600"])
        .ok();
    s.run(&["update", "--restart", "always", "cc"]).ok();
    let init = s.inspect("cc")["State"]["Pid"].as_i64().unwrap();
    kill(i32::try_from(init).unwrap());
    wait_until("the next run", SLOW, || {
        count(&s, "cc") == 1 && state(&s, "cc") == "running"
    });
    s.run(&["update", "--restart", "no", "cc"]).ok();
    let init = s.inspect("cc")["State"]["Pid"].as_i64().unwrap();
    kill(i32::try_from(init).unwrap());
    wait_until("the end", SLOW, || state(&s, "cc") == "exited");
    s.run(&["rm", "cc"]).ok();
    for (args, text) in [
        (
            ["--restart", "always", "--rm"],
            "conflicting options: cannot specify both --restart and --rm",
        ),
        (
            ["--restart", "always:3", "-d"],
            "maximum retry count can only be used with 'on-failure'",
        ),
        (["--restart", "soon", "-d"], "unknown policy 'soon'"),
    ] {
        let mut all = vec!["run"];
        all.extend(args);
        all.push("probe-linux");
        s.run(&all).fails(125, text);
    }
}

/// Takes the port of `cc`, which holds none in its pause. A pause that was over too soon is
/// followed by one of twice the length.
fn take_port(s: &Sandbox) -> TcpListener {
    let deadline = Instant::now() + SLOW;
    let mut killed = 0;
    loop {
        match TcpListener::bind("0.0.0.0:8086") {
            Ok(listener) => return listener,
            Err(e) => assert_eq!(e.kind(), ErrorKind::AddrInUse),
        }
        assert!(Instant::now() < deadline, "the port was never free");
        let shown = s.inspect("cc")["State"].clone();
        let init = i32::try_from(shown["Pid"].as_i64().unwrap()).unwrap();
        if shown["Status"] == "running" && init != 0 && init != killed {
            kill(init);
            killed = init;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_start_that_fails_counts_and_is_tried_again() {
    let s = Sandbox::ready();
    restarting(
        &s,
        "on-failure:50",
        &["-p", "8086:80", "probe-linux", "sleep", "600"],
    );
    let taken = take_port(&s);
    // The start that was under way when the port was taken may count, and one more has failed.
    let before = count(&s, "cc");
    wait_until("a failed start", SLOW, || count(&s, "cc") >= before + 2);
    let shown = s.inspect("cc");
    assert_eq!(shown["State"]["ExitCode"], 128);
    let error = shown["State"]["Error"].as_str().unwrap();
    assert!(error.contains("8086"), "{error}");
    drop(taken);
    wait_until("the next run", SLOW, || state(&s, "cc") == "running");
    s.run(&["rm", "-f", "cc"]).ok();
}

#[test]
fn a_supervisor_killed_at_any_moment_is_made_up_for() {
    let s = Sandbox::ready();
    // In its pause.
    in_a_long_pause(&s, "always", "1");
    kill(supervisor(&s, "cc"));
    wait_until("another supervisor", SLOW, || {
        count(&s, "cc") >= 2 && state(&s, "cc") == "restarting"
    });
    s.run(&["rm", "-f", "cc"]).ok();
    // With its container: the next command starts both.
    restarting(&s, "always", &["probe-linux", "sleep", "600"]);
    let init = s.inspect("cc")["State"]["Pid"].as_i64().unwrap();
    kill(supervisor(&s, "cc"));
    kill(i32::try_from(init).unwrap());
    wait_until("the next run", SLOW, || state(&s, "cc") == "running");
    s.run(&["rm", "-f", "cc"]).ok();
    // Somewhere between the end of one run and the next.
    for delay in 0..12_u64 {
        restarting(&s, "always", &["probe-linux", "exit", "1"]);
        let pid = supervisor(&s, "cc");
        let begin = std::time::Instant::now();
        let moment = Duration::from_millis(95 + delay * 3);
        wait_until("the moment", SLOW, || begin.elapsed() >= moment);
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        );
        wait_until("another supervisor", SLOW, || {
            count(&s, "cc") >= 1 && state(&s, "cc") == "restarting"
        });
        s.run(&["rm", "-f", "cc"]).ok();
    }
}

#[test]
fn a_supervisor_killed_in_a_pause_loses_no_count_and_no_code() {
    let s = Sandbox::ready();
    let begin = || {
        in_a_long_pause(&s, "on-failure:6", "7");
        kill(supervisor(&s, "cc"));
    };
    // The next command goes on where it was: one more run, and no seventh.
    begin();
    wait_until("the last end", SLOW, || state(&s, "cc") == "exited");
    assert_eq!(count(&s, "cc"), 6);
    assert_eq!(s.inspect("cc")["State"]["ExitCode"], 7);
    s.run(&["rm", "cc"]).ok();
    // Stopped by hand, before anybody else looks.
    begin();
    s.run(&["stop", "cc"]).ok();
    s.settle();
    assert_eq!(state(&s, "cc"), "exited");
    assert_eq!(s.inspect("cc")["State"]["ExitCode"], 7);
    s.run(&["rm", "cc"]).ok();
}
