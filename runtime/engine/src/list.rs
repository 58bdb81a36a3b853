//! Listing containers, and the engine's clock.

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

impl Engine {
    /// Lists containers, newest first; only running ones unless `all`.
    ///
    /// # Errors
    /// When the roots cannot be read.
    pub fn list(&self, all: bool) -> Result<Vec<ContainerView>> {
        self.reconcile_all()?;
        let mut views = Vec::new();
        for id in self.ids()? {
            match self.view(&id) {
                Ok(view) if all || view.status.is_active() => views.push(view),
                Ok(_) | Err(EngineError::NoSuchContainer(_)) => {}
                Err(e) => return Err(e),
            }
        }
        views.sort_by(|a, b| b.config.created.cmp(&a.config.created));
        Ok(views)
    }
}
