//! The foreground of `run` and `start -a`: copies until the container ends.

use std::io;
use std::os::fd::AsFd;

use amphora_engine::Engine;
use amphora_spec::{ContainerId, error::chain};
use amphora_supervisor::{Client, ProxySignals, PumpEnd, PumpStreams, pump};

use crate::errors::{Failure, Outcome};

/// Holds signals back for the container, before it is started.
pub(crate) fn hold(wanted: bool) -> Outcome<Option<ProxySignals>> {
    wanted
        .then(ProxySignals::hold)
        .transpose()
        .map_err(|e| Failure::Local(chain(&e)))
}

/// Copies until the container ends and returns its exit code.
pub(crate) fn follow(
    engine: &Engine,
    id: &ContainerId,
    mut client: Client,
    interactive: bool,
    signals: Option<&ProxySignals>,
) -> Outcome<u8> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = PumpStreams {
        stdin: interactive.then(|| stdin.as_fd()),
        stdout: Some(stdout.as_fd()),
        stderr: Some(stderr.as_fd()),
    };
    let code = match pump(&mut client, streams, signals) {
        Ok(PumpEnd::Exit(status)) => status.code,
        // Its supervisor was killed: `wait` has a new one take over.
        Ok(PumpEnd::Lost) => engine.wait(id)?,
        Ok(PumpEnd::OutputClosed) => 0,
        Err(e) => return Err(Failure::Local(chain(&e))),
    };
    Ok(u8::try_from(code & 0xff).unwrap_or(255))
}
