//! Ways for a program to behave: `probe COMMAND [NUMBER]`.

use std::io::{self, BufRead, Read, Write};
use std::time::{Duration, Instant, SystemTime};

fn main() {
    let args = std::env::args().collect::<Vec<_>>();
    let command = args.get(1).map_or("", String::as_str);
    let number = args.get(2).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    match command {
        "exit" => std::process::exit(number as i32),
        "echo" => echo(),
        "lines" => lines(),
        "grow" => grow(number),
        "spin" => spin(),
        "trap" => trap(),
        "deep" => println!("{}", deep(number)),
        "sleep" => sleep(number),
        "random" => println!("{}", std::collections::hash_map::RandomState::new().hash()),
        "prompt" => prompt(),
        _ => {
            eprintln!("probe: unknown command");
            std::process::exit(2);
        }
    }
}

trait Hash {
    fn hash(&self) -> u64;
}

impl Hash for std::collections::hash_map::RandomState {
    fn hash(&self) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        self.build_hasher().finish()
    }
}

/// Copies standard input to standard output.
fn echo() {
    let mut buffer = [0; 8192];
    loop {
        let count = io::stdin().read(&mut buffer).expect("read");
        if count == 0 {
            break;
        }
        io::stdout().write_all(&buffer[..count]).expect("write");
        io::stdout().flush().expect("flush");
    }
}

/// Answers every line at once.
fn lines() {
    for line in io::stdin().lock().lines() {
        println!("got {}", line.expect("line"));
    }
    println!("end");
}

/// Writes without a line break and waits.
fn prompt() {
    print!("name? ");
    io::stdout().flush().expect("flush");
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("line");
    println!("hello {}", line.trim());
}

/// Asks for memory, MiB by MiB, until it is refused.
fn grow(limit: u64) {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..limit {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            println!("refused after {} MiB", held.len());
            return;
        }
        block.resize(1 << 20, 1);
        held.push(block);
    }
    println!("got {} MiB", held.len());
}

/// Never ends.
fn spin() {
    println!("spinning");
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

#[inline(never)]
fn trap() {
    eprintln!("about to trap");
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
}

/// Recurses until the stack ends.
#[inline(never)]
fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 64]);
    if n == u64::MAX { 0 } else { deep(n + 1) + block[3] }
}

fn sleep(milliseconds: u64) {
    let before = Instant::now();
    std::thread::sleep(Duration::from_millis(milliseconds));
    println!("slept {}", before.elapsed() >= Duration::from_millis(milliseconds));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("clock");
    println!("clock {}", now.as_secs() > 1_700_000_000);
}
