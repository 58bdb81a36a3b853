//! Authentication: challenges, Basic, and the Bearer token flow.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::Credentials;
use crate::url;

/// Longest challenge that is parsed.
const MAX_CHALLENGE_BYTES: usize = 8 << 10;

/// A way to authenticate that a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from the service at `realm`.
    Bearer {
        /// URL of the token service.
        realm: String,
        /// Name under which the registry is known there.
        service: Option<String>,
        /// What the token must allow, when the registry says so.
        scope: Option<String>,
    },
    /// User name and password.
    Basic,
}

/// Picks the challenge to answer out of the `WWW-Authenticate` headers: Bearer before Basic.
pub(crate) fn pick<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.filter(|h| h.len() <= MAX_CHALLENGE_BYTES) {
        // A malformed tail does not spoil the challenges before it.
        for challenge in http_auth::ChallengeParser::new(header).map_while(Result::ok) {
            let param = |name: &str| {
                let found = challenge
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    let (service, scope) = (param("service"), param("scope"));
                    return Some(Challenge::Bearer {
                        realm,
                        service,
                        scope,
                    });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// Returns the URL that asks a token service for a token.
pub(crate) fn token_url(
    realm: &str,
    service: Option<&str>,
    scope: &str,
    account: Option<&str>,
) -> String {
    let mut out = realm.to_owned();
    let mut separator = if realm.contains('?') { '&' } else { '?' };
    for (key, value) in [
        ("account", account),
        ("scope", Some(scope)),
        ("service", service),
    ] {
        if let Some(value) = value {
            out.push(separator);
            out.push_str(key);
            out.push('=');
            out.push_str(&url::encode(value));
            separator = '&';
        }
    }
    out
}

/// Answer of a token service.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// Reads the token out of a token service's answer.
pub(crate) fn token(body: &[u8]) -> Result<String, serde_json::Error> {
    let answer: TokenAnswer = serde_json::from_slice(body)?;
    let token = answer
        .token
        .filter(|t| !t.is_empty())
        .or(answer.access_token);
    let legal = |t: &String| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
    token
        .filter(legal)
        .ok_or_else(|| serde::de::Error::custom("it holds neither token nor access_token"))
}

/// Returns the value of an `Authorization` header for the Basic scheme.
pub(crate) fn basic(credentials: &Credentials) -> String {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    format!("Basic {}", base64(pair.as_bytes()))
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = 0u32;
        for slot in 0..3 {
            word = (word << 8) | u32::from(group.get(slot).copied().unwrap_or(0));
        }
        for digit in 0..4usize {
            let index = (word >> (18 - 6 * digit)) & 63;
            let letter = ALPHABET.get(index as usize).copied().unwrap_or(b'=');
            out.push(char::from(if digit > group.len() { b'=' } else { letter }));
        }
    }
    out
}

/// The `Authorization` headers that worked, by registry origin and scope.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<BTreeMap<(String, String), String>>);

impl Known {
    pub(crate) fn get(&self, origin: &str, scope: &str) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(origin.to_owned(), scope.to_owned())).cloned()
    }

    pub(crate) fn put(&self, origin: &str, scope: &str, header: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((origin.to_owned(), scope.to_owned()), header.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_is_preferred_and_its_parameters_are_read() {
        let headers = [
            "Basic realm=\"x\"",
            "Bearer realm=\"https://auth.example/token\",service=\"registry.example\",scope=\"repository:a/b:pull,push\"",
        ];
        let challenge = pick(headers.into_iter()).unwrap();
        assert_eq!(
            challenge,
            Challenge::Bearer {
                realm: "https://auth.example/token".to_owned(),
                service: Some("registry.example".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            }
        );
    }

    #[test]
    fn basic_is_found_and_nonsense_is_not() {
        assert_eq!(
            pick(["basic realm=\"Registry\""].into_iter()),
            Some(Challenge::Basic)
        );
        assert_eq!(pick(["Bearer service=\"no realm\""].into_iter()), None);
        assert_eq!(pick(["Negotiate abc=="].into_iter()), None);
        assert_eq!(pick([",,,", "\"", "Bearer realm="].into_iter()), None);
        let long = format!("Basic realm=\"{}\"", "x".repeat(MAX_CHALLENGE_BYTES));
        assert_eq!(pick([long.as_str()].into_iter()), None);
    }

    #[test]
    fn a_token_url_carries_account_scope_and_service() {
        assert_eq!(
            token_url(
                "https://a/t",
                Some("reg 1"),
                "repository:a/b:pull",
                Some("me&you")
            ),
            "https://a/t?account=me%26you&scope=repository:a/b:pull&service=reg%201"
        );
        assert_eq!(
            token_url("https://a/t?x=1", None, "s", None),
            "https://a/t?x=1&scope=s"
        );
    }

    #[test]
    fn both_names_of_a_token_are_read() {
        assert_eq!(
            token(br#"{"token":"abc","expires_in":300}"#).unwrap(),
            "abc"
        );
        assert_eq!(token(br#"{"access_token":"def"}"#).unwrap(), "def");
        assert!(token(b"{}").is_err());
        assert!(token(b"{\"token\":\"a\\r\\nX: y\"}").is_err());
    }

    #[test]
    fn basic_credentials_are_encoded() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
        let credentials = Credentials {
            username: "Aladdin".to_owned(),
            password: "open sesame".to_owned(),
        };
        assert_eq!(basic(&credentials), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
