//! One test's world.

use std::io::{BufRead, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::fixtures::Image;
use crate::leak::Snapshot;
use crate::turn::Turn;

/// Longest any command of a test may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Longest the engine may take to clean up behind a command.
pub(crate) const SETTLE: Duration = Duration::from_secs(20);

/// Where the configuration file is.
const SETTINGS: &str = "/etc/amphora";

/// What a command did.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Returns stdout of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self.stdout
    }

    /// Checks code and a part of stderr.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, part: &str) -> String {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        assert!(
            self.stderr.contains(part),
            "\"{part}\" is not in: {}",
            self.stderr
        );
        self.stderr
    }
}

/// A test's own mount and network namespace, roots and baseline. Everything is undone by the end
/// of the thread; leaving is checked on drop.
pub(crate) struct Sandbox {
    pub(crate) dir: PathBuf,
    baseline: Option<Snapshot>,
    _turn: Turn,
}

impl Sandbox {
    /// Makes a world with an empty store on a tmpfs.
    pub(crate) fn new() -> Self {
        Self::with_tmpfs("size=2g")
    }

    /// The same with a store of limited size.
    pub(crate) fn with_tmpfs(options: &str) -> Self {
        let turn = Turn::take();
        // SAFETY: only the calling thread moves, and it shares no descriptor table assumption.
        #[expect(unsafe_code, reason = "a test's own namespaces")]
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }.expect("unshare");
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .expect("private mounts");
        let dir = std::env::temp_dir().join("amphora-it");
        std::fs::create_dir_all(&dir).expect("test directory");
        let options = std::ffi::CString::new(options).expect("options");
        mount(
            "tmpfs",
            &dir,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .expect("tmpfs");
        let settings = Path::new(SETTINGS);
        if settings.is_dir() {
            // The machine's own must not be read.
            let none = MountFlags::empty();
            mount("tmpfs", settings, "tmpfs", none, None).expect("tmpfs over the settings");
        }
        tool(&["ip", "link", "set", "lo", "up"]);
        Self {
            dir,
            baseline: None,
            _turn: turn,
        }
    }

    /// The same with a pure cgroup v2 view, whatever the machine has; controllers that are in use
    /// on v1 are missing there.
    pub(crate) fn ready_on_v2() -> Self {
        let mut sandbox = Self::new();
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            let none = MountFlags::empty();
            mount("cgroup2", "/sys/fs/cgroup", "cgroup2", none, None).expect("cgroup2");
        }
        sandbox.prepare();
        sandbox
    }

    /// A world in which `hello` and `hello-wasm`-like images of the probe are loaded and ran once.
    pub(crate) fn ready() -> Self {
        let mut sandbox = Self::new();
        sandbox.prepare();
        sandbox
    }

    /// A world with the probes and without a baseline: a power cut leaves other rules and settings
    /// than there were, and some tests pull the network from under it.
    pub(crate) fn loaded() -> Self {
        let sandbox = Self::new();
        sandbox.load_probes();
        sandbox
    }

    /// Loads the probes and runs each once, then marks.
    pub(crate) fn prepare(&mut self) {
        self.load_probes();
        self.run(&["run", "--rm", "probe-linux"]).ok();
        self.run(&["run", "--rm", "probe-wasm"]).ok();
        // Those that are always there are written down with the first look.
        self.run(&["network", "ls", "-q"]).ok();
        self.settle();
        self.mark();
    }

    /// Loads the probe as `probe-linux` and as `probe-wasm`.
    pub(crate) fn load_probes(&self) {
        let archive = self.dir.join("probe.tar");
        crate::fixtures::probe_image().write_oci(&archive);
        self.run(&["load", "-q", "-i", path(&archive)]).ok();
        std::fs::remove_file(&archive).expect("remove archive");
        let wasm = crate::fixtures::probe("wasm32-wasip2");
        self.run(&["image", "add", path(&wasm), "-t", "probe-wasm"])
            .ok();
        let module = crate::fixtures::probe("wasm32-wasip1");
        self.run(&["image", "add", path(&module), "-t", "probe-p1"])
            .ok();
    }

    /// Loads an image that a test has made.
    pub(crate) fn load_image(&self, image: &Image) {
        let archive = self.dir.join("image.tar");
        image.write_docker(&archive);
        self.run(&["load", "-i", path(&archive)]).ok();
        std::fs::remove_file(&archive).expect("remove archive");
    }

    /// Takes what is there now as what must be there in the end.
    pub(crate) fn mark(&mut self) {
        self.baseline = Some(Snapshot::take(&self.dir));
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub(crate) fn run_root(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Prepares the binary with this world's roots.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amphora"));
        command
            .args(args)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("AMPHORA_ROOT", self.root())
            .env("AMPHORA_RUN_ROOT", self.run_root())
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        finish(self.command(args))
    }

    /// Runs the binary with input.
    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let file = self.dir.join("stdin");
        std::fs::write(&file, input).expect("stdin file");
        let mut command = self.command(args);
        command.stdin(std::fs::File::open(&file).expect("stdin file"));
        let output = finish(command);
        std::fs::remove_file(&file).expect("stdin file");
        output
    }

    /// Waits until nobody cleans up any more; nothing may be running.
    pub(crate) fn settle(&self) {
        wait_until("the engine to settle", SETTLE, || {
            crate::leak::unsettled() == 0
        });
    }

    /// Runs `inspect` and returns the first object.
    pub(crate) fn inspect(&self, name: &str) -> serde_json::Value {
        let text = self.run(&["inspect", name]).ok();
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).expect("inspect JSON");
        list.into_iter().next().expect("one object")
    }

    /// Removes all containers, then compares with the baseline.
    #[track_caller]
    pub(crate) fn check(&self) {
        let ids = self.run(&["ps", "-aq", "--no-trunc"]).ok();
        for id in ids.split_whitespace() {
            let _ = self.run(&["rm", "-f", "-v", id]);
        }
        let Some(baseline) = &self.baseline else {
            return;
        };
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Snapshot::take(&self.dir);
            let difference = baseline.difference(&now);
            if difference.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\n{difference}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in self.run(&["ps", "-aq"]).stdout.split_whitespace() {
                let _ = self.run(&["rm", "-f", id]);
            }
            return;
        }
        self.check();
        for file in ["root", "run"] {
            let _ = std::fs::remove_dir_all(self.dir.join(file));
        }
    }
}

/// Runs a command to its end.
pub(crate) fn finish(command: Command) -> Output {
    finish_within(command, DEADLINE)
}

/// The same with a deadline of its own.
pub(crate) fn finish_within(mut command: Command, limit: Duration) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the command");
    let (out, err) = (
        child.stdout.take().expect("pipe"),
        child.stderr.take().expect("pipe"),
    );
    let out = std::thread::spawn(move || drain(out));
    let err = std::thread::spawn(move || drain(err));
    let code = wait_within(&mut child, limit);
    Output {
        code,
        stdout: out.join().expect("stdout"),
        stderr: err.join().expect("stderr"),
    }
}

fn drain(mut pipe: impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).expect("read pipe");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child with a deadline and returns its code (128 + signal).
pub(crate) fn wait_for(child: &mut Child) -> i32 {
    wait_within(child, DEADLINE)
}

fn wait_within(child: &mut Child, limit: Duration) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a command took longer than {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a condition with a deadline.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut f: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !f() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes a connection, which must come in time; what it says must do so too.
#[track_caller]
pub(crate) fn accept_within(listener: &TcpListener, limit: Duration) -> TcpStream {
    listener.set_nonblocking(true).expect("no waiting");
    let mut taken = None;
    wait_until("a connection", limit, || match listener.accept() {
        Ok((stream, _)) => {
            taken = Some(stream);
            true
        }
        Err(e) if e.kind() == ErrorKind::WouldBlock => false,
        Err(e) => panic!("accept: {e}"),
    });
    let stream = taken.expect("a connection");
    stream.set_nonblocking(false).expect("waiting");
    stream.set_read_timeout(Some(limit)).expect("a limit");
    stream
}

/// Reads a line, which must come in time, and returns it with what it was read from.
#[track_caller]
pub(crate) fn line_within<R: BufRead + Send + 'static>(
    mut from: R,
    limit: Duration,
) -> (String, R) {
    let (sender, receiver) = std::sync::mpsc::channel();
    // Who has given up does not listen any more.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = from.read_line(&mut line);
        let _ = sender.send(read.map(|_| (line, from)));
    });
    match receiver.recv_timeout(limit) {
        Ok(read) => read.expect("a line"),
        Err(_) => panic!("waited too long for a line"),
    }
}

/// Runs a tool of the test machine.
#[track_caller]
pub(crate) fn tool(words: &[&str]) -> String {
    let (program, args) = words.split_first().expect("a program");
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("start tool");
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Paths of tests are UTF-8.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Says whether a cgroup controller is there, on v1 or v2; says loudly when not.
pub(crate) fn has_controller(name: &str) -> bool {
    let root = Path::new("/sys/fs/cgroup");
    let v2 = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    // On v2 freezing is no controller's: every cgroup can.
    let freezes = name == "freezer" && root.join("cgroup.controllers").exists();
    let here = freezes || root.join(name).is_dir() || v2.split_whitespace().any(|c| c == name);
    if !here {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        skipped(&test, &format!("no cgroup controller {name}"));
    }
    here
}

/// Tells that a test is one of those that the machine of `cargo xtask machine` is for.
pub(crate) fn for_machine(test: &str) {
    let _ = writeln!(std::io::stderr(), "MACHINE: {test}");
}

/// Tells that a test cannot run here, past the capture of what a test prints: it is to be seen although
/// the test passes.
pub(crate) fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}
