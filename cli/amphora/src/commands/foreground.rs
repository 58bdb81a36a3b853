//! The foreground of `run`, `start -a`, `attach` and `exec`: copies until what runs has ended.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;

use amphora_engine::{AttachStreams, Engine};
use amphora_spec::{ContainerId, error::chain};
use amphora_supervisor::{Client, DetachKeys, ProxySignals, PumpEnd, PumpStreams, pump};

use crate::errors::{Failure, Outcome};
use crate::terminal::{self, RawMode};
use crate::{parse, ui};

/// Most that is read of a client's configuration.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What a foreground is made of.
#[derive(Debug)]
pub(crate) struct Foreground {
    streams: AttachStreams,
    tty: bool,
    keys: Option<DetachKeys>,
    signals: Option<ProxySignals>,
}

/// How a foreground ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit code.
    Code(i32),
    /// Its supervisor was killed.
    Lost,
    /// Nobody reads our output any more, or there is nothing left to feed.
    Alone,
    /// The user typed the keys that detach.
    Detached,
}

/// Parses `--detach-keys`, or at a terminal what the configuration of the docker client has in
/// place of the usual ones.
pub(crate) fn detach_keys(text: Option<&str>, tty: bool) -> Outcome<DetachKeys> {
    let configured = match text {
        None if tty => configured_keys(),
        _ => None,
    };
    text.or(configured.as_deref())
        .filter(|text| !text.is_empty())
        .map_or_else(
            || Ok(DetachKeys::default()),
            |text| {
                DetachKeys::parse(text)
                    .map_err(|why| Failure::Local(format!("invalid detach keys ({text}): {why}")))
            },
        )
}

/// `detachKeys` of `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`. Like the docker
/// client it warns of a file that it cannot make sense of, and goes on without.
fn configured_keys() -> Option<String> {
    let named = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
    let dir = match named("DOCKER_CONFIG") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(named("HOME")?).join(".docker"),
    };
    let file = dir.join("config.json");
    let mut text = String::new();
    let read = File::open(&file)
        .map(|file| file.take(CONFIG_BYTES_MAX))
        .and_then(|mut file| file.read_to_string(&mut text));
    let warn = |why: &dyn std::fmt::Display| {
        ui::error(&format!(
            "WARNING: Error loading config file: {}: {why}",
            file.display()
        ));
    };
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            warn(&parse::os_text(&e));
            return None;
        }
        Ok(_) => {}
    }
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(config) => config.get("detachKeys")?.as_str().map(str::to_owned),
        Err(e) => {
            warn(&e);
            None
        }
    }
}

impl Foreground {
    /// Prepares one, before anything is started: signals that come from here on are held for the
    /// container (`forward`), or until the terminal is put right. Without keys nothing that is
    /// typed detaches.
    pub(crate) fn new(
        mut streams: AttachStreams,
        tty: bool,
        keys: impl Into<Option<DetachKeys>>,
        forward: bool,
    ) -> Outcome<Self> {
        streams.size = terminal::size().filter(|_| tty);
        let signals = match (forward, tty) {
            (true, _) => Some(ProxySignals::hold()),
            (false, true) => Some(ProxySignals::hold_own()),
            (false, false) => None,
        };
        Ok(Self {
            streams,
            tty,
            keys: keys.into(),
            signals: signals.transpose().map_err(|e| Failure::Local(chain(&e)))?,
        })
    }

    /// What to be attached to.
    pub(crate) fn streams(&self) -> AttachStreams {
        self.streams
    }

    /// Tells a terminal that was there before us the size of ours, and has it painted again.
    pub(crate) fn repaint(&self, client: &mut Client) {
        if let Some((rows, cols)) = self.streams.size {
            // The same size again would tell nobody inside.
            let _ = client.post_resize(rows.wrapping_add(1), cols.wrapping_add(1), "");
            let _ = client.post_resize(rows, cols, "");
        }
    }

    /// Copies until the end.
    pub(crate) fn pump(&self, client: &mut Client) -> Outcome<Ended> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let raw = (self.tty && self.streams.stdin)
            .then(RawMode::enter)
            .flatten();
        let streams = PumpStreams {
            stdin: self.streams.stdin.then(|| stdin.as_fd()),
            stdout: self.streams.stdout.then(|| stdout.as_fd()),
            stderr: self.streams.stderr.then(|| stderr.as_fd()),
            terminal: self.streams.size.map(|_| stdout.as_fd()),
            detach: self.keys.as_ref().filter(|_| self.tty),
        };
        let end = pump(client, streams, self.signals.as_ref());
        drop(raw);
        if client.skipped() > 0 {
            ui::error(&format!(
                "WARNING: {} bytes of output came faster than they were read and are left out here; the log has them",
                client.skipped()
            ));
        }
        match end {
            Ok(PumpEnd::Exit(status)) => Ok(Ended::Code(status.code)),
            Ok(PumpEnd::Lost) => Ok(Ended::Lost),
            Ok(PumpEnd::OutputClosed) => Ok(Ended::Alone),
            Ok(PumpEnd::Detached) => Ok(Ended::Detached),
            Ok(PumpEnd::Signalled(number)) => {
                Err(Failure::Code(u8::try_from(128 + number).unwrap_or(255)))
            }
            Err(e) => Err(Failure::Local(chain(&e))),
        }
    }

    /// Copies until the container ends and returns its exit code; 0 when we left before.
    pub(crate) fn follow(
        &self,
        engine: &Engine,
        id: &ContainerId,
        mut client: Client,
    ) -> Outcome<u8> {
        let code = match self.pump(&mut client)? {
            Ended::Code(code) => code,
            // Its supervisor was killed: `wait` has a new one take over.
            Ended::Lost => engine.wait(id)?,
            Ended::Alone | Ended::Detached => 0,
        };
        Ok(byte(code))
    }
}

/// An exit code as a process has it.
pub(crate) fn byte(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(255)
}
