//! What a client is told: hosts, credentials, roots, patience.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Longest wait for a connection, TLS included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The same for a mirror: there is another place to ask.
pub(crate) const MIRROR_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of a peer in the middle of an answer.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);
/// Attempts in a row that bring nothing new before a request is given up.
pub(crate) const ATTEMPTS: u32 = 5;
/// First pause between two attempts; it doubles up to [`BACKOFF_MAX`].
pub(crate) const BACKOFF: Duration = Duration::from_millis(250);
/// Longest pause between two attempts that we choose ourselves.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// Longest pause that a registry's `Retry-After` can ask for.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// A user name and password for one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or access token.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How often and how patiently a failed request is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in a row that bring nothing new.
    pub attempts: u32,
    /// First pause; it doubles.
    pub backoff: Duration,
    /// Longest pause of our own choice.
    pub backoff_max: Duration,
    /// Longest pause a registry can ask for.
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: ATTEMPTS,
            backoff: BACKOFF,
            backoff_max: BACKOFF_MAX,
            retry_after_max: RETRY_AFTER_MAX,
        }
    }
}

impl RetryPolicy {
    /// Returns the pause after `failures` failed attempts in a row.
    pub(crate) fn pause(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let doubled = self
            .backoff
            .saturating_mul(1 << failures.saturating_sub(1).min(16));
        let own = doubled.min(self.backoff_max);
        retry_after.map_or(own, |asked| asked.min(self.retry_after_max).max(own))
    }
}

/// Configures a [`Client`](crate::Client).
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Hosts (with port, as in a reference) and ranges of addresses that speak plain HTTP, beside
    /// the loopback ones.
    pub insecure: BTreeSet<String>,
    /// Where images of Docker Hub are looked for first, in this order: a scheme and a host each.
    pub mirrors: Vec<String>,
    /// Loopback hosts that speak HTTPS after all.
    pub secure: BTreeSet<String>,
    /// Credentials by the domain of the reference (`docker.io`, `registry.example:5000`).
    pub credentials: BTreeMap<String, Credentials>,
    /// PEM certificates that replace the built-in roots (the content of `SSL_CERT_FILE`).
    pub roots_pem: Option<Vec<u8>>,
    /// `User-Agent` header.
    pub user_agent: String,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest silence in the middle of an answer.
    pub silence_timeout: Duration,
    /// Patience with failed requests.
    pub retry: RetryPolicy,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            insecure: BTreeSet::new(),
            mirrors: Vec::new(),
            secure: BTreeSet::new(),
            credentials: BTreeMap::new(),
            roots_pem: None,
            user_agent: concat!("amphora/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: CONNECT_TIMEOUT,
            silence_timeout: SILENCE_TIMEOUT,
            retry: RetryPolicy::default(),
        }
    }
}

impl ClientConfig {
    /// The same for mirrors: each is tried once, and not for long.
    pub(crate) fn for_mirrors(&self) -> Self {
        Self {
            connect_timeout: self.connect_timeout.min(MIRROR_CONNECT_TIMEOUT),
            retry: RetryPolicy {
                attempts: 1,
                ..self.retry.clone()
            },
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_bounded() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.pause(1, None), BACKOFF);
        assert_eq!(policy.pause(2, None), BACKOFF * 2);
        assert_eq!(policy.pause(u32::MAX, None), BACKOFF_MAX);
        assert_eq!(
            policy.pause(1, Some(Duration::from_secs(7))),
            Duration::from_secs(7)
        );
        assert_eq!(
            policy.pause(1, Some(Duration::from_secs(9999))),
            RETRY_AFTER_MAX
        );
    }

    #[test]
    fn a_password_is_never_printed() {
        let credentials = Credentials {
            username: "u".to_owned(),
            password: "hunter2".to_owned(),
        };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
