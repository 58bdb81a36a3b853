//! Exec sessions: streams, codes, clients that go, terminals, the container's end.

use std::os::fd::AsFd;

use amphora_supervisor::*;
use amphora_sys::LaunchPlan;
use amphora_sys::plan::Op;

use crate::Case;
use crate::support::*;

pub(crate) const ALL: &[Case] = &[
    ("exec_streams_and_code_come_back", streams),
    ("exec_that_cannot_be_started_says_why", not_found),
    ("exec_goes_on_when_its_client_is_killed", client_dies),
    ("exec_input_is_copied_and_ended", input),
    ("exec_ends_with_its_container", container_ends),
    ("exec_ends_while_what_it_left_behind_writes", babble),
    ("exec_beside_exec_keeps_streams_apart", many),
    ("exec_gets_signals_of_its_own", signals),
    ("exec_records_are_kept_and_bounded", records),
    ("exec_output_larger_than_any_buffer_arrives_whole", large),
    ("a_terminal_is_given_resized_and_read_to_its_end", terminal),
    ("exec_with_a_terminal", exec_terminal),
    ("a_late_reader_that_does_not_read_stops_nobody", lossy),
];

const BOTH: AttachMode = AttachMode {
    stdin: false,
    stdout: true,
    stderr: true,
};

fn session(id: &str, plan: LaunchPlan) -> ExecRequest {
    ExecRequest {
        config: ExecConfig {
            id: id.to_owned(),
            args: vec!["sh".to_owned()],
            ..ExecConfig::default()
        },
        plan: LaunchPlan {
            clone_flags: 0,
            ..plan
        },
        attach: BOTH,
    }
}

fn exec(test: &TestBox, id: &str, script: &str) -> Client {
    let request = session(id, shell(script));
    Client::exec(&test.config.run_dir, &request).unwrap().0
}

fn end(test: &TestBox, spawned: &Spawned) {
    kill(spawned.init_pid, 9);
    test.finished();
    reap(spawned.supervisor_pid);
}

fn record(test: &TestBox, id: &str) -> Option<ExecRecord> {
    ExecRecord::read(test.run_dir().as_fd(), id).unwrap()
}

fn streams() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mut client = exec(&test, "aa", "echo out; echo err >&2; exit 7");
    let (out, err, status) = drain(&mut client);
    assert_eq!(
        (&out[..], &err[..], status.code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    assert_eq!(
        test.logged("stdout"),
        "",
        "a session's output is not the container's"
    );
    end(&test, &spawned);
}

fn not_found() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let request = session("bb", program("/no/such/program", &["x"]));
    let error = Client::exec(&test.config.run_dir, &request).unwrap_err();
    assert!(
        error.to_string().contains("no such file or directory"),
        "{error}"
    );
    let record = record(&test, "bb").unwrap();
    assert_eq!((record.running, record.exit_code), (false, Some(127)));
    end(&test, &spawned);
}

fn client_dies() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mark = test.root.join("mark");
    let script = format!(
        "echo begun; read line; echo \"in:$line\"; echo x > {}",
        mark.display()
    );
    let mut request = session("cc", shell(&script));
    request.config.open_stdin = true;
    request.attach.stdin = true;
    let (mut client, pid) = Client::exec(&test.config.run_dir, &request).unwrap();
    assert!(matches!(
        client.next().unwrap(),
        ClientEvent::Stdout(b"begun\n")
    ));
    assert!(pid > 0 && record(&test, "cc").unwrap().running);
    drop(client);
    // Its input ends, it does not.
    until("the session to go on", || mark.exists());
    until("its end on record", || {
        record(&test, "cc").unwrap().exit_code == Some(0)
    });
    end(&test, &spawned);
}

fn input() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mut request = session("dd", shell("wc -c; echo after"));
    request.config.open_stdin = true;
    request.attach.stdin = true;
    let (mut client, _) = Client::exec(&test.config.run_dir, &request).unwrap();
    for _ in 0..40 {
        client.send_stdin(&[b'x'; 50_000]).unwrap();
        assert_eq!(client.next().unwrap(), ClientEvent::StdinReady);
    }
    client.end_stdin().unwrap();
    let (out, _, status) = drain(&mut client);
    assert_eq!((out.as_slice(), status.code), (&b"2000000\nafter\n"[..], 0));
    end(&test, &spawned);
}

fn container_ends() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mut plan = shell("echo up; while :; do sleep 1; done");
    let start = amphora_sys::pidfd::start_time(spawned.init_pid).unwrap();
    let init = amphora_sys::pidfd::open(spawned.init_pid, start)
        .unwrap()
        .unwrap();
    plan.pid_namespace = Some(plan.add_fd(init));
    let (mut client, pid) = Client::exec(&test.config.run_dir, &session("ee", plan)).unwrap();
    assert!(matches!(
        client.next().unwrap(),
        ClientEvent::Stdout(b"up\n")
    ));
    kill(spawned.init_pid, 9);
    let (_, _, status) = drain(&mut client);
    assert_eq!((status.code, status.signal), (137, 9));
    test.finished();
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "it was reaped"
    );
    reap(spawned.supervisor_pid);
}

fn babble() {
    const FAR_TOO_MUCH: usize = 200 << 20;
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mut client = exec(&test, "yy", "yes & yes & exit 3");
    let mut seen = 0;
    let code = loop {
        match client.next().unwrap() {
            ClientEvent::Stdout(bytes) => seen += bytes.len(),
            ClientEvent::Exit(status) => break status.code,
            _ => {}
        }
        assert!(seen < FAR_TOO_MUCH, "it does not end");
    };
    assert_eq!(code, 3);
    end(&test, &spawned);
}

fn many() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mut clients: Vec<Client> = (0..20)
        .map(|n| {
            exec(
                &test,
                &format!("many{n}"),
                &format!("echo {n}; sleep 0.05; exit {n}"),
            )
        })
        .collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let (out, _, status) = drain(client);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{n}\n"));
        assert_eq!(status.code, n as i32);
    }
    end(&test, &spawned);
}

fn signals() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let script = "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.02; done";
    let mut client = exec(&test, "ff", script);
    assert!(matches!(
        client.next().unwrap(),
        ClientEvent::Stdout(b"ready\n")
    ));
    client.post_signal(10).unwrap();
    let (out, _, status) = drain(&mut client);
    assert_eq!((out.as_slice(), status.code), (&b"caught\n"[..], 3));
    assert_eq!(test.state().status, Status::Running);
    end(&test, &spawned);
}

fn records() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    for n in 0..40 {
        drain(&mut exec(&test, &format!("r{n:02}"), &format!("exit {n}")));
    }
    assert_eq!(record(&test, "r00"), None);
    assert_eq!(record(&test, "r39").unwrap().exit_code, Some(39));
    let kept = std::fs::read_dir(test.config.run_dir.join("exec"))
        .unwrap()
        .count();
    assert_eq!(kept, 32);
    end(&test, &spawned);
}

fn large() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mut client = exec(&test, "gg", "seq 1 300000");
    // The other sessions and the container go on while nobody reads this one.
    assert_eq!(drain(&mut exec(&test, "hh", "exit 5")).2.code, 5);
    let want: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    let (out, _, status) = drain(&mut client);
    assert!(out == want.as_bytes(), "{} of {}", out.len(), want.len());
    assert_eq!(status.code, 0);
    // One that ends with a chunk at hand: more than the socket holds, not more than that, the
    // chunk and the pipe.
    let script = "dd if=/dev/zero bs=65536 count=5 2>/dev/null; exit 6";
    let mut client = exec(&test, "ii", script);
    until("its end", || {
        let pid = record(&test, "ii").unwrap().pid;
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_err()
    });
    let (out, _, status) = drain(&mut client);
    assert_eq!((out.len(), status.code), (5 << 16, 6));
    end(&test, &spawned);
}

fn with_terminal(mut plan: LaunchPlan) -> LaunchPlan {
    plan.ops.push(Op::NewSession);
    plan.ops.push(Op::Console {
        rows: 33,
        cols: 101,
        uid: 0,
    });
    plan
}

/// Reads until some text has come.
fn hear(client: &mut Client, what: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(what) {
        match client.next().unwrap() {
            ClientEvent::Stdout(bytes) => seen.push_str(&String::from_utf8_lossy(bytes)),
            ClientEvent::Done | ClientEvent::StdinReady => {}
            other => panic!("{other:?} while waiting for {what:?} after {seen:?}"),
        }
    }
    seen
}

fn terminal() {
    let mut test = TestBox::new();
    (test.config.tty, test.config.open_stdin) = (true, true);
    let script = "test -t 0 && test -t 1 && echo tty; stty size; echo ready; \
                  while read line; do stty size; echo \"<$line>\"; test \"$line\" = bye && exit 4; done";
    let attach = AttachMode {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut spawned = spawn(SpawnRequest {
        attach: Some(attach),
        ..test.request(with_terminal(shell(script)))
    })
    .unwrap();
    let mut client = spawned.client.take().unwrap();
    let head = hear(&mut client, "ready");
    assert!(head.contains("tty\r\n33 101\r\n"), "{head:?}");
    client.post_resize(40, 120, "").unwrap();
    client.send_stdin(b"one\n").unwrap();
    let text = hear(&mut client, "<one>");
    assert!(text.contains("one\r\n"), "the terminal echoes: {text:?}");
    client.send_stdin(b"bye\n").unwrap();
    let (out, err, status) = drain(&mut client);
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("<bye>") && err.is_empty(), "{out:?}");
    assert_eq!(status.code, 4);
    let log = test.logged("stdout");
    assert!(
        log.contains("40 120\r\n<one>") && log.ends_with("<bye>\r\n"),
        "{log:?}"
    );
    test.finished();
    reap(spawned.supervisor_pid);
}

fn exec_terminal() {
    let test = TestBox::new();
    let spawned = test.start("while :; do sleep 1; done");
    let mut request = session("tt", with_terminal(shell("stty size; cat; echo gone")));
    (request.config.tty, request.config.open_stdin) = (true, true);
    request.attach.stdin = true;
    let (mut client, _) = Client::exec(&test.config.run_dir, &request).unwrap();
    hear(&mut client, "33 101");
    // Ctrl-C reaches the foreground group: the shell's child and, here, the shell.
    client.send_stdin(b"hi\n").unwrap();
    hear(&mut client, "hi\r\nhi\r\n");
    client.send_stdin(b"\x03").unwrap();
    let (out, _, status) = drain(&mut client);
    assert!(!String::from_utf8(out).unwrap().contains("gone"));
    assert_eq!(status.code, 130);
    // Another connection resizes by id, and is told when there is no such session.
    let mut other = Client::connect(&test.config.run_dir).unwrap();
    other.post_resize(1, 2, "tt").unwrap();
    let refused = "there is no such exec session";
    assert_eq!(other.next().unwrap(), ClientEvent::Refused(refused));
    end(&test, &spawned);
}

fn lossy() {
    let test = TestBox::new();
    let go = test.root.join("go");
    let script = format!(
        "while ! test -e {}; do sleep 0.01; done; seq 1 900000; echo end >&2",
        go.display()
    );
    let spawned = test.start(&script);
    let mut client = Client::attach(&test.config.run_dir, BOTH).unwrap();
    std::fs::write(&go, "").unwrap();
    // It does not read, and the container ends all the same.
    assert_eq!(test.wait().code, 0);
    assert!(test.logged("stderr").ends_with("end\n"));
    let (mut got, mut skipped) = (0, 0);
    loop {
        match client.next().unwrap() {
            ClientEvent::Stdout(bytes) | ClientEvent::Stderr(bytes) => got += bytes.len() as u64,
            ClientEvent::Skipped(n) => skipped += n,
            ClientEvent::Exit(_) => break,
            _ => {}
        }
    }
    let all: u64 = (1..=900_000)
        .map(|n: u32| n.to_string().len() as u64 + 1)
        .sum();
    assert!(skipped > 0 && got > 500_000, "{got} and {skipped}");
    assert_eq!(got + skipped, all + 4, "all of it is accounted for");
    test.finished();
    reap(spawned.supervisor_pid);
}
