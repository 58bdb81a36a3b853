//! `debug`: tools of another image beside a container that has none.

use std::time::Duration;

use crate::sandbox::{Sandbox, path, wait_for, wait_until};
use crate::supervisor::{kill, supervisor_pid};
use crate::terminal::Seat;

both!(
    tools_see_the_container_and_leave_nothing,
    what_cannot_be_debugged_is_told,
    a_shell_at_a_terminal,
    tools_have_the_rights_of_the_container,
    what_a_lost_session_writes_stays,
    what_may_have_begun_stays,
);

/// The default toolbox, from a local archive.
fn with_tools() -> Sandbox {
    let mut s = Sandbox::ready();
    let archive = s.dir.join("tools.tar");
    crate::fixtures::busybox_image("busybox").write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).unwrap();
    s.settle();
    s.mark();
    s
}

fn tools_see_the_container_and_leave_nothing(image: &str) {
    let s = with_tools();
    let run = [
        "run", "-d", "--name", "dd", "-h", "target", "-u", "1000", "-v", "vol:/vol",
    ];
    s.run(&[&run[..], &[image, "serve", "8080", "answer"]].concat())
        .ok();
    let before = s.run(&["diff", "dd"]).ok();
    let debug = |words: &[&str]| s.run(&[&["debug", "dd"], words].concat());
    let sh = |script: &str| debug(&["sh", "-c", script]);
    // The same processes, network, name.
    let processes = sh("ps -o pid,args").ok();
    assert!(
        processes.lines().any(|l| l.trim().starts_with("1 ")),
        "{processes}"
    );
    wait_until("the container to serve", Duration::from_secs(20), || {
        sh("echo hello | nc 127.0.0.1 8080").stdout == "answer\n"
    });
    assert_eq!(debug(&["hostname"]).ok(), "target\n");
    assert!(sh("cat /etc/hosts").ok().contains("target"));
    // Its own root, and the container's below /proc/1/root, whoever the container is.
    assert!(debug(&["ls", "/proc/1/root"]).ok().contains("vol\n"));
    assert!(debug(&["ls", "/bin"]).ok().contains("busybox\n"));
    sh("echo from the tools > /proc/1/root/vol/note").ok();
    let run = ["run", "--rm", "-v", "vol:/vol", "probe-linux"];
    let read = [&run[..], &["cat", "/vol/note"]].concat();
    assert_eq!(s.run(&read).ok(), "from the tools\n");
    // What the tools write is theirs, and is gone with them.
    let out = sh("echo mine > /tmp/mine; ls /tmp /proc/1/root/tmp; exit 7");
    assert_eq!(out.code, 7);
    assert_eq!(out.stdout.matches("mine\n").count(), 1, "{out:?}");
    assert!(!sh("ls /tmp").ok().contains("mine"));
    assert_eq!(s.run(&["diff", "dd"]).ok(), before);
    let scratch = s
        .run_root()
        .join("containers")
        .join(s.inspect("dd")["Id"].as_str().unwrap())
        .join("debug");
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    // Input, environment, user, directory.
    let args = [
        "debug", "-i", "-e", "A=b", "-u", "1000:7", "-w", "/etc", "dd",
    ];
    let script = ["sh", "-c", "cat; echo $A; id -u; id -g; pwd"];
    let out = s.run_with_input(&[&args[..], &script].concat(), b"typed\n");
    assert_eq!(out.ok(), "typed\nb\n1000\n7\n/etc\n");
    // The image's own command, when none is given: a shell, which finds the end of its input.
    assert_eq!(s.run(&["debug", "dd"]).ok(), "");
    assert_eq!(
        s.run_with_input(&["debug", "-i", "dd"], b"hostname\n").ok(),
        "target\n"
    );
    without_a_process_1(&s, image);
    assert_eq!(sh("echo $AMPHORA_TARGET").ok(), "/proc/1/root\n");
    tools_end_with_it(&s);
    s.run(&["rm", "dd"]).ok();
    s.run(&["volume", "rm", "vol"]).ok();
}

/// The tools belong to the container `dd`: its end is theirs.
fn tools_end_with_it(s: &Sandbox) {
    let mut child = s.command(&["debug", "dd", "sleep", "600"]).spawn().unwrap();
    wait_until("the tools to run", Duration::from_secs(20), || {
        s.run(&["top", "dd"]).stdout.contains("sleep 600")
    });
    s.run(&["kill", "dd"]).ok();
    assert_eq!(wait_for(&mut child), 137);
}

/// A container of the host's processes, with the same volume.
fn without_a_process_1(s: &Sandbox, image: &str) {
    let run = [
        "run", "-d", "--name", "hh", "--pid", "host", "-v", "vol:/vol", image,
    ];
    s.run(&[&run[..], &["sleep", "600"]].concat()).ok();
    let script = "ls $AMPHORA_TARGET/vol; echo $AMPHORA_TARGET";
    let out = s.run(&["debug", "hh", "sh", "-c", script]).ok();
    let pid = s.inspect("hh")["State"]["Pid"].as_i64().unwrap();
    assert_eq!(out, format!("note\n/proc/{pid}/root\n"));
    s.run(&["rm", "-f", "hh"]).ok();
}

fn what_cannot_be_debugged_is_told(image: &str) {
    let s = with_tools();
    s.run(&["debug", "--detach-keys", "a", "nobody"])
        .fails(125, "unknown flag: --detach-keys");
    s.run(&["debug", "nobody"])
        .fails(1, "No such container: nobody");
    s.run(&["create", "--name", "still", image]).ok();
    s.run(&["debug", "still", "true"])
        .fails(1, "is not running");
    s.run(&["run", "-d", "--name", "up", image, "sleep", "600"])
        .ok();
    let out = s.run(&["debug", "up", "nosuch"]);
    assert_eq!(out.code, 127, "{out:?}");
    assert!(
        out.stdout
            .contains("\"nosuch\": executable file not found in $PATH"),
        "{out:?}"
    );
    s.run(&["debug", "--image", "probe-wasm", "up", "true"])
        .fails(1, "probe-wasm is no image of Linux programs");
    s.run(&["debug", "--image", "127.0.0.1:1/none", "up", "true"])
        .fails(1, "Unable to find image '127.0.0.1:1/none:latest' locally");
    if crate::sandbox::has_controller("freezer") {
        s.run(&["pause", "up"]).ok();
        s.run(&["debug", "up", "true"])
            .fails(1, "is paused, unpause the container before debugging it");
    }
    s.run(&["rm", "-f", "up", "still"]).ok();
}

fn a_shell_at_a_terminal(image: &str) {
    let s = with_tools();
    s.run(&["run", "-d", "--name", "tt", image, "sleep", "600"])
        .ok();
    let mut seat = Seat::new(&s, &["debug", "tt"]);
    wait_until("raw mode", Duration::from_secs(20), || seat.is_raw());
    seat.type_in("test -t 0 && echo seat''ed; ls -d /proc/1/root/dev\r");
    seat.hear("seated\r\n");
    seat.hear("/proc/1/root/dev\r\n");
    // What detaches elsewhere is typed here: nobody could come back to the session.
    seat.type_in("\x10\x11\recho st''ill here\r");
    seat.hear("still here\r\n");
    seat.type_in("exit 3\r");
    assert_eq!(seat.end(), 3);
    // An image that is removed meanwhile stays for those who use it.
    let mut seat = Seat::new(&s, &["debug", "tt"]);
    wait_until("raw mode", Duration::from_secs(20), || seat.is_raw());
    s.run(&["tag", "busybox", "again"]).ok();
    s.run(&["save", "-o", path(&s.dir.join("tools.tar")), "busybox"])
        .ok();
    s.run(&["rmi", "-f", "busybox", "again"]).ok();
    seat.type_in("sta''t -c %a /bin/busybox\r");
    seat.hear("755\r\n");
    seat.type_in("exit\r");
    assert_eq!(seat.end(), 0);
    s.run(&["load", "-q", "-i", path(&s.dir.join("tools.tar"))])
        .ok();
    std::fs::remove_file(s.dir.join("tools.tar")).unwrap();
    // Killed, the command line leaves the tools to the container's end.
    let mut child = s.command(&["debug", "tt", "sleep", "600"]).spawn().unwrap();
    wait_until("the tools to run", Duration::from_secs(20), || {
        s.run(&["top", "tt"]).stdout.contains("sleep 600")
    });
    child.kill().unwrap();
    wait_for(&mut child);
    s.run(&["rm", "-f", "tt"]).ok();
}

fn tools_have_the_rights_of_the_container(image: &str) {
    let s = with_tools();
    let run = [
        "run",
        "-d",
        "--name",
        "rr",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
    ];
    s.run(&[&run[..], &[image, "sleep", "600"]].concat()).ok();
    let status = |flags: &[&str]| {
        let read = ["rr", "grep", "-E", "CapEff|NoNewPrivs", "/proc/self/status"];
        let text = s.run(&[&["debug"], flags, &read].concat()).ok();
        let value = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        (value("CapEff:"), value("NoNewPrivs:"))
    };
    // CAP_SYS_PTRACE.
    assert_eq!(status(&[]), (1 << 19, 1));
    let (all, bound) = status(&["--privileged"]);
    assert!(all.count_ones() > 30 && bound == 0, "{all:x} {bound}");
    s.run(&["rm", "-f", "rr"]).ok();
    if image == "probe-linux" {
        let flags = [
            &["--security-opt", "seccomp=unconfined"][..],
            &["--privileged"],
            &[],
        ];
        for (flags, filtered) in flags.into_iter().zip(["0", "0", "2"]) {
            let run = ["run", "-d", "--name", "rr"];
            s.run(&[&run[..], flags, &[image, "sleep", "600"]].concat())
                .ok();
            let read = ["debug", "rr", "grep", "Seccomp:", "/proc/self/status"];
            assert_eq!(
                s.run(&read).ok(),
                format!("Seccomp:\t{filtered}\n"),
                "{flags:?}"
            );
            s.run(&["rm", "-f", "rr"]).ok();
        }
    }
}

fn what_a_lost_session_writes_stays(image: &str) {
    let s = with_tools();
    s.run(&["run", "-d", "--name", "ll", image, "sleep", "600"])
        .ok();
    let id = s.inspect("ll")["Id"].as_str().unwrap().to_owned();
    let scratch = s.run_root().join("containers").join(id).join("debug");
    let mut child = s.command(&["debug", "ll", "sleep", "601"]).spawn().unwrap();
    wait_until("the tools to run", Duration::from_secs(20), || {
        s.run(&["top", "ll"]).stdout.contains("sleep 601")
    });
    kill(supervisor_pid(&s, "ll"));
    assert_eq!(wait_for(&mut child), 1);
    let session = std::fs::read_dir(&scratch).unwrap().flatten().next();
    assert!(session.unwrap().path().join("work/work").is_dir());
    s.run(&["rm", "-f", "ll"]).ok();
    assert!(!scratch.exists());
}

/// The supervisor is killed before it has said whether the tools run.
fn what_may_have_begun_stays(image: &str) {
    let s = with_tools();
    s.run(&["run", "-d", "--name", "ll", image, "sleep", "600"])
        .ok();
    let id = s.inspect("ll")["Id"].as_str().unwrap().to_owned();
    let scratch = s.run_root().join("containers").join(id).join("debug");
    let supervisor = supervisor_pid(&s, "ll");
    let pid = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let mut child = s.command(&["debug", "ll", "sleep", "601"]).spawn().unwrap();
    // The one thing it waits for with nothing but a socket of its own.
    let wait = format!("/proc/{}/wchan", child.id());
    wait_until("the client to wait", Duration::from_secs(20), || {
        std::fs::read_to_string(&wait).is_ok_and(|place| place.contains("skb"))
    });
    kill(supervisor);
    assert_eq!(wait_for(&mut child), 1);
    let session = std::fs::read_dir(&scratch).unwrap().flatten().next();
    assert!(session.unwrap().path().join("work/work").is_dir());
    assert!(s.run(&["ps", "-q"]).ok().lines().count() == 1);
    s.run(&["rm", "-f", "ll"]).ok();
    assert!(!scratch.exists());
}
