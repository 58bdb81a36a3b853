//! Driver options of volumes, as Docker's driver `local` takes them: `type`, `device` and `o`.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};

use amphora_sys::mount::{NODEV, NOEXEC, NOSUID};

/// Options of a volume.
pub type DriverOptions = BTreeMap<String, String>;

const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;

const MS_BIND: u64 = 0x1000;
const MS_REC: u64 = 0x4000;

/// Names that an address is looked up for.
const NETWORK_TYPES: [&str; 2] = ["nfs", "cifs"];

/// Says what is wrong with options, in Docker's words.
pub(crate) fn check(options: &DriverOptions) -> Result<(), String> {
    let known = ["type", "o", "device", "size"];
    if let Some(odd) = options.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("invalid option: \"{odd}\""));
    }
    let needs: [(&str, &[&str]); 3] = [
        ("device", &["type"]),
        ("o", &["device", "type"]),
        ("type", &["device"]),
    ];
    for (key, others) in needs {
        let missing = others.iter().find(|other| !options.contains_key(**other));
        if let Some(missing) = missing.filter(|_| options.contains_key(key)) {
            return Err(format!("missing required option: \"{missing}\""));
        }
    }
    if options.contains_key("size") {
        return Err("quota size requested but no quota support".to_owned());
    }
    match parse(options)? {
        Some(device) if device.bind.is_some() && !device.device.starts_with('/') => Err(format!(
            "invalid option: \"device={}\": a path that is bound must be absolute",
            device.device
        )),
        _ => Ok(()),
    }
}

/// What options say to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Device {
    /// Type of the file system.
    pub(crate) kind: String,
    /// What is mounted: a path of the host, or what the file system takes it for.
    pub(crate) device: String,
    /// It is a path of the host that is mounted once more; with all below it.
    pub(crate) bind: Option<Below>,
    /// Nothing can be written.
    pub(crate) readonly: bool,
    /// Attributes of the mount, beside that.
    pub(crate) attr: u64,
    /// What the file system is told.
    pub(crate) data: Vec<(String, Option<String>)>,
    /// As `mount(2)` would be given them, for messages.
    pub(crate) flags: u64,
}

/// Whether the mounts below a path come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// They stay away.
    Alone,
    /// They come along.
    All,
}

/// Options that a file system is told as they are, and the flag each is.
const SUPER: [(&str, u64); 8] = [
    ("sync", 0x10),
    ("async", 0),
    ("dirsync", 0x80),
    ("mand", 0x40),
    ("nomand", 0),
    ("lazytime", 0x200_0000),
    ("nolazytime", 0),
    ("rw", 0),
];
/// Options that are no more than what holds anyway.
const USUAL: [&str; 11] = [
    "defaults",
    "suid",
    "dev",
    "exec",
    "atime",
    "diratime",
    "relatime",
    "norelatime",
    "nostrictatime",
    "private",
    "rprivate",
];
/// Options that mean nothing for what is mounted where nobody is.
const REFUSED: [&str; 7] = [
    "remount",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// Reads options that have passed for complete; nothing for a volume without any.
pub(crate) fn parse(options: &DriverOptions) -> Result<Option<Device>, String> {
    let Some(device) = options.get("device") else {
        return Ok(None);
    };
    let mut parsed = Device {
        kind: options.get("type").cloned().unwrap_or_default(),
        device: device.clone(),
        ..Device::default()
    };
    let words = options.get("o").map(String::as_str).unwrap_or_default();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        parsed.word(word)?;
    }
    Ok(Some(parsed))
}

impl Device {
    fn word(&mut self, word: &str) -> Result<(), String> {
        let attr = |name: &str| {
            Some(match name {
                "nosuid" => (NOSUID, 0x2),
                "nodev" => (NODEV, 0x4),
                "noexec" => (NOEXEC, 0x8),
                "noatime" => (NOATIME, 0x400),
                "nodiratime" => (NODIRATIME, 0x800),
                "strictatime" => (STRICTATIME, 0x100_0000),
                _ => return None,
            })
        };
        match word {
            "bind" => {
                self.bind = self.bind.or(Some(Below::Alone));
                self.flags |= MS_BIND;
            }
            "rbind" => {
                self.bind = Some(Below::All);
                self.flags |= MS_BIND | MS_REC;
            }
            "ro" => {
                self.readonly = true;
                self.flags |= 1;
            }
            _ if USUAL.contains(&word) => {}
            _ if REFUSED.contains(&word) => {
                return Err(format!("mount option \"{word}\" is not supported"));
            }
            _ => {
                if let Some((set, flag)) = attr(word) {
                    self.attr |= set;
                    self.flags |= flag;
                } else if let Some((_, flag)) = SUPER.iter().find(|(name, _)| *name == word) {
                    self.readonly &= word != "rw";
                    self.flags |= flag;
                    self.data.push((word.to_owned(), None));
                } else {
                    let (key, value) = match word.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (word, None),
                    };
                    self.data.push((key.to_owned(), value));
                }
            }
        }
        Ok(())
    }

    /// Puts the address in place of the name of a server: the kernel knows no names.
    pub(crate) fn resolve(
        &mut self,
        look_up: impl Fn(&str) -> std::io::Result<IpAddr>,
    ) -> std::io::Result<()> {
        if !NETWORK_TYPES.contains(&self.kind.as_str()) {
            return Ok(());
        }
        for (key, value) in &mut self.data {
            let Some(name) = value.as_ref().filter(|_| key == "addr") else {
                continue;
            };
            if name.parse::<IpAddr>().is_err() {
                *value = Some(look_up(name)?.to_string());
            }
        }
        Ok(())
    }

    /// Shows the call as Docker's messages do, without a password.
    pub(crate) fn shown(&self, place: &std::path::Path) -> String {
        let mut text = format!("{}:{}", self.device, place.display());
        if self.flags != 0 {
            text.push_str(&format!(", flags: {:#x}", self.flags));
        }
        let flag = |key: &str| SUPER.iter().any(|(name, _)| *name == key);
        let data = self.data.iter().filter(|(key, _)| !flag(key));
        let words: Vec<String> = data
            .map(|(key, value)| match value {
                Some(_) if key == "password" => "password=********".to_owned(),
                Some(value) => format!("{key}={value}"),
                None => key.clone(),
            })
            .collect();
        if !words.is_empty() {
            text.push_str(&format!(", data: {}", words.join(",")));
        }
        text
    }
}

/// Asks the machine's resolver for an address, IPv4 first as Docker does.
pub(crate) fn look_up(name: &str) -> std::io::Result<IpAddr> {
    let all: Vec<IpAddr> = (name, 0).to_socket_addrs()?.map(|at| at.ip()).collect();
    let first = all.iter().find(|ip| ip.is_ipv4()).or(all.first());
    first
        .copied()
        .ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> DriverOptions {
        let pair = |word: &&str| {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            (key.to_owned(), value.to_owned())
        };
        words.iter().map(pair).collect()
    }

    #[test]
    fn what_is_missing_or_unknown_is_said_in_docker_s_words() {
        for (words, why) in [
            (&["type=tmpfs"][..], "missing required option: \"device\""),
            (&["device=x"], "missing required option: \"type\""),
            (&["o=ro"], "missing required option: \"device\""),
            (
                &["type=tmpfs", "o=ro"],
                "missing required option: \"device\"",
            ),
            (&["odd=1"], "invalid option: \"odd\""),
            (&["size=1m"], "quota size requested but no quota support"),
            (
                &["type=none", "device=/", "o=bind,rshared"],
                "mount option \"rshared\" is not supported",
            ),
            (
                &["type=none", "device=srv/x", "o=rbind"],
                "invalid option: \"device=srv/x\": a path that is bound must be absolute",
            ),
            (
                &["type=none", "device=", "o=bind"],
                "invalid option: \"device=\": a path that is bound must be absolute",
            ),
        ] {
            assert_eq!(check(&options(words)).unwrap_err(), why, "{words:?}");
        }
        assert_eq!(check(&options(&[])), Ok(()));
        assert_eq!(
            check(&options(&["type=tmpfs", "device=tmpfs", "o=size=1m"])),
            Ok(())
        );
    }

    #[test]
    fn words_go_to_the_mount_or_to_the_file_system() {
        let words = "o=nosuid,noexec,size=1m,ro,sync,acl";
        let parsed = parse(&options(&["type=ext4", "device=/dev/x", words]));
        let device = parsed.unwrap().unwrap();
        assert!(device.readonly && device.bind.is_none());
        assert_eq!(device.attr, NOSUID | NOEXEC);
        let pair = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        let told = [
            pair("size", Some("1m")),
            pair("sync", None),
            pair("acl", None),
        ];
        assert_eq!(device.data, told);
        assert_eq!(
            device.shown(std::path::Path::new("/v")),
            "/dev/x:/v, flags: 0x1b, data: size=1m,acl"
        );
        let bind = parse(&options(&["type=none", "device=/srv", "o=rbind"]));
        assert_eq!(bind.unwrap().unwrap().bind, Some(Below::All));
        assert_eq!(parse(&options(&[])), Ok(None));
    }

    #[test]
    fn servers_are_known_to_the_kernel_by_address() {
        let resolved = |kind: &str, address: &str| {
            let words = [
                format!("type={kind}"),
                "device=:/srv".to_owned(),
                format!("o=addr={address},password=secret"),
            ];
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut device = parse(&options(&words)).unwrap().unwrap();
            let found = device.resolve(|name| match name {
                "files" => Ok(IpAddr::from([192, 0, 2, 7])),
                _ => Err(std::io::ErrorKind::NotFound.into()),
            });
            found.map(|()| device.shown(std::path::Path::new("/v")))
        };
        let shown = |address: &str| format!(":/srv:/v, data: addr={address},password=********");
        assert_eq!(resolved("nfs", "files").unwrap(), shown("192.0.2.7"));
        assert_eq!(
            resolved("nfs", "2001:db8::1").unwrap(),
            shown("2001:db8::1")
        );
        assert_eq!(resolved("ext4", "files").unwrap(), shown("files"));
        assert!(resolved("nfs", "nobody").is_err());
        assert!(look_up("127.0.0.1").unwrap().is_loopback());
    }
}
