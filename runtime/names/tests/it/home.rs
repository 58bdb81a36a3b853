//! Records of a few containers, in a directory of a test's own.

use std::fs;
use std::path::PathBuf;

/// The roots of data and of runs.
pub(crate) struct Home {
    pub(crate) root: PathBuf,
}

/// The id of a container.
pub(crate) fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

impl Home {
    pub(crate) fn new(test: &str) -> Self {
        let root =
            std::env::temp_dir().join(format!("amphora-names-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("data/names")).unwrap();
        Self { root }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// A running container: `places` are network, IPv4 and IPv6 address.
    pub(crate) fn container(&self, digit: char, name: &str, places: &[(&str, &str, &str)]) {
        let id = id(digit);
        let stored = self.data().join("containers").join(&id);
        fs::create_dir_all(&stored).unwrap();
        let config = serde_json::json!({ "version": 1, "id": id, "name": name, "more": [1] });
        fs::write(stored.join("config.json"), config.to_string()).unwrap();
        std::os::unix::fs::symlink(&id, self.data().join("names").join(name)).unwrap();
        self.endpoints(digit, places);
    }

    /// The places that it has from now on.
    pub(crate) fn endpoints(&self, digit: char, places: &[(&str, &str, &str)]) {
        let running = self.run().join("containers").join(id(digit));
        fs::create_dir_all(&running).unwrap();
        let endpoints: Vec<serde_json::Value> = places
            .iter()
            .map(|(network, v4, v6)| {
                let leases = self.run().join("networks").join(network).join("leases");
                fs::create_dir_all(&leases).unwrap();
                let _ = std::os::unix::fs::symlink(id(digit), leases.join(v4));
                let v6 = (!v6.is_empty()).then_some(v6);
                if let Some(v6) = v6.filter(|_| *network != "bridge") {
                    let _ = std::os::unix::fs::symlink(id(digit), leases.join(v6));
                }
                serde_json::json!({
                    "network": network, "address": v4, "prefix": 16,
                    "address6": v6, "prefix6": v6.map_or(0, |_| 64),
                    "internal": network.starts_with("in"), "x": 0,
                })
            })
            .collect();
        let record = serde_json::json!({ "version": 2, "endpoints": endpoints });
        fs::write(running.join("endpoint"), record.to_string()).unwrap();
    }

    pub(crate) fn alias(&self, network: &str, alias: &str, digit: char) {
        let dir = self.run().join("networks").join(network);
        let dir = dir.join("aliases").join(alias);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(id(digit)), "").unwrap();
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}
