//! The Wasm side of the seam: what of a bundle holds for a guest, and what its runner is given.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use amphora_artifact::{Magic, ModuleKind, classify, split_function};
use amphora_executor::{
    BaseOptions, Bundle, ExecutorError, ExecutorKind, Module, Program, Workload, base_plan,
    validate,
};
use amphora_spec::runtime::Spec;
use amphora_sys::LaunchPlan;
use rustix::fs::{CWD, Mode, OFlags};

use crate::cache::AotCache;
use crate::compile::Compiler;
use crate::engine::Profile;
use crate::plan::hide_kernel;
use crate::{ARTEFACT_FD, CONFIG_FD, RUNNER_ENTRY, RunnerConfig, WasmError};

/// What the runner itself needs of a container's memory; the guest may have the rest.
pub const RUNNER_OVERHEAD_BYTES: u64 = 24 * 1024 * 1024;
/// Least memory a guest is limited to: one page.
pub const MIN_GUEST_BYTES: u64 = 64 * 1024;

/// What Docker gives every container; a guest has no use for any of it, so that being without is
/// no loss, but more than that was asked for on purpose.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Where checked artefacts are noted unless [`WasmWorkload::with_stamps`] says otherwise.
pub const DEFAULT_STAMPS: &str = "/run/amphora/wasm-aot";

/// Runs Wasm modules and components. Nothing is set up before the first module comes, so that
/// an engine may hold one for containers that never ask for it.
#[derive(Debug)]
pub struct WasmWorkload {
    dir: PathBuf,
    stamps: PathBuf,
    cache: OnceLock<AotCache>,
    compiler: Compiler,
    program: Option<PathBuf>,
}

impl WasmWorkload {
    /// Keeps compiled modules in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            stamps: PathBuf::from(DEFAULT_STAMPS),
            cache: OnceLock::new(),
            compiler: Compiler::default(),
            program: None,
        }
    }

    /// Notes checked artefacts in `stamps`, a directory that does not outlive the boot.
    #[must_use]
    pub fn with_stamps(mut self, stamps: impl Into<PathBuf>) -> Self {
        self.stamps = stamps.into();
        self
    }

    /// Uses another program for both hidden entries than the running binary.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.compiler = Compiler::with_program(program.clone());
        self.program = Some(program);
        self
    }

    /// Returns the cache of compiled modules, opened the first time.
    ///
    /// # Errors
    /// When the directory cannot be made, or the CPU is not supported.
    pub fn cache(&self) -> Result<&AotCache, WasmError> {
        if let Some(cache) = self.cache.get() {
            return Ok(cache);
        }
        let cache = AotCache::open(&self.dir, &self.stamps, Profile::Isolated)?;
        Ok(self.cache.get_or_init(|| cache))
    }

    fn runner(&self, bundle: &Bundle) -> Result<Program, WasmError> {
        let failed = |what| move |error: std::io::Error| WasmError::Runner(what, error);
        let module = module_of(bundle)?;
        let mut config = RunnerConfig::new(module_kind(module)?);
        configure(&mut config, &bundle.spec, module);
        if bundle.spec.root.readonly {
            config.mounts = own_mounts(bundle);
        }
        let artefact = self.cache()?.ensure(module, &self.compiler)?.file;
        let config = config
            .to_file()
            .map_err(failed("write the runner's configuration"))?;
        let program = self.open_program().map_err(failed("open the runner"))?;
        Ok(Program::Fd {
            program,
            args: vec!["amphora".to_owned(), RUNNER_ENTRY.to_owned()],
            env: Vec::new(),
            fds: vec![(config, CONFIG_FD), (artefact, ARTEFACT_FD)],
        })
    }

    fn open_program(&self) -> std::io::Result<OwnedFd> {
        match &self.program {
            None => amphora_sys::process::self_exe_readonly(),
            Some(path) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
            }
        }
    }
}

impl Workload for WasmWorkload {
    fn kind(&self) -> ExecutorKind {
        ExecutorKind::Wasm
    }

    fn validate(&self, bundle: &Bundle) -> Result<(), ExecutorError> {
        validate(bundle)?;
        check_spec(&bundle.spec)?;
        module_kind(module_of(bundle)?)?;
        Ok(())
    }

    fn prepare(&self, bundle: &Bundle) -> Result<LaunchPlan, ExecutorError> {
        let program = self.runner(bundle)?;
        let mut plan = base_plan(
            bundle,
            BaseOptions {
                seccomp: None,
                program,
            },
        )?;
        hide_kernel(&mut plan);
        Ok(plan)
    }

    fn notes(&self, bundle: &Bundle) -> Vec<String> {
        let mut all = notes(&bundle.spec);
        if bundle.init {
            all.push("init is ignored: a Wasm guest starts no processes".to_owned());
        }
        all
    }

    fn warm(&self, module: &Module) -> Result<(), ExecutorError> {
        self.cache()?.ensure(module, &self.compiler)?;
        Ok(())
    }
}

impl From<WasmError> for ExecutorError {
    fn from(error: WasmError) -> Self {
        let text = amphora_spec::error::chain(&error);
        match error {
            WasmError::Unsupported(_) => Self::Invalid(text),
            _ => Self::Module(text),
        }
    }
}

fn module_of(bundle: &Bundle) -> Result<&Module, WasmError> {
    bundle
        .module
        .as_ref()
        .ok_or_else(|| WasmError::NoModule(bundle.id.clone()))
}

/// Looks at the first bytes only.
fn module_kind(module: &Module) -> Result<ModuleKind, WasmError> {
    let failed = |error| WasmError::Runner("read the module", error);
    let file = File::from(module.file.as_fd().try_clone_to_owned().map_err(failed)?);
    let mut head = [0; 8];
    let count = file.read_at(&mut head, 0).map_err(failed)?;
    let head = head.get(..count).unwrap_or_default();
    match classify(head) {
        Magic::WasmCore => Ok(ModuleKind::Core),
        Magic::WasmComponent => Ok(ModuleKind::Component),
        _ => Err(amphora_artifact::inspect_wasm(head).err().map_or_else(
            || WasmError::Module("not a Wasm module".to_owned()),
            WasmError::Artifact,
        )),
    }
}

/// Refuses by name what would otherwise be ignored.
fn check_spec(spec: &Spec) -> Result<(), WasmError> {
    let unsupported = |what: String| Err(WasmError::Unsupported(what));
    if let Some(device) = spec.linux.devices.first() {
        return unsupported(format!("device \"{}\"", device.path));
    }
    let all = spec.process.capabilities.iter().flat_map(|sets| {
        [
            &sets.bounding,
            &sets.effective,
            &sets.permitted,
            &sets.inheritable,
            &sets.ambient,
        ]
    });
    for name in all.flatten() {
        if !DEFAULT_CAPABILITIES.contains(&name.as_str()) {
            return unsupported(format!("capability {name}"));
        }
    }
    if let Some(name) = spec
        .linux
        .sysctl
        .keys()
        .find(|name| !name.starts_with("net."))
    {
        return unsupported(format!("sysctl \"{name}\""));
    }
    // The runner's own filter is for the runner; one made for a program would not fit it.
    if spec.linux.seccomp.is_some() {
        return unsupported("a seccomp profile of its own".to_owned());
    }
    if spec.process.args.is_empty() {
        return unsupported("an empty command".to_owned());
    }
    Ok(())
}

/// What is set aside for a Wasm container although it was asked for, as sentences to show.
#[must_use]
pub fn notes(spec: &Spec) -> Vec<String> {
    let limited = spec
        .process
        .rlimits
        .iter()
        .any(|limit| limit.kind == "RLIMIT_AS");
    let text = "ulimit \"as\" is ignored: a Wasm memory reserves more address space than it uses";
    limited.then(|| text.to_owned()).into_iter().collect()
}

fn configure(config: &mut RunnerConfig, spec: &Spec, module: &Module) {
    config.args = spec.process.args.clone();
    config.function = module.function.clone();
    if let Some(first) = config.args.first_mut() {
        let (path, function) = split_function(first);
        config.function = config
            .function
            .take()
            .or_else(|| function.map(str::to_owned));
        *first = path.to_owned();
    }
    config.env = spec.process.env.clone();
    if spec.process.cwd.starts_with('/') {
        config.cwd = spec.process.cwd.clone();
    }
    config.root_readonly = spec.root.readonly;
    let limit = spec
        .linux
        .resources
        .memory
        .as_ref()
        .and_then(|memory| memory.limit);
    config.memory_bytes = limit
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|&n| n > 0)
        .map(guest_bytes);
}

/// Lists the directories that are mounted over the root, outermost first.
fn own_mounts(bundle: &Bundle) -> Vec<String> {
    let tmpfs = bundle
        .spec
        .mounts
        .iter()
        .filter(|m| m.kind == "tmpfs")
        .map(|m| &m.destination);
    let all = tmpfs.chain(bundle.mounts.iter().map(|m| &m.destination));
    let mut list: Vec<String> = all.map(|d| d.trim_end_matches('/').to_owned()).collect();
    list.retain(|d| d != "/dev" && !d.starts_with("/dev/"));
    list.sort();
    list.dedup();
    list
}

/// What is left for the guest of a container's memory.
fn guest_bytes(limit: u64) -> u64 {
    limit
        .saturating_sub(RUNNER_OVERHEAD_BYTES)
        .max(MIN_GUEST_BYTES)
}

#[cfg(test)]
mod tests {
    use amphora_spec::runtime::{Capabilities, Device, Memory, Rlimit};

    use super::*;

    fn spec() -> Spec {
        let mut spec = Spec::default();
        spec.process.args = vec!["/app.wasm".to_owned(), "x".to_owned()];
        spec
    }

    fn module() -> Module {
        Module {
            file: File::open("/dev/null").unwrap().into(),
            digest: amphora_spec::Digest::from_sha256([0; 32]),
            name: "app.wasm".to_owned(),
            function: None,
        }
    }

    #[test]
    fn devices_and_capabilities_are_refused_by_name() {
        assert!(check_spec(&spec()).is_ok());
        let mut device = spec();
        device.linux.devices.push(Device {
            path: "/dev/kvm".to_owned(),
            ..Device::default()
        });
        let text = check_spec(&device).unwrap_err().to_string();
        assert_eq!(
            text,
            "device \"/dev/kvm\" is not supported for Wasm containers"
        );
        let mut caps = spec();
        let bounding = vec!["CAP_KILL".to_owned(), "CAP_SYS_ADMIN".to_owned()];
        caps.process.capabilities = Some(Capabilities {
            bounding,
            ..Capabilities::default()
        });
        let text = check_spec(&caps).unwrap_err().to_string();
        assert_eq!(
            text,
            "capability CAP_SYS_ADMIN is not supported for Wasm containers"
        );
    }

    #[test]
    fn a_seccomp_profile_is_refused() {
        let mut given = spec();
        given.linux.seccomp = Some(amphora_spec::runtime::Seccomp::default());
        assert!(
            check_spec(&given)
                .unwrap_err()
                .to_string()
                .contains("seccomp profile")
        );
    }

    #[test]
    fn a_bound_on_address_space_is_noted() {
        let mut given = spec();
        assert!(notes(&given).is_empty());
        given.process.rlimits.push(Rlimit {
            kind: "RLIMIT_AS".to_owned(),
            hard: 1,
            soft: 1,
        });
        assert_eq!(notes(&given).len(), 1);
    }

    #[test]
    fn the_memory_limit_leaves_room_for_the_runner() {
        assert_eq!(guest_bytes(64 << 20), 40 << 20);
        assert_eq!(guest_bytes(1 << 20), MIN_GUEST_BYTES);
        let mut given = spec();
        let memory = |limit| {
            Some(Memory {
                limit: Some(limit),
                ..Memory::default()
            })
        };
        let mut config = RunnerConfig::new(ModuleKind::Core);
        given.linux.resources.memory = memory(-1);
        configure(&mut config, &given, &module());
        assert_eq!(config.memory_bytes, None);
        given.linux.resources.memory = memory(64 << 20);
        configure(&mut config, &given, &module());
        assert_eq!(config.memory_bytes, Some(40 << 20));
    }

    #[test]
    fn a_function_behind_the_path_is_called() {
        let mut given = spec();
        given.process.args[0] = "/app.wasm#go".to_owned();
        let mut config = RunnerConfig::new(ModuleKind::Core);
        configure(&mut config, &given, &module());
        assert_eq!(
            (config.args[0].as_str(), config.function.as_deref()),
            ("/app.wasm", Some("go"))
        );
        assert_eq!(config.cwd, "/", "no working directory is the root");
    }
}
