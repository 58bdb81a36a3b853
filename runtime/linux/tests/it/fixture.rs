//! A root file system with busybox, a spec like Docker's default, and a way to run it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use amphora_cgroup::{Cgroup, Hierarchies};
use amphora_executor::{Bundle, BundleMount, SeccompChoice, Workload};
use amphora_linux::LinuxWorkload;
use amphora_spec::runtime::{
    Capabilities, Linux, Mount, Namespace, Process, Resources, Root, Spec,
};
use amphora_sys::launch::{LaunchError, launch};
use amphora_sys::mount::clone_tree;
use amphora_sys::pidfd::{Exit, Wait, wait};

const APPLETS: [&str; 35] = [
    "sh", "cat", "ls", "id", "env", "true", "mount", "hostname", "sleep", "touch", "mkdir", "stat",
    "ps", "readlink", "printf", "grep", "head", "sort", "tr", "wc", "nice", "chmod", "dd", "sync",
    "tty", "df", "od", "find", "kill", "ln", "ip", "umount", "mknod", "chown", "unshare",
];

/// Docker's fourteen.
pub(crate) const DOCKER_CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A container in the making; gone with everything it made when dropped.
pub(crate) struct Container {
    pub(crate) dir: PathBuf,
    name: String,
    pub(crate) spec: Spec,
    pub(crate) mounts: Vec<(String, OwnedFd)>,
    pub(crate) netns: Option<OwnedFd>,
    pub(crate) seccomp: SeccompChoice,
    /// Use the v2 hierarchy that lies beside v1.
    pub(crate) v2: bool,
}

/// What a container said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) exit: Exit,
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: kind.into(),
        options: strings(options),
        ..Mount::default()
    }
}

pub(crate) fn docker_spec(args: &[&str]) -> Spec {
    let caps = strings(&DOCKER_CAPS);
    let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let safe = ["nosuid", "noexec", "nodev"];
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    let ro = ["nosuid", "noexec", "nodev", "ro"];
    Spec {
        oci_version: "1.2.0".into(),
        process: Process {
            args: strings(args),
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            capabilities: Some(Capabilities {
                bounding: caps.clone(),
                effective: caps.clone(),
                permitted: caps,
                ..Capabilities::default()
            }),
            ..Process::default()
        },
        root: Root::default(),
        hostname: "boxed".into(),
        mounts: vec![
            mount("/proc", "proc", &safe),
            mount("/dev", "tmpfs", &dev),
            mount("/dev/pts", "devpts", &pts),
            mount("/sys", "sysfs", &ro),
            mount("/sys/fs/cgroup", "cgroup", &ro),
            mount("/dev/mqueue", "mqueue", &safe),
            mount("/dev/shm", "tmpfs", &shm),
        ],
        linux: Linux {
            namespaces: kinds
                .iter()
                .map(|kind| Namespace {
                    kind: (*kind).into(),
                    path: None,
                })
                .collect(),
            masked_paths: strings(&[
                "/proc/asound",
                "/proc/acpi",
                "/proc/interrupts",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ]),
            readonly_paths: strings(&[
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ]),
            ..Linux::default()
        },
        ..Spec::default()
    }
}

impl Container {
    pub(crate) fn new(args: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("amphora-it-{}-{number}", std::process::id());
        let dir = Path::new("/dev/shm").join(&name);
        for sub in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(dir.join("root").join(sub)).unwrap();
        }
        copy_busybox(&dir.join("root/bin/busybox"));
        for applet in APPLETS {
            symlink("busybox", dir.join("root/bin").join(applet)).unwrap();
        }
        let spec = docker_spec(args);
        Self {
            dir,
            name,
            spec,
            mounts: Vec::new(),
            netns: None,
            seccomp: SeccompChoice::Default,
            v2: false,
        }
    }

    /// A container that runs a shell script.
    pub(crate) fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub(crate) fn clone_of(path: &Path) -> OwnedFd {
        let here = File::open("/").unwrap();
        clone_tree(here.as_fd(), path, false).unwrap()
    }

    pub(crate) fn bundle(&mut self) -> Bundle {
        let parent = format!("/{}", self.name);
        let resources = Resources::default();
        let cgroup = if self.v2 {
            let v2 = Hierarchies::at(Path::new("/sys/fs/cgroup/unified")).unwrap();
            v2.create(&parent, "box", &resources)
        } else {
            Cgroup::create(&parent, "box", &resources)
        };
        let cgroup = cgroup.unwrap();
        Bundle {
            id: self.name.clone(),
            spec: self.spec.clone(),
            root: Self::clone_of(&self.root()),
            mounts: std::mem::take(&mut self.mounts)
                .into_iter()
                .map(|(destination, fd)| BundleMount { destination, fd })
                .collect(),
            netns: self.netns.take(),
            join: None,
            cgroup,
            module: None,
            seccomp: self.seccomp,
            init: false,
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(&mut self) -> Result<Said, LaunchError> {
        let bundle = self.bundle();
        LinuxWorkload.validate(&bundle).unwrap();
        let mut plan = LinuxWorkload.prepare(&bundle).unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = File::open("/dev/null").unwrap();
        let stdin = plan.add_fd(null.into());
        let stdout = plan.add_fd(write);
        plan.stdio = Some([stdin, stdout, stdout]);
        // Through the wire, as the supervisor gets it.
        let fds = std::mem::take(&mut plan.fds);
        let plan = amphora_sys::LaunchPlan::decode(&plan.encode(), fds).unwrap();
        let launched = launch(&plan);
        drop(plan);
        let done = launched.map(|launched| {
            let mut out = Vec::new();
            File::from(read).read_to_end(&mut out).unwrap();
            let exit = wait(launched.pidfd.as_fd(), Wait::Block).unwrap().unwrap();
            Said {
                out: String::from_utf8_lossy(&out).into_owned(),
                exit,
            }
        });
        bundle.cgroup.remove().unwrap();
        done
    }

    /// Runs it, expects success, and returns what it said.
    pub(crate) fn says(&mut self) -> String {
        let said = self.run().unwrap();
        assert_eq!(said.exit, Exit::Code(0), "{}", said.out);
        said.out
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = fs::remove_dir(hierarchy.path().join(&self.name));
        }
    }
}

/// Copies in a process of its own: a file that is open for writing here while another test starts
/// a child could not be executed as long as that child holds the descriptor.
fn copy_busybox(to: &Path) {
    let status = std::process::Command::new("/bin/busybox")
        .args(["cp", "/bin/busybox"])
        .arg(to)
        .status();
    assert!(status.unwrap().success());
}

/// The value of a line `key:\tvalue`.
pub(crate) fn field<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim()
}

pub(crate) fn mounts_of_self() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}
