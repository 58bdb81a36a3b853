//! The launch plan: everything a child process does between `clone3` and `execve`, as data.
//!
//! A plan is made by a workload, may cross a socket (its bytes in one message, its descriptors by
//! `SCM_RIGHTS`), and is carried out by [`crate::launch`] in whichever process must be the parent.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::properties::Scheduling;

/// Index into [`LaunchPlan::fds`].
pub type FdSlot = u16;

/// Version of the encoded form; a plan never outlives the pair of processes that exchange it, so
/// a mismatch is refused, not converted.
const WIRE_VERSION: u32 = 2;

/// A flat program for one child process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// `CLONE_NEW*` flags of the one `clone3`.
    pub clone_flags: u64,
    /// cgroup v2 directory for `CLONE_INTO_CGROUP`.
    pub cgroup: Option<FdSlot>,
    /// A pid namespace (or a pidfd of a process in it) the child is born into.
    pub pid_namespace: Option<FdSlot>,
    /// Descriptors that become 0, 1, 2 of the child; set by whoever owns the stdio.
    pub stdio: Option<[FdSlot; 3]>,
    /// Connected socket over which [`Op::Console`] sends the terminal's controlling side; set by
    /// whoever owns the stdio.
    pub console: Option<FdSlot>,
    /// Steps of a process that goes ahead, when there are any: the child is born where they have led
    /// it, of the same parent. For what a parent would not come back from, or cannot do to itself.
    pub lead: Vec<Op>,
    /// The steps, in order.
    pub ops: Vec<Op>,
    /// What the child becomes in the end.
    pub exec: Option<Exec>,
    /// The descriptors the plan refers to.
    #[serde(skip)]
    pub fds: Vec<OwnedFd>,
}

/// A descriptor the child has made itself and goes on using.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reg {
    /// The fresh `/dev`.
    Dev,
    /// The fresh `/dev/pts`.
    Pts,
    /// The fresh `/proc`.
    Proc,
    /// The fresh `/sys`.
    Sys,
    /// The tmpfs that holds the v1 hierarchies.
    Cgroup,
    /// A directory that holds a `null` device of our own making.
    Null,
}

/// Number of registers.
pub(crate) const REGS: usize = 6;

/// Where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dir {
    /// The container's root; symbolic links are followed inside it and never leave it.
    Root,
    /// A mount the child has just made, which nobody else can have touched; no links.
    Reg(Reg),
}

/// What to make where a target is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Create {
    /// Nothing: the target must exist.
    No,
    /// A directory, and those above it.
    Dir,
    /// An empty file, and the directories above it.
    File,
}

/// A place inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where the path begins.
    pub dir: Dir,
    /// Absolute for [`Dir::Root`], relative for a register.
    pub path: CString,
    /// What to make when it is missing.
    pub create: Create,
}

/// How the container's root becomes `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootSwitch {
    /// Out of a copy of the caller's mounts: `pivot_root`, then detach what lies beneath.
    Pivot,
    /// Out of an empty base namespace: cover `/` and chroot, nothing lies beneath.
    Cover,
}

/// The capability sets of the program, as bit masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CapSets {
    /// Effective.
    pub effective: u64,
    /// Permitted.
    pub permitted: u64,
    /// Inheritable.
    pub inheritable: u64,
    /// Ambient.
    pub ambient: u64,
}

/// One step of the child. None of them allocates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Moves the child into a v1 cgroup through its `tasks` file.
    JoinCgroup {
        /// The `tasks` file, open for writing.
        tasks: FdSlot,
    },
    /// Joins namespaces; `kind` is a mask of `CLONE_NEW*` (several need a pidfd).
    SetNs {
        /// Namespace or pidfd.
        ns: FdSlot,
        /// `CLONE_NEW*`.
        kind: i32,
    },
    /// Leaves namespaces for new ones.
    Unshare {
        /// `CLONE_NEW*`.
        flags: u64,
    },
    /// Undoes what the caller's session may have set: limits, niceness, scheduling and I/O
    /// classes, CPU affinity, timer slack, memory policy, personality, OOM score.
    ResetInherited,
    /// `setsid`.
    NewSession,
    /// Leaves the caller's session keyring for a new one.
    NewKeyring,
    /// Brings `lo` up.
    LoopbackUp,
    /// Makes the root mount the child's `/`.
    EnterRoot {
        /// The detached root mount.
        root: FdSlot,
        /// How.
        switch: RootSwitch,
    },
    /// Attaches the root mount in the child's copy of the caller's mounts, which stays its `/`.
    StageRoot {
        /// The detached root mount.
        root: FdSlot,
        /// A directory.
        at: CString,
    },
    /// Makes a root that [`Op::StageRoot`] has attached the child's `/`.
    LeaveHost,
    /// Makes a new file system and mounts it.
    NewFs {
        /// Type.
        fstype: CString,
        /// Source, shown in mount tables only.
        source: Option<CString>,
        /// Options: `key=value` or flags.
        options: Vec<(CString, Option<CString>)>,
        /// `MOUNT_ATTR_*`.
        attr: u64,
        /// Where; `None` leaves it detached in its register.
        at: Option<Place>,
        /// Keep its descriptor.
        keep: Option<Reg>,
        /// Give its root the permissions of the directory it covers, when that is there.
        inherit_mode: bool,
    },
    /// Attaches a mount that was prepared outside.
    Attach {
        /// The detached mount.
        mount: FdSlot,
        /// Where.
        at: Place,
    },
    /// Changes the attributes of the mount at a place, and its propagation unless 0.
    SetAttr {
        /// The mount.
        at: Place,
        /// `MOUNT_ATTR_*` to set.
        attr: u64,
        /// `MS_PRIVATE` and its like, or 0.
        propagation: u64,
    },
    /// Makes the place exist, as its `create` says.
    Make {
        /// What and where.
        at: Place,
    },
    /// Makes a symbolic link; an existing file of that name is left alone.
    Symlink {
        /// What it holds.
        target: CString,
        /// Where.
        at: Place,
    },
    /// Makes a node, replacing nothing but an equal one.
    Mknod {
        /// Where.
        at: Place,
        /// Type and permission bits.
        mode: u32,
        /// Device number.
        dev: u64,
        /// Owner, when not 0:0.
        owner: Option<(u32, u32)>,
    },
    /// Makes a path read-only by a mount over itself; a missing one is skipped.
    ReadonlyPath {
        /// Where.
        at: Place,
    },
    /// Hides a path: a null device over a file, an empty directory over a directory; a missing
    /// one is skipped.
    MaskPath {
        /// Where.
        at: Place,
    },
    /// `sethostname`.
    Hostname(CString),
    /// `setdomainname`.
    Domainname(CString),
    /// Writes a file below the fresh `/proc`.
    WriteProc {
        /// Path below `/proc`.
        path: CString,
        /// What to write.
        value: Vec<u8>,
    },
    /// Sets a resource limit.
    Rlimit {
        /// `RLIMIT_*`.
        resource: u32,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// Makes a terminal in the container's devpts (the fresh one, or that of the namespace the
    /// child has joined), sends its controlling side over [`LaunchPlan::console`], and makes the
    /// other side the child's stdio and, in a fresh `/dev`, its console.
    Console {
        /// Rows, 0 for unset.
        rows: u16,
        /// Columns, 0 for unset.
        cols: u16,
        /// Owner of the terminal.
        uid: u32,
    },
    /// Gives the stdio pipes to the user, so that `/dev/stdout` can be opened again.
    OwnStdio {
        /// The user.
        uid: u32,
    },
    /// Changes the working directory, which is made when missing.
    Chdir(CString),
    /// `umask`.
    Umask(u32),
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivs,
    /// Loads a seccomp filter (the bytes of an array of `sock_filter`).
    Seccomp {
        /// The filter.
        filter: Vec<u8>,
        /// `SECCOMP_FILTER_FLAG_*`.
        flags: u32,
    },
    /// Drops every capability that is not in the mask from the bounding set.
    BoundingSet(u64),
    /// Sets groups, gid and uid; capabilities survive until [`Op::Capabilities`].
    Ids {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
    },
    /// Sets the capability sets, less what the child does not have.
    Capabilities(CapSets),
    /// Puts descriptors at fixed numbers, open across the exec.
    PassFds(Vec<(FdSlot, i32)>),
    /// Tells the parent that everything is ready and waits for one byte.
    Await {
        /// Read end of a pipe, or a FIFO.
        release: FdSlot,
    },
    /// Sets the child's score for when memory runs out (digits), through the caller's `/proc`.
    OomScore(Vec<u8>),
    /// Fails as the exec would when the program is not there or may not be executed: for a child
    /// whose parent will have gone by then.
    CheckProgram,
    /// Closes whatever the rest of the plan does not need: the child is about to wait for long, and
    /// what it holds of its parent's is nobody's business.
    CloseRest,
    /// Closes a descriptor of the parent's by its number: for plans that are carried out by who made
    /// them.
    Forget(i32),
    /// Joins existing namespaces, one of users among them or not: those that let themselves be joined
    /// only with the rights in it come after it.
    Join {
        /// The user namespace.
        user: Option<FdSlot>,
        /// The others, with their `CLONE_NEW*`.
        others: Vec<(FdSlot, i32)>,
    },
    /// Keeps what is in the namespaces that are about to be joined from looking into this process.
    Hide,
    /// Leaves for a new time namespace, with these offsets, in which children are born.
    NewTime {
        /// As `/proc/<pid>/timens_offsets` takes them.
        offsets: Vec<u8>,
    },
    /// Raises hard limits to those that the plan sets later: in a user namespace nobody may.
    RaiseLimits,
    /// Becomes a user of the user namespace that was joined, without losing capabilities.
    EnterIds {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Whether supplementary groups are dropped; a namespace may forbid it.
        drop_groups: bool,
    },
    /// As [`Op::Ids`] where supplementary groups may not be changed.
    IdsOnly {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Clones a mount of the child's copy of the caller's mounts, for a caller who may not clone its
    /// own: the clone takes the place of the descriptor, which leads to the same file.
    CloneTree {
        /// The file, opened as a path.
        source: FdSlot,
        /// Its path.
        path: CString,
        /// With what is mounted below.
        recursive: bool,
        /// Attributes to set and clear, of it and of all below; propagation of all.
        changes: TreeChanges,
    },
    /// Attaches a file system that was made outside, and keeps it as one that the child has made.
    AttachFs {
        /// The detached mount.
        mount: FdSlot,
        /// Where; `None` leaves it detached in its register.
        at: Option<Place>,
        /// Its register.
        keep: Reg,
    },
    /// Lets who has the same rights look into this process again.
    Show,
    /// Sets the execution domain (`PER_*`).
    Personality(u32),
    /// Sets the scheduling policy.
    Scheduler(Scheduling),
    /// Sets the I/O priority (class and level as `ioprio_set(2)` has them).
    IoPriority(u32),
    /// Has the process run on these CPUs only (bit 0 of byte 0 is CPU 0).
    CpuAffinity(Vec<u8>),
    /// Has a security module label the program: `label` goes to the first of `files`, below a
    /// procfs that nobody else sees, that is there.
    LsmLabel {
        /// Paths below `/proc`.
        files: Vec<CString>,
        /// What is written.
        label: Vec<u8>,
    },
    /// Loads a seccomp filter that asks somebody outside, and waits until they have its listener
    /// ([`crate::launch::Pending::listener`]).
    SeccompListen {
        /// The filter.
        filter: Vec<u8>,
        /// `SECCOMP_FILTER_FLAG_*`, with that of a listener.
        flags: u32,
        /// Read end of a pipe ([`LaunchPlan::answer_filter`]).
        ack: Option<FdSlot>,
    },
    /// As [`Op::SetAttr`], which clears nothing.
    ChangeMount {
        /// The mount.
        at: Place,
        /// `MOUNT_ATTR_*` to set.
        set: u64,
        /// `MOUNT_ATTR_*` to clear.
        clear: u64,
        /// `MS_PRIVATE` and its like, or 0.
        propagation: u64,
    },
}

/// Changes of a tree of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeChanges {
    /// `MOUNT_ATTR_*` to set and to clear of the mount itself.
    pub top: (u64, u64),
    /// The same of all mounts in the tree.
    pub all: (u64, u64),
    /// `MS_PRIVATE` and its like.
    pub propagation: u64,
}

/// What the child becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exec {
    /// A program inside the container.
    Path {
        /// What the user called it.
        name: String,
        /// Paths to try, in order: one for a name with a slash, else one per `PATH` entry.
        candidates: Vec<CString>,
        /// Arguments, from `argv[0]` on.
        argv: Vec<CString>,
        /// Environment.
        envp: Vec<CString>,
    },
    /// A program by descriptor.
    Fd {
        /// The program.
        program: FdSlot,
        /// Arguments, from `argv[0]` on.
        argv: Vec<CString>,
        /// Environment.
        envp: Vec<CString>,
    },
}

/// Why bytes are not a plan, or a plan cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The bytes do not decode.
    #[error("failed to decode a launch plan")]
    Decode(#[source] postcard::Error),
    /// The plan was made by another version.
    #[error("launch plan has version {0}, not {WIRE_VERSION}")]
    Version(u32),
    /// The plan refers to a descriptor that did not come along.
    #[error("launch plan refers to descriptor {slot} of {count}")]
    Slot {
        /// The slot.
        slot: FdSlot,
        /// Number of descriptors.
        count: usize,
    },
    /// The plan ends in nothing.
    #[error("launch plan names no program")]
    NoProgram,
    /// [`Op::Console`] without [`LaunchPlan::console`].
    #[error("launch plan wants a terminal and has no socket to send it over")]
    NoConsole,
    /// [`Op::SeccompListen`] without [`LaunchPlan::answer_filter`].
    #[error("launch plan has a seccomp filter that asks and nobody who answers")]
    NoListener,
}

impl LaunchPlan {
    /// Adds a descriptor and returns its slot.
    pub fn add_fd(&mut self, fd: OwnedFd) -> FdSlot {
        self.fds.push(fd);
        FdSlot::try_from(self.fds.len() - 1).unwrap_or(FdSlot::MAX)
    }

    /// Says whether the child gets a mount namespace of its own, and a root in it.
    #[must_use]
    pub fn enters_root(&self) -> bool {
        let root = |op: &Op| matches!(op, Op::EnterRoot { .. });
        self.clone_flags & libc::CLONE_NEWNS as u64 != 0 && self.ops.iter().any(root)
    }

    /// Has the child come out of an empty mount namespace ([`crate::base::Base`]).
    pub fn cover_root(&mut self) {
        for op in &mut self.ops {
            if let Op::EnterRoot { switch, .. } = op {
                *switch = RootSwitch::Cover;
            }
        }
    }

    /// Has the child wait, as late as it still may, for a byte from `release`: what is made
    /// beside it must stand before its program runs. End of file there ends the child.
    pub fn await_byte(&mut self, release: OwnedFd) {
        let release = self.add_fd(release);
        let at = self.before_filter();
        self.ops.insert(at, Op::Await { release });
    }

    /// As [`LaunchPlan::await_byte`]; `writer` is the parent's end of the pipe: the child closes its
    /// copy, so that it sees the end of a parent that was killed, and ends too.
    pub fn await_told(&mut self, release: OwnedFd, writer: BorrowedFd<'_>) {
        self.await_byte(release);
        // Before other descriptors may take its number.
        self.ops.insert(0, Op::Forget(writer.as_raw_fd()));
    }

    /// Has the child wait for a byte from `release` when it has its namespaces and nothing in them
    /// has been changed yet.
    ///
    /// `writer` is the parent's end of the pipe: the child closes its copy, so that it sees the end
    /// of a parent that was killed, and ends too.
    pub fn await_before_root(&mut self, release: OwnedFd, writer: BorrowedFd<'_>) {
        let release = self.add_fd(release);
        let root = |op: &Op| matches!(op, Op::EnterRoot { .. } | Op::StageRoot { .. });
        let at = self.ops.iter().position(root).unwrap_or(0);
        let steps = [Op::Forget(writer.as_raw_fd()), Op::Await { release }];
        self.ops.splice(at..at, steps);
    }

    /// Has the child attach its root at the directory `at`, make its mounts there, and wait for a
    /// byte from `release` before it pivots: until then both are seen, the caller's tree and the
    /// container's.
    pub fn await_before_pivot(&mut self, at: CString, release: OwnedFd, writer: BorrowedFd<'_>) {
        let release = self.add_fd(release);
        let forget = Op::Forget(writer.as_raw_fd());
        let leaves = |op: &Op| matches!(op, Op::LeaveHost);
        let stages = |op: &Op| matches!(op, Op::StageRoot { .. });
        // What takes away or needs what is made meanwhile comes after it.
        let late = |op: &Op| {
            matches!(
                op,
                Op::WriteProc { .. } | Op::ReadonlyPath { .. } | Op::MaskPath { .. }
            ) || leaves(op)
        };
        if self.ops.iter().any(leaves) {
            let staged = self.ops.iter().position(stages).unwrap_or(0);
            let after = self.ops.iter().skip(staged).position(late).unwrap_or(0);
            let at_op = staged + after;
            self.ops
                .splice(at_op..at_op, [forget, Op::Await { release }]);
            for op in &mut self.ops {
                if let Op::StageRoot { at: place, .. } = op {
                    place.clone_from(&at);
                }
            }
            return;
        }
        let Some(enter) = self
            .ops
            .iter()
            .position(|op| matches!(op, Op::EnterRoot { .. }))
        else {
            return;
        };
        if let Some(op) = self.ops.get_mut(enter)
            && let Op::EnterRoot { root, .. } = *op
        {
            *op = Op::StageRoot { root, at };
        }
        // The first steps that go by the child's own `/`, and those that take away or need what is
        // made meanwhile: parameters of interfaces, masks.
        let late = |op: &Op| {
            matches!(
                op,
                Op::Console { .. }
                    | Op::Hostname(_)
                    | Op::Domainname(_)
                    | Op::Chdir(_)
                    | Op::WriteProc { .. }
                    | Op::ReadonlyPath { .. }
                    | Op::MaskPath { .. }
            )
        };
        let after = self.ops.iter().skip(enter).position(late);
        let at = after.map_or(self.ops.len(), |after| enter + after);
        self.ops
            .splice(at..at, [forget, Op::Await { release }, Op::LeaveHost]);
    }

    /// As [`LaunchPlan::await_byte`], for a child that waits without its parent: its program is
    /// looked for before, and it keeps nothing else open meanwhile.
    pub fn await_alone(&mut self, release: OwnedFd) {
        let release = self.add_fd(release);
        let at = self.before_filter();
        let steps = [Op::CheckProgram, Op::CloseRest, Op::Await { release }];
        self.ops.splice(at..at, steps);
        // A caller without the host's rights finds it again only by its own.
        let unprivileged = |op: &Op| matches!(op, Op::CloneTree { .. });
        if !self.lead.is_empty() && self.ops.iter().any(unprivileged) {
            self.ops.insert(at + 2, Op::Show);
        }
    }

    /// Has the program get descriptors, each at a number of its own: they are put there before a
    /// filter, which need not let descriptors be moved.
    pub fn pass_fds(&mut self, fds: impl IntoIterator<Item = (OwnedFd, i32)>) {
        let mut list = Vec::new();
        for (fd, number) in fds {
            list.push((self.add_fd(fd), number));
        }
        if list.is_empty() {
            return;
        }
        let umask = |op: &Op| matches!(op, Op::Umask(_));
        let at = self.ops.iter().rposition(umask);
        let at = at.unwrap_or(self.ops.len());
        self.ops.insert(at, Op::PassFds(list));
    }

    /// Leaves the child in its caller's session keyring.
    pub fn keep_keyring(&mut self) {
        self.ops.retain(|op| *op != Op::NewKeyring);
    }

    /// Says whether the plan's filter asks somebody outside.
    #[must_use]
    pub fn listens(&self) -> bool {
        let listens = |op: &Op| matches!(op, Op::SeccompListen { .. });
        self.ops.iter().any(listens)
    }

    /// Has the child that has loaded a filter which asks wait for a byte from `ack`; it ends when
    /// `writer`, the parent's end, goes.
    pub fn answer_filter(&mut self, ack: OwnedFd, writer: BorrowedFd<'_>) {
        let listens = |op: &Op| matches!(op, Op::SeccompListen { .. });
        let Some(at) = self.ops.iter().position(listens) else {
            return;
        };
        let slot = self.add_fd(ack);
        if let Some(Op::SeccompListen { ack, .. }) = self.ops.get_mut(at) {
            *ack = Some(slot);
        }
        // First of all: later the number may be another's.
        self.ops.insert(0, Op::Forget(writer.as_raw_fd()));
    }

    fn before_filter(&self) -> usize {
        let filter = |op: &Op| matches!(op, Op::Seccomp { .. });
        self.ops.iter().position(filter).unwrap_or(self.ops.len())
    }

    /// Returns the plan without its descriptors as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Serialising into memory fails for types without a known length only; there are none.
        postcard::to_allocvec(&(WIRE_VERSION, self)).unwrap_or_default()
    }

    /// Reads a plan back; `fds` are its descriptors in order.
    ///
    /// # Errors
    /// When the bytes are no plan of this version, or a descriptor is missing.
    pub fn decode(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Self, PlanError> {
        let (version, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(PlanError::Decode)?;
        if version != WIRE_VERSION {
            return Err(PlanError::Version(version));
        }
        let mut plan: Self = postcard::from_bytes(rest).map_err(PlanError::Decode)?;
        plan.fds = fds;
        plan.check_slots()?;
        Ok(plan)
    }

    /// Checks that the plan can be carried out as far as that shows in it.
    ///
    /// # Errors
    /// A missing descriptor, program or console socket.
    pub fn check(&self) -> Result<(), PlanError> {
        self.check_slots()?;
        if self.exec.is_none() {
            return Err(PlanError::NoProgram);
        }
        let wants_console = self.ops.iter().any(|op| matches!(op, Op::Console { .. }));
        if wants_console && self.console.is_none() {
            return Err(PlanError::NoConsole);
        }
        if self
            .ops
            .iter()
            .any(|op| matches!(op, Op::SeccompListen { ack: None, .. }))
        {
            return Err(PlanError::NoListener);
        }
        Ok(())
    }

    fn check_slots(&self) -> Result<(), PlanError> {
        let count = self.fds.len();
        let check = |slot: FdSlot| {
            if usize::from(slot) < count {
                Ok(())
            } else {
                Err(PlanError::Slot { slot, count })
            }
        };
        let fixed = [self.cgroup, self.pid_namespace, self.console];
        let stdio = self.stdio.iter().flatten().copied();
        fixed
            .into_iter()
            .flatten()
            .chain(stdio)
            .try_for_each(check)?;
        for op in self.lead.iter().chain(&self.ops) {
            match op {
                Op::Join { user, others } => {
                    let others = others.iter().map(|(slot, _)| *slot);
                    others.chain(*user).try_for_each(check)?;
                }
                Op::JoinCgroup { tasks: slot }
                | Op::SetNs { ns: slot, .. }
                | Op::EnterRoot { root: slot, .. }
                | Op::StageRoot { root: slot, .. }
                | Op::Attach { mount: slot, .. }
                | Op::AttachFs { mount: slot, .. }
                | Op::CloneTree { source: slot, .. }
                | Op::SeccompListen {
                    ack: Some(slot), ..
                }
                | Op::Await { release: slot } => check(*slot)?,
                Op::PassFds(list) => list.iter().try_for_each(|(slot, _)| check(*slot))?,
                _ => {}
            }
        }
        if let Some(Exec::Fd { program, .. }) = &self.exec {
            check(*program)?;
        }
        Ok(())
    }
}

impl Place {
    /// A path from the container's root, made as `create` says.
    #[must_use]
    pub fn root(path: CString, create: Create) -> Self {
        Self {
            dir: Dir::Root,
            path,
            create,
        }
    }

    /// A path below a mount of the child's own, made as `create` says.
    #[must_use]
    pub fn reg(reg: Reg, path: CString, create: Create) -> Self {
        Self {
            dir: Dir::Reg(reg),
            path,
            create,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.dir {
            Dir::Root => "",
            Dir::Reg(Reg::Dev) => "/dev/",
            Dir::Reg(Reg::Pts) => "/dev/pts/",
            Dir::Reg(Reg::Proc) => "/proc/",
            Dir::Reg(Reg::Sys) => "/sys/",
            Dir::Reg(Reg::Cgroup) => "/sys/fs/cgroup/",
            Dir::Reg(Reg::Null) => "masks/",
        };
        write!(f, "\"{prefix}{}\"", self.path.to_string_lossy())
    }
}

/// Says what the step does, as it reads after "failed to".
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinCgroup { .. } => write!(f, "join the cgroup"),
            Self::SetNs { kind, .. } => write!(f, "join the {} namespace", ns_name(*kind)),
            Self::Unshare { flags } => write!(f, "make new namespaces ({flags:#x})"),
            Self::ResetInherited => write!(f, "reset inherited limits"),
            Self::OomScore(score) => {
                write!(f, "set oom_score_adj to {}", String::from_utf8_lossy(score))
            }
            Self::NewSession => write!(f, "make a session"),
            Self::NewKeyring => write!(f, "make a session keyring"),
            Self::LoopbackUp => write!(f, "bring up interface \"lo\""),
            Self::EnterRoot { .. } | Self::LeaveHost => write!(f, "enter the root file system"),
            Self::StageRoot { at, .. } => {
                write!(f, "mount the root at \"{}\"", at.to_string_lossy())
            }
            Self::NewFs { fstype, at, .. } => {
                write!(f, "mount {}", fstype.to_string_lossy())?;
                at.iter().try_for_each(|at| write!(f, " at {at}"))
            }
            Self::Attach { at, .. } => write!(f, "mount {at}"),
            Self::SetAttr { at, .. } | Self::ChangeMount { at, .. } => {
                write!(f, "set mount options of {at}")
            }
            Self::Make { at } | Self::Mknod { at, .. } => write!(f, "make {at}"),
            Self::Symlink { at, .. } => write!(f, "make symbolic link {at}"),
            Self::ReadonlyPath { at } => write!(f, "make {at} read-only"),
            Self::MaskPath { at } => write!(f, "mask {at}"),
            Self::Hostname(name) => write!(f, "set host name \"{}\"", name.to_string_lossy()),
            Self::Domainname(name) => write!(f, "set domain name \"{}\"", name.to_string_lossy()),
            Self::WriteProc { path, value } => {
                let value = String::from_utf8_lossy(value);
                write!(
                    f,
                    "write \"{value}\" to \"/proc/{}\"",
                    path.to_string_lossy()
                )
            }
            Self::Rlimit {
                resource,
                soft,
                hard,
            } => {
                write!(f, "set resource limit {resource} to {soft}:{hard}")
            }
            Self::Console { .. } => write!(f, "make the terminal"),
            Self::OwnStdio { uid } => write!(f, "give the standard streams to user {uid}"),
            Self::Chdir(path) => {
                write!(
                    f,
                    "change to working directory \"{}\"",
                    path.to_string_lossy()
                )
            }
            Self::Umask(mask) => write!(f, "set umask {mask:04o}"),
            Self::NoNewPrivs => write!(f, "set no_new_privs"),
            Self::Seccomp { .. } => write!(f, "load the seccomp filter"),
            Self::BoundingSet(_) => write!(f, "drop capabilities from the bounding set"),
            Self::Ids { uid, gid, .. } => write!(f, "become user {uid}:{gid}"),
            Self::Capabilities(_) => write!(f, "set capabilities"),
            Self::PassFds(_) => write!(f, "pass descriptors"),
            Self::Await { .. } => write!(f, "wait for the start"),
            Self::CheckProgram => write!(f, "find the program"),
            Self::CloseRest | Self::Forget(_) => write!(f, "close descriptors"),
            _ => self.fmt_late(f),
        }
    }
}

impl Op {
    /// The texts of steps that few plans have.
    fn fmt_late(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join { user: Some(_), .. } => write!(f, "join the user namespace and others"),
            Self::Join { others, .. } => {
                let kind = others.iter().fold(0, |all, (_, kind)| all | kind);
                write!(f, "join the {} namespace", ns_name(kind))
            }
            Self::Hide => write!(f, "hide from other processes"),
            Self::NewTime { offsets } => {
                let offsets = String::from_utf8_lossy(offsets).trim().replace('\n', ", ");
                write!(f, "make a time namespace with the offsets \"{offsets}\"")
            }
            Self::RaiseLimits => write!(f, "raise resource limits"),
            Self::EnterIds { uid, gid, .. } => {
                write!(f, "become {uid}:{gid} of the user namespace")
            }
            Self::IdsOnly { uid, gid } => write!(f, "become user {uid}:{gid}"),
            Self::CloneTree { path, .. } => {
                write!(f, "clone mount \"{}\"", path.to_string_lossy())
            }
            Self::AttachFs { at, .. } => {
                write!(f, "mount a file system")?;
                at.iter().try_for_each(|at| write!(f, " at {at}"))
            }
            Self::Show => write!(f, "show itself"),
            Self::Personality(domain) => write!(f, "set personality {domain:#x}"),
            Self::Scheduler(wanted) => write!(f, "set scheduling policy {}", wanted.policy),
            Self::IoPriority(value) => write!(f, "set I/O priority {value:#x}"),
            Self::CpuAffinity(_) => write!(f, "set the CPU affinity"),
            Self::SeccompListen { .. } => write!(f, "load the seccomp filter that asks"),
            Self::LsmLabel { label, .. } => {
                write!(f, "set the label \"{}\"", String::from_utf8_lossy(label))
            }
            _ => write!(f, "take a step"),
        }
    }
}

fn ns_name(kind: i32) -> &'static str {
    match kind {
        libc::CLONE_NEWNET => "network",
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWCGROUP => "cgroup",
        0x80 => "time",
        _ => "container's",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_survives_the_wire() {
        let at = Place::root(c"/data".to_owned(), Create::Dir);
        let plan = LaunchPlan {
            clone_flags: 7,
            ops: vec![
                Op::Make { at },
                Op::Ids {
                    uid: 1,
                    gid: 2,
                    groups: vec![3, 4],
                },
                Op::Seccomp {
                    filter: vec![0, 255, 3],
                    flags: 0,
                },
            ],
            exec: Some(Exec::Path {
                name: "sh".into(),
                candidates: vec![c"/bin/sh".to_owned()],
                argv: vec![c"sh".to_owned(), c"".to_owned()],
                envp: vec![],
            }),
            ..LaunchPlan::default()
        };
        let back = LaunchPlan::decode(&plan.encode(), Vec::new()).unwrap();
        assert_eq!(
            (back.clone_flags, &back.ops, &back.exec),
            (7, &plan.ops, &plan.exec)
        );
    }

    #[test]
    fn decode_refuses_missing_descriptors_other_versions_and_noise() {
        let plan = LaunchPlan {
            stdio: Some([0, 0, 3]),
            ..LaunchPlan::default()
        };
        let bytes = plan.encode();
        assert!(matches!(
            LaunchPlan::decode(&bytes, Vec::new()),
            Err(PlanError::Slot { slot: 0, count: 0 })
        ));
        let mut other = bytes.clone();
        other[0] += 1;
        assert!(matches!(
            LaunchPlan::decode(&other, Vec::new()),
            Err(PlanError::Version(3))
        ));
        for cut in 0..bytes.len() {
            assert!(LaunchPlan::decode(&bytes[..cut], Vec::new()).is_err());
        }
    }

    #[test]
    fn plan_without_a_program_is_refused() {
        assert!(matches!(
            LaunchPlan::default().check(),
            Err(PlanError::NoProgram)
        ));
    }
}
