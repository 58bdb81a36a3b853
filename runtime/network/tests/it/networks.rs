use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use amphora_network::{
    AttachRequest, Attachment, ConnectRequest, CreateNetwork, IpamConfig, NetworkAttachment,
    NetworkConfig, NetworkError, parse_port_spec,
};
use amphora_spec::error::chain;
use amphora_spec::{Classify, ContainerId, ErrorKind};

use crate::world::{World, ask, id, ip, nft, output, quiet, refused, ruleset, serve, socket};

pub fn plain(name: &str) -> CreateNetwork {
    CreateNetwork {
        name: name.to_owned(),
        ipv4: true,
        ..CreateNetwork::default()
    }
}

pub fn subnet(name: &str, subnet: &str) -> CreateNetwork {
    CreateNetwork {
        ipam: vec![IpamConfig {
            subnet: Some(subnet.parse().unwrap()),
            ..IpamConfig::default()
        }],
        ..plain(name)
    }
}

pub fn option(name: &str, key: &str, value: &str) -> CreateNetwork {
    CreateNetwork {
        options: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..plain(name)
    }
}

pub fn make(world: &World, name: &str) -> NetworkConfig {
    world.networks.create(&plain(name)).unwrap()
}

pub fn joining(n: u8, networks: &[&str], ports: &[&str]) -> AttachRequest {
    AttachRequest {
        container: id(n),
        networks: networks.iter().map(|n| NetworkAttachment::to(*n)).collect(),
        hostname: None,
        ports: ports
            .iter()
            .flat_map(|p| parse_port_spec(p).unwrap())
            .collect(),
    }
}

pub fn join(world: &World, request: &AttachRequest) -> Attachment {
    let _quiet = quiet();
    world.networks.attach(request).unwrap()
}

fn remove(world: &World, name: &str) -> Result<NetworkConfig, NetworkError> {
    world.networks.remove(name, &ContainerId::short)
}

fn text(error: Result<impl std::fmt::Debug, NetworkError>) -> String {
    chain(&error.unwrap_err())
}

/// Everything there is of networks: links, rules, folders.
fn traces(world: &World) -> String {
    let links = output("ip", &["-o", "link"]);
    let links: Vec<&str> = links.lines().filter_map(|l| l.split(": ").nth(1)).collect();
    let folders = |dir: &str| {
        let mut all: Vec<_> = std::fs::read_dir(world.dir.join(dir))
            .into_iter()
            .flatten()
            .map(|e| e.unwrap().file_name())
            .collect();
        all.sort();
        format!("{all:?}")
    };
    let run = world.dir.join("run").to_string_lossy().into_owned();
    let files = output("find", &[&run, "-not", "-type", "d"]);
    let mut files: Vec<&str> = files
        .lines()
        .filter(|f| {
            ["/leases/", "/aliases/", "/endpoint"]
                .iter()
                .any(|p| f.contains(p))
        })
        .collect();
    files.sort_unstable();
    format!(
        "{links:?} {} {files:?} {}",
        folders("data/networks"),
        ruleset()
    )
}

#[test]
fn networks_are_apart_and_inside_everybody_is_reached() {
    let world = World::new();
    let (blue, red) = (make(&world, "blue"), make(&world, "red"));
    assert_ne!(blue.subnet, red.subnet);
    assert_ne!(blue.subnet6, red.subnet6);
    let one = join(&world, &joining(1, &["blue"], &["8080:80"]));
    let two = join(&world, &joining(2, &["blue"], &[]));
    let other = join(&world, &joining(3, &["red"], &[]));
    let third = join(&world, &joining(4, &["bridge"], &[]));
    serve(&world, Some(&one.netns), "[::]:80", "one");
    serve(&world, Some(&world.outside), "192.0.2.1:9000", "out");
    let v4 = socket(one.endpoint.address, 80);
    let v6 = socket(one.endpoint.address6.unwrap(), 80);
    for address in [&v4, &v6] {
        assert!(
            ask(&world, Some(&two.netns), address).is_some(),
            "{address}"
        );
        assert!(refused(&world, Some(&other.netns), address), "{address}");
        assert!(refused(&world, Some(&third.netns), address), "{address}");
        assert!(ask(&world, None, address).is_some(), "{address}");
    }
    for netns in [&two.netns, &other.netns, &third.netns, &one.netns] {
        let published = ask(&world, Some(netns), "192.0.2.2:8080");
        assert!(published.is_some(), "{}", ruleset());
        let out = ask(&world, Some(netns), "192.0.2.1:9000");
        assert_eq!(out.unwrap(), "out 192.0.2.2");
    }
    assert!(ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some());
    assert!(ask(&world, Some(&world.outside), "[2001:db8::2]:8080").is_some());
}

#[test]
fn a_container_in_two_networks_reaches_both_by_one_default_route() {
    let world = World::new();
    make(&world, "blue");
    make(&world, "red");
    let mut request = joining(1, &["red", "blue"], &["8080:80"]);
    request.networks[0].gw_priority = 1;
    let both = join(&world, &request);
    let names: Vec<_> = both
        .endpoints
        .iter()
        .map(|e| e.interface.as_str())
        .collect();
    assert_eq!(names, ["eth0", "eth1"]);
    assert_eq!(both.endpoint.network, "red");
    let routes = world.at(&both.netns, || output("ip", &["route"]));
    assert!(
        routes.contains(&format!("default via {} dev eth0", both.endpoint.gateway)),
        "{routes}"
    );
    assert_eq!(routes.matches("default").count(), 1, "{routes}");
    serve(&world, Some(&both.netns), "[::]:80", "both");
    for (at, (n, network)) in [(2, "red"), (3, "blue")].into_iter().enumerate() {
        let near = join(&world, &joining(n, &[network], &[]));
        let here = &both.endpoints[at];
        assert!(ask(&world, Some(&near.netns), &socket(here.address, 80)).is_some());
        let v6 = socket(here.address6.unwrap(), 80);
        assert!(ask(&world, Some(&near.netns), &v6).is_some());
    }
    assert!(ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some());
    // Without a priority the first by name leads.
    let plain = join(&world, &joining(4, &["red", "blue"], &[]));
    assert_eq!(plain.endpoint.network, "blue");
    assert_eq!(plain.endpoint.interface, "eth1");
}

#[test]
fn nothing_leads_out_of_an_internal_network() {
    let world = World::new();
    let inner = CreateNetwork {
        internal: true,
        ..plain("inner")
    };
    world.networks.create(&inner).unwrap();
    make(&world, "blue");
    let one = join(&world, &joining(1, &["inner"], &["8080:80"]));
    let two = join(&world, &joining(2, &["inner"], &[]));
    let other = join(&world, &joining(3, &["blue"], &[]));
    assert!(one.ports.is_empty());
    serve(&world, Some(&one.netns), "[::]:80", "one");
    serve(&world, Some(&other.netns), "[::]:80", "other");
    serve(&world, Some(&world.outside), "192.0.2.1:9000", "out");
    assert!(ask(&world, Some(&two.netns), &socket(one.endpoint.address, 80)).is_some());
    // Also with a route of its own making.
    world.at(&one.netns, || {
        ip(&format!("route add default via {}", one.endpoint.gateway));
    });
    let inside = Some(&one.netns);
    assert!(refused(&world, inside, "192.0.2.1:9000"));
    assert!(refused(&world, inside, &socket(other.endpoint.address, 80)));
    assert!(refused(&world, Some(&world.outside), "192.0.2.2:8080"));
    assert!(refused(
        &world,
        Some(&other.netns),
        &socket(one.endpoint.address, 80)
    ));
}

#[test]
fn addresses_are_given_as_asked() {
    let world = World::new();
    let mut wanted = subnet("blue", "10.9.0.0/24");
    wanted.ipam[0].ip_range = Some("10.9.0.128/28".parse().unwrap());
    wanted.ipam[0].gateway = Some("10.9.0.254".parse().unwrap());
    wanted.ipam.push(IpamConfig {
        subnet: Some("fd00:9::/64".parse().unwrap()),
        aux: BTreeMap::from([("router".to_owned(), "fd00:9::77".parse().unwrap())]),
        ..IpamConfig::default()
    });
    let config = world.networks.create(&wanted).unwrap();
    assert_eq!(config.gateway(), Ipv4Addr::new(10, 9, 0, 254));
    assert_eq!(config.ipam().len(), 2);
    let mut request = joining(1, &["blue"], &[]);
    request.networks[0] = NetworkAttachment {
        ip: Some(Ipv4Addr::new(10, 9, 0, 7)),
        ip6: Some("fd00:9::99".parse().unwrap()),
        mac: Some("02:11:22:33:44:55".to_owned()),
        interface: Some("wan0".to_owned()),
        ..NetworkAttachment::to("blue")
    };
    let fixed = join(&world, &request);
    let shown = world.at(&fixed.netns, || output("ip", &["addr"]));
    for part in ["wan0", "10.9.0.7/24", "fd00:9::99/64", "02:11:22:33:44:55"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let next = join(&world, &joining(2, &["blue"], &[]));
    assert_eq!(next.endpoint.address, Ipv4Addr::new(10, 9, 0, 128));
    assert!(
        ask_port(&world, &fixed, &next),
        "one that asked and one that did not reach each other"
    );
    request.container = id(3);
    let taken = world.networks.attach(&request).unwrap_err();
    assert_eq!(chain(&taken), "Address already in use");
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    request.networks[0].ip = Some(Ipv4Addr::new(10, 9, 0, 8));
    let taken = text(world.networks.attach(&request));
    assert_eq!(taken, "Address already in use");
    // What somebody else on the network has is nobody's here.
    request.networks[0].ip6 = Some("fd00:9::77".parse().unwrap());
    let taken = text(world.networks.attach(&request));
    assert_eq!(taken, "Address already in use");
    request.networks[0].ip = Some(Ipv4Addr::new(10, 8, 0, 8));
    assert_eq!(
        text(world.networks.attach(&request)),
        "invalid config for network blue: invalid endpoint settings:\n\
         no configured subnet or ip-range contain the IP address 10.8.0.8"
    );
    // What failed holds no address.
    assert_eq!(world.networks.attached(&config).unwrap().len(), 2);
    let leases = world.dir.join("run/networks/blue/leases");
    assert_eq!(std::fs::read_dir(leases).unwrap().count(), 4);
}

fn ask_port(world: &World, from: &Attachment, to: &Attachment) -> bool {
    serve(world, Some(&to.netns), "[::]:80", "to");
    let v6 = IpAddr::from(to.endpoint.address6.unwrap());
    [to.endpoint.address.into(), v6]
        .into_iter()
        .all(|address| ask(world, Some(&from.netns), &socket(address, 80)).is_some())
}

#[test]
fn neighbours_are_kept_apart_without_icc() {
    let world = World::new();
    let icc = "com.docker.network.bridge.enable_icc";
    world
        .networks
        .create(&option("blue", icc, "false"))
        .unwrap();
    let one = join(&world, &joining(1, &["blue"], &["8080:80"]));
    let two = join(&world, &joining(2, &["blue"], &[]));
    serve(&world, Some(&one.netns), "[::]:80", "one");
    serve(&world, Some(&world.outside), "192.0.2.1:9000", "out");
    let inside = Some(&two.netns);
    assert!(refused(&world, inside, &socket(one.endpoint.address, 80)));
    let v6 = one.endpoint.address6.unwrap();
    assert!(refused(&world, inside, &socket(v6, 80)));
    assert!(ask(&world, inside, "192.0.2.2:8080").is_some());
    assert!(ask(&world, inside, "192.0.2.1:9000").is_some());
    assert!(ask(&world, None, &socket(one.endpoint.address, 80)).is_some());
}

#[test]
fn options_of_bridges_hold() {
    let world = World::new();
    let bridge = "com.docker.network.bridge";
    let mut wanted = option("blue", &format!("{bridge}.name"), "br-blue");
    for (key, value) in [
        (format!("{bridge}.enable_ip_masquerade"), "false"),
        (format!("{bridge}.host_binding_ipv4"), "127.0.0.1"),
        ("com.docker.network.driver.mtu".to_owned(), "1400"),
        (
            "com.docker.network.container_iface_prefix".to_owned(),
            "net",
        ),
    ] {
        wanted.options.insert(key, value.to_owned());
    }
    let config = world.networks.create(&wanted).unwrap();
    let one = join(&world, &joining(1, &["blue"], &["8080:80"]));
    let shown = world.at(&one.netns, || output("ip", &["link"]));
    assert!(
        shown.contains("net0@") && shown.contains("mtu 1400"),
        "{shown}"
    );
    assert!(output("ip", &["link", "show", "br-blue"]).contains("mtu 1400"));
    assert_eq!(one.ports[0].host_ip, Ipv4Addr::LOCALHOST);
    serve(&world, Some(&world.outside), "192.0.2.1:9000", "out");
    world.at(&world.outside, || {
        ip(&format!(
            "route add {} via 192.0.2.2",
            config.subnet.unwrap()
        ));
    });
    assert_eq!(
        ask(&world, Some(&one.netns), "192.0.2.1:9000").unwrap(),
        format!("out {}", one.endpoint.address)
    );
    serve(&world, Some(&one.netns), "[::]:80", "one");
    assert!(ask(&world, Some(&one.netns), "127.0.0.1:8080").is_none());
    assert!(ask(&world, None, "127.0.0.1:8080").is_some());
    for (key, value) in [("gateway_mode_ipv4", "routed"), ("inhibit_ipv4", "true")] {
        let key = format!("{bridge}.{key}");
        let refused = world.networks.create(&option("red", &key, value));
        assert_eq!(
            text(refused),
            format!("option \"{key}={value}\" of network driver \"bridge\" is not supported")
        );
    }
}

#[test]
fn networks_are_found_listed_and_removed() {
    let world = World::new();
    let blue = make(&world, "blue");
    let names: Vec<_> = world.networks.list().unwrap();
    let names: Vec<_> = names.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["blue", "bridge", "host", "none"]);
    assert_eq!(world.networks.find(&blue.id[..12]).unwrap(), blue);
    assert_eq!(text(world.networks.find("red")), "network red not found");
    let again = world.networks.create(&plain("blue"));
    assert_eq!(text(again), "network with name blue already exists");
    let before = traces(&world);
    make(&world, "red");
    let one = join(&world, &joining(1, &["red"], &["80"]));
    let refused = remove(&world, "red").unwrap_err();
    assert_eq!(
        chain(&refused),
        format!(
            "error while removing network: network red has active endpoints (name:\"{}\" id:\"{}\")",
            id(1).short(),
            &one.endpoint.id[..12]
        )
    );
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    world.exit(&one);
    drop(one);
    remove(&world, "red").unwrap();
    // Links of the container go with its namespace, which the kernel takes apart by and by.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while traces(&world) != before && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(traces(&world), before);
    for name in ["bridge", "host", "none"] {
        assert_eq!(
            text(remove(&world, name)),
            format!("{name} is a pre-defined network and cannot be removed")
        );
        let made = world.networks.create(&plain(name)).unwrap_err();
        assert_eq!(made.kind(), ErrorKind::PermissionDenied);
    }
    let (gone, errors) = world.networks.prune(&|c| c.name == "kept").unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(gone, [blue]);
}

#[test]
fn subnets_that_overlap_and_links_that_exist_are_refused() {
    let world = World::new();
    world
        .networks
        .create(&subnet("blue", "10.20.0.0/16"))
        .unwrap();
    let before = traces(&world);
    for other in ["10.20.4.0/24", "10.0.0.0/8", "10.20.0.0/16"] {
        let error = world.networks.create(&subnet("red", other)).unwrap_err();
        assert_eq!(
            chain(&error),
            "invalid pool request: Pool overlaps with other one on this address space"
        );
    }
    ip("link add br9 type bridge");
    let named = option("red", "com.docker.network.bridge.name", "br9");
    assert_eq!(
        text(world.networks.create(&named)),
        "link \"br9\" exists already, and is not amphora's"
    );
    ip("link del br9");
    // Also that of another network while it is not there.
    let key = "com.docker.network.bridge.name";
    world.networks.create(&option("own", key, "br8")).unwrap();
    ip("link del br8");
    for (link, owner) in [("br8", "own"), ("amphora0", "bridge")] {
        assert_eq!(
            text(world.networks.create(&option("red", key, link))),
            format!(
                "cannot create a network with link \"{link}\": conflicts with network {owner}: \
                 networks have same bridge name"
            )
        );
    }
    remove(&world, "own").unwrap();
    for bad in ["", "a/b", "..", "-x", "a b"] {
        let error = world.networks.create(&plain(bad)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
    }
    let mut outside = subnet("red", "10.30.0.0/24");
    outside.ipam[0].gateway = Some("10.31.0.1".parse().unwrap());
    assert_eq!(
        text(world.networks.create(&outside)),
        "invalid network config:\ninvalid gateway 10.31.0.1: \
         parent subnet 10.30.0.0/24 doesn't contain this address"
    );
    assert_eq!(traces(&world), before);
}

#[test]
fn pools_avoid_routes_and_do_not_end_at_thirty() {
    let world = World::new();
    ip("route add 172.19.0.0/16 via 192.0.2.1");
    let mut seen = Vec::new();
    for n in 0..40 {
        let config = make(&world, &format!("net{n}"));
        let subnet = config.subnet.unwrap();
        assert!(!seen.contains(&subnet), "{subnet}");
        assert_ne!(subnet.to_string(), "172.19.0.0/16");
        seen.push(subnet);
    }
}

#[test]
fn addresses_of_a_user_network_run_out_with_a_clear_error() {
    let world = World::new();
    let config = world
        .networks
        .create(&subnet("tiny", "10.77.0.0/30"))
        .unwrap();
    let one = join(&world, &joining(1, &["tiny"], &[]));
    let error = world
        .networks
        .attach(&joining(2, &["tiny"], &[]))
        .unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "no available IPv4 addresses on this network's address pools: tiny ({})",
            config.id
        )
    );
    world.exit(&one);
    join(&world, &joining(2, &["tiny"], &[]));
}

#[test]
fn every_failed_step_of_a_create_leaves_nothing() {
    let world = World::new();
    make(&world, "other");
    let before = traces(&world);
    let create = || world.networks.create(&plain("blue"));
    let step = world.fail_every_step(create, |step, error| {
        assert!(
            matches!(error, NetworkError::Injected(_)),
            "{}",
            chain(error)
        );
        assert_eq!(traces(&world), before, "step {step}");
    });
    assert!(step >= 5, "only {step} steps");
}

#[test]
fn every_failed_step_of_a_removal_leaves_a_network_that_works() {
    let world = World::new();
    make(&world, "blue");
    let removal = || remove(&world, "blue");
    let step = world.fail_every_step(removal, |_, _| {
        let one = join(&world, &joining(1, &["blue"], &["8080:80"]));
        serve(&world, Some(&one.netns), "[::]:80", "one");
        assert!(ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some());
        world.exit(&one);
    });
    assert!(step >= 4, "only {step} steps");
    assert_eq!(text(world.networks.find("blue")), "network blue not found");
}

#[test]
fn every_failed_step_of_two_networks_undoes_those_before() {
    let world = World::new();
    make(&world, "blue");
    make(&world, "red");
    let mut request = joining(1, &["blue", "red"], &["8080:80"]);
    request.networks[1].aliases = vec!["Web".to_owned()];
    let before = traces(&world);
    let attach = || {
        let _quiet = quiet();
        world.networks.attach(&request)
    };
    let step = world.fail_every_step(attach, |step, _| {
        assert_eq!(traces(&world), before, "step {step}");
    });
    assert!(step >= 9, "only {step} steps");
    let alias = format!("run/networks/red/aliases/web/{}", id(1).hex());
    assert!(world.dir.join(alias).exists());
}

pub fn connect(world: &World, one: &Attachment, n: u8, network: &str) -> Result<(), NetworkError> {
    let request = ConnectRequest {
        container: id(n),
        netns: one.netns.as_fd(),
        attachment: NetworkAttachment::to(network),
        hostname: None,
    };
    let _quiet = quiet();
    world.networks.connect(&request, &mut |_| Ok(())).map(drop)
}

fn disconnect(world: &World, one: &Attachment, n: u8, network: &str) -> Result<(), NetworkError> {
    let config = world.networks.find(network)?;
    let _quiet = quiet();
    let left = world
        .networks
        .disconnect(&id(n), one.netns.as_fd(), &config.id, &mut |_| Ok(()));
    left.map(drop)
}

#[test]
fn a_running_container_joins_and_leaves() {
    let world = World::new();
    make(&world, "blue");
    make(&world, "amber");
    let one = join(&world, &joining(1, &["blue"], &["8080:80"]));
    let far = join(&world, &joining(2, &["amber"], &[]));
    serve(&world, Some(&one.netns), "[::]:80", "one");
    let published = || ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some();
    assert!(published());
    connect(&world, &one, 1, "amber").unwrap();
    let all = world.networks.endpoints_of(&id(1)).unwrap();
    assert_eq!((all.len(), all[1].interface.as_str()), (2, "eth1"));
    assert!(ask(&world, Some(&far.netns), &socket(all[1].address, 80)).is_some());
    // The default route and the ports go where a fresh start would have them.
    let routes = world.at(&one.netns, || output("ip", &["route"]));
    assert!(
        routes.contains("dev eth1") && routes.matches("default").count() == 1,
        "{routes}"
    );
    assert!(
        routes.contains(&format!("default via {}", all[1].gateway)),
        "{routes}"
    );
    assert!(all[0].ports.is_empty() && all[1].ports.len() == 2);
    assert!(published(), "{}", ruleset());
    assert_eq!(
        text(connect(&world, &one, 1, "amber")),
        format!(
            "endpoint with name {} already exists in network amber",
            id(1).short()
        )
    );
    disconnect(&world, &one, 1, "blue").unwrap();
    assert!(published());
    disconnect(&world, &one, 1, "amber").unwrap();
    assert!(
        !world
            .at(&one.netns, || output("ip", &["-o", "link"]))
            .contains("eth")
    );
    assert!(refused(&world, Some(&world.outside), "192.0.2.2:8080"));
    assert_eq!(world.networks.parked(&id(1)).unwrap().len(), 2);
    connect(&world, &one, 1, "blue").unwrap();
    assert!(published(), "{}", ruleset());
    remove(&world, "blue").unwrap_err();
    world.networks.release(&id(1)).unwrap();
    remove(&world, "blue").unwrap();
}

#[test]
fn every_failed_step_of_a_live_change_undoes_those_before() {
    let world = World::new();
    make(&world, "blue");
    make(&world, "amber");
    let one = join(&world, &joining(1, &["blue"], &["8080:80"]));
    let state = || {
        let inside = world.at(&one.netns, || {
            let link = output("ip", &["-o", "link"]);
            (link.lines().count(), output("ip", &["route"]))
        });
        (
            traces(&world),
            inside,
            world.networks.endpoints_of(&id(1)).unwrap(),
        )
    };
    let before = state();
    let connects = || connect(&world, &one, 1, "amber");
    let steps = world.fail_every_step(connects, |step, _| {
        assert_eq!(state(), before, "step {step}");
    });
    assert!(steps >= 7, "only {steps} steps");
    let both = state();
    let disconnects = || disconnect(&world, &one, 1, "amber");
    let steps = world.fail_every_step(disconnects, |step, _| {
        assert_eq!(state(), both, "step {step}");
    });
    assert!(steps >= 4, "only {steps} steps");
    assert_eq!(state(), before);
}

#[test]
fn a_flushed_ruleset_comes_back_with_every_network() {
    let world = World::new();
    make(&world, "blue");
    make(&world, "red");
    let one = join(&world, &joining(1, &["blue"], &["8080:80"]));
    serve(&world, Some(&one.netns), "[::]:80", "one");
    nft("flush ruleset");
    let other = join(&world, &joining(2, &["red"], &[]));
    assert!(ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some());
    assert!(refused(
        &world,
        Some(&other.netns),
        &socket(one.endpoint.address, 80)
    ));
}

#[test]
fn macvlan_containers_are_neighbours_of_the_outside() {
    let world = World::new();
    let mut wanted = CreateNetwork {
        driver: "macvlan".to_owned(),
        ..subnet("lan", "192.0.2.0/24")
    };
    let missing = text(world.networks.create(&wanted));
    assert!(missing.contains("without -o parent="), "{missing}");
    wanted.options.insert("parent".to_owned(), "up0".to_owned());
    wanted.ipam[0].ip_range = Some("192.0.2.64/26".parse().unwrap());
    wanted.ipam[0].gateway = Some("192.0.2.1".parse().unwrap());
    world.networks.create(&wanted).unwrap();
    let one = join(&world, &joining(1, &["lan"], &["8080:80"]));
    let two = join(&world, &joining(2, &["lan"], &[]));
    assert_eq!(one.endpoint.address, Ipv4Addr::new(192, 0, 2, 64));
    assert!(one.ports.is_empty(), "nothing of the host's is in between");
    serve(&world, Some(&one.netns), "0.0.0.0:80", "one");
    serve(&world, Some(&world.outside), "192.0.2.1:9000", "out");
    let address = socket(one.endpoint.address, 80);
    assert!(ask(&world, Some(&two.netns), &address).is_some());
    assert!(ask(&world, Some(&world.outside), &address).is_some());
    let out = ask(&world, Some(&two.netns), "192.0.2.1:9000").unwrap();
    assert_eq!(out, format!("out {}", two.endpoint.address));
    let routes = world.at(&one.netns, || output("ip", &["route"]));
    assert!(
        routes.contains("default via 192.0.2.1 dev eth0"),
        "{routes}"
    );
    make(&world, "blue");
    let three = join(&world, &joining(3, &["blue"], &[]));
    connect(&world, &three, 3, "lan").unwrap();
    assert!(ask(&world, Some(&three.netns), &address).is_some());
    disconnect(&world, &three, 3, "lan").unwrap();
    let links = world.at(&three.netns, || output("ip", &["-o", "link"]));
    assert!(links.contains("eth0") && !links.contains("eth1"), "{links}");
    let again = CreateNetwork {
        name: "wan".to_owned(),
        ipam: Vec::new(),
        ..wanted.clone()
    };
    assert_eq!(
        text(world.networks.create(&again)),
        "network lan is already using parent interface up0"
    );
    remove(&world, "lan").unwrap_err();
    for n in [1, 2] {
        world.networks.release(&id(n)).unwrap();
    }
    remove(&world, "lan").unwrap();
    assert!(
        output("ip", &["-o", "link"]).contains("up0"),
        "it was not ours"
    );
}

#[test]
fn parents_and_drivers_that_are_not_there_are_refused_by_name() {
    let world = World::new();
    make(&world, "other");
    let before = traces(&world);
    let on = |parent: &str| CreateNetwork {
        driver: "macvlan".to_owned(),
        ..option("lan", "parent", parent)
    };
    assert_eq!(
        text(world.networks.create(&on("gone0"))),
        "parent interface \"gone0\" was not found on the host"
    );
    // A VLAN of a link that is there is made, where the kernel has them.
    match world.networks.create(&on("up0.10")) {
        Ok(_) => {
            assert!(output("ip", &["-o", "link"]).contains("up0.10@up0"));
            remove(&world, "lan").unwrap();
        }
        Err(error) => {
            let told = chain(&error);
            assert!(
                told.starts_with("failed to create VLAN link \"up0.10\""),
                "{told}"
            );
        }
    }
    let ipvlan = CreateNetwork {
        driver: "ipvlan".to_owned(),
        ..plain("lan")
    };
    assert_eq!(
        text(world.networks.create(&ipvlan)),
        "network driver \"ipvlan\" is not supported"
    );
    for mode in ["bridge", "private", "vepa", "passthru"] {
        let mut wanted = on("up0");
        wanted
            .options
            .insert("macvlan_mode".to_owned(), mode.to_owned());
        world.networks.create(&wanted).unwrap();
        let one = join(&world, &joining(1, &["lan"], &[]));
        let shown = world.at(&one.netns, || output("ip", &["-d", "link", "show", "eth0"]));
        assert!(shown.contains(&format!("macvlan mode {mode}")), "{shown}");
        world.exit(&one);
        remove(&world, "lan").unwrap();
    }
    assert_eq!(traces(&world), before);
}

#[test]
fn the_host_keeps_its_own_ipv6() {
    let world = World::new();
    let key = |link: &str| format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
    for link in ["up0", "default"] {
        std::fs::write(key(link), "1").unwrap();
    }
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
    make(&world, "blue");
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    assert_eq!(
        read("/proc/sys/net/ipv6/conf/all/forwarding".to_owned()).trim(),
        "1"
    );
    assert_eq!(
        read(key("up0")).trim(),
        "2",
        "it listens to its router all the same"
    );
    // A router outside advertises itself; the host takes its default route from that.
    world.at(&world.outside, || advertise("eth0"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let learnt = || output("ip", &["-6", "route", "show", "default"]);
    while !learnt().contains("proto ra") {
        assert!(std::time::Instant::now() < deadline, "{}", learnt());
        world.at(&world.outside, || advertise("eth0"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Sends one router advertisement to all nodes.
fn advertise(link: &str) {
    use rustix::net::{
        AddressFamily, Protocol, SendFlags, SocketAddrV6, SocketType, ipproto, sendto, socket,
        sockopt,
    };
    let shown = output("ip", &["-o", "link", "show", link]);
    let index: u32 = shown.split(':').next().unwrap().parse().unwrap();
    let icmp: Option<Protocol> = Some(ipproto::ICMPV6);
    let raw = socket(AddressFamily::INET6, SocketType::RAW, icmp).unwrap();
    sockopt::set_ipv6_multicast_hops(&raw, 255).unwrap();
    sockopt::set_ipv6_unicast_hops(&raw, Some(255)).unwrap();
    // Type 134, hop limit 64, router for 1800 seconds, nothing else said.
    let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
    // Its own link-local address may still be checked.
    let _ = sendto(&raw, &message, SendFlags::empty(), &nodes);
}

fn wrong_files_are_noted(world: &World, peers: &std::path::Path) {
    // What is no text is told once, and keeps no container out; what is not there is not noted.
    std::fs::write(peers, b"\xff\n").unwrap();
    let told = text(world.networks.follow_peers("wide").unwrap().1);
    assert!(told.contains("is not text in UTF-8"), "{told}");
    let noted = world.dir.join("run/networks/wide/peers.refused");
    assert_eq!(std::fs::read(&noted).unwrap(), b"\xff\n");
    let _let_in = join(world, &joining(4, &["wide"], &[]));
    std::fs::remove_file(peers).unwrap();
    world.networks.follow_peers("wide").unwrap().1.unwrap_err();
    assert!(!noted.exists());
}

#[test]
fn an_overlay_joins_two_hosts() {
    let world = World::new();
    let peers = world.dir.join("peers");
    let both = "192.0.2.2 10.40.1.0/24\n192.0.2.1 10.40.2.0/24\n";
    std::fs::write(&peers, both).unwrap();
    let far = world.dir.join("far");
    for part in ["data", "run"] {
        std::fs::create_dir_all(far.join(part)).unwrap();
    }
    let there = amphora_network::Networks::open(&far.join("data"), &far.join("run"));
    let mut wanted = CreateNetwork {
        driver: "overlay".to_owned(),
        ..subnet("wide", "10.40.0.0/16")
    };
    let told = text(world.networks.create(&wanted));
    assert!(told.contains("without -o peers="), "{told}");
    let file = peers.to_string_lossy().into_owned();
    wanted.options.insert("peers".to_owned(), file);
    let here = world.networks.create(&wanted).unwrap();
    assert_eq!(here.subnet.unwrap().to_string(), "10.40.1.0/24");
    make(&world, "blue");
    let one = join(&world, &joining(1, &["wide"], &["8080:80"]));
    // The default route of this one leads elsewhere.
    let two = join(&world, &joining(2, &["blue", "wide"], &[]));
    let (other, third) = world.at(&world.outside, || {
        let config = there.create(&wanted).unwrap();
        assert_eq!(config.subnet.unwrap().to_string(), "10.40.2.0/24");
        let _quiet = quiet();
        let other = there.attach(&joining(9, &["wide"], &["8081:80"])).unwrap();
        (other, there.attach(&joining(8, &["bridge"], &[])).unwrap())
    });
    assert_eq!(other.endpoint.address, Ipv4Addr::new(10, 40, 2, 2));
    serve(&world, Some(&one.netns), "0.0.0.0:80", "one");
    serve(&world, Some(&other.netns), "0.0.0.0:80", "other");
    let reach = |from: &Attachment, to: &Attachment| {
        ask(&world, Some(&from.netns), &socket(to.endpoint.address, 80))
    };
    // Nobody's address is changed on the way.
    let seen = |from: &Attachment| from.endpoint.address;
    assert_eq!(
        reach(&other, &one).unwrap(),
        format!("one {}", seen(&other))
    );
    assert_eq!(
        reach(&one, &other).unwrap(),
        format!("other {}", seen(&one))
    );
    assert!(reach(&two, &other).is_some());
    assert!(ask(&world, Some(&other.netns), "192.0.2.2:8080").is_some());
    // Other networks of the other host are as far away as ever.
    let address = socket(one.endpoint.address, 80);
    assert!(refused(&world, Some(&third.netns), &address));
    wrong_files_are_noted(&world, &peers);
    // A host that leaves the file is gone with the next container.
    std::fs::write(&peers, "192.0.2.2 10.40.1.0/24\n").unwrap();
    let _more = join(&world, &joining(3, &["wide"], &[]));
    let routes = output("ip", &["route"]);
    assert!(!routes.contains("10.40.2.0/24"), "{routes}");
    world.exit(&one);
    for n in [2, 3, 4] {
        world.networks.release(&id(n)).unwrap();
    }
    remove(&world, "wide").unwrap();
    assert!(!output("ip", &["-o", "link"]).contains("vx-"));
    std::fs::write(&peers, "192.0.2.9 10.40.1.0/24\n").unwrap();
    let told = text(world.networks.create(&wanted));
    assert!(told.contains("has an address of this host"), "{told}");
}
