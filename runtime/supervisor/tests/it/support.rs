//! A container of a test: directories, a plan that runs busybox, and what to look at afterwards.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use amphora_supervisor::*;
use amphora_sys::LaunchPlan;
use amphora_sys::plan::Exec;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const CLONE_NEWPID: u64 = 0x2000_0000;
const ARGV: [&str; 2] = ["amphora", "supervise"];

/// Waits for something to become true.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
        let pause = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 500_000,
        };
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
}

pub(crate) struct TestBox {
    pub(crate) root: PathBuf,
    pub(crate) config: Config,
    pub(crate) exe: OwnedFd,
}

impl TestBox {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("/dev/shm/amphora-sup-{}-{n}", std::process::id()));
        let (run_dir, data_dir) = (root.join("run"), root.join("data"));
        fs::create_dir_all(&run_dir).unwrap();
        fs::create_dir_all(&data_dir).unwrap();
        let finish = ["amphora", "finish", root.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec();
        let config = Config {
            id: "0f".repeat(32),
            run_dir,
            data_dir,
            log: LogConfig::default(),
            tty: false,
            open_stdin: false,
            stdin_once: false,
            auto_remove: false,
            release: Vec::new(),
            listeners: Vec::new(),
            finish,
            restart: RestartPolicy::default(),
            prepare: Vec::new(),
            ahead: Ahead::default(),
            stop_signal: 15,
            cgroup: None,
            health: None,
            events: amphora_supervisor::EventLog::default(),
            netns: None,
            names: None,
            overlay: false,
        };
        Self {
            root,
            config,
            exe: amphora_sys::process::self_exe_readonly().unwrap(),
        }
    }

    pub(crate) fn run_dir(&self) -> OwnedFd {
        fs::File::open(&self.config.run_dir).unwrap().into()
    }

    pub(crate) fn data_dir(&self) -> OwnedFd {
        fs::File::open(&self.config.data_dir).unwrap().into()
    }

    pub(crate) fn lock(&self) -> OwnedFd {
        try_lock(self.run_dir().as_fd())
            .unwrap()
            .expect("the lock is free")
    }

    pub(crate) fn request(&self, plan: LaunchPlan) -> SpawnRequest<'_> {
        SpawnRequest {
            exe: &self.exe,
            argv: &ARGV,
            config: self.config.clone(),
            plan,
            lock: self.lock(),
            listeners: Vec::new(),
            hold: Vec::new(),
            cgroup: None,
            attach: None,
        }
    }

    pub(crate) fn start(&self, script: &str) -> Spawned {
        spawn(self.request(shell(script))).unwrap()
    }

    pub(crate) fn start_attached(&self, script: &str) -> (Spawned, Client) {
        let attach = Some(AttachMode {
            stdin: self.config.open_stdin,
            stdout: true,
            stderr: true,
        });
        let mut spawned = spawn(SpawnRequest {
            attach,
            ..self.request(shell(script))
        })
        .unwrap();
        let client = spawned.client.take().unwrap();
        (spawned, client)
    }

    pub(crate) fn adopt_request(&self) -> AdoptRequest<'_> {
        AdoptRequest {
            exe: &self.exe,
            argv: &ARGV,
            run_dir: self.config.run_dir.clone(),
            lock: self.lock(),
            listeners: Vec::new(),
            hold: Vec::new(),
            cgroup: None,
            attach: None,
        }
    }

    pub(crate) fn wait(&self) -> ExitStatus {
        wait(&self.config.run_dir, &self.config.data_dir).unwrap()
    }

    pub(crate) fn record(&self) -> ExitRecord {
        ExitRecord::read(self.data_dir().as_fd())
            .unwrap()
            .expect("an exit record")
    }

    pub(crate) fn state(&self) -> State {
        State::read(self.run_dir().as_fd())
            .unwrap()
            .expect("a state record")
    }

    /// Waits until `finish` has run under the lock, and the lock is free again.
    pub(crate) fn finished(&self) {
        until("finish", || self.root.join("finished").exists());
        until("a free lock", || !is_alive(self.run_dir().as_fd()).unwrap());
        assert_eq!(
            fs::read_to_string(self.root.join("finished")).unwrap(),
            "locked"
        );
    }

    /// The log, as (stream, text) of whole lines.
    pub(crate) fn log(&self) -> Vec<(String, String)> {
        let path = self.config.data_dir.join("logs/json.log");
        let text = fs::read_to_string(path).unwrap_or_default();
        parse_log(&text)
    }

    pub(crate) fn logged(&self, stream: &str) -> String {
        self.log()
            .into_iter()
            .filter(|(s, _)| s == stream)
            .map(|(_, t)| t)
            .collect()
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

pub(crate) fn parse_log(text: &str) -> Vec<(String, String)> {
    #[derive(serde::Deserialize)]
    struct Line {
        log: String,
        stream: String,
    }
    text.lines()
        .map(|l| serde_json::from_str::<Line>(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .map(|l| (l.stream, l.log))
        .collect()
}

pub(crate) fn shell(script: &str) -> LaunchPlan {
    program("/bin/busybox", &["sh", "-c", script])
}

pub(crate) fn program(path: &str, argv: &[&str]) -> LaunchPlan {
    let c = |text: &str| CString::new(text).unwrap();
    LaunchPlan {
        clone_flags: CLONE_NEWPID,
        exec: Some(Exec::Path {
            name: path.to_owned(),
            candidates: vec![c(path)],
            argv: argv.iter().map(|a| c(a)).collect(),
            envp: vec![c("PATH=/bin:/usr/bin")],
        }),
        ..LaunchPlan::default()
    }
}

pub(crate) fn kill(pid: i32, signal: i32) {
    use amphora_sys::pidfd;
    if let Ok(start) = pidfd::start_time(pid)
        && let Some(fd) = pidfd::open(pid, start).unwrap()
    {
        pidfd::signal(fd.as_fd(), signal).unwrap();
    }
}

/// Kills a supervisor and waits until it is gone.
pub(crate) fn kill_supervisor(test: &TestBox, pid: i32) {
    kill(pid, 9);
    reap(pid);
    assert!(
        !is_alive(test.run_dir().as_fd()).unwrap(),
        "the lock went with it"
    );
}

pub(crate) fn reap(pid: i32) {
    use rustix::process::{Pid, WaitOptions, waitpid};
    waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
}

/// Everything a client gets, by stream, and the end.
pub(crate) fn drain(client: &mut Client) -> (Vec<u8>, Vec<u8>, ExitStatus) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match client.next().unwrap() {
            ClientEvent::Stdout(bytes) => out.extend(bytes),
            ClientEvent::Stderr(bytes) => err.extend(bytes),
            ClientEvent::Exit(status) => return (out, err, status),
            ClientEvent::Lost => panic!("lost the supervisor"),
            _ => {}
        }
    }
}

/// The `finish` entry: says whether it holds the lock.
pub(crate) fn finish_main(args: &[String]) -> ExitCode {
    let root = PathBuf::from(&args[2]);
    let lock = inherited_lock().unwrap();
    let run: OwnedFd = fs::File::open(root.join("run")).unwrap().into();
    let held = is_alive(run.as_fd()).unwrap() && std::env::vars().count() == 0;
    fs::write(
        root.join("finished.new"),
        if held { "locked" } else { "not locked" },
    )
    .unwrap();
    fs::rename(root.join("finished.new"), root.join("finished")).unwrap();
    drop(lock);
    ExitCode::SUCCESS
}
