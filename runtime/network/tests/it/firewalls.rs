//! Beside other firewalls: what they drop stays dropped and is told, with what lets it pass. Their
//! rulesets are those that they make by default.

use std::net::UdpSocket;
use std::time::Duration;

use amphora_network::Attachment;

use crate::networks::{join, joining, plain};
use crate::world::{World, ask, echo, elements, nft, output, refused, ruleset, serve, socket};

const UFW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/rulesets/ufw");
const FIREWALLD: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/rulesets/firewalld.nft"
);

fn sh(command: &str) {
    output("sh", &["-c", command]);
}

/// A server with a published port, and one outside.
fn web(world: &World) -> Attachment {
    let web = world.attach(1, &["8080:80"]);
    serve(world, Some(&web.netns), "[::]:80", "web");
    serve(world, Some(&world.outside), "192.0.2.1:9000", "out");
    serve(world, Some(&world.outside), "[2001:db8::1]:9000", "out");
    web
}

/// In and out, over both families.
fn ways<'a>(
    world: &'a World,
    web: &'a Attachment,
) -> [(&'a std::os::fd::OwnedFd, &'static str); 4] {
    [
        (&world.outside, "192.0.2.2:8080"),
        (&world.outside, "[2001:db8::2]:8080"),
        (&web.netns, "192.0.2.1:9000"),
        (&web.netns, "[2001:db8::1]:9000"),
    ]
}

#[track_caller]
fn passes(world: &World, web: &Attachment) {
    for (from, to) in ways(world, web) {
        assert!(ask(world, Some(from), to).is_some(), "{to}\n{}", ruleset());
    }
    assert_eq!(world.networks.hints().unwrap(), Vec::<String>::new());
    assert_eq!(world.attach(2, &[]).firewall.hints(), Vec::<String>::new());
}

/// The commands that a hint names; each hint has two.
fn remedies(hints: &[String]) -> Vec<String> {
    let parts = hints.iter().flat_map(|hint| hint.split('"').skip(3));
    let commands = parts.filter(|part| part.contains("amphora0"));
    commands.map(str::to_owned).collect()
}

/// Chains that others lead to: one that drops in the end, one that comes back, one that accepts.
const LEADS: &str = "chain pit { drop; }; \
    chain lead { ct state invalid drop; jump back; goto pit; accept; }; \
    chain back { tcp dport 1 drop; return; drop; }; \
    chain pass { jump back; accept; };";

#[test]
fn a_drop_in_any_forward_hook_is_told_and_can_be_mended() {
    let world = World::new();
    let web = web(&world);
    passes(&world, &web);
    let hook = "type filter hook forward priority 7;";
    for (table, chain, rules, closed) in [
        ("inet mine", "gate", "policy drop;", &[0, 1, 2, 3][..]),
        (
            "inet mine",
            "gate",
            "ct state invalid drop; counter log reject;",
            &[0, 1, 2, 3],
        ),
        ("ip mine", "FORWARD", "counter drop;", &[0, 2]),
        ("ip6 mine", "gate", "tcp dport 1 accept; drop;", &[1, 3]),
        ("inet filter", "forward", "reject;", &[0, 1, 2, 3]),
        (
            "inet mine",
            "gate",
            "jump back; jump lead; accept;",
            &[0, 1, 2, 3],
        ),
        ("ip mine", "gate", "counter goto lead;", &[0, 2]),
        ("ip6 mine", "gate", "policy drop; goto back;", &[1, 3]),
    ] {
        nft(&format!("table {table} {{ {LEADS} }}"));
        nft(&format!(
            "table {table} {{ chain {chain} {{ {hook} {rules} }}; }}"
        ));
        let hints = world.networks.hints().unwrap();
        let start = format!("table \"{table}\" drops forwarded packets");
        assert!(
            hints.len() == 1 && hints[0].starts_with(&start),
            "{hints:?}"
        );
        assert_eq!(world.attach(2, &[]).firewall.hints(), hints);
        for (n, (from, to)) in ways(&world, &web).into_iter().enumerate() {
            assert_eq!(
                refused(&world, Some(from), to),
                closed.contains(&n),
                "{table}: {to}"
            );
        }
        let commands = remedies(&hints);
        assert_eq!(commands.len(), 2, "{hints:?}");
        commands.iter().for_each(|command| sh(command));
        passes(&world, &web);
        nft(&format!("delete table {table}"));
    }
    for rules in [
        "tcp dport 1 jump lead;",
        "jump back;",
        "goto back; drop;",
        "jump pass; drop;",
        "policy drop; jump pass;",
    ] {
        nft(&format!(
            "table inet mine {{ {LEADS} chain gate {{ {hook} {rules} }}; }}"
        ));
        passes(&world, &web);
        nft("delete table inet mine");
    }
    // What drops something else is nobody's business.
    nft(&format!(
        "table inet mine {{ chain gate {{ {hook} iifname \"elsewhere0\" drop; }}; \
         chain input {{ type filter hook input priority 0; policy drop; iif lo accept; \
         meta l4proto icmpv6 accept; }}; }}"
    ));
    passes(&world, &web);
}

#[test]
fn the_last_rule_of_iptables_that_rejects_is_told() {
    let world = World::new();
    let web = web(&world);
    for program in ["iptables", "ip6tables"] {
        sh(&format!(
            "{program} -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"
        ));
        sh(&format!("{program} -A FORWARD -j REJECT"));
    }
    let hints = world.networks.hints().unwrap();
    assert_eq!(hints.len(), 2, "{hints:?}");
    for (from, to) in ways(&world, &web) {
        assert!(refused(&world, Some(from), to), "{to}");
    }
    remedies(&hints).iter().for_each(|command| sh(command));
    passes(&world, &web);
}

#[test]
fn ufw_that_denies_is_told_in_its_own_words() {
    let world = World::new();
    let web = web(&world);
    sh(&format!(
        "iptables-restore <{UFW}.iptables && ip6tables-restore <{UFW}.ip6tables"
    ));
    let hints = world.networks.hints().unwrap();
    assert_eq!(hints.len(), 2, "{hints:?}");
    for (hint, table) in hints.iter().zip(["ip", "ip6"]) {
        assert_eq!(
            *hint,
            format!(
                "ufw (table \"{table} filter\") drops forwarded packets, and with them the traffic \
                 of containers; \"ufw route allow in on amphora0\" and \"ufw route allow out on \
                 amphora0\" let it pass"
            )
        );
    }
    for (from, to) in ways(&world, &web) {
        assert!(refused(&world, Some(from), to), "{to}");
    }
    // Not forwarded, so not refused: from this host itself.
    assert!(ask(&world, None, &socket(web.endpoint.address, 80)).is_some());
    assert!(
        ask(&world, None, "127.0.0.1:8080").is_some(),
        "{}",
        ruleset()
    );
    // What these commands of ufw do.
    for (program, chain) in [
        ("iptables", "ufw-user-forward"),
        ("ip6tables", "ufw6-user-forward"),
    ] {
        for way in ["-i", "-o"] {
            sh(&format!("{program} -A {chain} {way} amphora0 -j ACCEPT"));
        }
    }
    passes(&world, &web);
}

#[test]
fn ufw_that_rejects_in_a_chain_of_its_own_is_told_in_its_words() {
    let world = World::new();
    let web = web(&world);
    let ufw = |policy: &str| {
        for (family, program) in [("", "iptables"), ("6", "ip6tables")] {
            sh(&format!(
                "sed 's/^:FORWARD DROP/:FORWARD {policy}/' {UFW}.{program} | {program}-restore && \
                 {program} -A ufw{family}-reject-forward -j REJECT"
            ));
        }
    };
    // The chain comes first, or the policy would have dropped anyway: told once.
    for policy in ["ACCEPT", "DROP"] {
        ufw(policy);
        let hints = world.networks.hints().unwrap();
        assert_eq!(hints.len(), 2, "{hints:?}");
        assert!(hints.iter().all(|hint| hint.starts_with("ufw (table")));
        for (from, to) in ways(&world, &web) {
            assert!(refused(&world, Some(from), to), "{to}");
        }
    }
}

#[test]
fn firewalld_lets_published_ports_in_and_is_told_where_nothing_gets_out() {
    let world = World::new();
    let web = web(&world);
    nft(&format!("include \"{FIREWALLD}\""));
    let ways = ways(&world, &web);
    for (from, to) in &ways[..2] {
        assert!(ask(&world, Some(from), to).is_some(), "{to}\n{}", ruleset());
    }
    assert!(ask(&world, None, "127.0.0.1:8080").is_some());
    for (from, to) in &ways[2..] {
        assert!(refused(&world, Some(from), to), "{to}");
    }
    let hints = world.networks.hints().unwrap();
    assert_eq!(
        hints,
        [
            "firewalld (table \"inet firewalld\") drops forwarded packets, and with them the traffic \
          of containers; \"firewall-cmd --zone=trusted --add-interface=amphora0\" and \
          \"firewall-cmd --permanent --zone=trusted --add-interface=amphora0\" let it pass"
        ]
    );
    // What these commands do.
    nft("insert rule inet firewalld filter_FORWARD_ZONES iifname amphora0 accept");
    passes(&world, &web);
    // `firewall-cmd --reload` makes its table anew, now with the uplink in a zone that forwards.
    nft("delete table inet firewalld");
    nft(&format!("include \"{FIREWALLD}\""));
    nft("add rule inet firewalld filter_FWD_public_allow oifname up0 accept");
    passes(&world, &web);
}

#[test]
fn a_flushed_ruleset_is_repaired_and_told_once() {
    let world = World::new();
    assert_eq!(world.networks.repair().unwrap(), None);
    let web = web(&world);
    let dns = world.attach(3, &["5353:53/udp"]);
    echo(&world, &dns.netns);
    let answered = || {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.connect("127.0.0.1:5353").unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        client.send(b"who").is_ok() && client.recv(&mut [0; 8]).is_ok()
    };
    assert!(answered());
    assert_eq!(world.networks.repair().unwrap(), None);
    let before = ruleset();
    nft("flush ruleset");
    assert!(refused(&world, Some(&world.outside), "192.0.2.2:8080"));
    let told = world.networks.repair().unwrap().unwrap();
    assert!(told.starts_with("table \"amphora\" was gone"), "{told}");
    assert_eq!(ruleset(), before);
    assert_eq!(elements(), 4);
    assert!(answered(), "{}", ruleset());
    assert_eq!(world.networks.repair().unwrap(), None);
    passes(&world, &web);
    // The next start does it too, and says so.
    nft("flush ruleset");
    assert_eq!(world.attach(4, &[]).firewall.hints(), [told]);
    assert!(answered());
    // Only in the namespace where the containers are.
    nft("delete table inet amphora");
    let elsewhere = world.at(&world.outside, || world.networks.repair().unwrap());
    assert_eq!(elsewhere, None);
    assert!(world.networks.repair().unwrap().is_some());
}

#[test]
fn a_flushed_user_chain_is_filled_by_the_next_start() {
    let world = World::new();
    let web = web(&world);
    nft(
        "table ip filter { chain DOCKER-USER { counter return; }; chain FORWARD { \
         type filter hook forward priority 0; policy drop; counter jump DOCKER-USER; }; }",
    );
    drop(world.attach(2, &[]));
    passes(&world, &web);
    sh("iptables -F DOCKER-USER");
    assert!(refused(&world, Some(&world.outside), "192.0.2.2:8080"));
    drop(world.attach(3, &[]));
    passes(&world, &web);
}

#[test]
fn rules_are_repaired_and_drops_told_where_only_user_networks_are_used() {
    let world = World::new();
    let blue = world.networks.create(&plain("blue")).unwrap();
    let web = join(&world, &joining(1, &["blue"], &["8080:80"]));
    serve(&world, Some(&web.netns), "[::]:80", "web");
    assert!(!output("ip", &["-o", "link"]).contains("amphora0"));
    nft("flush ruleset");
    assert!(refused(&world, Some(&world.outside), "192.0.2.2:8080"));
    assert!(world.networks.repair().unwrap().is_some());
    assert!(ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some());
    assert_eq!(world.networks.repair().unwrap(), None);
    nft("table inet mine { chain gate { type filter hook forward priority 7; policy drop; }; }");
    let hints = world.networks.hints().unwrap();
    assert!(
        hints.len() == 1 && hints[0].contains(&blue.link),
        "{hints:?}"
    );
}
