//! Containers with namespaces of users and time: how a plan's child gets into them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use amphora_spec::runtime::{Namespace, Process, Spec};
use amphora_sys::launch::launch;
use amphora_sys::pidfd::{Exit, Wait, wait};
use amphora_sys::plan::{Exec, FdSlot, LaunchPlan, Op};
use amphora_sys::userns::{self, Maps};
use rustix::process::{getegid, geteuid};

use crate::ExecutorError;
use crate::base::cstr;
use crate::ids::Ids;
use crate::kinds::{self, CLONE_NEWPID, CLONE_NEWTIME, JOINED_NAMESPACES};

type Result<T = ()> = std::result::Result<T, ExecutorError>;

/// The user namespace of a container.
#[derive(Debug)]
pub(crate) struct Users {
    ns: OwnedFd,
    pub(crate) uids: Ids,
    pub(crate) gids: Ids,
    /// Whether supplementary groups may be changed.
    pub(crate) groups: bool,
    /// Whether the caller has the host's rights, or only its own.
    pub(crate) privileged: bool,
}

fn of_kind<'a>(spec: &'a Spec, kind: &str) -> Option<&'a Namespace> {
    spec.linux.namespaces.iter().find(|ns| ns.kind == kind)
}

/// Whether the caller is the root of where it runs.
#[must_use]
pub fn is_privileged() -> bool {
    userns::is_root()
}

/// Whether plans are made for who is root in a user namespace only.
static INSIDE: AtomicBool = AtomicBool::new(false);
/// Whether that namespace lets supplementary groups be changed.
static GROUPS: AtomicBool = AtomicBool::new(true);

/// Whether the root who calls is that of a user namespace, as under an engine of a user without rights:
/// then plans are made for it from now on. Nobody else needs to ask, so it is asked when something was
/// not permitted.
#[must_use]
pub fn is_inside() -> bool {
    if INSIDE.load(Ordering::Relaxed) {
        return true;
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_whitespace().collect();
    if words.is_empty() || words == ["0", "0", "4294967295"] {
        return false;
    }
    let denied = std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"));
    GROUPS.store(!denied, Ordering::Relaxed);
    INSIDE.store(true, Ordering::Relaxed);
    true
}

/// What [`is_inside`] has found.
pub(crate) fn known_inside() -> bool {
    INSIDE.load(Ordering::Relaxed)
}

/// Whether supplementary groups may be changed in the container.
pub(crate) fn may_set_groups(users: Option<&Users>) -> bool {
    users.map_or_else(|| GROUPS.load(Ordering::Relaxed), |users| users.groups)
}

/// The two maps of a specification.
pub(crate) fn maps(spec: &Spec) -> Result<(Ids, Ids)> {
    let linux = &spec.linux;
    Ok((
        Ids::new("linux.uidMappings", &linux.uid_mappings)?,
        Ids::new("linux.gidMappings", &linux.gid_mappings)?,
    ))
}

impl Users {
    /// Makes or opens the namespace; `None` when the container has none.
    pub(crate) fn of(spec: &Spec) -> Result<Option<Self>> {
        let Some(namespace) = of_kind(spec, "user") else {
            return Ok(None);
        };
        let given = maps(spec)?;
        let users = match &namespace.path {
            Some(path) => Self::open(path, &given)?,
            None => Self::make(given)?,
        };
        users.check(&spec.process)?;
        Ok(Some(users))
    }

    /// That of a running container.
    pub(crate) fn of_running(spec: &Spec, init: BorrowedFd<'_>) -> Result<Option<Self>> {
        if of_kind(spec, "user").is_none() {
            return Ok(None);
        }
        let failed = "look into the container's user namespace";
        let ns = init.try_clone_to_owned();
        let users = Self::of_namespace(ns.map_err(ExecutorError::kernel(failed))?, failed)?;
        users.check(&spec.process)?;
        Ok(Some(users))
    }

    fn of_namespace(ns: OwnedFd, failed: &str) -> Result<Self> {
        let maps = userns::maps(ns.as_fd()).map_err(ExecutorError::kernel(failed))?;
        let read = |text: &str| {
            Ids::parse(text).ok_or_else(|| ExecutorError::Invalid(format!("failed to {failed}")))
        };
        Ok(Self {
            ns,
            uids: read(&maps.uids)?,
            gids: read(&maps.gids)?,
            groups: maps.groups,
            privileged: is_privileged(),
        })
    }

    fn open(path: &str, given: &(Ids, Ids)) -> Result<Self> {
        use rustix::fs::{Mode, OFlags, open};
        let failed = format!("open namespace \"{path}\"");
        let ns = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(ExecutorError::kernel(failed))?;
        let users = Self::of_namespace(ns, &format!("join the user namespace \"{path}\""))?;
        for (field, given, have) in [
            ("linux.uidMappings", &given.0, &users.uids),
            ("linux.gidMappings", &given.1, &users.gids),
        ] {
            if !given.ranges().is_empty() && !given.same(have) {
                return Err(ExecutorError::Invalid(format!(
                    "{field}: not those of the user namespace \"{path}\""
                )));
            }
        }
        Ok(users)
    }

    fn make((uids, gids): (Ids, Ids)) -> Result<Self> {
        let privileged = is_privileged();
        // What the kernel lets everybody map; then it wants nobody to drop groups that keep them out.
        let own =
            uids.single() == Some(geteuid().as_raw()) && gids.single() == Some(getegid().as_raw());
        let maps = Maps {
            uids: uids.text(),
            gids: gids.text(),
            groups: privileged || !own,
        };
        let mut by_helpers = |pid| {
            mapped_by_helper("newuidmap", pid, &uids)?;
            mapped_by_helper("newgidmap", pid, &gids)
        };
        let helpers: Option<&mut dyn FnMut(i32) -> io::Result<()>> = if privileged || own {
            None
        } else {
            Some(&mut by_helpers)
        };
        let ns = userns::make(&maps, helpers)
            .map_err(ExecutorError::kernel("make the user namespace"))?;
        let groups = maps.groups;
        Ok(Self {
            ns,
            uids,
            gids,
            groups,
            privileged,
        })
    }

    /// Refuses a user that is not in the namespace.
    pub(crate) fn check(&self, process: &Process) -> Result {
        check_user(process, &self.uids, &self.gids)?;
        if !self.groups && !process.user.additional_gids.is_empty() {
            return Err(ExecutorError::Invalid(
                "process.user.additionalGids: the user namespace forbids supplementary groups"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Who makes the container's tree: root of the namespace, or its user where there is no root.
    pub(crate) fn maker(&self, process: &Process) -> (u32, u32) {
        let root = (0, 0);
        if self.uids.host(0).is_some() && self.gids.host(0).is_some() {
            root
        } else {
            (process.user.uid, process.user.gid)
        }
    }

    /// Ids outside.
    pub(crate) fn outside(&self, (uid, gid): (u32, u32)) -> Option<(u32, u32)> {
        Some((self.uids.host(uid)?, self.gids.host(gid)?))
    }

    pub(crate) fn ns(&self) -> BorrowedFd<'_> {
        self.ns.as_fd()
    }

    /// What is to be done while the process still has the rights of its caller.
    pub(crate) fn before(&self, process: &Process, plan: &mut LaunchPlan) {
        plan.lead.push(Op::ResetInherited);
        if let Some(score) = process.oom_score_adj.filter(|score| *score != 0) {
            let score = score.to_string().into_bytes();
            plan.lead.push(Op::OomScore(score));
        }
        if !process.rlimits.is_empty() {
            plan.lead.push(Op::RaiseLimits);
        }
        if let Some(uid) = self.uids.host(process.user.uid)
            && self.privileged
            && !process.terminal
        {
            plan.lead.push(Op::OwnStdio { uid });
        }
    }

    /// Has the child be born in the namespace, and in the `others` that exist already.
    pub(crate) fn enter(&self, others: Vec<(FdSlot, i32)>, plan: &mut LaunchPlan) -> Result {
        let ns = self
            .ns
            .try_clone()
            .map_err(ExecutorError::kernel("hold the user namespace"))?;
        let user = Some(plan.add_fd(ns));
        plan.lead.extend([Op::Hide, Op::Join { user, others }]);
        Ok(())
    }

    /// The step with which the child becomes the one who makes the tree.
    pub(crate) fn enter_ids(&self, process: &Process) -> Op {
        let (uid, gid) = self.maker(process);
        Op::EnterIds {
            uid,
            gid,
            drop_groups: self.groups,
        }
    }
}

/// Refuses ids that a namespace does not have.
pub(crate) fn check_user(process: &Process, uids: &Ids, gids: &Ids) -> Result {
    let missing = |field: &str, id: u32| {
        Err(ExecutorError::Invalid(format!(
            "process.user.{field}: {id} is not mapped in the user namespace"
        )))
    };
    let user = &process.user;
    if uids.host(user.uid).is_none() {
        return missing("uid", user.uid);
    }
    if gids.host(user.gid).is_none() {
        return missing("gid", user.gid);
    }
    let outside = |gid: &&u32| gids.host(**gid).is_none();
    match user.additional_gids.iter().find(outside) {
        Some(gid) => missing("additionalGids", *gid),
        None => Ok(()),
    }
}

/// What only root may map is mapped by the programs that the system has for it, by what
/// `/etc/subuid` and `/etc/subgid` allow.
fn mapped_by_helper(program: &str, pid: i32, ids: &Ids) -> io::Result<()> {
    let mut argv = vec![program.to_owned(), pid.to_string()];
    for range in ids.ranges() {
        argv.extend([range.container_id, range.host_id, range.size].map(|n| n.to_string()));
    }
    let text = |text: String| CString::new(text).map_err(io::Error::other);
    let dirs = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"];
    let candidates = dirs.map(|dir| text(format!("{dir}/{program}")));
    let plan = LaunchPlan {
        exec: Some(Exec::Path {
            name: program.to_owned(),
            candidates: candidates.into_iter().collect::<io::Result<_>>()?,
            argv: argv.into_iter().map(text).collect::<io::Result<_>>()?,
            envp: Vec::new(),
        }),
        ..LaunchPlan::default()
    };
    let launched = launch(&plan).map_err(io::Error::other)?;
    match wait(launched.pidfd.as_fd(), Wait::Block)? {
        Some(Exit::Code(0)) => Ok(()),
        _ => Err(io::Error::other(format!("{program} refused"))),
    }
}

/// Makes a user namespace for the ids of a mount.
pub(crate) fn for_mount(uids: &Ids, gids: &Ids) -> io::Result<OwnedFd> {
    let maps = Maps {
        uids: uids.text(),
        gids: gids.text(),
        groups: true,
    };
    userns::make(&maps, None)
}

/// The step that makes the time namespace of a specification, if it has a new one.
pub(crate) fn new_time(spec: &Spec) -> Option<Op> {
    let namespace = of_kind(spec, "time")?;
    let mut offsets = String::new();
    for (clock, offset) in &spec.linux.time_offsets {
        offsets += &format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
    }
    namespace.path.is_none().then_some(Op::NewTime {
        offsets: offsets.into_bytes(),
    })
}

/// Has the plan's child be born in all namespaces of a running container.
///
/// # Errors
/// When the container's user namespace cannot be looked into.
pub fn join(spec: &Spec, init: OwnedFd, plan: &mut LaunchPlan) -> Result {
    let users = Users::of_running(spec, init.as_fd())?;
    join_with(users.as_ref(), spec, init, plan)
}

/// As [`join`], by what is known of the container's user namespace.
pub(crate) fn join_with(
    users: Option<&Users>,
    spec: &Spec,
    init: OwnedFd,
    plan: &mut LaunchPlan,
) -> Result {
    let ns = plan.add_fd(init);
    let mut joined = JOINED_NAMESPACES;
    if of_kind(spec, "time").is_some() {
        joined |= CLONE_NEWTIME;
    }
    // Those that it shares with us are not ours to join.
    let named = |all, ns: &Namespace| all | kinds::of(&ns.kind).unwrap_or(0);
    let listed = || spec.linux.namespaces.iter().fold(0, named);
    let Some(users) = users else {
        let mut pid = true;
        if known_inside() {
            joined = listed();
            pid = joined & CLONE_NEWPID != 0;
            joined &= !CLONE_NEWPID;
        }
        plan.pid_namespace = pid.then_some(ns);
        plan.ops.push(Op::SetNs { ns, kind: joined });
        return Ok(());
    };
    if users.privileged {
        joined |= CLONE_NEWPID;
    } else {
        joined = listed();
    }
    users.enter(vec![(ns, joined)], plan)?;
    plan.ops.push(users.enter_ids(&spec.process));
    Ok(())
}

/// The path of an open file, from which the same is found in a copy of the tree.
pub(crate) fn path_of(file: BorrowedFd<'_>) -> Result<CString> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = std::fs::read_link(link).map_err(ExecutorError::kernel("find a mount source"))?;
    cstr(path.into_os_string().into_encoded_bytes())
}
