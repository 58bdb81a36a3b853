//! Signals to a foreground `run`, `start -a` or `attach` are the container's.

use std::io::{BufReader, Read};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::{Sandbox, line_within, wait_for, wait_until};
use crate::terminal::Seat;

const LIMIT: Duration = Duration::from_secs(20);

/// Signals a `run` once its container has spoken; returns the code and what it said then.
fn signalled(s: &Sandbox, args: &[&str], signal: Signal) -> (i32, String) {
    let mut child = s.command(args).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (line, mut out) = line_within(out, LIMIT);
    assert_eq!(line, "sleeping\n");
    let pid = i32::try_from(child.id()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    let code = wait_for(&mut child);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    (code, rest)
}

#[test]
fn interrupt_and_terminate_reach_a_linux_container() {
    let s = crate::linux::busybox();
    for (signal, name) in [(Signal::INT, "INT"), (Signal::TERM, "TERM")] {
        let script = format!(
            "trap 'echo caught {name}; exit 9' {name}; echo sleeping; while :; do sleep 0.1; done"
        );
        let args = ["run", "--rm", "bb", "sh", "-c", &script];
        let (code, rest) = signalled(&s, &args, signal);
        assert_eq!((code, rest), (9, format!("caught {name}\n")));
    }
}

#[test]
fn interrupt_and_terminate_end_a_wasm_container() {
    let s = Sandbox::ready();
    for image in ["probe-wasm", "probe-p1"] {
        for (signal, expected) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let args = ["run", "--rm", image, "sleep", "600"];
            let (code, rest) = signalled(&s, &args, signal);
            assert_eq!((code, rest.as_str()), (expected, ""), "{image}");
        }
    }
}

/// Begins an `attach` and waits until it is one.
fn attached(s: &Sandbox, options: &[&str]) -> Child {
    let child = s
        .command(&[&["attach"], options, &["at"]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("attach to be attached", LIMIT, || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        fds.flatten()
            .filter_map(|f| std::fs::read_link(f.path()).ok())
            .any(|l| l.to_string_lossy().starts_with("socket:"))
    });
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn status(s: &Sandbox) -> String {
    s.inspect("at")["State"]["Status"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn attach_and_start_pass_signals_on_to_a_linux_container() {
    let s = crate::linux::busybox();
    let script = "trap 'echo caught TERM; exit 9' TERM; trap 'echo caught USR1' USR1; echo sleeping; while :; do sleep 0.1; done";
    s.run(&["create", "--name", "at", "bb", "sh", "-c", script])
        .ok();
    let (code, rest) = signalled(&s, &["start", "-a", "at"], Signal::TERM);
    assert_eq!((code, rest.as_str()), (9, "caught TERM\n"));

    s.run(&["start", "at"]).ok();
    wait_until("it to have its traps", LIMIT, || {
        s.run(&["logs", "at"]).ok().matches("sleeping").count() == 2
    });
    // Its own affair when told so; the container hears nothing.
    let mut child = attached(&s, &["--sig-proxy=false"]);
    send(&child, Signal::TERM);
    assert_eq!(wait_for(&mut child), 143);
    assert_eq!(status(&s), "running");
    let mut child = attached(&s, &["--no-stdin", "--sig-proxy=true"]);
    send(&child, Signal::USR1);
    let out = BufReader::new(child.stdout.take().unwrap());
    // Kept to the end: the rest has somewhere to go.
    let (line, _out) = line_within(out, LIMIT);
    assert_eq!(line, "caught USR1\n");
    send(&child, Signal::TERM);
    assert_eq!(wait_for(&mut child), 9);
    assert_eq!(
        s.run(&["logs", "at"]).ok().matches("caught TERM").count(),
        2
    );
    s.run(&["rm", "at"]).ok();
}

#[test]
fn attach_and_start_pass_signals_on_to_a_wasm_container() {
    let s = Sandbox::ready();
    s.run(&["create", "--name", "at", "probe-wasm", "sleep", "600"])
        .ok();
    let (code, rest) = signalled(&s, &["start", "-a", "at"], Signal::TERM);
    assert_eq!((code, rest.as_str()), (143, ""));
    s.run(&["start", "at"]).ok();
    let mut child = attached(&s, &["--sig-proxy=false"]);
    send(&child, Signal::INT);
    assert_eq!(wait_for(&mut child), 130);
    assert_eq!(status(&s), "running");
    let mut child = attached(&s, &[]);
    send(&child, Signal::INT);
    assert_eq!(wait_for(&mut child), 130);
    assert_eq!(status(&s), "exited");
    s.run(&["rm", "at"]).ok();
}

#[test]
fn keys_that_detach_come_from_the_client_s_configuration() {
    let s = Sandbox::ready();
    let dir = s.dir.join("docker");
    std::fs::create_dir(&dir).unwrap();
    let configure = |text: &str| std::fs::write(dir.join("config.json"), text).unwrap();
    let sit = |variable: &str, value: &std::path::Path, args: &[&str]| {
        let seat = Seat::with_env(&s, args, variable, value);
        wait_until("raw mode", LIMIT, || seat.is_raw());
        seat
    };
    s.run(&["run", "-dit", "--name", "at", "probe-linux", "echo"])
        .ok();
    configure(r#"{ "auths": {}, "detachKeys": "ctrl-e,e" }"#);
    // The usual keys are input now.
    let mut seat = sit("DOCKER_CONFIG", &dir, &["attach", "at"]);
    seat.type_in("\x10\x11one\r");
    seat.hear("one>");
    seat.type_in("\x05e");
    seat.hear("read escape sequence");
    assert_eq!(seat.end(), 1);
    // A flag goes before the file.
    let mut seat = sit(
        "DOCKER_CONFIG",
        &dir,
        &["attach", "--detach-keys", "ctrl-x,x", "at"],
    );
    seat.type_in("\x18x");
    seat.hear("read escape sequence");
    assert_eq!(seat.end(), 1);
    // In its usual place.
    std::fs::rename(&dir, s.dir.join(".docker")).unwrap();
    let mut seat = sit("HOME", &s.dir, &["attach", "at"]);
    seat.type_in("\x05e");
    assert_eq!(seat.end(), 1);
    std::fs::rename(s.dir.join(".docker"), &dir).unwrap();
    // What makes no sense is told; a whole file that does not, does not stop anything.
    configure(r#"{ "detachKeys": "ctrl-?" }"#);
    let mut seat = Seat::with_env(&s, &["attach", "at"], "DOCKER_CONFIG", &dir);
    seat.hear("invalid detach keys (ctrl-?)");
    assert_eq!(seat.end(), 1);
    configure("no JSON");
    let mut seat = sit("DOCKER_CONFIG", &dir, &["attach", "at"]);
    seat.hear("WARNING: Error loading config file: ");
    seat.type_in("\x10\x11");
    assert_eq!(seat.end(), 1);
    s.run(&["rm", "-f", "at"]).ok();
    std::fs::remove_dir_all(&dir).unwrap();
}
