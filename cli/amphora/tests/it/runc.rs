//! The command line of runc: the same cases against ours and, so that a wrong case is seen, against
//! the runc that is installed.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::plain_spec::plain_spec;
use crate::sandbox::{Output, Sandbox, finish, path, tool, wait_until};

const SOON: Duration = Duration::from_secs(10);

/// Makes `ours` and `runc` tests of one function.
macro_rules! calibrated {
    ($($name:ident),* $(,)?) => {
        mod ours { $( #[test] fn $name() { super::$name(&super::World::ours()); } )* }
        mod runc { $( #[test] fn $name() { super::$name(&super::World::runc()); } )* }
    };
}

calibrated!(
    a_container_is_created_started_and_deleted,
    run_gives_output_and_code,
    what_cannot_run_leaves_nothing,
    exec_joins_the_container,
    signals_and_pauses_reach_it,
    limits_hold_and_change,
    hooks_run_where_they_should,
    a_failing_hook_undoes_everything,
    hooks_run_inside_the_container,
    a_failing_hook_inside_ends_it,
    a_terminal_goes_to_the_console_socket,
    descriptors_are_preserved,
    the_wrong_state_is_refused,
    namespaces_are_joined_by_path,
    a_foreground_run_can_be_paused_and_killed,
    a_later_variable_wins,
    a_hook_that_fails_last_keeps_none_from_its_turn,
);

impl Drop for World {
    fn drop(&mut self) {
        // Whatever a failed case has left must not meet the next one.
        for id in self.run(&["list", "-q"]).stdout.split_whitespace() {
            let _ = self.run(&["delete", "--force", id]);
        }
    }
}

/// A test's world and the runtime that it is about.
pub(crate) struct World {
    pub(crate) s: Sandbox,
    pub(crate) program: PathBuf,
}

impl World {
    pub(crate) fn ours() -> Self {
        let s = Sandbox::new();
        let program = link(&s);
        Self::new(s, program)
    }

    pub(crate) fn runc() -> Self {
        Self::new(Sandbox::new(), PathBuf::from("/usr/sbin/runc"))
    }

    pub(crate) fn new(s: Sandbox, program: PathBuf) -> Self {
        let rootfs = s.dir.join("rootfs");
        for dir in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
            std::fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "sleep", "id", "echo", "ls", "readlink", "kill"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let mut made = Self { s, program };
        // The parents of cgroups, and the roots of the engine, which the leak counter asks.
        made.bundle(&["sh"], |_| {});
        made.run(&["run", "first"]).ok();
        std::fs::remove_file(made.s.dir.join("config.json")).unwrap();
        made.s.run(&["ps", "-aq"]).ok();
        made.s.mark();
        made
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--root", path(&self.s.dir.join("state"))])
            .args(args)
            .current_dir(&self.s.dir)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        finish(self.command(args))
    }

    /// A detached command whose container keeps nothing of the test's open.
    pub(crate) fn detached(&self, args: &[&str]) -> Output {
        logged(self.command(args), &self.s.dir.join("out"))
    }

    /// What the detached container has written so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.s.dir.join("out")).unwrap_or_default()
    }

    /// Writes the bundle: a program, and whatever else a case wants to change.
    pub(crate) fn bundle(&self, args: &[&str], edit: impl FnOnce(&mut Value)) {
        let mut spec = spec(args);
        edit(&mut spec);
        std::fs::write(self.s.dir.join("config.json"), spec.to_string()).unwrap();
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.run(&["state", id]).ok()).unwrap()
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn until(&self, id: &str, status: &str) {
        wait_until(&format!("{id} to be {status}"), SOON, || {
            self.status(id) == status
        });
    }

    pub(crate) fn done(&self) {
        assert_eq!(self.run(&["list", "-q"]).ok(), "");
        let left = std::fs::read_dir(self.s.dir.join("state"));
        assert_eq!(
            left.map_or(0, Iterator::count),
            0,
            "a state directory is left"
        );
        for file in ["config.json", "out", "log", "pid", "hook", "console"] {
            let _ = std::fs::remove_file(self.s.dir.join(file));
        }
        self.s.check();
    }
}

/// Runs a command that writes to a file, which is not waited for when the command has ended.
pub(crate) fn logged(mut command: Command, log: &Path) -> Output {
    let file = std::fs::File::create(log).unwrap();
    command.stdout(file.try_clone().unwrap()).stderr(file);
    let code = command.status().unwrap().code().unwrap_or(-1);
    Output {
        code,
        stdout: String::new(),
        stderr: std::fs::read_to_string(log).unwrap_or_default(),
    }
}

pub(crate) fn link(s: &Sandbox) -> PathBuf {
    let program = s.dir.join("amphora-runc");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_amphora"), &program).unwrap();
    program
}

fn spec(args: &[&str]) -> Value {
    let caps = [
        "CAP_KILL",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_SETUID",
        "CAP_SETGID",
    ];
    let mut spec = plain_spec(args, &caps, "/amphora-it-runc/case");
    spec["process"]["env"] = json!(["PATH=/bin", "A=b"]);
    spec["process"]["cwd"] = "/tmp".into();
    spec["process"]["noNewPrivileges"] = true.into();
    spec["hostname"] = "inside".into();
    spec["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    spec
}

fn a_container_is_created_started_and_deleted(w: &World) {
    w.bundle(&["sh", "-c", "echo started; exec sleep 600"], |_| {});
    let pid_file = w.s.dir.join("pid");
    w.detached(&[
        "create",
        "--pid-file",
        path(&pid_file),
        "--bundle",
        ".",
        "one",
    ])
    .ok();
    let state = w.state("one");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    assert_eq!(state["id"], "one");
    assert_eq!(state["bundle"], path(&w.s.dir));
    assert_eq!(state["status"], "created");
    assert!(
        !w.said().contains("started"),
        "it runs before it was started"
    );
    let listed = w.run(&["list"]).ok();
    let cells: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells[..3], ["one", pid.as_str(), "created"]);
    w.detached(&["create", "--bundle", ".", "one"])
        .fails(1, "container with given ID already exists");

    w.run(&["start", "one"]).ok();
    wait_until("it to start", SOON, || {
        w.state("one")["status"] == "running"
    });
    w.run(&["delete", "one"])
        .fails(1, "that is not stopped: running");
    w.run(&["kill", "one", "KILL"]).ok();
    w.until("one", "stopped");
    w.run(&["kill", "one"]).fails(1, "container not running");
    w.run(&["delete", "one"]).ok();
    w.run(&["state", "one"])
        .fails(1, "container does not exist");
    w.run(&["delete", "one"])
        .fails(1, "container does not exist");
    w.run(&["delete", "--force", "one"]).ok();
    w.done();
}

fn run_gives_output_and_code(w: &World) {
    let script = "id -u; pwd; echo $A; cat /proc/sys/kernel/hostname; exit 7";
    w.bundle(&["sh", "-c", script], |_| {});
    let output = w.run(&["run", "one"]);
    assert_eq!(output.code, 7, "{output:?}");
    assert_eq!(output.stdout, "0\n/tmp\nb\ninside\n");
    w.bundle(&["sh", "-c", "kill -TERM $$"], |_| {});
    let code = w.run(&["run", "two"]).code;
    // A signal without a handler never reaches process 1.
    assert_eq!(code, 0);
    w.done();
}

fn what_cannot_run_leaves_nothing(w: &World) {
    let cases: [(&[&str], &str); 4] = [
        (&["nothing"], "executable file not found in $PATH"),
        (&["/nothing"], "no such file or directory"),
        (&["/etc"], "permission denied"),
        (&["/bin/../nothing"], "no such file or directory"),
    ];
    for (args, text) in cases {
        w.bundle(args, |_| {});
        for verb in ["create", "run"] {
            let failed = w.detached(&[verb, "one"]);
            assert_eq!(failed.code, 1, "{verb} {args:?}: {failed:?}");
            let said = failed.stderr.to_lowercase();
            assert!(said.contains(&text.to_lowercase()), "{args:?}: {said}");
        }
    }
    w.bundle(&["sh"], |spec| spec["root"]["path"] = "nowhere".into());
    assert_eq!(w.detached(&["create", "one"]).code, 1);
    w.bundle(&["sh"], |spec| spec["mounts"][0]["source"] = json!(7));
    assert_eq!(w.detached(&["create", "one"]).code, 1);
    w.detached(&["create", "--bundle", "/nowhere", "one"]);
    w.bundle(&["sh"], |_| {});
    w.detached(&["create", "a/b"])
        .fails(1, "invalid container ID format");
    let log = w.s.dir.join("log");
    let args = ["--log", path(&log), "--log-format", "json", "create", "a/b"];
    assert_eq!(w.detached(&args).code, 1);
    let text = std::fs::read_to_string(&log).unwrap();
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(
        line["msg"]
            .as_str()
            .unwrap()
            .contains("invalid container ID")
    );
    w.done();
}

fn exec_joins_the_container(w: &World) {
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    let said = w.run(&[
        "exec",
        "--env",
        "B=c",
        "--cwd",
        "/etc",
        "--user",
        "7:8",
        "one",
        "sh",
        "-c",
        "echo $A $B; pwd; id -u; id -g; cat /proc/1/cmdline; exit 9",
    ]);
    assert_eq!(said.code, 9, "{said:?}");
    assert_eq!(said.stdout, "b c\n/etc\n7\n8\nsleep\u{0}600\u{0}");
    w.run(&["exec", "one", "nothing"])
        .fails(255, "executable file not found in $PATH");
    let process = w.s.dir.join("process");
    let text = json!({
        "args": ["sh", "-c", "echo $X; cat"], "env": ["PATH=/bin", "X=y"], "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    });
    std::fs::write(&process, text.to_string()).unwrap();
    let said = w.run(&["exec", "--process", path(&process), "one"]).ok();
    assert_eq!(said, "y\n");
    std::fs::remove_file(process).unwrap();
    let pid = w.s.dir.join("pid");
    w.detached(&[
        "exec",
        "-d",
        "--pid-file",
        path(&pid),
        "one",
        "sleep",
        "601",
    ])
    .ok();
    let pid = std::fs::read_to_string(pid).unwrap();
    let pids: Vec<i32> = serde_json::from_str(&w.run(&["ps", "-f", "json", "one"]).ok()).unwrap();
    assert_eq!(pids.len(), 2, "{pids:?}");
    assert!(pids.contains(&pid.parse().unwrap()));
    w.run(&["delete", "--force", "one"]).ok();
    w.run(&["exec", "one", "sh"])
        .fails(255, "container does not exist");
    w.done();
}

fn signals_and_pauses_reach_it(w: &World) {
    let script = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    w.bundle(&["sh", "-c", script], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    wait_until("the trap", SOON, || w.said().contains("ready"));
    w.run(&["pause", "one"]).ok();
    assert_eq!(w.status("one"), "paused");
    assert_eq!(w.run(&["exec", "one", "echo", "x"]).code, 255);
    assert_eq!(w.run(&["pause", "one"]).code, 1);
    w.run(&["resume", "one"]).ok();
    assert_eq!(w.status("one"), "running");
    assert_eq!(w.run(&["resume", "one"]).code, 1);
    w.run(&["kill", "one", "nosuch"]).fails(1, "nosuch");
    w.run(&["kill", "one", "SIGUSR1"]).ok();
    w.until("one", "stopped");
    assert!(w.said().contains("got"));
    w.run(&["delete", "one"]).ok();
    w.done();
}

fn limits_hold_and_change(w: &World) {
    if !crate::sandbox::has_controller("pids") {
        return;
    }
    w.bundle(&["sleep", "600"], |spec| {
        spec["linux"]["resources"]["pids"] = json!({"limit": 11});
    });
    w.detached(&["run", "-d", "one"]).ok();
    let limit = || -> Value {
        let text = w.run(&["events", "--stats", "one"]).ok();
        serde_json::from_str::<Value>(text.lines().next().unwrap()).unwrap()["data"]["pids"]
            ["limit"]
            .clone()
    };
    assert_eq!(limit(), 11);
    w.run(&["update", "--pids-limit", "13", "one"]).ok();
    assert_eq!(limit(), 13);
    let file = w.s.dir.join("hook");
    std::fs::write(&file, r#"{"pids": {"limit": 17}}"#).unwrap();
    w.run(&["update", "--resources", path(&file), "one"]).ok();
    assert_eq!(limit(), 17);
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

/// A hook that writes its name, the state's status and id, and what its namespaces are.
fn hook(w: &World, name: &str) -> Value {
    let file = w.s.dir.join("hook");
    let script = format!(
        "s=$(cat); echo {name} $(echo $s | grep -o '\"status\": *\"[a-z]*\"' | cut -d'\"' -f4) >> {}",
        path(&file)
    );
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
}

fn hooks_run_where_they_should(w: &World) {
    w.bundle(&["sh", "-c", "echo program"], |spec| {
        spec["hooks"] = json!({
            "prestart": hook(w, "prestart"),
            "createRuntime": hook(w, "createRuntime"),
            "poststart": hook(w, "poststart"),
            "poststop": hook(w, "poststop"),
        });
    });
    let told = || std::fs::read_to_string(w.s.dir.join("hook")).unwrap_or_default();
    w.detached(&["create", "one"]).ok();
    // Which status the first two see, the specification and runc put differently.
    let first: Vec<String> = told()
        .lines()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(first[..2], ["prestart", "createRuntime"]);
    // The installed runc calls them at `create` already, which the specification does not say.
    if w.program.ends_with("amphora-runc") {
        assert_eq!(first.len(), 2, "{first:?}");
    }
    w.run(&["start", "one"]).ok();
    assert!(told().contains("poststart "), "{}", told());
    w.until("one", "stopped");
    assert!(!told().contains("poststop"));
    w.run(&["delete", "one"]).ok();
    assert!(told().ends_with("poststop stopped\n"), "{}", told());
    w.done();
}

fn a_failing_hook_undoes_everything(w: &World) {
    for stage in ["prestart", "createRuntime"] {
        w.bundle(&["sh"], |spec| {
            spec["hooks"] = json!({ stage: [{"path": "/bin/false"}] });
        });
        let failed = w.detached(&["create", "one"]);
        assert_eq!(failed.code, 1);
        assert!(failed.stderr.contains("hook"), "{failed:?}");
        w.run(&["state", "one"])
            .fails(1, "container does not exist");
    }
    w.done();
}

/// `createContainer` sees both trees and may mount in the container's; `startContainer` is in there,
/// with the rights of the program.
fn hooks_run_inside_the_container(w: &World) {
    let rights =
        "busybox grep -E '^(Uid|Groups|CapEff|CapBnd|CapAmb|NoNewPrivs):' /proc/self/status";
    let program = format!("cat /etc/made; {rights} > /tmp/program; exec sleep 600");
    let rootfs = w.s.dir.join("rootfs");
    let from_host = format!(
        "s=$(cat); test -c {root}/dev/null || exit 1; mount -t tmpfs x {root}/etc || exit 2; \
         (echo $s; readlink /proc/self/ns/uts; pwd) > {root}/etc/made",
        root = path(&rootfs)
    );
    let from_inside =
        format!("s=$(cat); echo \"$s\" > /tmp/state; pwd >> /tmp/state; {rights} > /tmp/hook");
    w.bundle(&["sh", "-c", &program], |spec| {
        spec["hooks"] = json!({
            "createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", from_host],
                "env": ["PATH=/usr/bin:/bin"], "timeout": 60}],
            "startContainer": [{"path": "/bin/busybox", "args": ["sh", "-c", from_inside],
                "env": ["PATH=/bin"]}],
        });
        spec["process"]["user"] = json!({"uid": 5, "gid": 6});
    });
    let tmp = rootfs.join("tmp");
    std::fs::set_permissions(&tmp, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    w.detached(&["create", "one"]).ok();
    assert!(!tmp.join("state").exists(), "it runs before the start");
    assert!(!rootfs.join("etc/made").exists(), "its mount is the host's");
    let pid = w.state("one")["pid"].to_string();
    let uts = std::fs::read_link(format!("/proc/{pid}/ns/uts")).unwrap();
    w.run(&["start", "one"]).ok();
    wait_until("the program", SOON, || {
        w.said().contains("uts:") && std::fs::read(tmp.join("program")).is_ok_and(|b| !b.is_empty())
    });
    let said = w.said();
    let lines: Vec<&str> = said.lines().collect();
    let state = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(state(lines[0])["status"], "creating", "{said}");
    assert_eq!(state(lines[0])["id"], "one");
    assert_eq!(lines[1], path(&uts));
    assert_eq!(lines[2], path(&rootfs));
    let told = |name: &str| std::fs::read_to_string(tmp.join(name)).unwrap();
    let (text, dir) = (told("state"), "/tmp");
    let (text, cwd) = text.trim_end().rsplit_once('\n').unwrap();
    assert_eq!((&state(text)["status"], cwd), (&json!("created"), dir));
    assert_eq!(told("hook"), told("program"));
    w.run(&["delete", "-f", "one"]).ok();
    for name in ["state", "hook", "program"] {
        std::fs::remove_file(tmp.join(name)).unwrap();
    }
    w.done();
}

fn a_failing_hook_inside_ends_it(w: &World) {
    for (script, timeout) in [("exit 3", 60), ("exec sleep 600", 1)] {
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/bin:/bin"], "timeout": timeout}]);
        w.bundle(&["sh", "-c", "echo program"], |spec| {
            spec["hooks"] = json!({ "createContainer": hook });
        });
        let failed = w.detached(&["create", "one"]);
        assert_eq!(failed.code, 1);
        assert!(failed.stderr.contains("hook"), "{failed:?}");
        w.run(&["state", "one"])
            .fails(1, "container does not exist");
        w.bundle(&["sh", "-c", "echo program"], |spec| {
            spec["hooks"] = json!({ "startContainer": hook });
        });
        w.detached(&["create", "one"]).ok();
        let started = w.run(&["start", "one"]);
        // The installed runc leaves these hooks to the container, and has said that all is well.
        if w.program.ends_with("amphora-runc") {
            started.fails(1, "startContainer hook /bin/sh: ");
        }
        w.until("one", "stopped");
        assert!(!w.said().contains("program"), "{}", w.said());
        w.run(&["delete", "one"]).ok();
    }
    w.done();
}

/// The descriptor that comes over a socket.
pub(crate) fn received(connection: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let mut into = [std::io::IoSliceMut::new(&mut bytes)];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(connection, &mut into, &mut control, flags).unwrap();
    let mut fds = control.drain().filter_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.next()
        .and_then(|mut fds| fds.next())
        .expect("a descriptor")
}

fn a_terminal_goes_to_the_console_socket(w: &World) {
    let socket = w.s.dir.join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    w.bundle(
        &[
            "sh",
            "-c",
            "test -t 0 && test -t 1 && echo terminal; sleep 600",
        ],
        |spec| {
            spec["process"]["terminal"] = true.into();
        },
    );
    assert_eq!(
        w.detached(&["create", "one"]).code,
        1,
        "a terminal needs a socket"
    );
    let args = ["create", "--console-socket", path(&socket), "one"];
    w.detached(&args).ok();
    let (connection, _) = listener.accept().unwrap();
    let terminal = received(&connection);
    w.run(&["start", "one"]).ok();
    let mut reader = std::io::BufReader::new(std::fs::File::from(terminal));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert_eq!(line.trim(), "terminal");
    drop(reader);
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

fn descriptors_are_preserved(w: &World) {
    std::fs::write(w.s.dir.join("hook"), "kept\n").unwrap();
    w.bundle(&["sh", "-c", "cat <&3"], |_| {});
    let script = format!(
        "exec 3<hook; {} --root {} run --preserve-fds 1 one",
        path(&w.program),
        path(&w.s.dir.join("state"))
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(&w.s.dir);
    assert_eq!(finish(command).ok(), "kept\n");
    w.done();
}

fn the_wrong_state_is_refused(w: &World) {
    w.bundle(&["sh", "-c", "exit 3"], |_| {});
    w.detached(&["create", "one"]).ok();
    assert_eq!(w.run(&["resume", "one"]).code, 1);
    w.run(&["start", "one"]).ok();
    w.until("one", "stopped");
    w.run(&["start", "one"])
        .fails(1, "cannot start a container that has stopped");
    assert_eq!(w.run(&["exec", "one", "sh"]).code, 255);
    assert_eq!(w.run(&["pause", "one"]).code, 1);
    w.run(&["delete", "one"]).ok();
    w.run(&["start", "one"])
        .fails(1, "container does not exist");
    assert_ne!(w.run(&["create", "--nosuch", "one"]).code, 0);
    assert_ne!(w.run(&["nosuch"]).code, 0);
    w.done();
}

fn namespaces_are_joined_by_path(w: &World) {
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["run", "-d", "one"]).ok();
    let pid = w.state("one")["pid"].to_string();
    w.bundle(
        &[
            "sh",
            "-c",
            "for n in net uts; do readlink /proc/self/ns/$n; done",
        ],
        |spec| {
            spec["linux"]["cgroupsPath"] = "/amphora-it-runc/second".into();
            spec["hostname"] = "".into();
            for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                for (kind, file) in [("network", "net"), ("uts", "uts")] {
                    if namespace["type"] == kind {
                        namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
                    }
                }
            }
        },
    );
    let said = w.run(&["run", "two"]).ok();
    let theirs = ["net", "uts"].map(|kind| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        path(&link).to_owned() + "\n"
    });
    assert_eq!(said, theirs.concat());
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

/// Whoever waits for a container keeps nobody from changing it.
fn a_foreground_run_can_be_paused_and_killed(w: &World) {
    w.bundle(&["sleep", "600"], |_| {});
    let log = std::fs::File::create(w.s.dir.join("out")).unwrap();
    let mut child = w.command(&["run", "one"]).stderr(log).spawn().unwrap();
    wait_until("it to run", SOON, || {
        let state = w.run(&["state", "one"]);
        state.code == 0 && state.stdout.contains("running")
    });
    w.run(&["pause", "one"]).ok();
    // What is frozen dies all the same.
    w.run(&["kill", "one", "KILL"]).ok();
    if w.program.ends_with("runc") && !w.program.ends_with("amphora-runc") {
        let _ = w.run(&["resume", "one"]);
    }
    assert_eq!(crate::sandbox::wait_for(&mut child), 137);
    w.done();
}

fn a_later_variable_wins(w: &World) {
    w.bundle(&["sleep", "600"], |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "A=first", "A=b"]);
    });
    w.detached(&["run", "-d", "one"]).ok();
    let args = ["exec", "--env", "A=c", "one", "sh", "-c", "echo $A"];
    assert_eq!(w.run(&args).ok(), "c\n");
    let said = w.run(&["exec", "one", "sh", "-c", "echo $A"]).ok();
    assert_eq!(said, "b\n");
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

fn a_hook_that_fails_last_keeps_none_from_its_turn(w: &World) {
    let file = w.s.dir.join("hook");
    w.bundle(&["sh", "-c", "true"], |spec| {
        let fails = json!([{"path": "/bin/false"}]);
        let mut after = fails.clone();
        let told = hook(w, "poststop");
        after
            .as_array_mut()
            .unwrap()
            .extend(told.as_array().unwrap().clone());
        spec["hooks"] = json!({"prestart": hook(w, "prestart"), "poststop": after});
    });
    w.detached(&["run", "one"]).ok();
    let told = std::fs::read_to_string(&file).unwrap();
    assert!(told.starts_with("prestart "), "{told}");
    // The specification's word; the installed runc stops at the first.
    if w.program.ends_with("amphora-runc") {
        assert!(told.ends_with("poststop stopped\n"), "{told}");
    }
    w.done();
}

#[test]
fn options_stand_before_and_after_the_id() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&[
        "create",
        "one",
        "--bundle",
        path(&w.s.dir),
        "--pid-file=pid",
    ])
    .ok();
    w.run(&["delete", "one", "--force"]).ok();
    w.detached(&["create", "--no-pivot", "one"]).ok();
    w.run(&["start", "one"]).ok();
    assert_eq!(
        w.run(&["exec", "one", "ls", "/"]).ok(),
        tool(&["ls", path(&w.s.dir.join("rootfs"))])
    );
    w.run(&["delete", "-f", "one"]).ok();
    w.done();
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let w = World::ours();
    w.bundle(&["sh"], |_| {});
    for args in [&["checkpoint", "one"][..], &["restore", "one"]] {
        w.detached(args).fails(1, "is not supported");
    }
    for (pointer, value, text) in [
        (
            "hooks",
            json!({"createContainer": [{"path": "/bin/true"}]}),
            "hooks.createContainer with --no-pivot",
        ),
        (
            "hooks",
            json!({"startContainer": [{"path": "bin/true"}]}),
            "not an absolute path",
        ),
        ("vm", json!({"x": 1}), "vm"),
    ] {
        w.bundle(&["sh"], |spec| spec[pointer] = value);
        w.detached(&["create", "--no-pivot", "one"]).fails(1, text);
    }
    w.done();
}

/// What waits for `start` holds nothing of the runtime's, and nobody who was killed leaves a lock.
#[test]
fn a_waiting_container_holds_nothing_of_the_host() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |_| {});
    w.detached(&["create", "one"]).ok();
    let pid = w.state("one")["pid"].to_string();
    let held: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            let target = std::fs::read_link(entry.unwrap().path()).unwrap();
            path(&target).to_owned()
        })
        .filter(|target| !target.starts_with("/dev/null") && !target.ends_with("/out"))
        .collect();
    let waits = |t: &String| t.ends_with("/exec.fifo") || t.starts_with("pipe:");
    assert!(held.len() == 2 && held.iter().all(waits), "{held:?}");
    w.run(&["delete", "one"]).ok();
    w.done();
}

/// The same in the middle of a hook: nothing of it is left to hold the caller's streams.
#[test]
fn a_create_killed_in_a_hook_leaves_no_process() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |spec| {
        let script = "echo $$ > hook; exec sleep 600";
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/bin:/bin"]});
        spec["hooks"] = json!({"createRuntime": [hook]});
    });
    let mut child = w
        .command(&["create", "one"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let hook = || std::fs::read_to_string(w.s.dir.join("hook")).unwrap_or_default();
    wait_until("the hook", SOON, || hook().ends_with('\n'));
    child.kill().unwrap();
    child.wait().unwrap();
    tool(&["kill", hook().trim()]);
    let mut stdout = child.stdout.take().unwrap();
    // Its end: nobody has the stream any more.
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    w.run(&["delete", "--force", "one"]).ok();
    w.done();
}

#[test]
fn output_of_a_short_program_at_a_terminal_is_not_lost() {
    let w = World::ours();
    w.bundle(&["echo", "short"], |spec| {
        spec["process"]["terminal"] = true.into();
        spec["hooks"] = json!({"poststart": [
            {"path": "/bin/sleep", "args": ["sleep", "0.2"]}
        ]});
    });
    assert_eq!(w.run(&["run", "one"]).ok().trim(), "short");
    w.done();
}

/// Kills `create` after each of the delays, removes what it left and makes the container once more.
pub(crate) fn killed_creates(
    delays: impl Iterator<Item = Duration>,
    command: impl Fn(&[&str]) -> Command,
    log: &Path,
) {
    let run = |args: &[&str]| finish(command(args));
    for delay in delays {
        let mut child = command(&["create", "one"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        run(&["delete", "--force", "one"]).ok();
        assert_eq!(run(&["state", "one"]).code, 1);
        logged(command(&["create", "one"]), log).ok();
        run(&["delete", "one"]).ok();
    }
}

/// `create` killed at any moment leaves what `delete --force` removes.
#[test]
fn a_killed_create_is_removed() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |_| {});
    let delays = (0..24).map(|step| Duration::from_micros(step * 400));
    killed_creates(delays, |args| w.command(args), &w.s.dir.join("out"));
    w.done();
}

/// CVE-2019-5736: a program of the container that is `/proc/self/exe` is the runtime's own file. Root
/// of the container opens it while it runs, and writes to it once it has ended.
fn overwritten(
    w: &World,
    enter: &dyn Fn() -> std::process::Child,
    runtime: &std::path::Path,
) -> bool {
    let before = std::fs::read(runtime).unwrap();
    let mut trapped = enter();
    let script = "for p in /proc/[0-9]*; do \
                    case $(readlink $p/exe) in /bin/busybox|'') ;; *) exec 9<$p/exe; \
                      kill -9 ${p#/proc/}; sleep 0.3; echo x > /proc/self/fd/9;; esac; \
                  done 2>&1; exit 0";
    let deadline = std::time::Instant::now() + SOON;
    let said = loop {
        let said = w.run(&["exec", "one", "sh", "-c", script]).ok();
        if trapped.try_wait().unwrap().is_some() || std::time::Instant::now() > deadline {
            break said;
        }
    };
    let _ = trapped.kill();
    let _ = trapped.wait();
    let after = std::fs::read(runtime).unwrap();
    assert!(
        before != after || !said.is_empty(),
        "the attack did not happen"
    );
    before != after
}

#[test]
fn the_runtime_cannot_be_overwritten_from_inside() {
    let w = World::ours();
    w.bundle(&["sleep", "600"], |spec| {
        // So that it may look at the naive runtime, which drops nothing before it goes in.
        for set in ["bounding", "effective", "permitted"] {
            let caps = spec["process"]["capabilities"][set].as_array_mut();
            caps.unwrap().push("CAP_SYS_PTRACE".into());
        }
    });
    w.detached(&["run", "-d", "one"]).ok();
    let pid = w.state("one")["pid"].to_string();
    let rootfs = w.s.dir.join("rootfs");
    // The first is a name that busybox acts on, the second leads to a command of ours that waits.
    for name in ["usleep", "trap"] {
        std::os::unix::fs::symlink("/proc/self/exe", rootfs.join("bin").join(name)).unwrap();
    }
    // A runtime that goes in as itself: the attack succeeds.
    let naive = w.s.dir.join("naive/busybox");
    std::fs::create_dir(naive.parent().unwrap()).unwrap();
    std::fs::copy("/bin/busybox", &naive).unwrap();
    let enter = || {
        Command::new(&naive)
            .args(["nsenter", "-t", &pid, "-m", "-p", "/bin/usleep", "60000000"])
            .spawn()
            .unwrap()
    };
    assert!(
        overwritten(&w, &enter, &naive),
        "the naive runtime withstands"
    );
    let enter = || {
        w.command(&["exec", "one", "trap", "events"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let runtime = std::path::Path::new(env!("CARGO_BIN_EXE_amphora"));
    assert!(
        !overwritten(&w, &enter, runtime),
        "the runtime was overwritten"
    );
    w.run(&["delete", "-f", "one"]).ok();
    std::fs::remove_dir_all(naive.parent().unwrap()).unwrap();
    for name in ["usleep", "trap"] {
        std::fs::remove_file(rootfs.join("bin").join(name)).unwrap();
    }
    for dir in ["var", "run"] {
        let _ = std::fs::remove_dir_all(rootfs.join(dir));
    }
    w.done();
}

#[test]
fn spec_makes_a_bundle_that_runs() {
    let w = World::ours();
    w.run(&["spec"]).ok();
    w.run(&["spec"]).fails(1, "File exists");
    let file = w.s.dir.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(["echo", "runs"]);
    // As newer ones of runc write it: without an inheritable set the kernel gives none of them.
    spec["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]);
    spec["process"]["capabilities"]["inheritable"] = json!([]);
    std::fs::write(&file, spec.to_string()).unwrap();
    let said = w.run(&["run", "one"]);
    assert_eq!(said.ok(), "runs\n");
    let features: Value = serde_json::from_str(&w.run(&["features"]).ok()).unwrap();
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    w.done();
}
