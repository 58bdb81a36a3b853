//! What the child does between `clone3` and `execve`: system calls on prepared data, and nothing
//! else. No heap, no lock, no panic, no formatting.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::thread as thr;

use crate::launch::Report;
use crate::plan::{CapSets, Exec, FdSlot, LaunchPlan, Op, REGS, Reg};
use crate::properties::{self, Scheduling};
use crate::raw::{self, CArray, Sys};

/// Bit of [`Report::detail`]: the program's file exists.
pub(crate) const EXISTS: u32 = 1 << 31;

/// Everything the child works with.
pub(crate) struct Child<'a> {
    pub(crate) plan: &'a LaunchPlan,
    /// The plan's descriptors by number; changed by [`Child::place_fds`] in the child's own copy.
    fds: &'a mut [i32],
    argv: &'a CArray<'a>,
    envp: &'a CArray<'a>,
    pub(crate) report: &'a Report,
    /// Write end of the launch pipe.
    pipe: i32,
    /// The machine's own limit of pending signals.
    sigpending: Option<(u64, u64)>,
    /// The soft limit of descriptors, set last where ours have large numbers: new ones get larger
    /// ones, and ours close at the exec.
    files: Option<u64>,
    pub(crate) regs: [Option<OwnedFd>; REGS],
    /// The container's root, once entered.
    pub(crate) root: Option<FdSlot>,
    /// A read-only empty directory, once one has been mounted.
    pub(crate) empty: Option<OwnedFd>,
    /// The working directory was out of root's reach; try again as the user.
    retry_chdir: Option<&'a CStr>,
    /// Where the offsets of a time namespace are written.
    pub(crate) offsets: Option<OwnedFd>,
}

impl<'a> Child<'a> {
    pub(crate) fn new(
        plan: &'a LaunchPlan,
        fds: &'a mut [i32],
        argv: &'a CArray<'a>,
        envp: &'a CArray<'a>,
        report: &'a Report,
        pipe: i32,
    ) -> Self {
        let regs = [const { None }; REGS];
        Self {
            plan,
            fds,
            argv,
            envp,
            report,
            pipe,
            // Asked for here: to the child, process 1 is another.
            files: None,
            sigpending: raw::get_rlimit(1, SIGPENDING).ok(),
            regs,
            root: None,
            empty: None,
            retry_chdir: None,
            offsets: None,
        }
    }
}

/// Works the plan off. Unwinding out of here would run the parent's code in the child, so the
/// function is one that aborts instead.
pub(crate) extern "C" fn run(child: &mut Child<'_>) -> ! {
    if let Err(errno) = child.work() {
        child
            .report
            .errno
            .store(errno.raw_os_error(), Ordering::Release);
    }
    raw::exit_now(127)
}

/// Works off the steps of who goes ahead, makes the child, and ends; the child goes on from here.
pub(crate) extern "C" fn run_ahead(child: &mut Child<'_>, args: &raw::CloneArgs) -> ! {
    let made = child.lead().and_then(|()| {
        // SAFETY: no memory is shared; the child only makes system calls and ends in an exec or an
        // exit.
        unsafe { raw::clone3_fork(args) }
    });
    let result = match made {
        Ok(0) => {
            hide();
            child.steps()
        }
        Ok(pid) => {
            child.report.pid.store(pid, Ordering::Release);
            raw::exit_now(0)
        }
        Err(errno) => Err(errno),
    };
    if let Err(errno) = result {
        let errno = errno.raw_os_error();
        child.report.errno.store(errno, Ordering::Release);
    }
    raw::exit_now(127)
}

/// Nothing may look into this copy of the parent; the exec lifts it again.
pub(crate) fn hide() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

impl<'a> Child<'a> {
    fn work(&mut self) -> Sys<()> {
        hide();
        self.settle()?;
        self.steps()
    }

    fn lead(&mut self) -> Sys<()> {
        self.settle()?;
        for op in &self.plan.lead {
            self.report.step.fetch_add(1, Ordering::Release);
            self.step(op)?;
        }
        Ok(())
    }

    /// Becomes a process of its own.
    fn settle(&mut self) -> Sys<()> {
        let plan = self.plan;
        if let Some([stdin, stdout, stderr]) = plan.stdio {
            self.place_fds(&[(stdin, 0), (stdout, 1), (stderr, 2)])?;
        }
        raw::cloexec_from(3)?;
        raw::default_signals();
        rustix::process::umask(Mode::empty());
        Ok(())
    }

    fn steps(&mut self) -> Sys<()> {
        for op in &self.plan.ops {
            self.report.step.fetch_add(1, Ordering::Release);
            self.step(op)?;
        }
        self.report.step.fetch_add(1, Ordering::Release);
        if self.retry_chdir.is_some() {
            // Nobody has come to be who may go there.
            return Err(Errno::ACCESS);
        }
        self.lower_files();
        Err(self.exec())
    }

    fn step(&mut self, op: &'a Op) -> Sys<()> {
        match op {
            Op::JoinCgroup { tasks } => rustix::io::write(self.fd(*tasks)?, b"0").map(drop),
            Op::SetNs { ns, kind } => set_ns(self.fd(*ns)?, *kind),
            Op::Unshare { flags } => raw::unshare(*flags),
            Op::ResetInherited => {
                self.plain_limits();
                reset_inherited();
                Ok(())
            }
            Op::OomScore(score) => oom_score(score),
            Op::NewSession => new_session(),
            Op::NewKeyring => raw::new_session_keyring(),
            Op::LoopbackUp => loopback_up(),
            Op::EnterRoot { root, switch } => self.enter_root(*root, *switch),
            Op::StageRoot { root, at } => self.stage_root(*root, at),
            Op::LeaveHost => self.leave_host(),
            Op::NewFs {
                fstype,
                source,
                options,
                attr,
                at,
                keep,
                inherit_mode,
            } => {
                let mount = self.new_fs(fstype, source.as_deref(), options, *attr)?;
                if let Some(at) = at {
                    if *inherit_mode {
                        self.inherit_mode(mount.as_fd(), at)?;
                    }
                    match keep {
                        Some(_) => self.attach_plainly(mount.as_fd(), at)?,
                        None => self.attach(mount.as_fd(), at)?,
                    }
                }
                if let Some(slot) = keep.and_then(|reg| self.regs.get_mut(reg as usize)) {
                    *slot = Some(mount);
                }
                Ok(())
            }
            Op::Attach { mount, at } => self.attach(self.fd(*mount)?, at),
            Op::SetAttr {
                at,
                attr,
                propagation,
            } => self.set_attr(at, *attr, *propagation),
            Op::Make { at } => self.ensure(at).map(drop),
            Op::Symlink { target, at } => self.symlink(target, at),
            Op::Mknod {
                at,
                mode,
                dev,
                owner,
            } => self.mknod(at, *mode, *dev, *owner),
            Op::ReadonlyPath { at } => self.readonly_path(at),
            Op::MaskPath { at } => self.mask_path(at),
            Op::Hostname(name) => rustix::system::sethostname(name.to_bytes()),
            Op::Domainname(name) => rustix::system::setdomainname(name.to_bytes()),
            Op::WriteProc { path, value } => self.write_proc(path, value),
            Op::Chdir(path) => self.chdir(path),
            _ => self.process_step(op),
        }
    }

    /// The steps about the process itself.
    fn process_step(&mut self, op: &'a Op) -> Sys<()> {
        match op {
            Op::Rlimit {
                resource,
                soft,
                hard,
            } => self.limit(*resource, *soft, *hard),
            Op::Console { rows, cols, uid } => {
                let socket = self.plan.console.ok_or(Errno::BADF)?;
                self.console(self.fd(socket)?, *rows, *cols, *uid)
            }
            Op::OwnStdio { uid } => own_stdio(*uid),
            Op::Umask(mask) => {
                rustix::process::umask(Mode::from_bits_truncate(*mask));
                Ok(())
            }
            Op::NoNewPrivs => thr::set_no_new_privs(true),
            Op::Seccomp { filter, flags } => raw::load_seccomp(filter, *flags).map(drop),
            Op::BoundingSet(keep) => drop_bounding(*keep),
            Op::Ids { uid, gid, groups } => set_ids(*uid, *gid, groups),
            Op::Capabilities(sets) => {
                set_capabilities(sets)?;
                match self.retry_chdir.take() {
                    Some(path) => self.enter_dir(path),
                    None => Ok(()),
                }
            }
            Op::PassFds(list) => self.place_fds(list),
            Op::Await { release } => self.wait(*release),
            Op::CheckProgram => self.check_program(),
            Op::CloseRest => self.close_rest(),
            Op::Forget(number) => {
                let number = number.unsigned_abs();
                raw::close_between(number, number)
            }
            _ => self.namespace_step(op),
        }
    }

    /// A descriptor of the plan.
    pub(crate) fn fd(&self, slot: FdSlot) -> Sys<BorrowedFd<'static>> {
        let number = *self.fds.get(usize::from(slot)).ok_or(Errno::BADF)?;
        // SAFETY: the child closes nothing that the plan brought and that is still to be used; numbers
        // change in `place_fds` only, which leaves every entry valid.
        Ok(unsafe { raw::borrow(number) })
    }

    pub(crate) fn reg(&self, reg: Reg) -> Sys<BorrowedFd<'_>> {
        self.regs
            .get(reg as usize)
            .and_then(Option::as_ref)
            .map(AsFd::as_fd)
            .ok_or(Errno::BADF)
    }

    /// Has a descriptor of the plan be another from now on.
    pub(crate) fn replace_fd(&mut self, slot: FdSlot, fd: OwnedFd) -> Sys<()> {
        let number = self.fds.get_mut(usize::from(slot)).ok_or(Errno::BADF)?;
        // The exec closes it, as all others.
        *number = std::os::fd::IntoRawFd::into_raw_fd(fd);
        Ok(())
    }

    /// Moves whatever of ours has a number below `floor` out of the way.
    pub(crate) fn make_room(&mut self, floor: i32) -> Sys<()> {
        for fd in self.fds.iter_mut().filter(|fd| **fd < floor) {
            *fd = raw::dup_above(*fd, floor)?;
        }
        if self.pipe < floor {
            self.pipe = raw::dup_above(self.pipe, floor)?;
        }
        Ok(())
    }

    /// Puts descriptors at fixed numbers.
    fn place_fds(&mut self, list: &[(FdSlot, i32)]) -> Sys<()> {
        let highest = list.iter().map(|(_, number)| *number).max();
        self.make_room(highest.unwrap_or(0).saturating_add(1))?;
        for (slot, number) in list {
            let fd = *self.fds.get(usize::from(*slot)).ok_or(Errno::BADF)?;
            raw::dup_to(fd, *number)?;
        }
        Ok(())
    }

    fn chdir(&mut self, path: &'a CStr) -> Sys<()> {
        match self.enter_dir(path) {
            Err(Errno::ACCESS | Errno::PERM) => {
                self.retry_chdir = Some(path);
                Ok(())
            }
            result => result,
        }
    }

    pub(crate) fn wait(&self, release: FdSlot) -> Sys<()> {
        // SAFETY: the launch pipe stays open until the exec.
        let pipe = unsafe { raw::borrow(self.pipe) };
        rustix::io::write(pipe, &[1])?;
        let mut byte = [0u8; 1];
        loop {
            match rustix::io::read(self.fd(release)?, &mut byte) {
                Err(Errno::INTR) => {}
                Ok(1) => return Ok(()),
                Ok(_) => return Err(Errno::CANCELED),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Each is best effort: raising a hard limit needs `CAP_SYS_RESOURCE`, and a container with
    /// the caller's hard limit is better than none.
    fn plain_limits(&mut self) {
        let sigpending = self.sigpending.map(|(soft, hard)| (SIGPENDING, soft, hard));
        for (resource, soft, hard) in PLAIN_LIMITS.into_iter().chain(sigpending) {
            let Ok(now) = raw::get_rlimit(0, resource) else {
                continue;
            };
            if now != (soft, hard) && self.limit(resource, soft, hard).is_err() {
                let hard = now.1.min(hard);
                let _ = self.limit(resource, soft.min(hard), hard);
            }
        }
    }

    fn limit(&mut self, resource: u32, soft: u64, hard: u64) -> Sys<()> {
        if resource == NOFILE && self.fds.iter().any(|fd| *fd >= LARGE_FD) {
            self.files = Some(soft);
            return raw::set_rlimit(resource, hard, hard);
        }
        raw::set_rlimit(resource, soft, hard)
    }

    fn lower_files(&mut self) {
        if let Some(soft) = self.files.take()
            && let Ok((_, hard)) = raw::get_rlimit(0, NOFILE)
        {
            let _ = raw::set_rlimit(NOFILE, soft.min(hard), hard);
        }
    }

    /// Closes all but the standard streams, what the program is to have, and what is used up to
    /// the exec.
    fn close_rest(&self) -> Sys<()> {
        let number = |slot: FdSlot| self.fds.get(usize::from(slot)).copied().unwrap_or(-1);
        let mut floor = 3;
        let mut keep = [self.pipe, -1, -1, -1];
        for op in &self.plan.ops {
            match op {
                Op::Await { release } => keep[1] = number(*release),
                Op::PassFds(list) => {
                    floor = list.iter().fold(floor, |floor, (_, at)| floor.max(at + 1));
                }
                _ => {}
            }
        }
        if let Some(Exec::Fd { program, .. }) = &self.plan.exec {
            keep[2] = number(*program);
        }
        if self.retry_chdir.is_some() {
            keep[3] = self.root.map_or(-1, number);
        }
        keep.sort_unstable();
        let mut first = floor.unsigned_abs();
        for kept in keep.into_iter().filter(|fd| *fd >= floor) {
            let kept = kept.unsigned_abs();
            if kept > first {
                raw::close_between(first, kept - 1)?;
            }
            first = kept + 1;
        }
        raw::close_between(first, u32::MAX)
    }

    /// Looks for the program as [`Child::exec`] will.
    fn check_program(&self) -> Sys<()> {
        let Some(Exec::Path { candidates, .. }) = &self.plan.exec else {
            return Ok(());
        };
        let mut last = Errno::NOENT;
        for (index, path) in (0u32..).zip(candidates) {
            match may_run(path) {
                Ok(()) => return Ok(()),
                Err(errno) => last = errno,
            }
            self.report.detail.store(index, Ordering::Release);
            if !matches!(last, Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) {
                break;
            }
        }
        Err(last)
    }

    fn exec(&self) -> Errno {
        match &self.plan.exec {
            None => Errno::NOSYS,
            Some(Exec::Fd { program, .. }) => match self.fds.get(usize::from(*program)) {
                None => Errno::BADF,
                Some(fd) => raw::execveat(*fd, self.argv, self.envp),
            },
            Some(Exec::Path { candidates, .. }) => {
                let mut last = Errno::NOENT;
                for (index, path) in (0u32..).zip(candidates) {
                    last = raw::execve(path, self.argv, self.envp);
                    // A script without its interpreter looks like a missing file.
                    let found = last == Errno::NOENT && exists(path);
                    let detail = if found { index | EXISTS } else { index };
                    self.report.detail.store(detail, Ordering::Release);
                    let search = matches!(last, Errno::NOENT | Errno::ACCESS | Errno::NOTDIR);
                    if found || !search {
                        break;
                    }
                }
                last
            }
        }
    }
}

fn may_run(path: &CStr) -> Sys<()> {
    let access = rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, path, access, AtFlags::empty())?;
    let mode = rustix::fs::stat(path)?.st_mode;
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::RegularFile => Ok(()),
        _ => Err(Errno::ACCESS),
    }
}

fn exists(path: &CStr) -> bool {
    let flags = AtFlags::empty();
    rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, flags).is_ok()
}

pub(crate) fn set_ns(ns: BorrowedFd<'_>, kind: i32) -> Sys<()> {
    crate::ns::set_ns(ns, kind)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

fn new_session() -> Sys<()> {
    match rustix::process::setsid() {
        // A process that leads its group already is one that was just born into a pid namespace.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn loopback_up() -> Sys<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    raw::loopback_up(socket.as_fd())
}

/// What a process that nobody has touched starts with: (resource, soft, hard). The kernel's
/// defaults, and the descriptor limits of a system service.
const PLAIN_LIMITS: [(u32, u64, u64); 15] = {
    const MAX: u64 = u64::MAX;
    [
        (libc::RLIMIT_CPU as u32, MAX, MAX),
        (libc::RLIMIT_FSIZE as u32, MAX, MAX),
        (libc::RLIMIT_DATA as u32, MAX, MAX),
        (libc::RLIMIT_STACK as u32, 8 << 20, MAX),
        (libc::RLIMIT_CORE as u32, MAX, MAX),
        (libc::RLIMIT_RSS as u32, MAX, MAX),
        (libc::RLIMIT_NPROC as u32, MAX, MAX),
        (NOFILE, 1024, 524_288),
        (libc::RLIMIT_MEMLOCK as u32, 8 << 20, 8 << 20),
        (libc::RLIMIT_AS as u32, MAX, MAX),
        (libc::RLIMIT_LOCKS as u32, MAX, MAX),
        (libc::RLIMIT_MSGQUEUE as u32, 819_200, 819_200),
        (libc::RLIMIT_NICE as u32, 0, 0),
        (libc::RLIMIT_RTPRIO as u32, 0, 0),
        (libc::RLIMIT_RTTIME as u32, MAX, MAX),
    ]
};

/// Its default depends on the machine's memory; process 1 has it.
const SIGPENDING: u32 = libc::RLIMIT_SIGPENDING as u32;

const NOFILE: u32 = libc::RLIMIT_NOFILE as u32;
/// Descriptors from here on leave no room below the usual limit of 1024.
const LARGE_FD: i32 = 512;

/// Every CPU the cpuset allows.
static ALL_CPUS: [u8; 1024] = [u8::MAX; 1024];

/// Undoes what a shell may have set beside limits. Each part is best effort.
fn reset_inherited() {
    let _ = properties::schedule(&Scheduling::default());
    let _ = properties::affinity(&ALL_CPUS);
    let _ = properties::io_priority(0);
    raw::plain_memory_policy();
    let _ = properties::personality(0);
    let _ = thr::set_current_timer_slack(std::num::NonZeroU64::new(50_000));
    let _ = thr::set_capabilities_secure_bits(thr::CapabilitiesSecureBits::empty());
    let _ = thr::disable_transparent_huge_pages(false);
    let _ = oom_score(b"0");
}

fn oom_score(score: &[u8]) -> Sys<()> {
    let path = c"/proc/self/oom_score_adj";
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    rustix::io::write(&file, score).map(drop)
}

/// A user who is not root cannot open root's pipes again through `/dev/stdout`.
fn own_stdio(uid: u32) -> Sys<()> {
    for number in 0..3 {
        // SAFETY: used for two calls; a closed number is answered with EBADF.
        let fd = unsafe { raw::borrow(number) };
        let Ok(stat) = fstat(fd) else { continue };
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let ours = matches!(
            kind,
            rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket
        );
        if !ours || stat.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn drop_bounding(keep: u64) -> Sys<()> {
    for number in 0..64u32 {
        if keep & (1 << number) != 0 {
            continue;
        }
        let set = thr::CapabilitySet::from_bits_retain(1 << number);
        match thr::remove_capability_from_bounding_set(set) {
            Ok(()) => {}
            // One past the last capability this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> Sys<()> {
    raw::set_groups(groups)?;
    set_two_ids(uid, gid)
}

pub(crate) fn set_two_ids(uid: u32, gid: u32) -> Sys<()> {
    use rustix::fs::{Gid, Uid};
    let gid = Gid::from_raw(gid);
    thr::set_thread_res_gid(gid, gid, gid)?;
    if uid != 0 {
        thr::set_keep_capabilities(true)?;
    }
    let user = Uid::from_raw(uid);
    thr::set_thread_res_uid(user, user, user)?;
    if uid != 0 {
        thr::set_keep_capabilities(false)?;
    }
    // Where `fs.suid_dumpable` says so, another user can be looked into again.
    hide();
    Ok(())
}

fn set_capabilities(sets: &CapSets) -> Sys<()> {
    let have = thr::capabilities(None)?.permitted.bits();
    let some = |bits: u64| thr::CapabilitySet::from_bits_retain(bits & have);
    let wanted = thr::CapabilitySets {
        effective: some(sets.effective),
        permitted: some(sets.permitted),
        inheritable: some(sets.inheritable),
    };
    thr::clear_ambient_capability_set()?;
    thr::set_capabilities(None, wanted)?;
    // Others the kernel refuses. `runc spec` asks for such: they are left out, as runc does.
    let ambient = sets.ambient & sets.permitted & sets.inheritable & have;
    for number in (0..64u32).filter(|number| ambient & (1 << number) != 0) {
        let set = thr::CapabilitySet::from_bits_retain(1 << number);
        thr::configure_capability_in_ambient_set(set, true)?;
    }
    Ok(())
}
