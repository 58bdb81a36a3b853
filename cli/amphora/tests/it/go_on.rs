//! Containers that are to run again and lost their supervisor: what is in the way of the next run
//! when a command finds them is no reason to stay dead.

use std::net::TcpListener;
use std::time::Duration;

use crate::sandbox::{Sandbox, wait_until};
use crate::supervisor::{kill, supervisor_pid};
use crate::volumes::tmpfs_volume;

both!(
    a_busy_port_is_tried_again_without_a_command,
    a_command_that_holds_a_volume_starts_it_too,
);

const SLOW: Duration = Duration::from_secs(20);

/// Starts `cc` and ends it and its supervisor.
fn lost(s: &Sandbox, image: &str, more: &[&str]) {
    let run = ["run", "-d", "--name", "cc", "--restart", "always"];
    s.run(&[&run[..], more, &[image, "sleep", "600"]].concat())
        .ok();
    wait_until("the first run", SLOW, || runs(s) == 1);
    let init = s.inspect("cc")["State"]["Pid"].as_i64().expect("a pid");
    let init = i32::try_from(init).expect("a pid");
    kill(supervisor_pid(s, "cc"));
    kill(init);
    wait_until("its end", SLOW, || {
        let stat = std::fs::read_to_string(format!("/proc/{init}/stat"));
        stat.map_or(true, |text| text.contains(") Z "))
    });
}

/// How often it has begun; no command is run to see it.
fn runs(s: &Sandbox) -> usize {
    let containers = std::fs::read_dir(s.root().join("containers")).expect("containers");
    let logs = containers
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("logs/json.log")).ok());
    logs.map(|text| text.matches("sleeping").count()).sum()
}

fn a_busy_port_is_tried_again_without_a_command(image: &str) {
    let s = Sandbox::ready();
    lost(&s, image, &["-p", "8086:80"]);
    let mut taken = None;
    wait_until("the port to be free", SLOW, || {
        taken = TcpListener::bind("0.0.0.0:8086").ok();
        taken.is_some()
    });
    s.run(&["ps", "-q"]).ok();
    wait_until("a failed start", SLOW, || {
        let shown = s.inspect("cc");
        let error = shown["State"]["Error"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        shown["State"]["Status"] == "restarting" && error.contains("0.0.0.0:8086")
    });
    assert_eq!(runs(&s), 1);
    drop(taken);
    wait_until("the next run", SLOW, || runs(&s) == 2);
    s.run(&["rm", "-f", "cc"]).ok();
}

fn a_command_that_holds_a_volume_starts_it_too(image: &str) {
    let s = Sandbox::ready();
    tmpfs_volume(&s, "shm", "size=1m");
    lost(&s, image, &[]);
    // With the volume in its hands, the command finds a port busy, and looks who may have left it.
    let _taken = TcpListener::bind("0.0.0.0:8087").expect("a port");
    s.run(&["run", "--rm", "-v", "shm:/v", "-p", "8087:80", image])
        .fails(125, "0.0.0.0:8087");
    wait_until("the next run", SLOW, || runs(&s) == 2);
    assert_eq!(s.inspect("cc")["RestartCount"], 1);
    s.run(&["rm", "-f", "cc"]).ok();
    s.run(&["volume", "rm", "shm"]).ok();
}
