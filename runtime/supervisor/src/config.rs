//! What a supervisor is told, once. Kept as `R/containers/<id>/supervise.cfg`, so that another
//! supervisor can take over from a killed one.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use amphora_spec::release::Release;
use serde::{Deserialize, Serialize};

use crate::health::HealthConfig;
use crate::restart::RestartPolicy;
use crate::waiting::Ahead;
use crate::{SupervisorError, files};

const NAME: &str = "supervise.cfg";
const LIMIT: usize = 8 << 20;
const MAGIC: &[u8; 8] = b"amphscfg";
const VERSION: u16 = 6;
/// The version before, which ends where [`Config::overlay`] begins now.
const ALONE: u16 = 5;
/// The one before that, which ends where [`Config::names`] begins now.
const NAMELESS: u16 = 4;
/// How the lack of something is written.
const NONE: u8 = 0;

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
    /// Whether init gets a terminal in place of pipes; its plan then makes one.
    pub tty: bool,
    /// Whether init gets a pipe as standard input; otherwise `/dev/null`. With a terminal: whether
    /// clients may type.
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
    /// Whether and when it runs again after its end.
    pub restart: RestartPolicy,
    /// What makes everything for the next run, as argv of this same binary: it inherits a socket
    /// as descriptor 3, the container's lock as descriptor 4 ([`crate::inherited_start`]) and no
    /// environment. Empty: there is no next run.
    pub prepare: Vec<String>,
    /// What the supervisor of the next run makes ahead.
    pub ahead: Ahead,
    /// What signal number 0 on the socket stands for.
    pub stop_signal: i32,
    /// The container's cgroup, for the count of processes killed for want of memory.
    pub cgroup: Option<amphora_cgroup::Handle>,
    /// How its health is checked; `None`: not at all.
    pub health: Option<HealthConfig>,
    /// Where its events go, and what is known of it for them.
    pub events: crate::EventLog,
    /// The network namespace its ports and addresses are in, as device and inode; `None`: it has
    /// none in any.
    pub netns: Option<(u64, u64)>,
    /// What its name server is told; `None`: it has none.
    pub names: Option<amphora_names::Settings>,
    /// Whether one of its networks has other hosts.
    pub overlay: bool,
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The file that is kept.
    pub driver: LogDriver,
    /// A file is rotated before it would grow beyond this many bytes; 0: never.
    pub max_size: u64,
    /// How many files are kept, the current one among them; at least 1.
    pub max_files: u32,
    /// Whether rotated files are compressed, by a process of their own.
    pub compress: bool,
    /// Labels and variables that go with every line: a JSON object, or empty.
    pub attrs: String,
    /// Whom lines are sent to besides.
    pub remote: Option<LogRemote>,
}

/// The file that is kept of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogDriver {
    /// Docker's lines: `{"log":"…\n","stream":"stdout","time":"…"}` in `logs/json.log`.
    JsonFile,
    /// None.
    None,
    /// The same lines in `logs/local.log`: the driver `local`, and the copy that `logs` reads of
    /// output that is sent elsewhere.
    Local,
}

impl LogDriver {
    /// Name of the newest file in `logs/`; `None` when there is none.
    #[must_use]
    pub const fn file(self) -> Option<&'static str> {
        match self {
            Self::JsonFile => Some("json.log"),
            Self::Local => Some("local.log"),
            Self::None => None,
        }
    }
}

/// Whom lines are sent to. A datagram that does not go at once is dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogRemote {
    /// The journal, in its native protocol.
    Journald {
        /// Its socket.
        socket: PathBuf,
        /// Fields of every entry.
        fields: Vec<(String, String)>,
    },
    /// A syslog socket.
    Syslog {
        /// Where it listens.
        address: SyslogAddress,
        /// Facility, 0 to 23.
        facility: u8,
        /// Tag of every message.
        tag: String,
    },
}

/// Where a syslog daemon listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyslogAddress {
    /// A datagram socket of this machine.
    Unix(PathBuf),
    /// A UDP port.
    Udp(SocketAddr),
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            driver: LogDriver::JsonFile,
            max_size: 10 << 20,
            max_files: 3,
            compress: false,
            attrs: String::new(),
            remote: None,
        }
    }
}

/// What a handed-over socket is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Accept here and splice to this address of the container, or relay datagrams; `None`: only hold the socket, so
    /// that nobody else takes its port.
    pub target: Option<SocketAddr>,
}

impl Config {
    /// Renders an event of the container, under the name it has now.
    pub(crate) fn event(&self, action: &str, more: &[(&str, &str)]) -> String {
        let changed = self.events.changed_attributes(&self.run_dir);
        let own = changed.as_deref().unwrap_or(&self.events.attributes);
        self.events.line(&self.id, own, action, more)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, SupervisorError> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        postcard::to_extend(self, out).map_err(|e| malformed(e.to_string()))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SupervisorError> {
        let body = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| malformed("wrong magic".to_owned()))?;
        let (version, body) = body
            .split_first_chunk()
            .ok_or_else(|| malformed("no version".to_owned()))?;
        let version = u16::from_le_bytes(*version);
        let decoded = match version {
            VERSION => postcard::from_bytes(body),
            ALONE => postcard::from_bytes(&[body, &[NONE]].concat()),
            NAMELESS => postcard::from_bytes(&[body, &[NONE; 2]].concat()),
            _ => {
                return Err(malformed(format!(
                    "it is of version {version}; this amphora knows version {VERSION}"
                )));
            }
        };
        decoded.map_err(|e| malformed(e.to_string()))
    }

    /// What the supervisor of the next run makes ahead.
    pub(crate) fn ahead(&self) -> Ahead {
        Ahead {
            names: self.names.as_ref().map(|names| names.place),
            ..self.ahead
        }
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

#[cfg(test)]
mod tests {
    use amphora_cgroup::{Handle, HandleDir, Version};

    use super::*;
    use crate::health::HealthAction;
    use crate::restart::RestartKind;

    /// What versions 4 to 6 wrote. A running container's supervisor may have written it before an
    /// upgrade, so a change of the format needs another version, and a reader of this one.
    const NAMELESS: &[u8] = include_bytes!("../testdata/supervise-4.cfg");
    const ALONE: &[u8] = include_bytes!("../testdata/supervise-5.cfg");
    const RECORDED: &[u8] = include_bytes!("../testdata/supervise-6.cfg");

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn log() -> LogConfig {
        LogConfig {
            driver: LogDriver::Local,
            max_size: 20 << 20,
            max_files: 5,
            compress: true,
            attrs: r#"{"label":"value"}"#.to_owned(),
            remote: Some(LogRemote::Syslog {
                address: SyslogAddress::Udp("192.0.2.1:514".parse().unwrap()),
                facility: 3,
                tag: "tag".to_owned(),
            }),
        }
    }

    /// Every field with a value of its own.
    fn whole() -> Config {
        Config {
            id: "0123456789abcdef".repeat(4),
            run_dir: "/run/amphora/containers/0123".into(),
            data_dir: "/var/lib/amphora/containers/0123".into(),
            log: log(),
            tty: true,
            open_stdin: false,
            stdin_once: true,
            auto_remove: false,
            release: vec![
                Release::Unlink("/run/amphora/networks/bridge/leases/a".into()),
                Release::RemoveTree("/run/amphora/tree".into()),
                Release::Claim {
                    path: "/var/lib/amphora/names/web".into(),
                    target: "0123".to_owned(),
                },
                Release::Netlink {
                    protocol: 12,
                    bytes: vec![1, 2, 255],
                },
            ],
            listeners: vec![
                Listener {
                    target: Some("[::1]:80".parse().unwrap()),
                },
                Listener { target: None },
            ],
            finish: strings(&["amphora", "finish", "/var/lib/amphora", "/run/amphora"]),
            restart: RestartPolicy {
                kind: RestartKind::OnFailure,
                max: 7,
            },
            prepare: strings(&["amphora", "prepare"]),
            ahead: Ahead {
                netns: true,
                names: None,
            },
            stop_signal: 2,
            cgroup: Some(Handle {
                version: Version::V1,
                root: "/sys/fs/cgroup".into(),
                parent: "amphora".to_owned(),
                name: "0123".to_owned(),
                dirs: vec![HandleDir {
                    controllers: strings(&["cpu", "cpuacct"]),
                    path: "/sys/fs/cgroup/cpu/amphora/0123".into(),
                }],
            }),
            health: Some(HealthConfig {
                probe: strings(&["amphora", "probe"]),
                interval_ns: 30_000_000_000,
                start_interval_ns: 5_000_000_000,
                start_period_ns: 1_000_000,
                timeout_ns: 2_000_000,
                on_failure: HealthAction::Restart,
                stop_timeout_s: 10,
            }),
            events: crate::EventLog {
                path: "/run/amphora/events".into(),
                attributes: r#""image":"web""#.to_owned(),
                before: "{}\n".to_owned(),
            },
            netns: Some((4, 4_026_531_840)),
            names: Some(names()),
            overlay: true,
        }
    }

    fn names() -> amphora_names::Settings {
        amphora_names::Settings {
            data: "/var/lib/amphora".into(),
            run: "/run/amphora".into(),
            container: "0123".to_owned(),
            servers: vec!["192.0.2.53".parse().unwrap()],
            bare_names_stay: true,
            place: amphora_names::Place::Aside,
        }
    }

    #[test]
    fn version_6_is_read_with_every_field_as_it_was_written() {
        assert_eq!(Config::decode(RECORDED).unwrap(), whole());
    }

    #[test]
    fn version_5_is_read_and_has_no_other_hosts() {
        let alone = Config {
            overlay: false,
            ..whole()
        };
        assert_eq!(Config::decode(ALONE).unwrap(), alone);
    }

    #[test]
    fn version_4_is_read_and_has_no_name_server() {
        let nameless = Config {
            names: None,
            overlay: false,
            ..whole()
        };
        assert_eq!(Config::decode(NAMELESS).unwrap(), nameless);
        assert_eq!(nameless.ahead().names, None);
        assert_eq!(whole().ahead().names, Some(amphora_names::Place::Aside));
    }

    #[test]
    fn what_is_written_is_what_its_version_says() {
        // A difference without another version would be read as something else, or not at all.
        assert_eq!(RECORDED.get(8..10), Some(&VERSION.to_le_bytes()[..]));
        assert_eq!(whole().encode().unwrap(), RECORDED);
    }
}
