//! Events: what the engine writes into `R/events`. Those of a start travel with the supervisor,
//! which writes them together with the start, once nobody waits.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use amphora_network::{Claim, Endpoint};
use amphora_spec::ContainerId;
use amphora_supervisor::{
    Event, EventLog, append_events, change_attributes, event_attributes, events_path,
};

use crate::config::{ContainerConfig, MountPoint};
use crate::start::Attach;
use crate::undo::Undo;
use crate::{Engine, Result};

/// Records that wait to be written together.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<String>);

impl Pending {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_str(line);
    }

    fn take(&self) -> String {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lines)
    }
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

fn line(kind: &str, action: &str, id: &str, attributes: &str) -> String {
    Event {
        kind,
        action,
        id,
        attributes,
        time: now(),
    }
    .line()
}

fn container_attributes(config: &ContainerConfig, more: &[(&str, &str)]) -> String {
    let own = [
        ("image", config.image.as_str()),
        ("name", config.name.as_str()),
    ];
    let labels = config.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    event_attributes(more.iter().copied().chain(own).chain(labels))
}

impl Engine {
    /// Writes an event. A failure is nobody's concern.
    pub fn note(&self, kind: &str, action: &str, id: &str, attributes: &[(&str, &str)]) {
        self.defer(kind, action, id, attributes);
        self.flush_events();
    }

    /// Writes an event of a container, with its own attributes and `more`.
    ///
    /// # Errors
    /// [`crate::EngineError::NoSuchContainer`].
    pub fn note_action(&self, id: &ContainerId, action: &str, more: &[(&str, &str)]) -> Result<()> {
        self.note_container(&self.config(id)?, action, more);
        Ok(())
    }

    pub(crate) fn note_container(
        &self,
        config: &ContainerConfig,
        action: &str,
        more: &[(&str, &str)],
    ) {
        self.defer_container(config, action, more);
        self.flush_events();
    }

    /// Keeps an event until the next write.
    pub(crate) fn defer(&self, kind: &str, action: &str, id: &str, more: &[(&str, &str)]) {
        let attributes = event_attributes(more.iter().copied());
        self.events.push(&line(kind, action, id, &attributes));
    }

    pub(crate) fn defer_container(
        &self,
        config: &ContainerConfig,
        action: &str,
        more: &[(&str, &str)],
    ) {
        let attributes = container_attributes(config, more);
        self.events
            .push(&line("container", action, &config.id.hex(), &attributes));
    }

    /// Writes what was kept.
    pub(crate) fn flush_events(&self) {
        let lines = self.events.take();
        let _ = append_events(&events_path(&self.options.run_root), &lines);
    }

    /// What a container's supervisor writes: all that was kept, what Docker tells between create
    /// and start, then the start. It is written by us when the start fails.
    pub(crate) fn start_events(
        &self,
        config: &ContainerConfig,
        attach: Attach,
        claim: Option<&Claim>,
        undo: &mut Undo,
    ) -> EventLog {
        let endpoints = claim.map_or(&[][..], |c| &c.endpoints);
        self.defer_start(config, attach, endpoints);
        let before = self.events.take();
        let path = events_path(&self.options.run_root);
        let (again, lines) = (path.clone(), before.clone());
        undo.push(move || {
            let _ = append_events(&again, &lines);
            Ok(())
        });
        EventLog {
            path,
            attributes: container_attributes(config, &[]),
            before,
        }
    }

    /// Tells the supervisor of a container, if it has one, what the container's events carry now.
    pub(crate) fn tell_attributes(&self, config: &ContainerConfig) {
        if let Ok(run) = crate::files::open_dir(&self.run_dir(&config.id)) {
            // A failure costs a name in an event.
            let _ = change_attributes(run.as_fd(), &container_attributes(config, &[]));
        }
    }

    fn defer_start(&self, config: &ContainerConfig, attach: Attach, endpoints: &[Endpoint]) {
        if attach != Attach::None {
            self.defer_container(config, "attach", &[]);
        }
        for endpoint in endpoints {
            self.defer_network(config, "connect", endpoint);
        }
        self.defer_mounts(config, "mount");
    }

    /// What Docker tells once a container has ended.
    pub(crate) fn defer_end(&self, config: &ContainerConfig) {
        // The endpoints are off the record by now.
        for asked in config.host.attachments() {
            if let Ok(Some(network)) = self.networks.stored(&asked.network) {
                let id = config.id.hex();
                let more = [
                    ("container", id.as_str()),
                    ("name", network.name.as_str()),
                    ("type", network.driver.as_str()),
                ];
                self.defer("network", "disconnect", &network.id, &more);
            }
        }
        self.defer_mounts(config, "unmount");
    }

    pub(crate) fn defer_network(&self, config: &ContainerConfig, action: &str, at: &Endpoint) {
        let id = config.id.hex();
        let more = [
            ("container", id.as_str()),
            ("name", at.network.as_str()),
            ("type", at.driver.as_str()),
        ];
        self.defer("network", action, &at.network_id, &more);
    }

    pub(crate) fn defer_mounts(&self, config: &ContainerConfig, action: &str) {
        let id = config.id.hex();
        for point in &config.host.mounts {
            let MountPoint::Volume {
                name,
                destination,
                read_only,
                ..
            } = point
            else {
                continue;
            };
            let writable = if *read_only { "false" } else { "true" };
            let all = [
                ("container", id.as_str()),
                ("destination", destination.as_str()),
                ("driver", "local"),
                ("propagation", ""),
                ("read/write", writable),
            ];
            let shown: &[(&str, &str)] = if action == "mount" {
                &all
            } else {
                &[("container", id.as_str()), ("driver", "local")]
            };
            self.defer("volume", action, name, shown);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.flush_events();
    }
}
