//! Carries steps out with one program or the other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use super::normal::Names;
use super::scenario::Action;
use crate::dockerd::Dockerd;
use crate::sandbox::{Output, Sandbox, finish, path, wait_for, wait_until};

/// Longest wait for what a step waits for.
const DEADLINE: Duration = Duration::from_secs(10);
/// What this word of a step becomes: the working directory.
const DIR: &str = "{dir}";

/// A started program; its output goes into files.
struct Running {
    child: Child,
    input: Option<ChildStdin>,
}

/// Prepares a program with these arguments.
type Prepare<'a> = Box<dyn Fn(&[&str]) -> Command + 'a>;

/// One program, in a working directory of its own.
pub(crate) struct Player<'a> {
    command: Prepare<'a>,
    dir: PathBuf,
    names: Names,
    running: RefCell<HashMap<String, Running>>,
}

impl<'a> Player<'a> {
    pub(crate) fn amphora(s: &'a Sandbox) -> Self {
        let program = [
            ("AMPHORA", "DOCKER"),
            ("Amphora", "Docker"),
            ("amphora", "docker"),
        ];
        let roots = [
            (path(&s.root()).to_owned(), "<root>"),
            (path(&s.run_root()).to_owned(), "<run>"),
        ];
        let replaced = roots.into_iter().map(|(from, to)| (from, to.to_owned()));
        let replaced = replaced.chain(program.map(|(from, to)| (from.into(), to.into())));
        Self::new(s, Box::new(|args| s.command(args)), replaced.collect())
    }

    pub(crate) fn docker(s: &'a Sandbox, docker: &'a Dockerd) -> Self {
        let replaced = vec![(path(&docker.root()).to_owned(), "<root>".to_owned())];
        Self::new(s, Box::new(|args| docker.command(args)), replaced)
    }

    fn new(s: &Sandbox, command: Prepare<'a>, mut replaced: Vec<(String, String)>) -> Self {
        let dir = s.dir.join("steps");
        std::fs::create_dir_all(&dir).expect("directory");
        replaced.insert(0, (path(&dir).to_owned(), DIR.to_owned()));
        Self {
            command,
            dir,
            names: Names { replaced },
            running: RefCell::default(),
        }
    }

    /// Carries a step out; the lines to record where it has a result.
    pub(crate) fn play(&self, action: &Action) -> Option<Vec<String>> {
        match action {
            Action::Run { modes, words } => {
                let output = finish(self.prepare(words));
                return Some(self.names.lines(&output, modes));
            }
            Action::Pipe { text, words } => {
                let file = self.dir.join("stdin");
                std::fs::write(&file, text).expect("input");
                let mut command = self.prepare(words);
                command.stdin(std::fs::File::open(&file).expect("input"));
                let output = finish(command);
                std::fs::remove_file(file).expect("input");
                return Some(self.names.lines(&output, &[]));
            }
            Action::Join { name } => return Some(self.names.lines(&self.join(name), &[])),
            Action::Spawn { name, words } => self.spawn(name, words),
            Action::Input { name, text } => {
                let mut running = self.running.borrow_mut();
                let input = running.get_mut(name).and_then(|r| r.input.as_mut());
                writeln!(input.expect("open input"), "{text}").expect("input");
            }
            Action::Log { container, text } => {
                return self.wait(&["logs", container], |said| said.contains(text));
            }
            Action::State { container, status } => {
                let state = ["inspect", "-f", "{{.State.Status}}", container];
                return self.wait(&state, |said| said.trim() == status);
            }
            Action::Tick => {
                let second = || {
                    let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
                    now.expect("a clock").as_secs()
                };
                let before = second();
                wait_until("the next second", DEADLINE, || second() > before + 1);
            }
            Action::Write { file, text } => {
                std::fs::write(self.dir.join(file), format!("{text}\n")).expect("file");
            }
        }
        None
    }

    fn run(&self, args: &[&str]) -> Output {
        finish((self.command)(args))
    }

    /// Waits until a command says what it is to say; what it says instead counts as a difference.
    fn wait(&self, args: &[&str], f: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let started = Instant::now();
        loop {
            let output = self.run(args);
            if f(&output.stdout) {
                return None;
            }
            if started.elapsed() > DEADLINE {
                return Some(self.names.lines(&output, &[]));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn prepare(&self, words: &[String]) -> Command {
        let words: Vec<String> = words
            .iter()
            .map(|w| w.replace(DIR, path(&self.dir)))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        (self.command)(&words)
    }

    fn spawn(&self, name: &str, words: &[String]) {
        let file = |of: &str| {
            let path = self.dir.join(format!("{name}.{of}"));
            std::fs::File::create(path).expect("output")
        };
        let mut command = self.prepare(words);
        command
            .stdin(Stdio::piped())
            .stdout(file("out"))
            .stderr(file("err"));
        let mut child = command.spawn().expect("start");
        let input = child.stdin.take();
        let before = self
            .running
            .borrow_mut()
            .insert(name.to_owned(), Running { child, input });
        assert!(before.is_none(), "{name} was started before");
    }

    fn join(&self, name: &str) -> Output {
        let mut running = self.running.borrow_mut().remove(name).expect("spawned");
        let code = wait_for(&mut running.child);
        let read = |of: &str| {
            let path = self.dir.join(format!("{name}.{of}"));
            let bytes = std::fs::read(&path).expect("output");
            std::fs::remove_file(path).expect("output");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Output {
            code,
            stdout: read("out"),
            stderr: read("err"),
        }
    }

    /// Takes away what a scenario leaves.
    pub(crate) fn clear(&self) {
        let names: Vec<String> = self.running.borrow().keys().cloned().collect();
        assert!(names.is_empty(), "never joined: {names:?}");
        for id in self
            .run(&["ps", "-aq", "--no-trunc"])
            .ok()
            .split_whitespace()
        {
            self.run(&["rm", "-f", "-v", id]).ok();
        }
        self.run(&["volume", "prune", "-f", "-a"]).ok();
        self.run(&["network", "prune", "-f"]).ok();
        let images = self
            .run(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
            .ok();
        for image in images.lines().filter(|i| *i != "probe:latest") {
            self.run(&["rmi", "-f", image]).ok();
        }
        self.run(&["image", "prune", "-f"]).ok();
        std::fs::remove_dir_all(&self.dir).expect("directory");
    }
}
