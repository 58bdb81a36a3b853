//! Other engines that run containers through the command line of runc.

use std::process::{Command, Stdio};

use crate::dockerd::{Backend, Dockerd};
use crate::runc::link;
use crate::sandbox::{Sandbox, finish, path};

#[test]
fn dockerd_runs_containers_through_it() {
    // Without a baseline: dockerd changes the machine's settings for good.
    let s = Sandbox::new();
    let program = link(&s);
    let flag = format!("amphora={}", path(&program));
    let flags: &'static [&'static str] =
        Box::leak(vec!["--add-runtime", &*Box::leak(flag.into_boxed_str())].into_boxed_slice());
    let docker = Dockerd::start_with(&s, Backend::Nft, flags);
    let archive = s.dir.join("image.tar");
    crate::fixtures::busybox_image("box:latest").write_docker(&archive);
    docker.docker(&["load", "-i", path(&archive)]).ok();
    let run = |args: &[&str]| docker.docker(&[&["run", "--runtime", "amphora"], args].concat());
    assert_eq!(run(&["--rm", "box", "echo", "hello"]).ok(), "hello\n");
    assert_eq!(run(&["--rm", "box", "sh", "-c", "exit 42"]).code, 42);
    let missing =
        r#"unable to start container process: exec: "nothing": executable file not found in $PATH"#;
    let text = format!("runc create failed: {missing}: unknown");
    run(&["--rm", "box", "nothing"]).fails(127, &text);
    run(&["-d", "--name", "cc", "-p", "8099:80", "box", "sleep", "600"]).ok();
    let ip = docker
        .docker(&["exec", "cc", "ip", "addr", "show", "eth0"])
        .ok();
    assert!(ip.contains("inet "), "{ip}");
    assert_eq!(docker.docker(&["exec", "cc", "sh", "-c", "exit 3"]).code, 3);
    let text = format!("OCI runtime exec failed: exec failed: {missing}: unknown");
    let said = docker.docker(&["exec", "cc", "nothing"]);
    assert!(said.stdout.contains(&text), "{said:?}");
    assert!(docker.docker(&["top", "cc"]).ok().contains("sleep 600"));
    docker.docker(&["pause", "cc"]).ok();
    docker.docker(&["unpause", "cc"]).ok();
    docker
        .docker(&["update", "--memory", "64m", "--memory-swap", "64m", "cc"])
        .ok();
    docker.docker(&["stop", "-t", "1", "cc"]).ok();
    docker.docker(&["start", "cc"]).ok();
    docker.docker(&["rm", "-f", "cc"]).ok();
    assert_eq!(
        run(&["--rm", "--init", "-t", "box", "echo", "tty"])
            .ok()
            .trim(),
        "tty"
    );
    docker.stop();
    std::fs::remove_file(archive).unwrap();
}

/// What podman is asked to do; it ends with its process namespace, and conmon with it.
const PODMAN: &str = r#"
set -eu
mount -t tmpfs tmpfs /run
# Limits and network that every machine of the tests has.
options="--ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --network none"
p() {
    timeout 30 podman --runtime "$1/amphora-runc" --cgroup-manager cgroupfs \
        --events-backend none --storage-driver vfs --root "$1/pod" --runroot "$1/podrun" \
        --tmpdir "$1/podtmp" "${@:2}"
}
d=$1
p $d load -q -i $d/image.tar >/dev/null
p $d run --rm $options box echo hello
p $d run --rm $options box sh -c 'exit 42' || echo code $?
p $d run --rm $options box nothing 2>&1 | grep -o 'executable file not found in $PATH' | head -n 1
p $d run -d $options --name cc box sleep 600 >/dev/null
p $d exec cc sh -c 'cat /proc/1/cmdline | tr "\\0" " "; echo; exit 3' || echo code $?
p $d exec -t cc echo tty | tr -d '\r'
p $d pause cc >/dev/null
p $d inspect -f '{{.State.Status}}' cc
p $d unpause cc >/dev/null
p $d stop -t 1 cc 2>/dev/null
p $d start cc
p $d kill cc
p $d rm -f cc
p $d ps -aq
"#;

#[test]
fn podman_runs_containers_through_it() {
    let s = Sandbox::new();
    link(&s);
    let archive = s.dir.join("image.tar");
    crate::fixtures::busybox_image("box:latest").write_docker(&archive);
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--mount", "--fork", "--kill-child", "--mount-proc"])
        .args(["bash", "-c", PODMAN, "podman", path(&s.dir)])
        .stdin(Stdio::null());
    let said = finish(command);
    let root = std::path::PathBuf::from("/sys/fs/cgroup");
    let below = std::fs::read_dir(&root).unwrap().flatten();
    for hierarchy in below.map(|entry| entry.path()).chain([root]) {
        let _ = std::fs::remove_dir(hierarchy.join("libpod_parent/conmon"));
        let _ = std::fs::remove_dir(hierarchy.join("libpod_parent"));
    }
    let stderr = said.stderr.clone();
    let want = "hello\ncode 42\nexecutable file not found in $PATH\nsleep 600 \ncode 3\ntty\n\
                paused\ncc\ncc\ncc\ncc\n";
    assert_eq!(said.ok(), want, "{stderr}");
    std::fs::remove_file(archive).unwrap();
}
