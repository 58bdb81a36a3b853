//! The runner: the last program of a Wasm container. It is started inside the container, takes
//! two descriptors, loads the artefact, gives up what it no longer needs, runs the guest, exits.

mod guest;
mod load;
mod stdio;

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::process::exit;

use amphora_artifact::ModuleKind;
use serde::{Deserialize, Serialize};

use crate::WasmError;

/// Name of the hidden entry.
pub const RUNNER_ENTRY: &str = "wasm-run";
/// Where the runner finds its configuration.
pub const CONFIG_FD: RawFd = 3;
/// Where the runner finds the compiled module.
pub const ARTEFACT_FD: RawFd = 4;
/// Exit code of a guest that trapped, as for a process that aborted.
pub const EXIT_TRAP: i32 = 134;
/// Exit code when the guest could not be started.
pub const EXIT_REFUSED: i32 = 126;

const FORMAT: u32 = 1;
/// Largest configuration: arguments and environment have the kernel's bounds in mind.
const MAX_CONFIG_BYTES: u64 = 16 * 1024 * 1024;

/// What the runner is told; crosses as bytes in [`CONFIG_FD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerConfig {
    format: u32,
    /// Module or component.
    pub kind: ModuleKind,
    /// Arguments, the program's name first.
    pub args: Vec<String>,
    /// Environment, `KEY=value`, exactly what the guest gets.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Export to call in place of the default.
    pub function: Option<String>,
    /// Most bytes of linear memory; unlimited when absent.
    pub memory_bytes: Option<u64>,
    /// The root file system is read-only.
    pub root_readonly: bool,
    /// Mounts below a read-only root that keep their own access: the kernel knows which of them
    /// may be written.
    pub mounts: Vec<String>,
    /// Directory that the guest sees as `/`; the runner's own root inside a container.
    pub root: String,
}

impl RunnerConfig {
    /// Makes the configuration of a command without arguments, environment or limits.
    #[must_use]
    pub fn new(kind: ModuleKind) -> Self {
        Self {
            format: FORMAT,
            kind,
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            function: None,
            memory_bytes: None,
            root_readonly: false,
            mounts: Vec::new(),
            root: "/".to_owned(),
        }
    }

    /// Writes the configuration into an anonymous file that starts at its first byte.
    ///
    /// # Errors
    /// When memory is short.
    pub fn to_file(&self) -> io::Result<OwnedFd> {
        let bytes = postcard::to_allocvec(self).map_err(io::Error::other)?;
        let file = rustix::fs::memfd_create("wasm-run", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = File::from(file);
        file.write_all(&bytes)?;
        io::Seek::rewind(&mut file)?;
        Ok(file.into())
    }

    fn from_file(file: OwnedFd) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::from(file)
            .take(MAX_CONFIG_BYTES)
            .read_to_end(&mut bytes)?;
        let config: Self = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        if config.format == FORMAT {
            Ok(config)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

/// How a guest ended.
#[derive(Debug)]
enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By a trap; the text holds the backtrace.
    Trap(String),
    /// It never ran.
    Refused(String),
}

/// The hidden entry `wasm-run`.
pub fn runner_main() -> ! {
    let Err(error) = run();
    end(&Ended::Refused(amphora_spec::error::chain(&error)))
}

/// Leaves: tearing down what the kernel frees anyway would only cost time.
#[expect(clippy::exit, reason = "the runner is the whole process")]
fn end(ended: &Ended) -> ! {
    let (code, text) = match ended {
        Ended::Code(code) => (*code, None),
        Ended::Trap(text) => (EXIT_TRAP, Some(text)),
        Ended::Refused(text) => (EXIT_REFUSED, Some(text)),
    };
    if let Some(text) = text {
        let _ = writeln!(io::stderr(), "amphora: {}", text.trim_end());
    }
    exit(code)
}

fn run() -> Result<Infallible, WasmError> {
    let failed = |what| move |error: io::Error| WasmError::Runner(what, error);
    let config = amphora_sys::inherited::take(CONFIG_FD).and_then(RunnerConfig::from_file);
    let config = config.map_err(failed("read the runner's configuration"))?;
    let artefact = amphora_sys::inherited::take(ARTEFACT_FD);
    let artefact = File::from(artefact.map_err(failed("take the compiled module"))?);
    amphora_sys::signal::exit_on_ending_signals().map_err(failed("handle signals"))?;
    // wasmtime-wasi starts a runtime with threads of its own unless one is entered already.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(failed("start the runner"))?;
    runtime.block_on(guest::run(&config, artefact))
}
