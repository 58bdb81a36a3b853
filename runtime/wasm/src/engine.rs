//! The one engine configuration, shared by the compiler and the runner: an artefact can only be
//! loaded by an engine that agrees with the one that made it.

use amphora_spec::Digest;
use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine, OptLevel, Strategy, WasmBacktraceDetails};

use crate::WasmError;

/// What compiled code is prepared for; part of the cache key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Profile {
    /// One process per container: no epoch checks, no fuel.
    #[default]
    Isolated,
}

impl Profile {
    /// Returns the name used on the compiler's command line and in keys.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
        }
    }

    /// Finds a profile by its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        (name == Self::Isolated.name()).then_some(Self::Isolated)
    }
}

/// The settings both sides must agree on.
fn engine_config(profile: Profile) -> Config {
    let Profile::Isolated = profile;
    let mut config = Config::new();
    // No variable of the environment may change what an artefact is.
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    // Frame pointers carry backtraces and exceptions; system unwinders never walk through a
    // guest, and registering tables for them would cost every start.
    config.native_unwind_info(false);
    config
}

fn build(config: &Config) -> Result<Engine, WasmError> {
    Engine::new(config).map_err(|error| WasmError::Engine(format!("{error:#}")))
}

/// Makes an engine that compiles.
pub(crate) fn compiler_engine(profile: Profile) -> Result<Engine, WasmError> {
    let mut config = engine_config(profile);
    config.strategy(Strategy::Cranelift);
    config.cranelift_opt_level(OptLevel::Speed);
    build(&config)
}

/// Makes an engine that only loads and runs: it builds no compiler, which would cost every start.
pub(crate) fn runner_config(profile: Profile) -> Config {
    let mut config = engine_config(profile);
    config.enable_compiler(false);
    config
}

/// Feeds what is hashed into SHA-256, whose value is the same in every process of this build.
struct Sha(Sha256);

impl std::hash::Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// Returns a digest of everything but the module that shapes an artefact: version, target, CPU
/// features, settings, profile.
///
/// # Errors
/// [`WasmError::Engine`] when this CPU is not supported.
pub fn fingerprint(profile: Profile) -> Result<Digest, WasmError> {
    use std::hash::Hash;
    let engine = compiler_engine(profile)?;
    let mut sha = Sha(Sha256::new());
    sha.0.update(concat!(
        "amphora-aot-1 wasmtime-48.0.8 ",
        env!("CARGO_PKG_VERSION")
    ));
    sha.0.update(profile.name());
    engine.precompile_compatibility_hash().hash(&mut sha);
    Ok(Digest::from_sha256(sha.0.finalize().into()))
}
