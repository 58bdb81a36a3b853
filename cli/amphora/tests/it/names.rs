//! Names: containers find each other, and everything else is asked outside.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use crate::boot::id;
use crate::both::serving;
use crate::sandbox::{SETTLE, Sandbox, tool, wait_until};
use crate::supervisor::{kill, supervisor_pid};

both!(
    a_container_is_found_by_its_names_from_the_first_instruction_on,
    what_changes_is_seen_at_once,
    other_names_are_asked_outside,
    a_name_server_without_an_answer_holds_nobody_up,
    nonsense_is_survived,
    a_new_supervisor_answers_too,
    a_container_may_serve_names_itself,
    the_file_of_the_resolver_is_as_asked_for,
    names_are_seen_on_common_networks_only,
    an_alias_stands_for_all_who_have_it,
    an_internal_network_knows_names_and_asks_nobody,
);

/// A server in a network that the host alone reaches.
const OUTSIDE: &str = "192.0.2.53";
const SILENT: &str = "192.0.2.54";

/// Goes with its end.
struct Outside;

impl Drop for Outside {
    fn drop(&mut self) {
        tool(&["ip", "link", "del", "out0"]);
    }
}

fn outside() -> Outside {
    tool(&[
        "ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1",
    ]);
    for address in [OUTSIDE, SILENT] {
        tool(&["ip", "addr", "add", &format!("{address}/32"), "dev", "out0"]);
    }
    tool(&["ip", "link", "set", "out0", "up"]);
    Outside
}

fn address(s: &Sandbox, name: &str, key: &str) -> String {
    let shown = s.inspect(name);
    let text = shown["NetworkSettings"][key].as_str();
    text.unwrap_or_default().to_owned()
}

/// Addresses of a container, in the order that the probe prints them in.
fn addresses(s: &Sandbox, name: &str) -> String {
    let mut all = ["IPAddress", "GlobalIPv6Address"]
        .map(|key| address(s, name, key))
        .to_vec();
    all.retain(|a| !a.is_empty());
    all.sort();
    all.join(" ")
}

/// Asks a running `resolver` of the probe.
fn ask(s: &Sandbox, container: &str, port: u16, name: &str) -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let to = format!("{}:{port}", address(s, container, "IPAddress"));
    socket.send_to(name.as_bytes(), &to).unwrap();
    let mut reply = [0; 512];
    let n = socket.recv(&mut reply).expect("the probe answers");
    String::from_utf8_lossy(&reply[..n]).into_owned()
}

fn resolver(s: &Sandbox, image: &str, more: &[&str]) {
    resolver_at(s, ("asker", "5000"), image, more);
}

fn resolver_at(s: &Sandbox, (name, port): (&str, &str), image: &str, more: &[&str]) {
    let words = [
        &["run", "-d", "--name", name],
        more,
        &[image, "resolver", port],
    ]
    .concat();
    s.run(&words).ok();
    serving(s, name);
}

/// Kills a container's supervisor and waits for the next one.
fn replace_supervisor(s: &Sandbox, name: &str) {
    let first = supervisor_pid(s, &id(s, name));
    kill(first);
    wait_until("another supervisor", Duration::from_secs(10), || {
        s.run(&["ps"]).ok();
        supervisor_pid(s, &id(s, name)) != first
    });
}

fn lookup(s: &Sandbox, image: &str, more: &[&str], names: &[&str]) -> Vec<String> {
    let words = [&["run", "--rm"], more, &[image, "lookup"], names].concat();
    s.run(&words).ok().lines().map(str::to_owned).collect()
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

/// A query in hexadecimal digits.
pub(crate) fn query(name: &str, kind: u8) -> String {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    out.extend(wire_name(name));
    out.extend([0, kind, 0, 1]);
    out.iter().map(|b| format!("{b:02x}")).collect()
}

/// The answer of a container's name server: its code, and how many records there are.
fn answer(s: &Sandbox, image: &str, packet: &str) -> (u8, u8, Vec<u8>) {
    let words = ["run", "--rm", image, "exchange", "127.0.0.11:53", packet];
    let text = s.run(&words).ok();
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    let all: Vec<u8> = (0..text.trim().len() / 2).map(byte).collect();
    assert_eq!(all[..2], [0x12, 0x34]);
    (all[3] & 0xf, all[7], all)
}

/// What a server outside answers: 198.51.100.7, no IPv6, and that `nobody…` does not exist.
fn known_outside(query: &[u8]) -> Vec<u8> {
    let mut at = 12;
    while query[at] != 0 {
        at += 1 + usize::from(query[at]);
    }
    let mut out = query[..at + 5].to_vec();
    out[2] |= 0x80;
    out[3] = 0x80;
    out[6..12].fill(0);
    if query[13..].starts_with(b"nobody") {
        out[3] |= 3;
    } else if query[at + 2] == 1 {
        out[7] = 1;
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 7]);
    }
    out
}

/// A name server outside. Names that begin with `long` it tells over a connection only.
fn server_outside() {
    let socket = UdpSocket::bind((OUTSIDE, 53)).unwrap();
    let listener = TcpListener::bind((OUTSIDE, 53)).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut packet) {
            let mut reply = known_outside(&packet[..n]);
            if packet[13..].starts_with(b"long") {
                reply.truncate(12 + wire_length(&packet) + 4);
                reply[7] = 0;
                reply[2] |= 2;
            }
            let _ = socket.send_to(&reply, from);
        }
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut packet).unwrap();
            let reply = known_outside(&packet);
            let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, &reply[..]].concat()).unwrap();
        }
    });
}

fn wire_length(packet: &[u8]) -> usize {
    packet[12..].iter().position(|b| *b == 0).unwrap() + 1
}

fn a_container_is_found_by_its_names_from_the_first_instruction_on(image: &str) {
    let s = Sandbox::ready();
    s.run(&["run", "-d", "--name", "Web_1", image, "sleep", "600"])
        .ok();
    let web = addresses(&s, "Web_1");
    assert!(!web.is_empty());
    let short = id(&s, "Web_1")[..12].to_owned();
    for other in ["probe-linux", "probe-wasm"] {
        let names = ["Web_1", "web_1", "WEB_1", &short, "Web_1.bridge", "web_1."];
        for (name, found) in names.iter().zip(lookup(&s, other, &[], &names)) {
            assert_eq!(found, web, "{name} in {other}");
        }
    }
    // Itself too.
    let own = ["--name", "me"];
    assert_ne!(lookup(&s, image, &own, &["me"]), ["none"]);
    // Both families, one without records, and backwards.
    let (code, count, _) = answer(&s, image, &query("web_1", 1));
    assert_eq!((code, count), (0, 1));
    let v6 = u8::from(!address(&s, "Web_1", "GlobalIPv6Address").is_empty());
    let (code, count, _) = answer(&s, image, &query("web_1", 28));
    assert_eq!((code, count), (0, v6));
    let (code, count, _) = answer(&s, image, &query("web_1", 15));
    assert_eq!((code, count), (0, 0));
    let mut parts: Vec<String> = address(&s, "Web_1", "IPAddress")
        .split('.')
        .map(str::to_owned)
        .collect();
    parts.reverse();
    let reverse = format!("{}.in-addr.arpa", parts.join("."));
    let (code, count, message) = answer(&s, image, &query(&reverse, 12));
    assert_eq!((code, count), (0, 1));
    assert!(message.ends_with(&wire_name("Web_1.bridge")), "{message:?}");
}

fn what_changes_is_seen_at_once(image: &str) {
    let s = Sandbox::ready();
    let _outside = outside();
    server_outside();
    resolver(&s, image, &["--dns", OUTSIDE]);
    assert_eq!(ask(&s, "asker", 5000, "nobody"), "none");
    s.run(&["run", "-d", "--name", "nobody", image, "sleep", "600"])
        .ok();
    assert_eq!(ask(&s, "asker", 5000, "nobody"), addresses(&s, "nobody"));
    s.run(&["rename", "nobody", "nobody2"]).ok();
    assert_eq!(ask(&s, "asker", 5000, "nobody"), "none");
    assert_eq!(ask(&s, "asker", 5000, "nobody2"), addresses(&s, "nobody2"));
    let before = addresses(&s, "nobody2");
    s.run(&["restart", "-t", "0", "nobody2"]).ok();
    let now = addresses(&s, "nobody2");
    assert_ne!(before, now, "addresses go round");
    assert_eq!(ask(&s, "asker", 5000, "nobody2"), now);
    s.run(&["rm", "-f", "nobody2"]).ok();
    assert_eq!(ask(&s, "asker", 5000, "nobody2"), "none");
    // It has a name server itself after a restart.
    s.run(&["restart", "-t", "0", "asker"]).ok();
    wait_until("the server", Duration::from_secs(10), || {
        s.run(&["logs", "asker"]).stdout.lines().count() == 2
    });
    assert_eq!(ask(&s, "asker", 5000, "asker"), addresses(&s, "asker"));
}

fn other_names_are_asked_outside(image: &str) {
    let s = Sandbox::ready();
    let _outside = outside();
    server_outside();
    let _silent = UdpSocket::bind((SILENT, 53)).unwrap();
    let here = ["--dns", OUTSIDE];
    let names = ["example.org", "nobody.example.org", "long.example.org"];
    let found = lookup(&s, image, &here, &names);
    assert_eq!(found, ["198.51.100.7", "none", "198.51.100.7"]);
    // The first server keeps silent, and another one is not there at all.
    let three = [
        "--dns",
        SILENT,
        "--dns",
        "192.0.2.53",
        "--dns",
        "192.0.2.53",
    ];
    let asked = Instant::now();
    assert_eq!(
        lookup(&s, image, &three, &["example.org"]),
        ["198.51.100.7"]
    );
    assert!(
        asked.elapsed() < Duration::from_secs(4),
        "{:?}",
        asked.elapsed()
    );
    // The container's own loopback is meant by `--dns 127.…`, not the host's.
    let _host = UdpSocket::bind("127.0.0.77:53").unwrap();
    let own = ["--dns", "127.0.0.77", "--dns", OUTSIDE];
    let asked = Instant::now();
    assert_eq!(lookup(&s, image, &own, &["example.org"]), ["198.51.100.7"]);
    assert!(
        asked.elapsed() < Duration::from_millis(700),
        "{:?}",
        asked.elapsed()
    );
    // The host's file is read at each question.
    let file = s.dir.join("resolv.conf");
    std::fs::write(&file, format!("nameserver {SILENT}\n")).unwrap();
    tool(&[
        "mount",
        "--bind",
        crate::sandbox::path(&file),
        "/etc/resolv.conf",
    ]);
    resolver(&s, image, &[]);
    std::fs::write(&file, format!("nameserver {OUTSIDE}\n")).unwrap();
    assert_eq!(ask(&s, "asker", 5000, "example.org"), "198.51.100.7");
    tool(&["umount", "/etc/resolv.conf"]);
    std::fs::remove_file(&file).unwrap();
    // Over a connection.
    let words = [
        "run",
        "--rm",
        "--dns",
        OUTSIDE,
        image,
        "exchange-tcp",
        "127.0.0.11:53",
    ];
    let text = s.run(&[&words[..], &[&query("long.org", 1)]].concat()).ok();
    assert!(text.trim().ends_with("c6336407"), "{text}");
}

fn a_name_server_without_an_answer_holds_nobody_up(image: &str) {
    let s = Sandbox::ready();
    let _outside = outside();
    let _silent = UdpSocket::bind((SILENT, 53)).unwrap();
    resolver(&s, image, &["--dns", SILENT]);
    // Many questions that nobody answers, and output and other names meanwhile.
    let asked = Instant::now();
    let mut words = vec![
        "run",
        "--rm",
        "--dns",
        SILENT,
        image,
        "exchange",
        "127.0.0.11:53",
    ];
    let many: Vec<String> = (0..150)
        .map(|n| query(&format!("n{n}.example.org"), 1))
        .collect();
    words.extend(many.iter().map(String::as_str));
    let own = query("asker", 1);
    words.push(&own);
    let text = s.run(&words).ok();
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(&text[4..16], "818000010001", "{text}");
    // In the end the answer is that nobody knows.
    let asked = Instant::now();
    assert_eq!(ask(&s, "asker", 5000, "example.org"), "none");
    assert!(
        asked.elapsed() < Duration::from_secs(12),
        "{:?}",
        asked.elapsed()
    );
}

fn nonsense_is_survived(image: &str) {
    let s = Sandbox::ready();
    resolver(&s, image, &[]);
    let good = query("asker", 1);
    let supervisor = supervisor_pid(&s, &id(&s, "asker"));
    let mut packets: Vec<String> = (0..good.len() / 2)
        .map(|n| good[..2 * n].to_owned())
        .collect();
    packets.retain(|p| !p.is_empty());
    packets.extend(
        (12..good.len() / 2).map(|at| format!("{}c00c{}", &good[..2 * at], &good[2 * at..])),
    );
    packets.extend((0..200).map(|n| format!("{:08x}{}", n * 7_919_111, &good[8..])));
    packets.push("ff".repeat(4000));
    packets.push(good.clone());
    let mut words = vec!["run", "--rm", image, "exchange", "127.0.0.11:53"];
    words.extend(packets.iter().map(String::as_str));
    let text = s.run(&words).ok();
    assert_eq!(&text[4..16], "818000010001", "{text}");
    assert_eq!(ask(&s, "asker", 5000, "asker"), addresses(&s, "asker"));
    assert_eq!(supervisor_pid(&s, &id(&s, "asker")), supervisor);
}

fn a_new_supervisor_answers_too(image: &str) {
    let s = Sandbox::ready();
    resolver(&s, image, &[]);
    let own = addresses(&s, "asker");
    assert_eq!(ask(&s, "asker", 5000, "asker"), own);
    replace_supervisor(&s, "asker");
    assert_eq!(ask(&s, "asker", 5000, "asker"), own);
    assert_eq!(lookup(&s, image, &[], &["asker"]), [own]);
}

fn a_container_may_serve_names_itself(image: &str) {
    let s = Sandbox::ready();
    for flags in [
        &["--expose", "53/udp"][..],
        &["-p", "1053:53/udp"],
        &["--expose", "53"],
    ] {
        resolver_at(&s, ("dns", "53"), image, flags);
        let own = addresses(&s, "dns");
        assert_eq!(ask(&s, "dns", 53, "dns"), own, "{flags:?}");
        // A new supervisor leaves it the port too.
        replace_supervisor(&s, "dns");
        assert_eq!(ask(&s, "dns", 53, "dns"), own, "{flags:?}");
        s.run(&["rm", "-f", "dns"]).ok();
    }
}

fn the_file_of_the_resolver_is_as_asked_for(image: &str) {
    let s = Sandbox::ready();
    let file = |more: &[&str]| {
        let words = [&["run", "--rm"], more, &[image, "cat", "/etc/resolv.conf"]].concat();
        let text = s.run(&words).ok();
        let plain = text
            .lines()
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        plain.map(str::to_owned).collect::<Vec<_>>()
    };
    let asked = [
        "--dns",
        "10.9.9.9",
        "--dns-search",
        "a.example",
        "--dns-option",
        "ndots:2",
    ];
    let own = [
        "nameserver 127.0.0.11",
        "search a.example",
        "options ndots:2",
    ];
    assert_eq!(file(&asked), own);
    assert_eq!(
        file(&["--dns-search", ".", "--dns-option", "rotate"]),
        ["nameserver 127.0.0.11", "options rotate ndots:0"]
    );
    let other = ["nameserver 10.9.9.9", "search a.example", "options ndots:2"];
    assert_eq!(file(&[&asked[..], &["--network", "none"]].concat()), other);
    assert_eq!(file(&[&asked[..], &["--network", "host"]].concat()), other);
}

/// Makes networks, for as long as it is there.
struct Made<'a>(&'a Sandbox, &'a [&'a str]);

fn networks<'a>(s: &'a Sandbox, names: &'a [&'a str], flags: &[&str]) -> Made<'a> {
    for name in names {
        let words = [&["network", "create"], flags, &[name]].concat();
        s.run(&words).ok();
    }
    Made(s, names)
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let ids = self.0.run(&["ps", "-aq"]).stdout;
        for id in ids.split_whitespace() {
            let _ = self.0.run(&["rm", "-f", id]);
        }
        wait_until("the networks to be free", SETTLE, || {
            let words = [&["network", "rm", "-f"], self.1].concat();
            self.0.run(&words).code == 0
        });
    }
}

/// A container's addresses in a network, as the probe prints them.
fn there(s: &Sandbox, container: &str, network: &str) -> String {
    let shown = s.inspect(container);
    let place = &shown["NetworkSettings"]["Networks"][network];
    let mut all: Vec<&str> = ["IPAddress", "GlobalIPv6Address"]
        .iter()
        .filter_map(|key| place[key].as_str())
        .filter(|a| !a.is_empty())
        .collect();
    all.sort_unstable();
    assert!(!all.is_empty(), "{shown}");
    all.join(" ")
}

fn names_are_seen_on_common_networks_only(image: &str) {
    let s = Sandbox::ready();
    let _outside = outside();
    server_outside();
    let made = networks(&s, &["blue", "red"], &[]);
    let sleeper = |name: &str, network: &str| {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            network,
            image,
            "sleep",
            "600",
        ];
        s.run(&words).ok();
    };
    sleeper("nobody1", "blue");
    sleeper("nobody2", "red");
    resolver(&s, image, &["--network", "blue", "--dns", OUTSIDE]);
    let ask = |name: &str| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let all = there(&s, "asker", "blue");
        let v4 = all.split(' ').find(|a| a.contains('.')).unwrap();
        socket
            .send_to(name.as_bytes(), format!("{v4}:5000"))
            .unwrap();
        let mut reply = [0; 512];
        let n = socket.recv(&mut reply).expect("the probe answers");
        String::from_utf8_lossy(&reply[..n]).into_owned()
    };
    let (one, two) = (there(&s, "nobody1", "blue"), there(&s, "nobody2", "red"));
    assert_eq!(ask("nobody1"), one);
    assert_eq!(ask("nobody1.blue"), one);
    assert_eq!(ask("nobody2"), "none");
    assert_eq!(ask("nobody2.red"), "none");
    // Connected, known at once; disconnected, forgotten.
    s.run(&["network", "connect", "--alias", "nobody3", "red", "asker"])
        .ok();
    assert_eq!(ask("nobody2"), two);
    assert_eq!(ask("nobody2.red"), two);
    assert_eq!(ask("nobody3"), there(&s, "asker", "red"));
    assert_eq!(ask("nobody1"), one);
    let red = ["--network", "red"];
    assert_eq!(
        lookup(&s, image, &red, &["nobody3"]),
        [there(&s, "asker", "red")]
    );
    s.run(&["network", "disconnect", "red", "asker"]).ok();
    assert_eq!(ask("nobody2"), "none");
    assert_eq!(ask("nobody3"), "none");
    // A container in the network of another one has its names.
    let shared = ["--network", "container:asker"];
    assert_eq!(lookup(&s, image, &shared, &["nobody1"]), [one]);
    drop(made);
}

fn an_alias_stands_for_all_who_have_it(image: &str) {
    let s = Sandbox::ready();
    let made = networks(&s, &["blue"], &["--ipv6=false"]);
    for name in ["one", "two"] {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "blue",
            "--network-alias",
            "Both",
            "--hostname",
            &format!("host-{name}"),
            image,
            "sleep",
            "600",
        ];
        s.run(&words).ok();
    }
    let (one, two) = (there(&s, "one", "blue"), there(&s, "two", "blue"));
    let mut all = [one.as_str(), two.as_str()];
    all.sort_unstable();
    let blue = ["--network", "blue"];
    let names = ["both", "BOTH.blue", "one", "host-two"];
    let found = lookup(&s, image, &blue, &names);
    let all = all.join(" ");
    assert_eq!(found, [all.as_str(), &all, &one, &two]);
    // Each comes first in its turn.
    let words = [
        "run",
        "--rm",
        "--network",
        "blue",
        image,
        "exchange",
        "127.0.0.11:53",
    ];
    let question = query("both", 1);
    let mut first = Vec::new();
    for packets in [&[&question][..], &[&question, &question]] {
        let packets: Vec<&str> = packets.iter().map(|p| p.as_str()).collect();
        let text = s.run(&[&words[..], &packets].concat()).ok();
        let at = question.len() + 24;
        first.push(text[at..at + 8].to_owned());
    }
    assert_ne!(first[0], first[1]);
    // No IPv6 in this network: known, without such an address.
    let six = query("one", 28);
    let words = [&words[..], &[&six]].concat();
    assert_eq!(&s.run(&words).ok()[4..16], "818000010000");
    s.run(&["rm", "-f", "one"]).ok();
    assert_eq!(lookup(&s, image, &blue, &["both"]), [two]);
    drop(made);
}

fn an_internal_network_knows_names_and_asks_nobody(image: &str) {
    let s = Sandbox::ready();
    let _outside = outside();
    server_outside();
    let made = networks(&s, &["inside"], &["--internal"]);
    let network = ["--network", "inside", "--dns", OUTSIDE];
    let words = [
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "inside",
        image,
        "sleep",
        "600",
    ];
    s.run(&words).ok();
    let found = lookup(&s, image, &network, &["web", "example.org"]);
    assert_eq!(found, [there(&s, "web", "inside").as_str(), "none"]);
    let words = [
        &["run", "--rm"],
        &network[..],
        &[image, "exchange", "127.0.0.11:53"],
    ]
    .concat();
    let text = s
        .run(&[&words[..], &[&query("example.org", 1)]].concat())
        .ok();
    assert_eq!(&text[4..8], "8182", "nobody can tell: {text}");
    drop(made);
}
