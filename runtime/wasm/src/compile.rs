//! Compiling, in a process of its own: the parent hands over descriptors and waits with a
//! deadline; the child gives up every right before it looks at the module.
//!
//! Protocol of `amphora compile PROFILE DIGEST`: the module's file is descriptor 0, the artefact
//! is written to descriptor 1, descriptor 2 takes one line when the module is refused (exit 1).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use amphora_artifact::{MAX_MODULE_BYTES, ModuleKind, inspect_wasm};
use amphora_spec::select::missing_imports;
use amphora_spec::{Classify, Digest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Resource, Rlimit, Signal};
use sha2::{Digest as _, Sha256};

use crate::engine::{Profile, compiler_engine};
use crate::{WasmError, confine};

/// Name of the hidden entry.
pub const COMPILE_ENTRY: &str = "compile";
/// Longest that one module may take.
pub const COMPILE_TIMEOUT: Duration = Duration::from_secs(600);
/// Processor time one module may take, over all threads.
pub const COMPILE_CPU_SECONDS: u64 = 1200;
/// Address space of the compiler.
pub const COMPILE_MEMORY_BYTES: u64 = 8 << 30;
/// Largest artefact.
pub const COMPILE_OUTPUT_BYTES: u64 = 2 << 30;
/// Open files of the compiler.
const COMPILE_FILES: u64 = 16;
/// Most of a refusal that is read.
const MAX_TEXT_BYTES: u64 = 16 * 1024;
/// Exit code of the child when the module is refused.
const REFUSED: u8 = 1;
/// Exit code of the child when it failed itself.
const FAILED: u8 = 2;

/// Starts compilers.
#[derive(Debug, Clone)]
pub struct Compiler {
    program: PathBuf,
    timeout: Duration,
}

impl Default for Compiler {
    /// The running binary compiles, through its hidden entry.
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            timeout: COMPILE_TIMEOUT,
        }
    }
}

impl Compiler {
    /// Uses another program that has the hidden entry.
    #[must_use]
    pub fn with_program(program: PathBuf) -> Self {
        Self {
            program,
            ..Self::default()
        }
    }

    /// Allows less time than [`COMPILE_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Compiles `module` into the empty file `output`.
    ///
    /// # Errors
    /// [`WasmError::Module`] with the reason when the module is refused; other errors when the
    /// compiler itself fails or takes too long.
    pub fn compile(
        &self,
        profile: Profile,
        digest: &Digest,
        module: BorrowedFd<'_>,
        output: BorrowedFd<'_>,
    ) -> Result<(), WasmError> {
        let failed = |source| WasmError::Spawn {
            module: *digest,
            source,
        };
        let deadline = Instant::now() + self.timeout;
        let mut child = Command::new(&self.program)
            .args([COMPILE_ENTRY, profile.name(), &digest.to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(module.try_clone_to_owned().map_err(failed)?)
            .stdout(output.try_clone_to_owned().map_err(failed)?)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let ended = wait(&mut child, deadline);
        if !matches!(ended, Ok(Some(_))) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let Some((status, text)) = ended.map_err(failed)? else {
            let seconds = self.timeout.as_secs();
            return Err(WasmError::Timeout {
                module: *digest,
                seconds,
            });
        };
        if status.success() {
            return Ok(());
        }
        if status.code() == Some(i32::from(REFUSED)) && !text.is_empty() {
            return Err(WasmError::Module(text));
        }
        let status = match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("exit code {}", status.code().unwrap_or(-1)),
        };
        let text = if text.is_empty() {
            text
        } else {
            format!(": {text}")
        };
        Err(WasmError::Died {
            module: *digest,
            status,
            text,
        })
    }
}

/// Collects what the child says and its status; `None` at the deadline.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<(ExitStatus, String)>> {
    let pid = rustix::process::Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let status = child.wait()?;
    // The child is gone and wrote one line, which the pipe has held for it.
    let mut text = Vec::new();
    if let Some(pipe) = child.stderr.take() {
        pipe.take(MAX_TEXT_BYTES).read_to_end(&mut text)?;
    }
    Ok(Some((
        status,
        String::from_utf8_lossy(&text).trim().to_owned(),
    )))
}

/// The hidden entry `compile`.
#[must_use]
pub fn compile_main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let refused = !matches!(error.kind(), amphora_spec::ErrorKind::Internal);
            let text = amphora_spec::error::chain(&error);
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::from(if refused { REFUSED } else { FAILED })
        }
    }
}

fn run() -> Result<(), WasmError> {
    let usage = || {
        WasmError::Runner(
            "read the compiler's arguments",
            io::ErrorKind::InvalidInput.into(),
        )
    };
    let mut args = std::env::args().skip(2);
    let profile = args
        .next()
        .and_then(|name| Profile::from_name(&name))
        .ok_or_else(usage)?;
    let expected: Digest = args
        .next()
        .and_then(|text| text.parse().ok())
        .ok_or_else(usage)?;
    limit().map_err(|error| WasmError::Runner("limit the compiler", error))?;
    confine::compiler().map_err(|error| WasmError::Runner("confine the compiler", error))?;
    let bytes = read_module().map_err(|error| WasmError::Runner("read the module", error))?;
    let actual = Digest::from_sha256(Sha256::digest(&bytes).into());
    if actual != expected {
        return Err(WasmError::Digest { actual, expected });
    }
    let artefact = compile(profile, &bytes)?;
    let output = || -> io::Result<()> {
        let mut file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        file.write_all(&artefact)
    };
    output().map_err(|error| WasmError::Runner("write the compiled module", error))
}

/// Inspects and compiles a module in this process.
fn compile(profile: Profile, bytes: &[u8]) -> Result<Vec<u8>, WasmError> {
    let facts = inspect_wasm(bytes)?;
    if let Some(error) = missing_imports(&facts) {
        return Err(error.into());
    }
    let engine = compiler_engine(profile)?;
    match facts.kind {
        ModuleKind::Core => engine.precompile_module(bytes),
        ModuleKind::Component => engine.precompile_component(bytes),
    }
    .map_err(|error| WasmError::Module(format!("invalid Wasm {}: {error:#}", facts.kind)))
}

fn read_module() -> io::Result<Vec<u8>> {
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let size = file.metadata()?.len();
    if size > MAX_MODULE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?];
    // By position: the offset of the descriptor is the parent's too.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Bounds what a hostile module can make the compiler use.
fn limit() -> io::Result<()> {
    let limits = [
        (Resource::As, COMPILE_MEMORY_BYTES),
        (Resource::Cpu, COMPILE_CPU_SECONDS),
        (Resource::Fsize, COMPILE_OUTPUT_BYTES),
        (Resource::Nofile, COMPILE_FILES),
        (Resource::Core, 0),
    ];
    for (resource, wanted) in limits {
        let maximum = rustix::process::getrlimit(resource).maximum;
        let value = Some(maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        rustix::process::setrlimit(
            resource,
            Rlimit {
                current: value,
                maximum: value,
            },
        )?;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}
