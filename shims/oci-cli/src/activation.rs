//! Socket activation: sockets that a service manager has handed us are the container's.

/// How many sockets we were handed, from descriptor 3 on.
pub(crate) fn sockets() -> u32 {
    let number = |name: &str| -> Option<u32> { std::env::var_os(name)?.to_str()?.parse().ok() };
    match number("LISTEN_PID") {
        // Else they were for who started us.
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

/// Tells the program of them; it is the first process of its namespace.
pub(crate) fn announce(sockets: u32, env: &mut Vec<String>) {
    if sockets > 0 {
        env.push(format!("LISTEN_FDS={sockets}"));
        env.push("LISTEN_PID=1".to_owned());
    }
}
