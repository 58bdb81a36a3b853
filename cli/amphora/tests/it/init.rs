//! `--init`: the first process of a container is ours and takes care of the program.

use std::time::Duration;

use crate::sandbox::{Sandbox, wait_until};
use crate::terminal::{Seat, load_busybox};

const SLOW: Duration = Duration::from_secs(20);

fn world() -> Sandbox {
    let mut s = Sandbox::ready();
    load_busybox(&mut s);
    s
}

#[test]
fn the_program_is_its_child_and_its_code_the_container_s() {
    let s = world();
    let sh = |flags: &[&str], line: &str| {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.extend(["bb", "sh", "-c", line]);
        s.run(&args)
    };
    assert_eq!(sh(&[], "echo $$").ok(), "1\n");
    assert_eq!(sh(&["--init=false"], "echo $$").ok(), "1\n");
    let pid = sh(&["--init"], "echo $$").ok();
    assert_ne!(pid, "1\n");
    let first = sh(&["--init"], "cat /proc/1/cmdline; cat /proc/1/environ").ok();
    assert!(first.starts_with("amphora\0init\0--\0sh\0-c\0"), "{first}");
    // It is the container's, with what the container may and has.
    let seen = sh(
        &["--init", "-u", "alice", "-e", "A=b c"],
        "id -u; echo $A; pwd",
    );
    assert_eq!(seen.ok(), "1000\nb c\n/\n");
    assert_eq!(sh(&["--init"], "exit 7").code, 7);
    assert_eq!(sh(&["--init"], "kill -9 $$").code, 137);
    assert_eq!(sh(&["--init"], "kill -15 $$").code, 143);
    let missing = s.run(&["run", "--rm", "--init", "bb", "nosuch"]);
    missing.fails(127, "exec: \"nosuch\": executable file not found in $PATH");
    let no_program = s.run(&["run", "--rm", "--init", "bb", "/etc/passwd"]);
    no_program.fails(126, "exec: \"/etc/passwd\": Permission denied");
    // Nobody in there writes it.
    let written = sh(&["--init", "--privileged"], "echo x > /proc/1/exe");
    assert_ne!(written.code, 0);
    s.run(&["run", "-d", "--name", "cc", "--init", "bb", "sleep", "600"])
        .ok();
    assert_eq!(s.inspect("cc")["HostConfig"]["Init"], true);
    // A session has none of its own: its parent is outside.
    let parent = s.run(&["exec", "cc", "sh", "-c", "echo $PPID"]).ok();
    assert_eq!(parent, "0\n");
    s.run(&["rm", "-f", "cc"]).ok();
    s.run(&["run", "--name", "cc", "bb"]).ok();
    assert_eq!(s.inspect("cc")["HostConfig"].get("Init"), None);
}

#[test]
fn signals_reach_the_program() {
    let s = world();
    let line = "trap 'echo usr; exit 9' USR1; trap 'echo rt' 40; echo ready; \
                while :; do sleep 0.05; done";
    s.run(&[
        "run", "-d", "--name", "cc", "--init", "bb", "sh", "-c", line,
    ])
    .ok();
    let log = || s.run(&["logs", "cc"]).ok();
    wait_until("the program", SLOW, || log() == "ready\n");
    s.run(&["kill", "-s", "40", "cc"]).ok();
    wait_until("the signal", SLOW, || log() == "ready\nrt\n");
    s.run(&["kill", "-s", "USR1", "cc"]).ok();
    assert_eq!(s.run(&["wait", "cc"]).ok(), "9\n");
    assert_eq!(log(), "ready\nrt\nusr\n");
    s.run(&["rm", "cc"]).ok();
    // A program that asks for nothing ends by the first signal: it is no first process.
    s.run(&["run", "-d", "--name", "cc", "--init", "bb", "sleep", "600"])
        .ok();
    s.run(&["stop", "-t", "20", "cc"]).ok();
    assert_eq!(s.inspect("cc")["State"]["ExitCode"], 143);
}

#[test]
fn orphans_are_collected() {
    let s = world();
    // The shell ends before what it started, and the program waits for nobody.
    let line = "sh -c 'sleep 0.1 & echo $!'; exec sleep 600";
    for (flags, what, left) in [
        (&[][..], "a zombie", Some("Z")),
        (&["--init"][..], "it to be gone", None),
    ] {
        let mut args = vec!["run", "-d", "--name", "cc"];
        args.extend(flags);
        args.extend(["bb", "sh", "-c", line]);
        s.run(&args).ok();
        let mut orphan = String::new();
        wait_until("the orphan's number", SLOW, || {
            orphan = s.run(&["logs", "cc"]).ok();
            orphan.ends_with('\n')
        });
        // The first letter of its state.
        let state = || {
            let ps = s.run(&["exec", "cc", "ps", "-o", "pid,stat"]).ok();
            ps.lines().find_map(|l| {
                let (pid, stat) = l.trim().split_once(' ')?;
                (pid == orphan.trim()).then(|| stat.trim()[..1].to_owned())
            })
        };
        wait_until(what, SLOW, || state().as_deref() == left);
        s.run(&["rm", "-f", "cc"]).ok();
    }
}

#[test]
fn the_program_has_the_terminal() {
    let s = world();
    let args = ["run", "--rm", "-it", "--init", "--name", "cc", "bb", "sh"];
    let mut seat = Seat::new(&s, &args);
    seat.hear("# ");
    seat.type_in("echo own $$; sleep 600\r");
    seat.hear("\r\nown ");
    // Until its child is that program, a shell may lose a signal.
    wait_until("the program", SLOW, || {
        let top = s.run(&["top", "cc", "-o", "pid,args"]);
        top.stdout.lines().any(|line| line.ends_with(" sleep 600"))
    });
    seat.type_in("\x03");
    seat.hear("# ");
    seat.type_in("echo code $?\r");
    seat.hear("code 130\r\n");
    seat.type_in("exit 5\r");
    assert_eq!(seat.end(), 5);
}

#[test]
fn a_guest_needs_none() {
    let s = Sandbox::ready();
    let out = s.run(&["run", "--rm", "--init", "probe-wasm"]);
    assert!(out.stderr.contains("init is ignored"), "{}", out.stderr);
    assert_eq!(out.ok(), "Hello from Wasm!\n");
}
