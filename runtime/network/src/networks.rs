//! The state of all networks: where it lies, what it holds, how it is put right and removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use amphora_spec::ContainerId;

use crate::attachment::{Endpoint, Listing, RECORD, Record, gateway_of};
use crate::config::{DEFAULT_NETWORK, FORMAT, NetworkConfig, NetworkSettings};
use crate::create::is_name;
use crate::ensure::Host;
use crate::error::{NetworkError, Result, file, kernel, netlink};
use crate::lease::Leases;
use crate::nft;
use crate::ports::PublishedPort;
use crate::store;
use crate::sysctl::{Change, Changes};

/// The networks of one engine: configuration below its data directory, leases and endpoints
/// below its run directory, links and rules in the calling thread's network namespace.
#[derive(Debug)]
pub struct Networks {
    data: PathBuf,
    run: PathBuf,
    pub(crate) settings: NetworkSettings,
    #[cfg(feature = "testing")]
    pub(crate) steps: std::sync::atomic::AtomicUsize,
    #[cfg(feature = "testing")]
    pub(crate) fail_at: std::sync::atomic::AtomicUsize,
}

impl Networks {
    /// Opens the networks of an engine; nothing is made before it is needed.
    #[must_use]
    pub fn open(data: &Path, run: &Path) -> Self {
        Self {
            data: data.to_owned(),
            run: run.to_owned(),
            settings: NetworkSettings::default(),
            #[cfg(feature = "testing")]
            steps: std::sync::atomic::AtomicUsize::new(0),
            #[cfg(feature = "testing")]
            fail_at: std::sync::atomic::AtomicUsize::new(usize::MAX),
        }
    }

    /// The same, with settings for the default network. One that stands and is used stays as it
    /// is until nobody uses it.
    #[must_use]
    pub fn with_settings(mut self, settings: NetworkSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Returns a network's configuration, or `None` when it was never made.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn stored(&self, name: &str) -> Result<Option<NetworkConfig>> {
        let path = self.config_path(name);
        match store::read_json::<NetworkConfig>(&path)? {
            Some(config) if config.version == 0 || config.version > FORMAT => {
                Err(NetworkError::Version {
                    path,
                    found: config.version,
                    known: FORMAT,
                })
            }
            found => Ok(found),
        }
    }

    /// Lists the networks that are written down, by name.
    pub(crate) fn stored_all(&self) -> Result<Vec<NetworkConfig>> {
        let mut all = Vec::new();
        for name in names_in(&self.data.join("networks"))? {
            if is_name(&name) {
                all.extend(self.usable(&name)?);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Returns a container's places in networks, in the order of connection.
    ///
    /// # Errors
    /// When the record cannot be read or understood.
    pub fn endpoints_of(&self, id: &ContainerId) -> Result<Vec<Endpoint>> {
        self.listing(id).map(|listing| listing.endpoints)
    }

    /// Returns what is on record of a container's places.
    pub(crate) fn listing(&self, id: &ContainerId) -> Result<Listing> {
        let path = self.endpoint_path(id);
        let record: Option<Record> = store::read_json(&path)?;
        let listing = record.map(Record::into_listing).transpose();
        let listing = listing.map_err(|found| NetworkError::Version {
            path,
            found,
            known: RECORD,
        })?;
        Ok(listing.unwrap_or_default())
    }

    /// Returns the published ports that lead nowhere while a container is in no network that
    /// could publish them; its supervisor holds them all the same.
    ///
    /// # Errors
    /// When the record cannot be read or understood.
    pub fn parked(&self, id: &ContainerId) -> Result<Vec<PublishedPort>> {
        self.listing(id).map(|listing| listing.parked)
    }

    /// Returns the place of a container that its ports are published at: the one that its default
    /// route leads to, or else the first one.
    ///
    /// # Errors
    /// When the record cannot be read or understood.
    pub fn endpoint(&self, id: &ContainerId) -> Result<Option<Endpoint>> {
        let mut all = self.endpoints_of(id)?;
        let at = gateway_of(&all).unwrap_or(0);
        Ok((at < all.len()).then(|| all.swap_remove(at)))
    }

    /// Lists every endpoint on record.
    ///
    /// # Errors
    /// When the run directory cannot be read. A record that cannot be understood is left out.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let ids = names_in(&self.run.join("containers"))?;
        let ids = ids
            .iter()
            .filter_map(|name| ContainerId::from_str(name).ok());
        Ok(ids
            .filter_map(|id| self.endpoints_of(&id).ok())
            .flatten()
            .collect())
    }

    /// Lists the kernel settings that were changed for networks.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn changed_settings(&self) -> Result<Vec<Change>> {
        self.changes().list()
    }

    /// Releases the endpoints of containers that do not live, and leases without an endpoint.
    /// Carries on after a failure and returns all of them.
    pub fn reconcile(&self, live: &dyn Fn(&ContainerId) -> bool) -> Vec<NetworkError> {
        let mut errors = Vec::new();
        match self.endpoints() {
            Ok(all) => {
                let mut dead: Vec<_> = all.iter().map(|e| e.container).collect();
                dead.dedup();
                for id in dead.iter().filter(|id| !live(id)) {
                    errors.extend(self.release(id).err());
                }
            }
            Err(error) => errors.push(error),
        }
        for name in names_in(&self.run.join("networks")).unwrap_or_default() {
            match self.leases(&name).list() {
                Ok(leases) => {
                    for (path, holder) in leases {
                        if !holder.is_some_and(|id| live(&id)) {
                            errors.extend(store::remove(&path).err());
                        }
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.settle().err());
        errors
    }

    /// Removes everything of ours: endpoints on record, bridges, the table, rules in other
    /// engines' chains, leases, and changed settings unless another
    /// engine runs here. For tests and for taking amphora off a host.
    pub fn teardown_all(&self) -> Vec<NetworkError> {
        let mut errors = self.reconcile(&|_| false);
        // Another engine found forwarding turned on and relies on it.
        let mut needed = false;
        match nft::open() {
            Ok(socket) => {
                let step = "look at table \"filter\"";
                match nft::look(&socket).map_err(netlink(step)) {
                    Ok(foreign) => needed = !foreign.user_chains.is_empty(),
                    Err(error) => errors.push(error),
                }
                let step = "remove table \"amphora\"";
                errors.extend(nft::drop_table(&socket).map_err(netlink(step)).err());
            }
            Err(error) => errors.push(kernel("open nftables")(error)),
        }
        match (Host::open(), self.stored_all()) {
            (Ok(host), Ok(all)) => {
                let removed = all.iter().map(|config| self.delete_links(config, &host));
                errors.extend(removed.filter_map(std::result::Result::err));
            }
            (Err(error), _) | (_, Err(error)) => errors.push(error),
        }
        if !needed {
            errors.extend(self.changes().restore());
        }
        let run = self.run.join("networks");
        match fs::remove_dir_all(&run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(file("remove", &run)(error));
            }
            _ => {}
        }
        errors
    }

    /// Takes our rules out of other engines' chains when no address is leased any more.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.any_lease()? || !self.run.join("networks").is_dir() {
            return Ok(());
        }
        let _lock = store::lock(&self.lock_path())?;
        if self.any_lease()? {
            return Ok(());
        }
        let host = Host::open()?;
        for config in self.stored_all()? {
            self.remove_more_bridges(&host, &config)?;
        }
        nft::forget_bridges(&host.nft).map_err(netlink("clean chain \"DOCKER-USER\""))
    }

    pub(crate) fn any_lease(&self) -> Result<bool> {
        for name in names_in(&self.run.join("networks"))? {
            if self.leases(&name).any()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn leases(&self, network: &str) -> Leases {
        Leases::at(&self.run_dir(network))
    }

    pub(crate) fn changes(&self) -> Changes {
        Changes::at(self.run.join("networks/settings.json"))
    }

    pub(crate) fn data_dir(&self, network: &str) -> PathBuf {
        self.data.join("networks").join(network)
    }

    pub(crate) fn config_path(&self, network: &str) -> PathBuf {
        self.data_dir(network).join("config.json")
    }

    pub(crate) fn run_dir(&self, network: &str) -> PathBuf {
        self.run.join("networks").join(network)
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.run.join("networks/lock")
    }

    pub(crate) fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.run.join("containers").join(id.hex())
    }

    pub(crate) fn endpoint_path(&self, id: &ContainerId) -> PathBuf {
        self.container_dir(id).join("endpoint")
    }

    /// Every effect passes here, so that a test can fail each of them in turn.
    #[cfg(not(feature = "testing"))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "tests fail here"
    )]
    pub(crate) const fn step(&self) -> Result<()> {
        Ok(())
    }
}

/// Names of a directory's entries; none when it is not there.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| Ok(entry.map_err(file("read", dir))?.file_name()))
            .filter_map(|name| name.map(|n| n.into_string().ok()).transpose())
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(file("read", dir)(error)),
    }
}

/// Says whether a name is the default network's, under each name a user may give it.
#[must_use]
pub fn is_default(name: &str) -> bool {
    matches!(name, "" | "default" | DEFAULT_NETWORK)
}
