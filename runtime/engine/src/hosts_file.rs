//! `/etc/hosts` of containers that run: their own lines follow their networks. What else stands in
//! the file is the container's.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;

use amphora_network::{Endpoint, NetworkAttachment};
use amphora_spec::ContainerId;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use crate::config::ContainerConfig;
use crate::files::open_dir;
use crate::{Engine, EngineError, Result};

/// Largest file that is changed: the container may have written anything.
const HOSTS_MAX: u64 = 1 << 20;

/// A container's own names, as they stand behind its addresses.
pub(crate) fn own_names(config: &ContainerConfig) -> Vec<String> {
    let host = config.hostname.clone();
    if config.domainname.is_empty() {
        return vec![host];
    }
    vec![format!("{host}.{}", config.domainname), host]
}

/// The addresses of a place in a network.
pub(crate) fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> + use<> {
    let v6 = endpoint.address6.map(IpAddr::from);
    std::iter::once(IpAddr::from(endpoint.address)).chain(v6)
}

/// The names of a linked container on the default network, as they stand behind its address.
pub(crate) fn linked_names(alias: &str, config: &ContainerConfig) -> String {
    let mut names = vec![alias, config.hostname.as_str(), config.name.as_str()];
    names.dedup();
    names.join(" ")
}

/// Adds lines behind the others.
fn added(text: &[u8], lines: &[String]) -> Vec<u8> {
    let mut text = text.to_vec();
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    for line in lines {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    text
}

/// Takes lines away, each once, behind those of `kept` that read the same.
fn removed(text: &[u8], lines: &[String], kept: &[String]) -> Vec<u8> {
    let mut lines: Vec<&String> = lines.iter().collect();
    let mut kept: Vec<&String> = kept.iter().collect();
    let take = |from: &mut Vec<&String>, plain: &[u8]| {
        let at = from.iter().position(|line| line.as_bytes() == plain);
        at.map(|at| from.swap_remove(at)).is_some()
    };
    let mut left = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n') {
        let plain = line.strip_suffix(b"\n").unwrap_or(line);
        if take(&mut kept, plain) || !take(&mut lines, plain) {
            left.extend_from_slice(line);
        }
    }
    left
}

/// Opens the file of a container that may do anything to it: nothing of that is waited for.
fn open_hosts(dir: impl std::os::fd::AsFd, path: &Path) -> Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(dir, "hosts", flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        // Somebody holds a lease on it.
        Err(e) => return Err(EngineError::file("change", path, e)),
    };
    let meta = file.metadata();
    if !meta.is_ok_and(|meta| meta.is_file()) {
        return Err(EngineError::file("change", path, Errno::INVAL));
    }
    Ok(Some(file))
}

/// Writes what has changed: hardly anybody sees the file in between.
fn write_change(file: &File, text: &[u8], changed: &[u8]) -> std::io::Result<()> {
    let same = text.iter().zip(changed).take_while(|(a, b)| a == b).count();
    let (_, rest) = changed.split_at(same);
    file.write_all_at(rest, same as u64)?;
    if changed.len() < text.len() {
        file.set_len(changed.len() as u64)?;
    }
    Ok(())
}

/// A container's lines about itself, as they stand in the file.
fn own_lines(config: &ContainerConfig, endpoint: &Endpoint) -> impl Iterator<Item = String> {
    let names = own_names(config).join(" ");
    addresses(endpoint).map(move |address| format!("{address}\t{names}"))
}

impl Engine {
    /// Changes the file in place: a mount shows the container this very one. Whoever has none just
    /// now gets a new one with its next start.
    fn edit_hosts(&self, id: &ContainerId, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<()> {
        let dir = self.run_dir(id).join("etc");
        let path = dir.join("hosts");
        // The file itself is the container's to lock.
        let lock = match open_dir(&dir) {
            Err(EngineError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(());
            }
            lock => lock?,
        };
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| EngineError::file("lock", &dir, e))?;
        let Some(file) = open_hosts(&lock, &path)? else {
            return Ok(());
        };
        let failed = |e| EngineError::file("write", &path, e);
        let mut text = Vec::new();
        (&file)
            .take(HOSTS_MAX + 1)
            .read_to_end(&mut text)
            .map_err(|e| EngineError::file("read", &path, e))?;
        if text.len() as u64 > HOSTS_MAX {
            let large = std::io::Error::from(ErrorKind::FileTooLarge);
            return Err(failed(large));
        }
        let changed = change(&text);
        if changed == text {
            return Ok(());
        }
        write_change(&file, &text, &changed).map_err(failed)
    }

    /// Writes down what a running container has in a network it has joined: its own addresses, and
    /// those of the containers it is linked to there.
    pub(crate) fn add_hosts(
        &self,
        config: &ContainerConfig,
        endpoint: &Endpoint,
        asked: &NetworkAttachment,
    ) -> Result<()> {
        let others = self.aliases_of_others(asked);
        let others = others.iter().map(|(alias, at)| format!("{at}\t{alias}"));
        let lines: Vec<String> = own_lines(config, endpoint).chain(others).collect();
        self.edit_hosts(&config.id, |text| added(text, &lines))
    }

    /// Takes its own addresses away again, when it has left the network.
    pub(crate) fn remove_hosts(&self, config: &ContainerConfig, endpoint: &Endpoint) -> Result<()> {
        let lines: Vec<String> = own_lines(config, endpoint).collect();
        let theirs = config.host.extra_hosts.iter().filter_map(|line| {
            let (name, address) = line.split_once([':', '='])?;
            let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
            Some(format!("{address}\t{name}"))
        });
        let kept: Vec<String> = theirs.collect();
        self.edit_hosts(&config.id, |text| removed(text, &lines, &kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] =
        b"127.0.0.1\tlocalhost\n# mine\n10.0.0.2\tbox\n10.0.0.2\tbox\n172.17.0.3\tdb 0123 base\n\
        1.2.3.4 db\n1.2.3.4\tdb mine\n10.0.0.9\talias\n";

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_come_and_go_and_others_stay() {
        let lines = ["10.0.0.5\tbox".to_owned(), "fd00::5\tbox".to_owned()];
        let more = added(b"1.1.1.1 x", &lines);
        assert_eq!(text(&more), "1.1.1.1 x\n10.0.0.5\tbox\nfd00::5\tbox\n");
        assert_eq!(text(&removed(&more, &lines, &[])), "1.1.1.1 x\n");
        // One of two that are the same; none that only looks like it.
        let one = ["10.0.0.2\tbox".to_owned(), "1.2.3.4\tdb".to_owned()];
        let left = removed(FILE, &one, &[]);
        assert_eq!(left.len(), FILE.len() - "10.0.0.2\tbox\n".len());
        // What is no text is kept as it is.
        assert_eq!(removed(b"\xff\t\xfe\n", &one, &[]), b"\xff\t\xfe\n");
    }

    #[test]
    fn what_was_asked_for_by_the_user_stays() {
        let line = ["10.0.0.2\tbox".to_owned()];
        let one = removed(FILE, &line, &line);
        assert_eq!(one.len(), FILE.len() - "10.0.0.2\tbox\n".len());
        assert_eq!(removed(&one, &line, &line), one);
    }

    #[test]
    fn only_a_regular_file_is_changed_and_only_where_it_differs() {
        let dir = std::env::temp_dir().join(format!("amphora-hosts-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("hosts");
        let open = || open_hosts(open_dir(&dir).unwrap(), &path);
        assert!(open().unwrap().is_none());
        std::fs::write(&path, FILE).unwrap();
        let file = open().unwrap().unwrap();
        for changed in [&b"127.0.0.1\tlocalhost\nx\n"[..], b"", b"1\n2\n"] {
            let text = std::fs::read(&path).unwrap();
            write_change(&file, &text, changed).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), changed);
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("other", &path).unwrap();
        assert!(open().is_err());
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(open().is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
