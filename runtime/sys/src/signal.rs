//! Signals that end a process which is pid 1 of its namespace: there the default action of a
//! signal is to be ignored (pid_namespaces(7)), so a handler has to end the process.

use std::io;

/// Signals whose default action ends a process and that a user may send to stop a container.
const ENDING: [libc::c_int; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
];

extern "C" fn end(signal: libc::c_int) {
    // SAFETY: `_exit` is async-signal-safe.
    unsafe { libc::_exit(128 + signal) }
}

/// Makes every signal that ends an ordinary process end this one, with the exit code
/// `128 + signal`, wherever its threads are. The handler runs on the alternate stack if there is one.
///
/// # Errors
/// What `sigaction(2)` answers.
pub fn exit_on_ending_signals() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = end;
    for signal in ENDING {
        // SAFETY: all-zero bytes are a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: `action` is initialised and outlives the call; its handler only calls `_exit`.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
