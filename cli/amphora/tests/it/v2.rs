//! The same engine on a pure cgroup v2 hierarchy.

use crate::both::serving;
use crate::fixtures::busybox_image;
use crate::sandbox::{Sandbox, has_controller, path};

#[test]
fn both_kinds_run_stop_and_leave_nothing() {
    let s = Sandbox::ready_on_v2();
    for image in ["probe-linux", "probe-wasm"] {
        s.run(&[
            "run", "-d", "--name", "web", "-p", "8080:80", image, "serve", "80", "two",
        ])
        .ok();
        serving(&s, "web");
        assert_eq!(crate::both::ask("127.0.0.1:8080").expect("answer"), "two\n");
        let pid = s.inspect("web")["State"]["Pid"].as_i64().unwrap();
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let own = cgroup.lines().find(|l| l.starts_with("0::")).unwrap();
        assert!(own.starts_with("0::/amphora/"), "{cgroup}");
        // No controller is asked for freezing.
        assert!(has_controller("freezer"));
        s.run(&["pause", "web"]).ok();
        assert_eq!(s.inspect("web")["State"]["Status"], "paused");
        s.run(&["unpause", "web"]).ok();
        s.run(&["stop", "-t", "0", "web"]).ok();
        s.run(&["rm", "web"]).ok();
    }
}

#[test]
fn devices_beyond_the_list_are_refused_by_a_program() {
    let s = Sandbox::ready_on_v2();
    let archive = s.dir.join("bb.tar");
    busybox_image("bb").write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    std::fs::remove_file(&archive).unwrap();
    let script = "mknod /tmp/d b 254 0 && dd if=/tmp/d of=/dev/null count=1";
    let node = s.run(&["run", "--rm", "bb", "sh", "-c", script]);
    assert!(node.stderr.contains("not permitted"), "{node:?}");
    assert_eq!(
        s.run(&["run", "--rm", "bb", "ls", "/sys/fs/cgroup/cgroup.procs"])
            .code,
        0
    );
    s.run(&["rmi", "bb"]).ok();
}

#[test]
fn a_limit_without_its_controller_is_refused_by_name() {
    let s = Sandbox::ready_on_v2();
    let have = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    if have.split_whitespace().any(|c| c == "memory") {
        s.run(&["run", "--rm", "-m", "64m", "probe-linux"]).ok();
    } else {
        s.run(&["run", "--rm", "-m", "64m", "probe-linux"])
            .fails(125, "controller \"memory\"");
    }
}
