//! Starts of which networks are not ready: several at once after a boot, ports that lead nowhere yet.

use std::sync::Barrier;

use amphora_network::{AttachRequest, CreateNetwork};

use crate::networks::{connect, join, joining, make, option, plain, subnet};
use crate::world::{World, ask, id, ip, output, quiet, refused, ruleset, serve};

/// Starts that come at once, and how often.
const AT_ONCE: u8 = 8;
const ROUNDS: usize = 6;

/// Has many containers start at once while `link` of their network is gone.
fn start_at_once(world: &World, network: &str, link: &str) {
    for _ in 0..ROUNDS {
        ip(&format!("link del {link}"));
        let barrier = Barrier::new(usize::from(AT_ONCE));
        let _quiet = quiet();
        let failed: Vec<String> = std::thread::scope(|scope| {
            let start = |n| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let error = world.networks.claim(&joining(n, &[network], &[])).err()?;
                    Some(amphora_spec::error::chain(&error))
                })
            };
            let all: Vec<_> = (1..=AT_ONCE).map(start).collect();
            all.into_iter()
                .filter_map(|start| start.join().unwrap())
                .collect()
        });
        assert_eq!(failed, Vec::<String>::new());
        for n in 1..=AT_ONCE {
            world.networks.release(&id(n)).unwrap();
        }
    }
}

#[test]
fn starts_at_once_make_the_link_to_other_hosts_once() {
    let world = World::new();
    let peers = world.dir.join("peers");
    std::fs::write(&peers, "192.0.2.2 10.40.1.0/24\n192.0.2.1 10.40.2.0/24\n").unwrap();
    let mut wanted = CreateNetwork {
        driver: "overlay".to_owned(),
        ..subnet("wide", "10.40.0.0/16")
    };
    let file = peers.to_string_lossy().into_owned();
    wanted.options.insert("peers".to_owned(), file);
    let config = world.networks.create(&wanted).unwrap();
    // All of it is used, also what is on no host yet.
    let error = world.networks.create(&subnet("red", "10.40.9.0/24"));
    assert!(error.unwrap_err().to_string().contains("Pool overlaps"));
    start_at_once(&world, "wide", &format!("vx-{}", &config.id[..12]));
    assert!(output("ip", &["-o", "link"]).contains("vx-"));
    assert!(world.networks.teardown_all().is_empty());
    assert!(!output("ip", &["-o", "link"]).contains("vx-"));
}

#[test]
fn ports_that_no_network_publishes_are_when_one_is_joined() {
    let world = World::new();
    let inner = CreateNetwork {
        internal: true,
        ..plain("inner")
    };
    world.networks.create(&inner).unwrap();
    let wanted = CreateNetwork {
        driver: "macvlan".to_owned(),
        ..option("flat", "parent", "up0")
    };
    world.networks.create(&wanted).unwrap();
    make(&world, "blue");
    for (n, network, port) in [(1, "inner", 8080), (2, "flat", 8081)] {
        let one = join(&world, &joining(n, &[network], &[&format!("{port}:80")]));
        assert!(one.ports.is_empty());
        assert_eq!(world.networks.parked(&id(n)).unwrap().len(), 2);
        serve(&world, Some(&one.netns), "[::]:80", "one");
        let published = format!("192.0.2.2:{port}");
        assert!(refused(&world, Some(&world.outside), &published));
        // They are its own from the start.
        let taken = world.try_attach(9, &[&format!("{port}:80")]).unwrap_err();
        assert!(taken.to_string().contains("port"), "{taken}");
        connect(&world, &one, n, "blue").unwrap();
        assert_eq!(world.networks.parked(&id(n)).unwrap(), []);
        let answer = ask(&world, Some(&world.outside), &published);
        assert!(answer.is_some(), "{network}: {}", ruleset());
        world.networks.release(&id(n)).unwrap();
        assert!(!ruleset().contains(&format!(". {port} :")));
    }
}

/// Folders of names in a network.
fn names(world: &World, network: &str) -> Vec<String> {
    let dir = world.dir.join("run/networks").join(network).join("aliases");
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn named(n: u8, own: &str) -> AttachRequest {
    let mut request = joining(n, &["blue"], &[]);
    request.networks[0].aliases = vec!["shared".to_owned(), own.to_owned()];
    request
}

#[test]
fn a_name_goes_with_the_last_who_has_it() {
    let world = World::new();
    make(&world, "blue");
    let one = join(&world, &named(1, "one"));
    let two = join(&world, &named(2, "two"));
    assert_eq!(names(&world, "blue"), ["one", "shared", "two"]);
    world.exit(&one);
    assert_eq!(names(&world, "blue"), ["shared", "two"]);
    world.networks.release(&id(2)).unwrap();
    assert_eq!(names(&world, "blue"), Vec::<String>::new());
    drop((one, two));
    // So it does when a start fails.
    let claim = || world.networks.claim(&named(3, "three"));
    let step = world.fail_every_step(claim, |step, _| {
        assert_eq!(names(&world, "blue"), Vec::<String>::new(), "{step}");
    });
    assert!(step > 4, "{step}");
    world.networks.release(&id(3)).unwrap();
}

#[test]
fn a_name_is_had_while_others_give_it_up() {
    let world = World::new();
    make(&world, "blue");
    drop(world.networks.claim(&named(9, "ready")).unwrap());
    world.networks.release(&id(9)).unwrap();
    std::thread::scope(|scope| {
        for n in 1..=4 {
            let world = &world;
            scope.spawn(move || {
                for _ in 0..100 {
                    drop(world.networks.claim(&named(n, "own")).unwrap());
                    let dir = world.dir.join("run/networks/blue/aliases/shared");
                    assert!(dir.join(id(n).hex()).exists());
                    world.networks.release(&id(n)).unwrap();
                }
            });
        }
    });
    assert_eq!(names(&world, "blue"), Vec::<String>::new());
}
