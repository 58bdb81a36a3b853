//! Why a module cannot be compiled or run.

use std::io;
use std::path::PathBuf;

use amphora_spec::error::io_kind;
use amphora_spec::select::SelectError;
use amphora_spec::{Classify, Digest, ErrorKind};

/// Why a module cannot be compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WasmError {
    /// The engine cannot be set up on this machine.
    #[error("failed to set up the Wasm engine: {0}")]
    Engine(String),
    /// The compiler says what is wrong with the module.
    #[error("{0}")]
    Module(String),
    /// The module is no module.
    #[error(transparent)]
    Artifact(#[from] amphora_artifact::ArtifactError),
    /// Nothing here can run the module.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The file holds other bytes than its digest says.
    #[error("module has digest {actual}, expected {expected}")]
    Digest {
        /// What the file has.
        actual: Digest,
        /// What the caller said.
        expected: Digest,
    },
    /// Compiling took longer than [`crate::COMPILE_TIMEOUT`].
    #[error("failed to compile module {module}: no result within {seconds} s")]
    Timeout {
        /// The module.
        module: Digest,
        /// The limit.
        seconds: u64,
    },
    /// The compiler died.
    #[error("failed to compile module {module}: the compiler ended with {status}{text}")]
    Died {
        /// The module.
        module: Digest,
        /// Its exit status.
        status: String,
        /// What it said last, behind `: `.
        text: String,
    },
    /// The compiler could not be started or waited for.
    #[error("failed to run the compiler for module {module}")]
    Spawn {
        /// The module.
        module: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file of the cache.
    #[error("failed to {verb} \"{path}\"")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A descriptor or a record of the runner.
    #[error("failed to {0}")]
    Runner(&'static str, #[source] io::Error),
    /// The container's configuration asks for what a Wasm container cannot have.
    #[error("{0} is not supported for Wasm containers")]
    Unsupported(String),
    /// The bundle names no module.
    #[error("container \"{0}\" has no Wasm module")]
    NoModule(String),
}

impl WasmError {
    /// Makes the error of a file operation.
    pub(crate) fn file(
        verb: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }
}

impl Classify for WasmError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Module(_) | Self::NoModule(_) => ErrorKind::InvalidArgument,
            Self::Artifact(error) => error.kind(),
            Self::Select(error) => error.kind(),
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Digest { .. } => ErrorKind::DataLoss,
            Self::Timeout { .. } => ErrorKind::ResourceExhausted,
            Self::File { source, .. } | Self::Spawn { source, .. } | Self::Runner(_, source) => {
                io_kind(source)
            }
            Self::Engine(_) | Self::Died { .. } => ErrorKind::Internal,
        }
    }
}
