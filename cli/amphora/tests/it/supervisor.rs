//! Supervisors outlive their command line; a killed one is replaced by the next command.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use crate::sandbox::{Sandbox, path, wait_until};

pub(crate) fn supervisor_pid(s: &Sandbox, name: &str) -> i32 {
    let init = s.inspect(name)["State"]["Pid"].as_i64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap();
    stat.rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_until("the process to end", Duration::from_secs(5), || {
        std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
            .map_or(true, |s| s.contains(") Z "))
    });
}

#[test]
fn a_killed_command_line_leaves_its_container_running() {
    let s = Sandbox::ready();
    let mut child = s
        .command(&["run", "--name", "orphan", "probe-linux", "sleep", "600"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the container", Duration::from_secs(10), || {
        s.run(&["ps"]).stdout.contains("orphan")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(s.run(&["ps"]).ok().contains("orphan"));
    wait_until("the log", Duration::from_secs(5), || {
        s.run(&["logs", "orphan"]).stdout == "sleeping\n"
    });
    s.run(&["stop", "-t", "0", "orphan"]).ok();
    s.run(&["rm", "orphan"]).ok();
}

#[test]
fn a_killed_supervisor_is_replaced_and_knows_the_exit_code() {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "--name",
        "aa",
        "-p",
        "8081:80",
        "probe-linux",
        "sleep",
        "2",
    ])
    .ok();
    kill(supervisor_pid(&s, "aa"));
    assert!(s.run(&["ps"]).ok().contains("Up "));
    assert_eq!(s.run(&["wait", "aa"]).ok(), "0\n");
    s.run(&["rm", "aa"]).ok();
    // The port is free.
    s.run(&["run", "--rm", "-p", "8081:80", "probe-linux"]).ok();
}

#[test]
fn a_killed_supervisor_of_a_container_that_ended_is_put_right() {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "-d",
        "--rm",
        "--name",
        "bb",
        "-p",
        "8082:80",
        "probe-wasm",
        "sleep",
        "600",
    ])
    .ok();
    let pid = s.inspect("bb")["State"]["Pid"].as_i64().unwrap();
    kill(supervisor_pid(&s, "bb"));
    kill(i32::try_from(pid).unwrap());
    // The very next command finds everything free.
    s.run(&[
        "run",
        "--rm",
        "--name",
        "bb",
        "-p",
        "8082:80",
        "probe-linux",
    ])
    .ok();
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
}

/// Lists the system calls of one run of the command line, in order.
pub(crate) fn calls_of(s: &Sandbox, args: &[&str]) -> Vec<String> {
    let log = s.dir.join("calls");
    let status = traced(s, &["-o", log.to_str().unwrap()], args);
    assert!(status.success());
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    text.lines()
        .filter_map(|l| l.split_once('(').map(|(name, _)| name.to_owned()))
        .collect()
}

/// Runs the command line, and it alone, under strace.
pub(crate) fn traced(s: &Sandbox, options: &[&str], args: &[&str]) -> std::process::ExitStatus {
    std::process::Command::new("strace")
        .arg("-qq")
        .args(options)
        .arg(env!("CARGO_BIN_EXE_amphora"))
        .args(args)
        .env("AMPHORA_ROOT", s.root())
        .env("AMPHORA_RUN_ROOT", s.run_root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("strace is installed")
}

/// What strace must be told to do `harm` to every so many of these system calls: the injection, and
/// the call that it must follow.
pub(crate) fn harms<'a>(
    calls: &'a [String],
    harm: &'a str,
    stride: usize,
) -> impl Iterator<Item = (String, String)> + 'a {
    let steps = calls.iter().enumerate().step_by(stride);
    let steps = steps.filter(|(_, name)| !name.starts_with("exit") && *name != "execve");
    steps.map(move |(step, name)| {
        let when = calls[..=step].iter().filter(|c| *c == name).count();
        let inject = format!("inject={name}:{harm}:when={when}");
        (inject, format!("trace={name}"))
    })
}

/// Does `harm` to every so many system calls of a run, then has the next command show that the
/// name and the port are free and that nothing is left.
fn harmed_at_every_step(harm: &str, stride: usize) {
    let s = Sandbox::ready();
    let args = [
        "run",
        "--rm",
        "--name",
        "victim",
        "-p",
        "8083:80",
        "-v",
        "vv:/v",
        "probe-linux",
    ];
    let calls = calls_of(&s, &args);
    assert!(calls.len() > 100, "{calls:?}");
    s.settle();
    let mut harmed = 0;
    for (inject, trace) in harms(&calls, harm, stride) {
        let status = traced(&s, &["-o", "/dev/null", "-e", &trace, "-e", &inject], &args);
        harmed += usize::from(!status.success());
        // Killed after the hand-over, the container itself may run on for its few milliseconds.
        wait_until(
            "the name and the port to be free",
            Duration::from_secs(10),
            || {
                let next = s.run(&[
                    "run",
                    "--rm",
                    "--name",
                    "victim",
                    "-p",
                    "8083:80",
                    "probe-linux",
                ]);
                let busy = next.stderr.contains("already in use");
                assert!(busy || next.code == 0, "after {inject}: {next:?}");
                next.code == 0
            },
        );
        // A supervisor that was just born notices the closed hand-over a moment later.
        wait_until(
            &format!("nothing to be listed after {inject}"),
            Duration::from_secs(10),
            || s.run(&["ps", "-aq"]).ok().is_empty(),
        );
    }
    assert!(
        harmed * 4 > calls.len() / stride,
        "only {harmed} runs were harmed"
    );
    s.run(&["volume", "rm", "-f", "vv"]).ok();
}

#[test]
fn a_command_line_killed_at_any_system_call_leaves_nothing() {
    harmed_at_every_step("signal=KILL", 5);
}

#[test]
fn any_system_call_that_fails_is_undone() {
    harmed_at_every_step("error=ENOSPC", 7);
}

#[test]
fn foreground_output_of_a_full_log_disk_is_complete() {
    const ROOM_TO_START: u64 = 1 << 20;
    let s = Sandbox::with_tmpfs("size=40m");
    s.load_probes();
    let filler = s.dir.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 64 << 10]).is_ok() {}
    let full = file.metadata().unwrap().len();
    file.set_len(full - ROOM_TO_START).unwrap();
    let out = s.run(&["run", "--name", "loud", "probe-linux", "lines", "100000"]);
    assert_eq!(out.ok().lines().count(), 100_000);
    let logged = s.run(&["logs", "loud"]).ok().lines().count();
    assert!(logged < 100_000, "the disk was not full");
    std::fs::remove_file(path(&filler)).unwrap();
    s.run(&["rm", "loud"]).ok();
}

#[test]
fn a_container_is_taken_over_in_its_own_network_namespace_only() {
    let s = Sandbox::ready();
    let publish = ["run", "-d", "--name", "far", "-p", "8087:80"];
    s.run(&[&publish[..], &["probe-linux", "serve", "80", "answer"]].concat())
        .ok();
    crate::both::serving(&s, "far");
    kill(supervisor_pid(&s, "far"));
    std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            // SAFETY: only this thread moves.
            #[expect(unsafe_code, reason = "a command line in another namespace")]
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .unwrap();
            s.run(&["stop", "-t", "0", "far"])
        });
        let refused = elsewhere.join().unwrap();
        refused.fails(1, "its ports are in another network namespace");
    });
    assert!(s.run(&["ps"]).ok().contains("Up "));
    for address in ["127.0.0.1:8087", "[::1]:8087"] {
        assert_eq!(crate::both::ask(address).expect(address), "answer\n");
    }
    s.run(&["rm", "-f", "far"]).ok();
}

/// What later starts take their mount namespace from is one supervisor's, offered and taken back, and
/// nobody needs it to be there.
#[test]
fn one_supervisor_offers_its_empty_mount_namespace() {
    let s = Sandbox::ready();
    let link = s.run_root().join("base");
    let offer = || std::fs::read_link(&link).ok();
    let start = |name: &str| {
        s.run(&["run", "-d", "--name", name, "probe-linux", "sleep", "600"])
            .ok();
        supervisor_pid(&s, name)
    };
    let offered_by = |pid: i32| {
        wait_until("the offer", Duration::from_secs(10), || {
            offer().is_some_and(|o| o.starts_with(pid.to_string()))
        });
    };
    let one = start("one");
    offered_by(one);
    let two = start("two");
    let name = format!(
        "/proc/{one}/fd/{}",
        offer().unwrap().iter().nth(1).unwrap().display()
    );
    let shared = std::fs::read_link(name).unwrap();
    let takes = || {
        let held = std::fs::read_dir(format!("/proc/{two}/fd")).unwrap();
        let mut held = held
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok());
        held.any(|target| target == shared)
    };
    assert!(takes(), "the second start has made one of its own");
    wait_until(
        "the second to give it back",
        Duration::from_secs(10),
        || !takes(),
    );
    assert!(offer().unwrap().starts_with(one.to_string()));
    // One that was killed takes nothing back.
    kill(one);
    assert!(offer().unwrap().starts_with(one.to_string()));
    let three = start("three");
    offered_by(three);
    s.run(&["rm", "-f", "one", "two", "three"]).ok();
    assert_eq!(offer(), None);
}
