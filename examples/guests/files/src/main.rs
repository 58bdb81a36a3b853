//! Works on files: `files COMMAND PATH [TEXT]`.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

fn run(args: &[&str]) -> io::Result<()> {
    match args {
        ["read", path] => print!("{}", fs::read_to_string(path)?),
        ["write", path, text] => fs::write(path, format!("{text}\n"))?,
        ["append", path, text] => {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(path)?;
            writeln!(file, "{text}")?;
        }
        ["list", path] => {
            let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name()));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.sort();
            for name in names {
                println!("{}", name.to_string_lossy());
            }
        }
        ["mkdir", path] => fs::create_dir_all(path)?,
        ["remove", path] => fs::remove_file(path)?,
        ["rename", from, to] => fs::rename(from, to)?,
        ["size", path] => println!("{}", fs::metadata(path)?.len()),
        ["touch", path] => {
            let file = fs::File::create(path)?;
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400))?;
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "unknown command")),
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = std::env::args().collect::<Vec<_>>();
    let args = args.iter().skip(1).map(String::as_str).collect::<Vec<_>>();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("files: {error}");
            ExitCode::FAILURE
        }
    }
}
