//! A runtime and the place in which it is driven.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::case::{Case, numbers};
use crate::turn::Turn;

/// Whom the cases are run against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    Ours,
    Runc,
    Crun,
    /// Claims success and does nothing.
    Idle,
}

/// A thread's own mount and network namespace with a runtime, while no other test runs.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) program: PathBuf,
    pub(crate) dir: PathBuf,
    /// How long a state is waited for.
    pub(crate) patience: Duration,
    /// How long a step may take.
    pub(crate) deadline: Duration,
    version: Vec<u32>,
    _turn: Rc<Turn>,
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What cases may call in a container.
const APPLETS: &str = "awk cat chmod chown cp cut dd df echo env grep head hostname id ionice ip kill \
                       ls mkdir mknod mount readlink rm sed sh sleep sort stat stty tail touch tr \
                       true tty umount uname wc";

/// Where an installed program is.
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(std::env::split_paths(PATH));
    dirs.into_iter()
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

impl World {
    /// Takes the turn and makes the place; nothing, said loudly, when the runtime is not installed.
    pub(crate) fn new(runtime: Runtime) -> Option<Self> {
        let name = match runtime {
            Runtime::Runc => "runc",
            Runtime::Crun => "crun",
            Runtime::Ours | Runtime::Idle => "",
        };
        let found = installed(name);
        if !name.is_empty() && found.is_none() {
            println!("SKIPPED: conformance::{name}: {name} is not installed");
            return None;
        }
        let turn = Turn::take();
        let dir = place();
        let program = match runtime {
            Runtime::Ours => {
                let link = dir.join("amphora-runc");
                std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_amphora"), &link).unwrap();
                link
            }
            Runtime::Idle => PathBuf::from("/bin/true"),
            Runtime::Runc | Runtime::Crun => found.expect("found"),
        };
        if runtime == Runtime::Crun {
            // It refuses a hybrid hierarchy; on a pure one this changes nothing.
            let none = MountFlags::empty();
            mount("cgroup2", "/sys/fs/cgroup", "cgroup2", none, None).expect("cgroup2");
        }
        let said = Command::new(&program)
            .arg("--version")
            .output()
            .expect("version");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = said.split_whitespace().nth(2).unwrap_or_default();
        Some(Self {
            runtime,
            version: numbers(version),
            program,
            dir,
            patience: Duration::from_millis(if runtime == Runtime::Idle { 20 } else { 10_000 }),
            deadline: Duration::from_secs(30),
            _turn: Rc::new(turn),
        })
    }

    /// Does not wait long for what is not expected to come.
    pub(crate) fn impatient(&self) -> Self {
        Self {
            patience: Duration::from_millis(100),
            deadline: Duration::from_secs(2),
            ..self.clone()
        }
    }

    /// Name and version, as known differences have them.
    pub(crate) fn version(&self) -> (&'static str, Vec<u32>) {
        let name = match self.runtime {
            Runtime::Ours => "ours",
            Runtime::Runc => "runc",
            Runtime::Crun => "crun",
            Runtime::Idle => "idle",
        };
        (name, self.version.clone())
    }

    /// Name and version for people.
    pub(crate) fn title(&self) -> String {
        let (name, version) = self.version();
        let version: Vec<String> = version.iter().map(u32::to_string).collect();
        format!("{name} {}", version.join("."))
    }

    /// On cgroup v2 crun wants to raise a limit before it loads its program.
    pub(crate) fn has_device_rules(&self) -> bool {
        const CAP_SYS_RESOURCE: u64 = 1 << 24;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mine = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mine = mine.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        self.runtime != Runtime::Crun || mine.is_some_and(|set| set & CAP_SYS_RESOURCE != 0)
    }

    /// What the machine lacks for a case, as this runtime sees it.
    pub(crate) fn lacks(&self, case: &Case) -> Option<String> {
        let root = Path::new("/sys/fs/cgroup");
        let v2 = std::fs::read_to_string(root.join("cgroup.controllers"));
        let has = |need: &str| match need {
            "device-rules" => self.has_device_rules(),
            "v1" => v2.is_err(),
            "v2" => v2.is_ok(),
            "freezer" if v2.is_ok() => true,
            path if path.starts_with('/') => Path::new(path).exists(),
            name => match &v2 {
                Ok(list) => list.split_whitespace().any(|there| there == name),
                Err(_) => root.join(name).is_dir(),
            },
        };
        case.needs.iter().find(|need| !has(need)).cloned()
    }

    /// Says that a case cannot run here. It counts as a test that is skipped for ours only, and not
    /// where it is about the version of cgroups that the machine does not have.
    pub(crate) fn skip(&self, name: &str, missing: &str) {
        if self.runtime == Runtime::Ours && !matches!(missing, "v1" | "v2") {
            println!("SKIPPED: conformance::{name}: the machine has no {missing}");
        } else {
            println!("not possible here: {name}: no {missing}");
        }
    }
}

/// Enters namespaces of the thread's own and makes a directory with a root file system to copy.
fn place() -> PathBuf {
    // SAFETY: only the calling thread moves, and it shares no descriptor table assumption.
    #[expect(unsafe_code, reason = "a test's own namespaces")]
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }.expect("unshare");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("private mounts");
    let dir = std::env::temp_dir().join("amphora-conformance");
    std::fs::create_dir_all(&dir).expect("directory");
    let none = MountFlags::empty();
    mount("tmpfs", &dir, "tmpfs", none, c"mode=755").expect("tmpfs");
    let rootfs = dir.join("rootfs");
    for name in ["bin", "proc", "sys", "dev", "etc", "tmp", "mnt"] {
        std::fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in APPLETS.split_whitespace() {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    dir
}
