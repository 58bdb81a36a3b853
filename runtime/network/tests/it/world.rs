//! A host of its own for each test: the calling thread's network namespace, with a neighbour
//! "outside" at 192.0.2.1 and 2001:db8::1, and directories on tmpfs.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amphora_network::{
    AttachRequest, Attachment, Listener, NetworkAttachment, NetworkError, Networks, PortChange,
    PortRequest, parse_port_spec,
};
use amphora_spec::ContainerId;
use amphora_spec::release::Release;
use amphora_sys::netlink::Socket;
use amphora_sys::ns;

pub const CLONE_NEWNET: i32 = 0x4000_0000;
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection that must not come about is waited for.
const IMPATIENCE: Duration = Duration::from_millis(300);

pub struct World {
    home: OwnedFd,
    pub outside: OwnedFd,
    pub dir: PathBuf,
    pub networks: Networks,
}

impl World {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/dev/shm/amphora-net-{}-{n}", std::process::id()));
        std::fs::create_dir_all(dir.join("data")).unwrap();
        std::fs::create_dir_all(dir.join("run")).unwrap();
        let home = ns::current_netns().unwrap();
        let host = ns::new_netns().unwrap();
        let outside = ns::new_netns().unwrap();
        ns::set_ns(host.as_fd(), CLONE_NEWNET).unwrap();
        let peer = format!("/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd());
        ip("link set lo up");
        ip("link add up0 type veth peer name eth0");
        ip(&format!("link set eth0 netns {peer}"));
        ip("addr add 192.0.2.2/24 dev up0");
        ip("addr add 2001:db8::2/64 dev up0 nodad");
        ip("link set up0 up");
        let networks = Networks::open(&dir.join("data"), &dir.join("run"));
        let world = Self {
            home,
            outside,
            dir,
            networks,
        };
        world.at(&world.outside, || {
            ip("link set lo up");
            ip("addr add 192.0.2.1/24 dev eth0");
            ip("addr add 2001:db8::1/64 dev eth0 nodad");
            ip("link set eth0 up");
        });
        world
    }

    pub fn at<T>(&self, netns: &OwnedFd, f: impl FnOnce() -> T) -> T {
        ns::in_netns(netns.as_fd(), || Ok(f())).unwrap()
    }

    pub fn attach(&self, n: u8, ports: &[&str]) -> Attachment {
        self.try_attach(n, ports).unwrap()
    }

    pub fn try_attach(&self, n: u8, ports: &[&str]) -> Result<Attachment, NetworkError> {
        let _quiet = quiet();
        self.networks.attach(&request(n, ports))
    }

    /// Reserves more ports of a container.
    pub fn more_ports(&self, n: u8, ports: &[&str]) -> Result<PortChange, NetworkError> {
        let _quiet = quiet();
        self.networks.more_ports(&id(n), &requests(ports))
    }

    /// Does `act` with each of its steps failing in turn, until it succeeds; `after` looks at what a
    /// failed one has left. Returns how many steps failed.
    pub fn fail_every_step<T>(
        &self,
        mut act: impl FnMut() -> Result<T, NetworkError>,
        mut after: impl FnMut(usize, &NetworkError),
    ) -> usize {
        let mut step = 0;
        loop {
            self.networks.fail_at(step);
            let done = act();
            self.networks.fail_at(usize::MAX);
            match done {
                Ok(_) => return step,
                Err(error) => after(step, &error),
            }
            step += 1;
        }
    }

    /// What a supervisor does the moment its container has exited.
    pub fn exit(&self, attachment: &Attachment) -> Vec<Socket> {
        let mut kept = Vec::new();
        for release in &attachment.release {
            match release {
                // Folders stay as long as there is something in them.
                Release::Unlink(path) if path.is_dir() => drop(std::fs::remove_dir(path)),
                Release::Unlink(path) => std::fs::remove_file(path).unwrap(),
                Release::Netlink { protocol, bytes } => {
                    kept.push(amphora_sys::netlink::replay(*protocol, bytes).unwrap());
                }
                Release::RemoveTree(_) | Release::Claim { .. } => {
                    panic!("unexpected {release:?}")
                }
            }
        }
        kept
    }

    /// Counts of links, port elements, leases, records.
    pub fn counts(&self) -> [usize; 4] {
        let links = output("ip", &["-o", "link", "show", "type", "veth"]);
        let links = links.lines().filter(|l| l.contains(": am")).count();
        let run = self.dir.join("run");
        let list = |path: PathBuf| std::fs::read_dir(path).map_or(0, Iterator::count);
        let records = std::fs::read_dir(run.join("containers")).map_or(0, |dirs| {
            dirs.filter(|d| d.as_ref().unwrap().path().join("endpoint").exists())
                .count()
        });
        [
            links,
            elements(),
            list(run.join("networks/bridge/leases")),
            records,
        ]
    }
}

impl Drop for World {
    fn drop(&mut self) {
        ns::set_ns(self.home.as_fd(), CLONE_NEWNET).unwrap();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Keeps other tests from running programs: a child holds copies of every socket, also of those
/// closed here meanwhile, and their ports seem taken. The kernel closes them only after it has
/// let the parent go on, so that a program is waited for under this lock.
pub fn quiet() -> MutexGuard<'static, ()> {
    static SPAWN: Mutex<()> = Mutex::new(());
    SPAWN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn id(n: u8) -> ContainerId {
    ContainerId::from_random([n; 32])
}

pub fn requests(ports: &[&str]) -> Vec<PortRequest> {
    let all = ports.iter().flat_map(|spec| parse_port_spec(spec).unwrap());
    all.collect()
}

pub fn request(n: u8, ports: &[&str]) -> AttachRequest {
    AttachRequest {
        container: id(n),
        networks: vec![NetworkAttachment::to("bridge")],
        hostname: None,
        ports: requests(ports),
    }
}

pub fn output(program: &str, args: &[&str]) -> String {
    let output = {
        let _quiet = quiet();
        Command::new(program).args(args).output().unwrap()
    };
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn ip(args: &str) {
    output("ip", &args.split(' ').collect::<Vec<_>>());
}

pub fn nft(script: &str) {
    output("nft", &[script]);
}

pub fn ruleset() -> String {
    output("nft", &["list", "ruleset"])
}

/// Elements in the port maps.
pub fn elements() -> usize {
    ruleset()
        .lines()
        .filter(|l| l.contains(" . ") && l.contains(" : ") && !l.contains("type"))
        .map(|line| line.matches(" : ").count())
        .sum()
}

/// Serves clients at an address of a namespace: each is told the server's name and its own
/// address. Lives as long as the test process.
pub fn serve(world: &World, netns: Option<&OwnedFd>, address: &str, name: &'static str) {
    let bind = || TcpListener::bind(address).unwrap();
    let listener = match netns {
        Some(netns) => world.at(netns, bind),
        None => bind(),
    };
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let peer = client.peer_addr().unwrap().ip();
            let _ = client.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

/// Sends every datagram back that comes to port 53 of a namespace.
pub fn echo(world: &World, netns: &OwnedFd) {
    let server = world.at(netns, || UdpSocket::bind("0.0.0.0:53").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((n, peer)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..n], peer).unwrap();
        }
    });
}

/// Serves the listening sockets as a supervisor does; ends with the test process.
pub fn supervise(listeners: Vec<Listener>) -> Vec<Listener> {
    let mut held = Vec::new();
    for listener in listeners {
        let Some(target) = listener.target else {
            held.push(listener);
            continue;
        };
        let server = TcpListener::from(listener.fd);
        server.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            for client in server.incoming() {
                let mut inside = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
                let _ = std::io::copy(&mut inside, &mut client.unwrap());
            }
        });
    }
    held
}

/// Says what a server answers; `None` when it cannot be reached.
pub fn ask(world: &World, netns: Option<&OwnedFd>, address: &str) -> Option<String> {
    ask_for(world, netns, address, PATIENCE)
}

/// As [`ask`], for a connection that is expected to fail.
pub fn refused(world: &World, netns: Option<&OwnedFd>, address: &str) -> bool {
    ask_for(world, netns, address, IMPATIENCE).is_none()
}

fn ask_for(
    world: &World,
    netns: Option<&OwnedFd>,
    address: &str,
    patience: Duration,
) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    match netns {
        Some(netns) => world.at(netns, connect),
        None => connect(),
    }
}

pub fn socket(address: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(address.into(), port).to_string()
}
