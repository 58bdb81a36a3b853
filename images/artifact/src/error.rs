//! Why a binary is no Wasm module that could be run.

use amphora_spec::{Classify, ErrorKind};

/// Why a binary was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The first bytes are not those of a Wasm binary.
    #[error("not a Wasm module: it begins with {0}")]
    NotWasm(String),
    /// Neither a core module of version 1 nor a component.
    #[error("unsupported Wasm version {0:#010x}")]
    Version(u32),
    /// Wasm in its text form.
    #[error("Wasm text is not accepted, ship the binary .wasm file")]
    Text,
    /// Native code made by a Wasm compiler.
    #[error("precompiled native code is never loaded from an image, ship the .wasm file")]
    Precompiled,
    /// The module is larger than [`crate::MAX_MODULE_BYTES`].
    #[error("Wasm module has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Size of the module.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// More names than [`crate::MAX_NAMES`].
    #[error("Wasm module has more than {0} imports or exports")]
    TooManyNames(usize),
    /// The structure is broken.
    #[error("invalid Wasm module at offset {offset:#x}: {message}")]
    Invalid {
        /// Where.
        offset: u64,
        /// What the parser says.
        message: String,
    },
}

impl Classify for ArtifactError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } | Self::TooManyNames(_) => ErrorKind::ResourceExhausted,
            Self::Text | Self::Precompiled | Self::Version(_) => ErrorKind::Unsupported,
            Self::NotWasm(_) | Self::Invalid { .. } => ErrorKind::InvalidArgument,
        }
    }
}

impl From<wasmparser::BinaryReaderError> for ArtifactError {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Invalid {
            offset: error.offset() as u64,
            message: error.message().to_owned(),
        }
    }
}
