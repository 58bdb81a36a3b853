//! The place of measurement: fresh mount, network, pid and ipc namespaces, a root that is either
//! the peers' tree or the machine's own, and one ext4 in a file for every store. When the
//! harness ends, the kernel takes all of it away: daemons, bridges, mounts.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Termination};

use anyhow::{Context, Result, ensure};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsmount, fsopen, mount, mount_bind, mount_bind_recursive, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::args::{Args, CgroupView};
use crate::fixtures::Fixtures;

/// Where the ext4 is mounted: a directory that every Debian root has.
pub(super) const STORE: &str = "/mnt";

/// What the rows need to know of the place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) fixtures: Fixtures,
    pub(super) programs: PathBuf,
    pub(super) store: PathBuf,
    /// Keeps the hugetlb controller on a v1 hierarchy: crun refuses a v2 one beside v1.
    _hugetlb: Option<OwnedFd>,
}

/// Makes what needs the machine itself (compilers, loop devices), then runs this program again in
/// fresh namespaces.
pub(super) fn enter(args: &Args) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "needs root");
    fs::create_dir_all(&args.work).with_context(|| format!("failed to make {:?}", args.work))?;
    let work = fs::canonicalize(&args.work)?;
    Fixtures::make(&work.join("fixtures"))?;
    make_store(&work.join("store.ext4"), args.store_gb)?;
    if args.rows.contains(&13) {
        super::registry::make(&work.join("registry"), args.pull_mb)?;
    }
    let before = peer_cgroups();
    let program = std::env::current_exe()?;
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--fork",
            "--kill-child",
            "--",
        ])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .arg("--inner")
        .status()
        .context("failed to run unshare")?;
    for made in peer_cgroups().iter().filter(|path| !before.contains(path)) {
        remove_cgroups(made);
    }
    ensure!(status.success(), "the harness ended with {status}");
    let _code = ExitCode::SUCCESS.report();
    Ok(())
}

/// The cgroups that peers keep when they end; namespaces do not take them along.
fn peer_cgroups() -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    let roots = hierarchies
        .map(|entry| entry.path())
        .chain([PathBuf::from("/sys/fs/cgroup")]);
    let named = roots.flat_map(|root| ["docker", "libpod_parent"].map(|name| root.join(name)));
    named.filter(|path| path.is_dir()).collect()
}

/// Removes a tree of cgroups from below; one that is in use stays.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _in_use = fs::remove_dir(dir);
}

/// A sparse file with a fresh ext4 in it.
fn make_store(path: &Path, gigabytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("failed to make {path:?}"))?;
    file.set_len(gigabytes << 30)?;
    drop(file);
    let status = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(path)
        .status();
    ensure!(
        status.context("failed to run mkfs.ext4")?.success(),
        "mkfs.ext4 failed"
    );
    Ok(())
}

/// Inside the namespaces: mounts, the new root, copies of the programs.
pub(super) fn prepare(args: &Args) -> Result<Place> {
    let work = fs::canonicalize(&args.work)?;
    let root = work.join("root");
    fs::create_dir_all(&root)?;
    let from = args.peers.as_deref().unwrap_or(Path::new("/"));
    mount_bind(from, &root).with_context(|| format!("failed to bind {from:?}"))?;
    mount_views(&root, args.cgroup)?;
    let hugetlb = hold_hugetlb();
    mount_store(&work.join("store.ext4"), &root.join("mnt"))?;
    let store = root.join("mnt");
    copy_fixtures(&work.join("fixtures"), &store.join("fixtures"))?;
    copy_programs(args, &store.join("bin"))?;
    bind_registry(&work.join("registry"), &store.join("registry"))?;
    chdir(&root)?;
    pivot_root(".", ".").context("failed to change the root")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    crate::floor::loopback_up().context("failed to bring the loopback up")?;
    Ok(Place {
        fixtures: Fixtures {
            dir: Path::new(STORE).join("fixtures"),
        },
        programs: Path::new(STORE).join("bin"),
        store: PathBuf::from(STORE),
        _hugetlb: hugetlb,
    })
}

fn mount_views(root: &Path, view: CgroupView) -> Result<()> {
    let none = MountFlags::empty();
    mount("proc", root.join("proc"), "proc", none, None).context("proc")?;
    mount("sysfs", root.join("sys"), "sysfs", none, None).context("sysfs")?;
    let cgroup = root.join("sys/fs/cgroup");
    match view {
        CgroupView::V1 => mount_bind_recursive("/sys/fs/cgroup", &cgroup).context("cgroup v1")?,
        CgroupView::V2 => mount("cgroup2", &cgroup, "cgroup2", none, None).context("cgroup2")?,
    }
    mount_bind_recursive("/dev", root.join("dev")).context("dev")?;
    for directory in ["run", "tmp"] {
        mount(
            "tmpfs",
            root.join(directory),
            "tmpfs",
            none,
            Some(c"mode=1777"),
        )?;
    }
    Ok(())
}

/// A v1 hierarchy with hugetlb alone, mounted nowhere: held by its descriptor.
fn hold_hugetlb() -> Option<OwnedFd> {
    let context = fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    fsconfig_set_flag(context.as_fd(), "hugetlb").ok()?;
    fsconfig_create(context.as_fd()).ok()?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .ok()
}

fn mount_store(file: &Path, target: &Path) -> Result<()> {
    let status = Command::new("mount")
        .args(["-o", "loop"])
        .arg(file)
        .arg(target)
        .status();
    ensure!(
        status.context("failed to run mount")?.success(),
        "failed to mount {file:?}"
    );
    Ok(())
}

fn copy_fixtures(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let status = Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status();
    ensure!(
        status.context("failed to run cp")?.success(),
        "failed to copy {from:?}"
    );
    Ok(())
}

fn copy_programs(args: &Args, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let own = std::env::current_exe()?;
    let beside = own.parent().context("a program has a directory")?;
    let amphora = args
        .amphora
        .clone()
        .unwrap_or_else(|| beside.join("amphora"));
    let floor = beside.join("floor");
    let runner = beside.join("wasmtime-runner");
    let named = [
        ("amphora", amphora),
        ("floor", floor),
        ("wasmtime-runner", runner),
    ];
    for (name, path) in named {
        if path.exists() {
            fs::copy(&path, to.join(name)).with_context(|| format!("failed to copy {path:?}"))?;
        }
    }
    Ok(())
}

fn bind_registry(from: &Path, to: &Path) -> Result<()> {
    if from.exists() {
        fs::create_dir_all(to)?;
        mount_bind(from, to).context("failed to bind the registry's storage")?;
    }
    Ok(())
}
