//! Create: choose the image and executor, claim the name, write the configuration.

use std::os::unix::fs::symlink;

use amphora_spec::select::{Executor, Options, select};
use amphora_spec::{ContainerId, Platform};
use amphora_volume::Found;

use crate::config::{
    ContainerConfig, CreateOptions, FIRST_VERSION, HostConfig, ModuleConfig, MountPoint,
    NetworkMode,
};
use crate::files::{Lasting, Lock, free_name, make_dir, random, remove_tree};
use crate::finish::remove_failed;
use crate::image::{FoundImage, ImageRecord};
use crate::kept::remove_made;
use crate::undo::Undo;
use crate::{Engine, EngineError, Result, names};

/// Seconds `stop` waits before it kills.
const STOP_TIMEOUT: u64 = 10;
/// Attempts at a generated name.
const NAME_ATTEMPTS: u32 = 32;

/// Mode of a container's data directory.
const DIR_MODE: u32 = 0o710;
/// Added to the mode of one that goes when it ends: known even where a power cut tore what its
/// configuration says.
pub(crate) const PASSING: u32 = 0o1000;

/// A container that was made, its lock still held by the caller.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) config: ContainerConfig,
    // Dropped in this order: what is undone is undone under the lock.
    pub(crate) undo: Undo,
    pub(crate) lock: Lock,
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Undo")
    }
}

impl Engine {
    /// Makes a container and leaves it in state `created`.
    ///
    /// # Errors
    /// [`EngineError::NoSuchImage`] (the caller may pull and try again),
    /// [`EngineError::NameInUse`], a selection that is refused with its reason.
    pub fn create(&self, options: CreateOptions) -> Result<ContainerId> {
        let created = self.create_locked(options)?;
        let id = created.config.id;
        created.undo.commit();
        self.flush_events();
        // Nothing runs: the run directory is made again by start.
        created.lock.remove_dir()?;
        Ok(id)
    }

    /// Makes a container and keeps its lock and its inverse, for `run`.
    pub(crate) fn create_locked(&self, options: CreateOptions) -> Result<Created> {
        if let Some(name) = &options.name {
            amphora_spec::id::check_name(name).map_err(|e| EngineError::Invalid(e.to_string()))?;
        }
        let platform = options
            .platform
            .as_deref()
            .map(str::parse::<Platform>)
            .transpose()
            .map_err(|e| EngineError::Invalid(e.to_string()))?;
        // Until the container is on record, nothing else keeps its image from being collected.
        let _lease = self.store.lease().map_err(EngineError::plain)?;
        let image = self.find_image(&options.image, platform.as_ref())?;
        let id = ContainerId::from_random(random()?);
        let mut config = self.configure(id, options, &image)?;
        self.resolve_images(&mut config.host.mounts)?;

        let run = self.run_dir(&id);
        let lock = Lock::acquire_new(&run).inspect_err(|_| drop(remove_failed(&id, &run)))?;
        // Made after the lock, and so dropped before it.
        let mut undo = Undo::default();
        undo.push(move || remove_failed(&id, &run));
        let dir = self.container_dir(&id);
        let undo_dir = dir.clone();
        undo.push(move || remove_tree(&undo_dir));
        let (mode, lasting) = match config.host.auto_remove {
            true => (DIR_MODE | PASSING, Lasting::Briefly),
            false => (DIR_MODE, Lasting::Long),
        };
        make_dir(&dir, mode)?;
        self.claim_name(&mut config, &mut undo)?;
        self.write_config(&mut config, lasting)?;
        for volume in self.create_volumes(&config)? {
            let (volumes, run_root) = (self.volumes.clone(), self.options.run_root.clone());
            undo.push(move || remove_made(&volumes, &run_root, &volume));
        }
        self.defer_container(&config, "create", &[]);
        Ok(Created { config, undo, lock })
    }

    fn configure(
        &self,
        id: ContainerId,
        options: CreateOptions,
        image: &FoundImage,
    ) -> Result<ContainerConfig> {
        let record = &image.record;
        let defaults = &record.config.config;
        check_words(&options)?;
        let (entrypoint, cmd) = command(&options, record);
        let chosen = self.choose_executor(&options, record, &entrypoint, &cmd)?;
        if entrypoint.is_empty() && cmd.is_empty() {
            return Err(EngineError::Invalid("no command specified".to_owned()));
        }
        let mut labels = defaults.labels.clone();
        labels.extend(options.labels);
        let mut host = options.host;
        self.options.settings.complete(&mut host, chosen.executor);
        self.check_networks(&mut host, options.hostname.is_some(), &options.expose)?;
        check_kind(&host, chosen.executor)?;
        self.resolve_modes(&mut host)?;
        self.volumes_from(&mut host)?;
        image_volumes(&mut host, defaults.volumes.keys())?;
        validate_host(&host)?;
        let health =
            crate::health::configure(options.health, defaults.healthcheck.as_ref(), &host)?;
        let hostname = options.hostname;
        let hostname = hostname.map_or_else(|| self.default_name(&host, &id), Ok)?;
        let exposed = crate::mount_spec::expose(&options.expose, defaults.exposed_ports.keys())?;
        Ok(ContainerConfig {
            version: FIRST_VERSION,
            id,
            name: options.name.unwrap_or_default(),
            created: crate::list::now(),
            image: options.image,
            image_id: record.image_id,
            manifest: record.manifest.digest,
            layers: record.layers.iter().filter_map(|l| l.diff_id).collect(),
            executor: chosen.executor,
            executor_reason: chosen.reason,
            module: chosen.module,
            entrypoint,
            cmd,
            env: first_env(&defaults.env, &options.env),
            workdir: options
                .workdir
                .unwrap_or_else(|| defaults.working_dir.clone()),
            user: options.user.unwrap_or_else(|| defaults.user.clone()),
            hostname,
            domainname: options.domainname,
            labels,
            annotations: options.annotations,
            exposed,
            open_stdin: options.open_stdin,
            attach_output: options.attach_output,
            stdin_once: options.stdin_once,
            tty: options.tty,
            stop_signal: options
                .stop_signal
                .or_else(|| defaults.stop_signal.clone())
                .unwrap_or_else(|| "SIGTERM".to_owned()),
            stop_timeout: options.stop_timeout.unwrap_or(STOP_TIMEOUT),
            health,
            shell: defaults.shell.clone(),
            host,
        })
    }

    /// Docker's rule: what shares the host's network has the host's name, and what shares another
    /// container's has that one's.
    fn default_name(&self, host: &HostConfig, id: &ContainerId) -> Result<String> {
        if host.uts_mode == "host" || host.network == NetworkMode::Host {
            return Ok(host_name());
        }
        match host.network.container() {
            Some(other) => Ok(self.config(&self.find(other)?)?.hostname),
            None => Ok(id.short()),
        }
    }

    fn choose_executor(
        &self,
        options: &CreateOptions,
        record: &ImageRecord,
        entrypoint: &[String],
        cmd: &[String],
    ) -> Result<Chosen> {
        let program = entrypoint
            .iter()
            .chain(cmd)
            .next()
            .cloned()
            .unwrap_or_default();
        let overridden =
            options.entrypoint.is_some() || (entrypoint.is_empty() && !options.cmd.is_empty());
        let facts = if overridden && !crate::image_facts::is_artifact(&record.facts) {
            crate::image_facts::with_program(self, record, &program)?
        } else {
            record.facts.clone()
        };
        let selection = select(
            &facts,
            &Options {
                runtime: options
                    .runtime
                    .clone()
                    .or_else(|| self.options.settings.runtime.clone()),
                platform: options.platform.as_deref().and_then(|p| p.parse().ok()),
                annotations: options.annotations.clone(),
                function: amphora_artifact::split_function(&program)
                    .1
                    .map(str::to_owned),
            },
        )
        .map_err(|e| EngineError::Unsupported(e.to_string()))?;
        let module = match selection.executor {
            Executor::Linux => None,
            Executor::Wasm => Some(crate::image_facts::module(&facts, &program)?),
        };
        Ok(Chosen {
            executor: selection.executor,
            reason: selection.reason,
            module,
        })
    }

    /// Makes the volumes that are missing. Returns the anonymous ones among them: a named one may
    /// have found another user by the time somebody wants it undone.
    fn create_volumes(&self, config: &ContainerConfig) -> Result<Vec<String>> {
        let mut made = Vec::new();
        for point in &config.host.mounts {
            if let MountPoint::Volume {
                name, anonymous, ..
            } = point
                && let Some(new) = crate::mounts::new_volume(point)
            {
                match self.volumes.ensure_with(new) {
                    Ok((_, Found::New)) => {
                        self.defer("volume", "create", name, &[("driver", "local")]);
                        if *anonymous {
                            made.push(name.clone());
                        }
                    }
                    Ok((_, Found::Existing)) => {}
                    Err(e) => {
                        for name in &made {
                            let _ = remove_made(&self.volumes, &self.options.run_root, name);
                        }
                        return Err(EngineError::plain(e));
                    }
                }
            }
        }
        Ok(made)
    }

    fn claim_name(&self, config: &mut ContainerConfig, undo: &mut Undo) -> Result<()> {
        let wanted = (!config.name.is_empty()).then(|| config.name.clone());
        for attempt in 0..NAME_ATTEMPTS {
            let name = match &wanted {
                Some(name) => name.clone(),
                None => names::generate(random()?, attempt),
            };
            let path = self.name_path(&name);
            match symlink(config.id.hex(), &path) {
                Ok(()) => {
                    let id = config.id;
                    undo.push(move || free_name(&path, &id));
                    config.name = name;
                    return Ok(());
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    if self.sweep_name(&name)? {
                        continue;
                    }
                    if wanted.is_some() {
                        let id = std::fs::read_link(&path)
                            .ok()
                            .and_then(|t| t.to_str().map(str::to_owned))
                            .unwrap_or_default();
                        return Err(EngineError::NameInUse { name, id });
                    }
                }
                Err(e) => return Err(EngineError::file("create", &path, e)),
            }
        }
        Err(EngineError::State(
            "failed to find a free container name".to_owned(),
        ))
    }
}

/// The machine's own name.
fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Checks devices, and what an executor can give.
fn check_kind(host: &HostConfig, executor: Executor) -> Result<()> {
    crate::devices::check(host)?;
    match executor {
        Executor::Wasm => crate::modes::check_wasm(host),
        Executor::Linux => Ok(()),
    }
}

struct Chosen {
    executor: Executor,
    reason: String,
    module: Option<ModuleConfig>,
}

/// Docker's ENTRYPOINT/CMD rule: an entry point given on the command line drops the image's CMD.
fn command(options: &CreateOptions, record: &ImageRecord) -> (Vec<String>, Vec<String>) {
    let defaults = &record.config.config;
    let (mut entrypoint, mut cmd) = match &options.entrypoint {
        Some(text) if text.is_empty() => (Vec::new(), options.cmd.clone()),
        Some(text) => (vec![text.clone()], options.cmd.clone()),
        None if options.cmd.is_empty() => (defaults.entrypoint.clone(), defaults.cmd.clone()),
        None => (defaults.entrypoint.clone(), options.cmd.clone()),
    };
    if crate::image_facts::is_artifact(&record.facts) && options.entrypoint.is_none() {
        // An artifact has no entry point of its own: its name is `argv[0]`.
        if entrypoint.is_empty() {
            let name = options.image.rsplit('/').next().unwrap_or(&options.image);
            let name = name.split([':', '@']).next().unwrap_or(name);
            entrypoint = vec![format!("{name}.wasm")];
            cmd = options.cmd.clone();
        }
    }
    (entrypoint, cmd)
}

/// Merges `KEY=value` lines: later ones replace earlier ones in place.
/// The environment of a new container, in Docker's order: what is asked for, then the image's.
fn first_env(image: &[String], given: &[String]) -> Vec<String> {
    let key = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let merged = merge_env(&[], given);
    let named = |line: &&String| given.iter().any(|have| key(have) == key(line));
    let rest = image.iter().filter(|line| !named(line)).cloned();
    merged.into_iter().chain(rest).collect()
}

pub(crate) fn merge_env(base: &[String], over: &[String]) -> Vec<String> {
    let key = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let mut out: Vec<String> = base.to_vec();
    for line in over {
        let at = out.iter().position(|have| key(have) == key(line));
        if !line.contains('=') {
            // `-e KEY` of a variable the caller does not have removes the image's.
            if let Some(at) = at {
                out.remove(at);
            }
            continue;
        }
        match at.and_then(|at| out.get_mut(at)) {
            Some(slot) => slot.clone_from(line),
            None => out.push(line.clone()),
        }
    }
    out
}

/// Gives each `VOLUME` of the image that no mount covers an anonymous volume.
fn image_volumes<'a>(host: &mut HostConfig, paths: impl Iterator<Item = &'a String>) -> Result<()> {
    for path in paths {
        let clean = path.trim_end_matches('/');
        if host
            .mounts
            .iter()
            .any(|m| m.destination().trim_end_matches('/') == clean)
        {
            continue;
        }
        host.mounts.push(MountPoint::Volume {
            name: amphora_spec::Digest::from_sha256(random()?).hex(),
            destination: path.clone(),
            read_only: false,
            no_copy: false,
            anonymous: true,
            subpath: None,
            labels: std::collections::BTreeMap::new(),
            options: std::collections::BTreeMap::new(),
            mode: Some(String::new()),
        });
    }
    Ok(())
}

fn validate_host(host: &HostConfig) -> Result<()> {
    crate::limits::check_create(host)?;
    crate::logging::check(&host.log)?;
    crate::restart::check(host)?;
    let mut seen = std::collections::BTreeSet::new();
    for point in &host.mounts {
        let clean = point.destination().trim_end_matches('/');
        if !point.destination().starts_with('/') {
            return Err(EngineError::Invalid(format!(
                "invalid mount path: '{}' mount path must be absolute",
                point.destination()
            )));
        }
        if clean.is_empty() {
            return Err(EngineError::Invalid(
                "invalid specification: destination can't be '/'".to_owned(),
            ));
        }
        if !seen.insert(clean.to_owned()) {
            return Err(EngineError::Invalid(format!(
                "Duplicate mount point: {clean}"
            )));
        }
    }
    Ok(())
}

/// Checks the stop signal and the directory in Docker's words.
fn check_words(options: &CreateOptions) -> Result<()> {
    if let Some(text) = options.stop_signal.as_deref().filter(|t| !t.is_empty()) {
        amphora_spec::signal::parse(text)
            .ok_or_else(|| EngineError::Invalid(format!("invalid signal: {text}")))?;
    }
    match options.workdir.as_deref() {
        Some(dir) if !dir.is_empty() && !dir.starts_with('/') => Err(EngineError::Invalid(
            format!("the working directory '{dir}' is invalid, it needs to be an absolute path"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn environment_of_the_caller_replaces_the_image_s() {
        let merged = merge_env(&lines(&["A=1", "B=2", "C=3"]), &lines(&["B=x", "D=4", "C"]));
        assert_eq!(merged, ["A=1", "B=x", "D=4"]);
    }

    #[test]
    fn mounts_are_checked_before_anything_exists() {
        let tmpfs = |d: &str| MountPoint::Tmpfs {
            destination: d.to_owned(),
            options: vec![],
        };
        let host = |m: Vec<MountPoint>| HostConfig {
            mounts: m,
            ..HostConfig::default()
        };
        assert!(validate_host(&host(vec![tmpfs("/a"), tmpfs("/b")])).is_ok());
        assert!(validate_host(&host(vec![tmpfs("/a"), tmpfs("/a/")])).is_err());
        assert!(validate_host(&host(vec![tmpfs("a")])).is_err());
        assert!(validate_host(&host(vec![tmpfs("/")])).is_err());
        let small = HostConfig {
            memory: Some(1 << 20),
            ..HostConfig::default()
        };
        assert!(validate_host(&small).is_err());
    }
}
