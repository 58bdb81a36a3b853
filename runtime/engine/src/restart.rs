//! Restart policies: checked in Docker's words, changed, and put to work after a crash.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use amphora_spec::error::chain;
use amphora_spec::{Classify, ContainerId};
use amphora_supervisor::{
    Client, HealthAction, Inherited, RestartKind, RestartPolicy, change_policy, inherited_start,
    is_wanted, note_wanted,
};

use crate::boot::remove_work;
use crate::config::HostConfig;
use crate::container::{ContainerView, Status};
use crate::files::{Lasting, Lock, open_dir};
use crate::finish::remove_cgroup;
use crate::{Attach, Engine, EngineError, Result};

/// Longest a command waits for a container to leave its pause or its start.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);
const LEAVE_POLL: Duration = Duration::from_millis(2);

/// Parses `no`, `always`, `unless-stopped`, and `on-failure[:N]`.
///
/// # Errors
/// [`EngineError::Invalid`] in Docker's words.
pub fn parse(text: &str) -> Result<RestartPolicy> {
    let invalid = |text: String| Err(EngineError::Invalid(text));
    let (name, count) = match text.split_once(':') {
        Some(("", _)) => {
            return invalid(
                "invalid restart policy format: no policy provided before colon".to_owned(),
            );
        }
        Some((name, count)) => (name, Some(count)),
        None => (text, None),
    };
    let max = match count.map(str::parse::<i64>) {
        None => 0,
        Some(Ok(max)) => max,
        Some(Err(_)) => {
            return invalid(
                "invalid restart policy format: maximum retry count must be an integer".to_owned(),
            );
        }
    };
    let name = if name.is_empty() { "no" } else { name };
    let found = RestartKind::ALL.iter().find(|(_, known)| *known == name);
    let Some((kind, _)) = found else {
        return invalid(format!(
            "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ));
    };
    if max < 0 {
        return invalid(
            "invalid restart policy: maximum retry count cannot be negative".to_owned(),
        );
    }
    let counts = *kind == RestartKind::OnFailure;
    if max > 0 && !counts {
        return invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
                .to_owned(),
        );
    }
    Ok(RestartPolicy {
        kind: *kind,
        max: u32::try_from(max).unwrap_or(u32::MAX),
    })
}

/// Checks what the policy does not go together with.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    if host.restart.is_some() && host.auto_remove {
        return Err(EngineError::Invalid(
            "can't create 'AutoRemove' container with restart policy".to_owned(),
        ));
    }
    Ok(())
}

impl Engine {
    /// Changes the policy of a container, running or not.
    ///
    /// # Errors
    /// A container that is removed when it exits; records that cannot be written.
    pub fn set_restart(&self, id: &ContainerId, policy: RestartPolicy) -> Result<()> {
        let _lock = self.lock_config(id)?;
        self.reconcile_one(id)?;
        let mut config = self.config(id)?;
        if config.host.auto_remove && policy.is_some() {
            return Err(EngineError::Invalid(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
                    .to_owned(),
            ));
        }
        config.host.restart = policy;
        self.write_config(&mut config, Lasting::Long)?;
        if self.view(id)?.status.is_active() {
            let run = open_dir(&self.run_dir(id))?;
            change_policy(run.as_fd(), policy).map_err(EngineError::plain)?;
            if self.wanted(id) != Some(false) {
                self.note_wanted(id, true)?;
            }
            self.wake(id);
        } else if policy.is_some() && self.wanted(id).is_none() && self.exit_record(id)?.is_some() {
            // It ran, and ended, before it had a policy.
            self.note_wanted(id, false)?;
        }
        Ok(())
    }

    /// Whether a container without a supervisor would be running, had its supervisor lived.
    /// `soon`: it was between two runs.
    pub(crate) fn is_to_run(&self, id: &ContainerId, soon: bool) -> bool {
        let Ok(config) = self.config(id) else {
            return false;
        };
        let exit = self.exit_record(id).ok().flatten();
        let (code, restarts) = exit.map_or((1, 0), |e| (e.code, e.restarts));
        let unhealthy = soon && config.host.health_on_failure == HealthAction::Restart;
        let wants = unhealthy || config.host.restart.wants(code, restarts);
        wants && self.wanted(id) != Some(false)
    }

    pub(crate) fn wanted(&self, id: &ContainerId) -> Option<bool> {
        let dir = open_dir(&self.container_dir(id)).ok()?;
        is_wanted(dir.as_fd()).ok().flatten()
    }

    pub(crate) fn note_wanted(&self, id: &ContainerId, wanted: bool) -> Result<()> {
        let dir = open_dir(&self.container_dir(id))?;
        note_wanted(dir.as_fd(), wanted).map_err(EngineError::plain)
    }

    fn wake(&self, id: &ContainerId) {
        // One that is not there looks by itself when it begins.
        if let Ok(mut client) = Client::connect(&self.run_dir(id)) {
            let _ = client.wake();
        }
    }

    /// Notes that a container is stopped by hand, and has it leave its pause. What it returns is
    /// no restarting one.
    pub(crate) fn stopped_by_hand(&self, id: &ContainerId) -> Result<ContainerView> {
        let mut view = self.view(id)?;
        if view.config.host.comes_back() && view.status.is_active() {
            self.note_wanted(id, false)?;
        }
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        while view.status == Status::Restarting {
            self.wake(id);
            if Instant::now() > deadline {
                return Err(EngineError::State(format!("container {id} is busy")));
            }
            std::thread::sleep(LEAVE_POLL);
            self.reconcile_one(id)?;
            view = self.view(id)?;
        }
        Ok(view)
    }

    /// Makes everything for the next run of a container and hands it to the supervisor that
    /// started this process; the whole of the `prepare` entry.
    ///
    /// # Errors
    /// Whatever step failed; all are undone, and the supervisor was told.
    pub fn prepare(&self, id: &ContainerId) -> Result<()> {
        let Inherited { socket, lock } = inherited_start().map_err(EngineError::plain)?;
        let report = socket
            .try_clone()
            .map_err(EngineError::io("failed to keep the supervisor's socket"))?;
        let prepared = || {
            let config = self.config(id)?;
            // What the last run left: `finish` has not been here.
            self.defer_end(&config);
            self.flush_events();
            self.networks.release(id).map_err(EngineError::plain)?;
            remove_cgroup(&id.hex())?;
            remove_work(&self.container_dir(id))?;
            let lock = Lock::inherited(lock, self.run_dir(id));
            self.launch_locked(&config, &lock, Attach::None, Some(socket))
        };
        match prepared() {
            Ok(_) => Ok(()),
            Err(error) => {
                Inherited::failed(report.as_fd(), error.kind(), &chain(&error));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_parsed_as_docker_does() {
        let policy = |kind, max| RestartPolicy { kind, max };
        assert_eq!(parse("").unwrap(), policy(RestartKind::No, 0));
        assert_eq!(
            parse("on-failure:3").unwrap(),
            policy(RestartKind::OnFailure, 3)
        );
        for (text, error) in [
            (":1", "no policy provided before colon"),
            ("on-failure:x", "maximum retry count must be an integer"),
            ("on-failure:-1", "maximum retry count cannot be negative"),
            ("always:2", "can only be used with 'on-failure'"),
            ("sometimes", "unknown policy 'sometimes'"),
        ] {
            let got = parse(text).unwrap_err().to_string();
            assert!(got.contains(error), "{text}: {got}");
        }
    }
}
