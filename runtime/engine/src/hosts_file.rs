//! `/etc/hosts` of containers that run: lines of ours follow their networks and those they are
//! linked to. What else stands in the file is the container's.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;

use amphora_network::{Endpoint, NetworkAttachment};
use amphora_spec::ContainerId;
use amphora_spec::error::chain;
use rustix::fs::{FlockOperation, flock};

use crate::config::ContainerConfig;
use crate::files::{Lasting, open_dir};
use crate::network_check::link_parts;
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

/// Takes lines away, each once.
fn removed(text: &[u8], lines: &[String]) -> Vec<u8> {
    let mut lines: Vec<&String> = lines.iter().collect();
    let mut left = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n') {
        let plain = line.strip_suffix(b"\n").unwrap_or(line);
        match lines.iter().position(|gone| gone.as_bytes() == plain) {
            Some(at) => drop(lines.swap_remove(at)),
            None => left.extend_from_slice(line),
        }
    }
    left
}

/// A line about a container that another one is linked to.
#[derive(Debug, PartialEq, Eq)]
struct Led {
    alias: String,
    /// Stands behind the alias on the default network, whatever the container is called by now.
    host: Option<String>,
    address: IpAddr,
}

impl Led {
    /// The rest of a line of ours from the tab on.
    fn names<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        let tab = line.iter().position(|b| *b == b'\t')?;
        let (_, rest) = line.split_at(tab);
        let text = std::str::from_utf8(rest).ok()?.trim_end_matches('\n');
        let mut words = text.strip_prefix('\t')?.split(' ');
        let ours = words.next() == Some(&self.alias)
            && match &self.host {
                Some(host) => *host == self.alias || words.next() == Some(host),
                None => words.next().is_none(),
            };
        ours.then_some(rest)
    }
}

/// Has the lines about linked containers lead to where these are now. On a network of the user's
/// one that was not there at the start of the other is written down now.
fn led(text: &[u8], all: &[Led]) -> Vec<u8> {
    let mut changed = Vec::new();
    let mut seen = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n') {
        let about = all.iter().find_map(|led| Some((led, led.names(line)?)));
        match about {
            Some((led, names)) => {
                seen.push(led);
                changed.extend_from_slice(led.address.to_string().as_bytes());
                changed.extend_from_slice(names);
            }
            None => changed.extend_from_slice(line),
        }
    }
    let missing = |led: &&Led| led.host.is_none() && !seen.contains(led);
    let lines = all.iter().filter(missing);
    let lines: Vec<String> = lines
        .map(|led| format!("{}\t{}", led.address, led.alias))
        .collect();
    added(&changed, &lines)
}

impl Engine {
    /// Changes the file in place: a mount shows the container this very one. Whoever has none just
    /// now gets a new one with its next start.
    fn edit_hosts(&self, id: &ContainerId, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<()> {
        let dir = self.run_dir(id).join("etc");
        let path = dir.join("hosts");
        if !path.exists() {
            return Ok(());
        }
        // The file itself is the container's to lock.
        let lock = open_dir(&dir)?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| EngineError::file("lock", &dir, e))?;
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path);
        let mut file = match opened {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|e| EngineError::file("open", &path, e))?,
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
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        file.write_all(&changed).map_err(failed)?;
        file.set_len(changed.len() as u64).map_err(failed)
    }

    /// Writes down what a running container has in a network it has joined: its own addresses, and
    /// those of the containers it is linked to there.
    pub(crate) fn add_hosts(
        &self,
        config: &ContainerConfig,
        endpoint: &Endpoint,
        asked: &NetworkAttachment,
    ) -> Result<()> {
        let lines = self.lines_of(config, endpoint, asked);
        self.edit_hosts(&config.id, |text| added(text, &lines))
    }

    /// The opposite, when it has left the network.
    pub(crate) fn remove_hosts(
        &self,
        config: &ContainerConfig,
        endpoint: &Endpoint,
        asked: &NetworkAttachment,
    ) -> Result<()> {
        let lines = self.lines_of(config, endpoint, asked);
        self.edit_hosts(&config.id, |text| removed(text, &lines))
    }

    fn lines_of(
        &self,
        config: &ContainerConfig,
        endpoint: &Endpoint,
        asked: &NetworkAttachment,
    ) -> Vec<String> {
        let names = own_names(config).join(" ");
        let own = addresses(endpoint).map(|address| format!("{address}\t{names}"));
        let others = self.aliases_of_others(asked);
        let others = others
            .into_iter()
            .map(|(alias, address)| format!("{address}\t{alias}"));
        own.chain(others).collect()
    }

    /// Has those that a container is linked to remember it: whoever starts one of them again tells
    /// the container where it is. One that goes when it ends is never started again.
    pub(crate) fn note_linking(&self, config: &ContainerConfig) -> Result<()> {
        let host = &config.host;
        let asked = host.networks.iter().flat_map(|a| &a.links);
        for link in host.links.iter().chain(asked) {
            let Ok(id) = self.find(link_parts(link).0) else {
                continue;
            };
            let knows = |c: &ContainerConfig| c.linked_by.contains(&config.id);
            if id == config.id || self.config(&id).is_ok_and(|c| knows(&c)) {
                continue;
            }
            let _lock = self.lock_config(&id)?;
            let mut target = self.config(&id)?;
            if target.host.auto_remove || knows(&target) {
                continue;
            }
            // Those that are gone are forgotten on the occasion.
            target.linked_by.retain(|by| self.config(by).is_ok());
            target.linked_by.push(config.id);
            self.write_config(&mut target, Lasting::Long)?;
        }
        Ok(())
    }

    /// Tells the containers that are linked to one where that is now. Returns what failed.
    pub(crate) fn lead_links(
        &self,
        config: &ContainerConfig,
        endpoints: &[Endpoint],
    ) -> Vec<String> {
        let mut failed = Vec::new();
        for id in &config.linked_by {
            let Ok(linking) = self.config(id) else {
                continue;
            };
            let all = self.links_between(&linking, config, endpoints);
            let told = match all.is_empty() {
                true => Ok(()),
                false => self.edit_hosts(id, |text| led(text, &all)),
            };
            failed.extend(told.err().map(|e| chain(&e)));
        }
        failed
    }

    fn links_between(
        &self,
        linking: &ContainerConfig,
        config: &ContainerConfig,
        endpoints: &[Endpoint],
    ) -> Vec<Led> {
        let here = |target: &str| self.find(target).is_ok_and(|id| id == config.id);
        let mut all = Vec::new();
        let mut put = |links: &[String], network: &str, host: Option<&String>| {
            let Some(endpoint) = endpoints.iter().find(|e| e.network == network) else {
                return;
            };
            let parts = links.iter().map(|link| link_parts(link));
            let aliases = parts.filter(|(target, _)| here(target));
            all.extend(aliases.map(|(_, alias)| Led {
                alias: alias.to_owned(),
                host: host.cloned(),
                address: endpoint.address.into(),
            }));
        };
        let hostname = Some(&config.hostname);
        put(&linking.host.links, "bridge", hostname);
        for asked in &linking.host.networks {
            put(&asked.links, &asked.network, None);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] =
        b"127.0.0.1\tlocalhost\n# mine\n10.0.0.2\tbox\n10.0.0.2\tbox\n172.17.0.3\tdb 0123 base\n\
        1.2.3.4 db\n1.2.3.4\tdb mine\n10.0.0.9\talias\n";

    fn led_to(alias: &str, host: Option<&str>) -> Led {
        Led {
            alias: alias.to_owned(),
            host: host.map(str::to_owned),
            address: "192.0.2.7".parse().unwrap(),
        }
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_come_and_go_and_others_stay() {
        let lines = ["10.0.0.5\tbox".to_owned(), "fd00::5\tbox".to_owned()];
        let more = added(b"1.1.1.1 x", &lines);
        assert_eq!(text(&more), "1.1.1.1 x\n10.0.0.5\tbox\nfd00::5\tbox\n");
        assert_eq!(text(&removed(&more, &lines)), "1.1.1.1 x\n");
        // One of two that are the same; none that only looks like it.
        let one = ["10.0.0.2\tbox".to_owned(), "1.2.3.4\tdb".to_owned()];
        let left = removed(FILE, &one);
        assert_eq!(left.len(), FILE.len() - "10.0.0.2\tbox\n".len());
        // What is no text is kept as it is.
        assert_eq!(removed(b"\xff\t\xfe\n", &one), b"\xff\t\xfe\n");
    }

    #[test]
    fn links_follow_and_what_the_user_wrote_does_not() {
        let now = led(FILE, &[led_to("db", Some("0123")), led_to("alias", None)]);
        let expected = text(FILE)
            .replace("172.17.0.3\tdb", "192.0.2.7\tdb")
            .replace("10.0.0.9\talias", "192.0.2.7\talias");
        assert_eq!(text(&now), expected);
        // What was taken away on the default network stays away; on another it had not been there.
        let now = led(b"\xff\n", &[led_to("db", Some("0123")), led_to("a", None)]);
        assert_eq!(now, b"\xff\n192.0.2.7\ta\n");
    }
}
