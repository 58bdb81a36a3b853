//! Exec: another process in a running container, and attaching to the one that is there.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use amphora_artifact::{Magic, split_function};
use amphora_cgroup::Cgroup;
use amphora_executor::{Bundle, BundleMount, ExecutorKind, Module};
use amphora_spec::{Classify, ContainerId, Digest, ErrorKind};
use amphora_supervisor::{AttachMode, Client, ExecConfig, ExecRequest, SupervisorError};
use amphora_sys::pidfd;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::config::ContainerConfig;
use crate::container::{ContainerView, Status};
use crate::create::merge_env;
use crate::image_facts::open_beneath;
use crate::start::{AttachStreams, CGROUP_PARENT, seccomp_of, start_facts};
use crate::{Engine, EngineError, Result, spec_builder};

/// Largest module that is read out of a container.
const MODULE_BYTES_MAX: u64 = 512 << 20;
/// Bytes of it that are copied at a time.
const CHUNK: usize = 64 << 10;

/// What a caller wants to run in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// Program and arguments. In a Wasm container: a module of its root file system, `path#export`,
    /// or `#export` for one of the container's own module.
    pub args: Vec<String>,
    /// `KEY=value` lines, over the container's.
    pub env: Vec<String>,
    /// Working directory in place of the container's.
    pub workdir: Option<String>,
    /// `user[:group]` in place of the container's.
    pub user: Option<String>,
    /// Every capability.
    pub privileged: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Give it a standard input.
    pub open_stdin: bool,
    /// Streams to be connected to; none for a detached session.
    pub attach: AttachStreams,
}

/// A started session.
#[derive(Debug)]
pub struct ExecStarted {
    /// Its id, 64 hex digits.
    pub id: String,
    /// Its process id.
    pub pid: i32,
    /// The connection: its streams and its end.
    pub client: Client,
}

impl Engine {
    /// Starts a process in a running container.
    ///
    /// # Errors
    /// [`EngineError::State`] when the container does not run; [`EngineError::Exec`] when its
    /// program cannot be started.
    pub fn exec(&self, id: &ContainerId, options: &ExecOptions) -> Result<ExecStarted> {
        let request = self.prepare_exec(id, options)?;
        self.hand_over(id, &request)
    }

    /// Has the supervisor start a session.
    pub(crate) fn hand_over(&self, id: &ContainerId, request: &ExecRequest) -> Result<ExecStarted> {
        let session = request.config.id.clone();
        match Client::exec(&self.run_dir(id), request) {
            Ok((client, pid)) => Ok(ExecStarted {
                id: session,
                pid,
                client,
            }),
            Err(SupervisorError::Launch { message, kind, .. }) => Err(not_started(&message, kind)),
            Err(SupervisorError::NotRunning(_)) => Err(not_running(id)),
            Err(lost @ SupervisorError::Lost(_)) => {
                self.reconcile_one(id)?;
                running(&self.view(id)?)?;
                // Its supervisor was killed, and may have begun.
                Err(EngineError::plain(lost))
            }
            Err(e) => Err(EngineError::plain(e)),
        }
    }

    /// Makes what a supervisor needs to start a session; whoever holds it may hand it over
    /// ([`Client::exec`]).
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub fn prepare_exec(&self, id: &ContainerId, options: &ExecOptions) -> Result<ExecRequest> {
        self.reconcile_one(id)?;
        self.exec_request(&self.view(id)?, options)
    }

    /// The same for a container as it was just found.
    pub(crate) fn exec_request(
        &self,
        view: &ContainerView,
        options: &ExecOptions,
    ) -> Result<ExecRequest> {
        let (config, bundle) = self.join_bundle(view, options)?;
        let workload = self.workload(config.executor)?;
        let refused = |e: amphora_executor::ExecutorError| {
            not_started(
                &amphora_spec::error::chain(&e),
                ErrorKind::CommandNotExecutable,
            )
        };
        workload.validate(&bundle).map_err(refused)?;
        let plan = workload.prepare(&bundle).map_err(refused)?;
        let random: [u8; 32] = crate::files::random()?;
        Ok(ExecRequest {
            config: ExecConfig {
                id: random.iter().map(|b| format!("{b:02x}")).collect(),
                args: options.args.clone(),
                user: config.user,
                privileged: options.privileged,
                tty: options.tty,
                open_stdin: options.open_stdin,
            },
            plan,
            attach: options.attach.mode(),
        })
    }

    /// The container's configuration as the session has it, and the bundle that joins it.
    fn join_bundle(
        &self,
        view: &ContainerView,
        options: &ExecOptions,
    ) -> Result<(ContainerConfig, Bundle)> {
        let id = &view.config.id;
        let init = running(view)?;
        let cgroup = Cgroup::open(CGROUP_PARENT, &id.hex()).map_err(EngineError::plain)?;
        if view.paused {
            return Err(EngineError::State(format!(
                "Container {} is paused, unpause the container before exec",
                view.config.name
            )));
        }
        let root = root_of(view)?;
        let mut config = view.config.clone();
        config.entrypoint = options.args.clone();
        config.cmd = Vec::new();
        config.tty = options.tty;
        config.env = merge_env(&config.env, &options.env);
        config.user = options.user.clone().unwrap_or(config.user);
        config.workdir = options.workdir.clone().unwrap_or(config.workdir);
        if options.privileged {
            config.host.cap_add = vec!["ALL".to_owned()];
            config.host.cap_drop = Vec::new();
        }
        let mut facts = start_facts(&config, root.as_fd())
            .map_err(|e| EngineError::Exec(amphora_spec::error::chain(&e), e.kind()))?;
        facts.terminal_size = options.attach.size;
        let module = match config.executor {
            ExecutorKind::Wasm => Some(self.exec_module(&mut config, &root)?),
            ExecutorKind::Linux => None,
        };
        if !config.workdir.is_empty() && !config.workdir.starts_with('/') {
            let text =
                "OCI runtime exec failed: exec failed: Cwd must be an absolute path: unknown";
            return Err(EngineError::Exec(
                text.to_owned(),
                amphora_spec::ErrorKind::InvalidArgument,
            ));
        }
        let spec = spec_builder::build(&config, &facts)?;
        let mounts = config
            .host
            .mounts
            .iter()
            .map(|point| {
                let fd = root
                    .try_clone()
                    .map_err(EngineError::io("failed to hold the root"))?;
                Ok(BundleMount {
                    destination: point.destination().to_owned(),
                    fd,
                })
            })
            .collect::<Result<_>>()?;
        let bundle = Bundle {
            id: id.hex(),
            spec,
            root,
            mounts,
            netns: None,
            join: Some(init),
            cgroup,
            module,
            seccomp: seccomp_of(&view.config),
            init: false,
        };
        Ok((config, bundle))
    }

    /// The module of a session in a Wasm container.
    fn exec_module(&self, config: &mut ContainerConfig, root: &OwnedFd) -> Result<Module> {
        let word = config.entrypoint.first().cloned().unwrap_or_default();
        if let Some(export) = word.strip_prefix('#') {
            let own = self.open_module(config)?;
            let mut module =
                own.ok_or_else(|| EngineError::State("the container has no module".to_owned()))?;
            module.function = Some(export.to_owned());
            return Ok(module);
        }
        let (path, function) = split_function(&word);
        let absolute = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("{}/{path}", config.workdir.trim_end_matches('/'))
        };
        let (file, digest) = copy_module(root, &absolute, path)?;
        Ok(Module {
            file,
            digest,
            name: path.to_owned(),
            function: function.map(str::to_owned),
        })
    }

    /// Attaches to a running container.
    ///
    /// # Errors
    /// [`EngineError::State`] when it does not run, with Docker's words.
    pub fn attach(&self, id: &ContainerId, streams: AttachStreams) -> Result<Client> {
        self.reconcile_one(id)?;
        let view = self.view(id)?;
        let stopped = || {
            EngineError::State(
                "You cannot attach to a stopped container, start it first".to_owned(),
            )
        };
        if view.status != Status::Running {
            return Err(stopped());
        }
        if view.paused {
            return Err(EngineError::State(
                "You cannot attach to a paused container, unpause it first".to_owned(),
            ));
        }
        let mode: AttachMode = streams.mode();
        match Client::attach(&self.run_dir(id), mode) {
            Err(SupervisorError::Lost(_) | SupervisorError::NotRunning(_)) => Err(stopped()),
            other => other.map_err(EngineError::plain),
        }
    }

    /// Connects to the supervisor of a running container without attaching to anything.
    ///
    /// # Errors
    /// [`EngineError::State`] when the container does not run.
    pub fn connect(&self, id: &ContainerId) -> Result<Client> {
        self.reconcile_one(id)?;
        Client::connect(&self.run_dir(id)).map_err(|e| match e {
            SupervisorError::NotRunning(_) => not_running(id),
            e => EngineError::plain(e),
        })
    }
}

fn not_running(id: &ContainerId) -> EngineError {
    EngineError::State(format!("container {} is not running", id.hex()))
}

pub(crate) fn not_started(message: &str, kind: ErrorKind) -> EngineError {
    EngineError::Exec(
        format!(
            "OCI runtime exec failed: exec failed: unable to start container process: {message}: unknown"
        ),
        kind,
    )
}

/// The init process of a container that runs.
pub(crate) fn running(view: &ContainerView) -> Result<OwnedFd> {
    let stopped = || not_running(&view.config.id);
    let state = view.state.as_ref().ok_or_else(stopped)?;
    pidfd::open(state.init_pid, state.init_start)
        .map_err(EngineError::io(format!(
            "failed to open the process of container {}",
            view.config.id
        )))?
        .ok_or_else(stopped)
}

/// The root of a running container, as its init has it.
fn root_of(view: &ContainerView) -> Result<OwnedFd> {
    let pid = view.state.as_ref().map_or(0, |s| s.init_pid);
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT | Errno::SRCH => not_running(&view.config.id),
        e => EngineError::file("open", std::path::Path::new(&path), e),
    })
}

/// Copies a module out of the container: it may change under our hands, and what is compiled is
/// kept under the sum of its bytes.
fn copy_module(root: &OwnedFd, absolute: &str, shown: &str) -> Result<(OwnedFd, Digest)> {
    let failed = |what: &'static str| move |e: std::io::Error| EngineError::io(what)(e);
    let found = open_beneath(root, absolute).map_err(|e| match e {
        Errno::NOENT | Errno::NOTDIR => not_started(
            &format!("exec: \"{shown}\": stat {shown}: no such file or directory"),
            ErrorKind::CommandNotFound,
        ),
        e => not_started(
            &format!("exec: \"{shown}\": {}", std::io::Error::from(e)),
            ErrorKind::CommandNotExecutable,
        ),
    })?;
    let found = File::from(found);
    let no_module = || {
        not_started(
            &format!("exec: \"{shown}\": not a Wasm module, and this is a Wasm container"),
            ErrorKind::CommandNotExecutable,
        )
    };
    let about = found
        .metadata()
        .map_err(failed("failed to look at the module"))?;
    if !about.is_file() || about.len() > MODULE_BYTES_MAX {
        return Err(no_module());
    }
    let copy = rustix::fs::memfd_create("module", MemfdFlags::CLOEXEC)
        .map_err(|e| failed("failed to make a file for the module")(e.into()))?;
    let mut copy = File::from(copy);
    let mut reader = found.take(MODULE_BYTES_MAX);
    let (mut hasher, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    let mut first = true;
    loop {
        let n = reader
            .read(&mut chunk)
            .map_err(failed("failed to read the module"))?;
        let bytes = chunk.get(..n).unwrap_or_default();
        let magic = amphora_artifact::classify(bytes);
        if first && !matches!(magic, Magic::WasmCore | Magic::WasmComponent) {
            return Err(no_module());
        }
        first = false;
        if n == 0 {
            break;
        }
        hasher.update(bytes);
        copy.write_all(bytes)
            .map_err(failed("failed to copy the module"))?;
    }
    std::io::Seek::rewind(&mut copy).map_err(failed("failed to copy the module"))?;
    let digest = Digest::from_sha256(hasher.finalize().into());
    Ok((copy.into(), digest))
}
