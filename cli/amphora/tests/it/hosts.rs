//! `/etc/hosts` of containers that run.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::both::serving;
use crate::sandbox::{SETTLE, Sandbox, wait_until};

both!(
    own_addresses_come_and_go_with_networks,
    a_link_leads_to_where_the_other_is_now,
    a_link_in_a_network_of_the_users_follows_too,
);

/// Runs the words of a line.
fn ok(s: &Sandbox, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    s.run(&words).ok()
}

/// The file as the container has it.
fn file(s: &Sandbox, name: &str) -> PathBuf {
    let pid = s.inspect(name)["State"]["Pid"].to_string();
    format!("/proc/{pid}/root/etc/hosts").into()
}

fn hosts(s: &Sandbox, name: &str) -> String {
    std::fs::read_to_string(file(s, name)).expect("the container's hosts file")
}

fn address(s: &Sandbox, name: &str, network: &str) -> String {
    let shown = s.inspect(name);
    let address = &shown["NetworkSettings"]["Networks"][network]["IPAddress"];
    address.as_str().expect("an address").to_owned()
}

/// Starts a container anew; returns where it was and where it is.
fn elsewhere(s: &Sandbox, name: &str, network: &str) -> (String, String) {
    let before = address(s, name, network);
    ok(s, &format!("restart -t 0 {name}"));
    wait_until("the server again", SETTLE, || {
        ok(s, &format!("logs {name}")).lines().count() == 2
    });
    let after = address(s, name, network);
    assert_ne!(after, before);
    (before, after)
}

fn own_addresses_come_and_go_with_networks(image: &str) {
    let s = Sandbox::ready();
    ok(
        &s,
        "network create --ipv6=false --subnet 192.168.77.0/24 blue",
    );
    ok(
        &s,
        "network create --ipv6 --subnet 192.168.78.0/24 --subnet fd00:78::/64 red",
    );
    ok(
        &s,
        &format!(
            "run -d --name one -h box --domainname a.b --network blue --ip 192.168.77.9 {image} serve 7000 one"
        ),
    );
    serving(&s, "one");
    let own = "192.168.77.9\tbox.a.b box\n";
    let begun = hosts(&s, "one");
    assert!(begun.ends_with(own), "{begun}");
    // What the container, or its user, writes there is theirs.
    let theirs = "192.168.77.9\tbox.a.b # mine\n192.0.2.1 box";
    std::fs::write(file(&s, "one"), format!("{begun}{theirs}")).expect("write as the container");
    let inode = std::fs::metadata(file(&s, "one")).expect("file").ino();

    ok(
        &s,
        "network connect --ip 192.168.78.9 --ip6 fd00:78::9 red one",
    );
    let more = "192.168.78.9\tbox.a.b box\nfd00:78::9\tbox.a.b box\n";
    assert_eq!(hosts(&s, "one"), format!("{begun}{theirs}\n{more}"));
    let seen = ok(
        &s,
        &format!("run --rm --network container:one {image} cat /etc/hosts"),
    );
    assert_eq!(seen, hosts(&s, "one"));

    ok(&s, "network disconnect blue one");
    let begun = begun.strip_suffix(own).expect("its own line");
    assert_eq!(hosts(&s, "one"), format!("{begun}{theirs}\n{more}"));
    ok(&s, "network disconnect red one");
    assert_eq!(hosts(&s, "one"), format!("{begun}{theirs}\n"));
    ok(&s, "network connect --ip 192.168.77.9 blue one");
    assert_eq!(hosts(&s, "one"), format!("{begun}{theirs}\n{own}"));
    assert_eq!(
        std::fs::metadata(file(&s, "one")).expect("file").ino(),
        inode
    );
    ok(&s, "rm -f one");
    ok(&s, "network rm blue red");
}

fn a_link_leads_to_where_the_other_is_now(image: &str) {
    let s = Sandbox::ready();
    ok(&s, &format!("run -d --name base {image} serve 7000 base"));
    serving(&s, "base");
    ok(
        &s,
        &format!("run -d --name linking --link base:db {image} serve 7001 linking"),
    );
    serving(&s, "linking");
    let id = s.inspect("base")["Id"].as_str().expect("id")[..12].to_owned();
    let theirs = "192.0.2.1\tdb mine\n";
    let begun = format!("{}{theirs}", hosts(&s, "linking"));
    std::fs::write(file(&s, "linking"), &begun).expect("write as the container");

    let (before, after) = elsewhere(&s, "base", "bridge");
    let line = |address: &str| format!("\n{address}\tdb {id} base\n");
    assert!(begun.contains(&line(&before)), "{begun}");
    let expected = begun.replace(&line(&before), &line(&after));
    assert_eq!(hosts(&s, "linking"), expected);
    // A name of the file's, by way of which the other is reached.
    let line = format!("run --rm --network container:linking {image} fetch db:7000");
    assert_eq!(ok(&s, &line), "base\n");

    ok(&s, "rm -f linking base");
}

fn a_link_in_a_network_of_the_users_follows_too(image: &str) {
    let s = Sandbox::ready();
    ok(
        &s,
        "network create --ipv6=false --subnet 192.168.77.0/24 blue",
    );
    ok(
        &s,
        "network create --ipv6=false --subnet 192.168.78.0/24 red",
    );
    ok(
        &s,
        &format!("create --name base --network blue {image} serve 7000 base"),
    );
    // The other one comes later.
    let line = format!("run -d --name linking --network blue --link base:db {image} serve 7001 x");
    ok(&s, &line);
    serving(&s, "linking");
    let begun = hosts(&s, "linking");
    assert!(!begun.contains("\tdb"), "{begun}");
    ok(&s, "start base");
    serving(&s, "base");
    let now = address(&s, "base", "blue");
    assert_eq!(hosts(&s, "linking"), format!("{begun}{now}\tdb\n"));
    let (_, after) = elsewhere(&s, "base", "blue");
    assert_eq!(hosts(&s, "linking"), format!("{begun}{after}\tdb\n"));

    // In a network that both join while they run.
    ok(&s, "network connect --link base:there red linking");
    ok(&s, "network connect --ip 192.168.78.9 red base");
    let text = hosts(&s, "linking");
    assert!(text.ends_with("\n192.168.78.9\tthere\n"), "{text}");
    ok(&s, "network disconnect red linking");
    assert_eq!(hosts(&s, "linking"), format!("{begun}{after}\tdb\n"));
    ok(&s, "rm -f linking base");
    ok(&s, "network rm blue red");
}
