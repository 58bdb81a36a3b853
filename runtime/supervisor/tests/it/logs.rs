//! Logs of real output.

use std::fs;

use amphora_supervisor::*;

use crate::Case;
use crate::support::*;

pub(crate) const ALL: &[Case] = &[
    (
        "ten_megabytes_on_both_streams_are_logged_whole_and_in_order",
        large,
    ),
    ("rotated_logs_hold_the_end_of_the_output", rotation),
    ("a_full_disk_drops_and_counts_and_never_blocks", full_disk),
    ("no_log_is_kept_when_none_is_asked_for", no_log),
];

/// 10 MB on each stream: 160,000 numbered lines of 64 bytes.
const LARGE: &str = "
    yes 'stdout line stdout line stdout line stdout line stdout' | head -n 160000 | cat -n &
    yes 'stderr line stderr line stderr line stderr line stderr' | head -n 160000 | cat -n >&2
    wait";

fn expected(stream: &str) -> String {
    let text = [stream; 5].join(" line ");
    (1..=160_000).map(|n| format!("{n:6}\t{text}\n")).collect()
}

fn large() {
    let mut test = TestBox::new();
    test.config.log.max_size = 0;
    let (spawned, mut client) = test.start_attached(LARGE);
    let (out, err, status) = drain(&mut client);
    assert_eq!(status.code, 0);
    assert!(
        out == expected("stdout").as_bytes(),
        "stdout of the client, {}",
        out.len()
    );
    assert!(
        err == expected("stderr").as_bytes(),
        "stderr of the client, {}",
        err.len()
    );
    assert!(
        test.logged("stdout") == expected("stdout"),
        "stdout of the log"
    );
    assert!(
        test.logged("stderr") == expected("stderr"),
        "stderr of the log"
    );
    test.finished();
    reap(spawned.supervisor_pid);
}

fn rotation() {
    let mut test = TestBox::new();
    test.config.log = LogConfig {
        max_size: 1 << 20,
        max_files: 3,
        ..LogConfig::default()
    };
    let spawned = test.start("seq 1 60000");
    assert_eq!(test.wait().code, 0);
    let mut text = String::new();
    for name in ["json.log.2", "json.log.1", "json.log"] {
        let path = test.config.data_dir.join("logs").join(name);
        assert!(fs::metadata(&path).unwrap().len() <= 1 << 20);
        text += &fs::read_to_string(path).unwrap();
    }
    let kept: Vec<u32> = parse_log(&text)
        .iter()
        .map(|(_, t)| t.trim().parse().unwrap())
        .collect();
    assert!(kept.len() > 20_000, "{}", kept.len());
    assert_eq!(*kept.last().unwrap(), 60_000);
    assert!(kept.windows(2).all(|w| w[0] + 1 == w[1]));
    assert_eq!(
        fs::read_dir(test.config.data_dir.join("logs"))
            .unwrap()
            .count(),
        3
    );
    test.finished();
    reap(spawned.supervisor_pid);
}

fn full_disk() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let test = TestBox::new();
    let data = &test.config.data_dir;
    mount(
        "none",
        data,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=128k"),
    )
    .unwrap();
    let (spawned, mut client) = test.start_attached("seq 1 60000; echo end");
    let (out, _, status) = drain(&mut client);
    assert_eq!(status.code, 0);
    assert!(out.ends_with(b"\n60000\nend\n"));
    // The record had to go elsewhere, too.
    let record = ExitRecord::find(
        std::os::fd::AsFd::as_fd(&test.data_dir()),
        std::os::fd::AsFd::as_fd(&test.run_dir()),
    );
    let record = record.unwrap().unwrap();
    assert!(record.log_bytes_dropped > 1 << 20, "{record:?}");
    let log = test.log();
    assert!(log.len() > 100 && log[0].1 == "1\n", "{}", log.len());
    assert_eq!(test.wait().code, 0);
    test.finished();
    reap(spawned.supervisor_pid);
    unmount(data, UnmountFlags::DETACH).unwrap();
}

fn no_log() {
    let mut test = TestBox::new();
    test.config.log.driver = LogDriver::None;
    let (spawned, mut client) = test.start_attached("echo hello");
    assert_eq!(drain(&mut client).0, b"hello\n");
    assert!(!test.config.data_dir.join("logs").exists());
    test.finished();
    reap(spawned.supervisor_pid);
}
