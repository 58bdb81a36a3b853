//! The server on its sockets, with upstream servers made up.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use amphora_names::{ADDRESS, Context, NameServer, Place, Settings, Sockets};
use amphora_sys::{netlink, ns, wire};
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};

use crate::home::{Home, id};
use crate::packets::{answer, edns, query, read};

const WAIT: Duration = Duration::from_secs(8);
const BASE: u64 = 7 << 16;

/// A namespace of the thread's own, with a loopback.
fn alone() {
    let netns = ns::new_netns().expect("root");
    ns::set_ns(std::os::fd::AsFd::as_fd(&netns), 0x4000_0000).unwrap();
}

fn loopback_up() {
    let mut batch = wire::Batch::default();
    let mut link = [0; 16];
    link[4] = 1;
    link[8] = 1;
    link[12] = 1;
    batch.message(16, 0, &link, |_| ());
    let socket = netlink::Socket::open(netlink::ROUTE).unwrap();
    socket.transact(&batch.finish()).unwrap();
}

struct Running {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server fell");
    }
}

fn settings(home: &Home, servers: &[&str]) -> Settings {
    Settings {
        data: home.data(),
        run: home.run(),
        container: id('a'),
        servers: servers.iter().map(|s| s.parse().unwrap()).collect(),
        bare_names_stay: false,
        place: Place::Here,
    }
}

/// Serves in the calling thread's namespace.
fn serve(settings: Settings) -> Running {
    let sockets = Sockets::open(settings.place).expect("sockets");
    loopback_up();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let thread = spawn(move || turn(settings, sockets, &stopped, &counted));
    Running {
        stop,
        turns,
        thread: Some(thread),
    }
}

fn turn(settings: Settings, sockets: Sockets, stop: &AtomicBool, turns: &AtomicUsize) {
    let epoll: OwnedFd = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut server = NameServer::new(&epoll, settings, sockets, BASE).unwrap();
    let cx = Context {
        epoll: &epoll,
        container: None,
    };
    let mut events = [Event {
        flags: EventFlags::empty(),
        data: EventData::new_u64(0),
    }; 8];
    while !stop.load(Ordering::Relaxed) {
        let wait = server.timeout().unwrap_or(u64::MAX).min(20_000_000);
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: i64::try_from(wait).unwrap(),
        };
        let n = epoll::wait(&epoll, &mut events[..], Some(&wait)).unwrap_or(0);
        turns.fetch_add(1, Ordering::Relaxed);
        for event in &events[..n] {
            server.ready(cx, event.data.u64(), event.flags);
        }
        server.tick(cx);
        if n == 0 {
            server.release();
        }
    }
}

fn address() -> SocketAddr {
    (ADDRESS, 53).into()
}

fn client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address()).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket
}

fn ask(packet: &[u8]) -> crate::packets::Answer {
    let socket = client();
    socket.send(packet).unwrap();
    let mut buffer = [0; 65535];
    let n = socket.recv(&mut buffer).expect("an answer");
    read(&buffer[..n])
}

fn ask_stream(stream: &mut TcpStream, packet: &[u8]) -> crate::packets::Answer {
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, packet].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    read(&message)
}

fn stream() -> TcpStream {
    let stream = TcpStream::connect(address()).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

/// An upstream server that answers as `f` says, for the rest of the test's process.
fn upstream(at: &str, f: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) {
    let socket = UdpSocket::bind((at.parse::<IpAddr>().unwrap(), 53)).unwrap();
    spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            for message in f(&buffer[..n]) {
                socket.send_to(&message, from).unwrap();
            }
        }
    });
}

fn good(query: &[u8]) -> Vec<Vec<u8>> {
    vec![answer(query, 0, Some([192, 0, 2, 9]))]
}

fn texts(answer: &crate::packets::Answer) -> Vec<String> {
    answer.addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn its_own_names_in_both_families_and_backwards() {
    alone();
    let home = Home::new("own");
    home.container('a', "me", &[("blue", "10.0.0.2", "fd00::2")]);
    home.container('b', "web", &[("blue", "10.0.0.3", "fd00::3")]);
    home.container('c', "plain", &[("blue", "10.0.0.4", "")]);
    let _server = serve(settings(&home, &["127.0.0.9"]));
    assert_eq!(texts(&ask(&query(1, "web", 1))), ["10.0.0.3"]);
    assert_eq!(texts(&ask(&query(2, "WEB", 28))), ["fd00::3"]);
    assert_eq!(
        texts(&ask(&edns(3, "web.blue", 255, 1232))),
        ["10.0.0.3", "fd00::3"]
    );
    // Known, without what was asked for: no error, and nobody else is asked.
    for kind in [28, 15, 65, 16] {
        let none = ask(&query(4, "plain", kind));
        assert_eq!((none.rcode, none.addresses.len()), (0, 0), "{kind}");
    }
    let name = ask(&query(5, "3.0.0.10.in-addr.arpa", 12));
    assert_eq!(name.names, ["web.blue."]);
    let reverse = format!("3.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
    assert_eq!(ask(&query(6, &reverse, 12)).names, ["web.blue."]);
    assert_eq!(ask(&query(7, "web", 252)).rcode, 5, "a whole zone");
    let mut stream = stream();
    for _ in 0..3 {
        assert_eq!(
            texts(&ask_stream(&mut stream, &query(8, "web", 1))),
            ["10.0.0.3"]
        );
    }
}

#[test]
fn whoever_shares_an_alias_takes_turns() {
    alone();
    let home = Home::new("turns");
    home.container('a', "me", &[("blue", "10.0.0.2", "fd00::2")]);
    home.container('b', "web", &[("blue", "10.0.0.3", "fd00::3")]);
    home.alias("blue", "both", 'a');
    home.alias("blue", "both", 'b');
    let _server = serve(settings(&home, &[]));
    // As a resolver does: one family, then the other.
    let mut first = Vec::new();
    for n in 0..4 {
        first.push(texts(&ask(&query(n, "both", 1)))[0].clone());
        assert_eq!(texts(&ask(&query(n, "both", 28))).len(), 2);
    }
    assert_eq!(first, ["10.0.0.2", "10.0.0.3", "10.0.0.2", "10.0.0.3"]);
}

#[test]
fn many_addresses_are_cut_for_a_datagram_and_whole_over_a_stream() {
    alone();
    let home = Home::new("many");
    many_names(&home);
    let _server = serve(settings(&home, &[]));
    let cut = ask(&query(1, "all", 255));
    assert!(cut.truncated && cut.addresses.len() < 30, "{cut:?}");
    assert_eq!(ask(&edns(1, "all", 255, 1232)).addresses.len(), 30);
    let whole = ask_stream(&mut stream(), &query(1, "all", 255));
    assert_eq!((whole.addresses.len(), whole.truncated), (30, false));
}

#[test]
fn other_names_are_asked_of_the_servers_in_turn() {
    alone();
    let home = Home::new("forward");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let _server = serve(settings(&home, &["127.0.0.1", "127.0.0.2", "127.0.0.3"]));
    // The first is not there, the second never answers, the third does.
    upstream("127.0.0.2", |_| Vec::new());
    upstream("127.0.0.3", |query| {
        assert_ne!(query[..2], [0, 5], "the client's own number");
        vec![answer(
            query,
            if query[13] == b'n' { 3 } else { 0 },
            Some([192, 0, 2, 9]),
        )]
    });
    let asked = Instant::now();
    let got = ask(&query(5, "example.org", 1));
    assert_eq!((got.id, texts(&got)), (5, vec!["192.0.2.9".to_owned()]));
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    // Next time whoever kept silent is not waited for.
    let asked = Instant::now();
    assert_eq!(ask(&query(5, "nobody.example.org", 1)).rcode, 3);
    assert!(
        asked.elapsed() < Duration::from_millis(700),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn failures_of_one_server_are_no_answer_while_there_is_another() {
    alone();
    let home = Home::new("failing");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let _server = serve(settings(&home, &["127.0.0.1", "127.0.0.2"]));
    upstream("127.0.0.1", |query| vec![answer(query, 2, None)]);
    upstream("127.0.0.2", |query| match query[12] {
        1 => vec![answer(query, 5, None)],
        _ => good(query),
    });
    assert_eq!(texts(&ask(&query(1, "example.org", 1))), ["192.0.2.9"]);
    let refused = ask(&query(1, "x.org", 1));
    assert_eq!(refused.rcode, 5, "everybody failed: as the last one");
}

#[test]
fn only_what_answers_the_question_is_passed_on() {
    alone();
    let home = Home::new("spoofed");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let _server = serve(settings(&home, &["127.0.0.1"]));
    upstream("127.0.0.1", |asked| {
        let mut other = answer(asked, 0, Some([6, 6, 6, 6]));
        other[0] ^= 1;
        let mut name = answer(asked, 0, Some([6, 6, 6, 6]));
        name[13] ^= 1;
        vec![
            vec![0xff; 3],
            other,
            name,
            asked.to_vec(),
            good(asked).remove(0),
        ]
    });
    assert_eq!(texts(&ask(&query(1, "example.org", 1))), ["192.0.2.9"]);
}

#[test]
fn over_a_stream_servers_are_asked_over_streams() {
    alone();
    let home = Home::new("streams");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let _server = serve(settings(&home, &["127.0.0.1", "127.0.0.2"]));
    // The first has no stream. The second cuts what it sends in a datagram, and has the rest here.
    upstream("127.0.0.1", |query| {
        let mut cut = answer(query, 0, None);
        cut[2] |= 2;
        vec![cut]
    });
    let listener = TcpListener::bind("127.0.0.2:53").unwrap();
    spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut asked = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut asked).unwrap();
            let message = answer(&asked, 0, Some([192, 0, 2, 9]));
            let length = u16::try_from(message.len()).unwrap().to_be_bytes();
            // In pieces, as it may come.
            for byte in [&length[..], &message].concat() {
                stream.write_all(&[byte]).unwrap();
            }
        }
    });
    assert!(ask(&query(1, "example.org", 1)).truncated);
    let got = ask_stream(&mut stream(), &query(1, "example.org", 1));
    assert_eq!(texts(&got), ["192.0.2.9"]);
    // Two at once over one connection, as C libraries do.
    let mut both = Vec::new();
    for id in [1, 2] {
        let packet = query(id, "example.org", 1);
        both.extend(u16::try_from(packet.len()).unwrap().to_be_bytes());
        both.extend(packet);
    }
    let mut stream = stream();
    stream.write_all(&both).unwrap();
    for id in [1, 2] {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message).unwrap();
        assert_eq!(read(&message).id, id);
    }
}

#[test]
fn nobody_answers_and_own_names_go_on() {
    alone();
    let home = Home::new("silent");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let _server = serve(settings(&home, &["127.0.0.1"]));
    upstream("127.0.0.1", |_| Vec::new());
    let socket = client();
    let asked = Instant::now();
    // More than may wait: those beyond fail at once, and names of ours are answered meanwhile.
    for n in 0..300_u16 {
        socket
            .send(&query(n, &format!("n{n}.example.org"), 1))
            .unwrap();
        if n % 100 == 99 {
            assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
        }
    }
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    let mut buffer = [0; 512];
    let mut early = 0;
    for _ in 0..300 {
        let n = socket.recv(&mut buffer).expect("every one is answered");
        assert_eq!(read(&buffer[..n]).rcode, 2);
        early += u32::from(asked.elapsed() < Duration::from_secs(3));
    }
    assert_eq!(early, 300 - 256);
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "before clients give up"
    );
}

#[test]
fn an_internal_network_asks_nobody_and_bare_names_may_stay() {
    alone();
    let home = Home::new("inside");
    home.container('a', "me", &[("in", "10.0.0.2", "")]);
    let told = Settings {
        bare_names_stay: true,
        ..settings(&home, &["127.0.0.1"])
    };
    let _server = serve(told);
    upstream("127.0.0.1", good);
    assert_eq!(ask(&query(1, "example.org", 1)).rcode, 2);
    assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
    home.endpoints('a', &[("in", "10.0.0.2", ""), ("out", "10.9.0.2", "")]);
    assert_eq!(texts(&ask(&query(1, "example.org", 1))), ["192.0.2.9"]);
    let bare = ask(&query(1, "example", 1));
    assert_eq!((bare.rcode, bare.addresses.len()), (0, 0));
    assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
}

#[test]
fn whoever_hangs_up_while_it_waits_is_forgotten() {
    alone();
    let home = Home::new("gone");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let server = serve(settings(&home, &["127.0.0.1"]));
    let _silent = TcpListener::bind("127.0.0.1:53").unwrap();
    let mut gone = stream();
    let packet = query(1, "example.org", 1);
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    gone.write_all(&[&length, &packet[..]].concat()).unwrap();
    // Answered behind it: it was read.
    assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
    let linger = rustix::net::sockopt::set_socket_linger(&gone, Some(Duration::ZERO));
    linger.unwrap();
    drop(gone);
    std::thread::sleep(Duration::from_millis(300));
    let before = server.turns.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(500));
    let turns = server.turns.load(Ordering::Relaxed) - before;
    assert!(turns < 60, "{turns} turns of a loop that has nothing to do");
}

#[test]
fn garbage_and_idle_connections_do_no_harm() {
    alone();
    let home = Home::new("garbage");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let _server = serve(settings(&home, &["127.0.0.1"]));
    let socket = client();
    let mut bytes = vec![0xa5_u8; 9000];
    for n in 0..2000_usize {
        let at = n * 7 % 600;
        bytes[at] = bytes[at]
            .wrapping_mul(31)
            .wrapping_add(u8::try_from(n % 251).unwrap());
        let _ = socket.send(&bytes[..n % 700]);
    }
    socket.send(&bytes).unwrap();
    // More connections than are accepted, that say nothing or nonsense.
    let mut held = Vec::new();
    for n in 0..40 {
        let mut stream = stream();
        if n % 2 == 0 {
            let _ = stream.write_all(&bytes[..n * 50]);
        }
        held.push(stream);
    }
    assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
    drop(held);
    assert_eq!(
        texts(&ask_stream(&mut stream(), &query(1, "me", 1))),
        ["10.0.0.2"]
    );
}

#[test]
fn aside_the_port_itself_is_left_to_others() {
    alone();
    let home = Home::new("aside");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let told = Settings {
        place: Place::Aside,
        ..settings(&home, &["127.0.0.1"])
    };
    // Again, as after a supervisor that was killed.
    let first = serve(told.clone());
    drop(first);
    let _server = serve(told);
    let own = UdpSocket::bind("0.0.0.0:53").expect("free for datagrams");
    let _listener = TcpListener::bind("0.0.0.0:53").expect("free for streams");
    assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
    assert_eq!(
        texts(&ask_stream(&mut stream(), &query(1, "me", 1))),
        ["10.0.0.2"]
    );
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.send_to(b"hello", "127.0.0.1:53").unwrap();
    own.set_read_timeout(Some(WAIT)).unwrap();
    assert_eq!(own.recv(&mut [0; 16]).unwrap(), 5);
}

#[test]
fn a_query_that_is_too_long_is_told_so_and_not_passed_on() {
    alone();
    let home = Home::new("long");
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    let _server = serve(settings(&home, &["127.0.0.1"]));
    upstream("127.0.0.1", good);
    for length in [4096, 4097, 9000, 60_000] {
        let got = ask(&padded(3, "example.org", length));
        let expected = if length > 4096 { (1, 0) } else { (0, 1) };
        assert_eq!((got.rcode, got.addresses.len()), expected, "{length}");
        assert_eq!(got.id, 3);
    }
    let mut stream = stream();
    let got = ask_stream(&mut stream, &padded(4, "me", 4096));
    assert_eq!(texts(&got), ["10.0.0.2"]);
    // Behind another length there is nothing more to be understood.
    let begun = stream.write_all(&4097_u16.to_be_bytes());
    begun.unwrap();
    assert_eq!(stream.read(&mut [0; 2]).unwrap(), 0);
}

/// A query of some length, by what its EDNS record carries.
fn padded(id: u16, name: &str, length: usize) -> Vec<u8> {
    let mut packet = edns(id, name, 1, 1232);
    let more = length - packet.len();
    let at = packet.len() - 2;
    packet[at..].copy_from_slice(&u16::try_from(more).unwrap().to_be_bytes());
    packet.resize(length, 0);
    packet
}

/// A connection with little room in it.
fn narrow() -> TcpStream {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    sockopt::set_socket_send_buffer_size(&socket, 4096).unwrap();
    connect(&socket, &address()).unwrap();
    socket.into()
}

fn many_names(home: &Home) {
    home.container('a', "me", &[("blue", "10.0.0.2", "")]);
    for (n, digit) in "bcdef0123456789".chars().enumerate() {
        let (v4, v6) = (format!("10.0.1.{n}"), format!("fd00::1:{n}"));
        home.container(digit, &format!("c{digit}"), &[("blue", &v4, &v6)]);
        home.alias("blue", "all", digit);
    }
}

#[test]
fn whoever_asks_much_and_reads_late_gets_all_its_answers() {
    alone();
    let home = Home::new("late");
    many_names(&home);
    let _server = serve(settings(&home, &[]));
    let mut reading = narrow();
    let mut writing = reading.try_clone().unwrap();
    let asking = spawn(move || {
        for n in 0..1000 {
            let packet = query(n, "all", 255);
            let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
            writing.write_all(&[&length, &packet[..]].concat()).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
    reading.set_read_timeout(Some(WAIT)).unwrap();
    for n in 0..1000 {
        let mut length = [0; 2];
        reading.read_exact(&mut length).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        reading.read_exact(&mut message).unwrap();
        let got = read(&message);
        assert_eq!((got.id, got.addresses.len()), (n, 30));
    }
    asking.join().unwrap();
}

#[test]
fn a_connection_that_is_read_too_slowly_ends_however_much_it_asks() {
    alone();
    let home = Home::new("slow");
    many_names(&home);
    let _server = serve(settings(&home, &[]));
    let mut slow = narrow();
    slow.set_nonblocking(true).unwrap();
    let packet = query(1, "all", 255);
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    let framed = [&length, &packet[..]].concat();
    let begun = Instant::now();
    let (mut asked, mut at) = (0, 0);
    let lasted = loop {
        let told = loop {
            match slow.write(&framed[at..]) {
                Ok(n) => {
                    asked += n;
                    at = (at + n) % framed.len();
                }
                Err(error) => break error,
            }
        };
        let heard = slow.read(&mut [0; 1000]);
        let gone = |kind| kind != std::io::ErrorKind::WouldBlock;
        if gone(told.kind()) || heard.is_err_and(|e| gone(e.kind())) {
            break begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(16), "it never ends");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(lasted > Duration::from_secs(9), "{lasted:?}");
    assert!(asked < 8 << 20, "{asked} bytes were taken");
    assert_eq!(texts(&ask(&query(1, "me", 1))), ["10.0.0.2"]);
}
