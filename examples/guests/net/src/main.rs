//! TCP: `net serve ADDRESS` answers one line per connection, `net ask HOST:PORT TEXT` asks.
//! For WASI 0.2; WASI 0.1 has no sockets.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

fn serve(address: &str, count: usize) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for _ in 0..count {
        let (stream, _) = listener.accept()?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        writeln!(&stream, "you said {}", line.trim())?;
        println!("served {}", line.trim());
    }
    Ok(())
}

fn ask(address: &str, text: &str) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    writeln!(&stream, "{text}")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}

fn main() -> ExitCode {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let args = args.iter().map(String::as_str).collect::<Vec<_>>();
    let result = match args.as_slice() {
        ["serve", address] => serve(address, usize::MAX),
        ["serve", address, count] => serve(address, count.parse().unwrap_or(1)),
        ["ask", address, text] => ask(address, text),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "unknown command")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("net: {error}");
            ExitCode::FAILURE
        }
    }
}
