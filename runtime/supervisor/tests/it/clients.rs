//! Attached clients: slow, dead, late, and feeding standard input.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use amphora_supervisor::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::pipe;

use crate::Case;
use crate::support::*;

pub(crate) const ALL: &[Case] = &[
    (
        "a_slow_reader_loses_nothing_and_slows_the_container",
        slow_reader,
    ),
    (
        "a_client_that_goes_leaves_the_container_running",
        dead_client,
    ),
    (
        "the_end_does_not_wait_for_a_client_that_does_not_read",
        stuck_client,
    ),
    ("standard_input_is_copied_whole_and_ended", stdin_whole),
    (
        "standard_input_ends_with_the_client_that_fed_it",
        stdin_client_dies,
    ),
    (
        "a_container_that_closes_its_input_does_not_stop_the_client",
        stdin_closed,
    ),
    ("a_late_client_gets_what_comes_after", late_attach),
    (
        "the_foreground_copies_both_ways_and_returns_the_code",
        foreground,
    ),
    ("the_foreground_forwards_signals", foreground_signal),
    (
        "the_foreground_notices_that_nobody_reads",
        foreground_closed,
    ),
    ("signals_get_through_while_nobody_reads", blocked_signal),
    ("too_many_clients_are_turned_away", many_clients),
];

fn readable(client: &Client) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::IN)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .unwrap()
        > 0
}

fn slow_reader() {
    let test = TestBox::new();
    let (spawned, mut client) = test.start_attached("seq 1 400000; echo done >&2");
    // Nobody reads: the container must come to a halt in write(2).
    until("a blocked container", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/wchan", spawned.init_pid));
        stat.is_ok_and(|s| s.contains("pipe"))
            || std::fs::read_to_string(format!("/proc/{}/stat", spawned.init_pid))
                .is_ok_and(|s| s.contains(") S "))
    });
    assert_eq!(test.state().status, Status::Running);
    let mut out = Vec::<u8>::new();
    let mut n = 0_u32;
    let code = loop {
        match client.next().unwrap() {
            ClientEvent::Stdout(bytes) => out.extend(bytes),
            ClientEvent::Exit(status) => break status.code,
            ClientEvent::Lost => panic!("lost"),
            _ => {}
        }
        n += 1;
        if n.is_multiple_of(8) {
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            let _ = poll(&mut [], Some(&pause));
        }
    };
    assert_eq!(code, 0);
    let want: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert!(
        out == want.as_bytes(),
        "{} of {} bytes",
        out.len(),
        want.len()
    );
    test.finished();
    reap(spawned.supervisor_pid);
}

fn dead_client() {
    let test = TestBox::new();
    let (spawned, mut client) = test.start_attached("seq 1 200000; echo end; exit 4");
    assert!(matches!(client.next().unwrap(), ClientEvent::Stdout(_)));
    drop(client);
    assert_eq!(test.wait().code, 4);
    assert!(test.logged("stdout").ends_with("\n200000\nend\n"));
    test.finished();
    reap(spawned.supervisor_pid);
}

fn stuck_client() {
    let test = TestBox::new();
    // Five chunks: more than the socket holds, not more than socket, chunk at hand and pipe.
    let script = "dd if=/dev/zero bs=65536 count=5 2>/dev/null; exit 6";
    let (spawned, mut client) = test.start_attached(script);
    assert_eq!(test.wait().code, 6);
    test.finished();
    // The supervisor is gone; what it had is still there, to the last byte.
    reap(spawned.supervisor_pid);
    let (out, _, status) = drain(&mut client);
    assert_eq!((out.len(), status.code), (5 << 16, 6));
}

fn stdin_whole() {
    let mut test = TestBox::new();
    test.config.open_stdin = true;
    test.config.stdin_once = true;
    let (spawned, mut client) = test.start_attached("sleep 0.1; md5sum; echo bye");
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    for piece in data.chunks(50_000) {
        client.send_stdin(piece).unwrap();
        assert_eq!(client.next().unwrap(), ClientEvent::StdinReady);
    }
    client.end_stdin().unwrap();
    let out = String::from_utf8(drain(&mut client).0).unwrap();
    std::fs::write(test.root.join("data.bin"), &data).unwrap();
    let sum = std::process::Command::new("/bin/busybox")
        .arg("md5sum")
        .stdin(std::fs::File::open(test.root.join("data.bin")).unwrap())
        .output()
        .unwrap();
    assert_eq!(
        out,
        format!("{}bye\n", String::from_utf8(sum.stdout).unwrap())
    );
    test.finished();
    reap(spawned.supervisor_pid);
}

fn stdin_client_dies() {
    let mut test = TestBox::new();
    test.config.open_stdin = true;
    test.config.stdin_once = true;
    let (spawned, mut client) = test.start_attached("cat; echo over; exit 8");
    client.send_stdin(b"hello\n").unwrap();
    drop(client);
    assert_eq!(test.wait().code, 8);
    assert_eq!(test.logged("stdout"), "hello\nover\n");
    test.finished();
    reap(spawned.supervisor_pid);
}

fn stdin_closed() {
    let mut test = TestBox::new();
    test.config.open_stdin = true;
    test.config.stdin_once = true;
    let (spawned, mut client) = test.start_attached("exec 0<&-; echo closed; sleep 0.2; exit 0");
    assert_eq!(client.next().unwrap(), ClientEvent::Stdout(b"closed\n"));
    for _ in 0..5 {
        client.send_stdin(&[b'x'; 60_000]).unwrap();
        assert_eq!(client.next().unwrap(), ClientEvent::StdinReady);
    }
    assert_eq!(drain(&mut client).2.code, 0);
    test.finished();
    reap(spawned.supervisor_pid);
}

fn late_attach() {
    let test = TestBox::new();
    let script = "echo before; trap 'echo after; exit 0' USR1; while :; do sleep 0.02; done";
    let spawned = test.start(script);
    until("the first line", || test.logged("stdout") == "before\n");
    let mode = AttachMode {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let mut clients: Vec<Client> = (0..5)
        .map(|_| Client::attach(&test.config.run_dir, mode).unwrap())
        .collect();
    clients[4].detach().unwrap();
    Client::connect(&test.config.run_dir)
        .unwrap()
        .signal(10)
        .unwrap();
    for client in &mut clients[..4] {
        let (out, _, status) = drain(client);
        assert_eq!((out.as_slice(), status.code), (&b"after\n"[..], 0));
    }
    assert_eq!(drain(&mut clients[4]).0, b"");
    test.finished();
    reap(spawned.supervisor_pid);
}

fn foreground() {
    let mut test = TestBox::new();
    test.config.open_stdin = true;
    test.config.stdin_once = true;
    let (spawned, mut client) = test.start_attached("cat; echo error >&2; exit 9");
    let (in_read, in_write) = pipe().unwrap();
    let (out_read, out_write) = pipe().unwrap();
    let (err_read, err_write) = pipe().unwrap();
    let data: Vec<u8> = (0..500_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    let writer = std::thread::spawn({
        let data = data.clone();
        move || std::fs::File::from(in_write).write_all(&data).unwrap()
    });
    let reader = |fd: OwnedFd| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            std::fs::File::from(fd).read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let (out, err) = (reader(out_read), reader(err_read));
    let streams = PumpStreams {
        stdin: Some(in_read.as_fd()),
        stdout: Some(out_write.as_fd()),
        stderr: Some(err_write.as_fd()),
        ..PumpStreams::default()
    };
    let end = pump(&mut client, streams, None).unwrap();
    assert_eq!(
        end,
        PumpEnd::Exit(ExitStatus {
            code: 9,
            signal: 0,
            oom_killed: false
        })
    );
    drop((out_write, err_write));
    writer.join().unwrap();
    assert!(out.join().unwrap() == data);
    assert_eq!(err.join().unwrap(), b"error\n");
    test.finished();
    reap(spawned.supervisor_pid);
}

/// A process of its own that runs a container in the foreground, as the command line does:
/// `cli <root> <script>`; its exit code is the container's.
pub(crate) fn cli_main(args: &[String]) -> ExitCode {
    let mut test = TestBox::new();
    let _ = std::fs::remove_dir_all(&test.root);
    test.root = args[2].clone().into();
    test.config.run_dir = test.root.join("run");
    test.config.data_dir = test.root.join("data");
    test.config.finish = vec!["amphora".into(), "finish".into(), args[2].clone()];
    // The directories are the test's.
    let test = std::mem::ManuallyDrop::new(test);
    let signals = ProxySignals::hold().unwrap();
    let (_, mut client) = test.start_attached(&args[3]);
    let (out, err) = (std::io::stdout(), std::io::stderr());
    let streams = PumpStreams {
        stdin: None,
        stdout: Some(out.as_fd()),
        stderr: Some(err.as_fd()),
        ..PumpStreams::default()
    };
    let end = pump(&mut client, streams, Some(&signals)).unwrap();
    let PumpEnd::Exit(status) = end else {
        return ExitCode::from(200);
    };
    ExitCode::from(u8::try_from(status.code).unwrap())
}

fn cli(test: &TestBox, script: &str) -> std::process::Child {
    std::process::Command::new("/proc/self/exe")
        .args(["cli", test.root.to_str().unwrap(), script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

const TRAP: &str = "trap 'echo int; exit 33' INT; echo ready; while :; do sleep 0.02; done";

fn foreground_signal() {
    let test = TestBox::new();
    let mut child = cli(&test, TRAP);
    let mut out = child.stdout.take().unwrap();
    let mut text = [0; 6];
    out.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"ready\n");
    kill(i32::try_from(child.id()).unwrap(), 2);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "int\n");
    assert_eq!(child.wait().unwrap().code(), Some(33));
    test.finished();
}

fn foreground_closed() {
    let test = TestBox::new();
    let mut child = cli(&test, "while :; do echo line; sleep 0.01; done");
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(200));
    assert_eq!(test.state().status, Status::Running);
    kill(test.state().init_pid, 9);
    assert_eq!(test.wait().code, 137);
    test.finished();
}

fn blocked_signal() {
    let test = TestBox::new();
    let script = "trap 'exit 34' TERM; echo ready >&2; seq 1 1000000 & wait";
    let mut child = cli(&test, script);
    let mut out = child.stdout.take().unwrap();
    until("a running container", || {
        State::read(test.run_dir().as_fd())
            .unwrap()
            .is_some_and(|s| s.status == Status::Running)
    });
    until("the first output", || {
        let mut fds = [PollFd::new(&out, PollFlags::IN)];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .unwrap()
            > 0
    });
    kill(i32::try_from(child.id()).unwrap(), 15);
    // The container ends although its output has nowhere to go.
    assert_eq!(test.wait().code, 34);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("1\n2\n3\n"));
    assert_eq!(child.wait().unwrap().code(), Some(34));
    test.finished();
}

fn many_clients() {
    let test = TestBox::new();
    let spawned = test.start("sleep 1000");
    let clients: Vec<Client> = (0..256)
        .map(|_| Client::connect(&test.config.run_dir).unwrap())
        .collect();
    let mut extra = Client::connect(&test.config.run_dir).unwrap();
    assert!(matches!(extra.wait(), Err(SupervisorError::Lost(_))));
    assert!(clients.iter().all(|c| !readable(c)));
    drop(clients);
    until("room again", || {
        Client::connect(&test.config.run_dir)
            .unwrap()
            .signal(28)
            .is_ok()
    });
    kill(spawned.init_pid, 9);
    assert_eq!(test.wait().code, 137);
    test.finished();
    reap(spawned.supervisor_pid);
}
