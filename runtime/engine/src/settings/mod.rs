//! The engine's configuration file: dockerd's keys. Each one works or is refused by name; nothing
//! in it is passed over. Pure, but for the one file.

mod keys;
mod values;

use std::path::{Path, PathBuf};

use amphora_network::NetworkSettings;
use amphora_spec::runtime::Rlimit;
use amphora_spec::select::Executor;
use serde_json::{Map, Value};

use crate::config::{DnsConfig, HostConfig};
use crate::logging::LogSettings;
use crate::{EngineError, Result};

use keys::{KEYS, Key};

/// Largest file that is read, in bytes.
const SIZE_MAX: usize = 1 << 20;

/// What the configuration file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// `data-root`.
    pub data_root: Option<PathBuf>,
    /// `exec-root`.
    pub exec_root: Option<PathBuf>,
    /// `bip`, `default-address-pools`, `mtu`, `ipv6`.
    pub network: NetworkSettings,
    /// `log-driver`, `log-opts`.
    pub log: LogSettings,
    /// `default-ulimits`.
    pub ulimits: Vec<Rlimit>,
    /// `default-shm-size`.
    pub shm_size: Option<u64>,
    /// `default-cgroupns-mode`; empty when it is not there.
    pub cgroupns_mode: String,
    /// `default-ipc-mode`; empty when it is not there.
    pub ipc_mode: String,
    /// `dns`, `dns-search`, `dns-opts`.
    pub dns: DnsConfig,
    /// `init`, `default-init`.
    pub init: bool,
    /// `no-new-privileges`.
    pub no_new_privileges: bool,
    /// `default-runtime`, when it names one of the two executors.
    pub runtime: Option<String>,
    /// `insecure-registries`.
    pub insecure_registries: Vec<String>,
    /// `registry-mirrors`, without a slash at the end.
    pub registry_mirrors: Vec<String>,
}

impl Settings {
    /// Reads the file; `None` when it is not there.
    ///
    /// # Errors
    /// A file that cannot be read; text that is no JSON object, with line and column; a key that
    /// is unknown or refused, or a value that is wrong, with file and key.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(EngineError::file("read", path, e)),
        };
        Self::parse(path, &bytes).map(Some)
    }

    /// Understands the file's bytes.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let name = path.display();
        let invalid = |text: String| EngineError::Invalid(text);
        if bytes.len() > SIZE_MAX {
            return Err(invalid(format!(
                "configuration file {name} is larger than {SIZE_MAX} bytes"
            )));
        }
        // An empty file says nothing, as under dockerd.
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let map: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|e| invalid(format!("configuration file {name} is not valid JSON: {e}")))?;
        let mut settings = Self::default();
        for (key, value) in &map {
            let known = KEYS.iter().find(|(known, _)| known == key);
            let Some((_, what)) = known else {
                return Err(invalid(format!(
                    "configuration file {name}: unknown key \"{key}\""
                )));
            };
            let wrong =
                |why: String| invalid(format!("configuration file {name}: \"{key}\": {why}"));
            match what {
                Key::Works(read) => read(&mut settings, value).map_err(wrong)?,
                Key::Only(allowed, why) if !allowed(value) => {
                    return Err(wrong(format!("{value} is not supported: {why}")));
                }
                Key::Only(..) => {}
                Key::Refused(why) => return Err(wrong(format!("not supported: {why}"))),
            }
        }
        settings
            .check()
            .map_err(|why| invalid(format!("configuration file {name}: {why}")))?;
        Ok(settings)
    }

    /// Checks what only several keys together tell.
    fn check(&self) -> Result<(), String> {
        crate::logging::check(&self.log).map_err(|e| format!("\"log-opts\": {e}"))
    }

    /// Fills in what a container's own flags leave open.
    pub(crate) fn complete(&self, host: &mut HostConfig, executor: Executor) {
        self.complete_log(&mut host.log);
        for limit in &self.ulimits {
            if !host.ulimits.iter().any(|own| own.kind == limit.kind) {
                host.ulimits.push(limit.clone());
            }
        }
        host.shm_size = host.shm_size.or(self.shm_size);
        for (mode, default) in [
            (&mut host.cgroupns_mode, &self.cgroupns_mode),
            (&mut host.ipc_mode, &self.ipc_mode),
        ] {
            if mode.is_empty() {
                mode.clone_from(default);
            }
        }
        // A Wasm guest starts no processes that an init would look after.
        if executor == Executor::Linux {
            host.init = host.init.or(self.init.then_some(true));
        }
        let said = |option: &String| option.starts_with("no-new-privileges");
        if self.no_new_privileges && !host.security_opt.iter().any(said) {
            host.no_new_privileges = true;
        }
        for (own, default) in [
            (&mut host.dns.servers, &self.dns.servers),
            (&mut host.dns.search, &self.dns.search),
            (&mut host.dns.options, &self.dns.options),
        ] {
            if own.is_empty() {
                own.clone_from(default);
            }
        }
    }

    /// Docker's rule: options of the default driver go to every container with that driver.
    fn complete_log(&self, log: &mut LogSettings) {
        if log.driver.is_empty() {
            log.driver.clone_from(&self.log.driver);
        }
        if log.driver() == self.log.driver() {
            for (key, value) in &self.log.options {
                log.options
                    .entry(key.clone())
                    .or_insert_with(|| value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
