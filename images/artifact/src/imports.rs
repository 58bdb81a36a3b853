//! What the Wasm executor provides: the only list of it outside the executor itself.

/// WASI 0.1 functions (`wasi_snapshot_preview1`).
const WASI_P1: &[&str] = &[
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "random_get",
    "sched_yield",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// Packages of WASI 0.2 whose interfaces are provided.
const WASI_P2: &[&str] = &[
    "wasi:cli",
    "wasi:clocks",
    "wasi:filesystem",
    "wasi:io",
    "wasi:random",
    "wasi:sockets",
];

/// Says whether a core module's import is provided.
pub(crate) fn core_function(module: &str, name: &str) -> bool {
    match module {
        "wasi_snapshot_preview1" => WASI_P1.binary_search(&name).is_ok(),
        // The older snapshot had no `sock_accept`.
        "wasi_unstable" => name != "sock_accept" && WASI_P1.binary_search(&name).is_ok(),
        _ => false,
    }
}

/// Says whether a component's import of an instance (`package/interface@version`) is provided.
pub(crate) fn interface(name: &str) -> bool {
    let Some((path, version)) = name.split_once('@') else {
        return false;
    };
    let Some((package, _)) = path.split_once('/') else {
        return false;
    };
    WASI_P2.contains(&package) && is_release(version, "0.2.")
}

/// Says whether a version is a release of a line: `0.2.` and digits, nothing behind.
pub(crate) fn is_release(version: &str, line: &str) -> bool {
    version
        .strip_prefix(line)
        .is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_for_the_search() {
        assert!(WASI_P1.is_sorted());
        assert_eq!(WASI_P1.len(), 46);
    }

    #[test]
    fn versions_and_packages_outside_are_missing() {
        assert!(interface("wasi:cli/environment@0.2.3"));
        assert!(interface("wasi:sockets/tcp@0.2.12"));
        for name in [
            "wasi:cli/environment@0.3.0",
            "wasi:cli/environment@0.2.0-rc-1",
            "wasi:http/types@0.2.0",
            "wasi:cli/environment",
            "my:own/thing@0.2.0",
        ] {
            assert!(!interface(name), "{name}");
        }
    }

    #[test]
    fn wasix_and_browsers_are_missing() {
        assert!(core_function("wasi_snapshot_preview1", "fd_write"));
        assert!(core_function("wasi_unstable", "fd_write"));
        assert!(!core_function("wasi_unstable", "sock_accept"));
        assert!(!core_function("wasi_snapshot_preview1", "sock_open"));
        assert!(!core_function("wasix_32v1", "fd_dup"));
        assert!(!core_function("env", "abort"));
    }
}
