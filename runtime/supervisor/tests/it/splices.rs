//! Connections accepted on the host and spliced to the container.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
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
    ("datagrams_are_relayed_and_answered", datagrams),
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
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (start_with(test, target, listener.into()), address)
}

fn start_with(test: &mut TestBox, target: Option<SocketAddr>, listener: OwnedFd) -> Spawned {
    test.config.listeners = vec![Listener { target }];
    spawn(SpawnRequest {
        listeners: vec![listener],
        ..test.request(shell("exec sleep 1000"))
    })
    .unwrap()
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

/// A socket that has asked, with an answer that is its own question's.
fn ask(client: &UdpSocket, text: &[u8]) {
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send(text).unwrap();
    let mut answer = vec![0; 64 << 10];
    let n = client.recv(&mut answer).unwrap();
    assert!(answer[..n] == *text, "{n} of {}", text.len());
}

fn datagrams() {
    let mut test = TestBox::new();
    let container = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = container.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while let Ok((n, from)) = container.recv_from(&mut bytes) {
            let _ = container.send_to(&bytes[..n], from);
        }
    });
    let gate = UdpSocket::bind("[::1]:0").unwrap();
    let address = gate.local_addr().unwrap();
    let spawned = start_with(&mut test, Some(target), gate.into());
    // More clients than are remembered, and each over again.
    let clients: Vec<UdpSocket> = (0..200)
        .map(|_| {
            let client = UdpSocket::bind("[::1]:0").unwrap();
            client.connect(address).unwrap();
            client
        })
        .collect();
    for round in 0..2 {
        for (n, client) in clients.iter().enumerate() {
            ask(client, format!("{round} {n}").as_bytes());
        }
    }
    for len in [0, 1, 65_000] {
        ask(&clients[0], &vec![7; len]);
    }
    stop(&test, &spawned);
    assert!(UdpSocket::bind(address).is_ok());
}
