//! What a supervisor is told, once. Kept as `R/containers/<id>/supervise.cfg`, so that another
//! supervisor can take over from a killed one.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use amphora_spec::release::Release;
use serde::{Deserialize, Serialize};

use crate::{SupervisorError, files};

const NAME: &str = "supervise.cfg";
const LIMIT: usize = 8 << 20;
const MAGIC: &[u8; 8] = b"amphscfg";
const VERSION: u16 = 1;

/// Everything a supervisor knows of its container, beside the launch plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The container's id.
    pub id: String,
    /// `R/containers/<id>`, made by the caller with mode 0700.
    pub run_dir: PathBuf,
    /// `D/containers/<id>`, made by the caller; `logs/` in it is made when it is missing.
    pub data_dir: PathBuf,
    /// Where output goes.
    pub log: LogConfig,
    /// Whether init gets a pipe as standard input; otherwise `/dev/null`.
    pub open_stdin: bool,
    /// Whether standard input ends when the first client that is attached to it goes.
    pub stdin_once: bool,
    /// Whether the container is removed when it exits: its exit record then stays in the run
    /// directory.
    pub auto_remove: bool,
    /// What is undone right after exit, in this order.
    pub release: Vec<Release>,
    /// What the descriptors in [`crate::SpawnRequest::listeners`] are for, in their order.
    pub listeners: Vec<Listener>,
    /// What the supervisor becomes in the end, as argv of this same binary; empty: it just ends.
    /// It inherits the container's lock as descriptor 3 ([`crate::inherited_lock`]) and no
    /// environment.
    pub finish: Vec<String>,
    /// What signal number 0 on the socket stands for.
    pub stop_signal: i32,
    /// The container's cgroup, for the count of processes killed for want of memory.
    pub cgroup: Option<amphora_cgroup::Handle>,
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// How it is written.
    pub driver: LogDriver,
    /// A file is rotated before it would grow beyond this many bytes; 0: never.
    pub max_size: u64,
    /// How many files are kept, the current one among them; at least 1.
    pub max_files: u32,
}

/// How output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogDriver {
    /// Docker's lines: `{"log":"…\n","stream":"stdout","time":"…"}` in `logs/json.log`.
    JsonFile,
    /// Not at all.
    None,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            driver: LogDriver::JsonFile,
            max_size: 10 << 20,
            max_files: 3,
        }
    }
}

/// What a handed-over socket is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Accept here and splice to this address of the container; `None`: only hold the socket, so
    /// that nobody else takes its port.
    pub target: Option<SocketAddr>,
}

impl Config {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, SupervisorError> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        postcard::to_extend(self, out).map_err(|e| malformed(e.to_string()))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SupervisorError> {
        let body = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| malformed("wrong magic".to_owned()))?;
        let body = body
            .strip_prefix(&VERSION.to_le_bytes())
            .ok_or_else(|| malformed("unknown version".to_owned()))?;
        postcard::from_bytes(body).map_err(|e| malformed(e.to_string()))
    }

    /// Reads the configuration that the last supervisor of a run directory was started with;
    /// `None` when there was none.
    ///
    /// # Errors
    /// When the file cannot be read or is of an unknown version.
    pub fn read(run_dir: BorrowedFd<'_>) -> Result<Option<Self>, SupervisorError> {
        let bytes = files::read(run_dir, NAME, LIMIT)
            .map_err(|e| SupervisorError::file("read", NAME, e))?;
        bytes.map(|b| Self::decode(&b)).transpose()
    }

    pub(crate) fn keep(run_dir: BorrowedFd<'_>, encoded: &[u8]) -> Result<(), SupervisorError> {
        files::replace(run_dir, NAME, encoded).map_err(|e| SupervisorError::file("write", NAME, e))
    }
}

fn malformed(why: String) -> SupervisorError {
    SupervisorError::Malformed {
        what: "supervisor configuration",
        why,
    }
}
