//! `NOTIFY_SOCKET`: a service manager that starts `amphora-runc` hears when the container is ready. The
//! installed runc runs the same case.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use crate::runc::{World, logged};
use crate::sandbox::{wait_for, wait_until};

const SOON: Duration = Duration::from_secs(10);

mod ours {
    #[test]
    fn a_service_manager_hears_that_the_container_is_ready() {
        super::a_service_manager_hears_that_the_container_is_ready(&super::World::ours());
    }
}

mod runc {
    #[test]
    fn a_service_manager_hears_that_the_container_is_ready() {
        super::a_service_manager_hears_that_the_container_is_ready(&super::World::runc());
    }
}

fn a_service_manager_hears_that_the_container_is_ready(w: &World) {
    let manager = w.s.dir.join("manager");
    let listener = UnixDatagram::bind(&manager).unwrap();
    listener.set_read_timeout(Some(SOON)).unwrap();
    let heard = || {
        let mut buffer = [0; 100];
        let length = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let own = w.s.dir.join("state/one/notify/notify.sock");
    let says = |words: &str| {
        let socket = UnixDatagram::unbound().unwrap();
        wait_until("the container's socket", SOON, || {
            socket.connect(&own).is_ok()
        });
        socket.send(words.as_bytes()).unwrap();
    };
    let script = "echo $NOTIFY_SOCKET; test -S $NOTIFY_SOCKET && echo there; exec sleep 600";
    w.bundle(&["sh", "-c", script], |_| {});
    let start = |args: &[&str]| {
        let mut command = w.command(args);
        let out = std::fs::File::create(w.s.dir.join("out")).unwrap();
        let command = command.env("NOTIFY_SOCKET", &manager).stdout(out);
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    for detached in [true, false] {
        let mut runs = match detached {
            true => start(&["run", "-d", "one"]),
            false => start(&["run", "one"]),
        };
        says("STATUS=starting\n");
        wait_until("it to look", SOON, || w.said().ends_with("there\n"));
        assert_eq!(w.said(), "/run/notify/notify.sock\nthere\n");
        assert!(runs.try_wait().unwrap().is_none(), "it has not waited");
        let pid = match detached {
            true => w.state("one")["pid"].to_string(),
            false => runs.id().to_string(),
        };
        says("READY=1\n");
        assert_eq!(heard(), "READY=1\n");
        assert_eq!(heard(), format!("MAINPID={pid}\n"));
        if detached {
            // Runtimes before runc 1.2 do not wait for the manager.
            if w.program.ends_with("amphora-runc") {
                assert!(runs.try_wait().unwrap().is_none(), "it has not waited");
                // The descriptor that comes with it is closed by who has read it.
                assert_eq!(heard(), "BARRIER=1");
            }
            assert_eq!(wait_for(&mut runs), 0);
        }
        w.run(&["delete", "--force", "one"]).ok();
        let _ = runs.wait();
    }
    while listener.set_nonblocking(true).is_ok() && listener.recv(&mut [0; 100]).is_ok() {}
    listener.set_nonblocking(false).unwrap();

    // Whoever starts it waits, and no longer than there is something to wait for.
    assert_eq!(wait_for(&mut start(&["create", "one"])), 0);
    let mut starts = start(&["start", "one"]);
    says("X_OTHER=1");
    assert!(starts.try_wait().unwrap().is_none(), "it has not waited");
    w.run(&["kill", "one", "KILL"]).ok();
    assert_eq!(wait_for(&mut starts), 0);
    w.run(&["delete", "one"]).ok();
    std::fs::remove_file(manager).unwrap();
    std::fs::remove_dir_all(w.s.dir.join("rootfs/run")).unwrap();
    w.done();
}

/// A manager that is gone keeps nothing from running, and nobody waits for it.
#[test]
fn a_service_manager_that_is_gone_is_told_of() {
    let w = World::ours();
    w.bundle(&["sh", "-c", "exec sleep 600"], |_| {});
    let mut command = w.command(&["run", "-d", "one"]);
    command.env("NOTIFY_SOCKET", "@nobody is here");
    let out = logged(command, &w.s.dir.join("out"));
    assert_eq!(out.code, 0, "{}", out.stderr);
    let told = "failed to reach NOTIFY_SOCKET @nobody is here";
    assert!(out.stderr.contains(told), "{}", out.stderr);
    assert_eq!(w.status("one"), "running");
    w.run(&["delete", "--force", "one"]).ok();
    std::fs::remove_dir_all(w.s.dir.join("rootfs/run")).unwrap();
    w.done();
}
