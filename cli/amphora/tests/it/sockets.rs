//! Servers and clients in containers: both transports, both families, over every way that leads to
//! them. Each for Linux and for Wasm, and with the other kind as its partner.

use std::time::Duration;

use crate::both::{ask, ask_udp, cable, from_outside, serving};
use crate::sandbox::{Output, Sandbox, tool};

both!(
    a_server_is_reached_by_containers_over_every_way,
    datagrams_are_served_to_containers_and_outside,
    a_container_reaches_itself,
    a_server_speaks_ipv6,
    nothing_answers_where_nobody_serves,
);

/// This host, as the outside sees it.
const HOST: &str = "192.0.2.1";
const KINDS: [&str; 2] = ["probe-linux", "probe-wasm"];

/// Starts a server and waits for it.
fn server(s: &Sandbox, name: &str, options: &[&str], image: &str, words: &[&str]) {
    let run = ["run", "-d", "--name", name];
    s.run(&[&run[..], options, &[image], words].concat()).ok();
    serving(s, name);
}

fn fetch(s: &Sandbox, kind: &str, word: &str, address: &str) -> Output {
    s.run(&["run", "--rm", kind, word, address])
}

fn settings(s: &Sandbox, name: &str, key: &str) -> String {
    let shown = s.inspect(name);
    let of = &shown["NetworkSettings"]["Networks"]["bridge"][key];
    of.as_str().unwrap().to_owned()
}

fn a_server_is_reached_by_containers_over_every_way(image: &str) {
    let s = Sandbox::ready();
    cable();
    server(
        &s,
        "web",
        &["-p", "8080:80"],
        image,
        &["serve", "80", "answer"],
    );
    let (own, gateway) = (
        settings(&s, "web", "IPAddress"),
        settings(&s, "web", "Gateway"),
    );
    for kind in KINDS {
        for address in [
            format!("{own}:80"),
            format!("{gateway}:8080"),
            format!("{HOST}:8080"),
        ] {
            let fetched = fetch(&s, kind, "fetch", &address);
            assert_eq!(
                (fetched.stderr.as_str(), fetched.stdout.as_str()),
                ("", "answer\n"),
                "{kind} {address}"
            );
        }
    }
    s.run(&["rm", "-f", "web"]).ok();
    tool(&["ip", "link", "del", "up0"]);
}

fn datagrams_are_served_to_containers_and_outside(image: &str) {
    let s = Sandbox::ready();
    cable();
    tool(&["ip", "addr", "add", "192.0.2.11/24", "dev", "up0"]);
    server(
        &s,
        "dns",
        &["-p", "5353:53/udp"],
        image,
        &["serve-udp", "53", "answer"],
    );
    let (own, gateway) = (
        settings(&s, "dns", "IPAddress"),
        settings(&s, "dns", "Gateway"),
    );
    for kind in KINDS {
        for address in [
            format!("{own}:53"),
            format!("{gateway}:5353"),
            format!("{HOST}:5353"),
        ] {
            assert_eq!(
                fetch(&s, kind, "fetch-udp", &address).ok(),
                "answer\n",
                "{kind} {address}"
            );
        }
    }
    // From the second address too: a client hears only whom it asked.
    for address in ["192.0.2.1:5353", "192.0.2.11:5353", "127.0.0.1:5353"] {
        assert_eq!(ask_udp(address).expect(address), "answer\n");
    }
    from_outside(|| ask_udp("192.0.2.11:5353").expect("from outside"));
    s.run(&["rm", "-f", "dns"]).ok();
}

fn a_container_reaches_itself(image: &str) {
    let s = Sandbox::ready();
    cable();
    // Any container knows the gateway of them all.
    s.run(&["run", "-d", "--name", "other", image, "sleep", "600"])
        .ok();
    let gateway = settings(&s, "other", "Gateway");
    let gateway6 = settings(&s, "other", "IPv6Gateway");
    s.run(&["rm", "-f", "other"]).ok();
    let published = ["run", "--rm", "-p", "8080:80", image, "self"];
    for (bind, address) in [
        ("0.0.0.0:80", "127.0.0.1:80".to_owned()),
        ("0.0.0.0:80", format!("{HOST}:8080")),
        ("0.0.0.0:80", format!("{gateway}:8080")),
        ("[::]:80", format!("[{gateway6}]:8080")),
        ("[::]:80", "[::1]:80".to_owned()),
    ] {
        let said = s.run(&[&published[..], &[bind, &address]].concat());
        assert_eq!(
            (said.stderr.as_str(), said.stdout.as_str()),
            ("", "myself\n"),
            "{address}"
        );
    }
    let none = ["run", "--rm", "--network", "none", image, "self"];
    for address in ["127.0.0.1:80", "[::1]:80"] {
        assert_eq!(
            s.run(&[&none[..], &[address, address]].concat()).ok(),
            "myself\n"
        );
    }
    tool(&["ip", "link", "del", "up0"]);
}

fn a_server_speaks_ipv6(image: &str) {
    let s = Sandbox::ready();
    server(
        &s,
        "web",
        &["-p", "8080:80"],
        image,
        &["serve", "[::]:80", "answer"],
    );
    let (own, gateway) = (
        settings(&s, "web", "GlobalIPv6Address"),
        settings(&s, "web", "IPv6Gateway"),
    );
    assert_eq!(
        ask(&format!("[{gateway}]:8080")).expect("the bridge"),
        "answer\n"
    );
    assert_eq!(ask(&format!("[{own}]:80")).expect("itself"), "answer\n");
    for kind in KINDS {
        for address in [format!("[{own}]:80"), format!("[{gateway}]:8080")] {
            assert_eq!(
                fetch(&s, kind, "fetch", &address).ok(),
                "answer\n",
                "{kind} {address}"
            );
        }
    }
    s.run(&["rm", "-f", "web"]).ok();
    server(
        &s,
        "dns",
        &["-p", "5353:53/udp"],
        image,
        &["serve-udp", "[::]:53", "answer"],
    );
    let own = settings(&s, "dns", "GlobalIPv6Address");
    for kind in KINDS {
        for address in [format!("[{own}]:53"), format!("[{gateway}]:5353")] {
            assert_eq!(
                fetch(&s, kind, "fetch-udp", &address).ok(),
                "answer\n",
                "{kind} {address}"
            );
        }
    }
    s.run(&["rm", "-f", "dns"]).ok();
}

fn nothing_answers_where_nobody_serves(image: &str) {
    let s = Sandbox::ready();
    cable();
    // Published, and nobody listens: refused at once, not left waiting.
    s.run(&[
        "run", "-d", "--name", "idle", "-p", "8080:80", image, "sleep", "600",
    ])
    .ok();
    let started = std::time::Instant::now();
    for address in ["127.0.0.1:8080", "192.0.2.1:8080"] {
        assert!(ask(address).is_err(), "{address}");
    }
    let own = settings(&s, "idle", "IPAddress");
    for kind in KINDS {
        let refused = fetch(&s, kind, "fetch", &format!("{own}:80"));
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("refused"), "{refused:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    s.run(&["rm", "-f", "idle"]).ok();
    tool(&["ip", "link", "del", "up0"]);
}
