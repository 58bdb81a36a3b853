//! Exec sessions of both kinds of container.

use std::io::BufReader;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::fixtures::{self, Image, Wrap};
use crate::sandbox::{Sandbox, line_within, path, wait_for, wait_until};
use crate::terminal::{Seat, load_busybox};

const LIMIT: Duration = Duration::from_secs(20);

/// A running container `box` of one kind, in which `/probe` is the probe.
fn running(kind: &str) -> Sandbox {
    let mut s = Sandbox::ready();
    let image = if kind == "wasm" {
        // As a Dockerfile makes it: the module is a file of the image, and another beside it.
        let module = std::fs::read(fixtures::probe("wasm32-wasip1")).unwrap();
        let archive = s.dir.join("w.tar");
        Image::new(
            "two-modules",
            json!({ "Entrypoint": ["/main.wasm"], "Env": ["FROM_IMAGE=yes"] }),
        )
        .platform("wasi", "wasm")
        .layer(
            &[
                fixtures::dir("tmp", 0o1777),
                fixtures::file("main.wasm", 0o755, module.clone()),
                fixtures::file("probe", 0o755, module),
                fixtures::file("text", 0o755, "no program\n"),
            ],
            Wrap::Plain,
        )
        .write_oci(&archive);
        s.run(&["load", "-q", "-i", path(&archive)]).ok();
        std::fs::remove_file(&archive).unwrap();
        s.run(&["run", "--rm", "two-modules"]).ok();
        s.settle();
        s.mark();
        "two-modules"
    } else {
        "probe-linux"
    };
    s.run(&[
        "run",
        "-d",
        "--name",
        "box",
        "-e",
        "A=1",
        "-v",
        "shared:/shared",
        "--oom-score-adj",
        "321",
        image,
        "sleep",
        "600",
    ])
    .ok();
    s
}

fn done(s: &Sandbox) {
    s.run(&["rm", "-f", "box"]).ok();
    s.run(&["volume", "rm", "shared"]).ok();
}

both!(
    "linux", "wasm":
    codes_streams_and_environment,
    input_and_terminal,
    detached_and_killed_clients,
    refusals_are_docker_s,
    the_session_is_in_the_container,
);

fn codes_streams_and_environment(kind: &str) {
    let s = running(kind);
    for code in [0, 1, 42] {
        let out = s.run(&["exec", "box", "/probe", "exit", &code.to_string()]);
        assert_eq!(out.code, code, "{out:?}");
    }
    // There is no terminal: the last value of the switch counts.
    let said = ["exec", "-it", "--tty=false", "box", "/probe", "args", "x"];
    assert_eq!(s.run(&said).ok(), "x\n");
    let both = s.run(&["exec", "box", "/probe", "both", "to out", "to err"]);
    assert_eq!(
        (both.stdout.as_str(), both.stderr.as_str()),
        ("to out\n", "to err\n")
    );
    let env = s
        .run(&["exec", "-e", "B=two", "-e", "A=2", "box", "/probe", "env"])
        .ok();
    assert!(env.contains("A=2\nB=two\nFROM_IMAGE=yes\n"), "{env}");
    assert!(env.contains("HOME=") && !env.contains("TERM="), "{env}");
    let file = s.dir.join("vars");
    std::fs::write(&file, "# no\nC=from file\n").unwrap();
    let env = s
        .run(&["exec", "--env-file", path(&file), "box", "/probe", "env"])
        .ok();
    assert!(
        env.contains("A=1\n") && env.contains("C=from file\n"),
        "{env}"
    );
    std::fs::remove_file(&file).unwrap();
    let many = s.run(&["exec", "box", "/probe", "lines", "100000"]).ok();
    assert_eq!(many.lines().last(), Some("line 99999"));
    done(&s);
}

fn input_and_terminal(kind: &str) {
    let s = running(kind);
    let big: Vec<u8> = (0..500_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let out = s.run_with_input(&["exec", "-i", "box", "/probe", "stdin"], &big);
    assert_eq!(out.ok().as_bytes(), big);
    assert_eq!(
        s.run_with_input(&["exec", "box", "/probe", "stdin"], b"unseen")
            .ok(),
        ""
    );
    let refused = s.run(&["exec", "-it", "box", "/probe", "tty"]);
    assert_eq!(
        (refused.code, refused.stderr.as_str()),
        (1, "the input device is not a TTY\n")
    );
    let mut seat = Seat::new(&s, &["exec", "-it", "box", "/probe", "tty"]);
    seat.hear("terminal: true true\r\n");
    assert_eq!(seat.end(), 0);
    let mut seat = Seat::new(&s, &["exec", "-it", "box", "/probe", "echo"]);
    seat.hear("ready\r\n");
    wait_until("raw mode", LIMIT, || seat.is_raw());
    seat.type_in("hello\r");
    seat.hear("hello\r\n<hello>\r\n");
    seat.type_in("\x10\x11");
    seat.hear("read escape sequence");
    assert_eq!(seat.end(), 1);
    done(&s);
}

fn detached_and_killed_clients(kind: &str) {
    let s = running(kind);
    let quiet = s.run(&["exec", "-d", "box", "/probe", "write", "/shared/mark", "x"]);
    assert_eq!((quiet.code, quiet.stdout.as_str()), (0, ""));
    let mark = s.root().join("volumes/shared/_data/mark");
    wait_until("the detached session", LIMIT, || mark.exists());
    let mut client = s
        .command(&["exec", "-i", "box", "/probe", "echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (line, _) = line_within(BufReader::new(client.stdout.take().unwrap()), LIMIT);
    assert_eq!(line, "ready\n");
    client.kill().unwrap();
    client.wait().unwrap();
    // Its input ends, so that it ends by itself.
    let records = s.run_root().join("containers").join(id(&s)).join("exec");
    wait_until("the session to end", LIMIT, || {
        std::fs::read_dir(&records).unwrap().flatten().all(|f| {
            let text = std::fs::read_to_string(f.path()).unwrap_or_default();
            text.contains("\"exit_code\":0")
        })
    });
    // A session dies with its container.
    let mut client = s
        .command(&["exec", "box", "/probe", "sleep", "600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (line, _) = line_within(BufReader::new(client.stdout.take().unwrap()), LIMIT);
    assert_eq!(line, "sleeping\n");
    s.run(&["kill", "box"]).ok();
    assert_eq!(wait_for(&mut client), 137);
    done(&s);
}

fn id(s: &Sandbox) -> String {
    s.inspect("box")["Id"].as_str().unwrap().to_owned()
}

fn refusals_are_docker_s(kind: &str) {
    let s = running(kind);
    let missing = s.run(&["exec", "box", "/no/such"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert_eq!(
        missing.stdout,
        "OCI runtime exec failed: exec failed: unable to start container process: \
         exec: \"/no/such\": stat /no/such: no such file or directory: unknown\r\n"
    );
    assert_eq!(missing.stderr, "");
    let detached = s.run(&["exec", "-d", "box", "/no/such"]);
    detached.fails(1, "Error response from daemon: OCI runtime exec failed");
    if kind == "wasm" {
        let text = s.run(&["exec", "box", "/text"]);
        assert_eq!(text.code, 126);
        assert!(text.stdout.contains("not a Wasm module"), "{text:?}");
    } else {
        let dir = s.run(&["exec", "box", "/tmp"]);
        assert_eq!(dir.code, 126, "{dir:?}");
        assert!(dir.stdout.contains("permission denied"), "{dir:?}");
    }
    let user = s.run(&["exec", "-u", "nobody-here", "box", "/probe"]);
    assert_eq!(user.code, 126, "{user:?}");
    assert!(
        user.stdout.contains("unable to find user nobody-here"),
        "{user:?}"
    );
    s.run(&["exec", "nosuch", "/probe"])
        .fails(1, "Error response from daemon: No such container: nosuch");
    s.run(&["exec", "box"])
        .fails(1, "requires at least 2 arguments");
    let id = id(&s);
    s.run(&["kill", "box"]).ok();
    s.run(&["wait", "box"]).ok();
    s.run(&["exec", "box", "/probe"]).fails(
        1,
        &format!("Error response from daemon: container {id} is not running"),
    );
    done(&s);
}

/// What of a process tells in what it is.
fn places(pid: i64) -> Vec<String> {
    let namespace = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        link.to_string_lossy().into_owned()
    };
    let mut all: Vec<String> = ["mnt", "pid", "net", "ipc", "uts", "cgroup"]
        .map(namespace)
        .to_vec();
    all.push(std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let telling = ["Cap", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups"];
    all.extend(
        status
            .lines()
            .filter(|l| telling.iter().any(|t| l.starts_with(t)))
            .map(str::to_owned),
    );
    all.push(std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap());
    all.push(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap());
    all
}

fn session_pid(s: &Sandbox) -> i64 {
    let records = s.run_root().join("containers").join(id(s)).join("exec");
    let running = || {
        std::fs::read_dir(&records).ok()?.flatten().find_map(|f| {
            let text = std::fs::read_to_string(f.path()).ok()?;
            let record: serde_json::Value = serde_json::from_str(&text).ok()?;
            (record["running"] == true).then(|| record["pid"].as_i64())?
        })
    };
    let mut pid = None;
    wait_until("a session on record", LIMIT, || {
        pid = running();
        pid.is_some()
    });
    pid.unwrap()
}

fn the_session_is_in_the_container(kind: &str) {
    let s = running(kind);
    let init = s.inspect("box")["State"]["Pid"].as_i64().unwrap();
    s.run(&["exec", "-d", "box", "/probe", "sleep", "600"]).ok();
    let session = session_pid(&s);
    for (one, other) in places(init).into_iter().zip(places(session)) {
        assert_eq!(one, other);
    }
    assert!(places(session).contains(&"321\n".to_owned()));
    done(&s);
    wait_until("the session to be gone", LIMIT, || {
        !std::path::Path::new(&format!("/proc/{session}")).exists()
    });
}

#[test]
fn users_directories_and_rights() {
    let mut s = Sandbox::ready();
    load_busybox(&mut s);
    s.run(&[
        "run",
        "-d",
        "--name",
        "box",
        "--cap-drop",
        "ALL",
        "--ulimit",
        "nofile=200:300",
        "bb",
        "sleep",
        "600",
    ])
    .ok();
    let sh = |options: &[&str], script: &str| {
        let mut args = vec!["exec"];
        args.extend(options);
        args.extend(["box", "sh", "-c", script]);
        s.run(&args)
    };
    assert_eq!(
        sh(&["-u", "alice", "-w", "/tmp"], "id -un; pwd; echo $HOME").ok(),
        "alice\n/tmp\n/home/alice\n"
    );
    assert_eq!(sh(&["-u", "1000:10"], "id -g").ok(), "10\n");
    assert_eq!(sh(&[], "ulimit -n; ulimit -Hn").ok(), "200\n300\n");
    let caps = "grep CapEff /proc/self/status | cut -f2";
    assert_eq!(sh(&[], caps).ok(), "0000000000000000\n");
    assert_ne!(sh(&["--privileged"], caps).ok(), "0000000000000000\n");
    // The working directory must be there, and be in the container.
    let nowhere = sh(&["-w", "/nope"], "true");
    assert_eq!(nowhere.code, 126, "{nowhere:?}");
    for fd in 3..20 {
        let leak = sh(&["-w", &format!("/proc/self/fd/{fd}")], "pwd");
        assert!(leak.code == 126, "{fd}: {leak:?}");
    }
    // A stopped shell leaves no zombie, a session's orphan goes to the container's init.
    sh(&[], "(sleep 0.1 &)").ok();
    let term = sh(&["-t"], "echo $TERM; busybox tty");
    assert!(term.stdout.starts_with("xterm\r\n/dev/pts/"), "{term:?}");
    s.run(&["rm", "-f", "box"]).ok();
}

#[test]
fn an_export_of_the_containers_own_module() {
    let mut s = Sandbox::ready();
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start")
                (i64.store (i32.const 24) (i64.const 600000000000))
                (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
            (func (export "check") (call $exit (i32.const 9))))"#,
    )
    .unwrap();
    let file = s.dir.join("own.wasm");
    std::fs::write(&file, module).unwrap();
    s.run(&["image", "add", path(&file), "-t", "own"]).ok();
    std::fs::remove_file(&file).unwrap();
    // Compiled artefacts stay.
    s.run(&["run", "-d", "--name", "own", "own"]).ok();
    s.run(&["rm", "-f", "own"]).ok();
    s.settle();
    s.mark();
    s.run(&["run", "-d", "--name", "own", "own"]).ok();
    assert_eq!(s.run(&["exec", "own", "#check"]).code, 9);
    let missing = s.run(&["exec", "own", "#nothing"]);
    assert_ne!(missing.code, 0);
    assert!(
        missing.stderr.contains("exports no function"),
        "{missing:?}"
    );
    s.run(&["rm", "-f", "own"]).ok();
}
