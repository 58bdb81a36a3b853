//! Networks over several hosts: two network namespaces, each a host with roots of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::both::serving;
use crate::sandbox::{Output, SETTLE, Sandbox, finish, path, tool, wait_until};

both!(hosts_know_each_others_names_and_follow_their_file);

const OURS: &str = "192.0.2.1 10.40.1.0/24\n";
const THEIRS: &str = "192.0.2.2 10.40.2.0/24\n";
/// Nobody is there.
const DEAD: &str = "192.0.2.9 10.40.9.0/24\n";

/// The other host: a namespace behind a cable, which a process holds.
struct Far<'a> {
    s: &'a Sandbox,
    holder: Child,
}

impl<'a> Far<'a> {
    fn new(s: &'a Sandbox) -> Self {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net"])
            .args(["sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("start unshare");
        let pid = holder.id().to_string();
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        wait_until("a namespace", SETTLE, || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns != own)
        });
        let far = Self { s, holder };
        tool(&[
            "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", &pid,
        ]);
        for (there, address) in [(false, "192.0.2.1/24"), (true, "192.0.2.2/24")] {
            for words in [
                &["ip", "addr", "add", address, "dev", "up0"][..],
                &["ip", "link", "set", "up0", "up"],
                &["ip", "link", "set", "lo", "up"],
            ] {
                let enter = ["nsenter", "-t", &pid, "-n"];
                let enter = if there { &enter[..] } else { &[] };
                tool(&[enter, words].concat());
            }
        }
        far
    }

    /// Runs the binary there.
    fn run(&self, args: &[&str]) -> Output {
        let pid = self.holder.id().to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &pid, "-n", env!("CARGO_BIN_EXE_amphora")])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("AMPHORA_ROOT", self.s.dir.join("far/root"))
            .env("AMPHORA_RUN_ROOT", self.s.dir.join("far/run"))
            .stdin(Stdio::null());
        finish(command)
    }
}

impl Drop for Far<'_> {
    fn drop(&mut self) {
        for id in self.run(&["ps", "-aq"]).stdout.split_whitespace() {
            let _ = self.run(&["rm", "-f", id]);
        }
        let _ = self.run(&["network", "rm", "wide"]);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = Command::new("ip").args(["link", "del", "up0"]).output();
    }
}

/// What a container finds of some names.
fn lookup(run: &dyn Fn(&[&str]) -> Output, image: &str, names: &[&str]) -> Vec<String> {
    let words = [
        &["run", "--rm", "--network", "wide", image, "lookup"],
        names,
    ]
    .concat();
    run(&words).ok().lines().map(str::to_owned).collect()
}

fn hosts_know_each_others_names_and_follow_their_file(image: &str) {
    let s = Sandbox::loaded();
    let far = Far::new(&s);
    let file = s.dir.join("peers");
    begin(&s, &far, &file, image);
    assert!(!leads("10.40.2.0/24"));

    // The file is replaced while containers run: the kernel learns of it without a command.
    let new = s.dir.join("new");
    std::fs::write(&new, [OURS, THEIRS, DEAD].concat()).expect("file");
    std::fs::rename(&new, &file).expect("rename");
    wait_until("the other host's route", SETTLE, || leads("10.40.2.0/24"));

    let theirs = "10.40.2.2";
    all_are_found(&s, &far, image, theirs);

    // What is wrong is told, and changes nothing.
    std::fs::write(&file, "nonsense\n").expect("file");
    wait_until("the event", SETTLE, || {
        let events = std::fs::read_to_string(s.run_root().join("events")).unwrap_or_default();
        events.contains("is not an IPv4 address of a host and its block")
    });
    assert!(leads("10.40.2.0/24"));
    std::fs::write(&file, b"\xff\n").expect("file");
    wait_until("the event", SETTLE, || {
        let events = std::fs::read_to_string(s.run_root().join("events")).unwrap_or_default();
        events.contains("is not text in UTF-8")
    });
    assert_eq!(lookup(&|args| s.run(args), image, &["distant"]), [theirs]);
    listens_on_a_new_link(&s, &far, image);

    // Whoever ends is forgotten.
    far.run(&["rm", "-f", "distant"]).ok();
    let gone = lookup(&|args| s.run(args), image, &["distant"]);
    assert!(!gone.concat().contains(theirs), "{gone:?}");
    s.run(&["rm", "-f", "near"]).ok();
    s.run(&["network", "rm", "wide"]).ok();
}

/// A link that is lost is made with the next container; whoever was there listens on it then.
fn listens_on_a_new_link(s: &Sandbox, far: &Far<'_>, image: &str) {
    let links = std::fs::read_to_string("/proc/thread-self/net/dev").expect("links");
    let link = links.lines().filter_map(|l| l.trim_start().split_once(':'));
    let link = link.map(|(name, _)| name).find(|n| n.starts_with("vx-"));
    tool(&["ip", "link", "del", link.expect("a link")]);
    std::fs::write(s.dir.join("peers"), [OURS, THEIRS].concat()).expect("file");
    // A container that does not stay.
    lookup(&|args| s.run(args), image, &["near"]);
    wait_until("an answer", SETTLE, || {
        let found = lookup(&|args| far.run(args), image, &["near"]);
        found == ["10.40.1.2"]
    });
}

/// Makes the network on both hosts, and a server in it on each.
fn begin(s: &Sandbox, far: &Far<'_>, file: &Path, image: &str) {
    let here = |args: &[&str]| s.run(args);
    let there = |args: &[&str]| far.run(args);
    let archive = s.dir.join("probe.tar");
    crate::fixtures::probe_image().write_oci(&archive);
    far.run(&["load", "-q", "-i", path(&archive)]).ok();
    let wasm = crate::fixtures::probe("wasm32-wasip2");
    far.run(&["image", "add", path(&wasm), "-t", "probe-wasm"])
        .ok();

    // Each host has its own copy of the file; ours does not know of the other host yet.
    let far_file = s.dir.join("far-peers");
    std::fs::write(file, OURS).expect("file");
    std::fs::write(&far_file, [OURS, THEIRS].concat()).expect("file");
    for (run, file) in [
        (&here as &dyn Fn(&[&str]) -> Output, file),
        (&there, far_file.as_path()),
    ] {
        let peers = format!("peers={}", path(file));
        run(&[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.40.0.0/16",
            "-o",
            &peers,
            "wide",
        ])
        .ok();
    }
    for (run, name) in [
        (&here as &dyn Fn(&[&str]) -> Output, "near"),
        (&there, "distant"),
    ] {
        let alias = format!("alias-{name}");
        run(&[
            "run",
            "-d",
            "--network",
            "wide",
            "--network-alias",
            &alias,
            "--name",
            name,
            image,
            "serve",
            "80",
            name,
        ])
        .ok();
    }
    serving(s, "near");
    wait_until("the server there", SETTLE, || {
        far.run(&["logs", "distant"]).stdout.contains("serving")
    });
}

/// Whether the kernel has a route to a block.
fn leads(block: &str) -> bool {
    let routes = Command::new("ip").arg("route").output().expect("ip");
    String::from_utf8_lossy(&routes.stdout).contains(block)
}

/// How many packets have gone to other hosts.
fn sent() -> u64 {
    let links = std::fs::read_to_string("/proc/thread-self/net/dev").expect("links");
    let line = links.lines().find(|l| l.trim_start().starts_with("vx-"));
    let (_, counters) = line.expect("a link").split_once(':').expect("counters");
    // Behind eight of what came, the bytes that went.
    let packets = counters.split_whitespace().nth(9).expect("a counter");
    packets.parse().expect("a number")
}

/// Names, aliases, addresses and traffic, both ways.
fn all_are_found(s: &Sandbox, far: &Far<'_>, image: &str, theirs: &str) {
    let here = |args: &[&str]| s.run(args);
    let there = |args: &[&str]| far.run(args);
    let ours = "10.40.1.2";
    let found = lookup(&here, image, &["distant", "distant.wide", "alias-distant"]);
    assert_eq!(found, [theirs; 3]);
    assert_eq!(lookup(&there, image, &["near", "alias-near"]), [ours; 2]);
    // An address leads to a name, with the network's behind it.
    let packet = crate::names::query("2.2.40.10.in-addr.arpa", 12);
    let words = ["run", "--rm", "--network", "wide", image, "exchange"];
    let answer = here(&[&words[..], &["127.0.0.11:53", &packet]].concat()).ok();
    let hex = |text: &str| -> String { text.bytes().map(|b| format!("{b:02x}")).collect() };
    let wanted = format!("07{}04{}00", hex("distant"), hex("wide"));
    assert!(answer.contains(&wanted), "{answer}");
    let fetch = ["run", "--rm", "--network", "wide", image, "fetch"];
    let fetched = here(&[&fetch[..], &["distant:80"]].concat()).ok();
    assert_eq!(fetched, "distant\n");
    let fetched = there(&[&fetch[..], &["near:80"]].concat()).ok();
    assert_eq!(fetched, "near\n");

    // Nobody is asked what is known here, so a host that is dead holds nothing up; else it shows.
    let before = sent();
    assert_eq!(lookup(&here, image, &["near", "alias-near"]), [ours; 2]);
    assert_eq!(sent(), before);
    lookup(&here, image, &["distant"]);
    assert!(sent() > before);
}
