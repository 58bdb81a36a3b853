//! Start: root file system, mounts, network, plan, supervisor.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_cgroup::Cgroup;
use amphora_executor::{Bundle, BundleMount, Module, SeccompChoice};
use amphora_network::{AttachRequest, Claim, Firewall, Networks, PortRequest, Protocol, files};
use amphora_spec::ContainerId;
use amphora_spec::release::Release;
use amphora_spec::runtime::Resources;
use amphora_supervisor::{Ahead, AttachMode, Charge, Client, Config, Launching, Listener, Waiting};
use amphora_sys::{LaunchPlan, mount};

use crate::boot::{WORK, remove_work};
use crate::config::{ContainerConfig, CreateOptions, NetworkMode};
use crate::files::{Lock, ensure_dir, write};
use crate::finish::{put_exit_aside, remove_cgroup, remove_failed, settle_exit};
use crate::hosts_file::{addresses, own_names};
use crate::resolving;
use crate::spec_builder::{self, StartFacts};
use crate::undo::Undo;
use crate::{Engine, EngineError, Result};

/// Arguments of a supervisor.
pub(crate) const SUPERVISE: [&str; 2] = ["amphora", "supervise"];

/// Cgroup that all containers' cgroups are made in.
pub(crate) const CGROUP_PARENT: &str = "amphora";

/// What the caller of start wants to be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Nothing: `-d`.
    None,
    /// Some streams.
    To(AttachStreams),
}

/// Streams to be connected to from the first byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachStreams {
    /// Feed standard input.
    pub stdin: bool,
    /// Receive standard output.
    pub stdout: bool,
    /// Receive standard error.
    pub stderr: bool,
    /// Rows and columns of the caller's terminal, for a container that has one.
    pub size: Option<(u16, u16)>,
}

impl AttachStreams {
    pub(crate) fn mode(self) -> AttachMode {
        AttachMode {
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }
}

impl Attach {
    fn mode(self) -> Option<AttachMode> {
        match self {
            Self::None => None,
            Self::To(streams) => Some(streams.mode()),
        }
    }

    fn size(self) -> Option<(u16, u16)> {
        match self {
            Self::None => None,
            Self::To(streams) => streams.size,
        }
    }
}

/// What of a start only the mounted image tells.
pub(crate) fn start_facts(
    config: &ContainerConfig,
    root: std::os::fd::BorrowedFd<'_>,
) -> Result<StartFacts> {
    let resolved =
        amphora_executor::resolve_user(root, &config.user).map_err(EngineError::plain)?;
    let mut user = resolved.user;
    if !config.host.group_add.is_empty() {
        let added = amphora_executor::resolve_groups(root, &config.host.group_add)
            .map_err(EngineError::plain)?;
        for gid in added {
            if !user.additional_gids.contains(&gid) {
                user.additional_gids.push(gid);
            }
        }
    }
    Ok(StartFacts {
        user,
        home: resolved.home,
        cgroups_path: format!("/{CGROUP_PARENT}/{}", config.id),
        masked: thermal_counters(),
        terminal_size: None,
        devices: crate::devices::gather(&config.host)?,
        joined: Vec::new(),
    })
}

/// Lists the processors' throttling counters, a side channel, where the machine has them.
fn thermal_counters() -> Vec<String> {
    (0_u32..)
        .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"))
        .take_while(|path| Path::new(path).exists())
        .collect()
}

/// The container's own network namespace, from its supervisor; `None` in network mode `host`.
fn namespace(
    engine: &Engine,
    waiting: &Waiting<'_>,
    config: &ContainerConfig,
) -> Result<Option<OwnedFd>> {
    if !config.host.network.is_own() {
        return engine.joined_netns(config);
    }
    let netns = waiting.netns().map_err(EngineError::plain)?;
    if config.host.network == NetworkMode::None || config.host.unconnected {
        amphora_network::loopback_up(netns.as_fd()).map_err(EngineError::plain)?;
    }
    Ok(Some(netns))
}

/// What of a claim the supervisor gets.
fn taken(claim: &mut Claim) -> (Vec<Release>, Vec<amphora_network::Listener>) {
    let release = std::mem::take(&mut claim.release);
    (release, std::mem::take(&mut claim.listeners))
}

/// What the supervisor makes while the rest is prepared.
fn ahead(config: &ContainerConfig) -> Ahead {
    Ahead {
        netns: config.host.network.is_own(),
        names: resolving::has_server(config).then(|| resolving::place(config)),
    }
}

/// Device and inode of the network namespace that ports are reserved in: the calling thread's.
pub(crate) fn host_netns() -> Result<(u64, u64)> {
    let path = Path::new("/proc/thread-self/ns/net");
    let stat = rustix::fs::stat(path).map_err(|e| EngineError::file("look at", path, e))?;
    Ok((stat.st_dev, stat.st_ino))
}

pub(crate) fn seccomp_of(config: &ContainerConfig) -> SeccompChoice {
    if config.host.seccomp_unconfined || config.host.privileged {
        SeccompChoice::Unconfined
    } else {
        SeccompChoice::Default
    }
}

/// A container that was started.
#[derive(Debug)]
pub struct Started {
    /// Its id.
    pub id: ContainerId,
    /// Connection to its supervisor, when one was asked for.
    pub client: Option<Client>,
    /// What of the request does not hold for this kind of container, a line each.
    pub warnings: Vec<String>,
}

/// Whether one of a container's networks is one over several hosts.
fn has_other_hosts(claim: Option<&Claim>) -> bool {
    claim.is_some_and(|claim| claim.endpoints.iter().any(|e| e.reach.is_some()))
}

impl Engine {
    /// Creates and starts a container in one go. `created` is told the id before the start.
    ///
    /// # Errors
    /// As [`Engine::create`] and [`Engine::start`]. A container that could not be started stays
    /// in state `created`, as under Docker, unless it is to be removed.
    pub fn run(
        &self,
        options: CreateOptions,
        attach: Attach,
        created: impl FnOnce(&ContainerId) -> Result<()>,
    ) -> Result<Started> {
        let made = self.create_locked(options)?;
        let id = made.config.id;
        created(&id)?;
        match self.start_locked(&made.config, &made.lock, attach) {
            Ok(started) => {
                made.undo.commit();
                Ok(started)
            }
            Err(e) => {
                if !made.config.host.auto_remove {
                    made.undo.commit();
                    // It never ran.
                    remove_work(&self.container_dir(&id))?;
                    remove_failed(&id, &self.run_dir(&id))?;
                }
                Err(e)
            }
        }
    }

    /// Starts a container that is not running.
    ///
    /// # Errors
    /// When it is gone or busy, or whatever step of the start failed; all steps are undone then.
    pub fn start(&self, id: &ContainerId, attach: Attach) -> Result<Option<Started>> {
        self.reconcile_one(id)?;
        self.config(id)?;
        let lock = match Lock::try_acquire(&self.run_dir(id))? {
            Some(lock) => lock,
            None if self.refuse_paused(id)?.status.is_active() => return Ok(None),
            // The last run is still being cleaned up behind its exit.
            None => match self.lock_idle(id)? {
                Some(lock) => lock,
                None => return Ok(None),
            },
        };
        // Before the lock was ours it may have been removed, renamed or updated.
        let config = match self.config(id) {
            Ok(config) => config,
            Err(e) => {
                lock.remove_dir()?;
                return Err(e);
            }
        };
        let dir = self.container_dir(id);
        put_exit_aside(&dir)?;
        let run = self.run_dir(id);
        self.start_locked(&config, &lock, attach)
            .map(Some)
            .inspect_err(|_| {
                let _ = settle_exit(&dir);
                let _ = remove_work(&dir);
                let _ = remove_failed(id, &run);
            })
    }

    pub(crate) fn start_locked(
        &self,
        config: &ContainerConfig,
        lock: &Lock,
        attach: Attach,
    ) -> Result<Started> {
        if config.host.comes_back() {
            self.note_wanted(&config.id, true)?;
        }
        self.launch_locked(config, lock, attach, None)
    }

    /// Has a container launched: by a new supervisor, or by the one whose socket is given.
    pub(crate) fn launch_locked(
        &self,
        config: &ContainerConfig,
        lock: &Lock,
        attach: Attach,
        inherited: Option<OwnedFd>,
    ) -> Result<Started> {
        let mut undo = Undo::default();
        let exe = Self::own_program()?;
        let supervisors = amphora_cgroup::supervisor_cgroup().ok();
        // It comes up beside us, and makes the network namespace on the way.
        let run = self.run_dir(&config.id);
        let waiting = match inherited {
            None => Waiting::start(&exe, &SUPERVISE, supervisors.as_ref(), ahead(config), &run),
            Some(socket) => Waiting::inherited(socket, &exe),
        }
        .map_err(EngineError::plain)?;
        let root = self.mount_root(config, WORK)?;
        let mut facts = start_facts(config, root.as_fd())?;
        facts.terminal_size = attach.size();
        facts.joined = self.joined(config)?;
        let spec = spec_builder::build(config, &facts)?;
        // Guarded to the end: then the supervisor answers whoever wants what they keep.
        let volumes = self.mount_volumes(config, root.as_fd())?;
        let mut mounts = volumes.mounts;
        let cgroup = self.make_cgroup(&config.id, &spec.linux.resources, &mut undo)?;
        let mut claim = self.claim_network(config, &mut undo)?;
        let resolving = self.resolving(config)?;
        mounts.extend(self.files_of(config, claim.as_ref(), &resolving.text)?);
        let (release, listeners) = claim.as_mut().map(taken).unwrap_or_default();
        let mut supervise = self.supervise_config(config, release, cgroup.handle())?;
        let bundle = Bundle {
            id: config.id.hex(),
            spec,
            root,
            mounts,
            netns: namespace(self, &waiting, config)?,
            join: None,
            cgroup,
            module: self.open_module(config)?,
            seccomp: seccomp_of(config),
            init: config.host.init.unwrap_or(false),
        };
        let (plan, mut warnings) = self.lay_out(config, &bundle)?;
        let targets = listeners.iter().map(|l| l.target);
        supervise.listeners = targets.map(|target| Listener { target }).collect();
        supervise.names = resolving.server;
        supervise.overlay = has_other_hosts(claim.as_ref());
        supervise.netns = claim.as_ref().map(|_| host_netns()).transpose()?;
        supervise.events = self.start_events(config, attach, claim.as_ref(), &mut undo);
        let charge = Charge {
            config: supervise,
            plan,
            lock: lock.share()?,
            listeners: listeners.into_iter().map(|l| l.fd).collect(),
            hold: volumes.hold,
            attach: attach.mode(),
            gated: claim.is_some(),
        };
        let launching = waiting.hand_over(charge).map_err(EngineError::plain)?;
        let (client, hints) = self.let_go(launching, claim, bundle.netns.as_ref())?;
        warnings.extend(hints);
        undo.commit();
        Ok(Started {
            id: config.id,
            client,
            warnings,
        })
    }

    /// What is carried out for a bundle, and what of it does not hold for this kind of container.
    fn lay_out(
        &self,
        config: &ContainerConfig,
        bundle: &Bundle,
    ) -> Result<(LaunchPlan, Vec<String>)> {
        let workload = self.workload(config.executor)?;
        workload.validate(bundle).map_err(EngineError::plain)?;
        let notes = workload.notes(bundle);
        let plan = workload.prepare(bundle).map_err(EngineError::plain)?;
        Ok((plan, notes))
    }

    /// Wires the network while the supervisor's child builds its tree, then lets it run.
    fn let_go(
        &self,
        mut launching: Launching,
        mut claim: Option<Claim>,
        netns: Option<&OwnedFd>,
    ) -> Result<(Option<Client>, Vec<String>)> {
        let mut firewall = Firewall::default();
        if let (Some(claim), Some(netns)) = (&mut claim, netns) {
            let wired = self.networks.wire(claim, netns.as_fd());
            firewall = wired.map_err(EngineError::plain)?;
        }
        launching.go().map_err(EngineError::plain)?;
        let hints = firewall.hints();
        let spawned = launching.answered().map_err(EngineError::plain)?;
        Ok((spawned.client, hints))
    }

    /// What the container's supervisor is told, but for its listeners.
    fn supervise_config(
        &self,
        config: &ContainerConfig,
        mut release: Vec<Release>,
        cgroup: amphora_cgroup::Handle,
    ) -> Result<Config> {
        release.extend(self.release_of(config));
        Ok(Config {
            id: config.id.hex(),
            run_dir: self.run_dir(&config.id),
            data_dir: self.container_dir(&config.id),
            tty: config.tty,
            log: crate::logging::build(config)?,
            open_stdin: config.open_stdin,
            stdin_once: config.stdin_once,
            auto_remove: config.host.auto_remove,
            release,
            listeners: Vec::new(),
            finish: self.entry_argv("finish", &config.id),
            restart: config.host.restart,
            prepare: self.entry_argv("prepare", &config.id),
            ahead: ahead(config),
            stop_signal: amphora_spec::signal::parse(&config.stop_signal).unwrap_or(15),
            cgroup: Some(cgroup),
            health: self.health_config(config),
            events: amphora_supervisor::EventLog::default(),
            netns: None,
            names: None,
            overlay: false,
        })
    }

    /// Mounts a container's root file system, with a directory `work` for the kernel's own use.
    pub(crate) fn mount_root(&self, config: &ContainerConfig, work: &str) -> Result<OwnedFd> {
        let skeleton = self.skeleton()?;
        let dir = self.container_dir(&config.id);
        let (upper, work) = (dir.join("upper"), dir.join(work));
        // A read-only root needs a writable layer too: mount points are made in it before the
        // root itself is made read-only.
        ensure_dir(&upper, 0o755)?;
        ensure_dir(&work, 0o700)?;
        let volatile = config.host.auto_remove;
        let writable = mount::Upper {
            upper: &upper,
            work: &work,
            volatile,
        };
        self.layers
            .rootfs_over(Some(&skeleton), &config.layers, Some(writable))
            .map_err(EngineError::plain)
    }

    /// The files that a container finds made for it.
    fn files_of(
        &self,
        config: &ContainerConfig,
        claim: Option<&Claim>,
        resolv: &str,
    ) -> Result<Vec<BundleMount>> {
        let mut mounts = self.etc_files(config, claim, resolv)?;
        mounts.extend(self.joined_shm(config)?);
        Ok(mounts)
    }

    /// Writes `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` on tmpfs and mounts them.
    fn etc_files(
        &self,
        config: &ContainerConfig,
        claim: Option<&Claim>,
        resolv: &str,
    ) -> Result<Vec<BundleMount>> {
        if let Some(joined) = self.joined_etc(config)? {
            return Ok(joined);
        }
        let dir = self.run_dir(&config.id).join("etc");
        ensure_dir(&dir, 0o755)?;
        let endpoints = claim.map_or(&[][..], |c| &c.endpoints);
        let own: Vec<IpAddr> = endpoints.iter().flat_map(addresses).collect();
        let network = claim.and_then(Claim::endpoint);
        let gateway = network.map(|n| IpAddr::from(n.gateway));
        let mut extra = extra_hosts(&config.host.extra_hosts, gateway)?;
        extra.extend(self.link_hosts(&config.host)?);
        let hosts = if config.host.network == NetworkMode::Host {
            // Copies: what the container writes there is not the machine's.
            let mut hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            for (name, address) in &extra {
                hosts.push_str(&format!("{address}\t{name}\n"));
            }
            hosts
        } else {
            files::hosts(&own, &own_names(config).join(" "), &extra)
        };
        write(&dir.join("hosts"), hosts.as_bytes())?;
        write(&dir.join("resolv.conf"), resolv.as_bytes())?;
        write(
            &dir.join("hostname"),
            files::hostname(&config.hostname).as_bytes(),
        )?;
        ["hosts", "resolv.conf", "hostname"]
            .into_iter()
            .map(|name| bind_file(&dir, name))
            .collect()
    }

    fn make_cgroup(
        &self,
        id: &ContainerId,
        resources: &Resources,
        undo: &mut Undo,
    ) -> Result<Cgroup> {
        let name = id.hex();
        let undo_name = name.clone();
        undo.push(move || remove_cgroup(&undo_name));
        Cgroup::create(CGROUP_PARENT, &name, resources).map_err(EngineError::plain)
    }

    fn claim_network(&self, config: &ContainerConfig, undo: &mut Undo) -> Result<Option<Claim>> {
        let networks = config.host.attachments();
        if networks.is_empty() {
            return Ok(None);
        }
        let mut ports: Vec<PortRequest> = config.host.ports.clone();
        if config.host.publish_all {
            for exposed in &config.exposed {
                let (port, protocol) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
                let container_port = port.parse().map_err(|_| {
                    EngineError::Invalid(format!("invalid exposed port: \"{exposed}\""))
                })?;
                let protocol = match protocol {
                    "udp" => Protocol::Udp,
                    "sctp" => Protocol::Sctp,
                    _ => Protocol::Tcp,
                };
                let same =
                    |p: &PortRequest| (p.container_port, p.protocol) == (container_port, protocol);
                if !ports.iter().any(same) {
                    ports.push(PortRequest {
                        container_port,
                        protocol,
                        ..PortRequest::default()
                    });
                }
            }
        }
        let again = Networks::open(&self.options.root, &self.options.run_root);
        let id = config.id;
        undo.push(move || again.release(&id).map_err(EngineError::plain));
        let request = AttachRequest {
            container: config.id,
            networks,
            hostname: crate::networks::told_hostname(config),
            ports,
        };
        match self.networks.claim(&request) {
            Ok(claim) => Ok(Some(claim)),
            // What is in the way may be the leftover of a container whose supervisor was killed.
            Err(_) if self.reconcile_all()? > 0 => self
                .networks
                .claim(&request)
                .map(Some)
                .map_err(EngineError::plain),
            Err(e) => Err(EngineError::plain(e)),
        }
    }

    pub(crate) fn open_module(&self, config: &ContainerConfig) -> Result<Option<Module>> {
        let Some(module) = &config.module else {
            return Ok(None);
        };
        let file: OwnedFd = match &module.path {
            None => self
                .store
                .open_blob(&module.digest)
                .map_err(EngineError::plain)?
                .into(),
            Some(path) => crate::image_facts::open_in_layers(self, &config.layers, path)?,
        };
        Ok(Some(Module {
            file,
            digest: module.digest,
            name: config.args().first().cloned().unwrap_or_default(),
            function: module.function.clone(),
        }))
    }

    /// What the supervisor undoes at exit beside the network's part.
    fn release_of(&self, config: &ContainerConfig) -> Vec<Release> {
        if !config.host.auto_remove {
            return Vec::new();
        }
        // Anonymous volumes are left to `finish`, which sees whether another container uses them.
        vec![Release::Claim {
            path: self.name_path(&config.name),
            target: config.id.hex(),
        }]
    }

    pub(crate) fn entry_argv(&self, entry: &str, id: &ContainerId) -> Vec<String> {
        vec![
            "amphora".to_owned(),
            entry.to_owned(),
            self.options.root.to_string_lossy().into_owned(),
            self.options.run_root.to_string_lossy().into_owned(),
            id.hex(),
        ]
    }
}

/// Parses `host:address` lines; `host-gateway` stands for the host's address on the network.
fn extra_hosts(lines: &[String], gateway: Option<IpAddr>) -> Result<Vec<(String, IpAddr)>> {
    lines
        .iter()
        .map(|line| {
            let bad = || EngineError::Invalid(format!("bad format for add-host: \"{line}\""));
            let (name, address) = line.split_once([':', '=']).ok_or_else(bad)?;
            let address = match address.trim_matches(['[', ']']) {
                "host-gateway" => gateway.ok_or_else(bad)?,
                text => text.parse().map_err(|_| {
                    EngineError::Invalid(format!("invalid IP address in add-host: \"{text}\""))
                })?,
            };
            Ok((name.to_owned(), address))
        })
        .collect()
}

pub(crate) fn bind_file(dir: &Path, name: &'static str) -> Result<BundleMount> {
    let path = dir.join(name);
    let handle = rustix::fs::open(
        dir,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| EngineError::file("open", dir, e))?;
    let fd = mount::clone_tree(handle.as_fd(), Path::new(name), false)
        .map_err(|e| EngineError::file("clone mount of", &path, e))?;
    Ok(BundleMount {
        destination: format!("/etc/{name}"),
        fd,
    })
}
