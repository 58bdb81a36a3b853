//! Networks of the user's, as the command line has them: containers of both kinds in them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::both::serving;
use crate::sandbox::{Output, SETTLE, Sandbox, tool, wait_until};

both!(
    networks_are_apart_and_one_in_both_is_reached_from_both,
    a_running_container_is_connected_and_disconnected,
    a_stopped_container_is_connected_for_its_next_start,
    addresses_are_as_asked,
    an_internal_network_has_no_way_out,
    the_network_of_another_container_is_shared,
    names_of_servers_and_hosts_are_written_down,
    each_family_has_its_own_way_out,
);

/// Runs the words of a line.
fn run(s: &Sandbox, line: &str) -> Output {
    let words: Vec<&str> = line.split_whitespace().collect();
    s.run(&words)
}

fn ok(s: &Sandbox, line: &str) -> String {
    run(s, line).ok()
}

/// Two networks whose addresses are known.
fn two(s: &Sandbox) {
    ok(s, "network create --subnet 192.168.77.0/24 blue");
    ok(s, "network create --subnet 192.168.78.0/24 red");
}

fn gone(s: &Sandbox, names: &str) {
    let ids = ok(s, "ps -aq");
    for id in ids.split_whitespace() {
        ok(s, &format!("rm -f {id}"));
    }
    wait_until("the networks to be free", SETTLE, || {
        run(s, &format!("network rm {names}")).code == 0
            || ok(s, "network ls -q").lines().count() == 3
    });
    assert_eq!(ok(s, "network ls -q").lines().count(), 3);
}

fn server(s: &Sandbox, image: &str, flags: &str, name: &str) {
    ok(
        s,
        &format!("run -d --name {name} {flags} {image} serve 7000 {name}"),
    );
    serving(s, name);
}

fn address(s: &Sandbox, name: &str, network: &str) -> String {
    let shown = s.inspect(name);
    let address = &shown["NetworkSettings"]["Networks"][network]["IPAddress"];
    address.as_str().expect("an address").to_owned()
}

fn fetch(s: &Sandbox, image: &str, flags: &str, address: &str) -> Output {
    run(s, &format!("run --rm {flags} {image} fetch {address}:7000"))
}

/// Sees to it that nobody answers: somebody else's answer comes meanwhile, and comes again.
fn unanswered(s: &Sandbox, image: &str, flags: &str, address: &str, answered: &dyn Fn()) {
    ok(
        s,
        &format!("run -d --name deaf {flags} {image} fetch {address}:7000"),
    );
    for _ in 0..3 {
        answered();
    }
    assert_eq!(
        ok(s, "logs deaf").lines().find(|l| !l.starts_with("duo")),
        None
    );
    let state = ok(s, "inspect -f {{.State.Status}}:{{.State.ExitCode}} deaf");
    assert_ne!(state.trim(), "exited:0");
    ok(s, "rm -f deaf");
}

fn networks_are_apart_and_one_in_both_is_reached_from_both(image: &str) {
    let s = Sandbox::ready();
    two(&s);
    server(&s, image, "--network blue", "azure");
    server(&s, image, "--network red --network blue", "purple");
    let azure = address(&s, "azure", "blue");
    let (in_blue, in_red) = (address(&s, "purple", "blue"), address(&s, "purple", "red"));
    assert!(in_blue.starts_with("192.168.77.") && in_red.starts_with("192.168.78."));
    assert_eq!(fetch(&s, image, "--network blue", &azure).ok(), "azure\n");
    assert_eq!(
        fetch(&s, image, "--network blue", &in_blue).ok(),
        "purple\n"
    );
    assert_eq!(fetch(&s, image, "--network red", &in_red).ok(), "purple\n");
    let answered = || {
        assert_eq!(fetch(&s, image, "--network red", &in_red).ok(), "purple\n");
    };
    unanswered(&s, image, "--network red", &azure, &answered);
    // Nor from the default network.
    unanswered(&s, image, "", &azure, &answered);
    assert_eq!(
        ok(&s, "ps -a --filter name=purple --format {{.Networks}}"),
        "blue,red\n"
    );
    gone(&s, "blue red");
}

fn a_running_container_is_connected_and_disconnected(image: &str) {
    let s = Sandbox::ready();
    two(&s);
    server(&s, image, "--network blue", "one");
    ok(&s, "network connect --alias eins --ip 192.168.78.9 red one");
    assert_eq!(
        fetch(&s, image, "--network red", "192.168.78.9").ok(),
        "one\n"
    );
    let shown = s.inspect("one");
    let red = &shown["NetworkSettings"]["Networks"]["red"];
    assert_eq!(red["IPAddress"], "192.168.78.9");
    assert_eq!(red["IPAMConfig"], json!({ "IPv4Address": "192.168.78.9" }));
    assert_eq!(red["Aliases"], json!(["eins"]));
    assert_eq!(red["DNSNames"][0], "one");
    assert_eq!(red["DNSNames"][1], "eins");
    run(&s, "network connect red one")
        .fails(1, "endpoint with name one already exists in network red");
    run(&s, "network rm red").fails(1, "network red has active endpoints");
    ok(&s, "network disconnect blue one");
    let shown = s.inspect("one");
    let networks = shown["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(networks.keys().collect::<Vec<_>>(), ["red"]);
    // What is left works still.
    assert_eq!(
        fetch(&s, image, "--network red", "192.168.78.9").ok(),
        "one\n"
    );
    run(&s, "network disconnect blue one").fails(1, "is not connected to network blue");
    ok(&s, "network rm blue");
    // And it is as it was after another start.
    ok(&s, "restart -t 0 one");
    wait_until("the server again", SETTLE, || {
        ok(&s, "logs one").lines().count() == 2
    });
    assert_eq!(address(&s, "one", "red"), "192.168.78.9");
    gone(&s, "red");
}

fn a_stopped_container_is_connected_for_its_next_start(image: &str) {
    let s = Sandbox::ready();
    ok(&s, "network create blue");
    ok(
        &s,
        "network create --ipv6 --subnet 192.168.78.0/24 --subnet fd00:78::/64 red",
    );
    ok(
        &s,
        &format!("create --name one --network blue {image} serve 7000 one"),
    );
    let sysctls = "com.docker.network.endpoint.sysctls";
    run(
        &s,
        &format!("network connect --driver-opt {sysctls}=x red one"),
    )
    .fails(1, &format!("driver option \"{sysctls}\" is not supported"));
    ok(
        &s,
        "network connect --driver-opt a.b=c --link other:alias --ip6 fd00:78::9 red one",
    );
    let shown = s.inspect("one");
    let red = &shown["NetworkSettings"]["Networks"]["red"];
    assert_eq!(red["DriverOpts"], json!({ "a.b": "c" }));
    assert_eq!(red["Links"], json!(["other:alias"]));
    assert_eq!(ok(&s, "ps -a --format {{.Networks}}"), "blue,red\n");
    ok(&s, "network disconnect blue one");
    assert_eq!(ok(&s, "ps -a --format {{.Networks}}"), "red\n");
    assert_eq!(ok(&s, "ps -aq --filter network=blue"), "");
    assert_eq!(ok(&s, "ps -aq --filter network=red").lines().count(), 1);
    ok(&s, "start one");
    serving(&s, "one");
    let shown = s.inspect("one");
    let networks = shown["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(networks.keys().collect::<Vec<_>>(), ["red"]);
    let red = address(&s, "one", "red");
    assert_eq!(
        shown["NetworkSettings"]["Networks"]["red"]["GlobalIPv6Address"],
        "fd00:78::9"
    );
    assert_eq!(fetch(&s, image, "--network red", &red).ok(), "one\n");
    gone(&s, "blue red");
}

fn addresses_are_as_asked(image: &str) {
    let s = Sandbox::ready();
    ok(
        &s,
        "network create --ipv6 --subnet 192.168.77.0/24 --subnet fd00:77::/64 --ip-range 192.168.77.128/25 --gateway 192.168.77.254 --aux-address other=192.168.77.129 blue",
    );
    server(
        &s,
        image,
        "--network blue --ip 192.168.77.200 --ip6 fd00:77::77 --mac-address 02:42:c0:a8:4d:77 --network-alias uno",
        "one",
    );
    let shown = s.inspect("one");
    let blue = &shown["NetworkSettings"]["Networks"]["blue"];
    assert_eq!(blue["IPAddress"], "192.168.77.200");
    assert_eq!(blue["GlobalIPv6Address"], "fd00:77::77");
    assert_eq!(blue["MacAddress"], "02:42:c0:a8:4d:77");
    assert_eq!(blue["Gateway"], "192.168.77.254");
    assert_eq!(blue["Aliases"], json!(["uno"]));
    assert_eq!(shown["HostConfig"]["NetworkMode"], "blue");
    server(
        &s,
        image,
        "--network name=blue,alias=zwei,ip=192.168.77.201",
        "two",
    );
    assert_eq!(
        fetch(&s, image, "--network blue", "192.168.77.200").ok(),
        "one\n"
    );
    assert_eq!(
        fetch(&s, image, "--network blue", "192.168.77.201").ok(),
        "two\n"
    );
    if image == "probe-linux" {
        let addresses = ok(
            &s,
            "run --rm --network container:one probe-linux cat /proc/net/fib_trie",
        );
        assert!(addresses.contains("192.168.77.200"), "{addresses}");
    }
    // One that was not asked for comes from the range, and is not somebody else's.
    server(&s, image, "--network blue", "three");
    let three = address(&s, "three", "blue");
    let last: u8 = three.rsplit('.').next().unwrap().parse().unwrap();
    assert!(last > 128 && last != 129 && last < 254, "{three}");
    let members: Value = serde_json::from_str(&ok(&s, "network inspect blue")).unwrap();
    assert_eq!(members[0]["Containers"].as_object().unwrap().len(), 3);
    refused_addresses(&s, image);
    gone(&s, "blue");
}

fn refused_addresses(s: &Sandbox, image: &str) {
    for (line, part) in [
        (
            "--network blue --ip 192.168.77.200",
            "Address already in use",
        ),
        (
            "--network blue --ip 192.168.79.1",
            "no configured subnet or ip-range contain the IP address 192.168.79.1",
        ),
        (
            "--ip 172.17.0.9",
            "user specified IP address is supported on user defined networks only",
        ),
        ("--network nothere", "network nothere not found"),
        (
            "--network blue --network host",
            "cannot attach both user-defined and non-user-defined network-modes",
        ),
        (
            "--network-alias a",
            "network-scoped aliases are only supported for user-defined networks",
        ),
    ] {
        run(s, &format!("run --rm {line} {image}")).fails(125, part);
    }
}

fn an_internal_network_has_no_way_out(image: &str) {
    let s = Sandbox::ready();
    ok(
        &s,
        "network create --internal --subnet 192.168.77.0/24 inner",
    );
    ok(&s, "network create --subnet 192.168.78.0/24 outer");
    server(&s, image, "--network inner", "in");
    server(&s, image, "--network outer", "out");
    let (inside, outside) = (address(&s, "in", "inner"), address(&s, "out", "outer"));
    assert_eq!(fetch(&s, image, "--network inner", &inside).ok(), "in\n");
    let answered = || {
        assert_eq!(fetch(&s, image, "--network inner", &inside).ok(), "in\n");
    };
    unanswered(&s, image, "--network inner", &outside, &answered);
    assert_eq!(ok(&s, "network inspect -f {{.Internal}} inner"), "true\n");
    // Nothing leads there, though the network has the address.
    let shown = s.inspect("in");
    let shown = &shown["NetworkSettings"]["Networks"]["inner"];
    assert_eq!(
        (&shown["Gateway"], &shown["IPv6Gateway"]),
        (&json!(""), &json!(""))
    );
    assert_ne!(shown["GlobalIPv6Address"], "");
    let shown = s.inspect("out");
    assert_eq!(
        shown["NetworkSettings"]["Networks"]["outer"]["Gateway"],
        "192.168.78.1"
    );
    if image == "probe-linux" {
        let routes = ok(
            &s,
            "run --rm --network inner probe-linux cat /proc/net/route",
        );
        let default = routes
            .lines()
            .any(|l| l.split_whitespace().nth(1) == Some("00000000"));
        assert!(!default, "{routes}");
    }
    gone(&s, "inner outer");
}

fn the_network_of_another_container_is_shared(image: &str) {
    let s = Sandbox::ready();
    two(&s);
    server(&s, image, "--network blue -h box", "base");
    // Its localhost is theirs.
    let shared = fetch(&s, image, "--network container:base", "127.0.0.1").ok();
    assert_eq!(shared, "base\n");
    ok(
        &s,
        &format!("run -d --name guest --network container:base {image} serve 7001 guest"),
    );
    serving(&s, "guest");
    let base = address(&s, "base", "blue");
    let reply = ok(
        &s,
        &format!("run --rm --network blue {image} fetch {base}:7001"),
    );
    assert_eq!(reply, "guest\n");
    let shown = s.inspect("guest");
    let id = s.inspect("base")["Id"].as_str().unwrap().to_owned();
    assert_eq!(
        shown["HostConfig"]["NetworkMode"],
        format!("container:{id}")
    );
    assert_eq!(shown["NetworkSettings"]["Networks"], json!({}));
    assert_eq!(shown["Config"]["Hostname"], "box");
    let refused = "container sharing network namespace with another container or host cannot be connected to any other network";
    run(&s, "network connect red guest").fails(1, refused);
    for (flags, part) in [
        (
            "-p 80:80",
            "conflicting options: port publishing and the container type network mode",
        ),
        ("-h x", "conflicting options: hostname and the network mode"),
        (
            "--dns 1.1.1.1",
            "conflicting options: dns and the network mode",
        ),
        (
            "--add-host a:1.2.3.4",
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        (
            "--expose 80",
            "conflicting options: port exposing and the container type network mode",
        ),
    ] {
        let line = format!("run --rm --network container:base {flags} {image}");
        run(&s, &line).fails(125, part);
    }
    ok(&s, "rm -f guest");
    ok(&s, "stop -t 0 base");
    run(&s, &format!("run --rm --network container:base {image}"))
        .fails(125, "cannot join network");
    run(&s, &format!("run --rm --network container:ghost {image}"))
        .fails(125, "No such container: ghost");
    gone(&s, "blue red");
}

fn names_of_servers_and_hosts_are_written_down(image: &str) {
    let s = Sandbox::ready();
    let flags = "--dns 192.0.2.1 --dns-search example.com --dns-option ndots:3 --add-host a:192.0.2.7 -h box --domainname example.org";
    ok(
        &s,
        &format!("create --name one {flags} {image} cat /etc/hosts"),
    );
    let shown = s.inspect("one");
    let host = &shown["HostConfig"];
    assert_eq!(host["Dns"], json!(["192.0.2.1"]));
    assert_eq!(host["DnsSearch"], json!(["example.com"]));
    assert_eq!(host["DnsOptions"], json!(["ndots:3"]));
    assert_eq!(host["ExtraHosts"], json!(["a:192.0.2.7"]));
    let hosts = ok(&s, "start -a one");
    assert!(hosts.contains("192.0.2.7\ta\n"), "{hosts}");
    assert!(hosts.contains("box.example.org box"), "{hosts}");
    let resolv = ok(
        &s,
        &format!("run --rm {flags} {image} cat /etc/resolv.conf"),
    );
    assert!(resolv.contains("search example.com\n"), "{resolv}");
    assert!(resolv.contains("ndots:3"), "{resolv}");
    ok(&s, "rm one");
}

#[test]
fn networks_are_listed_inspected_and_removed() {
    let s = Sandbox::ready();
    let id = ok(
        &s,
        "network create --label a=1 --attachable --opt com.docker.network.driver.mtu=1400 blue",
    );
    let id = id.trim();
    assert_eq!(id.len(), 64);
    assert_eq!(
        ok(&s, "network ls --format {{.Name}}"),
        "blue\nbridge\nhost\nnone\n"
    );
    assert_eq!(
        ok(&s, "network ls -q --no-trunc --filter name=blue").trim(),
        id
    );
    assert_eq!(
        ok(&s, "network ls --filter dangling=true --format {{.Name}}"),
        "blue\n"
    );
    let shown = &s.inspect("blue");
    assert_eq!(shown["Id"], id);
    assert_eq!(shown["Attachable"], true);
    assert_eq!(shown["Labels"], json!({ "a": "1" }));
    assert_eq!(
        shown["Options"],
        json!({ "com.docker.network.driver.mtu": "1400" })
    );
    assert_eq!(
        ok(&s, "network inspect --verbose -f {{.Name}} blue"),
        "blue\n"
    );
    assert_eq!(
        ok(&s, &format!("network rm {}", &id[..12])),
        format!("{}\n", &id[..12])
    );
    run(&s, "network inspect blue").fails(1, "network blue not found");
    assert_eq!(ok(&s, "network rm -f blue"), "");
    for name in ["bridge", "host", "none"] {
        run(&s, &format!("network rm {name}")).fails(
            1,
            &format!("{name} is a pre-defined network and cannot be removed"),
        );
        run(&s, &format!("network create {name}")).fails(
            1,
            &format!("operation is not permitted on predefined {name} network"),
        );
    }
}

/// Each flag of `network create` is seen to hold.
#[test]
fn networks_are_made_as_asked() {
    let s = Sandbox::ready();
    ok(
        &s,
        "network create -d bridge --ipam-driver default --ipv4 --ipv6=false --subnet 192.168.77.0/24 --ip-range 192.168.77.64/26 --gateway 192.168.77.3 --aux-address a=192.168.77.65 --internal blue",
    );
    let shown = &s.inspect("blue");
    assert_eq!(shown["Driver"], "bridge");
    assert_eq!(shown["EnableIPv6"], false);
    assert_eq!(shown["Internal"], true);
    let config = json!([{
        "Subnet": "192.168.77.0/24", "IPRange": "192.168.77.64/26", "Gateway": "192.168.77.3",
        "AuxiliaryAddresses": { "a": "192.168.77.65" },
    }]);
    assert_eq!(shown["IPAM"]["Config"], config);
    for (line, part) in [
        (
            "--subnet 192.168.77.0/25 red",
            "Pool overlaps with other one on this address space",
        ),
        ("--ipam-driver other red", "plugin \"other\" not found"),
        ("--ipam-opt a=b red", "IPAM option \"a\" is not supported"),
        ("-d nothere red", "plugin \"nothere\" not found"),
        ("blue", "network with name blue already exists"),
        (
            "--gateway 1.2.3.4 red",
            "every ip-range or gateway must have a corresponding subnet",
        ),
    ] {
        run(&s, &format!("network create {line}")).fails(1, part);
    }
    for flag in ["--ingress", "--config-only", "--config-from", "--scope"] {
        run(&s, &format!("network create {flag} x red"))
            .fails(125, &format!("flag {flag} is not supported"));
    }
    gone(&s, "blue");
}

#[test]
fn networks_nobody_uses_are_pruned() {
    let s = Sandbox::ready();
    two(&s);
    ok(&s, "network create --label keep blank");
    ok(&s, "create --name one --network blue probe-linux");
    let said = ok(&s, "network prune -f --filter label!=keep");
    assert_eq!(said, "Deleted Networks:\nred\n\n");
    assert_eq!(
        ok(&s, "network ls --filter type=custom --format {{.Name}}"),
        "blank\nblue\n"
    );
    let question = s.run_with_input(&["network", "prune"], b"n\n").ok();
    assert!(question.contains("all custom networks not used by at least one container"));
    ok(&s, "rm one");
    let said = ok(&s, "system prune -f");
    assert!(said.contains("Deleted Networks:\nblank\nblue\n"), "{said}");
}

#[test]
fn what_happens_to_networks_is_told() {
    let s = Sandbox::ready();
    two(&s);
    ok(&s, "run -d --name one --network blue probe-linux sleep 600");
    ok(&s, "network connect red one");
    ok(&s, "network disconnect red one");
    ok(&s, "rm -f one");
    let lines = || {
        let text = s.run(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "type=network",
            "--filter",
            "network=red",
            "--filter",
            "network=blue",
            "--format",
            "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.type}}",
        ]);
        text.ok()
    };
    let all = "create blue bridge\ncreate red bridge\nconnect blue bridge\nconnect red bridge\n\
               disconnect red bridge\ndisconnect blue bridge\n";
    wait_until("the events", Duration::from_secs(10), || lines() == all);
    gone(&s, "blue red");
    assert!(
        lines().ends_with("destroy blue bridge\ndestroy red bridge\n"),
        "{}",
        lines()
    );
}

/// A name of another container, on the network or before it was made.
#[test]
fn links_are_names() {
    let s = Sandbox::ready();
    server(&s, "probe-linux", "", "base");
    let said = ok(&s, "run --rm --link base:alias probe-linux cat /etc/hosts");
    let id = s.inspect("base")["Id"].as_str().unwrap()[..12].to_owned();
    assert!(said.contains(&format!("\talias {id} base\n")), "{said}");
    assert_eq!(
        fetch(&s, "probe-linux", "--link base:alias", "alias").ok(),
        "base\n"
    );
    ok(&s, "create --name linked --link base:alias probe-linux");
    assert_eq!(
        s.inspect("linked")["HostConfig"]["Links"],
        json!(["/base:/linked/alias"])
    );
    run(&s, "run --rm --link ghost probe-linux").fails(
        125,
        "could not get container for ghost: No such container: ghost",
    );
    run(&s, "run --rm --network host --link base probe-linux")
        .fails(125, "host type networking can't be used with links");
    ok(&s, "rm linked");
    ok(&s, "rm -f base");
}

/// The first network that was asked for leads out, unless another one has a higher priority.
#[test]
fn the_way_out_is_the_one_with_the_highest_priority() {
    let s = Sandbox::ready();
    two(&s);
    let gateway = |flags: &str| {
        let routes = ok(
            &s,
            &format!("run --rm {flags} probe-linux cat /proc/net/route"),
        );
        let found = routes.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(1) == Some(&"00000000")).then(|| words[2].to_owned())
        });
        found.expect("a default route")
    };
    // Addresses are written backwards.
    let (blue, red) = ("014DA8C0", "014EA8C0");
    assert_eq!(gateway("--network blue --network red"), blue);
    assert_eq!(
        gateway("--network name=blue --network name=red,gw-priority=1"),
        red
    );
    assert_eq!(
        gateway("--network name=blue,gw-priority=-1 --network name=red"),
        red
    );
    gone(&s, "blue red");
}

/// Where a network has no IPv6, or no way out, IPv6 goes by way of the next one.
fn each_family_has_its_own_way_out(image: &str) {
    let s = Sandbox::ready();
    ok(
        &s,
        "network create --ipv6=false --subnet 192.168.77.0/24 blue",
    );
    ok(
        &s,
        "network create --subnet 192.168.78.0/24 --subnet fd00:78::/64 red",
    );
    ok(
        &s,
        "network create --internal --subnet 192.168.79.0/24 --subnet fd00:79::/64 inner",
    );
    let line = "run -d --name one --network name=blue,gw-priority=1 --network inner --network red";
    ok(&s, &format!("{line} {image} serve 7000 one"));
    serving(&s, "one");
    let ways = || {
        let pid = s.inspect("one")["State"]["Pid"].to_string();
        let of = |family| {
            let text = tool(&["nsenter", "-t", &pid, "-n", "ip", family, "route"]);
            let ways = text.lines().filter_map(|l| l.strip_prefix("default via "));
            let ways = ways.filter_map(|l| l.split(' ').next().map(str::to_owned));
            ways.collect::<Vec<_>>().join(" ")
        };
        format!("{} {}", of("-4"), of("-6"))
    };
    assert_eq!(ways(), "192.168.77.1 fd00:78::1");
    // One that ranks higher takes over what it has.
    ok(
        &s,
        "network create --subnet 192.168.80.0/24 --subnet fd00:80::/64 green",
    );
    ok(&s, "network connect green one");
    assert_eq!(ways(), "192.168.77.1 fd00:80::1");
    ok(&s, "network disconnect green one");
    assert_eq!(ways(), "192.168.77.1 fd00:78::1");
    ok(&s, "network connect --gw-priority 2 green one");
    assert_eq!(ways(), "192.168.80.1 fd00:80::1");
    ok(&s, "network disconnect green one");
    assert_eq!(ways(), "192.168.77.1 fd00:78::1");
    ok(&s, "network disconnect blue one");
    assert_eq!(ways(), "192.168.78.1 fd00:78::1");
    ok(&s, "network disconnect red one");
    assert_eq!(ways(), " ");
    ok(&s, "network connect blue one");
    assert_eq!(ways(), "192.168.77.1 ");
    ok(&s, "network connect red one");
    ok(&s, "restart -t 0 one");
    assert_eq!(ways(), "192.168.78.1 fd00:78::1");
    gone(&s, "blue red inner green");
}

#[test]
fn interfaces_come_and_go_with_their_networks() {
    let s = Sandbox::ready();
    two(&s);
    ok(&s, "run -d --name one --network blue probe-linux sleep 600");
    let pid = s.inspect("one")["State"]["Pid"].to_string();
    let links = || {
        let text = tool(&["nsenter", "-t", &pid, "-n", "ip", "-o", "link"]);
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        text.lines().filter_map(name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(links(), "lo eth0");
    ok(&s, "network connect --gw-priority 1 red one");
    assert_eq!(links(), "lo eth0 eth1");
    ok(&s, "network disconnect -f blue one");
    assert_eq!(links(), "lo eth1");
    gone(&s, "blue red");
}
