//! Progress as plain lines, for whatever is no terminal.

use std::fmt;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use amphora_spec::Reference;

use crate::progress::{closing, headline};
use crate::{Progress, PullEvent, Pulled};

/// Writes one line per state of a layer; the states that count bytes are left out, as Docker does.
pub struct PlainProgress<W>(Mutex<W>);

impl<W: Write + Send> PlainProgress<W> {
    /// Makes a renderer that writes to `out`. Errors of `out` are ignored: a reader that has gone
    /// away must not end the pull.
    pub const fn new(out: W) -> Self {
        Self(Mutex::new(out))
    }

    /// Gives the output back.
    pub fn into_inner(self) -> W {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, text: &str) {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            out.write_all(format!("{text}\n").as_bytes())
                .and_then(|()| out.flush()),
        );
    }
}

impl<W: Write + Send> Progress for PlainProgress<W> {
    fn started(&self, reference: &Reference) {
        self.line(&headline(reference));
    }

    fn event(&self, layer: &str, event: PullEvent) {
        if event.bytes().is_none() {
            self.line(&format!("{layer}: {}", event.text()));
        }
    }

    fn finished(&self, reference: &Reference, pulled: &Pulled) {
        self.line(&closing(reference, pulled).join("\n"));
    }
}

impl<W> fmt::Debug for PlainProgress<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainProgress").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_dockers() {
        let progress = PlainProgress::new(Vec::new());
        let reference: Reference = "localhost:5000/a/web:1".parse().unwrap();
        progress.started(&reference);
        for event in [
            PullEvent::PullingFsLayer,
            PullEvent::Downloading {
                current: 1,
                total: 2,
            },
            PullEvent::DownloadComplete,
            PullEvent::Extracting {
                current: 1,
                total: 2,
            },
            PullEvent::PullComplete,
        ] {
            progress.event("0123456789ab", event);
        }
        let text = String::from_utf8(progress.into_inner()).unwrap();
        assert_eq!(
            text,
            "1: Pulling from a/web\n\
             0123456789ab: Pulling fs layer\n\
             0123456789ab: Download complete\n\
             0123456789ab: Pull complete\n"
        );
    }
}
