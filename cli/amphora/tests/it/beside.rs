//! Beside a running dockerd: both engines' containers are reached, whoever came first.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::both::{ask, serving};
use crate::dockerd::{Backend, Dockerd};
use crate::leak::{Snapshot, without_counters};
use crate::sandbox::{Sandbox, finish, path, tool, wait_until};

/// The kinds of image that serve on our side, and the host port of each.
const OURS: [(&str, &str, u16); 2] = [("linux", "probe-linux", 8080), ("wasm", "probe-wasm", 8081)];
/// The host port of dockerd's own container.
const THEIRS: u16 = 9090;
const HOST: &str = "192.0.2.1";
const OUTSIDE: &str = "192.0.2.2";
/// Where a server outside listens, to show that containers get out.
const OUTER_PORT: u16 = 9000;
/// How often the leak counter runs a container with either engine.
const RUNS: usize = 10;

/// Has dockerd filter IPv6 as well.
const IPV6: [&str; 4] = [
    "--experimental",
    "--ip6tables",
    "--ipv6",
    "--fixed-cidr-v6=2001:db8:7::/64",
];

/// A neighbour behind a cable, without a route to any container, that serves a line.
struct Outside {
    holder: Child,
    server: Child,
    program: String,
}

impl Outside {
    fn new(s: &Sandbox) -> Self {
        let holder = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "sleep",
                "infinity",
            ])
            .stdin(Stdio::null())
            .spawn()
            .expect("start unshare");
        let pid = holder.id().to_string();
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        wait_until("a namespace", Duration::from_secs(10), || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns != own)
        });
        tool(&[
            "ip", "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", &pid,
        ]);
        for (enter, link, last) in [(false, "up0", 1), (true, "out0", 2)] {
            let run = |words: &[&str]| {
                let mut all = vec!["nsenter", "-t", &pid, "-n"];
                all.extend(words);
                tool(if enter { &all } else { words });
            };
            run(&[
                "ip",
                "addr",
                "add",
                &format!("192.0.2.{last}/24"),
                "dev",
                link,
            ]);
            run(&["ip", "link", "set", link, "up"]);
        }
        let program = path(&crate::fixtures::probe("x86_64-unknown-linux-musl")).to_owned();
        let ready = s.dir.join("outside");
        let server = Command::new("nsenter")
            .args(["-t", &pid, "-n", "setpriv", "--pdeathsig", "KILL", &program])
            .args(["serve", &OUTER_PORT.to_string(), "outside"])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&ready).expect("file"))
            .spawn()
            .expect("start the server outside");
        wait_until("the server outside", Duration::from_secs(10), || {
            std::fs::read_to_string(&ready).is_ok_and(|text| text == "serving\n")
        });
        std::fs::remove_file(&ready).expect("file");
        Self {
            holder,
            server,
            program,
        }
    }

    /// Fetches a line from there; empty when there is no answer.
    fn ask(&self, address: &str) -> String {
        self.ask_for(10, address)
    }

    /// The same with an answer in so many seconds.
    fn ask_for(&self, seconds: u32, address: &str) -> String {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &self.holder.id().to_string(),
                "-n",
                "timeout",
                &seconds.to_string(),
            ])
            .args([&self.program, "fetch", address]);
        finish(command).stdout
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The cable went with the namespace's last process, but not at once.
        let _ = Command::new("ip").args(["link", "del", "up0"]).output();
    }
}

/// Starts our servers, one of each kind, on published ports.
fn serve_ours(s: &Sandbox) {
    for (name, image, port) in OURS {
        let publish = format!("{port}:80");
        s.run(&[
            "run", "-d", "--name", name, "-p", &publish, image, "serve", "80", name,
        ])
        .ok();
        serving(s, name);
    }
}

/// Loads the probe into dockerd and serves with it there.
fn serve_theirs(s: &Sandbox, d: &Dockerd) {
    let archive = s.dir.join("probe-docker.tar");
    crate::fixtures::probe_image().write_docker(&archive);
    d.docker(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).expect("remove archive");
    let publish = format!("{THEIRS}:80");
    d.docker(&[
        "run",
        "-d",
        "--name",
        "theirs",
        "-p",
        &publish,
        "probe-linux",
        "serve",
        "80",
        "docker",
    ])
    .ok();
    wait_until("docker's server", Duration::from_secs(20), || {
        d.docker(&["logs", "theirs"]).stdout == "serving\n"
    });
}

fn address_of(s: &Sandbox, name: &str) -> String {
    let inspected = s.inspect(name);
    inspected["NetworkSettings"]["IPAddress"]
        .as_str()
        .expect("address")
        .to_owned()
}

/// Everybody reaches everybody: published ports from everywhere, neighbours, the outside.
#[track_caller]
fn all_reach(s: &Sandbox, d: &Dockerd, outside: &Outside) {
    let servers = OURS.map(|(name, _, port)| (name, port)).into_iter();
    for (name, port) in servers.clone().chain([("docker", THEIRS)]) {
        let line = format!("{name}\n");
        for host in ["127.0.0.1", "[::1]", HOST] {
            let answer = ask(&format!("{host}:{port}"));
            let answer = answer.unwrap_or_else(|e| panic!("{name} at {host}: {e}\n{}", rules()));
            assert_eq!(answer, line, "{name} at {host}");
        }
        let answer = outside.ask(&format!("{HOST}:{port}"));
        assert_eq!(answer, line, "{name} from outside\n{}", rules());
    }
    let published = servers.map(|(name, port)| (format!("{HOST}:{port}"), name));
    let out = (format!("{OUTSIDE}:{OUTER_PORT}"), "outside");
    let theirs = [(format!("{HOST}:{THEIRS}"), "docker"), out.clone()];
    let neighbours = OURS.map(|(name, _, _)| (format!("{}:80", address_of(s, name)), name));
    for (address, name) in neighbours
        .into_iter()
        .chain(published.clone())
        .chain(theirs)
    {
        for (kind, image, _) in OURS {
            let fetched = s.run(&["run", "--rm", image, "fetch", &address]);
            assert_eq!(fetched.stderr, "", "{kind} to {name}\n{}", rules());
            assert_eq!(fetched.stdout, format!("{name}\n"), "{kind} to {name}");
        }
    }
    for (address, name) in published.chain([out]) {
        let fetched = d.docker(&["exec", "theirs", "/probe", "fetch", &address]);
        assert_eq!(fetched.ok(), format!("{name}\n"), "docker to {name}");
    }
}

/// The rules of dockerd, without ours in its chains.
fn rules() -> String {
    let mut all = String::new();
    for table in ["filter", "nat"] {
        let listed = tool(&["nft", "list", "table", "ip", table]);
        for line in listed
            .lines()
            .filter(|l| !l.contains("comment \"amphora\""))
        {
            all += &without_counters(line);
            all.push('\n');
        }
    }
    all
}

/// How many rules of ours are in dockerd's chains.
fn accepts() -> usize {
    tool(&["nft", "list", "ruleset"])
        .matches("comment \"amphora\"")
        .count()
}

/// Removes our servers; dockerd's chains must be as they were as soon as the last one is gone.
fn leave(s: &Sandbox, before: &str) {
    s.run(&["rm", "-f", "linux"]).ok();
    assert_eq!(accepts(), 2, "one of ours still runs");
    s.run(&["rm", "-f", "wasm"]).ok();
    s.settle();
    assert_eq!(accepts(), 0, "{}", rules());
    assert_eq!(rules(), before);
}

#[test]
fn dockerd_came_first_and_is_restarted() {
    let mut s = Sandbox::new();
    let outside = Outside::new(&s);
    let mut d = Dockerd::start(&s);
    serve_theirs(&s, &d);
    assert!(rules().contains("policy drop"), "{}", rules());
    let bridged = std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables");
    println!(
        "bridge-nf-call-iptables: {}",
        bridged
            .unwrap_or_else(|_| "none in this kernel".to_owned())
            .trim()
    );
    let before = rules();
    s.prepare();
    assert_eq!((accepts(), rules()), (0, before.clone()));
    serve_ours(&s);
    assert_eq!((accepts(), rules()), (2, before.clone()));
    // The program that dockerd calls understands them.
    let listed = tool(&["iptables", "-S", "DOCKER-USER"]);
    assert!(
        listed.contains("-i amphora0") && listed.contains("-j ACCEPT"),
        "{listed}"
    );
    all_reach(&s, &d, &outside);
    // Neither takes a port of the other.
    s.run(&["run", "--rm", "-p", "9090:80", "probe-linux"])
        .fails(125, "address already in use");
    let taken = d.docker(&["run", "--rm", "-p", "8080:80", "probe-linux"]);
    taken.fails(125, "address already in use");
    d.restart();
    // Restarted, dockerd itself puts its rules into another order.
    let before = rules();
    assert_eq!(accepts(), 2, "{before}");
    all_reach(&s, &d, &outside);
    // Without ours in it the chain swallows our traffic; the next start puts that right.
    tool(&["iptables", "-F", "DOCKER-USER"]);
    tool(&["iptables", "-A", "DOCKER-USER", "-j", "RETURN"]);
    let (published, line) = (format!("{HOST}:8080"), "linux\n");
    assert_eq!(outside.ask_for(1, &published), "");
    s.run(&["run", "--rm", "probe-wasm"]).ok();
    assert_eq!(outside.ask(&published), line);
    leave(&s, &before);
    assert_eq!(
        ask(&format!("127.0.0.1:{THEIRS}")).expect("docker's port"),
        "docker\n"
    );
    s.check();
    d.stop();
    drop(outside);
    s.mark();
}

#[test]
fn amphora_came_first() {
    let s = Sandbox::ready();
    let outside = Outside::new(&s);
    serve_ours(&s);
    let d = Dockerd::start(&s);
    serve_theirs(&s, &d);
    let before = rules();
    all_reach(&s, &d, &outside);
    // A firewall that is closed later stands in nobody's way: our rules are in its chain.
    tool(&["iptables", "-P", "FORWARD", "DROP"]);
    assert_eq!(accepts(), 2, "{}", rules());
    all_reach(&s, &d, &outside);
    tool(&["iptables", "-P", "FORWARD", "ACCEPT"]);
    leave(&s, &before);
    d.stop();
    drop(outside);
}

/// Both engines write into the same tables at the same time.
#[test]
fn starts_and_ends_at_once() {
    let mut s = Sandbox::new();
    let d = Dockerd::start_with(&s, Backend::Nft, &IPV6);
    serve_theirs(&s, &d);
    s.prepare();
    let before = (rules(), tool(&["ip6tables", "-S"]));
    // Not every dockerd has the chain for IPv6; without it we can only tell.
    let open6 = before.1.contains("-N DOCKER-USER");
    let told = if open6 {
        ""
    } else {
        "WARNING: table \"ip6 filter\" drops"
    };
    std::thread::scope(|scope| {
        for (n, (_, image, _)) in OURS.into_iter().cycle().take(4).enumerate() {
            let (s, publish) = (&s, format!("{}:80", 8000 + n));
            scope.spawn(move || {
                for _ in 0..RUNS {
                    let out = s.run(&["run", "--rm", "-p", &publish, image]);
                    assert_eq!(out.code, 0, "{out:?}");
                    assert!(out.stderr.starts_with(told), "{out:?}");
                    assert!(out.stderr.lines().count() == usize::from(!open6), "{out:?}");
                }
            });
        }
        for publish in ["7000:80", "7001:80"] {
            let d = &d;
            scope.spawn(move || {
                for _ in 0..3 {
                    d.docker(&["run", "--rm", "-p", publish, "probe-linux"])
                        .ok();
                }
            });
        }
    });
    s.settle();
    assert_eq!(
        (accepts(), (rules(), tool(&["ip6tables", "-S"]))),
        (0, before)
    );
    s.run(&["run", "-d", "--name", "one", "probe-wasm", "sleep", "600"])
        .ok();
    assert_eq!(accepts(), if open6 { 4 } else { 2 });
    s.run(&["rm", "-f", "one"]).ok();
    s.check();
    d.stop();
    tool(&["nft", "delete", "table", "ip6", "filter"]);
    tool(&["nft", "delete", "table", "ip6", "nat"]);
    s.mark();
}

/// What `docker run --rm` and `amphora run --rm` leave: ours nothing, theirs is told.
#[test]
fn leaks_are_counted_beside_dockerds() {
    let mut s = Sandbox::new();
    let d = Dockerd::start(&s);
    serve_theirs(&s, &d);
    d.docker(&["rm", "-f", "theirs"]).ok();
    d.docker(&["run", "--rm", "-p", "9090:80", "probe-linux"])
        .ok();
    s.prepare();
    let take = || Snapshot::take(&s.dir).with(d.traces());
    // dockerd ends its shims and frees its files some time after the client was answered.
    let rest = || {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut last = take();
        loop {
            std::thread::sleep(Duration::from_millis(250));
            let now = take();
            if last.difference(&now).is_empty() || Instant::now() > deadline {
                return now;
            }
            last = now;
        }
    };
    let before = rest();
    let started = Instant::now();
    for _ in 0..RUNS {
        let hello = d
            .docker(&["run", "--rm", "-p", "9090:80", "probe-linux"])
            .ok();
        assert_eq!(hello, "Hello from Linux!\n");
    }
    let theirs_took = started.elapsed();
    let between = rest();
    let started = Instant::now();
    for n in 0..RUNS {
        let (image, hello) = [
            ("probe-linux", "Hello from Linux!\n"),
            ("probe-wasm", "Hello from Wasm!\n"),
        ][n % 2];
        assert_eq!(s.run(&["run", "--rm", "-p", "8080:80", image]).ok(), hello);
    }
    let ours_took = started.elapsed();
    s.settle();
    let after = rest();
    let (theirs, ours) = (before.difference(&between), between.difference(&after));
    println!(
        "{RUNS} x docker run --rm ({theirs_took:?}): {} traces left",
        theirs.lines().count()
    );
    print!("{theirs}");
    println!(
        "{RUNS} x amphora run --rm ({ours_took:?}): {} traces left",
        ours.lines().count()
    );
    assert_eq!(ours, "", "left behind by ours");
    s.check();
    d.stop();
    s.mark();
}

#[test]
fn a_firewall_we_cannot_open_is_told() {
    let s = Sandbox::new();
    let warnings = |args: &[&str]| {
        let out = s.run(args);
        assert_eq!(out.code, 0, "{out:?}");
        out.stderr
    };
    let d = Dockerd::start_with(&s, Backend::Legacy, &[]);
    s.load_probes();
    let run = ["run", "--rm", "probe-linux"];
    let told = warnings(&run);
    let start = "WARNING: table \"ip filter\" of iptables-legacy drops forwarded packets";
    assert!(
        told.starts_with(start) && told.lines().count() == 1,
        "{told}"
    );
    assert_eq!(warnings(&["run", "--rm", "probe-wasm"]), told);
    assert_eq!(
        warnings(&["run", "--rm", "--network", "none", "probe-linux"]),
        ""
    );
    s.run(&["create", "--name", "later", "probe-linux"]).ok();
    assert_eq!(warnings(&["start", "later"]), told);
    serve_theirs(&s, &d);
    serve_ours(&s);
    let outside = Outside::new(&s);
    let theirs = outside.ask(&format!("{HOST}:{THEIRS}"));
    assert_eq!(theirs, "docker\n");
    // What it names is what helps.
    let commands = told.split('"').filter(|part| part.contains(" -I FORWARD "));
    for command in commands.clone() {
        let status = Command::new("sh")
            .args(["-c", command])
            .env("XTABLES_LOCKFILE", s.dir.join("xtables.lock"))
            .status();
        assert!(status.expect("start sh").success(), "{command}");
    }
    assert_eq!(commands.count(), 2, "{told}");
    assert_eq!(warnings(&run), "");
    for (name, image, port) in OURS {
        assert_eq!(outside.ask(&format!("{HOST}:{port}")), format!("{name}\n"));
        let fetch = format!("{}:80", address_of(&s, "linux"));
        assert_eq!(
            s.run(&["run", "--rm", image, "fetch", &fetch]).ok(),
            "linux\n"
        );
    }
}
