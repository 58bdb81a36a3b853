//! Healthchecks: what is asked for at create, and a single check carried out, in a short-lived
//! process that the supervisor starts for it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use amphora_spec::ContainerId;
use amphora_spec::health::{HealthTest, Healthcheck};
use amphora_spec::select::Executor;
use amphora_supervisor::{
    Client, ClientEvent, HealthAction, HealthConfig, HealthPhase, HealthRecord, HealthResult,
    HealthStatus, SupervisorError, health_time,
};
use amphora_sys::pidfd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::config::{ContainerConfig, HostConfig};
use crate::container::{ContainerView, Status};
use crate::exec::{ExecOptions, not_started};
use crate::files::open_dir;
use crate::list::now_nanos;
use crate::ps::Listed;
use crate::start::AttachStreams;
use crate::{Engine, EngineError, Result};

/// Most bytes of a check's output that are kept.
const OUTPUT_MAX: usize = 4096;
/// Code of a check that was cut off or did not come to be.
const NO_CODE: i32 = -1;
/// SIGKILL.
const KILL: i32 = 9;
/// How long after a kill the supervisor may take to see that the container has ended.
const END_WAIT: Duration = Duration::from_millis(100);

/// What a container is checked by: what was asked for, completed by its image.
pub(crate) fn configure(
    given: Option<Healthcheck>,
    image: Option<&Healthcheck>,
    host: &HostConfig,
) -> Result<Option<Healthcheck>> {
    if let Some(own) = &given {
        own.check().map_err(EngineError::Invalid)?;
    }
    let check = match (given, image.cloned().map(Healthcheck::bounded)) {
        (Some(own), Some(image)) => Some(own.over(&image)),
        (own, image) => own.or(image),
    };
    let action = host.health_on_failure;
    let checked = check.as_ref().is_some_and(|c| c.command().is_some());
    if action != HealthAction::None && !checked {
        return Err(EngineError::Invalid(format!(
            "cannot set on-failure action to {} without a health check",
            action.name()
        )));
    }
    if action == HealthAction::Restart && host.auto_remove {
        return Err(EngineError::Invalid(
            "can't create 'AutoRemove' container with on-failure action restart".to_owned(),
        ));
    }
    Ok(check)
}

/// What a check runs, as `exec` takes it.
fn words(config: &ContainerConfig, test: HealthTest<'_>) -> Vec<String> {
    match test {
        HealthTest::Command(words) => words.to_vec(),
        // There is no shell among modules.
        HealthTest::Shell(line) if config.executor == Executor::Wasm => {
            let words = crate::instructions::words(line);
            words.iter().map(|w| w.replace("\\$", "$")).collect()
        }
        HealthTest::Shell(line) => {
            let default = ["/bin/sh".to_owned(), "-c".to_owned()];
            let shell = if config.shell.is_empty() {
                &default[..]
            } else {
                &config.shell
            };
            shell
                .iter()
                .cloned()
                .chain(std::iter::once(line.to_owned()))
                .collect()
        }
    }
}

/// What a check has written so far, up to a bound.
#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    cut: bool,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) {
        let room = OUTPUT_MAX.saturating_sub(self.bytes.len());
        let fits = bytes.get(..room).unwrap_or(bytes);
        self.cut |= fits.len() < bytes.len();
        self.bytes.extend(fits);
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        format!("{text}{}", if self.cut { "..." } else { "" })
    }
}

/// A session that is a check.
struct Check<'a> {
    engine: &'a Engine,
    client: Client,
    process: Option<OwnedFd>,
    pid: i32,
}

impl Check<'_> {
    /// Follows it to its end or to the deadline; `None` when its result says nothing of the
    /// container: that is paused or ending, or its supervisor is gone.
    fn follow(mut self, view: &ContainerView, timeout: Duration) -> Option<(i32, String)> {
        let deadline = Instant::now().checked_add(timeout);
        let mut output = Output::default();
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) || !readable(&self.client, left) {
                if left.is_some_and(|l| !l.is_zero()) {
                    continue;
                }
                let paused = self.engine.view(&view.config.id).is_ok_and(|v| v.paused);
                // With its connection the supervisor kills it and all of its process group.
                drop(self.client);
                return (!paused).then(|| (NO_CODE, exceeded(timeout, &output)));
            }
            match self.client.next() {
                Ok(ClientEvent::Stdout(bytes) | ClientEvent::Stderr(bytes)) => output.add(bytes),
                Ok(ClientEvent::Exit(status)) => {
                    // Killed with the container, perhaps: then its supervisor ends us now.
                    if status.signal == KILL && readable(&self.client, Some(END_WAIT)) {
                        return None;
                    }
                    return Some((status.code, output.text()));
                }
                Ok(ClientEvent::Lost) | Err(_) => {
                    self.kill();
                    return None;
                }
                Ok(_) => {}
            }
        }
    }

    /// Ends what a killed supervisor left to us.
    fn kill(&self) {
        let Some(process) = &self.process else { return };
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        let now = Timespec::default();
        let runs = matches!(poll(&mut fds, Some(&now)), Ok(0));
        if let (true, Some(pid)) = (runs, Pid::from_raw(self.pid)) {
            // It leads a session, and so a group.
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = pidfd::signal(process.as_fd(), KILL);
        }
    }
}

/// Waits until there is something to read.
fn readable(client: &Client, limit: Option<Duration>) -> bool {
    let limit = limit.and_then(|l| Timespec::try_from(l).ok());
    let mut fds = [PollFd::new(client, PollFlags::IN)];
    matches!(poll(&mut fds, limit.as_ref()), Ok(n) if n > 0)
}

fn exceeded(timeout: Duration, output: &Output) -> String {
    let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    let text = format!(
        "Health check exceeded timeout ({})",
        amphora_spec::duration::text(nanos)
    );
    match output.text() {
        out if out.is_empty() => text,
        out => format!("{text}: {out}"),
    }
}

/// What Docker shows once nobody checks any more: not healthy, whatever it was.
fn over(mut record: HealthRecord) -> HealthRecord {
    record.status = HealthStatus::Unhealthy;
    record
}

impl Engine {
    /// What a container's supervisor is told of its healthcheck.
    pub(crate) fn health_config(&self, config: &ContainerConfig) -> Option<HealthConfig> {
        let check = config.health.as_ref()?;
        check.command()?;
        Some(HealthConfig {
            probe: self.entry_argv("probe", &config.id),
            interval_ns: check.interval_ns(),
            start_interval_ns: check.start_interval_ns(),
            start_period_ns: check.start_period_ns(),
            timeout_ns: check.timeout_ns(),
            on_failure: config.host.health_on_failure,
            stop_timeout_s: config.stop_timeout,
        })
    }

    /// Reads what is on record of a container's health: of this run, or of the last one.
    pub(crate) fn health_record(
        &self,
        config: &ContainerConfig,
        status: Status,
    ) -> Option<HealthRecord> {
        config.health.as_ref()?.command()?;
        let record = self.any_health(&config.id)?;
        Some(if status == Status::Running {
            record
        } else {
            over(record)
        })
    }

    fn any_health(&self, id: &ContainerId) -> Option<HealthRecord> {
        [self.run_dir(id), self.container_dir(id)]
            .iter()
            .find_map(|dir| {
                let dir = open_dir(dir).ok()?;
                HealthRecord::read(dir.as_fd()).ok().flatten()
            })
    }

    /// Returns Docker's word for the health of a listed container; `none` when nothing is checked.
    #[must_use]
    pub fn health_word(&self, listed: &Listed) -> &'static str {
        let record = match &listed.view {
            Some(view) => view.health.clone(),
            None => self.any_health(&listed.summary.id).map(over),
        };
        record.map_or("none", |r| r.status.name())
    }

    /// Notes what Docker says of a container that is paused, until the next check behind that: not
    /// healthy, whatever it was. The caller holds the lock on its configuration.
    pub(crate) fn unwatch(&self, id: &ContainerId) -> Result<()> {
        let run = open_dir(&self.run_dir(id))?;
        match HealthRecord::read(run.as_fd()).map_err(EngineError::plain)? {
            Some(record) => over(record).write(run.as_fd()).map_err(EngineError::plain),
            None => Ok(()),
        }
    }

    /// Keeps what the run that has ended left on record.
    pub(crate) fn keep_health(&self, id: &ContainerId) -> Result<()> {
        let Ok(run) = open_dir(&self.run_dir(id)) else {
            return Ok(());
        };
        let record = HealthRecord::read(run.as_fd()).map_err(EngineError::plain)?;
        let Some(record) = record else { return Ok(()) };
        let dir = open_dir(&self.container_dir(id))?;
        record.write(dir.as_fd()).map_err(EngineError::plain)
    }

    /// Makes one check of a container for its supervisor, which started this process; the whole
    /// of the `probe` entry. `None` when nothing was found out.
    ///
    /// # Errors
    /// When records cannot be read or written.
    pub fn probe(&self, id: &ContainerId) -> Result<Option<HealthStatus>> {
        let run = self.run_dir(id);
        let client = Client::inherited(&run).map_err(EngineError::plain)?;
        let view = self.view(id)?;
        let (Some(check), Some(state)) = (&view.config.health, &view.state) else {
            return Ok(None);
        };
        let Some(test) = check.command() else {
            return Ok(None);
        };
        if view.status != Status::Running || view.paused {
            return Ok(None);
        }
        let begun = now_nanos();
        let timeout = Duration::from_nanos(check.timeout_ns());
        let words = words(&view.config, test);
        let Some((exit_code, output)) = self.run_check(&view, client, words, timeout) else {
            return Ok(None);
        };
        let result = HealthResult {
            start: health_time(begun),
            end: health_time(now_nanos()),
            exit_code,
            output,
        };
        let phase = if begun.saturating_sub(state.started_at) < check.start_period_ns() {
            HealthPhase::Start
        } else {
            HealthPhase::After
        };
        let dir = open_dir(&run)?;
        // Against a pause: what was found before it says nothing behind it.
        let lock = self.lock_config(id)?;
        if self.view(id)?.paused {
            return Ok(None);
        }
        let record = HealthRecord::read(dir.as_fd()).ok().flatten();
        let mut record = record.unwrap_or_default();
        let changed = record.note(result, phase, check.retries_wanted());
        record.write(dir.as_fd()).map_err(EngineError::plain)?;
        drop(lock);
        if changed {
            // Under the name it has by now.
            let action = format!("health_status: {}", record.status.name());
            self.note_container(&self.config(id)?, &action, &[]);
        }
        Ok(Some(record.status))
    }

    fn run_check(
        &self,
        view: &ContainerView,
        mut client: Client,
        args: Vec<String>,
        timeout: Duration,
    ) -> Option<(i32, String)> {
        let options = ExecOptions {
            args,
            attach: AttachStreams {
                stdout: true,
                stderr: true,
                ..AttachStreams::default()
            },
            ..ExecOptions::default()
        };
        let request = match self.exec_request(view, &options) {
            Ok(request) => request,
            // It is paused or has ended.
            Err(EngineError::State(_)) => return None,
            Err(e) => return Some((NO_CODE, amphora_spec::error::chain(&e))),
        };
        let mut born = (0, None);
        let told = client.exec_told(&request, |pid, start| {
            born = (pid, pidfd::open(pid, start).ok().flatten());
        });
        let (pid, process) = born;
        let check = Check {
            engine: self,
            client,
            process,
            pid,
        };
        match told {
            Ok(_) => check.follow(view, timeout),
            Err(SupervisorError::Launch { message, kind, .. }) => {
                Some((NO_CODE, not_started(&message, kind).to_string()))
            }
            Err(_) => {
                // Its supervisor was killed before it could say that the program runs.
                check.kill();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_and_says_so() {
        let mut output = Output::default();
        output.add(&[b'a'; OUTPUT_MAX]);
        assert_eq!(output.text().len(), OUTPUT_MAX);
        output.add(b"b");
        assert!(output.text().ends_with("aa..."));
        assert_eq!(output.text().len(), OUTPUT_MAX + 3);
        let text = exceeded(Duration::from_millis(200), &Output::default());
        assert_eq!(text, "Health check exceeded timeout (200ms)");
    }

    #[test]
    fn actions_need_a_check_that_is_not_removed_under_them() {
        let host = |action, auto_remove| HostConfig {
            health_on_failure: action,
            auto_remove,
            ..HostConfig::default()
        };
        let check = Healthcheck {
            test: vec!["CMD-SHELL".to_owned(), "true".to_owned()],
            ..Healthcheck::default()
        };
        let none = Healthcheck {
            test: vec!["NONE".to_owned()],
            ..Healthcheck::default()
        };
        let kill = host(HealthAction::Kill, true);
        assert!(configure(Some(check.clone()), None, &kill).is_ok());
        assert!(configure(None, Some(&check), &kill).is_ok());
        assert!(configure(None, None, &kill).is_err());
        assert!(configure(Some(none), Some(&check), &kill).is_err());
        let restart = host(HealthAction::Restart, true);
        assert!(configure(Some(check), None, &restart).is_err());
    }
}
