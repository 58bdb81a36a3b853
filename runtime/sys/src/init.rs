//! An init for containers: the first process, which starts one program and stays behind it.
//!
//! It passes every signal on to the program, collects whatever ends in its pid namespace, and ends
//! as the program does. Single-threaded; it holds no descriptor but the standard streams.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use rustix::io::Errno;

use crate::raw::{self, CArray};

/// The hidden entry; `--`, the program and its arguments follow.
pub const INIT_ENTRY: &str = "init";

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Signals that tell of our own faults: they are not to wait.
const FAULTS: [libc::c_int; 7] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];

/// All signals but the faults, as the kernel has a set: the C library keeps some to itself.
fn forwarded() -> u64 {
    let bit = |signal: libc::c_int| 1_u64 << (signal - 1);
    !FAULTS.iter().fold(0, |set, signal| set | bit(*signal))
}

/// Runs the program; the whole of the `init` entry, with the words after it.
#[must_use]
pub fn init_main(words: Vec<OsString>) -> ExitCode {
    let argv: Result<Vec<CString>, _> = words
        .into_iter()
        .skip(1)
        .map(|word| CString::new(word.into_vec()))
        .collect();
    let code = match argv {
        Ok(argv) if !argv.is_empty() => start(&argv).map_or(NOT_EXECUTABLE, follow),
        _ => NOT_FOUND,
    };
    ExitCode::from(code)
}

/// Starts the program in a process group of its own, in the foreground of the terminal, if any.
fn start(argv: &[CString]) -> io::Result<libc::pid_t> {
    let mask = forwarded();
    // SAFETY: a set of eight bytes is read; no old one is asked for.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        )
    };
    // Where it is not the first of its namespace, orphans come to it all the same.
    // SAFETY: plain integers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    // SAFETY: this process has one thread, so the child may do whatever its parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => become_program(argv),
        pid => Ok(pid),
    }
}

fn become_program(argv: &[CString]) -> ! {
    // SAFETY: plain integers; the caller's own group.
    unsafe { libc::setpgid(0, 0) };
    // Signals are blocked still: a process in the background may do this only then. Without a
    // terminal it is refused, which is as well.
    let own = libc::pid_t::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: plain integers.
    unsafe { libc::tcsetpgrp(0, own) };
    raw::default_signals();
    let error = execute(argv);
    let name = argv.first().map(|n| n.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let (text, code) = match error {
        Errno::NOENT | Errno::NOTDIR if name.contains('/') => {
            ("no such file or directory".to_owned(), NOT_FOUND)
        }
        Errno::NOENT | Errno::NOTDIR => {
            ("executable file not found in $PATH".to_owned(), NOT_FOUND)
        }
        e => (io::Error::from(e).to_string(), NOT_EXECUTABLE),
    };
    let _ = io::Write::write_all(
        &mut io::stderr(),
        format!("amphora: exec: \"{name}\": {text}\n").as_bytes(),
    );
    raw::exit_now(i32::from(code))
}

/// Executes the program; returns why none could be.
fn execute(argv: &[CString]) -> Errno {
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(key, value)| {
            let mut line = key.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            CString::new(line).ok()
        })
        .collect();
    let (arguments, environment) = (CArray::new(argv), CArray::new(&environment));
    let name = argv.first().map(|n| n.as_bytes()).unwrap_or_default();
    let path = std::env::var_os("PATH").map(OsStringExt::into_vec);
    let mut last = Errno::NOENT;
    for candidate in candidates(name, path.as_deref()) {
        match raw::execve(&candidate, &arguments, &environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            // Perhaps further on there is one that may be executed.
            Errno::ACCESS => last = Errno::ACCESS,
            error => return error,
        }
    }
    last
}

/// The files to try for a command name.
fn candidates(name: &[u8], path: Option<&[u8]>) -> Vec<CString> {
    if name.is_empty() || name.contains(&b'/') {
        return CString::new(name).into_iter().collect();
    }
    path.unwrap_or(DEFAULT_PATH.as_bytes())
        .split(|byte| *byte == b':')
        .filter_map(|dir| {
            let dir = if dir.is_empty() { b"." } else { dir };
            CString::new([dir, b"/", name].concat()).ok()
        })
        .collect()
}

/// Stays until the program has ended; returns its code.
fn follow(program: libc::pid_t) -> u8 {
    let mask = forwarded();
    loop {
        // SAFETY: a set of eight bytes is read; neither details nor a timeout are asked for.
        let signal = unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const mask,
                std::ptr::null::<u8>(),
                std::ptr::null::<u8>(),
                size_of::<u64>(),
            )
        };
        let Ok(signal) = libc::c_int::try_from(signal) else {
            continue;
        };
        if signal == libc::SIGCHLD {
            if let Some(code) = collect(program) {
                return code;
            }
        } else if signal > 0 {
            // SAFETY: plain integers; the program is not collected yet, so its pid is its own.
            unsafe { libc::kill(program, signal) };
        }
    }
}

/// Collects what has ended; returns the program's code once that has.
fn collect(program: libc::pid_t) -> Option<u8> {
    let mut code = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return code;
        }
        if pid == program {
            code = Some(if libc::WIFSIGNALED(status) {
                u8::try_from(128 + libc::WTERMSIG(status)).unwrap_or(u8::MAX)
            } else {
                u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_where_path_says() {
        let names = |name: &str, path: Option<&str>| -> Vec<String> {
            candidates(name.as_bytes(), path.map(str::as_bytes))
                .into_iter()
                .map(|c| c.into_string().unwrap())
                .collect()
        };
        assert_eq!(names("sh", Some("/bin::/x")), ["/bin/sh", "./sh", "/x/sh"]);
        assert_eq!(names("./sh", Some("/bin")), ["./sh"]);
        assert_eq!(names("sh", None).len(), 6);
    }

    #[test]
    fn all_signals_but_faults_are_passed_on() {
        let has = |signal: libc::c_int| forwarded() & (1 << (signal - 1)) != 0;
        assert!(has(libc::SIGTERM) && has(libc::SIGCHLD) && has(34) && has(64));
        assert!(!has(libc::SIGSEGV) && !has(libc::SIGABRT));
    }
}
