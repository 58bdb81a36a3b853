//! Signals to a foreground `run` are the container's.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::{Sandbox, wait_for};

/// Signals a `run` once its container has spoken; returns the code and what it said then.
fn signalled(s: &Sandbox, args: &[&str], signal: Signal) -> (i32, String) {
    let mut child = s.command(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
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
