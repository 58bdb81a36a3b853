//! The plan that both kinds of workload share: everything up to the program.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use amphora_spec::runtime::Process;
use amphora_sys::mount::RDONLY;
use amphora_sys::plan::{Create, Exec, FdSlot, LaunchPlan, Op, Place, RootSwitch, TreeChanges};
use amphora_sys::seccomp::FLAG_NEW_LISTENER;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::bundle::SeccompChoice;
use crate::kinds::{self, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID};
use crate::mounts::Mounts;
use crate::seccomp::{self, Filter};
use crate::userns::{self, Users};
use crate::{Bundle, ExecutorError, caps, cgroup, options, properties, validate};

type Result<T = ()> = std::result::Result<T, ExecutorError>;

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a workload decides about its plan.
#[derive(Debug)]
pub struct BaseOptions {
    /// The compiled seccomp filter; [`filter`] makes the one the bundle asks for.
    pub seccomp: Option<Filter>,
    /// What the plan ends in.
    pub program: Program,
}

/// What a plan ends in.
#[derive(Debug)]
pub enum Program {
    /// `process.args` of the spec, found inside the container.
    Entrypoint,
    /// A program by descriptor, not visible in the container.
    Fd {
        /// The program.
        program: OwnedFd,
        /// Arguments, from `argv[0]` on.
        args: Vec<String>,
        /// Environment.
        env: Vec<String>,
        /// Descriptors and the numbers they have in the program.
        fds: Vec<(OwnedFd, i32)>,
    },
}

pub(crate) fn cstr(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).into_owned();
        ExecutorError::Invalid(format!("{text:?} contains a null byte"))
    })
}

fn cstrs(list: &[String]) -> Result<Vec<CString>> {
    list.iter().map(|text| cstr(text.as_str())).collect()
}

/// Builds the plan: namespaces, cgroup, root, mounts, limits, credentials, filter, program.
///
/// Stdio is left to whoever launches it: [`LaunchPlan::stdio`] or, with `process.terminal`,
/// [`LaunchPlan::console`].
///
/// # Errors
/// Whatever in the bundle is malformed, unsupported, or refused by the kernel.
pub fn base_plan(bundle: &Bundle, options: BaseOptions) -> Result<LaunchPlan> {
    if let Some(init) = &bundle.join {
        return join_plan(bundle, init, options);
    }
    let mut plan = LaunchPlan::default();
    let process = &bundle.spec.process;
    let linux = &bundle.spec.linux;
    let users = Users::of(&bundle.spec)?;
    let late = namespaces(bundle, users.as_ref(), &mut plan)?;
    plan.ops.extend(late);
    match &users {
        Some(users) => {
            plan.ops.push(users.enter_ids(process));
            // Its file system of queues belongs to who makes it.
            let own = plan.clone_flags & kinds::flag(CLONE_NEWIPC);
            plan.clone_flags &= !own;
            plan.ops
                .extend((own != 0).then_some(Op::Unshare { flags: own }));
        }
        None => plan.ops.push(Op::ResetInherited),
    }
    plan.ops.extend([Op::NewSession, Op::NewKeyring]);

    enter_root(bundle, users.as_ref(), &mut plan)?;
    Mounts::new(bundle, users.as_ref(), &mut plan).build()?;
    if users.is_some() || userns::known_inside() {
        plan.ops.push(Op::LeaveHost);
    }
    plan.ops.extend(console(process));
    if !bundle.spec.hostname.is_empty() {
        plan.ops
            .push(Op::Hostname(cstr(bundle.spec.hostname.as_str())?));
    }
    if !bundle.spec.domainname.is_empty() {
        plan.ops
            .push(Op::Domainname(cstr(bundle.spec.domainname.as_str())?));
    }
    plan.ops.push(Op::Chdir(cstr(process.cwd.as_str())?));
    let attr = if bundle.spec.root.readonly { RDONLY } else { 0 };
    let propagation = options::propagation_of(&linux.rootfs_propagation).unwrap_or(0);
    if attr != 0 || propagation != 0 {
        let at = Place::root(c"/".to_owned(), Create::No);
        plan.ops.push(Op::SetAttr {
            at,
            attr,
            propagation,
        });
    }
    properties::steps(&bundle.spec, false, &mut plan)?;
    let filter = options.seccomp.map(load);
    credentials(process, users.as_ref(), filter, &mut plan)?;
    program(process, options.program, &mut plan)?;
    Ok(plan)
}

/// The steps towards the root file system.
fn enter_root(bundle: &Bundle, users: Option<&Users>, plan: &mut LaunchPlan) -> Result {
    let root = bundle
        .root
        .try_clone()
        .map_err(ExecutorError::kernel("hold the root"))?;
    let path = match users {
        Some(users) if !users.privileged => Some(userns::path_of(root.as_fd())?),
        _ => None,
    };
    let root = plan.add_fd(root);
    if users.is_none() && !userns::known_inside() {
        let switch = RootSwitch::Pivot;
        plan.ops.push(Op::EnterRoot { root, switch });
        return Ok(());
    }
    plan.ops.extend(path.map(|path| Op::CloneTree {
        source: root,
        path,
        recursive: true,
        changes: TreeChanges {
            propagation: options::propagation_of("slave").unwrap_or(0),
            ..TreeChanges::default()
        },
    }));
    // To whoever is not the machine's root, the kernel gives a new /proc and /sys only where the old
    // ones are still in sight.
    plan.ops.push(Op::StageRoot {
        root,
        at: c"/".to_owned(),
    });
    Ok(())
}

/// The step that loads a filter.
fn load(filter: Filter) -> Op {
    let (filter, flags) = (filter.program, filter.flags);
    if flags & FLAG_NEW_LISTENER == 0 {
        return Op::Seccomp { filter, flags };
    }
    let ack = None;
    Op::SeccompListen { filter, flags, ack }
}

/// The terminal that the process wants.
fn console(process: &Process) -> Option<Op> {
    let size = process.console_size.unwrap_or_default();
    process.terminal.then_some(Op::Console {
        rows: size.height,
        cols: size.width,
        uid: process.user.uid,
    })
}

/// Builds the plan of an exec session: into the container's cgroup and namespaces, limits,
/// credentials, filter, program.
fn join_plan(bundle: &Bundle, init: &OwnedFd, options: BaseOptions) -> Result<LaunchPlan> {
    let mut plan = LaunchPlan::default();
    let process = &bundle.spec.process;
    cgroup::enter(&bundle.cgroup, &mut plan)?;
    let users = Users::of_running(&bundle.spec, init.as_fd())?;
    let init = init
        .try_clone()
        .map_err(ExecutorError::kernel("hold the container's process"))?;
    if let Some(users) = &users {
        users.before(process, &mut plan);
    } else {
        // What is reset is reached through the host's /proc.
        plan.ops.push(Op::ResetInherited);
        if let Some(score) = process.oom_score_adj.filter(|score| *score != 0) {
            plan.ops.push(Op::OomScore(score.to_string().into_bytes()));
        }
    }
    userns::join_with(users.as_ref(), &bundle.spec, init, &mut plan)?;
    plan.ops.extend([Op::NewSession, Op::NewKeyring]);
    plan.ops.extend(console(process));
    plan.ops.push(Op::Chdir(cstr(process.cwd.as_str())?));
    properties::steps(&bundle.spec, true, &mut plan)?;
    let filter = options.seccomp.map(load);
    credentials(process, users.as_ref(), filter, &mut plan)?;
    program(process, options.program, &mut plan)?;
    Ok(plan)
}

/// Sets the namespaces to be born into, and returns the steps that the child takes for the rest.
fn namespaces(bundle: &Bundle, users: Option<&Users>, plan: &mut LaunchPlan) -> Result<Vec<Op>> {
    let mut ops = Vec::new();
    let mut pid_namespace = None;
    let mut joined = Vec::new();
    cgroup::enter(&bundle.cgroup, plan)?;
    if let Some(netns) = &bundle.netns {
        let ns = netns.try_clone();
        let ns = ns.map_err(ExecutorError::kernel("hold the network namespace"))?;
        joined.push((plan.add_fd(ns), CLONE_NEWNET));
    }
    for ns in &bundle.spec.linux.namespaces {
        let kind = match ns.kind.as_str() {
            "network" if bundle.netns.is_some() => continue,
            "user" => continue,
            "time" if ns.path.is_none() => continue,
            name => kinds::of(name)
                .ok_or_else(|| ExecutorError::unsupported(format!("linux.namespaces: {name}")))?,
        };
        if let Some(path) = &ns.path {
            let slot = open_namespace(path, plan)?;
            if kind == CLONE_NEWPID && users.is_none() {
                pid_namespace = Some(slot);
            } else {
                joined.push((slot, kind));
            }
        } else if kind == CLONE_NEWCGROUP {
            // Its root is the cgroup of whoever makes it: the child, once it is in its own.
            ops.push(Op::Unshare {
                flags: kinds::flag(kind),
            });
        } else {
            plan.clone_flags |= kinds::flag(kind);
            if kind == CLONE_NEWNET {
                ops.push(Op::LoopbackUp);
            }
        }
    }
    match users {
        Some(users) => {
            users.before(&bundle.spec.process, plan);
            users.enter(joined, plan)?;
        }
        None => ops.extend(joined.into_iter().map(|(ns, kind)| Op::SetNs { ns, kind })),
    }
    let Some(step) = userns::new_time(&bundle.spec) else {
        plan.pid_namespace = pid_namespace;
        return Ok(ops);
    };
    if users.is_none() {
        plan.lead.push(Op::Hide);
    }
    // By the lead itself: were it born there, the number of its child would be one of there.
    plan.lead.extend(pid_namespace.map(|ns| Op::Join {
        user: None,
        others: vec![(ns, CLONE_NEWPID)],
    }));
    plan.lead.push(step);
    Ok(ops)
}

fn open_namespace(path: &str, plan: &mut LaunchPlan) -> Result<FdSlot> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags, Mode::empty())
        .map_err(ExecutorError::kernel(format!("open namespace \"{path}\"")))?;
    Ok(plan.add_fd(fd))
}

/// The last steps, from which on the child can do less and less. Without no_new_privs a filter
/// needs `CAP_SYS_ADMIN` and goes first; with it, it goes last and sees the fewest calls.
fn credentials(
    process: &Process,
    users: Option<&Users>,
    filter: Option<Op>,
    plan: &mut LaunchPlan,
) -> Result {
    let user = &process.user;
    if user.uid != 0 && !process.terminal {
        plan.ops.push(Op::OwnStdio { uid: user.uid });
    }
    plan.ops.push(Op::Umask(user.umask.unwrap_or(0o022)));
    // After the last step that opens anything: a limit may be lower than what we need.
    for limit in &process.rlimits {
        let resource = validate::rlimit(&limit.kind).ok_or_else(|| {
            ExecutorError::Invalid(format!("process.rlimits: unknown type \"{}\"", limit.kind))
        })?;
        plan.ops.push(Op::Rlimit {
            resource,
            soft: limit.soft,
            hard: limit.hard,
        });
    }
    let (before, after) = if process.no_new_privileges {
        (None, filter)
    } else {
        (filter, None)
    };
    plan.ops.extend(before);
    let (bounding, sets) = caps::sets(process.capabilities.as_ref())?;
    let (uid, gid, groups) = (user.uid, user.gid, user.additional_gids.clone());
    plan.ops.push(Op::BoundingSet(bounding));
    plan.ops.push(match users {
        users if !userns::may_set_groups(users) => Op::IdsOnly { uid, gid },
        _ => Op::Ids { uid, gid, groups },
    });
    plan.ops.push(Op::Capabilities(sets));
    if process.no_new_privileges {
        plan.ops.push(Op::NoNewPrivs);
    }
    plan.ops.extend(after);
    Ok(())
}

fn program(process: &Process, program: Program, plan: &mut LaunchPlan) -> Result {
    plan.exec = Some(match program {
        Program::Entrypoint => {
            let Some(name) = process.args.first() else {
                return Err(ExecutorError::Invalid(
                    "process.args: no command given".into(),
                ));
            };
            Exec::Path {
                name: name.clone(),
                candidates: candidates(name, &process.env)?,
                argv: cstrs(&process.args)?,
                envp: cstrs(&process.env)?,
            }
        }
        Program::Fd {
            program,
            args,
            env,
            fds,
        } => {
            let program = plan.add_fd(program);
            plan.pass_fds(fds);
            Exec::Fd {
                program,
                argv: cstrs(&args)?,
                envp: cstrs(&env)?,
            }
        }
    });
    Ok(())
}

/// The files to try for a command name.
fn candidates(name: &str, env: &[String]) -> Result<Vec<CString>> {
    if name.is_empty() {
        return Ok(Vec::new());
    }
    if name.contains('/') {
        return Ok(vec![cstr(name)?]);
    }
    let path = env
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="));
    let entry = |dir: &str| match dir.strip_suffix('/').unwrap_or(dir) {
        "" if dir.is_empty() => cstr(format!("./{name}")),
        dir => cstr(format!("{dir}/{name}")),
    };
    path.unwrap_or(DEFAULT_PATH).split(':').map(entry).collect()
}

/// Compiles the filter a bundle asks for: that of its spec, or else the one it chooses.
///
/// # Errors
/// The field of the profile that is malformed or not supported.
pub fn filter(bundle: &Bundle) -> Result<Option<Filter>> {
    let spec = &bundle.spec;
    match (&spec.linux.seccomp, bundle.seccomp) {
        (Some(profile), _) => Ok(Some(seccomp::compile(profile)?)),
        (None, SeccompChoice::Spec | SeccompChoice::Unconfined) => Ok(None),
        (None, SeccompChoice::Default) => {
            let caps = spec.process.capabilities.as_ref();
            let bounding = caps.map_or(&[][..], |caps| &caps.bounding);
            Ok(Some(Filter {
                program: seccomp::default_filter(bounding),
                flags: 0,
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str, env: &[&str]) -> Vec<String> {
        let env: Vec<String> = env.iter().map(|text| (*text).to_owned()).collect();
        let list = candidates(name, &env).unwrap();
        list.into_iter()
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn commands_are_looked_for_where_path_says() {
        assert_eq!(names("sh", &["PATH=/bin:/x/", "A=b"]), ["/bin/sh", "/x/sh"]);
        assert_eq!(names("sh", &["PATH=/bin:"]), ["/bin/sh", "./sh"]);
        assert_eq!(names("sh", &["PATH=/"]), ["/sh"]);
        assert_eq!(names("./sh", &["PATH=/bin"]), ["./sh"]);
        assert_eq!(names("sh", &[]).len(), 6);
        assert!(names("", &[]).is_empty());
    }
}
