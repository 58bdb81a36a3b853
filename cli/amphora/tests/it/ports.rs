//! More published ports than a process has descriptors.

use crate::both::{ask, serving};
use crate::sandbox::Sandbox;

#[test]
fn a_range_of_hundreds_of_ports_is_published() {
    let s = Sandbox::ready();
    let publish = ["run", "-d", "--name", "wide", "-p", "8000-8600:8000-8600"];
    s.run(&[&publish[..], &["probe-linux", "serve", "8600", "answer"]].concat())
        .ok();
    serving(&s, "wide");
    for address in ["127.0.0.1:8600", "[::1]:8600"] {
        assert_eq!(ask(address).expect(address), "answer\n");
    }
    let ports = s.run(&["port", "wide"]).ok();
    assert_eq!(ports.lines().count(), 2 * 601, "{ports}");
    // Our own limits are not the container's.
    let pid = s.inspect("wide")["State"]["Pid"].as_i64().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|l| l.starts_with("Max open files"));
    let soft = files.unwrap().split_whitespace().nth(3);
    assert_eq!(soft, Some("1024"), "{limits}");
    s.run(&["rm", "-f", "wide"]).ok();
}
