//! What goes wrong, on stderr and in the file that an engine reads.

use std::io::Write;

use crate::args::Parsed;
use crate::error::{Result, RuncError};

/// Where errors go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    file: Option<String>,
    format: Option<String>,
}

impl Log {
    pub(crate) fn new(global: &Parsed) -> Self {
        Self {
            file: global.get("log").map(str::to_owned),
            format: global.get("log-format").map(str::to_owned),
        }
    }

    pub(crate) fn check_format(&self) -> Result {
        match self.format.as_deref() {
            None | Some("text" | "json") => Ok(()),
            Some(other) => Err(RuncError::usage(format!("invalid log-format: {other}"))),
        }
    }

    pub(crate) fn error(&self, text: &str) {
        self.write("error", text);
    }

    pub(crate) fn debug(&self, text: &str) {
        self.write("debug", text);
    }

    pub(crate) fn warning(&self, text: &str) {
        self.write("warning", text);
    }

    /// Engines read the last line of the file; people read stderr.
    fn write(&self, level: &str, text: &str) {
        let time = crate::state::now();
        let line = if self.format.as_deref() == Some("json") {
            serde_json::json!({"level": level, "msg": text, "time": time}).to_string()
        } else {
            format!("time={time:?} level={level} msg={text:?}")
        };
        let mut err = std::io::stderr().lock();
        let Some(path) = &self.file else {
            let _ = writeln!(err, "{line}");
            return;
        };
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        let _ = match written {
            Ok(()) => writeln!(err, "{text}"),
            Err(_) => writeln!(err, "{line}"),
        };
    }
}
