//! Log drivers: options checked in Docker's words, and what the supervisor is told of them. Pure,
//! but for the sockets that are looked for at start.

use std::collections::BTreeMap;
use std::path::Path;

use amphora_supervisor::{LogConfig, LogDriver, LogRemote, SyslogAddress};
use serde::{Deserialize, Serialize};

use crate::config::ContainerConfig;
use crate::{EngineError, Result};

/// The driver unless something is said.
pub const DEFAULT_DRIVER: &str = "json-file";
/// Docker's drivers that are known and absent.
const ABSENT: [&str; 7] = [
    "awslogs",
    "etwlogs",
    "fluentd",
    "gcplogs",
    "gelf",
    "logentries",
    "splunk",
];
/// Options of all drivers.
const COMMON: [&str; 5] = ["mode", "max-buffer-size", "labels", "env", "tag"];
/// Options of drivers that write a file.
const FILE: [&str; 3] = ["max-size", "max-file", "compress"];
/// Options of the copy that is kept of what is sent elsewhere.
const COPY: [&str; 4] = [
    "cache-disabled",
    "cache-max-size",
    "cache-max-file",
    "cache-compress",
];
/// The drivers and their options.
const DRIVERS: [(&str, &[&[&str]]); 5] = [
    ("journald", &[&COMMON, &COPY]),
    ("json-file", &[&FILE, &COMMON]),
    ("local", &[&FILE, &["mode", "max-buffer-size"]]),
    ("none", &[]),
    (
        "syslog",
        &[&COMMON, &COPY, &["syslog-address", "syslog-facility"]],
    ),
];
/// Longest labels and variables on a line, in bytes of JSON.
const ATTRS_MAX: usize = 32 << 10;
/// Size and number of files of the driver `local`, and of copies.
const LOCAL_SIZE: u64 = 20 << 20;
const LOCAL_FILES: u32 = 5;
/// Sockets of the journal and of syslog.
const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];
/// Facilities of syslog, by number.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];

/// Where output goes, as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSettings {
    /// Docker's name of the driver; empty: [`DEFAULT_DRIVER`].
    pub driver: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

impl LogSettings {
    /// Returns the driver's name.
    #[must_use]
    pub fn driver(&self) -> &str {
        if self.driver.is_empty() {
            DEFAULT_DRIVER
        } else {
            &self.driver
        }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// Returns what is kept and can be read back.
    ///
    /// # Errors
    /// Docker's words for a log that was not kept.
    pub fn readable(&self) -> Result<&'static str> {
        let kept = match self.driver() {
            "json-file" => LogDriver::JsonFile,
            "none" => LogDriver::None,
            "local" => LogDriver::Local,
            _ if self.get("cache-disabled") == Some("true") => LogDriver::None,
            _ => LogDriver::Local,
        };
        kept.file().ok_or_else(|| {
            EngineError::Unsupported("configured logging driver does not support reading".into())
        })
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(EngineError::Invalid(text.into()))
}

/// Returns the names of the drivers, in order.
pub fn drivers() -> impl Iterator<Item = &'static str> {
    DRIVERS.iter().map(|(name, _)| *name)
}

/// Checks driver and options, before anything exists.
///
/// # Errors
/// [`EngineError::Invalid`] and [`EngineError::Unsupported`], in Docker's words.
pub fn check(log: &LogSettings) -> Result<()> {
    let driver = log.driver();
    let own = match DRIVERS.iter().find(|(name, _)| *name == driver) {
        // Docker takes whatever options for it.
        Some(("none", _)) => return Ok(()),
        Some((_, own)) => own,
        None if ABSENT.contains(&driver) => {
            return Err(EngineError::Unsupported(format!(
                "log driver \"{driver}\" is not supported"
            )));
        }
        None => {
            return invalid(format!(
                "logger: no log driver named '{driver}' is registered"
            ));
        }
    };
    for key in log.options.keys() {
        if !own.concat().contains(&key.as_str()) {
            return invalid(match driver {
                "syslog" | "journald" | "json-file" => {
                    format!("unknown log opt '{key}' for {driver} log driver")
                }
                _ => format!("unknown log opt '{key}' for log driver {driver}"),
            });
        }
    }
    check_mode(log)?;
    if let Some(tag) = log.get("tag") {
        expand(tag, &|name| TAG_FIELDS.contains(&name).then(String::new))?;
    }
    if driver == "syslog" {
        address(log)?;
        facility(log)?;
    }
    file(log).map(|_| ())
}

fn check_mode(log: &LogSettings) -> Result<()> {
    let mode = log.get("mode").unwrap_or_default();
    if !matches!(mode, "" | "blocking" | "non-blocking") {
        return invalid(format!("logger: logging mode not supported: {mode}"));
    }
    match log.get("max-buffer-size") {
        Some(_) if mode != "non-blocking" => {
            invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        }
        Some(text) if size(text).is_none() => invalid(format!(
            "error parsing option max-buffer-size: invalid size: '{text}'"
        )),
        _ => Ok(()),
    }
}

/// Parses a size in binary units: `10m`, `1.5g`, `100`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower.get(number.len()..)?.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    let value: f64 = number.trim().parse().ok()?;
    let bytes = value * f64::from(1_u32 << shift);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be in range"
    )]
    (0.0..1e18).contains(&bytes).then_some(bytes as u64)
}

fn flag(log: &LogSettings, key: &str, default: bool) -> Result<bool> {
    match log.get(key) {
        None => Ok(default),
        Some("true" | "1" | "t" | "TRUE" | "True" | "T") => Ok(true),
        Some("false" | "0" | "f" | "FALSE" | "False" | "F") => Ok(false),
        Some(text) => invalid(format!("invalid value for log opt '{key}': {text}")),
    }
}

/// What of the file the options say: size, number, compression.
fn file(log: &LogSettings) -> Result<(u64, u32, bool)> {
    let remote = matches!(log.driver(), "journald" | "syslog");
    let keys = if remote {
        ["cache-max-size", "cache-max-file", "cache-compress"]
    } else {
        FILE
    };
    let own = log.driver() == "json-file";
    let default = LogConfig::default();
    let max_size = match log.get(keys[0]) {
        None if own => default.max_size,
        None => LOCAL_SIZE,
        Some("-1") => 0,
        Some(text) => match size(text) {
            Some(0) => return invalid("max-size must be a positive number"),
            Some(bytes) => bytes,
            None => return invalid(format!("invalid value for {}: '{text}'", keys[0])),
        },
    };
    let max_files = match log.get(keys[1]) {
        None if own => default.max_files,
        None => LOCAL_FILES,
        Some(text) => match text.parse() {
            Ok(0) => return invalid("max-file cannot be less than 1"),
            Ok(count) if count <= crate::logs::FILES_MAX => count,
            _ => return invalid(format!("invalid value for {}: '{text}'", keys[1])),
        },
    };
    let can = max_files > 1 && max_size > 0;
    let compress = flag(log, keys[2], !own && can)?;
    if compress && !can {
        return invalid(
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        );
    }
    Ok((max_size, max_files, compress))
}

fn facility(log: &LogSettings) -> Result<u8> {
    let Some(text) = log.get("syslog-facility") else {
        return Ok(3);
    };
    let named = FACILITIES.iter().position(|f| !f.is_empty() && *f == text);
    let number = named.or_else(|| text.parse().ok().filter(|n| *n < FACILITIES.len()));
    match number.and_then(|n| u8::try_from(n).ok()) {
        Some(number) => Ok(number),
        None => invalid("invalid syslog facility"),
    }
}

/// The address that was asked for; `None`: the machine's own socket.
fn address(log: &LogSettings) -> Result<Option<SyslogAddress>> {
    let Some(text) = log.get("syslog-address") else {
        return Ok(None);
    };
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    match scheme {
        "unixgram" => Ok(Some(SyslogAddress::Unix(rest.into()))),
        "udp" => {
            let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "514"));
            let host = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            match (host, port.parse()) {
                (Ok(ip), Ok(port)) => Ok(Some(SyslogAddress::Udp((ip, port).into()))),
                _ => invalid(format!(
                    "syslog-address \"{text}\" is not supported: an IP address and a port are needed"
                )),
            }
        }
        "unix" | "tcp" | "tcp+tls" => Err(EngineError::Unsupported(format!(
            "syslog-address \"{text}\" is not supported: only unixgram:// and udp:// are"
        ))),
        _ => invalid(format!("unsupported scheme: '{scheme}'")),
    }
}

/// Names in a tag, as in `{{.Name}}`.
const TAG_FIELDS: [&str; 9] = [
    "ID",
    "FullID",
    "Name",
    "ImageID",
    "ImageFullID",
    "ImageName",
    "Command",
    "Hostname",
    "DaemonName",
];

/// Replaces `{{.Field}}`.
fn expand(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let field = after.split_once("}}").and_then(|(name, tail)| {
            let name = name.trim().strip_prefix('.')?;
            Some((value(name)?, tail))
        });
        let Some((field, tail)) = field else {
            return invalid(format!("log tag \"{text}\" is not supported"));
        };
        out.push_str(&field);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn tag(config: &ContainerConfig) -> Result<String> {
    let text = config.host.log.get("tag").filter(|t| !t.is_empty());
    expand(text.unwrap_or("{{.ID}}"), &|name| {
        let image = config.image_id.hex();
        Some(match name {
            "ID" => config.id.short(),
            "FullID" => config.id.hex(),
            "Name" => config.name.clone(),
            "ImageID" => image.get(..12).unwrap_or(&image).to_owned(),
            "ImageFullID" => config.image_id.to_string(),
            "ImageName" => config.image.clone(),
            "Command" => config.args().join(" "),
            "Hostname" => rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            "DaemonName" => "amphora".to_owned(),
            _ => return None,
        })
    })
}

/// Labels and variables that were asked for, and the tag of a file.
fn attrs(config: &ContainerConfig) -> Result<BTreeMap<String, String>> {
    let log = &config.host.log;
    let names = |key: &str| -> Vec<String> {
        let list = log.get(key).unwrap_or_default();
        list.split(',').map(str::to_owned).collect()
    };
    let mut out = BTreeMap::new();
    for name in names("labels") {
        if let Some(value) = config.labels.get(&name) {
            out.insert(name, value.clone());
        }
    }
    for name in names("env") {
        let found = config.env.iter().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key == name).then(|| value.to_owned())
        });
        if let Some(value) = found {
            out.insert(name, value);
        }
    }
    if log.driver() == "json-file" && log.get("tag").is_some_and(|t| !t.is_empty()) {
        out.insert("tag".to_owned(), tag(config)?);
    }
    Ok(out)
}

/// Turns the settings into what the supervisor is told.
///
/// # Errors
/// A driver whose socket is not there; options that do not hold together.
pub(crate) fn build(config: &ContainerConfig) -> Result<LogConfig> {
    let log = &config.host.log;
    // The default costs nothing.
    if log.driver() == DEFAULT_DRIVER && log.options.is_empty() {
        return Ok(LogConfig::default());
    }
    let kept = match log.readable() {
        Ok("json.log") => LogDriver::JsonFile,
        Ok(_) => LogDriver::Local,
        Err(_) => LogDriver::None,
    };
    if log.driver() == "none" {
        return Ok(LogConfig {
            driver: kept,
            ..LogConfig::default()
        });
    }
    let (max_size, max_files, compress) = file(log)?;
    let found = attrs(config)?;
    let text = if found.is_empty() {
        String::new()
    } else {
        serde_json::to_string(&found).unwrap_or_default()
    };
    if text.len() > ATTRS_MAX {
        return invalid("the labels and variables of the log are longer than 32 KiB");
    }
    Ok(LogConfig {
        driver: kept,
        max_size,
        max_files,
        compress,
        attrs: text,
        remote: remote(config, &found)?,
    })
}

fn remote(config: &ContainerConfig, attrs: &BTreeMap<String, String>) -> Result<Option<LogRemote>> {
    let failed = |why: &str| {
        Err(EngineError::State(format!(
            "failed to initialize logging driver: {why}"
        )))
    };
    let log = &config.host.log;
    match log.driver() {
        "journald" => {
            if !Path::new(JOURNAL).exists() {
                return failed("journald is not enabled on this host");
            }
            Ok(Some(LogRemote::Journald {
                socket: JOURNAL.into(),
                fields: journal_fields(config, attrs)?,
            }))
        }
        "syslog" => {
            let found = SYSLOG.into_iter().find(|p| Path::new(p).exists());
            let address = match (address(log)?, found) {
                (Some(SyslogAddress::Unix(path)), _) if !path.exists() => {
                    return failed(&format!("no syslog socket at \"{}\"", path.display()));
                }
                (Some(address), _) => address,
                (None, Some(path)) => SyslogAddress::Unix(path.into()),
                (None, None) => return failed("Unix syslog delivery error"),
            };
            Ok(Some(LogRemote::Syslog {
                address,
                facility: facility(log)?,
                tag: tag(config)?,
            }))
        }
        _ => Ok(None),
    }
}

fn journal_fields(
    config: &ContainerConfig,
    attrs: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>> {
    let tag = tag(config)?;
    let mut out: Vec<(String, String)> = [
        ("CONTAINER_ID", config.id.short()),
        ("CONTAINER_ID_FULL", config.id.hex()),
        ("CONTAINER_NAME", config.name.clone()),
        ("CONTAINER_TAG", tag.clone()),
        ("IMAGE_NAME", config.image.clone()),
        ("SYSLOG_IDENTIFIER", tag),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    for (key, value) in attrs {
        // A field's name is upper-case letters, digits and underscores, the first no underscore.
        let upper = key.to_ascii_uppercase();
        let clean = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = upper.chars().map(clean).collect();
        let name = name.trim_start_matches('_').to_owned();
        if !name.is_empty() {
            out.push((name, value.clone()));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(driver: &str, options: &[(&str, &str)]) -> LogSettings {
        LogSettings {
            driver: driver.to_owned(),
            options: options
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn options_are_refused_by_name() {
        let refused = |driver: &str, options: &[(&str, &str)]| {
            check(&settings(driver, options)).unwrap_err().to_string()
        };
        for (driver, options, text) in [
            (
                "foo",
                &[][..],
                "logger: no log driver named 'foo' is registered",
            ),
            ("gelf", &[], "log driver \"gelf\" is not supported"),
            (
                "json-file",
                &[("x", "1")],
                "unknown log opt 'x' for json-file log driver",
            ),
            (
                "local",
                &[("tag", "1")],
                "unknown log opt 'tag' for log driver local",
            ),
            (
                "json-file",
                &[("max-file", "0")],
                "max-file cannot be less than 1",
            ),
            (
                "json-file",
                &[("mode", "x")],
                "logger: logging mode not supported: x",
            ),
            (
                "json-file",
                &[("max-buffer-size", "1m")],
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
            ),
            (
                "syslog",
                &[("syslog-facility", "x")],
                "invalid syslog facility",
            ),
            (
                "json-file",
                &[("tag", "{{.What}}")],
                "log tag \"{{.What}}\" is not supported",
            ),
        ] {
            assert_eq!(refused(driver, options), text);
        }
        let compressed = refused("json-file", &[("compress", "true"), ("max-file", "1")]);
        assert!(
            compressed.starts_with("compress cannot be true"),
            "{compressed}"
        );
        let tcp = refused("syslog", &[("syslog-address", "tcp://127.0.0.1:1")]);
        assert!(tcp.ends_with("only unixgram:// and udp:// are"), "{tcp}");
        assert!(
            check(&settings(
                "json-file",
                &[("max-size", "10m"), ("labels", "a")]
            ))
            .is_ok()
        );
        assert!(check(&settings("none", &[("whatever", "x")])).is_ok());
    }

    #[test]
    fn sizes_and_files() {
        assert_eq!(file(&settings("", &[])).unwrap(), (10 << 20, 3, false));
        assert_eq!(file(&settings("local", &[])).unwrap(), (20 << 20, 5, true));
        let own = settings("json-file", &[("max-size", "1.5k"), ("max-file", "2")]);
        assert_eq!(file(&own).unwrap(), (1536, 2, false));
        assert_eq!(file(&settings("", &[("max-size", "-1")])).unwrap().0, 0);
        assert!(file(&settings("", &[("max-size", "ten")])).is_err());
    }
}
