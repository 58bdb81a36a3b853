//! `create`, `run` and `start`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_cgroup::{Cgroup, CgroupError, systemd};
use amphora_executor::Bundle;
use amphora_spec::runtime::{Hook, Hooks, Resources, Spec};
use amphora_sys::base::Base;
use amphora_sys::launch::{Pending, start_from};
use amphora_sys::pidfd;
use amphora_sys::plan::LaunchPlan;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::args::{Flag, Order, Parsed, parse};
use crate::console::{Console, Foreground};
use crate::error::{Result, RuncError};
use crate::listener::Agent;
use crate::notify::Notify;
use crate::state::{Container, Record, Status, write_file};
use crate::{
    Code, Context, activation, bundle, delete, exec, hooks, listener, netdev, notify, scope,
};

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
    /// Whether systemd has made the unit for us.
    unit: bool,
    /// To be run if hooks before them have been.
    poststop: Vec<Hook>,
    context: &'a Context<'a>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let log = &self.context.log;
        if let Some(container) = self.container.as_ref().filter(|c| c.has_no_cgroup())
            && let Err(error) = delete::end(container)
        {
            log.warning(&amphora_spec::error::chain(&error));
            return;
        }
        if let Some(cgroup) = self.cgroup.take() {
            let removed = cgroup.kill().and_then(|()| cgroup.remove());
            if let Err(error) = removed {
                log.warning(&amphora_spec::error::chain(&error));
                // The record says where it is: `delete --force` tries again.
                return;
            }
        }
        if let Some(container) = self.container.as_ref().filter(|_| self.unit) {
            scope::stop(self.context, container);
        }
        if let Some(container) = self.container.take() {
            let state = container.oci_state(Status::Stopped);
            container.remove();
            hooks::run_all("poststop", &self.poststop, &state, log);
        }
    }
}

/// The container's process, and the interfaces it was given.
type Launched = (OwnedFd, Option<netdev::Moved>);

/// What `create` and `run` are asked for.
struct Wanted<'a> {
    id: &'a str,
    parsed: &'a Parsed,
    spec: Spec,
    config: Vec<u8>,
    bundle: std::path::PathBuf,
    /// Activation sockets, and what `--preserve-fds` says.
    inherited: Vec<(OwnedFd, i32)>,
}

fn wanted(parsed: &Parsed) -> Result<Wanted<'_>> {
    // First, while no descriptor of ours can have such a number.
    let sockets = activation::sockets();
    let inherited = exec::inherited(parsed, sockets)?;
    let id = parsed.container()?;
    let bundle = bundle::directory(parsed.get("bundle"))?;
    let (mut spec, config) = bundle::read_spec(&bundle.join("config.json"))?;
    activation::announce(sockets, &mut spec.process.env);
    bundle::absolute_sources(&mut spec, &bundle);
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
    let wanted = wanted(&parsed)?;
    let console = Console::from_flag(parsed.get("console-socket"), wanted.spec.process.terminal)?;
    make(context, &wanted, &console).map(|_| 0)
}

/// `run`: `create` and `start`, and unless detached `delete` when it has ended.
pub(crate) fn run(context: &Context<'_>, words: &[String]) -> Code {
    let parsed = parse(CREATE, words, Order::Any)?;
    let wanted = wanted(&parsed)?;
    let terminal = wanted.spec.process.terminal;
    let detach = parsed.on("detach");
    let console = Console::of(&parsed, terminal)?;
    let hooks = wanted.spec.hooks.clone().unwrap_or_default();
    let foreground = (!detach).then(Foreground::new).transpose()?;
    let (mut container, process) = make(context, &wanted, &console)?;
    let notify = match begin(context, &mut container, &wanted.spec) {
        Ok(notify) => notify,
        Err(error) => {
            let _ = delete::destroy(context, container, &hooks);
            return Err(error);
        }
    };
    let Some(foreground) = foreground else {
        follow_ready(context, &container, &process, notify);
        return Ok(0);
    };
    let ended = foreground.follow(&process, console, notify)?;
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

/// Refuses what cannot be had together, before anything is made.
fn check(parsed: &Parsed, spec: &Spec, given: &Hooks) -> Result {
    let no_pivot = parsed.on("no-pivot");
    if no_pivot && !given.create_container.is_empty() {
        return Err(RuncError::unsupported(
            "hooks.createContainer with --no-pivot",
        ));
    }
    hooks::check(given)?;
    let has_users = spec.linux.namespaces.iter().any(|ns| ns.kind == "user");
    if has_users && no_pivot {
        return Err(RuncError::unsupported("a user namespace with --no-pivot"));
    }
    if !has_users && !amphora_executor::is_privileged() {
        return Err(RuncError::usage(
            "rootless container requires user namespaces",
        ));
    }
    Ok(())
}

/// Makes the container and leaves its process before the program.
fn make(
    context: &Context<'_>,
    wanted: &Wanted<'_>,
    console: &Console,
) -> Result<(Container, OwnedFd)> {
    let mut spec = wanted.spec.clone();
    bundle::allow_tunnels(&mut spec.linux.resources);
    let given = spec.hooks.clone().unwrap_or_default();
    check(wanted.parsed, &spec, &given)?;
    let mut record = Record::new(context, wanted.id, wanted.bundle.clone(), &spec)?;
    record.no_new_keyring = wanted.parsed.on("no-new-keyring");
    let mut attempt = Attempt {
        container: Some(Container::claim(&context.root, record)?),
        cgroup: None,
        unit: false,
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
    notify::announce(container, &mut spec)?;
    let unit = container.record.systemd.clone();
    let place = unit.map(|unit| scope::start(container, &unit, &spec));
    let place = place.transpose()?;
    attempt.unit = place.is_some();
    let cgroup = cgroup(context, container, &spec, place.is_some())?;
    if !cgroup.paths().is_empty() {
        attempt.cgroup = Some(cgroup.try_clone()?);
    }
    container.note_cgroup(&cgroup)?;

    let bundle = bundle::bundle(wanted.id, spec, root, cgroup);
    context
        .workload
        .validate(&bundle)
        .map_err(RuncError::Executor)?;
    let hooked = hooks::before_pivot(&given).next().is_some();
    if hooked {
        attempt.poststop.clone_from(&given.poststop);
    }
    let launched = prepare_and_launch(context, container, wanted, bundle, console, hooked)?;
    let (process, moved) = launched;
    drop(place);
    if let Some(path) = wanted.parsed.get("pid-file") {
        write_file(
            Path::new(path),
            container.record.pid.to_string().as_bytes(),
            0o644,
        )?;
    }
    // From here on nothing is taken back.
    if let Some(moved) = moved {
        moved.keep();
    }
    attempt.cgroup = None;
    attempt.unit = false;
    let made = attempt.container.take();
    Ok((made.ok_or(RuncError::NoSuchContainer)?, process))
}

/// Makes the container's cgroup, or takes the one that systemd has `started`; none where the caller has
/// no right to and asks for no limit.
fn cgroup(
    context: &Context<'_>,
    container: &Container,
    spec: &Spec,
    started: bool,
) -> Result<Cgroup> {
    let (parent, name) = &container.record.cgroup;
    let resources = &spec.linux.resources;
    if started {
        return Ok(systemd::adopt(parent, name, resources)?);
    }
    let made = match Cgroup::create(parent, name, resources) {
        Err(error) if is_denied(&error) && context.may_lack_a_cgroup() => Err(error),
        made => return Ok(made?),
    };
    // Which devices there are is decided without a cgroup: who has no rights makes none.
    let mut limits = resources.clone();
    limits.devices.clear();
    if limits == Resources::default() {
        return Ok(Cgroup::none());
    }
    Ok(made?)
}

fn is_denied(error: &CgroupError) -> bool {
    let (CgroupError::Io { source, .. } | CgroupError::Set { source, .. }) = error else {
        return matches!(error, CgroupError::NoCgroups(_));
    };
    matches!(
        source.kind(),
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Starts the process; a second time if the first has shown that the caller is root of a user namespace
/// only. Hooks are run once: who has some asks first.
fn prepare_and_launch(
    context: &Context<'_>,
    container: &mut Container,
    wanted: &Wanted<'_>,
    mut bundle: Bundle,
    console: &Console,
    hooked: bool,
) -> Result<Launched> {
    let given = wanted.spec.hooks.clone().unwrap_or_default();
    let prepare = |bundle: &Bundle| -> Result<LaunchPlan> {
        let plan = context.workload.prepare(bundle);
        let mut plan = plan.map_err(RuncError::Executor)?;
        bundle::inherit(&mut plan, &bundle.spec.process);
        Ok(plan)
    };
    if hooked {
        let _ = amphora_executor::is_inside();
    }
    let mut plan = prepare(&bundle)?;
    match launch(container, wanted, &mut plan, console, &given) {
        Err(error) if !hooked && error.is_not_permitted() && amphora_executor::is_inside() => {}
        launched => return launched,
    }
    // The first root has gone with the namespace that it was attached in.
    bundle.root = bundle::root(&bundle.spec, &wanted.bundle)?;
    let _ = std::fs::remove_file(container.fifo());
    let mut plan = prepare(&bundle)?;
    launch(container, wanted, &mut plan, console, &given)
}

/// Where the process waits for us on its way.
struct Gates {
    /// In its namespaces, before its root is there.
    early: Option<OwnedFd>,
    /// With the host's tree and the container's.
    pivot: Option<OwnedFd>,
    /// With a filter that asks.
    ack: Option<OwnedFd>,
}

impl Gates {
    /// Those that hooks and interfaces (`devices`) need.
    fn new(
        container: &Container,
        plan: &mut LaunchPlan,
        given: &Hooks,
        (no_pivot, devices): (bool, bool),
    ) -> Result<Self> {
        let hooked = hooks::before_pivot(given).next().is_some();
        // Without a cgroup nothing but the record leads to the process: should we be killed before
        // that is written, it ends. Without the host's tree there is no moment when both trees are
        // there.
        let alone = container.record.cgroup_inodes.is_empty();
        let early = if alone || devices || (no_pivot && hooked) {
            let (read, write) = pipe()?;
            plan.await_before_root(read, write.as_fd());
            Some(write)
        } else {
            None
        };
        let pivot = if hooked && !no_pivot {
            let (read, write) = pipe()?;
            plan.await_before_pivot(hooks::staged_root(container)?, read, write.as_fd());
            Some(write)
        } else {
            None
        };
        let ack = listener::expect(plan)?;
        Ok(Self { early, pivot, ack })
    }
}

/// Starts the process and waits until it stands before its program.
fn launch(
    container: &mut Container,
    wanted: &Wanted<'_>,
    plan: &mut LaunchPlan,
    console: &Console,
    given: &Hooks,
) -> Result<Launched> {
    console.attach(plan)?;
    plan.pass_fds(exec::again(&wanted.inherited)?);
    plan.await_alone(make_fifo(container)?);
    if container.record.no_new_keyring {
        plan.keep_keyring();
    }
    let no_pivot = wanted.parsed.on("no-pivot");
    let devices = &wanted.spec.linux.net_devices;
    let gates = Gates::new(container, plan, given, (no_pivot, !devices.is_empty()))?;
    if no_pivot && !plan.enters_root() {
        return Err(RuncError::unsupported("--no-pivot in a user namespace"));
    }
    let base = if no_pivot {
        plan.cover_root();
        Some(Base::new().map_err(RuncError::file("failed to make an empty mount namespace"))?)
    } else {
        None
    };
    let pending = start_from(plan, base.as_ref()).map_err(RuncError::Launch)?;
    let mut moved = None;
    if let Some(release) = gates.early {
        pending.wait_ready().map_err(RuncError::Launch)?;
        note(container, &pending)?;
        container.save()?;
        if !devices.is_empty() {
            moved = Some(netdev::attach(devices, container.record.pid)?);
        }
        if no_pivot {
            before_pivot(container, given)?;
        }
        go_on(&release)?;
    }
    if let Some(release) = gates.pivot {
        pending.wait_ready().map_err(RuncError::Launch)?;
        note(container, &pending)?;
        before_pivot(container, given)?;
        go_on(&release)?;
    }
    if let Some(ack) = gates.ack {
        let agent = Agent::of(&wanted.spec);
        listener::hand_over(&pending, &ack, &agent, || {
            note(container, &pending)?;
            Ok(container.oci_state(Status::Creating))
        })?;
    }
    pending.wait_ready().map_err(RuncError::Launch)?;
    note(container, &pending)?;
    container.save()?;
    let process = pending.launched().pidfd.try_clone();
    let process = process.map_err(RuncError::file("failed to hold the container's process"))?;
    Ok((process, moved))
}

/// Runs the hooks that see the container's namespaces, and its root beside the host's tree.
fn before_pivot(container: &Container, given: &Hooks) -> Result {
    let state = container.oci_state(Status::Creating);
    hooks::run("prestart", &given.prestart, &state)?;
    hooks::run("createRuntime", &given.create_runtime, &state)?;
    hooks::create_container(container, &given.create_container)
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
    let notify = begin(context, &mut container, &spec)?;
    if notify.is_some()
        && let Some(process) = container.process()?
    {
        follow_ready(context, &container, &process, notify);
    }
    Ok(0)
}

/// Stays until the container has said that it is ready, where a service manager wants to know. It runs:
/// that nobody hears it is told, and changes nothing.
fn follow_ready(
    context: &Context<'_>,
    container: &Container,
    process: &OwnedFd,
    notify: Option<Notify>,
) {
    let Some(notify) = notify else { return };
    if let Err(error) = notify.follow(process.as_fd(), container.record.pid) {
        context
            .log
            .warning(&format!("failed to tell NOTIFY_SOCKET: {error}"));
    }
}

/// Runs the hooks `startContainer`. They may take as long as they like: nobody else is kept from the
/// container meanwhile, but from starting it.
fn run_inside(
    context: &Context<'_>,
    container: &mut Container,
    spec: &Spec,
    hooks: &[Hook],
) -> Result {
    let _starting = container.begin_start()?;
    container.unlock();
    let ran = hooks::start_container(context, container, spec, hooks);
    let again = container.hold_again(&context.root);
    if ran.is_err() && again.is_ok() {
        delete::end(container)?;
    }
    ran.and(again)
}

/// Lets the process go on. Whoever asks for the container after that need not wait for us.
fn begin(context: &Context<'_>, container: &mut Container, spec: &Spec) -> Result<Option<Notify>> {
    let hooks = spec.hooks.clone().unwrap_or_default();
    if !hooks.start_container.is_empty() {
        run_inside(context, container, spec, &hooks.start_container)?;
    }
    let notify = Notify::listen(container, &context.log)?;
    let path = container.fifo();
    let failed = || RuncError::file(format!("failed to start by {}", path.display()));
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fifo = openat(CWD, &path, flags, Mode::empty()).map_err(failed())?;
    rustix::io::write(&fifo, &[1]).map_err(failed())?;
    rustix::fs::unlink(&path).map_err(failed())?;
    container.unlock();
    let state = container.oci_state(Status::Running);
    hooks::run_all("poststart", &hooks.poststart, &state, &context.log);
    Ok(notify)
}
