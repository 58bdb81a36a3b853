use std::time::Instant;

use amphora_network::{NetworkError, none};
use amphora_spec::error::chain;
use amphora_spec::{Classify, ErrorKind};

use crate::world::{World, ask, elements, id, ip, nft, output, request, ruleset, serve};

#[test]
fn an_exited_container_leaves_bridge_and_table_only() {
    let world = World::new();
    let web = world.attach(1, &["8080:80", "127.0.0.1:9000:90"]);
    assert_eq!(world.counts(), [1, 3, 1, 1], "{}", ruleset());
    world.exit(&web);
    drop(web);
    assert_eq!(world.counts()[1..], [0, 0, 0], "{}", ruleset());
    let again = world.attach(2, &["8080:80"]);
    assert_eq!(again.endpoint.address.octets()[3], 3, "addresses rotate");
}

#[test]
fn every_failed_step_undoes_those_before() {
    let world = World::new();
    let attach = || world.try_attach(1, &["8080:80", "81"]);
    let step = world.fail_every_step(attach, |step, error| {
        assert!(
            matches!(error, NetworkError::Injected(_)),
            "{}",
            chain(error)
        );
        assert_eq!(world.counts(), [0, 0, 0, 0], "step {step}\n{}", ruleset());
    });
    assert!(step >= 8, "only {step} steps");
}

#[test]
fn every_failed_first_step_leaves_a_host_that_works() {
    let mut step = 0;
    loop {
        let world = World::new();
        world.networks.fail_at(step);
        if world.try_attach(1, &["8080:80"]).is_ok() {
            break;
        }
        world.networks.fail_at(usize::MAX);
        let _attachment = world.attach(1, &["8080:80"]);
        assert_eq!(world.counts(), [1, 2, 1, 1], "step {step}");
        step += 1;
    }
    assert!(step >= 12, "only {step} steps");
}

#[test]
fn a_taken_host_port_is_a_conflict_and_leaves_nothing() {
    let world = World::new();
    let _first = world.attach(1, &["8080:80"]);
    let before = world.counts();
    let error = world.try_attach(2, &["8080:80"]).unwrap_err();
    assert_eq!(
        chain(&error),
        "Bind for 0.0.0.0:8080 failed: port is already allocated"
    );
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(world.counts(), before);
}

#[test]
fn random_ports_are_the_same_in_both_families() {
    let world = World::new();
    let web = world.attach(1, &["80"]);
    assert_eq!(web.ports.len(), 2);
    assert_eq!(web.ports[0].host_port, web.ports[1].host_port);
    assert!(web.ports[0].host_port > 0);
}

#[test]
fn addresses_run_out_with_a_clear_error() {
    let world = World::new();
    let dir = world.dir.join("data/networks/bridge");
    std::fs::create_dir_all(&dir).unwrap();
    let id64 = "ab".repeat(32);
    let config = format!(
        "{{\"version\":1,\"id\":\"{id64}\",\"name\":\"bridge\",\"link\":\"amphora0\",\
         \"subnet\":\"10.77.0.0/30\",\"subnet6\":null,\"mtu\":1500}}"
    );
    std::fs::write(dir.join("config.json"), config).unwrap();
    let _one = world.attach(1, &[]);
    let error = world.networks.attach(&request(2, &[])).unwrap_err();
    assert_eq!(
        chain(&error),
        format!("no available IPv4 addresses on this network's address pools: bridge ({id64})")
    );
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
}

#[test]
fn unknown_networks_are_not_found() {
    let world = World::new();
    let mut wanted = request(1, &[]);
    wanted.networks[0].network = "blue".to_owned();
    let error = world.networks.attach(&wanted).unwrap_err();
    assert_eq!(chain(&error), "network blue not found");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn reconcile_releases_the_dead_and_only_them() {
    let world = World::new();
    let dead = world.attach(1, &["8080:80"]);
    let _live = world.attach(2, &["8081:80"]);
    // Its supervisor was killed: sockets are gone, records and elements are not.
    drop(dead);
    let errors = world.networks.reconcile(&|container| *container == id(2));
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(world.counts()[1..], [2, 1, 1], "{}", ruleset());
    assert!(world.networks.endpoint(&id(1)).unwrap().is_none());
}

#[test]
fn a_release_does_not_touch_the_next_holder_of_a_port() {
    let world = World::new();
    let first = world.attach(1, &["8080:80"]);
    let late = world.networks.endpoint(&id(1)).unwrap().unwrap();
    world.exit(&first);
    drop(first);
    let _second = world.attach(2, &["8080:80"]);
    // As if the supervisor had been killed before it removed the record.
    let record = world
        .dir
        .join("run/containers")
        .join(id(1).hex())
        .join("endpoint");
    std::fs::write(record, serde_json::to_vec(&late).unwrap()).unwrap();
    world.networks.release(&id(1)).unwrap();
    assert_eq!(elements(), 2, "{}", ruleset());
}

#[test]
fn a_stale_element_of_a_lost_supervisor_is_replaced() {
    let world = World::new();
    drop(world.attach(1, &["8080:80"]));
    let web = world.attach(2, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "second");
    assert!(
        ask(&world, Some(&world.outside), "192.0.2.2:8080")
            .unwrap()
            .starts_with("second")
    );
    assert_eq!(elements(), 2);
}

#[test]
fn a_flushed_ruleset_comes_back_with_every_port() {
    let world = World::new();
    let web = world.attach(1, &["8080:80"]);
    serve(&world, Some(&web.netns), "[::]:80", "web");
    nft("flush ruleset");
    let _other = world.attach(2, &[]);
    assert_eq!(elements(), 2);
    assert!(ask(&world, Some(&world.outside), "192.0.2.2:8080").is_some());
}

#[test]
fn a_subnet_that_was_taken_meanwhile_is_given_up() {
    let world = World::new();
    ip("addr add 172.17.5.1/24 dev up0");
    let one = world.attach(1, &[]);
    assert_eq!(one.endpoint.address.octets()[..2], [172, 18]);
    world.exit(&one);
    drop(one);
    ip("link del amphora0");
    ip("addr add 172.18.5.1/24 dev up0");
    let two = world.attach(2, &[]);
    assert_eq!(two.endpoint.address.octets()[..2], [172, 19]);
}

#[test]
fn teardown_takes_everything_back() {
    let world = World::new();
    let setting = |key: &str| std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap();
    let keys = [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/up0/accept_ra",
    ];
    for key in keys {
        let value = if key.ends_with("accept_ra") { "1" } else { "0" };
        std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
    }
    let before = keys.map(setting);
    let web = world.attach(1, &["8080:80"]);
    assert_eq!(setting("ipv6/conf/up0/accept_ra").trim(), "2");
    assert_eq!(world.networks.changed_settings().unwrap().len(), 3);
    drop(web);
    let errors = world.networks.teardown_all();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(keys.map(setting), before);
    assert_eq!(ruleset(), "");
    assert!(!output("ip", &["-o", "link"]).contains("amphora0"));
    assert!(!world.dir.join("run/networks").exists());
}

#[test]
fn teardown_leaves_forwarding_to_another_engine() {
    let world = World::new();
    let forward = "/proc/sys/net/ipv4/ip_forward";
    std::fs::write(forward, "0").unwrap();
    let web = world.attach(1, &[]);
    nft("table ip filter { chain DOCKER-USER { }; }");
    drop(web);
    let errors = world.networks.teardown_all();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(std::fs::read_to_string(forward).unwrap().trim(), "1");
    assert!(!output("ip", &["-o", "link"]).contains("amphora0"));
}

#[test]
fn the_namespace_is_configured_inside() {
    let world = World::new();
    let one = world.attach(1, &[]);
    let shown = world.at(&one.netns, || output("ip", &["addr"]));
    assert!(shown.contains("2: eth0@"), "{shown}");
    assert!(shown.contains("link/ether 02:42:ac:11:00:02"), "{shown}");
    assert!(
        shown.contains("inet 172.17.0.2/16 brd 172.17.255.255"),
        "{shown}"
    );
    let empty = none().unwrap();
    let shown = world.at(&empty, || output("ip", &["-o", "link"]));
    assert!(shown.contains("lo: <LOOPBACK,UP,LOWER_UP>"), "{shown}");
    assert!(!shown.contains("eth0"));
}

#[test]
fn attach_and_release_stay_within_their_budget() {
    const RUNS: usize = 60;
    let world = World::new();
    let mut times = Vec::new();
    let _quiet = crate::world::quiet();
    for n in 0..RUNS {
        let container = request(u8::try_from(n).unwrap(), &["8080:80"]);
        let start = Instant::now();
        let web = world.networks.attach(&container).unwrap();
        let attached = start.elapsed();
        let start = Instant::now();
        let kept = world.exit(&web);
        let released = start.elapsed();
        drop((web, kept));
        times.push((attached, released));
    }
    times.remove(0);
    times.sort();
    let (attach, release) = times[times.len() / 2];
    println!(
        "attach median {attach:?} min {:?}, release {release:?}",
        times[0].0
    );
}
