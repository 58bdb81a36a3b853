//! What goes wrong is said in Docker's words, and nothing is left of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use amphora_executor::{ExecutorError, Workload};
use amphora_linux::LinuxWorkload;
use amphora_spec::{Classify, ErrorKind};

use crate::fixture::Container;

fn fails(args: &[&str]) -> (String, ErrorKind) {
    let mut container = Container::new(args);
    let file = |name: &str, text: &str, mode| {
        let path = container.root().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file("bin/plain", "text", 0o644);
    file("bin/noise", "\u{1}\u{2}noise", 0o755);
    file("bin/script", "#!/no/such/shell\n", 0o755);
    let error = container.run().unwrap_err();
    (error.to_string(), error.kind())
}

#[test]
fn missing_commands_are_not_found() {
    use ErrorKind::CommandNotFound;
    let text = "exec: \"foo\": executable file not found in $PATH";
    assert_eq!(fails(&["foo"]), (text.into(), CommandNotFound));
    let text = "exec: \"/no/foo\": stat /no/foo: no such file or directory";
    assert_eq!(fails(&["/no/foo"]), (text.into(), CommandNotFound));
    // In the path, but not executable: passed over, as Docker does.
    let text = "exec: \"plain\": executable file not found in $PATH";
    assert_eq!(fails(&["plain"]), (text.into(), CommandNotFound));
    let text = "exec: \"\": executable file not found in $PATH";
    assert_eq!(fails(&[""]), (text.into(), CommandNotFound));
    let text = "exec /bin/script: no such file or directory";
    assert_eq!(fails(&["/bin/script"]), (text.into(), CommandNotFound));
    assert_eq!(fails(&["script"]), (text.into(), CommandNotFound));
}

#[test]
fn unusable_commands_are_not_executable() {
    use ErrorKind::CommandNotExecutable;
    let text = "exec: \"/bin/plain\": permission denied";
    assert_eq!(fails(&["/bin/plain"]), (text.into(), CommandNotExecutable));
    let text = "exec: \"/etc\": permission denied";
    assert_eq!(fails(&["/etc"]), (text.into(), CommandNotExecutable));
    let text = "exec /bin/noise: exec format error";
    assert_eq!(fails(&["/bin/noise"]), (text.into(), CommandNotExecutable));
    assert_eq!(fails(&["noise"]), (text.into(), CommandNotExecutable));
}

#[test]
fn mount_of_a_file_over_a_directory_says_so() {
    let mut container = Container::sh("true");
    let file = container.dir.join("file");
    fs::write(&file, "").unwrap();
    container.mounts = vec![("/etc".into(), Container::clone_of(&file))];
    let error = container.run().unwrap_err();
    let text =
        "failed to mount \"/etc\": one of source and target is a directory and the other is not";
    assert_eq!(error.to_string(), text);
    assert_eq!(error.errno(), Some(libc::ENOTDIR));
}

#[test]
fn failed_launch_leaves_no_process() {
    let before = children();
    for _ in 0..3 {
        assert!(Container::new(&["nothing-here"]).run().is_err());
    }
    // Other tests have children meanwhile, but none of theirs is a zombie for long.
    let left = children().into_iter().filter(|pid| !before.contains(pid));
    for pid in left {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while state(&pid) == Some('Z') {
            assert!(std::time::Instant::now() < deadline, "zombie {pid}");
            std::thread::yield_now();
        }
    }
}

fn children() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let lists =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn child_that_is_killed_on_the_way_is_told_from_one_that_ran() {
    let mut container = Container::sh("true");
    let bundle = container.bundle();
    let mut plan = LinuxWorkload.prepare(&bundle).unwrap();
    let (gate, _held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let release = plan.add_fd(gate);
    plan.ops.push(amphora_sys::Op::Await { release });
    let pending = amphora_sys::launch::start(&plan).unwrap();
    pending.wait_ready().unwrap();
    let pidfd = &pending.launched().pidfd;
    amphora_sys::pidfd::signal(std::os::fd::AsFd::as_fd(pidfd), libc::SIGKILL).unwrap();
    let error = pending.finish().unwrap_err().to_string();
    let text = "container process ended with signal 9 before it could wait for the start";
    assert_eq!(error, text);
    bundle.cgroup.remove().unwrap();
}

#[test]
fn fields_that_are_not_honoured_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut amphora_spec::runtime::Spec)| {
        let mut container = Container::sh("true");
        change(&mut container.spec);
        let bundle = container.bundle();
        let error = LinuxWorkload.validate(&bundle).unwrap_err();
        bundle.cgroup.remove().unwrap();
        let unsupported = matches!(error, ExecutorError::Unsupported { .. });
        (error.to_string(), unsupported)
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let (text, unsupported) = refused(&|spec| {
        spec.unknown
            .insert("vm".into(), json(r#"{"kernel":{"path":"/x"}}"#));
    });
    assert_eq!(
        (text.as_str(), unsupported),
        ("\"vm\" is not supported", true)
    );
    let (text, _) = refused(&|spec| {
        spec.linux
            .unknown
            .insert("intelRdt".into(), json(r#"{"closID":"x"}"#));
    });
    assert_eq!(text, "\"linux.intelRdt\" is not supported");
    let (text, _) = refused(&|spec| spec.linux.namespaces[0].kind = "user".into());
    let wanted = "linux.uidMappings: a new user namespace needs mappings";
    assert_eq!(text, wanted);
    let (text, _) = refused(&|spec| spec.process.cwd = "relative".into());
    assert_eq!(text, "process.cwd: \"relative\" is not an absolute path");
    let (text, _) = refused(&|spec| {
        spec.linux.sysctl.insert("vm.swappiness".into(), "1".into());
    });
    assert_eq!(
        text,
        "linux.sysctl: \"vm.swappiness\" is not in a namespace of its own"
    );
    let (text, _) = refused(&|spec| spec.mounts[0].kind = "none".into());
    assert_eq!(
        text,
        "\"mounts: \"/proc\": type \"none\"\" is not supported"
    );
    // Saying nothing is not asking for something, and nobody is asked for what nobody knows.
    let mut container = Container::sh("true");
    container.spec.unknown.insert("vm".into(), json("{}"));
    let unheard = json(r#"{"a":1}"#);
    container
        .spec
        .unknown
        .insert("unheard".into(), unheard.clone());
    container.spec.linux.unknown.insert("vm".into(), unheard);
    container.says();
}
