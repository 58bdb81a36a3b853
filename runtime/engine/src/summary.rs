//! What `ps` shows of a container that does not change while it runs. The texts of a whole list lie
//! in one piece of memory, as they lie in the index: nothing is unpacked that nobody looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use amphora_spec::ContainerId;

use crate::config::{ContainerConfig, MountPoint};

/// What `ps` shows of a container that does not change while it runs.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Id.
    pub id: ContainerId,
    /// When it was made, nanoseconds since 1970; 0 when nobody knows.
    pub created: u64,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    texts: Texts,
}

/// One mount in a [`Summary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountSummary<'a> {
    /// `volume`, `bind` or `tmpfs`.
    pub kind: &'a str,
    /// Volume name or host path.
    pub source: &'a str,
    /// Path in the container.
    pub destination: &'a str,
}

/// Names of a container's networks, sorted; one that shares another's has none.
fn networks(config: &ContainerConfig) -> String {
    let host = &config.host;
    if host.network.container().is_some() || host.unconnected {
        return String::new();
    }
    if host.networks.is_empty() {
        return host.network.name().to_owned();
    }
    let mut names: Vec<&str> = host.networks.iter().map(|n| n.network.as_str()).collect();
    names.sort_unstable();
    names.join(",")
}

/// A part of a piece of memory: single texts, then lists of texts, as the constants below say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    bytes: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

const NAME: usize = 0;
const IMAGE: usize = 1;
const IMAGE_ID: usize = 2;
const EXECUTOR: usize = 3;
const NETWORK: usize = 4;
const SINGLE: usize = 5;

const ARGS: usize = 0;
/// Key and value by turns.
const LABELS: usize = 1;
/// Kind, source and destination by turns.
const MOUNTS: usize = 2;
const EXPOSED: usize = 3;

impl Summary {
    /// What there is to say of a configuration.
    pub(crate) fn of(config: &ContainerConfig) -> Self {
        let mut out = Writer::default();
        out.text(&config.name);
        out.text(&config.image);
        out.text(&config.image_id.to_string());
        out.text(&config.executor.to_string());
        out.text(&networks(config));
        let labels = config.labels.iter().flat_map(|(k, v)| [k, v]);
        out.list(config.entrypoint.iter().chain(&config.cmd));
        out.list(labels);
        out.list(config.host.mounts.iter().flat_map(mount));
        out.list(&config.exposed);
        let created = crate::list::nanos(&config.created);
        Self::new(config.id, created, config.host.auto_remove, out.texts())
    }

    /// Of one whose configuration cannot be read: its id, the time of its directory, its name.
    pub(crate) fn unknown(id: ContainerId, created: u64, name: &str) -> Self {
        let mut out = Writer::default();
        out.text(name);
        Self::new(id, created, false, out.texts())
    }

    pub(crate) fn new(id: ContainerId, created: u64, auto_remove: bool, texts: Texts) -> Self {
        Self {
            id,
            created,
            auto_remove,
            texts,
        }
    }

    /// Returns its texts as they were written.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.texts.bytes()
    }

    /// Returns when it was made, RFC 3339.
    #[must_use]
    pub fn created_text(&self) -> String {
        crate::list::time_text(self.created)
    }

    /// Returns its name, without a slash.
    #[must_use]
    pub fn name(&self) -> &str {
        self.texts.single(NAME)
    }

    /// Returns its image as the user wrote it.
    #[must_use]
    pub fn image(&self) -> &str {
        self.texts.single(IMAGE)
    }

    /// Returns the id of its image.
    #[must_use]
    pub fn image_id(&self) -> &str {
        self.texts.single(IMAGE_ID)
    }

    /// Returns `linux` or `wasm`.
    #[must_use]
    pub fn executor(&self) -> &str {
        self.texts.single(EXECUTOR)
    }

    /// Returns the names of its networks, with commas between them.
    #[must_use]
    pub fn network(&self) -> &str {
        self.texts.single(NETWORK)
    }

    /// Returns the names of its networks.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        self.network().split(',').filter(|name| !name.is_empty())
    }

    /// Returns its command line.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.texts.list(ARGS)
    }

    /// Returns its labels, by their keys.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut list = self.texts.list(LABELS);
        std::iter::from_fn(move || Some((list.next()?, list.next()?)))
    }

    /// Returns one of its labels.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// Returns its labels as a map.
    #[must_use]
    pub fn label_map(&self) -> BTreeMap<String, String> {
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        self.labels().map(owned).collect()
    }

    /// Returns its mounts.
    pub fn mounts(&self) -> impl Iterator<Item = MountSummary<'_>> {
        let mut list = self.texts.list(MOUNTS);
        std::iter::from_fn(move || {
            Some(MountSummary {
                kind: list.next()?,
                source: list.next()?,
                destination: list.next()?,
            })
        })
    }

    /// Returns the ports it exposes, `port/proto`.
    pub fn exposed(&self) -> impl Iterator<Item = &str> {
        self.texts.list(EXPOSED)
    }
}

fn mount(point: &MountPoint) -> [&str; 3] {
    let (kind, source) = match point {
        MountPoint::Volume { name, .. } => ("volume", name.as_str()),
        MountPoint::Bind { source, .. } => ("bind", source.as_str()),
        MountPoint::Image { source, .. } => ("image", source.as_str()),
        MountPoint::Tmpfs { .. } => ("tmpfs", ""),
    };
    [kind, source, point.destination()]
}

impl Texts {
    /// The part of `bytes` from `start` on; an empty one where there is no such part.
    pub(crate) fn part(bytes: &Arc<Vec<u8>>, start: usize, len: usize) -> Self {
        match start.checked_add(len) {
            Some(end) if end <= bytes.len() => Self {
                bytes: Arc::clone(bytes),
                start,
                end,
            },
            _ => Self::default(),
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn single(&self, at: usize) -> &str {
        let mut reader = Reader(self.bytes());
        for _ in 0..at {
            reader.skip();
        }
        reader.text()
    }

    fn list(&self, at: usize) -> impl Iterator<Item = &str> {
        let mut reader = Reader(self.bytes());
        for _ in 0..SINGLE {
            reader.skip();
        }
        for _ in 0..at {
            for _ in 0..reader.count() {
                reader.skip();
            }
        }
        (0..reader.count()).map(move |_| reader.text())
    }
}

/// Puts texts behind one another: each its length, then itself; before a list how many there are.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn text(&mut self, text: &str) {
        // Nothing of a container is that long.
        let (text, len) = u32::try_from(text.len()).map_or(("", 0), |len| (text, len));
        self.0.extend(len.to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn list<'a, T: AsRef<str> + 'a>(&mut self, texts: impl IntoIterator<Item = T>) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        let mut count = 0_u32;
        for text in texts {
            self.text(text.as_ref());
            count += 1;
        }
        if let Some(slot) = self.0.get_mut(start..start + 4) {
            slot.copy_from_slice(&count.to_le_bytes());
        }
    }

    fn texts(self) -> Texts {
        Texts {
            start: 0,
            end: self.0.len(),
            bytes: Arc::new(self.0),
        }
    }
}

/// Takes them apart again. What is not there is empty.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> usize {
        let Some((number, rest)) = self.0.split_first_chunk() else {
            return 0;
        };
        self.0 = rest;
        usize::try_from(u32::from_le_bytes(*number)).unwrap_or(0)
    }

    /// How many texts follow; never more than there is room for.
    fn count(&mut self) -> usize {
        self.number().min(self.0.len() / 4)
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = self.number();
        let (bytes, rest) = self.0.split_at_checked(len).unwrap_or_default();
        self.0 = rest;
        bytes
    }

    fn skip(&mut self) {
        self.bytes();
    }

    fn text(&mut self) -> &'a str {
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Texts {
        let mut out = Writer::default();
        for text in ["web", "img:1", "sha256:00", "linux", "bridge"] {
            out.text(text);
        }
        out.list(["sh", "-c", ""]);
        out.list(["k", "v", "empty", ""]);
        out.list(["volume", "data", "/data", "tmpfs", "", "/tmp"]);
        out.list(Vec::<String>::new());
        out.texts()
    }

    #[test]
    fn texts_come_back_as_they_were_written() {
        let s = Summary::new(ContainerId::from_random([7; 32]), 1, false, sample());
        assert_eq!(
            [s.name(), s.image(), s.image_id(), s.executor(), s.network()],
            ["web", "img:1", "sha256:00", "linux", "bridge"]
        );
        assert_eq!(s.args().collect::<Vec<_>>(), ["sh", "-c", ""]);
        let labels: Vec<_> = s.labels().collect();
        assert_eq!(labels, [("k", "v"), ("empty", "")]);
        assert_eq!(s.label_map().len(), 2);
        let mounts: Vec<_> = s.mounts().map(|m| (m.kind, m.source)).collect();
        assert_eq!(mounts, [("volume", "data"), ("tmpfs", "")]);
        assert_eq!(s.exposed().count(), 0);
    }

    #[test]
    fn cut_off_texts_are_empty_and_no_panic() {
        let whole = sample();
        for end in 0..whole.end {
            let cut = Texts {
                end,
                ..whole.clone()
            };
            let s = Summary::new(ContainerId::from_random([7; 32]), 1, false, cut);
            let seen = s.args().count() + s.labels().count() + s.mounts().count();
            assert!(
                s.network().len() + s.exposed().count() + seen <= 64,
                "{end}"
            );
        }
        assert!(Texts::part(&whole.bytes, usize::MAX, 2).bytes().is_empty());
        assert!(Texts::part(&whole.bytes, 1, whole.end).bytes().is_empty());
    }
}
