//! One small program for both worlds: the same source is built for Linux (static musl) and for
//! WASI, so that every test case runs the same commands in both kinds of container.

use std::io::{IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    if let Err(error) = run(&words) {
        eprintln!("duo: {error}");
        std::process::exit(1);
    }
}

fn run(words: &[&str]) -> std::io::Result<()> {
    match *words {
        [] => println!("Hello from {}!", world()),
        ["args", ref rest @ ..] => rest.iter().for_each(|a| println!("{a}")),
        ["env"] => {
            let mut all: Vec<_> = std::env::vars().collect();
            all.sort();
            all.iter().for_each(|(k, v)| println!("{k}={v}"));
        }
        ["cwd"] => println!("{}", std::env::current_dir()?.display()),
        ["cat", file] => {
            std::io::stdout().write_all(&std::fs::read(file)?)?;
        }
        ["write", file, text] => std::fs::write(file, format!("{text}\n"))?,
        ["rm", file] => std::fs::remove_file(file)?,
        ["ls", dir] => {
            let mut names: Vec<_> = std::fs::read_dir(dir)?
                .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_, _>>()?;
            names.sort();
            names.iter().for_each(|n| println!("{n}"));
        }
        ["exit", code] => std::process::exit(code.parse().unwrap_or(2)),
        ["stdin"] => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text)?;
            std::io::stdout().write_all(&text)?;
        }
        ["tty"] => println!("terminal: {} {}", std::io::stdin().is_terminal(), std::io::stdout().is_terminal()),
        ["echo"] => echo()?,
        ["both", out, err] => {
            println!("{out}");
            eprintln!("{err}");
        }
        ["lines", count] => {
            let mut out = std::io::BufWriter::new(std::io::stdout());
            for n in 0..count.parse().unwrap_or(0u64) {
                writeln!(out, "line {n}")?;
            }
            out.flush()?;
        }
        ["sleep", seconds] => {
            println!("sleeping");
            std::io::stdout().flush()?;
            std::thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(1)));
        }
        ["alloc", megabytes] => alloc(megabytes.parse().unwrap_or(1)),
        ["hold", megabytes] => {
            let held = vec![1u8; megabytes.parse::<usize>().unwrap_or(1) << 20];
            println!("holding {} bytes", std::hint::black_box(&held).len());
            std::io::stdout().flush()?;
            std::thread::sleep(Duration::from_secs(600));
        }
        ["spin", millis] => spin(millis.parse().unwrap_or(100)),
        _ if network(words)? => {}
        _ => {
            eprintln!("duo: unknown command {words:?}");
            std::process::exit(2);
        }
    }
    Ok(())
}

/// Carries out a command that needs a socket; `false` when it is none.
fn network(words: &[&str]) -> std::io::Result<bool> {
    match *words {
        ["serve", port, text] => serve(port, text)?,
        ["serve-udp", port, text] => serve_udp(port, text)?,
        ["fetch-udp", address] => {
            let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            socket.send(b"hello")?;
            let mut reply = [0u8; 64];
            let n = socket.recv(&mut reply)?;
            print!("{}", String::from_utf8_lossy(&reply[..n]));
        }
        ["self", bind, address] => talk_to_itself(bind, address)?,
        ["lookup", ref names @ ..] => {
            for name in names {
                println!("{}", resolved(name));
            }
        }
        ["resolver", port] => resolver(port)?,
        ["exchange", address, ref packets @ ..] => exchange(address, packets)?,
        ["exchange-tcp", address, packet] => exchange_tcp(address, packet)?,
        ["fetch", address] => {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"hello\n")?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply)?;
            print!("{reply}");
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Repeats every line until it is told to go.
fn echo() -> std::io::Result<()> {
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        println!("<{line}>");
        if line == "bye" {
            break;
        }
    }
    println!("done");
    Ok(())
}

fn world() -> &'static str {
    if cfg!(target_os = "wasi") { "Wasm" } else { "Linux" }
}

/// Answers every connection with one line, then waits for the next.
fn serve(port: &str, text: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(anywhere(port))?;
    println!("serving");
    std::io::stdout().flush()?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut byte = [0u8; 1];
        while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {}
        let _ = stream.write_all(format!("{text}\n").as_bytes());
    }
    Ok(())
}

/// A port alone is one of every IPv4 address.
fn anywhere(port: &str) -> String {
    if port.contains(':') { port.to_owned() } else { format!("0.0.0.0:{port}") }
}

/// Serves one client: itself, by whatever way the address leads back.
fn talk_to_itself(bind: &str, address: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(bind)?;
    // The kernel answers for a listener that has not accepted yet.
    let mut client = TcpStream::connect(address)?;
    client.write_all(b"hello\n")?;
    let (mut server, _) = listener.accept()?;
    let mut byte = [0u8; 1];
    while server.read(&mut byte)? == 1 && byte[0] != b'\n' {}
    server.write_all(b"myself\n")?;
    drop(server);
    let mut reply = String::new();
    client.read_to_string(&mut reply)?;
    print!("{reply}");
    Ok(())
}

/// Answers every datagram with one line.
fn serve_udp(port: &str, text: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(anywhere(port))?;
    println!("serving");
    std::io::stdout().flush()?;
    let mut datagram = [0u8; 64];
    loop {
        let (_, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(format!("{text}\n").as_bytes(), from)?;
    }
}

/// The addresses of a name, sorted, or why there are none.
fn resolved(name: &str) -> String {
    match (name, 0).to_socket_addrs() {
        Ok(found) => {
            let mut all: Vec<String> = found.map(|a| a.ip().to_string()).collect();
            all.sort();
            all.dedup();
            all.join(" ")
        }
        Err(_) => "none".to_owned(),
    }
}

/// Answers every datagram, a name, with the name's addresses.
fn resolver(port: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    println!("serving");
    std::io::stdout().flush()?;
    let mut datagram = [0u8; 512];
    loop {
        let (n, from) = socket.recv_from(&mut datagram)?;
        let name = String::from_utf8_lossy(&datagram[..n]).into_owned();
        socket.send_to(resolved(&name).as_bytes(), from)?;
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
    text.as_bytes().chunks(2).map(|c| digit(c[0]) << 4 | digit(*c.last().unwrap_or(&b'0'))).collect()
}

fn print_hex(bytes: &[u8]) {
    let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    println!("{text}");
}

/// Sends datagrams given in hexadecimal digits, and prints what comes back to the last of them.
fn exchange(address: &str, packets: &[&str]) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let (last, others) = packets.split_last().expect("a packet");
    for packet in others {
        socket.send_to(&from_hex(packet), address)?;
    }
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.send_to(&from_hex(last), address)?;
    let mut reply = [0u8; 4096];
    let (n, _) = socket.recv_from(&mut reply)?;
    print_hex(&reply[..n]);
    Ok(())
}

/// The same over a connection, behind its length.
fn exchange_tcp(address: &str, packet: &str) -> std::io::Result<()> {
    let packet = from_hex(packet);
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&(packet.len() as u16).to_be_bytes())?;
    stream.write_all(&packet)?;
    let mut length = [0u8; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    print_hex(&reply);
    Ok(())
}

/// Touches memory a megabyte at a time and says how far it came.
fn alloc(megabytes: usize) {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for n in 0..megabytes {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            println!("refused at {n} MB");
            std::process::exit(3);
        }
        block.resize(1 << 20, 1u8);
        held.push(block);
    }
    println!("touched {megabytes} MB of {}", held.len());
}

/// Burns CPU for a while of wall time and says how many rounds it got.
fn spin(millis: u64) {
    let end = Instant::now() + Duration::from_millis(millis);
    let mut rounds = 0u64;
    let mut x = 1u64;
    while Instant::now() < end {
        for _ in 0..1000 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        rounds += 1;
    }
    println!("{rounds}");
}
