//! Published ports: more than a process has descriptors, every form of them, and ports that come
//! and go while the container runs. Each for Linux and for Wasm.

use std::net::{TcpListener, UdpSocket};

use serde_json::json;

use crate::both::{ask, ask_udp, serving};
use crate::sandbox::{Sandbox, tool};
use crate::supervisor::{kill, supervisor_pid};

both!(
    ports_come_and_go_while_it_runs,
    changed_ports_are_kept_over_restarts,
    what_cannot_be_published_live_changes_nothing,
    ports_are_changed_at_rest_too,
    exposed_ranges_are_published_at_random,
    busy_ports_are_told_and_nothing_is_left,
    a_flushed_ruleset_is_repaired_by_the_next_command,
    a_closed_firewall_is_told_by_starts_and_info,
    ports_move_with_the_network,
    a_port_taken_meanwhile_is_told_by_whoever_takes_over,
    ports_that_lead_nowhere_are_taken_over_too,
    datagrams_reach_a_port_over_both_loopbacks,
);

#[test]
fn a_range_of_hundreds_of_ports_is_published() {
    let s = Sandbox::ready();
    let publish = ["run", "-d", "--name", "wide", "-p", "8000-8600:8000-8600"];
    s.run(&[&publish[..], &["probe-linux", "serve", "8600", "answer"]].concat())
        .ok();
    serving(&s, "wide");
    for address in ["127.0.0.1:8600", "[::1]:8600"] {
        assert_eq!(ask(address).expect(address), "answer\n");
    }
    let ports = s.run(&["port", "wide"]).ok();
    assert_eq!(ports.lines().count(), 2 * 601, "{ports}");
    // Our own limits are not the container's.
    let pid = s.inspect("wide")["State"]["Pid"].as_i64().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|l| l.starts_with("Max open files"));
    let soft = files.unwrap().split_whitespace().nth(3);
    assert_eq!(soft, Some("1024"), "{limits}");
    // As many more, live, and away again.
    s.run(&["port", "add", "wide", "9000-9600:8000-8600"]).ok();
    for address in ["127.0.0.1:9600", "[::1]:9600"] {
        assert_eq!(ask(address).expect(address), "answer\n");
    }
    s.run(&["port", "rm", "wide", "9000-9600:8000-8600"]).ok();
    let ports = s.run(&["port", "wide"]).ok();
    assert_eq!(ports.lines().count(), 2 * 601, "{ports}");
    assert!(ask("127.0.0.1:9600").is_err() && ask("[::1]:9600").is_err());
    s.run(&["rm", "-f", "wide"]).ok();
}

/// A server with one published port.
fn web(s: &Sandbox, image: &str) {
    let run = ["run", "-d", "--name", "web", "-p", "8080:80"];
    s.run(&[&run[..], &[image, "serve", "80", "answer"]].concat())
        .ok();
    serving(s, "web");
}

/// Asks over every way from this host.
#[track_caller]
fn reached(port: u16) {
    for host in ["127.0.0.1", "[::1]"] {
        let address = format!("{host}:{port}");
        assert_eq!(ask(&address).expect(&address), "answer\n", "{address}");
    }
}

/// Nobody has it, in either family.
#[track_caller]
fn free(port: u16) {
    for host in ["0.0.0.0", "::"] {
        let bound = TcpListener::bind((host, port));
        drop(bound.unwrap_or_else(|e| panic!("{host} {port}: {e}")));
    }
}

fn ports_come_and_go_while_it_runs(image: &str) {
    let s = Sandbox::ready();
    web(&s, image);
    let added = s
        .run(&["port", "add", "web", "8081:80", "127.0.0.1:8082:80/tcp"])
        .ok();
    assert_eq!(
        added,
        "80/tcp -> 0.0.0.0:8081\n80/tcp -> 127.0.0.1:8082\n80/tcp -> [::]:8081\n"
    );
    reached(8080);
    reached(8081);
    assert_eq!(ask("127.0.0.1:8082").unwrap(), "answer\n");
    let random = s.run(&["container", "port", "add", "web", "80"]).ok();
    let number = random.lines().next().and_then(|l| l.rsplit(':').next());
    reached(number.unwrap().parse().unwrap());
    s.run(&["port", "rm", "web", &format!("{}:80", number.unwrap())])
        .ok();
    // Shown wherever ports are.
    let ps = s.run(&["ps", "--format", "{{.Ports}}"]).ok();
    assert!(ps.contains("0.0.0.0:8081->80/tcp"), "{ps}");
    let shown = s.inspect("web");
    let live = shown["NetworkSettings"]["Ports"]["80/tcp"]
        .as_array()
        .unwrap();
    assert!(
        live.contains(&json!({"HostIp": "127.0.0.1", "HostPort": "8082"})),
        "{live:?}"
    );
    let asked = &shown["HostConfig"]["PortBindings"]["80/tcp"];
    assert_eq!(asked.as_array().unwrap().len(), 3, "{asked}");
    // One of them, then all of the container's port.
    assert_eq!(s.run(&["port", "rm", "web", "8081:80"]).ok(), "");
    free(8081);
    reached(8080);
    s.run(&["port", "rm", "web", "80"]).ok();
    free(8080);
    free(8082);
    assert_eq!(s.run(&["port", "web"]).ok(), "");
    assert_eq!(s.inspect("web")["HostConfig"]["PortBindings"], json!({}));
    // What was given up is anybody's, and not taken from them when this container ends.
    let run = ["run", "-d", "--name", "next", "-p", "8080:80"];
    s.run(&[&run[..], &[image, "serve", "80", "answer"]].concat())
        .ok();
    serving(&s, "next");
    s.run(&["rm", "-f", "web"]).ok();
    reached(8080);
    s.run(&["rm", "-f", "next"]).ok();
    free(8080);
}

fn changed_ports_are_kept_over_restarts(image: &str) {
    let s = Sandbox::ready();
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "--restart",
        "always",
        "-p",
        "8080:80",
        "-p",
        "8085:80",
    ];
    s.run(&[&run[..], &[image, "serve", "80", "answer"]].concat())
        .ok();
    serving(&s, "web");
    s.run(&["port", "add", "web", "8081:80", "[::1]:8082:80"])
        .ok();
    s.run(&["port", "rm", "web", "8085:80"]).ok();
    let same = |when: &str| {
        for port in [8080, 8081] {
            reached(port);
        }
        assert_eq!(ask("[::1]:8082").expect(when), "answer\n");
        free(8085);
        let ports = s.run(&["port", "web"]).ok();
        assert_eq!(ports.lines().count(), 5, "{when}: {ports}");
    };
    same("at first");
    // Another supervisor takes over: it gets the sockets that are there now.
    kill(supervisor_pid(&s, "web"));
    s.run(&["exec", "web", "exit", "0"]);
    same("adopted");
    s.run(&["port", "add", "web", "8086:80"]).ok();
    reached(8086);
    s.run(&["port", "rm", "web", "8086:80"]).ok();
    free(8086);
    s.run(&["restart", "-t", "0", "web"]).ok();
    crate::sandbox::wait_until("the server", std::time::Duration::from_secs(10), || {
        ask("127.0.0.1:8080").is_ok()
    });
    same("restarted");
    // By itself, under the same supervisor.
    kill(i32::try_from(s.inspect("web")["State"]["Pid"].as_i64().unwrap()).unwrap());
    crate::sandbox::wait_until("the server", std::time::Duration::from_secs(20), || {
        ask("127.0.0.1:8080").is_ok_and(|text| text == "answer\n")
    });
    crate::sandbox::wait_until("its record", std::time::Duration::from_secs(10), || {
        s.run(&["port", "web"]).stdout.lines().count() == 5
    });
    same("again");
    s.run(&["rm", "-f", "web"]).ok();
    for port in [8080, 8081, 8082] {
        free(port);
    }
}

/// The server's own address.
fn inside(s: &Sandbox) -> String {
    let address = &s.inspect("web")["NetworkSettings"]["IPAddress"];
    address.as_str().expect("an address").to_owned()
}

fn what_cannot_be_published_live_changes_nothing(image: &str) {
    let s = Sandbox::ready();
    web(&s, image);
    let before = (
        s.run(&["port", "web"]).ok(),
        s.inspect("web")["HostConfig"].clone(),
    );
    let host = TcpListener::bind("0.0.0.0:8083").unwrap();
    let refused = |args: &[&str], code: i32, text: &str| {
        s.run(&[&["port"], args].concat()).fails(code, text);
        let now = (
            s.run(&["port", "web"]).ok(),
            s.inspect("web")["HostConfig"].clone(),
        );
        assert_eq!(now, before, "{args:?}");
        free(8081);
        free(8082);
        reached(8080);
    };
    refused(
        &["add", "web", "8081:80", "8080:81"],
        1,
        "Error response from daemon: Bind for 0.0.0.0:8080 failed: port is already allocated",
    );
    let theirs = format!("0.0.0.0:8083:{}:82/tcp: address already in use", inside(&s));
    let theirs = format!("Error response from daemon: failed to bind host port for {theirs}");
    refused(&["add", "web", "8081-8083:80-82"], 1, &theirs);
    refused(
        &["add", "web", "203.0.113.7:8081:80"],
        1,
        "cannot assign requested address",
    );
    refused(&["add", "web", "8081:80/quic"], 1, "invalid proto: quic");
    refused(
        &["rm", "web", "8080:80", "8081:80"],
        1,
        "No public port '8081:80/tcp' published for",
    );
    refused(
        &["rm", "web", "8080:80/udp"],
        1,
        "No public port '8080:80/udp' published for",
    );
    refused(
        &["add", "nobody", "8081:80"],
        1,
        "No such container: nobody",
    );
    // Three words that begin with neither are one too many, as for Docker.
    refused(
        &["web", "80", "81"],
        1,
        "requires at least 1 and at most 2 arguments",
    );
    drop(host);
    for network in ["none", "host"] {
        let run = ["run", "-d", "--name", network, "--network", network];
        s.run(&[&run[..], &[image, "sleep", "600"]].concat()).ok();
        refused(
            &["add", network, "8081:80"],
            1,
            "in which no ports are published",
        );
        s.run(&["rm", "-f", network]).ok();
    }
    s.run(&["rm", "-f", "web"]).ok();
}

fn ports_are_changed_at_rest_too(image: &str) {
    let s = Sandbox::ready();
    // Its name is a word of ours: two words are still Docker's.
    let create = ["create", "--name", "add", "-p", "8080:80"];
    s.run(&[&create[..], &[image, "serve", "80", "answer"]].concat())
        .ok();
    assert_eq!(s.run(&["port", "add", "add", "8081:80"]).ok(), "");
    s.run(&["port", "rm", "add", "8080:80"]).ok();
    s.run(&["port", "rm", "add", "8080:80"])
        .fails(1, "No public port '8080:80/tcp' published for add");
    s.run(&["start", "add"]).ok();
    serving(&s, "add");
    assert_eq!(
        s.run(&["port", "add"]).ok(),
        "80/tcp -> 0.0.0.0:8081\n80/tcp -> [::]:8081\n"
    );
    assert_eq!(
        s.run(&["port", "add", "80"]).ok(),
        "0.0.0.0:8081\n[::]:8081\n"
    );
    reached(8081);
    free(8080);
    s.run(&["rm", "-f", "add"]).ok();
}

fn exposed_ranges_are_published_at_random(image: &str) {
    let s = Sandbox::ready();
    let run = [
        "run", "-d", "--name", "all", "-P", "--expose", "80-82", "--expose", "53/udp",
    ];
    let more = [
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1::81",
        image,
        "serve",
        "82",
        "answer",
    ];
    s.run(&[&run[..], &more].concat()).ok();
    serving(&s, "all");
    let ports = s.run(&["port", "all"]).ok();
    let of = |key: &str| {
        let lines = ports.lines().filter_map(|line| line.strip_prefix(key));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("80/tcp -> "), ["0.0.0.0:8080", "[::]:8080"]);
    let one = of("81/tcp -> ");
    assert!(
        one.len() == 1 && one[0].starts_with("127.0.0.1:"),
        "{ports}"
    );
    let (two, udp) = (of("82/tcp -> "), of("53/udp -> "));
    assert!(two.len() == 2 && udp.len() == 2, "{ports}");
    let port = |line: &str| line.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    assert_eq!(port(&two[0]), port(&two[1]));
    reached(port(&two[0]));
    // One of those that were only exposed goes; the others stay, over a restart too.
    s.run(&["port", "rm", "all", "53/udp"]).ok();
    s.run(&["restart", "-t", "0", "all"]).ok();
    let ports = s.run(&["port", "all"]).ok();
    assert!(
        !ports.contains("udp") && ports.contains("82/tcp"),
        "{ports}"
    );
    assert_eq!(ports.lines().count(), 5, "{ports}");
    s.run(&["rm", "-f", "all"]).ok();
}

fn busy_ports_are_told_and_nothing_is_left(image: &str) {
    let s = Sandbox::ready();
    web(&s, image);
    let host = TcpListener::bind("127.0.0.1:8083").unwrap();
    let datagrams = UdpSocket::bind("0.0.0.0:5353").unwrap();
    let before = s.run(&["ps", "-a", "-q"]).ok();
    for (specs, text) in [
        (
            &["8081:80", "8080:81"][..],
            "Bind for 0.0.0.0:8080 failed: port is already allocated",
        ),
        (&["8081-8083:80-82"], ":82/tcp: address already in use"),
        (
            &["8081-8083:80-82"],
            "failed to bind host port for 0.0.0.0:8083:172.17.0.",
        ),
        (
            &["8081:80", "5353:53/udp"],
            "failed to bind host port for 0.0.0.0:5353:172.17.0.",
        ),
        (
            &["8081:80", "5353:53/udp"],
            ":53/udp: address already in use",
        ),
        (
            &["8081:80", "8080-8080:80"],
            "Bind for 0.0.0.0:8080 failed: port is already allocated",
        ),
    ] {
        let mut args = vec!["run", "--rm"];
        args.extend(specs.iter().flat_map(|spec| ["-p", spec]));
        args.push(image);
        s.run(&args).fails(125, text);
        free(8081);
        free(8082);
        assert_eq!(s.run(&["ps", "-a", "-q"]).ok(), before);
    }
    drop((host, datagrams));
    let sctp = s.run(&["run", "--rm", "-p", "80/sctp", image]);
    if sctp.code != 0 {
        sctp.fails(
            125,
            "cannot publish a port of sctp: this kernel has no SCTP",
        );
    }
    assert!(ask_udp("127.0.0.1:8080").is_err());
    s.run(&["rm", "-f", "web"]).ok();
}

fn a_flushed_ruleset_is_repaired_by_the_next_command(image: &str) {
    let s = Sandbox::ready();
    web(&s, image);
    let told = "WARNING: table \"amphora\" was gone, and with it the published ports and the way \
                out of running containers: both are back\n";
    let run = ["run", "--rm", image, "args", "said"];
    for command in [&["ps", "-q"][..], &["port", "web"], &["info"], &run] {
        tool(&["nft", "flush", "ruleset"]);
        assert!(ask("127.0.0.1:8080").is_err());
        let out = s.run(command);
        assert_eq!((out.code, out.stderr.as_str()), (0, told), "{command:?}");
        reached(8080);
        assert_eq!(s.run(command).stderr, "", "{command:?}");
    }
    s.run(&["rm", "-f", "web"]).ok();
    // Without containers there is nothing to repair.
    tool(&["nft", "flush", "ruleset"]);
    for command in [&["ps"][..], &run] {
        assert_eq!(s.run(command).stderr, "", "{command:?}");
    }
}

fn a_closed_firewall_is_told_by_starts_and_info(image: &str) {
    let s = Sandbox::ready();
    tool(&[
        "nft",
        "table inet mine { chain gate { type filter hook forward priority 7; counter reject; }; }",
    ]);
    let told = s.run(&["run", "--rm", image]).stderr;
    let start = "WARNING: table \"inet mine\" drops forwarded packets";
    assert!(
        told.starts_with(start) && told.lines().count() == 1,
        "{told}"
    );
    assert_eq!(s.run(&["info"]).stderr, told);
    for command in told.split('"').filter(|part| part.starts_with("nft ")) {
        tool(&["sh", "-c", command]);
    }
    for command in [&["run", "--rm", image][..], &["info"]] {
        let out = s.run(command);
        assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    }
    tool(&["nft", "delete table inet mine"]);
}

fn ports_move_with_the_network(image: &str) {
    let s = Sandbox::ready();
    s.run(&["network", "create", "blue"]).ok();
    web(&s, image);
    s.run(&["port", "add", "web", "8081:80"]).ok();
    s.run(&["network", "connect", "blue", "web"]).ok();
    reached(8081);
    s.run(&["network", "disconnect", "bridge", "web"]).ok();
    // What was added live and what was there from the start lead to the address in the other one.
    for port in [8080, 8081] {
        reached(port);
    }
    s.run(&["port", "add", "web", "8082:80"]).ok();
    reached(8082);
    s.run(&["port", "rm", "web", "8081:80"]).ok();
    free(8081);
    reached(8080);
    s.run(&["rm", "-f", "web"]).ok();
    for port in [8080, 8082] {
        free(port);
    }
    s.run(&["network", "rm", "blue"]).ok();
}

fn a_port_taken_meanwhile_is_told_by_whoever_takes_over(image: &str) {
    let s = Sandbox::ready();
    let run = [
        "run", "-d", "--name", "web", "-p", "8080:80", "-p", "8081:80",
    ];
    s.run(&[&run[..], &[image, "serve", "80", "answer"]].concat())
        .ok();
    serving(&s, "web");
    let inside = inside(&s);
    kill(supervisor_pid(&s, "web"));
    let host = TcpListener::bind("0.0.0.0:8080").unwrap();
    let told = format!(
        "WARNING: container web lost its supervisor, and the new one does not have all of its \
         ports: failed to bind host port for 0.0.0.0:8080:{inside}:80/tcp: address already in use\n"
    );
    assert_eq!(s.run(&["ps", "-q"]).stderr, told);
    // It is told once; the other ports, and the other family, are as they were.
    assert_eq!(s.run(&["ps", "-q"]).stderr, "");
    TcpListener::bind("0.0.0.0:8081").expect_err("not reserved again");
    for address in ["127.0.0.1:8081", "[::1]:8081", "[::1]:8080"] {
        assert_eq!(ask(address).expect(address), "answer\n");
    }
    s.run(&["port", "rm", "web", "8080:80"]).ok();
    assert_eq!(ask("127.0.0.1:8081").unwrap(), "answer\n");
    drop(host);
    free(8080);
    s.run(&["rm", "-f", "web"]).ok();
    free(8081);
}

fn ports_that_lead_nowhere_are_taken_over_too(image: &str) {
    let s = Sandbox::ready();
    s.run(&["network", "create", "--internal", "inner"]).ok();
    s.run(&["network", "create", "blue"]).ok();
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "inner",
        "-p",
        "8080:80",
    ];
    s.run(&[&run[..], &[image, "serve", "80", "answer"]].concat())
        .ok();
    serving(&s, "web");
    TcpListener::bind("0.0.0.0:8080").expect_err("not reserved");
    kill(supervisor_pid(&s, "web"));
    assert_eq!(s.run(&["ps", "-q"]).stderr, "");
    TcpListener::bind("0.0.0.0:8080").expect_err("not reserved again");
    s.run(&["network", "connect", "blue", "web"]).ok();
    reached(8080);
    assert_eq!(ask("[::1]:8080").unwrap(), "answer\n");
    s.run(&["rm", "-f", "web"]).ok();
    free(8080);
    s.run(&["network", "rm", "inner", "blue"]).ok();
}

fn datagrams_reach_a_port_over_both_loopbacks(image: &str) {
    let s = Sandbox::ready();
    let run = ["run", "-d", "--name", "dns", "-p", "[::1]:5354:53/udp"];
    s.run(&[&run[..], &[image, "serve-udp", "53", "answer"]].concat())
        .ok();
    serving(&s, "dns");
    assert_eq!(ask_udp("[::1]:5354").unwrap(), "answer\n");
    s.run(&["port", "add", "dns", "5353:53/udp"]).ok();
    let asked = |when: &str| {
        for address in ["127.0.0.1:5353", "[::1]:5353", "[::1]:5354"] {
            assert_eq!(ask_udp(address).expect(when), "answer\n", "{address}");
        }
    };
    asked("live");
    s.run(&["network", "create", "other"]).ok();
    s.run(&["network", "connect", "other", "dns"]).ok();
    s.run(&["network", "disconnect", "bridge", "dns"]).ok();
    asked("at another address");
    kill(supervisor_pid(&s, "dns"));
    s.run(&["ps"]).ok();
    asked("with another supervisor");
    s.run(&["port", "rm", "dns", "5353:53/udp"]).ok();
    assert!(ask_udp("[::1]:5353").is_err());
    UdpSocket::bind("[::]:5353").unwrap();
    assert_eq!(ask_udp("[::1]:5354").unwrap(), "answer\n");
    s.run(&["rm", "-f", "dns"]).ok();
    UdpSocket::bind("[::1]:5354").unwrap();
    s.run(&["network", "rm", "other"]).ok();
}
