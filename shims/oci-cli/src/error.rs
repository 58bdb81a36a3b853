//! Why a command failed.

use amphora_executor::ExecutorError;
use amphora_sys::launch::LaunchError;

/// What most functions here return.
pub(crate) type Result<T = ()> = std::result::Result<T, RuncError>;

/// Why a command failed. The texts that engines look for are runc's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuncError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something that is known and not done.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A container of that name is not there.
    #[error("container does not exist")]
    NoSuchContainer,
    /// A container of that name is there already.
    #[error("container with given ID already exists")]
    Exists,
    /// The container is not in the right state.
    #[error("{0}")]
    State(String),
    /// A file of ours or of the bundle.
    #[error("{what}")]
    File {
        /// What was tried, with its object.
        what: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file that holds something else than it should.
    #[error("{what} is malformed")]
    Malformed {
        /// The file.
        what: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The bundle cannot be run.
    #[error("unable to start container process")]
    Executor(#[source] ExecutorError),
    /// The plan did not end in a running program.
    #[error("unable to start container process")]
    Launch(#[source] LaunchError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] amphora_cgroup::CgroupError),
    /// A hook.
    #[error("{stage} hook {path}: {why}")]
    Hook {
        /// Which kind.
        stage: &'static str,
        /// Its program.
        path: String,
        /// What went wrong.
        why: String,
    },
}

impl RuncError {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// Whether the kernel did not permit a step of the process, or of its preparation.
    pub(crate) fn is_not_permitted(&self) -> bool {
        const EPERM: i32 = 1;
        match self {
            Self::Launch(error) => error.errno() == Some(EPERM),
            Self::Executor(ExecutorError::Kernel { source, .. }) => {
                source.raw_os_error() == Some(EPERM)
            }
            _ => false,
        }
    }

    pub(crate) fn unsupported(what: &str) -> Self {
        Self::Unsupported(what.to_owned())
    }

    /// Wraps the system's answer to an action, worded as a sentence without its end.
    pub(crate) fn file<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::File {
            what,
            source: source.into(),
        }
    }
}
