//! Carries out a launch plan: one `clone3`, and the child works the plan off.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use amphora_spec::{Classify, ErrorKind};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::base::Base;
use crate::child::{self, Child, EXISTS};
use crate::plan::{Exec, LaunchPlan, Op, PlanError};
use crate::raw::{CArray, CloneArgs, fork_with_pidfd};

/// A running child.
#[derive(Debug)]
pub struct Launched {
    /// Its pid, as the caller sees it. The caller is the parent and must reap it.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// Why a plan did not end in a running program. Nothing of the child is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The plan is incomplete.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The child could not be made.
    #[error("failed to {step}")]
    Start {
        /// What failed.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A step of the child failed.
    #[error("failed to {step}")]
    Step {
        /// What failed.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The program could not be executed; the text is Docker's.
    #[error("{message}")]
    Command {
        /// What is wrong with which program.
        message: String,
        /// The kernel's answer.
        errno: i32,
        /// [`ErrorKind::CommandNotFound`] or [`ErrorKind::CommandNotExecutable`].
        kind: ErrorKind,
    },
    /// The child was killed on the way, by the OOM killer or by a signal.
    #[error("container process ended with {status} before it could {step}")]
    Died {
        /// The step it was in.
        step: String,
        /// How it ended.
        status: String,
    },
}

impl LaunchError {
    /// Returns the errno, when the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Start { source, .. } | Self::Step { source, .. } => source.raw_os_error(),
            Self::Command { errno, .. } => Some(*errno),
            Self::Plan(_) | Self::Died { .. } => None,
        }
    }
}

impl Classify for LaunchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Plan(_) => ErrorKind::InvalidArgument,
            Self::Start { source, .. } | Self::Step { source, .. } => {
                amphora_spec::error::io_kind(source)
            }
            Self::Command { kind, .. } => *kind,
            Self::Died { .. } => ErrorKind::Internal,
        }
    }
}

/// How far the child has come; shared with it. It is gone from the child at its `execve`.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// 0 before the first step, then 1 + index of the step; one past the last is the exec.
    pub(crate) step: AtomicU32,
    /// What the step failed with; 0 while nothing has.
    pub(crate) errno: AtomicI32,
    /// Of a failed exec: the candidate, with [`EXISTS`] when that file is there.
    pub(crate) detail: AtomicU32,
    /// The child, when one that went ahead has made it.
    pub(crate) pid: AtomicI32,
}

/// The shared page a report lives in.
#[derive(Debug)]
struct Shared(std::ptr::NonNull<Report>);

impl Shared {
    fn new() -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page =
            unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED) }?;
        std::ptr::NonNull::new(page.cast())
            .map(Self)
            .ok_or_else(|| Errno::NOMEM.into())
    }

    fn report(&self) -> &Report {
        // SAFETY: the page is mapped, zeroed (a valid `Report`) and lives as long as `self`; all
        // its fields are atomics.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no reference to it outlives `self`. Unmapping what
        // was mapped cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), 4096) };
    }
}

/// A child that works its plan off.
pub struct Pending<'a> {
    plan: &'a LaunchPlan,
    launched: Launched,
    shared: Shared,
    /// Carries one byte for [`Op::Await`], and end of file at the exec or the end.
    pipe: OwnedFd,
}

impl std::fmt::Debug for Pending<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("launched", &self.launched)
            .finish_non_exhaustive()
    }
}

/// Carries out a plan and returns when the program has been executed.
///
/// The caller becomes its parent. It should be a small process: the child starts as a copy of it.
///
/// # Errors
/// The step that failed, after the child has been reaped.
pub fn launch(plan: &LaunchPlan) -> Result<Launched, LaunchError> {
    start(plan)?.finish()
}

/// Starts to carry out a plan and returns at once.
///
/// # Errors
/// When the plan is incomplete or the child cannot be made.
pub fn start(plan: &LaunchPlan) -> Result<Pending<'_>, LaunchError> {
    start_from(plan, None)
}

/// As [`start`]; a child with a mount namespace of its own clones it from `base`, and the plan
/// must say so ([`LaunchPlan::cover_root`]).
///
/// # Errors
/// When the plan is incomplete or the child cannot be made.
pub fn start_from<'a>(
    plan: &'a LaunchPlan,
    base: Option<&Base>,
) -> Result<Pending<'a>, LaunchError> {
    plan.check()?;
    let failed = |step| move |source: io::Error| LaunchError::Start { step, source };
    let Some(exec) = &plan.exec else {
        return Err(PlanError::NoProgram.into());
    };
    let (argv, envp) = match exec {
        Exec::Path { argv, envp, .. } | Exec::Fd { argv, envp, .. } => {
            (CArray::new(argv), CArray::new(envp))
        }
    };
    let shared = Shared::new().map_err(failed("map a page for the launch report"))?;
    let (pipe, error_pipe) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| failed("make the launch pipe")(errno.into()))?;
    let mut fds: Vec<i32> = plan.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let child = Child::new(
        plan,
        &mut fds,
        &argv,
        &envp,
        shared.report(),
        error_pipe.as_raw_fd(),
    );

    let home = enter_pid_namespace(plan).map_err(failed("join the pid namespace"))?;
    let report = shared.report();
    let made = match base {
        Some(base) => made_inside(base, || make(plan, child, report)),
        None => make(plan, child, report),
    };
    if let Some(home) = home {
        leave_pid_namespace(home.as_fd()).map_err(failed("come back from the pid namespace"))?;
    }
    let launched = made.map_err(failed("make the container process"))?;
    Ok(Pending {
        plan,
        launched,
        shared,
        pipe,
    })
}

fn make(plan: &LaunchPlan, mut child: Child<'_>, report: &Report) -> io::Result<Launched> {
    if !plan.lead.is_empty() {
        return make_ahead(plan, child, report);
    }
    let mut args = CloneArgs {
        flags: plan.clone_flags,
        ..CloneArgs::default()
    };
    into_cgroup(plan, &mut args);
    // SAFETY: no memory is shared; the child goes into `child::run`, which only makes system
    // calls and ends in an exec or an exit.
    let (pid, pidfd) = unsafe { fork_with_pidfd(&args, || child::run(&mut child)) }?;
    Ok(Launched { pid, pidfd })
}

fn into_cgroup(plan: &LaunchPlan, args: &mut CloneArgs) {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    if let Some(cgroup) = plan.cgroup.and_then(|slot| plan.fds.get(usize::from(slot))) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
}

/// Has a process go ahead and make the child where it has come to, as its sibling.
fn make_ahead(plan: &LaunchPlan, mut child: Child<'_>, report: &Report) -> io::Result<Launched> {
    let mut args = CloneArgs {
        flags: plan.clone_flags | libc::CLONE_PARENT as u64,
        ..CloneArgs::default()
    };
    into_cgroup(plan, &mut args);
    let ahead = || child::run_ahead(&mut child, &args);
    // SAFETY: no memory is shared; the child goes into `child::run_ahead`, which only makes system
    // calls and ends in an exec or an exit.
    let (pid, pidfd) = unsafe { fork_with_pidfd(&CloneArgs::default(), ahead) }?;
    let wait = |options| loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Err(Errno::INTR) => {}
            result => break result,
        }
    };
    wait(WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let made = report.pid.load(Ordering::Acquire);
    if made <= 0 {
        // It has failed itself, and is reaped with the question why.
        return Ok(Launched { pid, pidfd });
    }
    wait(WaitIdOptions::EXITED)?;
    let child = rustix::process::Pid::from_raw(made).ok_or(Errno::SRCH)?;
    // It is a child of ours that nobody has reaped: the number is its own.
    let pidfd = rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty())?;
    Ok(Launched { pid: made, pidfd })
}

/// Makes the child out of the empty namespace. A caller that does not come back has no child.
fn made_inside(base: &Base, make: impl FnOnce() -> io::Result<Launched>) -> io::Result<Launched> {
    let (made, back) = base.inside(make)?;
    let launched = made?;
    if let Err(error) = back {
        let _ = crate::pidfd::signal(launched.pidfd.as_fd(), libc::SIGKILL);
        let _ = crate::pidfd::wait(launched.pidfd.as_fd(), crate::pidfd::Wait::Block);
        return Err(error);
    }
    Ok(launched)
}

/// Makes the caller's next child be born in the plan's pid namespace; returns the way back.
fn enter_pid_namespace(plan: &LaunchPlan) -> io::Result<Option<OwnedFd>> {
    let Some(ns) = plan
        .pid_namespace
        .and_then(|slot| plan.fds.get(usize::from(slot)))
    else {
        return Ok(None);
    };
    let home = crate::ns::own("pid_for_children")?;
    crate::ns::set_ns(ns.as_fd(), libc::CLONE_NEWPID)?;
    Ok(Some(home))
}

fn leave_pid_namespace(home: BorrowedFd<'_>) -> io::Result<()> {
    crate::ns::set_ns(home, libc::CLONE_NEWPID)
}

impl Pending<'_> {
    /// The child; not yet what the plan makes of it.
    #[must_use]
    pub fn launched(&self) -> &Launched {
        &self.launched
    }

    /// Waits until the child stands at [`Op::Await`], or has failed.
    ///
    /// # Errors
    /// The step that failed, after the child has been reaped.
    pub fn wait_ready(&self) -> Result<(), LaunchError> {
        if self.read_pipe() == 1 {
            Ok(())
        } else {
            Err(self.failure())
        }
    }

    /// Waits until the child has loaded its filter ([`Op::SeccompListen`]), and fetches its listener.
    ///
    /// # Errors
    /// The step that failed; or that the child's descriptors may not be fetched.
    pub fn listener(&self) -> Result<OwnedFd, LaunchError> {
        use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
        self.wait_ready()?;
        let number = self.shared.report().detail.load(Ordering::Acquire);
        let number = i32::try_from(number).unwrap_or(-1);
        pidfd_getfd(&self.launched.pidfd, number, PidfdGetfdFlags::empty()).map_err(|errno| {
            LaunchError::Start {
                step: "fetch the listener of the seccomp filter",
                source: errno.into(),
            }
        })
    }

    /// Waits until the program has been executed.
    ///
    /// # Errors
    /// The step that failed, after the child has been reaped.
    pub fn finish(self) -> Result<Launched, LaunchError> {
        while self.read_pipe() > 0 {}
        let report = self.shared.report();
        let steps = self.plan.lead.len() + self.plan.ops.len();
        let at_exec = report.step.load(Ordering::Acquire) as usize == steps + 1;
        if at_exec && report.errno.load(Ordering::Acquire) == 0 {
            return Ok(self.launched);
        }
        Err(self.failure())
    }

    fn read_pipe(&self) -> usize {
        let mut byte = [0u8; 1];
        loop {
            match rustix::io::read(&self.pipe, &mut byte) {
                Err(Errno::INTR) => {}
                Err(_) => return 0,
                Ok(n) => return n,
            }
        }
    }

    /// Reaps the child and says why it failed.
    fn failure(&self) -> LaunchError {
        let options = WaitIdOptions::EXITED;
        let status = loop {
            match waitid(WaitId::PidFd(self.launched.pidfd.as_fd()), options) {
                Err(Errno::INTR) => {}
                result => break result.ok().flatten(),
            }
        };
        let report = self.shared.report();
        let index = report.step.load(Ordering::Acquire) as usize;
        let errno = report.errno.load(Ordering::Acquire);
        let ahead = self.plan.lead.len();
        let step = index
            .checked_sub(1)
            .and_then(|index| self.plan.lead.iter().chain(&self.plan.ops).nth(index));
        let at_exec = index == ahead + self.plan.ops.len() + 1;
        let name = match step {
            Some(op) => op.to_string(),
            None if at_exec => "execute its program".to_owned(),
            None => "take over its descriptors".to_owned(),
        };
        if errno == 0 {
            let signal = status
                .as_ref()
                .and_then(|status| status.terminating_signal());
            let status = signal.map_or("no report".to_owned(), |signal| format!("signal {signal}"));
            return LaunchError::Died { step: name, status };
        }
        match &self.plan.exec {
            Some(exec) if at_exec || matches!(step, Some(Op::CheckProgram)) => {
                command_error(exec, report.detail.load(Ordering::Acquire), errno)
            }
            _ => step_error(step, name, errno),
        }
    }
}

fn step_error(op: Option<&Op>, step: String, errno: i32) -> LaunchError {
    let mount = matches!(op, Some(Op::Attach { .. } | Op::NewFs { .. }));
    let step = if mount && errno == libc::ENOTDIR {
        format!("{step}: one of source and target is a directory and the other is not")
    } else {
        step
    };
    LaunchError::Step {
        step,
        source: io::Error::from_raw_os_error(errno),
    }
}

/// Words an exec failure as Docker does; its clients look for these texts.
fn command_error(exec: &Exec, detail: u32, errno: i32) -> LaunchError {
    let (name, path) = match exec {
        Exec::Path {
            name, candidates, ..
        } => {
            let path = candidates.get((detail & !EXISTS) as usize);
            (
                name.clone(),
                path.map_or(name.clone(), |p| p.to_string_lossy().into_owned()),
            )
        }
        Exec::Fd { argv, .. } => {
            let name = argv.first().map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            (name.clone(), name)
        }
    };
    let searched = matches!(exec, Exec::Path { .. }) && !name.contains('/');
    let exists = detail & EXISTS != 0;
    let text = reason(errno);
    let (message, kind) = match errno {
        libc::ENOENT | libc::EACCES | libc::ENOTDIR if searched && !exists => (
            format!("exec: \"{name}\": executable file not found in $PATH"),
            ErrorKind::CommandNotFound,
        ),
        libc::ENOENT | libc::ENOTDIR if !exists => (
            format!("exec: \"{name}\": stat {name}: {text}"),
            ErrorKind::CommandNotFound,
        ),
        // The file is there; what is missing is its interpreter.
        libc::ENOENT => (format!("exec {path}: {text}"), ErrorKind::CommandNotFound),
        libc::EACCES => (
            format!("exec: \"{name}\": {text}"),
            ErrorKind::CommandNotExecutable,
        ),
        _ => (
            format!("exec {path}: {text}"),
            ErrorKind::CommandNotExecutable,
        ),
    };
    LaunchError::Command {
        message,
        errno,
        kind,
    }
}

fn reason(errno: i32) -> String {
    match errno {
        libc::ENOENT => "no such file or directory".into(),
        libc::EACCES => "permission denied".into(),
        libc::ENOEXEC => "exec format error".into(),
        libc::ENOTDIR => "not a directory".into(),
        libc::ETXTBSY => "text file busy".into(),
        libc::E2BIG => "argument list too long".into(),
        libc::ELOOP => "too many levels of symbolic links".into(),
        _ => io::Error::from_raw_os_error(errno).to_string(),
    }
}

/// A child that works off a plan which its parent keeps elsewhere. Readable (or hung up) when
/// there is something to hear: then [`Parked::finish`] does not wait.
#[derive(Debug)]
pub struct Parked {
    launched: Launched,
    shared: Shared,
    pipe: OwnedFd,
}

impl Pending<'_> {
    /// Lets go of the plan, for a parent that has other things to do meanwhile.
    #[must_use]
    pub fn park(self) -> Parked {
        Parked {
            launched: self.launched,
            shared: self.shared,
            pipe: self.pipe,
        }
    }
}

impl Parked {
    /// Waits until the program has been executed; `plan` is the one it was started with.
    ///
    /// # Errors
    /// As [`Pending::finish`].
    pub fn finish(self, plan: &LaunchPlan) -> Result<Launched, LaunchError> {
        let pending = Pending {
            plan,
            launched: self.launched,
            shared: self.shared,
            pipe: self.pipe,
        };
        pending.finish()
    }
}

impl AsFd for Parked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
