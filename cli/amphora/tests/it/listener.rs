//! Seccomp filters that ask somebody outside (`SCMP_ACT_NOTIFY`), and others of its actions.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::runc::World;
use crate::sandbox::path;

const SOON: Duration = Duration::from_secs(10);
const MKDIR: &str = if cfg!(target_arch = "x86_64") {
    "mkdir"
} else {
    "mkdirat"
};

mod ours {
    #[test]
    fn a_filter_asks_who_listens() {
        super::a_filter_asks_who_listens(&super::World::ours());
    }
}

mod runc {
    #[test]
    fn a_filter_asks_who_listens() {
        super::a_filter_asks_who_listens(&super::World::runc());
    }
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Default)]
struct Question {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    at: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: Opcode = opcode::read_write::<Question>(b'!', 0);
const SEND: Opcode = opcode::read_write::<Answer>(b'!', 1);
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;
const EDOM: i32 = 33;

/// Answers each call with EDOM, but for those that are told to go on.
#[expect(
    unsafe_code,
    reason = "the calls of who listens, which rustix does not have"
)]
fn answer(listener: &OwnedFd, go_on: &[i32]) {
    loop {
        let mut question = Question::default();
        // SAFETY: the operation fills a structure of that shape.
        let receive = unsafe { Updater::<RECEIVE, _>::new(&mut question) };
        // SAFETY: as above.
        let asked = unsafe { ioctl(listener, receive) };
        if asked.is_err() {
            // Nobody is left who could ask.
            return;
        }
        let error = if go_on.contains(&question.number) {
            0
        } else {
            -EDOM
        };
        let mut answer = Answer {
            id: question.id,
            value: 0,
            error,
            flags: if error == 0 { CONTINUE } else { 0 },
        };
        // SAFETY: the operation reads a structure of that shape.
        let send = unsafe { Updater::<SEND, _>::new(&mut answer) };
        // SAFETY: as above. Who asked may be gone by now.
        let _ = unsafe { ioctl(listener, send) };
    }
}

/// Takes one connection: what was sent, and the listener.
fn accept(socket: &UnixListener) -> (Value, OwnedFd) {
    let (connection, _) = socket.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 1 << 16];
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(connection.as_fd(), &mut into, &mut control, flags).unwrap();
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let listener = fds.next().and_then(|mut fds| fds.next()).unwrap();
    (
        serde_json::from_slice(&bytes[..got.bytes]).unwrap(),
        listener,
    )
}

/// Listens until the test ends; what was sent with each listener is told.
fn listen(w: &World, go_on: &'static [i32]) -> Receiver<Value> {
    let socket = UnixListener::bind(w.s.dir.join("console")).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        loop {
            let (state, listener) = accept(&socket);
            std::thread::spawn(move || answer(&listener, go_on));
            if tell.send(state).is_err() {
                return;
            }
        }
    });
    told
}

fn profile(w: &World, names: &[&str]) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path(&w.s.dir.join("console")),
        "listenerMetadata": "some words",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
    })
}

const REFUSED: &str = "mkdir: can't create directory '/tmp/x': Numerical argument out of domain";

fn a_filter_asks_who_listens(w: &World) {
    let told = listen(w, &[]);
    for no_new_privs in [true, false] {
        w.bundle(&["sh", "-c", "busybox mkdir /tmp/x 2>&1"], |spec| {
            spec["process"]["noNewPrivileges"] = no_new_privs.into();
            spec["linux"]["seccomp"] = profile(w, &[MKDIR]);
        });
        let said = w.run(&["run", "one"]);
        assert_eq!(said.stdout.trim(), REFUSED, "{said:?}");
        let state = told.recv_timeout(SOON).unwrap();
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "some words");
        assert_eq!(state["pid"], state["state"]["pid"]);
        assert_eq!(state["state"]["id"], "one");
        assert_eq!(state["state"]["status"], "creating");
    }
    w.bundle(&["sleep", "600"], |spec| {
        spec["linux"]["seccomp"] = profile(w, &[MKDIR]);
    });
    w.detached(&["run", "-d", "one"]).ok();
    let first = told.recv_timeout(SOON).unwrap();
    assert_eq!(first["pid"], w.state("one")["pid"]);
    let said = w.run(&["exec", "one", "busybox", "mkdir", "/tmp/x"]);
    assert_eq!(said.stderr.trim(), REFUSED, "{said:?}");
    let second = told.recv_timeout(SOON).unwrap();
    assert_eq!(second["state"]["pid"], first["pid"]);
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(second["state"]["status"], "running");
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

/// Those that the child itself makes on its way, too.
#[test]
fn calls_on_the_way_to_the_program_are_asked_about() {
    let w = World::ours();
    let call = |name: &str| amphora_executor::seccomp::Arch::NATIVE.number(name);
    let names = ["read", "execve", "close_range", "capset", "faccessat"];
    let numbers: Vec<i32> = names
        .iter()
        .map(|name| call(name).unwrap() as i32)
        .collect();
    let told = listen(&w, numbers.leak());
    w.bundle(&["echo", "there"], |spec| {
        spec["process"]["noNewPrivileges"] = false.into();
        spec["linux"]["seccomp"] = profile(&w, &names);
        spec["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/true"}]});
    });
    std::os::unix::fs::symlink("busybox", w.s.dir.join("rootfs/bin/true")).unwrap();
    assert_eq!(w.run(&["run", "one"]).ok(), "there\n");
    let pids = [0; 2].map(|_| told.recv_timeout(SOON).unwrap()["pid"].clone());
    assert_ne!(pids[0], pids[1], "the hook has a listener of its own");
    std::fs::remove_file(w.s.dir.join("rootfs/bin/true")).unwrap();
    w.done();
}

#[test]
fn without_a_listener_there_is_no_container() {
    let w = World::ours();
    w.bundle(&["sh"], |spec| {
        spec["linux"]["seccomp"] = profile(&w, &[MKDIR]);
    });
    w.detached(&["create", "one"])
        .fails(1, "failed to send the seccomp listener to");
    // One who goes away is no listener either: the calls fail.
    let socket = UnixListener::bind(w.s.dir.join("console")).unwrap();
    let gone = std::thread::spawn(move || drop(accept(&socket)));
    w.bundle(&["sh", "-c", "busybox mkdir /tmp/x 2>&1"], |spec| {
        spec["linux"]["seccomp"] = profile(&w, &[MKDIR]);
    });
    let said = w.run(&["run", "one"]);
    assert!(said.stdout.contains("Function not implemented"), "{said:?}");
    gone.join().unwrap();
    std::fs::remove_file(w.s.dir.join("console")).unwrap();
    for (profile, text) in [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}),
            "defaultAction",
        ),
        (profile(&w, &["write"]), "SCMP_ACT_NOTIFY: \\\"write\\\""),
    ] {
        w.bundle(&["sh"], |spec| spec["linux"]["seccomp"] = profile);
        w.detached(&["create", "one"]).fails(1, text);
    }
    w.done();
}

#[test]
fn every_action_does_what_it_is_called() {
    let w = World::ours();
    let cases = [
        (json!({"action": "SCMP_ACT_LOG"}), 0),
        (json!({"action": "SCMP_ACT_ERRNO", "errnoRet": EDOM}), 1),
        // No tracer: the call is not there.
        (json!({"action": "SCMP_ACT_TRACE", "errnoRet": 7}), 1),
        (json!({"action": "SCMP_ACT_TRAP"}), 128 + 31),
        (json!({"action": "SCMP_ACT_KILL"}), 128 + 31),
        (json!({"action": "SCMP_ACT_KILL_THREAD"}), 128 + 31),
        (json!({"action": "SCMP_ACT_KILL_PROCESS"}), 128 + 31),
    ];
    let script = "busybox mkdir /tmp/x; code=$?; busybox rmdir /tmp/x; exit $code";
    for (mut rule, code) in cases {
        let action = rule["action"].clone();
        rule["names"] = json!([MKDIR, "no_such_call"]);
        w.bundle(&["sh", "-c", script], |spec| {
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls": [rule],
            });
        });
        assert_eq!(w.run(&["run", "one"]).code, code, "{action}");
    }
    w.done();
}
