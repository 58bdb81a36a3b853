//! `/etc/hosts` of containers that run.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::both::serving;
use crate::sandbox::Sandbox;

both!(own_addresses_come_and_go_with_networks,);

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
