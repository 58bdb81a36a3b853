//! Guests built from source, and the runner around them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use amphora_artifact::inspect_wasm;
use amphora_executor::Module;
use amphora_spec::Digest;
use amphora_wasm::{AotCache, Compiler, Profile, RunnerConfig};
use sha2::{Digest as _, Sha256};

/// Longest that any guest here may take.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const HARNESS: &str = env!("CARGO_BIN_EXE_wasm-harness");

/// What the kernel calls that program.
const RUNNER_COMM: &str = "wasm-harness";

/// Generation of WASI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wasi {
    P1,
    P2,
}

/// Builds every guest once and returns the folder of one generation.
fn built(wasi: Wasi) -> &'static Path {
    static P1: OnceLock<PathBuf> = OnceLock::new();
    static P2: OnceLock<PathBuf> = OnceLock::new();
    let (cell, target) = match wasi {
        Wasi::P1 => (&P1, "wasm32-wasip1"),
        Wasi::P2 => (&P2, "wasm32-wasip2"),
    };
    cell.get_or_init(|| {
        let exe = std::env::current_exe().unwrap();
        // <target dir>/<triple>/release/deps/it-<hash>
        let target_dir = exe.ancestors().nth(4).unwrap().join("guests");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/guests");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args([
                "build",
                "--release",
                "--quiet",
                "--target",
                target,
                "--target-dir",
            ])
            .arg(&target_dir)
            .current_dir(source)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .status()
            .unwrap();
        assert!(status.success(), "guests do not build for {target}");
        target_dir.join(target).join("release")
    })
}

/// Returns a guest's bytes.
pub(crate) fn guest(wasi: Wasi, name: &str) -> Vec<u8> {
    std::fs::read(built(wasi).join(format!("{name}.wasm"))).unwrap()
}

/// A temporary directory that goes away with the test.
pub(crate) struct Temp(PathBuf);

impl Temp {
    pub(crate) fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = PathBuf::from(format!(
            "/dev/shm/amphora-wasm-{}-{number}",
            std::process::id()
        ));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes bytes into a file and opens it as a module.
pub(crate) fn module(temp: &Temp, bytes: &[u8]) -> Module {
    let digest = Digest::from_sha256(Sha256::digest(bytes).into());
    let path = temp.join(&format!("{}.wasm", digest.short()));
    std::fs::write(&path, bytes).unwrap();
    Module {
        file: File::open(path).unwrap().into(),
        digest,
        name: "app.wasm".to_owned(),
        function: None,
    }
}

pub(crate) fn cache(temp: &Temp) -> AotCache {
    AotCache::open(&temp.join("aot"), &temp.join("stamps"), Profile::Isolated).unwrap()
}

pub(crate) fn compiler() -> Compiler {
    Compiler::with_program(HARNESS.into())
}

/// One run of a guest.
pub(crate) struct Run {
    pub(crate) config: RunnerConfig,
    pub(crate) temp: Temp,
    artefact: OwnedFd,
    stdin: Stdio,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Prepares a guest with `args` behind its name; its root is an empty directory.
    pub(crate) fn new(wasi: Wasi, name: &str, args: &[&str]) -> Self {
        Self::of(&guest(wasi, name), args)
    }

    /// The same with any module.
    pub(crate) fn of(bytes: &[u8], args: &[&str]) -> Self {
        let temp = Temp::new();
        let artefact = cache(&temp)
            .ensure(&module(&temp, bytes), &compiler())
            .unwrap()
            .file;
        let kind = inspect_wasm(bytes).unwrap().kind;
        let mut config = RunnerConfig::new(kind);
        config.args.push("app.wasm".to_owned());
        config.args.extend(args.iter().map(|&arg| arg.to_owned()));
        let root = temp.join("root");
        std::fs::create_dir(&root).unwrap();
        config.root = root.to_str().unwrap().to_owned();
        Self {
            config,
            temp,
            artefact,
            stdin: Stdio::null(),
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        PathBuf::from(&self.config.root)
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Starts the runner; the shell places the two descriptors.
    pub(crate) fn spawn(&mut self) -> Child {
        let config = self.config.to_file().unwrap();
        let path = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        let child = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" wasm-run 3<$1 4<$2"])
            .arg(HARNESS)
            .args([path(&config), path(&self.artefact)])
            .env_clear()
            .env("HOST_SECRET", "leak")
            .stdin(std::mem::replace(&mut self.stdin, Stdio::null()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The shell has opened the descriptors when the runner's name appears. What stands there
        // before the shell's own name is this thread's: the kernel lets a parent go on early.
        let comm = format!("/proc/{}/comm", child.id());
        let end = Instant::now() + DEADLINE;
        while std::fs::read_to_string(&comm).unwrap().trim() != RUNNER_COMM {
            assert!(Instant::now() < end, "shell does not start the runner");
            std::thread::yield_now();
        }
        child
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Outcome {
        let child = self.spawn();
        finish(child)
    }
}

/// Waits for a runner and collects its output.
pub(crate) fn finish(mut child: Child) -> Outcome {
    let drain = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = drain(
        child
            .stdout
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
    );
    let stderr = drain(
        child
            .stderr
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
    );
    let pid = rustix::process::Pid::from_child(&child);
    let flags = rustix::process::PidfdFlags::empty();
    let pidfd = rustix::process::pidfd_open(pid, flags).unwrap();
    let mut fds = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    let timeout = rustix::event::Timespec::try_from(DEADLINE).unwrap();
    if rustix::event::poll(&mut fds, Some(&timeout)) == Ok(0) {
        let _ = child.kill();
        let _ = child.wait();
        panic!("guest does not end");
    }
    let status = child.wait().unwrap();
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    Outcome {
        code: status.code(),
        stdout,
        stderr,
    }
}

/// Writes to a child's standard input and closes it.
pub(crate) fn feed(child: &mut Child, text: &[u8]) {
    child.stdin.take().unwrap().write_all(text).unwrap();
}
