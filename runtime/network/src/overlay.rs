//! Networks over several hosts.

/// Whether the driver knows an option with this value.
pub(crate) fn knows(_option: &str, _value: &str) -> bool {
    false
}
