//! `create`, `run` and `start`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_cgroup::{Cgroup, systemd};
use amphora_spec::runtime::{Hook, Hooks, Spec};
use amphora_sys::base::Base;
use amphora_sys::launch::{Pending, start_from};
use amphora_sys::pidfd;
use amphora_sys::plan::LaunchPlan;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::args::{Flag, Order, Parsed, parse};
use crate::console::{Console, Foreground};
use crate::error::{Result, RuncError};
use crate::state::{Container, Record, Status, write_file};
use crate::{Code, Context, bundle, delete, exec, hooks, scope};

const CREATE: &[Flag] = &[
    Flag::value("bundle", Some('b')),
    Flag::value("console-socket", None),
    Flag::value("pid-file", None),
    Flag::switch("no-pivot", None),
    Flag::switch("no-new-keyring", None),
    Flag::value("preserve-fds", None),
    Flag::switch("detach", Some('d')),
    Flag::switch("keep", None),
    Flag::switch("no-subreaper", None),
];

/// What is made on the way, and taken back unless all went well.
struct Attempt<'a> {
    container: Option<Container>,
    cgroup: Option<Cgroup>,
    /// To be run if hooks before them have been.
    poststop: Vec<Hook>,
    context: &'a Context<'a>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let log = &self.context.log;
        if let Some(cgroup) = self.cgroup.take() {
            let removed = cgroup.kill().and_then(|()| cgroup.remove());
            if let Err(error) = removed {
                log.warning(&amphora_spec::error::chain(&error));
                // The record says where it is: `delete --force` tries again.
                return;
            }
        }
        if let Some(container) = self.container.take() {
            let state = container.oci_state(Status::Stopped);
            container.remove();
            hooks::run_all("poststop", &self.poststop, &state, log);
        }
    }
}

/// What `create` and `run` are asked for.
struct Wanted<'a> {
    id: &'a str,
    parsed: &'a Parsed,
    spec: Spec,
    config: Vec<u8>,
    bundle: std::path::PathBuf,
    /// `--preserve-fds`.
    inherited: Vec<(OwnedFd, i32)>,
}

fn wanted(parsed: &Parsed) -> Result<Wanted<'_>> {
    // First, while no descriptor of ours can have such a number.
    let inherited = exec::inherited(parsed)?;
    if parsed.on("no-new-keyring") {
        return Err(RuncError::unsupported("--no-new-keyring"));
    }
    let id = parsed.container()?;
    let bundle = bundle::directory(parsed.get("bundle"))?;
    let (spec, config) = bundle::read_spec(&bundle.join("config.json"))?;
    Ok(Wanted {
        id,
        parsed,
        spec,
        config,
        bundle,
        inherited,
    })
}

/// `create`: everything but the program itself.
pub(crate) fn create(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(CREATE, words, Order::Any)?;
    for flag in ["detach", "keep", "no-subreaper"] {
        if parsed.on(flag) {
            return Err(RuncError::unsupported(&format!("create --{flag}")));
        }
    }
    let mut wanted = wanted(&parsed)?;
    let console = Console::from_flag(parsed.get("console-socket"), wanted.spec.process.terminal)?;
    make(context, &mut wanted, &console).map(|_| 0)
}

/// `run`: `create` and `start`, and unless detached `delete` when it has ended.
pub(crate) fn run(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(CREATE, words, Order::Any)?;
    let mut wanted = wanted(&parsed)?;
    let terminal = wanted.spec.process.terminal;
    let detach = parsed.on("detach");
    let console = Console::of(&parsed, terminal)?;
    let hooks = wanted.spec.hooks.clone().unwrap_or_default();
    let foreground = (!detach).then(Foreground::new).transpose()?;
    let (mut container, process) = make(context, &mut wanted, &console)?;
    if let Err(error) = begin(context, &mut container, &wanted.spec) {
        let _ = delete::destroy(context, container, &hooks);
        return Err(error);
    }
    let Some(foreground) = foreground else {
        return Ok(0);
    };
    let ended = foreground.follow(&process, console)?;
    if parsed.on("keep") {
        return Ok(ended);
    }
    // Others may have changed it meanwhile, or removed it.
    match Container::hold(&context.root, wanted.id) {
        Ok(container) => delete::destroy(context, container, &hooks).map(|()| ended),
        Err(RuncError::NoSuchContainer) => Ok(ended),
        Err(error) => Err(error),
    }
}

/// Makes the container and leaves its process before the program.
fn make(
    context: &Context<'_>,
    wanted: &mut Wanted<'_>,
    console: &Console,
) -> Result<(Container, OwnedFd)> {
    let mut spec = wanted.spec.clone();
    bundle::allow_tunnels(&mut spec);
    let given = spec.hooks.clone().unwrap_or_default();
    if wanted.parsed.on("no-pivot") && !given.create_container.is_empty() {
        return Err(RuncError::unsupported(
            "hooks.createContainer with --no-pivot",
        ));
    }
    hooks::check(&given)?;
    let record = Record::new(context, wanted.id, wanted.bundle.clone(), &spec)?;
    let mut attempt = Attempt {
        container: Some(Container::claim(&context.root, record)?),
        cgroup: None,
        poststop: Vec::new(),
        context,
    };
    let root = bundle::root(&spec, &wanted.bundle)?;
    let container = attempt
        .container
        .as_mut()
        .ok_or(RuncError::NoSuchContainer)?;
    container.save_config(&wanted.config)?;
    container.save()?;
    let unit = container.record.systemd.clone();
    let place = unit.map(|unit| scope::start(container, &unit, &spec));
    let place = place.transpose()?;
    let (parent, name) = &container.record.cgroup;
    let resources = &spec.linux.resources;
    let cgroup = match place {
        Some(_) => systemd::adopt(parent, name, resources)?,
        None => Cgroup::create(parent, name, resources)?,
    };
    attempt.cgroup = Some(cgroup.try_clone()?);
    container.note_cgroup(&cgroup)?;

    let bundle = bundle::bundle(wanted.id, spec, root, cgroup);
    let executor = context.workload;
    executor.validate(&bundle).map_err(RuncError::Executor)?;
    let mut plan = executor.prepare(&bundle).map_err(RuncError::Executor)?;
    let before = [
        &given.prestart,
        &given.create_runtime,
        &given.create_container,
    ];
    if before.iter().any(|hooks| !hooks.is_empty()) {
        attempt.poststop.clone_from(&given.poststop);
    }
    let process = launch(container, wanted, &mut plan, console, &given)?;
    drop(place);
    if let Some(path) = wanted.parsed.get("pid-file") {
        write_file(
            Path::new(path),
            container.record.pid.to_string().as_bytes(),
            0o644,
        )?;
    }
    attempt.cgroup = None;
    let made = attempt.container.take();
    Ok((made.ok_or(RuncError::NoSuchContainer)?, process))
}

/// Starts the process and waits until it stands before its program.
fn launch(
    container: &mut Container,
    wanted: &mut Wanted<'_>,
    plan: &mut LaunchPlan,
    console: &Console,
    given: &Hooks,
) -> Result<OwnedFd> {
    console.attach(plan)?;
    plan.pass_fds(std::mem::take(&mut wanted.inherited));
    plan.await_alone(make_fifo(container)?);
    let early = !(given.prestart.is_empty() && given.create_runtime.is_empty());
    let release = if early {
        let (read, write) = pipe()?;
        plan.await_before_root(read, write.as_fd());
        Some(write)
    } else {
        None
    };
    let pivot = if given.create_container.is_empty() {
        None
    } else {
        let (read, write) = pipe()?;
        plan.await_before_pivot(hooks::staged_root(container)?, read, write.as_fd());
        Some(write)
    };
    let base = if wanted.parsed.on("no-pivot") && plan.enters_root() {
        plan.cover_root();
        Some(Base::new().map_err(RuncError::file("failed to make an empty mount namespace"))?)
    } else {
        None
    };
    let pending = start_from(plan, base.as_ref()).map_err(RuncError::Launch)?;
    if let Some(release) = release {
        pending.wait_ready().map_err(RuncError::Launch)?;
        note(container, &pending)?;
        let state = container.oci_state(Status::Creating);
        hooks::run("prestart", &given.prestart, &state)?;
        hooks::run("createRuntime", &given.create_runtime, &state)?;
        go_on(&release)?;
    }
    if let Some(pivot) = pivot {
        pending.wait_ready().map_err(RuncError::Launch)?;
        note(container, &pending)?;
        hooks::create_container(container, &given.create_container)?;
        go_on(&pivot)?;
    }
    pending.wait_ready().map_err(RuncError::Launch)?;
    note(container, &pending)?;
    container.save()?;
    let process = pending.launched().pidfd.try_clone();
    process.map_err(RuncError::file("failed to hold the container's process"))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(RuncError::file("failed to make a pipe"))
}

fn go_on(release: &OwnedFd) -> Result {
    rustix::io::write(release, &[1])
        .map(drop)
        .map_err(RuncError::file("failed to let the process go on"))
}

fn note(container: &mut Container, pending: &Pending<'_>) -> Result {
    let pid = pending.launched().pid;
    container.record.pid = pid;
    container.record.start_time = pidfd::start_time(pid)
        .map_err(RuncError::file("failed to look at the container's process"))?;
    Ok(())
}

/// The FIFO on which the process waits. Opened for both ends, so that it never ends.
fn make_fifo(container: &Container) -> Result<OwnedFd> {
    let path = container.fifo();
    let failed = || RuncError::file(format!("failed to make {}", path.display()));
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(failed())?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(CWD, &path, flags, Mode::empty()).map_err(failed())
}

/// `start`: lets the process become its program.
pub(crate) fn start(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(&[], words, Order::Any)?;
    let mut container = Container::hold(&context.root, parsed.container()?)?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => {
            return Err(RuncError::State(
                "cannot start a container that has stopped".to_owned(),
            ));
        }
        Status::Running | Status::Paused => {
            return Err(RuncError::State(
                "cannot start an already running container".to_owned(),
            ));
        }
        Status::Creating => {
            return Err(RuncError::State(
                "cannot start a container in the creating state".to_owned(),
            ));
        }
    }
    let spec = container.config()?;
    let inside = |hooks: &Hooks| !hooks.start_container.is_empty();
    if spec.hooks.as_ref().is_some_and(inside) {
        context.out_of_reach()?;
    }
    begin(context, &mut container, &spec).map(|()| 0)
}

/// Lets the process go on. Whoever asks for the container after that need not wait for us.
fn begin(context: &Context<'_>, container: &mut Container, spec: &Spec) -> Result {
    let hooks = spec.hooks.clone().unwrap_or_default();
    if let Err(error) = hooks::start_container(context, container, spec, &hooks.start_container) {
        delete::end(container)?;
        return Err(error);
    }
    let path = container.fifo();
    let failed = || RuncError::file(format!("failed to start by {}", path.display()));
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fifo = openat(CWD, &path, flags, Mode::empty()).map_err(failed())?;
    rustix::io::write(&fifo, &[1]).map_err(failed())?;
    rustix::fs::unlink(&path).map_err(failed())?;
    container.unlock();
    let state = container.oci_state(Status::Running);
    hooks::run_all("poststart", &hooks.poststart, &state, &context.log);
    Ok(())
}
