//! Connections accepted on the host and spliced to the container.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use amphora_supervisor::*;

use crate::Case;
use crate::support::*;

pub(crate) const ALL: &[Case] = &[
    (
        "a_spliced_port_carries_both_ways_with_half_close",
        both_ways,
    ),
    ("many_spliced_connections_take_turns", many),
    (
        "a_spliced_port_recovers_from_a_full_descriptor_table",
        shortage,
    ),
    ("a_held_port_stays_taken_until_the_end", held),
];

/// An echo server that answers when its client has finished, as a container would.
fn echo_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let _ = stream.write_all(&bytes);
                }
            });
        }
    });
    address
}

fn start(
    test: &mut TestBox,
    target: Option<std::net::SocketAddr>,
) -> (Spawned, std::net::SocketAddr) {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    test.config.listeners = vec![Listener { target }];
    let listeners = vec![OwnedFd::from(listener)];
    let spawned = spawn(SpawnRequest {
        listeners,
        ..test.request(shell("exec sleep 1000"))
    })
    .unwrap();
    (spawned, address)
}

fn stop(test: &TestBox, spawned: &Spawned) {
    kill(spawned.init_pid, 9);
    assert_eq!(test.wait().code, 137);
    test.finished();
    reap(spawned.supervisor_pid);
}

fn exchange(address: std::net::SocketAddr, len: usize) {
    let data: Vec<u8> = (0..len).map(|n| (n / 3) as u8).collect();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == data, "{} of {len}", back.len());
}

fn both_ways() {
    let mut test = TestBox::new();
    let (spawned, address) = start(&mut test, Some(echo_server()));
    for len in [0, 1, 1000, 3_000_000] {
        exchange(address, len);
    }
    stop(&test, &spawned);
    assert!(TcpStream::connect(address).is_err());
}

fn many() {
    let mut test = TestBox::new();
    let (spawned, address) = start(&mut test, Some(echo_server()));
    // More than are served at a time: the rest waits in the backlog.
    let threads: Vec<_> = (0..200)
        .map(|n| std::thread::spawn(move || exchange(address, 1000 * n)))
        .collect();
    assert!(threads.into_iter().all(|t| t.join().is_ok()));
    stop(&test, &spawned);
}

/// Whether a supervisor looks at its first listener, from its epoll's table of targets.
fn accepts(supervisor: i32) -> bool {
    std::fs::read_dir(format!("/proc/{supervisor}/fdinfo"))
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.starts_with("tfd:"))
        .any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |name| words.iter().position(|w| *w == name).map(|i| words[i + 1]);
            let events = after("events:").map(|e| u32::from_str_radix(e, 16).unwrap());
            after("data:") == Some("20000") && events.unwrap() & 1 != 0
        })
}

fn shortage() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let mut test = TestBox::new();
    let (spawned, address) = start(&mut test, Some(echo_server()));
    until("it to accept", || accepts(spawned.supervisor_pid));
    let pid = Pid::from_raw(spawned.supervisor_pid);
    let few = |current| Rlimit {
        current: Some(current),
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(pid, Resource::Nofile, few(3)).unwrap();
    let client = std::thread::spawn(move || exchange(address, 1000));
    until("it to give up", || !accepts(spawned.supervisor_pid));
    prlimit(pid, Resource::Nofile, before).unwrap();
    client.join().unwrap();
    exchange(address, 1000);
    stop(&test, &spawned);
}

fn held() {
    let mut test = TestBox::new();
    let (spawned, address) = start(&mut test, None);
    assert!(TcpListener::bind(address).is_err());
    stop(&test, &spawned);
    TcpListener::bind(address).unwrap();
}
