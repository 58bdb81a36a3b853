//! The whole way: a bundle like Docker's, validated, prepared, launched.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_cgroup::Cgroup;
use amphora_executor::{Bundle, BundleMount, ExecutorKind, SeccompChoice, Workload};
use amphora_spec::runtime::{
    Capabilities, Device, Linux, Memory, Mount, Namespace, Process, Resources, Spec,
};
use amphora_sys::launch;
use amphora_sys::mount::{MountAttr, RDONLY, clone_tree, set_attr};
use amphora_sys::pidfd::{Exit, Wait, wait};
use amphora_wasm::WasmWorkload;

use crate::guests::{HARNESS, Temp, Wasi, guest, module};

struct Container {
    temp: Temp,
    spec: Spec,
    mounts: Vec<BundleMount>,
    bytes: Vec<u8>,
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: kind.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

/// What the engine asks for by default.
fn spec(args: &[&str]) -> Spec {
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let caps = vec!["CAP_CHOWN".to_owned(), "CAP_NET_RAW".to_owned()];
    let args = std::iter::once(&"/app.wasm").chain(args);
    Spec {
        oci_version: "1.2.0".to_owned(),
        process: Process {
            args: args.map(|&arg| arg.to_owned()).collect(),
            env: vec!["A=b".to_owned()],
            cwd: "/".to_owned(),
            capabilities: Some(Capabilities {
                bounding: caps.clone(),
                effective: caps.clone(),
                permitted: caps,
                ..Capabilities::default()
            }),
            oom_score_adj: Some(100),
            ..Process::default()
        },
        hostname: "boxed".to_owned(),
        mounts: vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount(
                "/sys/fs/cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "ro"],
            ),
        ],
        linux: Linux {
            namespaces: namespaces
                .iter()
                .map(|&kind| Namespace {
                    kind: kind.to_owned(),
                    path: None,
                })
                .collect(),
            masked_paths: vec!["/proc/kcore".to_owned(), "/sys/firmware".to_owned()],
            readonly_paths: vec!["/proc/sys".to_owned()],
            sysctl: [(
                "net.ipv4.ip_unprivileged_port_start".to_owned(),
                "0".to_owned(),
            )]
            .into(),
            ..Linux::default()
        },
        ..Spec::default()
    }
}

fn detached(path: &Path) -> OwnedFd {
    clone_tree(File::open("/").unwrap().as_fd(), path, false).unwrap()
}

impl Container {
    fn new(wasi: Wasi, name: &str, args: &[&str]) -> Self {
        let temp = Temp::new();
        for dir in ["root/etc", "root/data", "root/srv"] {
            fs::create_dir_all(temp.join(dir)).unwrap();
        }
        Self {
            temp,
            spec: spec(args),
            mounts: Vec::new(),
            bytes: guest(wasi, name),
        }
    }

    fn workload(&self) -> WasmWorkload {
        let (cache, stamps) = (self.temp.join("aot"), self.temp.join("stamps"));
        WasmWorkload::new(cache)
            .with_stamps(stamps)
            .with_program(HARNESS.into())
    }

    fn bundle(&mut self) -> Bundle {
        let name = self.temp.join("x").to_str().unwrap().replace('/', "-");
        let cgroup = Cgroup::create("/amphora-test", &name, &Resources::default()).unwrap();
        Bundle {
            id: name,
            spec: self.spec.clone(),
            root: detached(&self.temp.join("root")),
            mounts: std::mem::take(&mut self.mounts),
            netns: None,
            join: None,
            cgroup,
            module: Some(module(&self.temp, &self.bytes)),
            seccomp: SeccompChoice::Default,
            init: false,
        }
    }

    fn run(&mut self) -> (String, Exit) {
        let bundle = self.bundle();
        let workload = self.workload();
        workload.validate(&bundle).unwrap();
        let mut plan = workload.prepare(&bundle).unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let stdin = plan.add_fd(File::open("/dev/null").unwrap().into());
        let stdout = plan.add_fd(write);
        plan.stdio = Some([stdin, stdout, stdout]);
        let launched = launch(&plan).unwrap();
        drop(plan);
        let mut text = Vec::new();
        File::from(read).read_to_end(&mut text).unwrap();
        let exit = wait(launched.pidfd.as_fd(), Wait::Block).unwrap().unwrap();
        bundle.cgroup.remove().unwrap();
        (String::from_utf8_lossy(&text).into_owned(), exit)
    }

    fn refused(&mut self) -> String {
        let bundle = self.bundle();
        let workload = self.workload();
        let result = workload
            .validate(&bundle)
            .and_then(|()| workload.prepare(&bundle).map(drop));
        bundle.cgroup.remove().unwrap();
        result.unwrap_err().to_string()
    }
}

#[test]
fn a_container_runs_to_its_end() {
    for wasi in [Wasi::P1, Wasi::P2] {
        let (text, exit) = Container::new(wasi, "hello", &["x y"]).run();
        assert_eq!(
            text,
            "Hello from Wasm!\nargs: /app.wasm x y\nenv: A=b\ncwd: /\n"
        );
        assert_eq!(exit, Exit::Code(0));
        let (_, exit) = Container::new(wasi, "probe", &["exit", "1"]).run();
        assert_eq!(exit, Exit::Code(1));
        let (text, exit) = Container::new(wasi, "probe", &["trap"]).run();
        assert_eq!(exit, Exit::Code(134));
        assert!(text.contains("wasm backtrace"), "{text}");
    }
    let container = Container::new(Wasi::P1, "hello", &[]);
    assert_eq!(container.workload().kind(), ExecutorKind::Wasm);
}

#[test]
fn no_view_of_the_kernel_is_in_reach() {
    for wasi in [Wasi::P1, Wasi::P2] {
        let (text, _) = Container::new(wasi, "files", &["list", "/"]).run();
        assert!(text.contains("dev\n"), "{text}");
        for path in ["/proc", "/sys"] {
            let (text, exit) = Container::new(wasi, "files", &["list", path]).run();
            assert!(exit == Exit::Code(1) || text.is_empty(), "{path}: {text}");
        }
        for path in ["/proc/self/mem", "/dev/stdin", "/dev/fd/3"] {
            let (text, exit) = Container::new(wasi, "files", &["read", path]).run();
            assert_eq!(exit, Exit::Code(1), "{path}: {text}");
        }
    }
}

#[test]
fn volumes_are_ordinary_mounts() {
    for wasi in [Wasi::P1, Wasi::P2] {
        let mut container = Container::new(wasi, "files", &["write", "/data/file", "text"]);
        let volume = container.temp.join("volume");
        fs::create_dir(&volume).unwrap();
        let fd = detached(&volume);
        container.mounts.push(BundleMount {
            destination: "/data".to_owned(),
            fd,
        });
        assert_eq!(container.run(), (String::new(), Exit::Code(0)));
        assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "text\n");

        let fd = detached(&volume);
        let attr = MountAttr {
            attr_set: RDONLY,
            ..MountAttr::default()
        };
        set_attr(fd.as_fd(), false, &attr).unwrap();
        container.mounts.push(BundleMount {
            destination: "/data".to_owned(),
            fd,
        });
        let before = fs::metadata(volume.join("file"))
            .unwrap()
            .modified()
            .unwrap();
        assert_eq!(container.run().1, Exit::Code(1));
        assert_eq!(
            fs::metadata(volume.join("file"))
                .unwrap()
                .modified()
                .unwrap(),
            before
        );
    }
}

#[test]
fn a_read_only_root_and_a_working_directory_hold() {
    for wasi in [Wasi::P1, Wasi::P2] {
        let mut container = Container::new(wasi, "files", &["write", "name", "x"]);
        container.spec.process.cwd = "/srv".to_owned();
        assert_eq!(container.run(), (String::new(), Exit::Code(0)));
        assert!(container.temp.join("root/srv/name").exists());
        container.spec.root.readonly = true;
        assert_eq!(container.run().1, Exit::Code(1));
    }
}

#[test]
fn a_user_without_rights_stays_without() {
    let mut container = Container::new(Wasi::P2, "files", &["read", "/etc/secret"]);
    let path = container.temp.join("root/etc/secret");
    fs::write(&path, "root only").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, mode).unwrap();
    assert_eq!(container.run().0, "root only");
    container.spec.process.user.uid = 1000;
    assert_eq!(container.run().1, Exit::Code(1));
}

#[test]
fn loopback_serves_a_container_of_its_own() {
    let (text, exit) = Container::new(Wasi::P2, "net", &["ask", "127.0.0.1:9", "x"]).run();
    assert_eq!(exit, Exit::Code(1));
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn what_a_guest_cannot_have_is_refused_by_name() {
    let mut container = Container::new(Wasi::P1, "hello", &[]);
    container.spec.linux.devices.push(Device {
        kind: "c".to_owned(),
        path: "/dev/kvm".to_owned(),
        major: 10,
        minor: 232,
        ..Device::default()
    });
    assert_eq!(
        container.refused(),
        "device \"/dev/kvm\" is not supported for Wasm containers"
    );
    let mut container = Container::new(Wasi::P1, "hello", &[]);
    container.bytes = b"#!/bin/sh\n".to_vec();
    assert_eq!(
        container.refused(),
        "not a Wasm module: it begins with 23 21 2f 62"
    );
    let text = r#"(module (import "env" "foo" (func)) (func (export "_start")))"#;
    container.bytes = wat::parse_str(text).unwrap();
    assert_eq!(
        container.refused(),
        "module imports unknown functions: env.foo"
    );
}

#[test]
fn the_memory_limit_reaches_the_guest() {
    let mut container = Container::new(Wasi::P1, "probe", &["grow", "64"]);
    let limit = Some(40 << 20);
    container.spec.linux.resources.memory = Some(Memory {
        limit,
        ..Memory::default()
    });
    let (text, exit) = container.run();
    assert_eq!(exit, Exit::Code(0));
    assert!(text.starts_with("refused after 1"), "{text}");
}
