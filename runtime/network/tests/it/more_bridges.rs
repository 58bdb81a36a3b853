//! Networks with more containers than one bridge serves well.

use std::collections::BTreeMap;

use amphora_network::Attachment;

use crate::world::{World, ask, nft, output, ruleset, serve, socket, supervise};

/// Containers up to which there is one bridge.
const FEW: u8 = 63;

/// Links of containers by their bridge.
fn ports() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let links = output("ip", &["-o", "link", "show", "type", "veth"]);
    for line in links.lines().filter(|line| line.contains(": am")) {
        let bridge = line.split(" master ").nth(1).unwrap();
        let bridge = bridge.split(' ').next().unwrap().to_owned();
        *found.entry(bridge).or_default() += 1;
    }
    found
}

/// Links that are made for further bridges, by their kind.
fn made() -> Vec<usize> {
    let links = output("ip", &["-o", "link"]);
    let count = |kind: &str| links.lines().filter(|line| line.contains(kind)).count();
    [": as", ": au", ": ad"].into_iter().map(count).collect()
}

/// How many of them the table knows. The program shows no text of such a set.
fn known(rules: &str) -> usize {
    let set = rules.split("set more {").nth(1).unwrap_or_default();
    let set = set.split("\tset ").next().unwrap_or_default();
    set.matches("\"\"").count()
}

fn bridge_of(attachment: &Attachment) -> String {
    let link = &attachment.endpoint.link;
    let line = output("ip", &["-o", "link", "show", link]);
    let bridge = line.split(" master ").nth(1).unwrap();
    bridge.split(' ').next().unwrap().to_owned()
}

#[test]
fn many_containers_are_spread_over_more_bridges_and_stay_one_network() {
    many("0");
}

/// Docker has the kernel show frames to the filters as well: what is not let through is lost.
#[test]
fn so_they_are_where_frames_pass_the_filters() {
    many("1");
}

fn many(filtered: &str) {
    let world = World::new();
    for which in ["iptables", "ip6tables"] {
        let key = format!("/proc/sys/net/bridge/bridge-nf-call-{which}");
        let _ = std::fs::write(key, filtered);
    }
    let mut all: Vec<Attachment> = (1..=FEW).map(|n| world.attach(n, &[])).collect();
    assert_eq!(ports(), BTreeMap::from([("amphora0".to_owned(), 63)]));
    assert_eq!(made(), [0, 0, 0]);
    all.extend((FEW + 1..=220).map(|n| world.attach(n, &[&format!("{}:80", 8000 + u16::from(n))])));
    let spread = ports();
    assert_eq!(spread.values().sum::<usize>(), 220);
    assert!(spread.len() > 2, "{spread:?}");
    assert!(spread.iter().all(|(_, count)| *count < 90), "{spread:?}");
    assert_eq!(made(), [spread.len() - 1; 3]);

    let far: Vec<usize> = (63..220)
        .filter(|at| bridge_of(&all[*at]) != "amphora0")
        .collect();
    let held = supervise(std::mem::take(&mut all[far[0]].listeners));
    let (one, two) = (far[0], far[1..].iter().copied());
    let apart = |at: &usize| bridge_of(&all[*at]) != bridge_of(&all[one]);
    let two = two.clone().find(apart).unwrap();
    let server = &all[one];
    serve(&world, Some(&server.netns), "[::]:80", "far");
    let reached = |netns, address: &str, peer: &str| {
        let answer = ask(&world, netns, address).unwrap_or_default();
        assert_eq!(answer, format!("far {peer}"), "{address}\n{}", ruleset());
    };
    let near = &all[0];
    let mapped = |at: usize| format!("::ffff:{}", all[at].endpoint.address);
    let v4 = socket(server.endpoint.address, 80);
    let v6 = socket(server.endpoint.address6.unwrap(), 80);
    reached(Some(&near.netns), &v4, &mapped(0));
    reached(Some(&all[two].netns), &v4, &mapped(two));
    let own6 = all[two].endpoint.address6.unwrap().to_string();
    reached(Some(&all[two].netns), &v6, &own6);
    reached(None, &v4, &format!("::ffff:{}", server.endpoint.gateway));
    let published = format!("192.0.2.2:{}", 8001 + one);
    reached(Some(&world.outside), &published, "::ffff:192.0.2.1");
    let same = far[1..].iter().find(|at| !apart(at)).unwrap();
    let clients = [&all[two], &all[*same], near, server];
    from_inside(&world, &clients, server, 8001 + u16::try_from(one).unwrap());

    // Rules that somebody has thrown away come back for all of them.
    nft("flush ruleset");
    let last = world.attach(221, &[]);
    let rules = ruleset();
    assert_eq!(known(&rules), made()[0], "{rules}");
    reached(Some(&world.outside), &published, "::ffff:192.0.2.1");

    drop(held);
    for attachment in all.iter().chain([&last]) {
        world.exit(attachment);
    }
    drop((all, last));
    assert!(world.networks.reconcile(&|_| false).is_empty());
    assert_eq!(made(), [0, 0, 0]);
    assert_eq!(known(&ruleset()), 0, "{}", ruleset());
    assert!(world.networks.teardown_all().is_empty());
}

/// Published ports, the host and the world outside are reached from containers on any bridge.
fn from_inside(world: &World, clients: &[&Attachment], server: &Attachment, port: u16) {
    let gateway = server.endpoint.gateway;
    serve(world, None, "0.0.0.0:7000", "host");
    serve(world, Some(&world.outside), "192.0.2.1:9000", "out");
    for client in clients {
        let asked = |address: &str| ask(world, Some(&client.netns), address);
        for host in ["192.0.2.2", &gateway.to_string(), "[2001:db8::2]"] {
            let answer = asked(&format!("{host}:{port}"));
            assert!(answer.is_some(), "{host} from {}", bridge_of(client));
        }
        let own = client.endpoint.address;
        assert_eq!(asked(&socket(gateway, 7000)), Some(format!("host {own}")));
        assert_eq!(asked("192.0.2.1:9000").as_deref(), Some("out 192.0.2.2"));
    }
    for loopback in ["127.0.0.1", "[::1]"] {
        let address = format!("{loopback}:{port}");
        assert!(ask(world, None, &address).is_some(), "{address}");
    }
}

#[test]
fn a_further_bridge_is_whole_or_not_there() {
    let world = World::new();
    let mut all: Vec<Attachment> = (1..=FEW).map(|n| world.attach(n, &[])).collect();
    let mut failed = 0;
    for n in FEW + 1..200 {
        world.networks.fail_at(usize::from(n) % 16);
        match world.try_attach(n, &[]) {
            Ok(attachment) => all.push(attachment),
            Err(_) => failed += 1,
        }
        let made = made();
        assert!(made.iter().all(|count| *count == made[0]), "{made:?}");
        let rules = ruleset();
        assert_eq!(known(&rules), made[0], "{rules}");
    }
    assert!(
        failed > 20 && made()[0] > 0,
        "{failed} failures, {:?}",
        made()
    );
    world.networks.fail_at(usize::MAX);
    drop(all);
    assert!(world.networks.teardown_all().is_empty());
    assert_eq!(made(), [0, 0, 0]);
}
