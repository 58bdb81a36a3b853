//! Containers outlive the login session and the service that started them.

use std::path::Path;
use std::process::Command;

use super::{IMAGES, Machine, SLOW, cgroup_of, control, runs, unit};
use crate::sandbox::{tool, wait_until};

/// What ends a session.
const ENDS: [&str; 3] = ["its shell ends", "terminate-session", "terminate-user"];

/// A setting of the login manager for as long as it is held.
struct KillUserProcesses;

impl KillUserProcesses {
    const DIR: &str = "/etc/systemd/logind.conf.d";

    fn set() -> Self {
        std::fs::create_dir_all(Self::DIR).unwrap();
        // Root is spared otherwise, also by an empty list.
        let text = "[Login]\nKillUserProcesses=yes\nKillExcludeUsers=nobody\n";
        std::fs::write(Path::new(Self::DIR).join("kill.conf"), text).unwrap();
        tool(&["systemctl", "restart", "systemd-logind"]);
        Self
    }
}

impl Drop for KillUserProcesses {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Self::DIR);
        let _ = Command::new("systemctl")
            .args(["restart", "systemd-logind"])
            .status();
    }
}

/// Runs a script in a login session of root, as a terminal's getty would begin one.
fn session(name: &str, script: &str) {
    tool(&[
        "systemd-run",
        "-q",
        "--collect",
        &format!("--unit={name}"),
        "--property=PAMName=login",
        "--property=User=root",
        "--setenv=XDG_SESSION_CLASS=user",
        "--setenv=XDG_SESSION_TYPE=tty",
        "sh",
        "-c",
        script,
    ]);
}

#[test]
fn a_container_outlives_the_login_session_that_started_it() {
    let Some(m) = Machine::here() else { return };
    let _kill = KillUserProcesses::set();
    for (number, end) in (7000..).zip(ENDS) {
        let start: String = IMAGES
            .iter()
            .map(|image| format!("amphora run -d --name {image} {image} sleep 600; "))
            .collect();
        // Where the session ends by itself it waits until it has been looked at.
        let go = format!("/run/go-{number}");
        let wait = format!("until test -e {go}; do sleep 0.1; done");
        session(
            &format!("session-test-{number}"),
            &format!("{}{start}touch {go}-ready; {wait}", control(number)),
        );
        wait_until("the containers", SLOW, || {
            Path::new(&format!("{go}-ready")).exists()
        });
        let control = format!("sleep {number}");
        let found = tool(&["pgrep", "-fx", &control]);
        let scope = cgroup_of(found.trim().parse().unwrap());
        assert!(scope.starts_with("/user.slice/"), "{scope}");
        let id = scope
            .rsplit_once("/session-")
            .and_then(|(_, rest)| rest.strip_suffix(".scope"));
        let id = id.unwrap_or_else(|| panic!("no session: {scope}"));
        let pids = IMAGES.map(|image| m.pid(image));
        match end {
            "terminate-session" => tool(&["loginctl", end, id]),
            "terminate-user" => tool(&["loginctl", end, "root"]),
            _ => {
                std::fs::write(&go, "").unwrap();
                String::new()
            }
        };
        wait_until("the end of what the session left", SLOW, || !runs(&control));
        wait_until("the end of the session", SLOW, || {
            !Path::new(&format!("/sys/fs/cgroup{scope}")).exists()
        });
        assert_eq!(IMAGES.map(|image| m.pid(image)), pids, "{end}");
        // Its supervisor lives too: a word from it, and an orderly end.
        for image in IMAGES {
            assert_eq!(m.run(&["logs", image]).ok(), "sleeping\n", "{end}");
            m.run(&["kill", image]).ok();
            assert_eq!(m.run(&["wait", image]).ok(), "137\n", "{end}");
            m.run(&["rm", image]).ok();
        }
    }
}

#[test]
fn a_container_outlives_the_service_that_started_it() {
    let Some(m) = Machine::here() else { return };
    for (number, image) in (7100..).zip(IMAGES) {
        // The usual KillMode: everything in the service's cgroup is killed when it stops.
        unit(
            "starter.service",
            &format!(
                "[Service]\nType=oneshot\nRemainAfterExit=yes\n\
                 ExecStart=/bin/sh -c '{}amphora start served || amphora run -d --name served \
                 --restart always {image} sleep 600'\n",
                control(number)
            ),
        );
        tool(&["systemctl", "start", "starter"]);
        let control = format!("sleep {number}");
        assert!(runs(&control));
        let pid = m.pid("served");
        for word in ["restart", "stop", "start", "stop"] {
            tool(&["systemctl", word, "starter"]);
            assert_eq!(runs(&control), word != "stop", "{word}");
            assert_eq!(m.pid("served"), pid, "{word}");
        }
        // Nor does its next run begin in there.
        tool(&["systemctl", "start", "starter"]);
        tool(&["kill", "-9", &pid.to_string()]);
        wait_until("the next run", SLOW, || {
            let state = &m.inspect("served")["State"];
            state["Status"] == "running" && state["Pid"] != pid
        });
        let pid = m.pid("served");
        assert!(cgroup_of(pid).starts_with("/amphora/"));
        tool(&["systemctl", "stop", "starter"]);
        assert_eq!(m.pid("served"), pid);
        m.run(&["rm", "-f", "served"]).ok();
    }
    std::fs::remove_file("/etc/systemd/system/starter.service").unwrap();
}

#[test]
fn the_unit_of_the_examples_touches_no_container() {
    let Some(m) = Machine::here() else { return };
    // Only the file itself is in the machine, not the directories beside it.
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = own
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples/systemd/amphora.service");
    let text = std::fs::read_to_string(file).unwrap();
    unit("amphora.service", &text);
    let said = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "amphora.service"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.contains("amphora"), "{said}");
    for image in IMAGES {
        m.sleeper(image, image, &["--restart", "always"]);
    }
    let pids = IMAGES.map(|image| m.pid(image));
    tool(&["systemctl", "enable", "amphora"]);
    for word in ["start", "restart", "stop", "start", "stop"] {
        tool(&["systemctl", word, "amphora"]);
        let state = tool(&["systemctl", "show", "-P", "ActiveState", "amphora"]);
        let wanted = if word == "stop" { "inactive" } else { "active" };
        assert_eq!(state.trim(), wanted, "{word}");
        assert_eq!(IMAGES.map(|image| m.pid(image)), pids, "{word}");
    }
    tool(&["systemctl", "disable", "amphora"]);
}
