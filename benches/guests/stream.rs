//! Sends megabytes over TCP: `stream serve PORT`, and `stream send ADDRESS MEGABYTES`, which prints
//! microseconds for each of them, from the first byte to the server's word that all have come.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

const CHUNK: usize = 128 << 10;
const MEGABYTE: usize = 1_000_000;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words {
        ["serve", port] => serve(port),
        ["send", address, megabytes] => send(address, megabytes.parse().expect("a number")),
        _ => std::process::exit(2),
    }
}

fn serve(port: &str) {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).expect("bind");
    let mut chunk = vec![0; CHUNK];
    for client in listener.incoming() {
        let mut client = client.expect("accept");
        while client.read(&mut chunk).is_ok_and(|n| n > 0) {}
        let _ = client.write_all(b"!");
    }
}

fn send(address: &str, megabytes: usize) {
    let mut server = TcpStream::connect(address).expect("connect");
    let chunk = vec![7; CHUNK];
    let begin = Instant::now();
    let mut left = megabytes * MEGABYTE;
    while left > 0 {
        let part = left.min(CHUNK);
        server.write_all(&chunk[..part]).expect("send");
        left -= part;
    }
    server.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut word = [0];
    server.read_exact(&mut word).expect("an answer");
    println!("{}", begin.elapsed().as_secs_f64() * 1e6 / megabytes as f64);
}
