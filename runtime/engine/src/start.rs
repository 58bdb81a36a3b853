//! Start: root file system, mounts, network, plan, supervisor.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use amphora_cgroup::Cgroup;
use amphora_executor::{Bundle, BundleMount, Module, SeccompChoice};
use amphora_network::{AttachRequest, Attachment, Networks, PortRequest, Protocol, files};
use amphora_spec::ContainerId;
use amphora_spec::release::Release;
use amphora_spec::runtime::Resources;
use amphora_supervisor::{
    AttachMode, Client, Config, Listener, LogConfig, LogDriver, SpawnRequest, spawn,
};
use amphora_sys::mount;

use crate::config::{ContainerConfig, CreateOptions, MountPoint, NetworkMode};
use crate::files::{Lock, ensure_dir, remove_tree, unlink, write};
use crate::finish::remove_cgroup;
use crate::spec_builder::{self, StartFacts};
use crate::undo::Undo;
use crate::{Engine, EngineError, Result, Status};

/// Arguments of a supervisor.
pub(crate) const SUPERVISE: [&str; 2] = ["amphora", "supervise"];

/// Cgroup that all containers' cgroups are made in.
pub(crate) const CGROUP_PARENT: &str = "amphora";

/// What the caller of start wants to be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Nothing: `-d`.
    None,
    /// Output.
    Output,
    /// Output and stdin.
    OutputAndInput,
}

impl Attach {
    fn mode(self) -> Option<AttachMode> {
        (self != Self::None).then_some(AttachMode {
            stdin: self == Self::OutputAndInput,
            stdout: true,
            stderr: true,
        })
    }
}

/// What of a start only the mounted image tells.
fn start_facts(config: &ContainerConfig, root: std::os::fd::BorrowedFd<'_>) -> Result<StartFacts> {
    let resolved =
        amphora_executor::resolve_user(root, &config.user).map_err(EngineError::plain)?;
    Ok(StartFacts {
        user: resolved.user,
        home: resolved.home,
        cgroups_path: format!("/{CGROUP_PARENT}/{}", config.id),
    })
}

fn seccomp_of(config: &ContainerConfig) -> SeccompChoice {
    if config.host.seccomp_unconfined {
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
                    remove_tree(&self.run_dir(&id))?;
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
        let config = self.config(id)?;
        let lock = match Lock::try_acquire(&self.run_dir(id))? {
            Some(lock) => lock,
            None if self.view(id)?.status == Status::Running => return Ok(None),
            // The last run is still being cleaned up behind its exit.
            None => self.lock_idle(id)?,
        };
        unlink(&self.container_dir(id).join("exit"))?;
        let run = self.run_dir(id);
        self.start_locked(&config, &lock, attach)
            .map(Some)
            .inspect_err(|_| {
                let _ = remove_tree(&run);
            })
    }

    pub(crate) fn start_locked(
        &self,
        config: &ContainerConfig,
        lock: &Lock,
        attach: Attach,
    ) -> Result<Started> {
        let mut undo = Undo::default();
        let root = self.mount_root(config)?;
        let facts = start_facts(config, root.as_fd())?;
        let spec = spec_builder::build(config, &facts)?;
        let (mut mounts, hold) = self.mount_volumes(config, root.as_fd())?;
        let cgroup = self.make_cgroup(&config.id, &spec.linux.resources, &mut undo)?;
        let network = self.attach_network(config, &mut undo)?;
        mounts.extend(self.etc_files(config, network.as_ref())?);
        let handle = cgroup.handle();
        let mut release = Vec::new();
        let mut listeners = Vec::new();
        let netns = match (network, config.host.network) {
            (Some(attachment), _) => {
                release.extend(attachment.release);
                listeners = attachment.listeners;
                Some(attachment.netns)
            }
            (None, NetworkMode::None) => Some(amphora_network::none().map_err(EngineError::plain)?),
            (None, _) => None,
        };
        let bundle = Bundle {
            id: config.id.hex(),
            spec,
            root,
            mounts,
            netns,
            cgroup,
            module: self.open_module(config)?,
            seccomp: seccomp_of(config),
        };
        let workload = self.workload(config.executor)?;
        workload.validate(&bundle).map_err(EngineError::plain)?;
        let warnings = workload.notes(&bundle);
        let plan = workload.prepare(&bundle).map_err(EngineError::plain)?;
        release.extend(self.release_of(config));
        let mut supervise = self.supervise_config(config, release, handle);
        supervise.listeners = listeners
            .iter()
            .map(|l| Listener { target: l.target })
            .collect();
        let exe = Self::own_program()?;
        let spawned = spawn(SpawnRequest {
            exe: &exe,
            argv: &SUPERVISE,
            config: supervise,
            plan,
            lock: lock.share()?,
            listeners: listeners.into_iter().map(|l| l.fd).collect(),
            hold,
            cgroup: amphora_cgroup::supervisor_cgroup().ok(),
            attach: attach.mode(),
        })
        .map_err(EngineError::plain)?;
        undo.commit();
        Ok(Started {
            id: config.id,
            client: spawned.client,
            warnings,
        })
    }

    /// What the container's supervisor is told, but for its listeners.
    fn supervise_config(
        &self,
        config: &ContainerConfig,
        release: Vec<Release>,
        cgroup: amphora_cgroup::Handle,
    ) -> Config {
        let driver = if config.host.log_none {
            LogDriver::None
        } else {
            LogDriver::JsonFile
        };
        Config {
            id: config.id.hex(),
            run_dir: self.run_dir(&config.id),
            data_dir: self.container_dir(&config.id),
            log: LogConfig {
                driver,
                ..LogConfig::default()
            },
            open_stdin: config.open_stdin,
            stdin_once: config.open_stdin,
            auto_remove: config.host.auto_remove,
            release,
            listeners: Vec::new(),
            finish: self.finish_argv(&config.id),
            stop_signal: amphora_spec::signal::parse(&config.stop_signal).unwrap_or(15),
            cgroup: Some(cgroup),
        }
    }

    fn mount_root(&self, config: &ContainerConfig) -> Result<OwnedFd> {
        let skeleton = self.skeleton()?;
        let dir = self.container_dir(&config.id);
        let (upper, work) = (dir.join("upper"), dir.join("work"));
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

    /// Writes `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` on tmpfs and mounts them.
    fn etc_files(
        &self,
        config: &ContainerConfig,
        network: Option<&Attachment>,
    ) -> Result<Vec<BundleMount>> {
        if config.host.network == NetworkMode::Host {
            return ["hosts", "resolv.conf"]
                .into_iter()
                .filter(|name| Path::new("/etc").join(name).exists())
                .map(|name| bind_file(Path::new("/etc"), name))
                .collect();
        }
        let dir = self.run_dir(&config.id).join("etc");
        ensure_dir(&dir, 0o755)?;
        let own: Vec<IpAddr> = network.map_or_else(Vec::new, |n| {
            let v6 = n.endpoint.address6.map(IpAddr::from);
            std::iter::once(IpAddr::from(n.endpoint.address))
                .chain(v6)
                .collect()
        });
        let gateway = network.map(|n| IpAddr::from(n.endpoint.gateway));
        let extra = extra_hosts(&config.host.extra_hosts, gateway)?;
        let hosts = files::hosts(&own, &[&config.hostname], &extra);
        let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let ipv6 = network.is_some_and(|n| n.endpoint.address6.is_some());
        let resolv = files::resolv_conf(&resolv, &files::ResolvOverrides::default(), ipv6);
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

    fn mount_volumes(
        &self,
        config: &ContainerConfig,
        root: std::os::fd::BorrowedFd<'_>,
    ) -> Result<(Vec<BundleMount>, Vec<OwnedFd>)> {
        let (mut out, mut hold) = (Vec::new(), Vec::new());
        for point in &config.host.mounts {
            let (fd, destination) = match point {
                MountPoint::Volume {
                    name,
                    destination,
                    read_only,
                    no_copy,
                    ..
                } => {
                    self.volumes
                        .ensure(name, BTreeMap::new())
                        .map_err(EngineError::plain)?;
                    hold.push(self.volumes.hold(name).map_err(EngineError::plain)?);
                    if !no_copy {
                        self.volumes
                            .copy_up(name, root, Path::new(destination))
                            .map_err(EngineError::plain)?;
                    }
                    (
                        self.volumes.mount_volume(name, None, *read_only),
                        destination,
                    )
                }
                MountPoint::Bind {
                    source,
                    destination,
                    read_only,
                    create,
                } => (
                    amphora_volume::mount_bind(Path::new(source), *read_only, true, *create),
                    destination,
                ),
                MountPoint::Tmpfs { .. } => continue,
            };
            let fd = fd.map_err(EngineError::plain)?;
            out.push(BundleMount {
                destination: destination.clone(),
                fd,
            });
        }
        Ok((out, hold))
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

    fn attach_network(
        &self,
        config: &ContainerConfig,
        undo: &mut Undo,
    ) -> Result<Option<Attachment>> {
        if config.host.network != NetworkMode::Bridge {
            return Ok(None);
        }
        let mut ports: Vec<PortRequest> = config.host.ports.clone();
        if config.host.publish_all {
            for exposed in &config.exposed {
                let (port, protocol) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
                let taken = ports.iter().any(|p| p.container_port.to_string() == port);
                if let Ok(container_port) = port.parse()
                    && !taken
                {
                    let protocol = match protocol {
                        "udp" => Protocol::Udp,
                        "sctp" => Protocol::Sctp,
                        _ => Protocol::Tcp,
                    };
                    ports.push(PortRequest {
                        container_port,
                        protocol,
                        ..PortRequest::default()
                    });
                }
            }
        }
        let networks = Networks::open(&self.options.root, &self.options.run_root);
        let id = config.id;
        undo.push(move || networks.release(&id).map_err(EngineError::plain));
        let request = AttachRequest {
            container: config.id,
            network: "bridge".to_owned(),
            ports,
        };
        match self.networks.attach(&request) {
            Ok(attachment) => Ok(Some(attachment)),
            // What is in the way may be the leftover of a container whose supervisor was killed.
            Err(_) if self.reconcile_all()? > 0 => self
                .networks
                .attach(&request)
                .map(Some)
                .map_err(EngineError::plain),
            Err(e) => Err(EngineError::plain(e)),
        }
    }

    fn open_module(&self, config: &ContainerConfig) -> Result<Option<Module>> {
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
        let mut out = vec![Release::Unlink(self.name_path(&config.name))];
        for point in &config.host.mounts {
            if let MountPoint::Volume {
                name,
                anonymous: true,
                ..
            } = point
            {
                out.push(Release::RemoveTree(self.volume_dir(name)));
            }
        }
        out
    }

    fn finish_argv(&self, id: &ContainerId) -> Vec<String> {
        vec![
            "amphora".to_owned(),
            "finish".to_owned(),
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

fn bind_file(dir: &Path, name: &'static str) -> Result<BundleMount> {
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
