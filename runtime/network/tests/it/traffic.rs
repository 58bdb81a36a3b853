use std::net::UdpSocket;
use std::time::Duration;

use crate::world::{World, ask, echo, ip, nft, output, refused, ruleset, serve, socket, supervise};

#[test]
fn a_published_port_is_reached_from_everywhere() {
    let world = World::new();
    let mut web = world.attach(1, &["8080:80"]);
    let other = world.attach(2, &[]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    let _held = supervise(std::mem::take(&mut web.listeners));
    let gateway = web.endpoint.gateway;
    let v6 = web.endpoint.address6.unwrap();
    // A bridge whose own address is still being checked asks for no neighbour.
    let bridge = |what| output("ip", &["-6", "addr", "show", "dev", "amphora0", what]);
    assert_eq!(bridge("tentative"), "");
    assert!(bridge("permanent").contains("inet6 fe80::"));
    let reached = |netns, address: &str| {
        let answer = ask(&world, netns, address);
        assert!(
            answer.is_some_and(|a| a.starts_with("web ")),
            "{address}\n{}",
            ruleset()
        );
    };
    let outside = Some(&world.outside);
    reached(outside, "192.0.2.2:8080");
    reached(outside, "[2001:db8::2]:8080");
    reached(None, "127.0.0.1:8080");
    reached(None, "127.0.0.9:8080");
    reached(None, "192.0.2.2:8080");
    reached(None, "[::1]:8080");
    reached(None, "[2001:db8::2]:8080");
    reached(None, &socket(web.endpoint.address, 80));
    reached(None, &socket(v6, 80));
    reached(Some(&other.netns), &socket(web.endpoint.address, 80));
    reached(Some(&other.netns), &socket(v6, 80));
    reached(Some(&other.netns), &socket(gateway, 8080));
    reached(Some(&other.netns), "192.0.2.2:8080");
    reached(Some(&other.netns), "[2001:db8::2]:8080");
    reached(Some(&web.netns), "192.0.2.2:8080");
    reached(Some(&web.netns), "[2001:db8::2]:8080");
    reached(Some(&web.netns), &socket(gateway, 8080));
}

#[test]
fn the_client_outside_is_seen_with_its_own_address() {
    let world = World::new();
    let web = world.attach(1, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    let answer = ask(&world, Some(&world.outside), "192.0.2.2:8080").unwrap();
    assert_eq!(answer, "web ::ffff:192.0.2.1");
}

#[test]
fn containers_reach_the_outside_by_the_hosts_address() {
    let world = World::new();
    let one = world.attach(1, &[]);
    serve(&world, Some(&world.outside), "192.0.2.1:9000", "out");
    serve(&world, Some(&world.outside), "[2001:db8::1]:9000", "out");
    assert_eq!(
        ask(&world, Some(&one.netns), "192.0.2.1:9000").unwrap(),
        "out 192.0.2.2"
    );
    assert_eq!(
        ask(&world, Some(&one.netns), "[2001:db8::1]:9000").unwrap(),
        "out 2001:db8::2"
    );
}

#[test]
fn nothing_unpublished_is_reached_from_outside() {
    let world = World::new();
    let web = world.attach(1, &["127.0.0.1:8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    let subnet = world.networks.stored("bridge").unwrap().unwrap();
    world.at(&world.outside, || {
        ip(&format!(
            "route add {} via 192.0.2.2",
            subnet.subnet.unwrap()
        ));
        ip(&format!(
            "route add {} via 2001:db8::2",
            subnet.subnet6.unwrap()
        ));
    });
    assert!(ask(&world, None, "127.0.0.1:8080").is_some());
    let outside = Some(&world.outside);
    assert!(refused(&world, outside, "192.0.2.2:8080"));
    assert!(refused(&world, outside, &socket(web.endpoint.address, 80)));
    assert!(refused(
        &world,
        outside,
        &socket(web.endpoint.address6.unwrap(), 80)
    ));
    assert!(refused(&world, None, "[::1]:8080"));
}

#[test]
fn a_container_cannot_reach_the_hosts_loopback() {
    let world = World::new();
    let bad = world.attach(1, &[]);
    serve(&world, None, "127.0.0.2:7000", "secret");
    let gateway = bad.endpoint.gateway;
    world.at(&bad.netns, || {
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        ip("addr del 127.0.0.1/8 dev lo");
        ip(&format!("route add 127.0.0.2/32 via {gateway} dev eth0"));
    });
    assert!(ask(&world, None, "127.0.0.2:7000").is_some());
    assert!(refused(&world, Some(&bad.netns), "127.0.0.2:7000"));
}

#[test]
fn udp_ports_are_published() {
    let world = World::new();
    let dns = world.attach(1, &["5353:53/udp"]);
    echo(&world, &dns.netns);
    let talk = |address: &str| {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        client.connect(address).unwrap();
        client.send(b"who").unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"who", "{address}");
    };
    talk("127.0.0.1:5353");
    talk("192.0.2.2:5353");
    world.at(&world.outside, || talk("192.0.2.2:5353"));
}

#[test]
fn beside_docker_our_bridge_is_accepted_in_its_user_chain() {
    let world = World::new();
    for family in ["ip", "ip6"] {
        nft(&format!(
            "table {family} filter {{ chain DOCKER-USER {{ counter return; }}; chain FORWARD {{ \
             type filter hook forward priority 0; policy drop; counter jump DOCKER-USER; }}; }}"
        ));
    }
    let web = world.attach(1, &["8080:80"]);
    let other = world.attach(2, &[]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    assert!(
        ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some(),
        "{}",
        ruleset()
    );
    assert!(ask(&world, Some(&world.outside), "[2001:db8::2]:8080").is_some());
    assert!(ask(&world, Some(&other.netns), "192.0.2.2:8080").is_some());
    assert_eq!(
        ruleset().matches("comment \"amphora\"").count(),
        4,
        "{}",
        ruleset()
    );
    assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
    world.exit(&web);
    world.networks.release(&crate::world::id(1)).unwrap();
    assert!(ruleset().contains("comment \"amphora\""));
    world.exit(&other);
    world.networks.release(&crate::world::id(2)).unwrap();
    assert!(!ruleset().contains("comment \"amphora\""), "{}", ruleset());
    assert_eq!(ruleset().matches("jump DOCKER-USER").count(), 2);
}

#[test]
fn a_filter_that_drops_without_a_user_chain_is_told() {
    let world = World::new();
    let web = world.attach(1, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
    for (table, chain) in [("ip filter", "FORWARD"), ("inet filter", "forward")] {
        nft(&format!(
            "table {table} {{ chain {chain} {{ type filter hook forward priority 0; policy drop; }}; }}"
        ));
        let hints = world.networks.hints().unwrap();
        assert_eq!(hints.len(), 1, "{hints:?}");
        let start = format!("table \"{table}\" drops forwarded packets");
        assert!(hints[0].starts_with(&start), "{hints:?}");
        assert!(refused(&world, Some(&world.outside), "192.0.2.2:8080"));
        assert_eq!(world.attach(2, &[]).firewall.hints(), hints);
        follow(&world, &hints);
        assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
        let answer = ask(&world, Some(&world.outside), "192.0.2.2:8080");
        assert!(answer.is_some(), "{}", ruleset());
    }
}

/// Its programs, and where each is on the way from outside.
const LEGACY: [(&str, &str); 2] = [
    ("iptables-legacy", "192.0.2.2:8080"),
    ("ip6tables-legacy", "[2001:db8::2]:8080"),
];

#[test]
fn a_legacy_filter_that_drops_is_told() {
    let world = World::new();
    let web = world.attach(1, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    let names = || std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap();
    let before = names();
    assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
    assert_eq!(names(), before, "looking makes no table");
    for (program, outside) in LEGACY {
        sh(
            &world,
            &format!("{program} -A FORWARD -i elsewhere0 -j ACCEPT"),
        );
        assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
        sh(&world, &format!("{program} -P FORWARD DROP"));
        let hints = world.networks.hints().unwrap();
        assert_eq!(hints.len(), 1, "{hints:?}");
        assert!(
            hints[0].contains(&format!(" of {program} drops")),
            "{hints:?}"
        );
        assert!(refused(&world, Some(&world.outside), outside));
        follow(&world, &hints);
        assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
        assert!(ask(&world, Some(&world.outside), outside).is_some());
    }
}

#[test]
fn a_legacy_rule_that_drops_is_told_wherever_it_is() {
    let world = World::new();
    let web = world.attach(1, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    for (program, outside) in LEGACY {
        for (rules, closed) in [
            (
                "-A FORWARD -m conntrack --ctstate INVALID -j DROP; -A FORWARD -j REJECT",
                true,
            ),
            ("-A FORWARD -j LEAD; -A LEAD -j PIT; -A PIT -j DROP", true),
            // What comes back meets the policy; a rule without a target only counts.
            ("-P FORWARD DROP; -A FORWARD -j RETURN", true),
            ("-P FORWARD DROP; -A FORWARD -g LEAD", true),
            ("-A FORWARD; -A FORWARD -j DROP", true),
            (
                "-A FORWARD -g LEAD; -A LEAD -p tcp -j RETURN; -A LEAD -p udp -j DROP; -A FORWARD -j DROP",
                false,
            ),
            (
                "-A FORWARD -j LEAD; -A LEAD -j RETURN; -A LEAD -j DROP",
                false,
            ),
            (
                "-A FORWARD -j LEAD; -A LEAD -j ACCEPT; -A FORWARD -j DROP",
                false,
            ),
            (
                "-A FORWARD -i elsewhere0 -j PIT; -A FORWARD -p tcp --dport 1 -j PIT; -A PIT -j DROP",
                false,
            ),
        ] {
            for command in ["-N LEAD", "-N PIT"].into_iter().chain(rules.split("; ")) {
                sh(&world, &format!("{program} {command}"));
            }
            let hints = world.networks.hints().unwrap();
            assert_eq!(hints.len(), usize::from(closed), "{rules}: {hints:?}");
            assert_eq!(
                refused(&world, Some(&world.outside), outside),
                closed,
                "{rules}"
            );
            if closed {
                follow(&world, &hints);
                assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
                assert!(ask(&world, Some(&world.outside), outside).is_some());
            }
            for command in ["-F", "-X", "-P FORWARD ACCEPT"] {
                sh(&world, &format!("{program} {command}"));
            }
        }
    }
}

/// Runs the commands that hints name.
fn follow(world: &World, hints: &[String]) {
    let commands = hints.iter().flat_map(|hint| hint.split('"'));
    let mut ran = 0;
    for command in
        commands.filter(|c| c.contains("tables") && c.contains("-I ") || c.starts_with("nft "))
    {
        sh(world, command);
        ran += 1;
    }
    assert_eq!(ran, 2 * hints.len(), "{hints:?}");
}

fn sh(world: &World, command: &str) {
    let _quiet = crate::world::quiet();
    let status = std::process::Command::new("sh")
        .args(["-c", command])
        .env("XTABLES_LOCKFILE", world.dir.join("xtables.lock"))
        .status();
    assert!(status.unwrap().success(), "{command}");
}
