//! The contestants as command lines.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::host::Place;
use super::timing::Timed;

/// Longest wait for a daemon to answer.
const DAEMON_START: Duration = Duration::from_secs(30);

/// A whole engine: it runs images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Amphora,
    Podman,
    Docker,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Amphora, Self::Podman, Self::Docker];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Amphora => "amphora",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// An engine with a store of its own; a daemon ends with it.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) kind: Kind,
    pub(super) program: PathBuf,
    globals: Vec<String>,
    store: PathBuf,
    daemon: Option<Child>,
}

/// Environment of everything that is started.
pub(super) fn environment() -> Vec<(String, String)> {
    let pairs = [
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Finds a peer in the directories of [`environment`].
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let (_, path) = environment().into_iter().next()?;
    path.split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
}

/// A command with the measuring environment and no input.
pub(super) fn command(program: &Path, args: &[String]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(environment())
        .stdin(Stdio::null());
    command
}

/// Runs a set-up command and returns its standard output.
pub(super) fn output(program: &Path, args: &[String]) -> Result<String> {
    let what = || format!("{} {}", program.display(), args.join(" "));
    let output = command(program, args).output().with_context(what)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.reverse();
    ensure!(
        output.status.success(),
        "{} ended with {}: {}",
        what(),
        output.status,
        lines.join(" / ")
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

impl Engine {
    /// An engine with a store named `label`; starts a daemon where there is one.
    pub(super) fn new(kind: Kind, place: &Place, label: &str) -> Result<Self> {
        let program = match kind {
            Kind::Amphora => Some(place.programs.join("amphora")).filter(|path| path.exists()),
            Kind::Podman => find("podman"),
            Kind::Docker => find("docker").filter(|_| find("dockerd").is_some()),
        };
        let program = program.context("not installed")?;
        let store = place.store.join(format!("{}-{label}", kind.name()));
        let run = format!("/run/bench-{}-{label}", kind.name());
        std::fs::create_dir_all(&store)?;
        std::fs::create_dir_all(&run)?;
        let root = store.display().to_string();
        let socket = format!("unix://{run}/docker.sock");
        let globals = match kind {
            Kind::Amphora => strings(&["--root", &root, "--run-root", &run]),
            Kind::Podman => strings(&[
                "--root",
                &root,
                "--runroot",
                &run,
                "--cgroup-manager",
                "cgroupfs",
            ]),
            Kind::Docker => strings(&["-H", &socket]),
        };
        let mut engine = Self {
            kind,
            program,
            globals,
            store,
            daemon: None,
        };
        if kind == Kind::Docker {
            engine.start_daemon(&root, &run, &socket)?;
        }
        Ok(engine)
    }

    fn start_daemon(&mut self, root: &str, run: &str, socket: &str) -> Result<()> {
        let dockerd = find("dockerd").context("not installed")?;
        let log = std::fs::File::create(self.store.with_extension("log"))?;
        let exec = format!("{run}/exec");
        let pid = format!("{run}/docker.pid");
        let args = [
            "--data-root",
            root,
            "--exec-root",
            &exec,
            "--pidfile",
            &pid,
            "-H",
            socket,
        ];
        let mut dockerd = command(&dockerd, &strings(&args));
        self.daemon = Some(dockerd.stdout(log.try_clone()?).stderr(log).spawn()?);
        let deadline = Instant::now() + DAEMON_START;
        while self.output(&["version"]).is_err() {
            let ended = self.daemon.as_mut().map(Child::try_wait);
            let alive = matches!(ended, Some(Ok(None)));
            if !alive || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.store.with_extension("log"))?;
                let last: Vec<&str> = log.lines().rev().take(2).collect();
                bail!("dockerd does not answer: {}", last.join(" / "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub(super) fn args(&self, args: &[&str]) -> Vec<String> {
        self.globals.iter().cloned().chain(strings(args)).collect()
    }

    pub(super) fn output(&self, args: &[&str]) -> Result<String> {
        output(&self.program, &self.args(args))
    }

    pub(super) fn timed(&self, args: &[&str]) -> Result<Timed> {
        Timed::new(&self.program, &self.args(args), &environment())
    }

    /// Loads the image `hello` and shows that it runs.
    pub(super) fn load_hello(&self, place: &Place) -> Result<()> {
        let archive = place.fixtures.hello_archive();
        self.output(&["load", "-i", archive.to_str().context("a path of text")?])?;
        let said = self.run_output(&["--rm", self.hello()])?;
        ensure!(said.trim() == "hello", "it said {said:?} instead of hello");
        Ok(())
    }

    /// Name of the loaded image.
    pub(super) fn hello(&self) -> &'static str {
        match self.kind {
            Kind::Amphora | Kind::Docker => "hello",
            Kind::Podman => "docker.io/library/hello",
        }
    }

    /// Arguments of a run. Podman's default of a process limit is switched off: no engine sets a
    /// limit here, and a pure v2 view beside v1 has no controller for it.
    pub(super) fn run_args(&self, options: &[&str]) -> Vec<String> {
        let limit: &[&str] = match self.kind {
            Kind::Amphora | Kind::Docker => &[],
            Kind::Podman => &["--pids-limit", "0"],
        };
        let mut args = self.args(&["run"]);
        args.extend(strings(limit));
        args.extend(strings(options));
        args
    }

    pub(super) fn run_output(&self, options: &[&str]) -> Result<String> {
        output(&self.program, &self.run_args(options))
    }

    pub(super) fn run_timed(&self, options: &[&str]) -> Result<Timed> {
        Timed::new(&self.program, &self.run_args(options), &environment())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = i32::try_from(daemon.id())
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _reaped = daemon.wait();
        }
    }
}
