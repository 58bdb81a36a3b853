//! Starting, ending, and failing to start.

use std::fs;
use std::os::fd::AsFd;

use amphora_spec::release::Release;
use amphora_spec::{Classify, ErrorKind};
use amphora_supervisor::*;

use crate::Case;
use crate::support::*;

pub(crate) const ALL: &[Case] = &[
    ("an_exit_code_travels_and_everything_is_recorded", exit_code),
    ("a_signalled_container_has_128_plus_n", signalled),
    ("signals_reach_init_and_bad_ones_are_refused", signals),
    ("release_actions_run_before_the_answer", release_order),
    (
        "an_auto_removed_container_leaves_its_record_in_the_run_dir",
        auto_remove,
    ),
    (
        "a_missing_program_is_told_from_one_that_cannot_run",
        failures,
    ),
    (
        "a_failed_start_leaves_no_process_and_frees_the_lock",
        failed_start,
    ),
    ("wait_finds_the_code_at_any_time", late_wait),
    ("the_caller_does_not_leak_into_the_container", no_leaks),
    ("a_container_restarts_in_its_directories", restart),
];

fn exit_code() {
    let test = TestBox::new();
    let (spawned, mut client) = test.start_attached("echo out; echo err >&2; exit 42");
    let state = test.state();
    assert_eq!(state.init_pid, spawned.init_pid);
    assert_eq!(state.supervisor_pid, spawned.supervisor_pid);
    let (out, err, status) = drain(&mut client);
    assert_eq!((out, err), (b"out\n".to_vec(), b"err\n".to_vec()));
    assert_eq!(
        status,
        ExitStatus {
            code: 42,
            signal: 0,
            oom_killed: false
        }
    );
    let record = test.record();
    assert_eq!(
        (record.code, record.signal, record.error.as_str()),
        (42, 0, "")
    );
    assert!(record.started_at < record.finished_at && record.started_at.ends_with('Z'));
    let state = test.state();
    assert_eq!((state.status, state.exit_code), (Status::Exited, 42));
    test.finished();
    reap(spawned.supervisor_pid);
    assert_eq!(test.logged("stdout"), "out\n");
    assert_eq!(test.logged("stderr"), "err\n");
}

fn signalled() {
    let test = TestBox::new();
    let spawned = test.start("exec sleep 1000");
    kill(spawned.init_pid, 9);
    assert_eq!(
        test.wait(),
        ExitStatus {
            code: 137,
            signal: 9,
            oom_killed: false
        }
    );
    assert_eq!(test.record().signal, 9);
    test.finished();
    reap(spawned.supervisor_pid);
}

fn signals() {
    let test = TestBox::new();
    let script =
        "trap 'echo usr1' USR1; trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done";
    let (spawned, mut attached) = test.start_attached(script);
    assert_eq!(attached.next().unwrap(), ClientEvent::Stdout(b"ready\n"));
    let mut client = Client::connect(&test.config.run_dir).unwrap();
    assert!(matches!(
        client.signal(99),
        Err(SupervisorError::Refused(_))
    ));
    client.signal(10).unwrap();
    assert_eq!(attached.next().unwrap(), ClientEvent::Stdout(b"usr1\n"));
    // 0 is the container's stop signal.
    client.signal(0).unwrap();
    assert_eq!(client.wait().unwrap().code, 3);
    test.finished();
    reap(spawned.supervisor_pid);
}

fn release_order() {
    let mut test = TestBox::new();
    let (name, tree) = (test.root.join("name"), test.root.join("tree"));
    fs::write(&name, "").unwrap();
    fs::create_dir_all(tree.join("below")).unwrap();
    test.config.release = vec![
        Release::Unlink(test.root.join("never")),
        Release::Unlink(name.join("below")),
        Release::Unlink(name.clone()),
        Release::RemoveTree(tree.clone()),
    ];
    let (spawned, mut client) = test.start_attached("exit 0");
    drain(&mut client);
    assert!(!name.exists() && !tree.exists());
    let failures = fs::read_to_string(test.config.run_dir.join("failures")).unwrap();
    assert!(
        failures.contains("below") && failures.lines().count() == 1,
        "{failures}"
    );
    test.finished();
    reap(spawned.supervisor_pid);
}

fn auto_remove() {
    let mut test = TestBox::new();
    test.config.auto_remove = true;
    let (spawned, mut client) = test.start_attached("exit 7");
    assert_eq!(drain(&mut client).2.code, 7);
    assert_eq!(ExitRecord::read(test.data_dir().as_fd()).unwrap(), None);
    let record = ExitRecord::find(test.data_dir().as_fd(), test.run_dir().as_fd()).unwrap();
    assert_eq!(record.unwrap().code, 7);
    test.finished();
    reap(spawned.supervisor_pid);
}

fn failures() {
    let test = TestBox::new();
    fs::write(test.root.join("plain"), "x").unwrap();
    let plain = test.root.join("plain");
    let cases = [
        ("/no/such/program", ErrorKind::CommandNotFound),
        (plain.to_str().unwrap(), ErrorKind::CommandNotExecutable),
    ];
    for (path, kind) in cases {
        let error = spawn(test.request(program(path, &["x"]))).unwrap_err();
        assert!(matches!(error, SupervisorError::Launch { .. }), "{error:?}");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(path), "{error}");
        assert!(error.errno() != 0);
    }
}

fn failed_start() {
    let mut test = TestBox::new();
    let children = || {
        let pid = std::process::id();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    };
    let before = children();
    assert!(spawn(test.request(program("/none", &["none"]))).is_err());
    let data = test.config.data_dir.clone();
    test.config.data_dir = test.root.join("missing");
    let error = spawn(test.request(shell("sleep 100"))).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    test.config.data_dir = data;
    // A run directory in which the socket cannot be made.
    let socket = test.config.run_dir.join("supervisor.sock");
    fs::remove_file(&socket).unwrap();
    fs::create_dir(&socket).unwrap();
    let error = spawn(test.request(shell("sleep 100"))).unwrap_err();
    assert!(error.to_string().contains("supervisor.sock"), "{error}");
    // A program that is none of ours.
    let file = fs::File::open("/proc/version").unwrap().into();
    assert!(
        spawn(SpawnRequest {
            exe: &file,
            ..test.request(shell("true"))
        })
        .is_err()
    );
    assert_eq!(children(), before);
    assert!(!is_alive(test.run_dir().as_fd()).unwrap());
    assert_eq!(fs::read_dir(&test.config.data_dir).unwrap().count(), 0);
    assert!(!test.root.join("finished").exists());
}

fn late_wait() {
    for _ in 0..20 {
        let test = TestBox::new();
        let spawned = test.start("exit 5");
        assert_eq!(test.wait().code, 5);
        assert_eq!(test.wait().code, 5);
        test.finished();
        assert_eq!(test.wait().code, 5);
        reap(spawned.supervisor_pid);
    }
    let test = TestBox::new();
    let error = wait(&test.config.run_dir, &test.config.data_dir).unwrap_err();
    assert!(matches!(error, SupervisorError::NotRunning(_)));
}

fn no_leaks() {
    let test = TestBox::new();
    let leaked = fs::File::open("/proc/version").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let script = "ls /proc/self/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign)' /proc/self/status; pwd";
    let (spawned, mut client) = test.start_attached(script);
    let text = String::from_utf8(drain(&mut client).0).unwrap();
    // 3 is the directory that ls reads.
    assert!(text.starts_with("0 1 2 3 "), "{text}");
    assert!(
        text.contains("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000"),
        "{text}"
    );
    assert!(text.ends_with("\n/\n"), "{text}");
    test.finished();
    reap(spawned.supervisor_pid);
}

fn restart() {
    let test = TestBox::new();
    for code in [1, 2] {
        let spawned = test.start(&format!("echo run; exit {code}"));
        assert_eq!(test.wait().code, code);
        test.finished();
        fs::remove_file(test.root.join("finished")).unwrap();
        reap(spawned.supervisor_pid);
    }
    assert_eq!(test.logged("stdout"), "run\nrun\n");
}
