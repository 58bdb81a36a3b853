//! Container identifiers and names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A container's id: 64 lower-case hexadecimal digits, as Docker's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(crate::digest::HexId);

/// Says why a text is no container id or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Not 64 hexadecimal digits.
    #[error("invalid container id \"{0}\"")]
    Id(String),
    /// Not a name Docker would take.
    #[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    Name(String),
}

impl ContainerId {
    /// Makes an id of 32 random bytes that the caller drew.
    #[must_use]
    pub const fn from_random(bytes: [u8; 32]) -> Self {
        Self(crate::digest::HexId(bytes))
    }

    /// Returns the 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0.0
    }

    /// Returns the 64 digits, without memory of their own.
    #[must_use]
    pub fn digits(&self) -> [u8; 64] {
        crate::Digest::from(self.0).digits()
    }

    /// Returns the 64 digits.
    #[must_use]
    pub fn hex(&self) -> String {
        crate::Digest::from(self.0).hex()
    }

    /// Returns the first 12 digits.
    #[must_use]
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        crate::Digest::from_hex(text)
            .map(|d| Self(crate::digest::HexId(*d.as_bytes())))
            .map_err(|_| IdError::Id(text.chars().take(80).collect()))
    }
}

/// Checks a container, volume or network name by Docker's rule `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
///
/// # Errors
/// [`IdError::Name`] with the name.
pub fn check_name(name: &str) -> Result<(), IdError> {
    let mut chars = name.chars();
    let head = chars.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let tail = chars
        .clone()
        .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if head && tail && chars.next().is_some() && name.len() <= 255 {
        Ok(())
    } else {
        Err(IdError::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_docker() {
        for good in ["web", "a1", "db_1.x-y"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "-a", "../x", "a/b", "a b", ".hidden"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_64_hex_digits() {
        let id: ContainerId = "0f".repeat(32).parse().unwrap();
        assert_eq!(id.short(), "0f0f0f0f0f0f");
        assert!("0f".parse::<ContainerId>().is_err());
    }
}
