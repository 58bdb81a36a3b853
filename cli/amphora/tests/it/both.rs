//! Every case once in a Linux and once in a Wasm container, with the same commands.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use crate::sandbox::{Sandbox, line_within, path, tool, wait_for, wait_until};

both!(
    arguments_environment_and_directory,
    exit_codes_and_streams,
    stdin_is_copied,
    volumes_are_shared_and_read_only_holds,
    new_volume_is_filled_from_the_image,
    bind_mounts,
    read_only_root,
    detached_logs_stop_and_remove,
    published_ports,
    containers_reach_each_other,
    network_none,
    tmpfs_mount,
    signals_end_it,
    what_is_killed_has_ended,
    name_is_free_at_once,
    create_start_wait,
    kill_and_restart,
    inspect_tells_executor_and_reason,
    memory_limit_is_felt,
    published_udp_ports,
    the_last_value_of_a_switch_counts,
    words_behind_the_image_are_no_flags,
);

/// A module of WASI 0.1, in what does not need a socket.
mod wasi1 {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { $( #[test] fn $name() { super::$name("probe-p1"); } )* };
    }
    cases!(
        arguments_environment_and_directory,
        exit_codes_and_streams,
        stdin_is_copied,
        volumes_are_shared_and_read_only_holds,
        new_volume_is_filled_from_the_image,
        bind_mounts,
        read_only_root,
        detached_logs_stop_and_remove,
        tmpfs_mount,
        signals_end_it,
        create_start_wait,
        memory_limit_is_felt,
    );
}

fn arguments_environment_and_directory(image: &str) {
    let s = Sandbox::ready();
    assert_eq!(
        s.run(&["run", "--rm", image, "args", "a b", "", "-x"]).ok(),
        "a b\n\n-x\n"
    );
    let env = s
        .run(&[
            "run",
            "--rm",
            "-e",
            "A=1",
            "-e",
            "B=two words",
            "-h",
            "box",
            image,
            "env",
        ])
        .ok();
    assert!(
        env.contains("A=1\n") && env.contains("B=two words\n"),
        "{env}"
    );
    assert!(env.contains("HOSTNAME=box\n"), "{env}");
    assert!(
        !env.contains("AMPHORA"),
        "the caller's environment leaks: {env}"
    );
    // A guest built by Rust does not know its directory, but works in it.
    s.run(&[
        "run", "--rm", "-v", "dir:/dir", "-w", "/dir", image, "write", "relative", "x",
    ])
    .ok();
    assert_eq!(
        s.run(&["run", "--rm", "-v", "dir:/dir", image, "ls", "/dir"])
            .ok(),
        "relative\n"
    );
    s.run(&["volume", "rm", "dir"]).ok();
}

fn exit_codes_and_streams(image: &str) {
    let s = Sandbox::ready();
    let codes = if image == "probe-wasm" {
        "probe-p1"
    } else {
        image
    };
    for code in [0, 1, 7, 42] {
        assert_eq!(
            s.run(&["run", "--rm", codes, "exit", &code.to_string()])
                .code,
            code
        );
    }
    let both = s.run(&["run", "--rm", image, "both", "to out", "to err"]);
    assert_eq!(
        (both.stdout.as_str(), both.stderr.as_str()),
        ("to out\n", "to err\n")
    );
    let many = s.run(&["run", "--rm", image, "lines", "200000"]).ok();
    assert_eq!(many.lines().count(), 200_000);
    assert_eq!(many.lines().last(), Some("line 199999"));
}

fn stdin_is_copied(image: &str) {
    let s = Sandbox::ready();
    let big: Vec<u8> = (0..1_000_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let out = s
        .run_with_input(&["run", "--rm", "-i", image, "stdin"], &big)
        .ok();
    assert_eq!(out.as_bytes(), big);
    // Without -i there is nothing to read.
    assert_eq!(
        s.run_with_input(&["run", "--rm", image, "stdin"], b"unseen")
            .ok(),
        ""
    );
}

fn volumes_are_shared_and_read_only_holds(image: &str) {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "--rm",
        "-v",
        "data:/vol",
        image,
        "write",
        "/vol/note",
        "kept",
    ])
    .ok();
    for other in ["probe-linux", "probe-wasm", "probe-p1"] {
        let text = s
            .run(&[
                "run",
                "--rm",
                "-v",
                "data:/vol:ro",
                other,
                "cat",
                "/vol/note",
            ])
            .ok();
        assert_eq!(text, "kept\n");
    }
    let refused = s.run(&[
        "run",
        "--rm",
        "-v",
        "data:/vol:ro",
        image,
        "write",
        "/vol/note",
        "lost",
    ]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert_eq!(
        s.run(&["run", "--rm", "-v", "data:/vol", image, "cat", "/vol/note"])
            .ok(),
        "kept\n"
    );
    s.run(&["volume", "rm", "data"]).ok();
}

fn new_volume_is_filled_from_the_image(image: &str) {
    let s = Sandbox::ready();
    if image != "probe-linux" {
        // An artifact has no files to fill a volume from: it stays empty.
        assert_eq!(
            s.run(&["run", "--rm", "-v", "fill:/data", image, "ls", "/data"])
                .ok(),
            ""
        );
    } else {
        assert_eq!(
            s.run(&["run", "--rm", "-v", "fill:/data", image, "ls", "/data"])
                .ok(),
            "seed\n"
        );
        s.run(&["run", "--rm", "-v", "fill:/data", image, "rm", "/data/seed"])
            .ok();
        // An empty volume is filled, one that holds anything is left alone, as under Docker.
        assert_eq!(
            s.run(&[
                "run",
                "--rm",
                "-v",
                "fill:/data:nocopy",
                image,
                "ls",
                "/data"
            ])
            .ok(),
            ""
        );
        s.run(&[
            "run",
            "--rm",
            "-v",
            "fill:/data:nocopy",
            image,
            "write",
            "/data/own",
            "x",
        ])
        .ok();
        assert_eq!(
            s.run(&["run", "--rm", "-v", "fill:/data", image, "ls", "/data"])
                .ok(),
            "own\n"
        );
    }
    s.run(&["volume", "rm", "fill"]).ok();
}

fn bind_mounts(image: &str) {
    let s = Sandbox::ready();
    let host = s.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    let spec = format!("{}:/mnt", path(&host));
    s.run(&["run", "--rm", "-v", &spec, image, "write", "/mnt/out", "hi"])
        .ok();
    assert_eq!(std::fs::read_to_string(host.join("out")).unwrap(), "hi\n");
    let ro = s.run(&[
        "run",
        "--rm",
        "-v",
        &format!("{spec}:ro"),
        image,
        "write",
        "/mnt/no",
        "x",
    ]);
    assert_eq!(ro.code, 1);
    assert!(!host.join("no").exists());
    std::fs::remove_dir_all(&host).unwrap();
}

fn read_only_root(image: &str) {
    let s = Sandbox::ready();
    assert_eq!(
        s.run(&["run", "--rm", "--read-only", image, "write", "/x", "y"])
            .code,
        1
    );
    assert_eq!(s.run(&["run", "--rm", image, "write", "/x", "y"]).code, 0);
    let tmp = s.run(&[
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/scratch",
        image,
        "write",
        "/scratch/x",
        "y",
    ]);
    assert_eq!(tmp.code, 0, "{tmp:?}");
}

fn detached_logs_stop_and_remove(image: &str) {
    let s = Sandbox::ready();
    let id = s
        .run(&["run", "-d", "--name", "sleeper", image, "sleep", "600"])
        .ok();
    assert_eq!(id.trim().len(), 64);
    let ps = s.run(&["ps"]).ok();
    assert!(ps.starts_with("CONTAINER ID   IMAGE"), "{ps}");
    assert!(ps.contains("sleeper") && ps.contains("Up "), "{ps}");
    wait_until("the log", Duration::from_secs(10), || {
        s.run(&["logs", "sleeper"]).stdout == "sleeping\n"
    });
    s.run(&["rm", "sleeper"]).fails(1, "container is running");
    assert_eq!(s.run(&["stop", "-t", "1", "sleeper"]).ok(), "sleeper\n");
    let state = s.inspect("sleeper");
    assert_eq!(state["State"]["Status"], "exited");
    // The Wasm runner ends at SIGTERM; a first process without a handler is killed in the end.
    let code = if image == "probe-linux" { 137 } else { 143 };
    assert_eq!(state["State"]["ExitCode"], code, "{state}");
    assert!(s.run(&["ps"]).ok().lines().count() == 1);
    let exited = format!("Exited ({code})");
    assert!(s.run(&["ps", "-a"]).ok().contains(&exited));
    assert_eq!(s.run(&["logs", "sleeper"]).ok(), "sleeping\n");
    assert_eq!(s.run(&["rm", "sleeper"]).ok(), "sleeper\n");
    s.run(&["inspect", "sleeper"])
        .fails(1, "No such object: sleeper");
}

/// Sends a line to a server and returns its answer.
pub(crate) fn ask(address: &str) -> std::io::Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&address.parse().expect("address"), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"hello\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Waits until a server's log says that it serves.
pub(crate) fn serving(s: &Sandbox, name: &str) {
    wait_until("the server", Duration::from_secs(10), || {
        let out = s.run(&["logs", name]);
        assert!(
            s.run(&["ps", "-q"]).stdout.lines().count() > 0,
            "the server ended: {out:?}"
        );
        out.stdout == "serving\n"
    });
}

/// An outside: another namespace behind a cable.
pub(crate) fn cable() {
    tool(&[
        "ip", "link", "add", "up0", "type", "veth", "peer", "name", "out0",
    ]);
    tool(&["ip", "addr", "add", "192.0.2.1/24", "dev", "up0"]);
    tool(&["ip", "link", "set", "up0", "up"]);
}

fn published_ports(image: &str) {
    let s = Sandbox::ready();
    cable();
    s.run(&[
        "run", "-d", "--name", "web", "-p", "8080:80", image, "serve", "80", "answer",
    ])
    .ok();
    serving(&s, "web");
    assert_eq!(ask("127.0.0.1:8080").expect("over v4 loopback"), "answer\n");
    assert_eq!(ask("[::1]:8080").expect("over v6 loopback"), "answer\n");
    assert_eq!(
        ask("192.0.2.1:8080").expect("over the host's address"),
        "answer\n"
    );
    let port = s.run(&["port", "web"]).ok();
    assert!(port.contains("80/tcp -> 0.0.0.0:8080"), "{port}");
    let taken = s.run(&["run", "--rm", "-p", "8080:80", image]);
    taken.fails(125, "8080");
    from_outside(|| ask("192.0.2.1:8080").expect("from outside"));
    s.run(&["rm", "-f", "web"]).ok();
    assert!(ask("127.0.0.1:8080").is_err(), "the port is still open");
    // Free again at once.
    s.run(&["run", "--rm", "-p", "8080:80", image]).ok();
}

/// Runs `f` on a thread in a namespace of its own that holds the other end of the cable.
pub(crate) fn from_outside(f: impl FnOnce() -> String + Send + 'static) {
    let answer = std::thread::spawn(move || {
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        // SAFETY: only this thread moves.
        #[expect(unsafe_code, reason = "a namespace that plays the outside")]
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let tid = rustix::thread::gettid().as_raw_nonzero();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&home),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .unwrap();
                tool(&["ip", "link", "set", "out0", "netns", &tid.to_string()]);
            });
        });
        tool(&["ip", "addr", "add", "192.0.2.2/24", "dev", "out0"]);
        tool(&["ip", "link", "set", "out0", "up"]);
        f()
    });
    assert_eq!(answer.join().unwrap(), "answer\n");
}

fn containers_reach_each_other(image: &str) {
    let s = Sandbox::ready();
    s.run(&[
        "run", "-d", "--name", "server", image, "serve", "7000", "peer",
    ])
    .ok();
    serving(&s, "server");
    let address = s.inspect("server")["NetworkSettings"]["IPAddress"]
        .as_str()
        .unwrap()
        .to_owned();
    for other in ["probe-linux", "probe-wasm"] {
        let reply = s
            .run(&["run", "--rm", other, "fetch", &format!("{address}:7000")])
            .ok();
        assert_eq!(reply, "peer\n", "{other}");
    }
    // By a name in /etc/hosts, for both kinds.
    let host = format!("peer:{address}");
    let named = s
        .run(&[
            "run",
            "--rm",
            "--add-host",
            &host,
            image,
            "fetch",
            "peer:7000",
        ])
        .ok();
    assert_eq!(named, "peer\n");
    s.run(&["rm", "-f", "server"]).ok();
}

fn network_none(image: &str) {
    let s = Sandbox::ready();
    s.run(&[
        "run", "-d", "--name", "server", image, "serve", "7000", "peer",
    ])
    .ok();
    serving(&s, "server");
    let shown = s.inspect("server");
    let address = shown["NetworkSettings"]["IPAddress"].as_str().unwrap();
    let address = format!("{address}:7000");
    let fetch = |network: &str| {
        s.run(&[
            "run",
            "--rm",
            "--network",
            network,
            image,
            "fetch",
            &address,
        ])
    };
    assert_eq!(fetch("bridge").ok(), "peer\n");
    assert_eq!(fetch("none").code, 1);
    if image == "probe-linux" {
        let shown = s.run(&[
            "run",
            "--rm",
            "--network",
            "none",
            image,
            "cat",
            "/proc/net/dev",
        ]);
        let shown = shown.ok();
        let links: Vec<&str> = shown.lines().skip(2).collect();
        assert!(links.len() == 1 && links[0].contains("lo:"), "{shown}");
    }
    s.run(&["rm", "-f", "server"]).ok();
}

/// Sends a datagram to a server and returns its answer.
pub(crate) fn ask_udp(address: &str) -> std::io::Result<String> {
    let any = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(address)?;
    socket.send(b"hello")?;
    let mut reply = [0; 64];
    let n = socket.recv(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply[..n]).into_owned())
}

fn published_udp_ports(image: &str) {
    let s = Sandbox::ready();
    cable();
    let publish = ["run", "-d", "--name", "dns", "-p", "5353:53/udp"];
    let serve = [image, "serve-udp", "53", "answer"];
    s.run(&[&publish[..], &serve].concat()).ok();
    serving(&s, "dns");
    for address in ["127.0.0.1:5353", "[::1]:5353", "192.0.2.1:5353"] {
        assert_eq!(ask_udp(address).expect(address), "answer\n");
    }
    let port = s.run(&["port", "dns"]).ok();
    assert!(port.contains("53/udp -> 0.0.0.0:5353"), "{port}");
    // The same number of the other protocol is another port.
    s.run(&["run", "--rm", "-p", "5353:53", image]).ok();
    s.run(&["run", "--rm", "-p", "5353:53/udp", image])
        .fails(125, "5353");
    from_outside(|| ask_udp("192.0.2.1:5353").expect("from outside"));
    s.run(&["rm", "-f", "dns"]).ok();
    assert!(ask_udp("127.0.0.1:5353").is_err(), "still answered");
}

fn tmpfs_mount(image: &str) {
    let s = Sandbox::ready();
    s.run(&[
        "run",
        "--rm",
        "--tmpfs",
        "/t:size=1m",
        image,
        "write",
        "/t/x",
        "y",
    ])
    .ok();
    let relative = s.run(&["run", "--rm", "--tmpfs", "t", image]);
    relative.fails(125, "mount path must be absolute");
}

fn what_is_killed_has_ended(image: &str) {
    let s = Sandbox::ready();
    for n in 0..5 {
        let run = [
            "run",
            "-d",
            "--name",
            "kk",
            "--restart",
            "always",
            image,
            "sleep",
            "600",
        ];
        s.run(&run).ok();
        let signal = if n % 2 == 0 { "KILL" } else { "9" };
        s.run(&["kill", "-s", signal, "kk"]).ok();
        assert_eq!(s.inspect("kk")["State"]["ExitCode"], 137);
        s.run(&["rm", "kk"]).ok();
    }
}

fn signals_end_it(image: &str) {
    let s = Sandbox::ready();
    let mut child = s
        .command(&["run", "--rm", "--name", "sig", image, "sleep", "600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (line, _) = line_within(out, Duration::from_secs(20));
    assert_eq!(line, "sleeping\n");
    s.run(&["kill", "-s", "KILL", "sig"]).ok();
    assert_eq!(wait_for(&mut child), 137);
}

fn name_is_free_at_once(image: &str) {
    let s = Sandbox::ready();
    for _ in 0..10 {
        s.run(&[
            "run", "--rm", "--name", "again", "-p", "9090:90", image, "exit", "0",
        ])
        .ok();
    }
    s.run(&["run", "-d", "--name", "taken", image, "sleep", "600"])
        .ok();
    s.run(&["run", "--rm", "--name", "taken", image])
        .fails(125, "is already in use by container");
    s.run(&["rm", "-f", "taken"]).ok();
}

fn create_start_wait(image: &str) {
    let s = Sandbox::ready();
    // WASI 0.2 tells only success from failure, 0.1 has codes.
    let image = if image == "probe-wasm" {
        "probe-p1"
    } else {
        image
    };
    let id = s
        .run(&["create", "--name", "later", image, "exit", "5"])
        .ok();
    assert_eq!(s.inspect("later")["State"]["Status"], "created");
    assert_eq!(s.run(&["start", "later"]).ok(), "later\n");
    assert_eq!(s.run(&["wait", "later"]).ok(), "5\n");
    // Again, by a prefix of its id, attached.
    assert_eq!(s.run(&["start", "-a", &id[..10]]).code, 5);
    s.run(&["rm", &id[..12]]).ok();
}

fn kill_and_restart(image: &str) {
    let s = Sandbox::ready();
    s.run(&["run", "-d", "--name", "rr", image, "sleep", "600"])
        .ok();
    let first = s.inspect("rr")["State"]["Pid"].as_i64().unwrap();
    s.run(&["restart", "-t", "0", "rr"]).ok();
    let second = s.inspect("rr")["State"]["Pid"].as_i64().unwrap();
    assert!(second > 0 && second != first);
    s.run(&["kill", "rr"]).ok();
    assert_eq!(s.run(&["wait", "rr"]).ok(), "137\n");
    s.run(&["kill", "rr"]).fails(1, "is not running");
    s.run(&["kill", "-s", "NOSUCH", "rr"])
        .fails(1, "invalid signal");
    s.run(&["rm", "rr"]).ok();
}

fn inspect_tells_executor_and_reason(image: &str) {
    let s = Sandbox::ready();
    s.run(&["create", "--name", "look", image]).ok();
    let container = s.inspect("look");
    let kind = if image == "probe-wasm" {
        "wasm"
    } else {
        "linux"
    };
    assert_eq!(container["Executor"]["Kind"], kind);
    assert!(!container["Executor"]["Reason"].as_str().unwrap().is_empty());
    assert_eq!(s.inspect(image)["Executor"]["Kind"], kind);
    s.run(&["rm", "look"]).ok();
}

fn memory_limit_is_felt(image: &str) {
    if !crate::sandbox::has_controller("memory") {
        return;
    }
    let s = Sandbox::ready();
    s.run(&["run", "--rm", "-m", "128m", image, "alloc", "16"])
        .ok();
    let out = s.run(&["run", "-m", "64m", "--name", "hog", image, "alloc", "256"]);
    if image != "probe-linux" {
        // The guest sees its memory refuse to grow; WASI 0.2 has no codes of its own.
        assert_eq!(out.code, if image == "probe-p1" { 3 } else { 1 }, "{out:?}");
        assert!(out.stdout.contains("refused at"), "{out:?}");
    } else {
        assert_eq!(out.code, 137, "{out:?}");
        assert_eq!(s.inspect("hog")["State"]["OOMKilled"], true);
    }
    s.run(&["rm", "hog"]).ok();
}

fn the_last_value_of_a_switch_counts(image: &str) {
    let s = Sandbox::ready();
    let run = |flags: &[&str]| s.run(&[&["run"], flags, &[image, "args", "said"]].concat());
    for flags in [["--rm", "--rm=false"], ["--rm=true", "--rm=0"]] {
        assert_eq!(
            run(&[&flags[..], &["--name", "kept"]].concat()).ok(),
            "said\n"
        );
        s.run(&["rm", "kept"]).ok();
    }
    for flags in [["--rm=false", "--rm"], ["--rm", "--rm"]] {
        assert_eq!(
            run(&[&flags[..], &["--name", "gone"]].concat()).ok(),
            "said\n"
        );
        s.run(&["rm", "gone"]).fails(1, "No such container: gone");
    }
    // The letters of a cluster, too; with a terminal it would be refused here.
    assert_eq!(run(&["--rm", "-d=false"]).ok(), "said\n");
    assert_eq!(run(&["--rm", "-d", "-itd=F", "--tty=false"]).ok(), "said\n");
    let id = s
        .run(&["run", "-d=true", "--name", "up", image, "sleep", "600"])
        .ok();
    assert_eq!(id.trim().len(), 64, "{id}");
    s.run(&["rm", "-f=false", "up"])
        .fails(1, "container is running");
    s.run(&["rm", "-f=1", "up"]).ok();
}

fn words_behind_the_image_are_no_flags(image: &str) {
    let s = Sandbox::ready();
    let words = ["--rm", "-d=true", "--user", "--", "-m"];
    s.run(
        &[
            &["create", "--name", "other", "--name", "made", image],
            &words[..],
        ]
        .concat(),
    )
    .ok();
    let made = s.inspect("made");
    assert_eq!(made["Config"]["Cmd"], serde_json::json!(words));
    assert_eq!(made["HostConfig"]["AutoRemove"], false);
    s.run(&["rm", "made"]).ok();
    // A program is looked for, and flags that have no value are no complaint.
    s.run(&["exec", "ghost", "--user"])
        .fails(1, "No such container: ghost");
}
