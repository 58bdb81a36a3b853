//! Mount options, as `mount(8)` and the runtime specification spell them.

use amphora_sys::mount::{NODEV, NOEXEC, NOSUID, RDONLY};

const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
/// The bits that hold the access time mode.
const ATIME: u64 = 0x70;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

const MS_UNBINDABLE: u64 = 1 << 17;
const MS_PRIVATE: u64 = 1 << 18;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;

/// Attributes to set and to clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

/// The parts of a list of mount options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Options {
    /// A bind mount is asked for.
    pub(crate) bind: bool,
    /// With what is mounted below (`rbind`).
    pub(crate) recursive: bool,
    /// Attributes of the mount.
    pub(crate) attr: Attr,
    /// Attributes of it and of all below (`rro` …).
    pub(crate) recursive_attr: Attr,
    /// `MS_PRIVATE` …, or 0.
    pub(crate) propagation: u64,
    /// Ids are mapped (`idmap`), or those of all mounts below too (`ridmap`).
    pub(crate) ids: Option<IdMap>,
    /// For the file system itself.
    pub(crate) data: Vec<(String, Option<String>)>,
    /// The mount that is there already gets other attributes (`remount`).
    pub(crate) remount: bool,
    /// A new tmpfs begins with what it covers (`tmpcopyup`).
    pub(crate) copy_up: bool,
}

/// How far the ids of a mount are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdMap {
    /// Of the mount itself.
    Top,
    /// Of all mounts of the tree.
    All,
}

/// Every attribute but the access time mode.
const PLAIN: u64 = RDONLY | NOSUID | NODEV | NOEXEC | NODIRATIME | NOSYMFOLLOW;

fn attribute(word: &str) -> Option<Attr> {
    let set = |set| Some(Attr { set, clear: 0 });
    let clear = |clear| Some(Attr { set: 0, clear });
    match word {
        "ro" => set(RDONLY),
        "rw" => clear(RDONLY),
        "nosuid" => set(NOSUID),
        "suid" => clear(NOSUID),
        "nodev" => set(NODEV),
        "dev" => clear(NODEV),
        "noexec" => set(NOEXEC),
        "exec" => clear(NOEXEC),
        "nodiratime" => set(NODIRATIME),
        "diratime" => clear(NODIRATIME),
        "nosymfollow" => set(NOSYMFOLLOW),
        "symfollow" => clear(NOSYMFOLLOW),
        "noatime" => Some(Attr {
            set: NOATIME,
            clear: ATIME,
        }),
        "strictatime" => Some(Attr {
            set: STRICTATIME,
            clear: ATIME,
        }),
        "atime" | "relatime" | "norelatime" | "nostrictatime" => clear(ATIME),
        _ => None,
    }
}

fn propagation(word: &str) -> Option<u64> {
    match word {
        "private" | "rprivate" => Some(MS_PRIVATE),
        "slave" | "rslave" => Some(MS_SLAVE),
        "shared" | "rshared" => Some(MS_SHARED),
        "unbindable" | "runbindable" => Some(MS_UNBINDABLE),
        _ => None,
    }
}

/// The propagation a name of `rootfsPropagation` or of a mount option stands for; 0 for none.
pub(crate) fn propagation_of(word: &str) -> Option<u64> {
    if word.is_empty() {
        Some(0)
    } else {
        propagation(word)
    }
}

/// Every option that is understood, besides those of the file systems themselves.
#[must_use]
pub fn mount_options() -> Vec<String> {
    const ATTRIBUTES: [&str; 18] = [
        "ro",
        "rw",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "nodiratime",
        "diratime",
        "nosymfollow",
        "symfollow",
        "noatime",
        "strictatime",
        "atime",
        "relatime",
        "norelatime",
        "nostrictatime",
    ];
    const OTHERS: [&str; 28] = [
        "acl",
        "noacl",
        "dirsync",
        "sync",
        "iversion",
        "noiversion",
        "lazytime",
        "nolazytime",
        "mand",
        "remount",
        "tmpcopyup",
        "private",
        "rprivate",
        "slave",
        "rslave",
        "shared",
        "rshared",
        "unbindable",
        "runbindable",
        "bind",
        "rbind",
        "idmap",
        "ridmap",
        "defaults",
        "async",
        "nomand",
        "silent",
        "loud",
    ];
    let recursive = ATTRIBUTES.iter().map(|word| format!("r{word}"));
    let plain = ATTRIBUTES
        .iter()
        .chain(&OTHERS)
        .map(|word| (*word).to_owned());
    let mut all: Vec<String> = plain.chain(recursive).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Options {
    /// The attributes that `remount` leaves: those that are named, and no others, as `mount(2)` has
    /// it. The access time mode stays unless it is named.
    pub(crate) fn remounted(&self) -> Attr {
        let set = self.attr.set;
        Attr {
            set,
            clear: (PLAIN & !set) | (self.attr.clear & ATIME),
        }
    }
}

impl Attr {
    /// The later word wins.
    fn merge(&mut self, later: Self) {
        self.set = (self.set & !later.clear) | later.set;
        self.clear = (self.clear & !later.set) | later.clear;
    }
}

/// Sorts options into their parts; what is no mount option is the file system's own.
pub(crate) fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for word in options.iter().flat_map(|word| words(word)) {
        if let Some(attr) = attribute(word) {
            parsed.attr.merge(attr);
        } else if let Some(kind) = propagation(word) {
            parsed.propagation = kind;
        } else if let Some(attr) = word.strip_prefix('r').and_then(attribute) {
            parsed.recursive_attr.merge(attr);
        } else {
            match word {
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.recursive) = (true, true),
                "idmap" => parsed.ids = Some(IdMap::Top),
                "ridmap" => parsed.ids = Some(IdMap::All),
                "remount" => parsed.remount = true,
                "tmpcopyup" => parsed.copy_up = true,
                // What a file system does unless told otherwise; what the kernels of today decide
                // for each file system by themselves; what goes to their log.
                "defaults" | "async" | "nomand" | "nolazytime" | "acl" | "noacl" | "iversion"
                | "noiversion" | "silent" | "loud" => {}
                _ => parsed.data.push(match word.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(bare(value).to_owned())),
                    None => (word.to_owned(), None),
                }),
            }
        }
    }
    parsed
}

/// A value without its quotation marks.
fn bare(value: &str) -> &str {
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    inner.unwrap_or(value)
}

/// The options of one string: as mount(8) has them, commas lie between them unless they are quoted.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Options {
        parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn dev_options_of_docker_are_sorted() {
        let options = parsed("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(
            options.attr,
            Attr {
                set: NOSUID | STRICTATIME,
                clear: ATIME
            }
        );
        let data = [("mode".to_owned(), Some("755".to_owned()))];
        assert_eq!(options.data[..1], data);
        assert!(!options.bind);
    }

    #[test]
    fn later_words_win_and_r_words_are_recursive() {
        let options = parsed("rbind,ro,rw,rro,rslave,noatime,relatime");
        assert!(options.bind && options.recursive);
        assert_eq!(options.attr.set, 0);
        assert_eq!(options.attr.clear & RDONLY, RDONLY);
        assert_eq!(options.recursive_attr.set, RDONLY);
        assert_eq!(options.propagation, MS_SLAVE);
        assert!(options.data.is_empty());
    }

    #[test]
    fn every_option_that_is_told_is_understood() {
        for word in mount_options() {
            let parsed = parse(std::slice::from_ref(&word));
            // Those of every file system go to it by their names.
            let common = ["dirsync", "sync", "lazytime", "mand"].contains(&word.as_str());
            assert_eq!(parsed.data.is_empty(), !common, "{word}");
        }
    }

    #[test]
    fn a_remount_leaves_what_is_named() {
        let remount = parsed("bind,remount,ro,nosuid");
        assert!(remount.remount && remount.bind);
        let Attr { set, clear } = remount.remounted();
        assert_eq!(set, RDONLY | NOSUID);
        assert_eq!(clear, NODEV | NOEXEC | NODIRATIME | NOSYMFOLLOW);
        let Attr { set, clear } = parsed("remount,noatime").remounted();
        assert_eq!((set, clear & ATIME), (NOATIME, ATIME));
    }

    #[test]
    fn relatime_is_not_a_recursive_word() {
        assert_eq!(parsed("relatime,rw").recursive_attr, Attr::default());
    }

    #[test]
    fn one_string_may_hold_several() {
        let options = parse(&["ro,lowerdir=/a,x=\"b,c\"".to_owned()]);
        assert_eq!(options.attr.set, RDONLY);
        let data = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        assert_eq!(options.data, [data("lowerdir", "/a"), data("x", "b,c")]);
    }
}
