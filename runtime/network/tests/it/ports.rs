//! Every form of a published port, and ports that come and go while a container runs.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amphora_network::PublishedPort;
use amphora_spec::error::chain;
use amphora_spec::{Classify, ErrorKind};

use crate::world::{
    World, ask, elements, id, ip, refused, requests, ruleset, serve, socket, supervise,
};

/// Answers datagrams with a name and the sender's address; ends with the test process.
fn serve_udp(world: &World, netns: &OwnedFd, port: u16, name: &'static str) {
    let server = world.at(netns, || UdpSocket::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((n, peer)) = server.recv_from(&mut buffer) {
            let question = String::from_utf8_lossy(&buffer[..n]).into_owned();
            let text = format!("{question}{name} {}", peer.ip().to_canonical());
            server.send_to(text.as_bytes(), peer).unwrap();
        }
    });
}

/// A client that keeps its own port. Answers from anywhere but where it sent to are not heard.
fn client(world: &World, netns: Option<&OwnedFd>, to: &str) -> UdpSocket {
    let make = || {
        let any = if to.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let client = UdpSocket::bind(any).unwrap();
        client.connect(to).unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        client
    };
    netns.map_or_else(make, |netns| world.at(netns, make))
}

/// Asks until there is an answer to this very question; `None` after a while.
fn talk(client: &UdpSocket) -> Option<String> {
    static QUESTIONS: AtomicU32 = AtomicU32::new(0);
    let question = format!("{}: ", QUESTIONS.fetch_add(1, Ordering::Relaxed));
    let mut buffer = [0; 64];
    for _ in 0..10 {
        let _ = client.send(question.as_bytes());
        while let Ok(n) = client.recv(&mut buffer) {
            let answer = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if let Some(answer) = answer.strip_prefix(&question) {
                return Some(answer.to_owned());
            }
        }
    }
    None
}

#[test]
fn datagrams_come_from_everywhere_and_are_answered_from_where_they_went() {
    let world = World::new();
    // A second address: an answer from the first would not be heard.
    ip("addr add 192.0.2.22/24 dev up0");
    let dns = world.attach(1, &["5353:53/udp"]);
    let other = world.attach(2, &[]);
    serve_udp(&world, &dns.netns, 53, "dns");
    let gateway = socket(dns.endpoint.gateway, 5353);
    let (out, two, own) = (Some(&world.outside), Some(&other.netns), Some(&dns.netns));
    let cases = [
        (out, "192.0.2.2:5353", Some("192.0.2.1")),
        (out, "192.0.2.22:5353", Some("192.0.2.1")),
        (out, "[2001:db8::2]:5353", Some("2001:db8::1")),
        (None, "127.0.0.1:5353", None),
        (None, "192.0.2.22:5353", None),
        (None, "[2001:db8::2]:5353", None),
        (two, "192.0.2.22:5353", None),
        (two, gateway.as_str(), None),
        (two, "[2001:db8::2]:5353", None),
        (own, "192.0.2.2:5353", None),
        (own, gateway.as_str(), None),
        (own, "[2001:db8::2]:5353", None),
    ];
    for (from, to, seen) in cases {
        let answer = talk(&client(&world, from, to));
        let answer = answer.unwrap_or_else(|| panic!("no answer from {to}\n{}", ruleset()));
        assert!(answer.starts_with("dns "), "{to}: {answer}");
        if let Some(seen) = seen {
            assert_eq!(answer, format!("dns {seen}"), "{to}");
        }
    }
}

#[test]
fn the_client_outside_keeps_its_address_over_ipv6() {
    let world = World::new();
    let web = world.attach(1, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    let answer = ask(&world, Some(&world.outside), "[2001:db8::2]:8080");
    assert_eq!(answer.unwrap(), "web 2001:db8::1");
}

/// A client that never falls silent is led to whoever has the port now.
#[test]
fn datagrams_follow_a_port_to_its_next_container() {
    let world = World::new();
    // The kernel tracks connections as soon as there are rules.
    let _other = world.attach(9, &[]);
    let far = client(&world, Some(&world.outside), "192.0.2.2:5353");
    let near = client(&world, None, "127.0.0.1:5353");
    // Before anybody publishes the port the kernel notes that nothing is translated.
    for early in [&far, &near] {
        let _ = early.send(b"who");
        let _ = early.recv(&mut [0; 8]);
    }
    for (n, name) in [(1, "first"), (2, "second"), (3, "third")] {
        let dns = world.attach(n, &["5353:53/udp"]);
        serve_udp(&world, &dns.netns, 53, name);
        assert_eq!(talk(&far), Some(format!("{name} 192.0.2.1")));
        assert!(talk(&near).unwrap().starts_with(&format!("{name} ")));
        // The second one's supervisor is killed: nobody sees to anything at its end.
        if n != 2 {
            world.exit(&dns);
        }
    }
    // Nobody has the port, and nobody answers, though the third one's server is still there.
    assert_eq!((talk(&far), talk(&near)), (None, None), "{}", ruleset());
}

#[test]
fn one_address_is_published_at_that_address() {
    let world = World::new();
    let specs = [
        "127.0.0.1:8001:80",
        "192.0.2.2:8002:80",
        "[::1]:8003:80",
        "[2001:db8::2]:8004:80",
    ];
    let mut web = world.attach(1, &specs);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    let _held = supervise(std::mem::take(&mut web.listeners));
    let out = Some(&world.outside);
    for (from, to) in [
        (None, "127.0.0.1:8001"),
        (None, "192.0.2.2:8002"),
        (out, "192.0.2.2:8002"),
        (None, "[::1]:8003"),
        (None, "[2001:db8::2]:8004"),
        (out, "[2001:db8::2]:8004"),
    ] {
        assert!(ask(&world, from, to).is_some(), "{to}\n{}", ruleset());
    }
    for (from, to) in [
        (out, "192.0.2.2:8001"),
        (None, "192.0.2.2:8001"),
        (None, "127.0.0.1:8002"),
        (out, "[2001:db8::2]:8003"),
        (None, "[::1]:8004"),
        (out, "192.0.2.2:8004"),
    ] {
        assert!(refused(&world, from, to), "{to}\n{}", ruleset());
    }
}

#[test]
fn ranges_and_choices_go_together_in_any_order() {
    let world = World::new();
    let host = |ports: &[PublishedPort]| {
        let mut all: Vec<_> = ports
            .iter()
            .filter(|p| p.host_ip.is_ipv4())
            .map(|p| (p.container_port, p.host_port))
            .collect();
        all.sort_unstable();
        all
    };
    let specs = [
        "8000-8002:90",
        "8000:80",
        "8001-8002:81-82/udp",
        "8001:83",
        "8000:80",
    ];
    let mut backwards = specs;
    backwards.reverse();
    for (n, specs) in [specs, backwards].iter().enumerate() {
        let web = world.attach(u8::try_from(n).unwrap() + 1, specs);
        assert_eq!(
            host(&web.ports),
            [(80, 8000), (81, 8001), (82, 8002), (83, 8001), (90, 8002)]
        );
        world.exit(&web);
    }
}

#[test]
fn a_busy_port_is_told_by_who_has_it_and_nothing_stays() {
    let world = World::new();
    let _web = world.attach(1, &["8080:80", "127.0.0.1:8085:80"]);
    let before = world.counts();
    // The address that it was to lead to is another one each time.
    let fails_as = |specs: &[&str], begins: &str, ends: &str| {
        let error = world.try_attach(2, specs).unwrap_err();
        let text = chain(&error);
        let address = text.strip_prefix(begins).and_then(|t| t.strip_suffix(ends));
        let one = |a: &str| a.is_empty() || a.parse::<std::net::Ipv4Addr>().is_ok();
        assert!(address.is_some_and(one), "{text}");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(world.counts(), before);
        for port in [8081, 8082] {
            std::net::TcpListener::bind(("0.0.0.0", port)).expect("left reserved");
        }
    };
    let fails = |specs: &[&str], text: &str| fails_as(specs, text, "");
    let ours = "Bind for 0.0.0.0:8080 failed: port is already allocated";
    fails(&["8080:80"], ours);
    fails(&["8081-8082:81-82", "8080:80"], ours);
    fails(
        &["8081:81", "8082:82", "127.0.0.1:8080:80"],
        &ours.replace("0.0.0.0", "127.0.0.1"),
    );
    fails(&["8085:80"], &ours.replace("8080", "8085"));
    let host = std::net::TcpListener::bind("0.0.0.0:8083").unwrap();
    let theirs = |specs: &[&str], port: u16, inside: u16| {
        let begins = format!("failed to bind host port for 0.0.0.0:{port}:");
        fails_as(
            specs,
            &begins,
            &format!(":{inside}/tcp: address already in use"),
        );
    };
    theirs(&["8083:80"], 8083, 80);
    // Half of a range.
    theirs(&["8081-8083:81-83"], 8083, 83);
    theirs(&["8083-8083:80"], 8083, 80);
    let six = std::net::TcpListener::bind("[::]:8084").unwrap();
    theirs(&["8084:80"], 8084, 80);
    fails(
        &["8083-8084:80"],
        "all ports in the range 8083-8084/tcp are allocated",
    );
    drop((host, six));
    // The same number of the other protocol is another port.
    world.attach(3, &["8080:80/udp"]);
}

#[test]
fn ports_come_and_go_while_the_container_runs() {
    let world = World::new();
    let mut web = world.attach(1, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    serve_udp(&world, &web.netns, 53, "dns");
    let _held = supervise(std::mem::take(&mut web.listeners));
    let out = Some(&world.outside);
    let stale = client(&world, out, "192.0.2.2:5353");
    let _ = stale.send(b"who");
    let mut more = world.more_ports(1, &["8081:80", "5353:53/udp"]).unwrap();
    assert!(refused(&world, out, "192.0.2.2:8081"), "not published yet");
    assert_eq!(
        (more.before().len(), more.added().len(), more.after().len()),
        (2, 4, 6)
    );
    assert_eq!(more.targets().len(), 6);
    world.networks.change_ports(&more).unwrap();
    let mut more_held = supervise(std::mem::take(&mut more.listeners));
    assert_eq!(elements(), 6, "{}", ruleset());
    for to in ["192.0.2.2:8081", "[2001:db8::2]:8081", "192.0.2.2:8080"] {
        assert!(ask(&world, out, to).is_some(), "{to}\n{}", ruleset());
    }
    assert!(ask(&world, None, "[::1]:8081").is_some());
    assert_eq!(talk(&stale).unwrap(), "dns 192.0.2.1");
    let error = world.more_ports(1, &["8081:81"]).unwrap_err();
    assert_eq!(
        chain(&error),
        "Bind for 0.0.0.0:8081 failed: port is already allocated"
    );
    // Both protocols of a number, or all of a container's port.
    let error = world
        .networks
        .fewer_ports(&id(1), &requests(&["8081:80/udp"]))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        chain(&error).starts_with("No public port '8081:80/udp' published for "),
        "{error}"
    );
    let fewer = world
        .networks
        .fewer_ports(&id(1), &requests(&["8081:80", "53/udp"]))
        .unwrap();
    assert_eq!((fewer.removed().len(), fewer.after().len()), (4, 2));
    world.networks.change_ports(&fewer).unwrap();
    more_held.clear();
    assert_eq!(elements(), 2, "{}", ruleset());
    assert!(refused(&world, out, "192.0.2.2:8081"));
    assert!(ask(&world, out, "192.0.2.2:8080").is_some());
    assert_eq!(
        world.networks.endpoint(&id(1)).unwrap().unwrap().ports,
        fewer.after()
    );
    assert_eq!(
        (fewer.old_release().len(), fewer.new_release().len()),
        (1, 1)
    );
    assert_ne!(fewer.old_release(), fewer.new_release());
    // The first port of UDP brings along what ends its conversations.
    assert_eq!((more.old_release().len(), more.new_release().len()), (1, 2));
}

#[test]
fn every_failed_step_of_a_change_leaves_the_ports_as_they_were() {
    let world = World::new();
    let _web = world.attach(1, &["8080:80"]);
    let before = world.networks.endpoint(&id(1)).unwrap().unwrap();
    for spec in ["8081:80", "8080:80"] {
        let mut step = 0;
        loop {
            let change = match spec {
                "8081:80" => world.more_ports(1, &[spec]),
                _ => world.networks.fewer_ports(&id(1), &requests(&[spec])),
            };
            let change = change.unwrap();
            world.networks.fail_at(step);
            let failed = world.networks.change_ports(&change).is_err();
            world.networks.fail_at(usize::MAX);
            if !failed {
                world.networks.unchange_ports(&change).unwrap();
            }
            assert_eq!(elements(), 2, "step {step}\n{}", ruleset());
            assert_eq!(world.networks.endpoint(&id(1)).unwrap().unwrap(), before);
            if !failed {
                break;
            }
            step += 1;
        }
        assert!(step >= 3, "only {step} steps");
    }
}

#[test]
fn a_container_without_a_network_has_no_ports_to_change() {
    let world = World::new();
    let error = world.more_ports(7, &["80"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}
