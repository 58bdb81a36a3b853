//! Image references: `[domain/]path[:tag][@digest]`, normalised as Docker does.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// A normalised reference: domain, path, and a tag or a digest (or both).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Says why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The grammar is broken.
    #[error("invalid reference format: \"{0}\"")]
    Format(String),
    /// The repository has capital letters.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Longer than 255 characters.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] crate::digest::DigestError),
}

/// Domain of references that name none.
pub const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";

impl Reference {
    /// Registry host, with its port.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository path inside the registry, for example `library/mysql`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tag, if the reference has one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, if the reference has one.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns `domain/path`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Returns the repository as a user writes it: no `docker.io`, no `library/`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        self.path
            .strip_prefix(OFFICIAL)
            .filter(|p| !p.contains('/'))
            .unwrap_or(&self.path)
            .to_owned()
    }

    /// Returns the whole reference as a user writes it.
    #[must_use]
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), self.suffix())
    }

    /// Returns the reference with `latest` where neither tag nor digest is given.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// Returns the same repository at a digest alone.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    fn suffix(&self) -> String {
        let mut out = String::new();
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
        out
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ReferenceError::Format(text.chars().take(300).collect());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest.get(slash..).and_then(|last| last.find(':')) {
            Some(colon) => {
                let at = slash + colon;
                (
                    rest.get(..at).ok_or_else(bad)?,
                    Some(rest.get(at + 1..).ok_or_else(bad)?),
                )
            }
            None => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(bad());
        }
        let (domain, path) = split_domain(name);
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(path));
        }
        if !is_domain(&domain) || !path.split('/').all(is_component) {
            return Err(bad());
        }
        if domain.len() + path.len() > 254 {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            domain,
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Splits as Docker does: the first part is a domain when it has a dot, a colon, a capital
/// letter, or is `localhost`.
fn split_domain(name: &str) -> (String, String) {
    if let Some((head, tail)) = name.split_once('/') {
        let domain = head == "localhost"
            || head.contains(['.', ':'])
            || head.chars().any(|c| c.is_ascii_uppercase());
        if domain {
            let head = if head == "index.docker.io" {
                DEFAULT_DOMAIN
            } else {
                head
            };
            let tail = match head {
                DEFAULT_DOMAIN if !tail.contains('/') => format!("{OFFICIAL}{tail}"),
                _ => tail.to_owned(),
            };
            return (head.to_owned(), tail);
        }
        return (DEFAULT_DOMAIN.to_owned(), name.to_owned());
    }
    (DEFAULT_DOMAIN.to_owned(), format!("{OFFICIAL}{name}"))
}

fn is_tag(tag: &str) -> bool {
    let mut chars = tag.chars();
    tag.len() <= 128
        && chars
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((addr, rest)) if addr.parse::<std::net::Ipv6Addr>().is_ok() => {
                return match rest.strip_prefix(':') {
                    Some(port) => port.parse::<u16>().is_ok(),
                    None => rest.is_empty(),
                };
            }
            _ => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// A path component: runs of `[a-z0-9]` joined by `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !part.starts_with(alnum) || !part.ends_with(alnum) {
        return false;
    }
    part.split(alnum)
        .all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.chars().all(|c| c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>()
            .unwrap()
            .with_default_tag()
            .to_string()
    }

    #[test]
    fn normalises_as_docker_does() {
        assert_eq!(full("mysql"), "docker.io/library/mysql:latest");
        assert_eq!(full("user/app:1.2"), "docker.io/user/app:1.2");
        assert_eq!(full("localhost:5000/web"), "localhost:5000/web:latest");
        assert_eq!(full("localhost/web"), "localhost/web:latest");
        assert_eq!(
            full("index.docker.io/mysql"),
            "docker.io/library/mysql:latest"
        );
        assert_eq!(full("docker.io/mysql"), "docker.io/library/mysql:latest");
        assert_eq!(full("[::1]:5000/a"), "[::1]:5000/a:latest");
        let digest = format!("sha256:{}", "1".repeat(64));
        assert_eq!(
            full(&format!("a@{digest}")),
            format!("docker.io/library/a@{digest}")
        );
    }

    #[test]
    fn familiar_form_drops_the_defaults() {
        let familiar = |t: &str| t.parse::<Reference>().unwrap().familiar();
        assert_eq!(familiar("docker.io/library/mysql:5"), "mysql:5");
        assert_eq!(familiar("user/app"), "user/app");
        assert_eq!(familiar("localhost:5000/web:x"), "localhost:5000/web:x");
    }

    #[test]
    fn malformed_references_are_refused() {
        for text in [
            "",
            "a:",
            ":tag",
            "A/b:../x",
            "a//b",
            "a/../b",
            "-a",
            "a_",
            "a:b:c",
            "a@sha256:zz",
            "h:99999/a",
            "a b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!(matches!(
            "Mysql".parse::<Reference>(),
            Err(ReferenceError::Uppercase(_))
        ));
    }
}
