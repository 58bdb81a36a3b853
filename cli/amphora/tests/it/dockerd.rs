//! A real dockerd beside the engine: in the test's network namespace, but with its own process
//! and mount namespace, so that it ends whole, with containerd, shims and containers, when the
//! test's thread does; its cgroups have a parent of their own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::sandbox::{Output, Sandbox, finish, path, tool, wait_until};

/// Longest dockerd may take to come up or to go.
const DEADLINE: Duration = Duration::from_secs(40);
/// Lines of its log that a failure shows.
const LOG_LINES: usize = 15;
/// Flags of the machine's own dockerd. Lowering the score takes a capability that root of a test
/// machine may lack.
const OLD: [&str; 4] = ["--storage-driver", "vfs", "--oom-score-adjust", "0"];
/// Flags of the one in a tree, which does not lower the score by itself.
const NEW: [&str; 2] = ["--storage-driver", "overlay2"];
/// Name of the parent of its containers' cgroups, before the pid of the test.
const PARENT: &str = "amphora-it-dockerd-";

/// Which iptables it calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// As Debian has it.
    Nft,
    /// The kernel's old tables, which nftables does not see.
    Legacy,
}

/// A running dockerd.
pub(crate) struct Dockerd {
    dir: PathBuf,
    /// Parent of its containers' cgroups.
    parent: String,
    /// Flags of its version.
    own: &'static [&'static str],
    flags: &'static [&'static str],
    /// Holds the namespaces; ends with the test's thread.
    holder: Child,
    /// Process 1 of its process namespace, as this test sees it.
    init: String,
    daemon: Option<Child>,
}

impl Dockerd {
    /// Starts one with an empty store, on the tmpfs of the sandbox.
    pub(crate) fn start(s: &Sandbox) -> Self {
        Self::start_with(s, Backend::Nft, &[])
    }

    /// The same with either kind of iptables, and more flags.
    pub(crate) fn start_with(s: &Sandbox, backend: Backend, flags: &'static [&str]) -> Self {
        Self::make(s, backend, flags, None)
    }

    /// The dockerd of another system's tree, with the storage driver it would choose by itself.
    pub(crate) fn start_in(s: &Sandbox, tree: &Path) -> Self {
        Self::make(s, Backend::Nft, &[], Some(tree))
    }

    fn make(s: &Sandbox, backend: Backend, flags: &'static [&str], tree: Option<&Path>) -> Self {
        sweep();
        let dir = s.dir.join("dockerd");
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).expect("directory");
        if backend == Backend::Legacy {
            for name in ["iptables", "ip6tables"] {
                let program = format!("/usr/sbin/{name}-legacy");
                std::os::unix::fs::symlink(program, bin.join(name)).expect("symlink");
            }
        }
        std::fs::write(dir.join("daemon.json"), "{}").expect("configuration");
        // What dockerd and containerd write outside their own directories stays with them.
        let script = format!(
            "{1} mount -t tmpfs tmpfs /run && mkdir -p {0}/etc/up {0}/etc/work && \
             mount -t overlay -o lowerdir=/etc,upperdir={0}/etc/up,workdir={0}/etc/work etc /etc && \
             exec tini -s -- sleep infinity",
            path(&dir),
            tree.map(|tree| enter(tree, &s.dir)).unwrap_or_default()
        );
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--pid", "--mount"])
            .args(["--fork", "--kill-child", "--mount-proc", "sh", "-ec"])
            .arg(&script)
            .stdin(Stdio::null())
            .stderr(File::create(dir.join("holder")).expect("log"))
            .spawn()
            .expect("start unshare");
        let mut made = Self {
            parent: format!("{PARENT}{}", std::process::id()),
            dir,
            own: if tree.is_some() { &NEW } else { &OLD },
            flags,
            init: String::new(),
            holder,
            daemon: None,
        };
        let holder = made.holder.id().to_string();
        wait_until("the namespaces of dockerd", DEADLINE, || {
            made.init = child_of(&holder).unwrap_or_default();
            let comm = std::fs::read_to_string(format!("/proc/{}/comm", made.init));
            comm.is_ok_and(|name| name == "tini\n")
        });
        made.start_daemon();
        made
    }

    fn start_daemon(&mut self) {
        let log = File::create(self.dir.join("log")).expect("log");
        let at = |name: &str| path(&self.dir.join(name)).to_owned();
        let daemon = self
            .inside("dockerd")
            .args(["--config-file", &at("daemon.json")])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid"), "--host", &self.host()])
            .args(["--live-restore"])
            .args(["--cgroup-parent", &format!("/{}", self.parent)])
            .args(self.own)
            .args(self.flags)
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("start dockerd");
        let daemon = self.daemon.insert(daemon);
        let started = Instant::now();
        loop {
            let ended = daemon.try_wait().expect("wait").is_some();
            if self.dir.join("sock").exists() && client(&self.dir, &["version"]).code == 0 {
                break;
            }
            assert!(
                !ended && started.elapsed() < DEADLINE,
                "dockerd does not come up:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the daemon alone, as an upgrade does, and starts it again; its containers run on.
    pub(crate) fn restart(&mut self) {
        let pid = path(&self.dir.join("pid")).to_owned();
        let stopped = self
            .inside("sh")
            .args(["-c", &format!("kill -TERM $(cat {pid})")])
            .status();
        assert!(stopped.expect("start sh").success());
        if let Some(mut daemon) = self.daemon.take() {
            let log = self.log();
            wait_until(&format!("dockerd to end:\n{log}"), DEADLINE, || {
                daemon.try_wait().expect("wait").is_some()
            });
        }
        self.start_daemon();
    }

    /// Ends everything of it and removes what it leaves in the network namespace's nftables.
    pub(crate) fn stop(self) {
        drop(self);
        tool(&["ip", "link", "del", "docker0"]);
        for table in ["filter", "nat"] {
            tool(&["nft", "delete", "table", "ip", table]);
        }
    }

    /// Runs the docker client.
    pub(crate) fn docker(&self, args: &[&str]) -> Output {
        client(&self.dir, args)
    }

    /// Prepares the docker client.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        command(&self.dir, args)
    }

    /// Where it keeps its containers.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Everything of it that is there now: processes, mounts, cgroups, files of its bookkeeping.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for dir in self.cgroups() {
            for child in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if child.path().is_dir() {
                    lines.push(format!("cgroup {}", child.path().display()));
                }
            }
        }
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.init));
        for line in mounts.unwrap_or_default().lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            lines.push(format!("mount of dockerd {point}"));
        }
        crate::leak::each_process(|pid, words, _| {
            lines.push(format!("process {pid} {}", words.join(" ")));
        });
        for root in ["data", "exec"] {
            crate::leak::files(
                &mut |line| lines.push(line),
                &self.dir,
                &self.dir.join(root),
                0,
            );
        }
        lines
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let all = hierarchies().map(|h| h.join(&self.parent));
        all.filter(|dir| dir.is_dir()).collect()
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let found = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            path(&self.dir.join("bin"))
        );
        command
            .args(["-t", &self.init, "-p", "-m", "--", program])
            .env_clear()
            .env("PATH", found)
            .stdin(Stdio::null());
        command
    }

    fn host(&self) -> String {
        format!("unix://{}", path(&self.dir.join("sock")))
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

impl Drop for Dockerd {
    /// Ends process 1 of its namespace, and with it all of them; then its cgroups are empty.
    fn drop(&mut self) {
        if self.init.is_empty() {
            let _ = self.holder.kill();
        } else {
            let _ = Command::new("kill").args(["-9", &self.init]).status();
        }
        let _ = self.holder.wait();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        let deadline = Instant::now() + DEADLINE;
        while !self.cgroups().is_empty() && Instant::now() < deadline {
            for dir in self.cgroups() {
                remove_cgroups(&dir);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = self.cgroups();
        let gone = std::fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "cgroups stay: {left:?}");
            gone.expect("remove the store of dockerd");
        }
    }
}

/// Shell text that makes a tree the root; what lies at `keep` stays there.
fn enter(tree: &Path, keep: &Path) -> String {
    format!(
        "mount --rbind {0} {0} && cd {0} && mount -t proc proc proc && mount --rbind /sys sys && \
         mount --rbind /dev dev && mount -t tmpfs tmpfs tmp && mkdir -p .{1} && \
         mount --rbind {1} .{1} && pivot_root . mnt && cd / && umount -l /mnt &&",
        path(tree),
        path(keep)
    )
}

fn client(dir: &Path, args: &[&str]) -> Output {
    finish(command(dir, args))
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command
        .arg("--host")
        .arg(format!("unix://{}", path(&dir.join("sock"))))
        .args(args)
        .env("HOME", dir)
        .env("DOCKER_CONFIG", dir.join("client"))
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .stdin(Stdio::null());
    command
}

/// Every cgroup hierarchy, v1 and v2.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(root).into_iter().flatten().flatten();
    below.map(|h| h.path()).chain([root.to_owned()])
}

/// Removes the cgroups of test processes that were killed.
fn sweep() {
    for hierarchy in hierarchies() {
        for entry in std::fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let pid = name.strip_prefix(PARENT);
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_cgroups(&entry.path());
            }
        }
    }
}

/// The first child of a process.
fn child_of(parent: &str) -> Option<String> {
    let output = Command::new("pgrep").args(["-P", parent]).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

fn remove_cgroups(dir: &Path) {
    for child in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            remove_cgroups(&child.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}
