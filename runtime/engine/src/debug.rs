//! Debug: a process with tools of another image beside a running container's, in all of its
//! namespaces but the mount namespace. The container sees the process, and nothing of its files.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use amphora_cgroup::Cgroup;
use amphora_content::Lease;
use amphora_executor::{Bundle, BundleMount, ExecutorKind};
use amphora_spec::runtime::ConsoleSize;
use amphora_spec::{ContainerId, Digest};
use amphora_supervisor::{ExecConfig, ExecRequest};
use amphora_sys::mount::Upper;

use crate::config::{ContainerConfig, HostConfig, NetworkMode};
use crate::container::ContainerView;
use crate::create::merge_env;
use crate::exec::{ExecOptions, ExecStarted, running};
use crate::files::{ensure_dir, random, remove_tree};
use crate::image::ImageRecord;
use crate::start::{CGROUP_PARENT, bind_file, seccomp_of, start_facts};
use crate::{Engine, EngineError, Result, spec_builder};

/// Lets the tools look at a container of another user: `/proc/1/root`, memory, system calls.
const PTRACE: &str = "SYS_PTRACE";
/// Variable that tells the tools where the container's files are.
const TARGET: &str = "AMPHORA_TARGET";
/// Namespaces that are joined: as the spec calls them, and as `/proc` does.
const JOINED: [(&str, &str); 5] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
];

/// A debug session.
#[derive(Debug)]
pub struct Debugging {
    /// The session.
    pub session: ExecStarted,
    /// Where its tools write. It is removed when it is dropped: not before the session's end.
    pub scratch: Scratch,
}

/// What the tools write, on tmpfs, and a hold on the layers they come from.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    kept: bool,
    _layers: Lease,
}

impl Scratch {
    /// Leaves it to the container's end: the session may go on, and has it as its root.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            // What stays goes with the container.
            let _ = remove_tree(&self.dir);
        }
    }
}

impl Engine {
    /// Starts a process of the image `toolbox` in the namespaces of a running container, of either
    /// executor. The container's own files are under `/proc/1/root`, or wherever `AMPHORA_TARGET`
    /// says when it shares another's processes. Without arguments it is the image's own command;
    /// arguments replace its entry point too.
    ///
    /// # Errors
    /// [`EngineError::NoSuchImage`] (the caller may pull and try again); as [`Engine::exec`].
    pub fn debug(
        &self,
        id: &ContainerId,
        toolbox: &str,
        options: &ExecOptions,
    ) -> Result<Debugging> {
        self.reconcile_one(id)?;
        let view = self.view(id)?;
        running(&view)?;
        if view.paused {
            return Err(EngineError::State(format!(
                "Container {} is paused, unpause the container before debugging it",
                view.config.name
            )));
        }
        // No container is on record that would keep the image from being collected.
        let lease = self.store.lease().map_err(EngineError::plain)?;
        let image = self.find_image(toolbox, None)?.record;
        let artifact = crate::image_facts::is_artifact(&image.facts);
        if artifact || image.config.platform().is_wasm() {
            return Err(EngineError::Invalid(format!(
                "{toolbox} is no image of Linux programs, and those are the tools"
            )));
        }
        let config = session_config(&view, &image, options)?;
        let session: String = random::<32>()?.iter().map(|b| format!("{b:02x}")).collect();
        let (mut bundle, scratch) = self.debug_bundle(&view, &config, &session, lease)?;
        let size = options.attach.size.filter(|_| options.tty);
        bundle.spec.process.console_size =
            size.map(|(height, width)| ConsoleSize { height, width });
        let workload = self.workload(ExecutorKind::Linux)?;
        workload.validate(&bundle).map_err(EngineError::plain)?;
        let plan = workload.prepare(&bundle).map_err(EngineError::plain)?;
        // Still the same process, so they were its namespaces that were opened.
        running(&view)?;
        let request = ExecRequest {
            config: ExecConfig {
                id: session,
                args: config.entrypoint,
                user: config.user,
                privileged: options.privileged,
                tty: options.tty,
                open_stdin: options.open_stdin,
            },
            plan,
            attach: options.attach.mode(),
        };
        match self.hand_over(id, &request) {
            Ok(session) => Ok(Debugging { session, scratch }),
            Err(nothing_runs @ (EngineError::Exec(..) | EngineError::State(_))) => {
                Err(nothing_runs)
            }
            Err(error) => {
                scratch.keep();
                Err(error)
            }
        }
    }

    fn debug_bundle(
        &self,
        view: &ContainerView,
        config: &ContainerConfig,
        session: &str,
        lease: Lease,
    ) -> Result<(Bundle, Scratch)> {
        let id = &view.config.id;
        let scratch = Scratch {
            dir: self.run_dir(id).join("debug").join(session),
            kept: false,
            _layers: lease,
        };
        let (upper, work) = (scratch.dir.join("upper"), scratch.dir.join("work"));
        fs::create_dir_all(&upper).map_err(|e| EngineError::file("create", &upper, e))?;
        ensure_dir(&work, 0o700)?;
        let writable = Upper {
            upper: &upper,
            work: &work,
            volatile: true,
        };
        let skeleton = self.skeleton()?;
        let root = self
            .layers
            .rootfs_over(Some(&skeleton), &config.layers, Some(writable))
            .map_err(EngineError::plain)?;
        let pid = view.state.as_ref().map_or(0, |s| s.init_pid);
        let mut facts = start_facts(config, root.as_fd())?;
        facts.joined = JOINED
            .iter()
            .map(|(kind, file)| (*kind, format!("/proc/{pid}/ns/{file}")))
            .collect();
        let mut spec = spec_builder::build(config, &facts)?;
        // They have theirs, and may have changed them.
        spec.hostname.clear();
        spec.domainname.clear();
        let bundle = Bundle {
            id: id.hex(),
            spec,
            root,
            mounts: self.names_of(id)?,
            netns: None,
            join: None,
            cgroup: Cgroup::open(CGROUP_PARENT, &id.hex()).map_err(EngineError::plain)?,
            module: None,
            seccomp: seccomp_of(config),
            init: false,
        };
        Ok((bundle, scratch))
    }

    /// The container's `/etc/hosts` and its like: the tools find whom it finds.
    fn names_of(&self, id: &ContainerId) -> Result<Vec<BundleMount>> {
        let dir = self.run_dir(id).join("etc");
        ["hosts", "resolv.conf", "hostname"]
            .into_iter()
            .map(|name| bind_file(&dir, name))
            .collect()
    }
}

/// The container's root as the session finds it. Its init is process 1 where it has a pid
/// namespace of its own.
fn target(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
    let inside = numbers.and_then(|n| n.split_whitespace().last());
    format!("{TARGET}=/proc/{}/root", inside.unwrap_or("1"))
}

/// The session's configuration: the image's program, none of the container's mounts.
fn session_config(
    view: &ContainerView,
    image: &ImageRecord,
    options: &ExecOptions,
) -> Result<ContainerConfig> {
    let defaults = &image.config.config;
    let mut config = view.config.clone();
    config.executor = ExecutorKind::Linux;
    config.module = None;
    config.layers = image
        .layers
        .iter()
        .filter_map(|l| l.diff_id)
        .collect::<Vec<Digest>>();
    config.entrypoint = if options.args.is_empty() {
        [&defaults.entrypoint[..], &defaults.cmd[..]].concat()
    } else {
        options.args.clone()
    };
    if config.entrypoint.is_empty() {
        return Err(EngineError::Invalid("no command specified".to_owned()));
    }
    config.cmd = Vec::new();
    let pid = view.state.as_ref().map_or(0, |s| s.init_pid);
    config.env = merge_env(&merge_env(&defaults.env, &[target(pid)]), &options.env);
    config.user = options.user.clone().unwrap_or_default();
    config.workdir = options
        .workdir
        .clone()
        .unwrap_or_else(|| defaults.working_dir.clone());
    config.tty = options.tty;
    config.host = rights(&view.config.host, options.privileged);
    Ok(config)
}

/// The container's rights and what it takes to look at it; every right is for the asking.
fn rights(theirs: &HostConfig, privileged: bool) -> HostConfig {
    let mut host = HostConfig {
        network: NetworkMode::Bridge,
        cap_add: theirs.cap_add.clone(),
        privileged: theirs.privileged,
        seccomp_unconfined: theirs.seccomp_unconfined,
        oom_score_adj: theirs.oom_score_adj,
        shm_size: theirs.shm_size,
        ..HostConfig::default()
    };
    if privileged {
        host.cap_add.push("ALL".to_owned());
        return host;
    }
    host.cap_add.push(PTRACE.to_owned());
    host.cap_drop.clone_from(&theirs.cap_drop);
    // What is dropped by name stays dropped, whoever adds it.
    host.cap_drop.retain(|name| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name) != PTRACE
    });
    host.no_new_privileges = theirs.no_new_privileges;
    host.seccomp_profile.clone_from(&theirs.seccomp_profile);
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_the_rights_of_its_container() {
        let theirs = HostConfig {
            cap_add: vec!["NET_ADMIN".to_owned()],
            cap_drop: vec!["ALL".to_owned(), "cap_sys_ptrace".to_owned()],
            no_new_privileges: true,
            seccomp_profile: Some("{}".to_owned()),
            ..HostConfig::default()
        };
        let host = rights(&theirs, false);
        assert!(!host.seccomp_unconfined);
        assert_eq!(host.cap_add, ["NET_ADMIN", PTRACE]);
        assert_eq!(host.cap_drop, ["ALL"]);
        assert!(host.no_new_privileges);
        assert_eq!(host.seccomp_profile.as_deref(), Some("{}"));
        let all = rights(&theirs, true);
        assert_eq!(all.cap_add, ["NET_ADMIN", "ALL"]);
        assert!(all.cap_drop.is_empty() && !all.no_new_privileges);
        assert!(all.seccomp_profile.is_none());
        let open = HostConfig {
            seccomp_unconfined: true,
            ..HostConfig::default()
        };
        assert!(rights(&open, false).seccomp_unconfined && rights(&open, true).seccomp_unconfined);
    }
}
