//! Listing containers, and the engine's clock.

use amphora_spec::ContainerId;

use crate::container::ContainerView;
use crate::{Engine, EngineError, Result};

/// Returns the time of now, RFC 3339 with nanoseconds.
pub(crate) fn now() -> String {
    let now = jiff::Timestamp::now();
    format!("{now:.9}")
}

/// Returns the time of now, nanoseconds since 1970.
pub(crate) fn now_nanos() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

/// Returns a time as RFC 3339 with nanoseconds.
pub(crate) fn time_text(nanoseconds: u64) -> String {
    let time = i128::from(nanoseconds);
    jiff::Timestamp::from_nanosecond(time).map_or_else(|_| now(), |t| format!("{t:.9}"))
}

/// Reads a time, RFC 3339, as nanoseconds since 1970; 0 when it is none.
pub(crate) fn nanos(text: &str) -> u64 {
    let time = text.parse::<jiff::Timestamp>().ok();
    time.and_then(|t| u64::try_from(t.as_nanosecond()).ok())
        .unwrap_or(0)
}

/// A container whose records cannot be read, and why.
pub(crate) type Damaged = (ContainerId, EngineError);

impl Engine {
    /// Lists all containers, newest first, and those that cannot be read, each with the reason.
    ///
    /// # Errors
    /// When the roots cannot be read.
    pub(crate) fn list_all(&self) -> Result<(Vec<ContainerView>, Vec<Damaged>)> {
        self.reconcile_all()?;
        let (mut views, mut damaged) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.view(&id) {
                Ok(view) => views.push(view),
                Err(EngineError::NoSuchContainer(_)) => {}
                Err(e) => damaged.push((id, e)),
            }
        }
        views.sort_by(|a, b| b.config.created.cmp(&a.config.created));
        Ok((views, damaged))
    }
}
