//! Platforms: `os/arch[/variant]`, and the one Wasm family with its many spellings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image or an index entry is made for (OCI image spec, "platform").
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system as written, for example `linux`, `wasip1`.
    #[serde(default)]
    pub os: String,
    /// Architecture as written, for example `amd64`, `wasm`.
    #[serde(default)]
    pub architecture: String,
    /// CPU variant, for example `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Says why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is an invalid platform: expected os/arch[/variant]")]
pub struct PlatformError(String);

impl Platform {
    /// Makes a platform of its two parts.
    #[must_use]
    pub fn new(os: &str, architecture: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Returns the Linux platform of the machine this was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self::new("linux", architecture)
    }

    /// Says whether the platform belongs to the Wasm family: the architecture is `wasm`,
    /// `wasm32` or `wasm64` in any case, whatever the os, `js` excepted.
    #[must_use]
    pub fn is_wasm(&self) -> bool {
        let arch = self.architecture.to_ascii_lowercase();
        matches!(arch.as_str(), "wasm" | "wasm32" | "wasm64") && !self.os.eq_ignore_ascii_case("js")
    }

    /// Says whether an image of this platform runs on the host's Linux kernel.
    #[must_use]
    pub fn is_host_linux(&self) -> bool {
        let host = Self::host();
        self.os.eq_ignore_ascii_case(&host.os)
            && normal_arch(&self.architecture) == host.architecture
    }

    /// Returns the architecture as Go names it: `x86_64` is `amd64`, `aarch64` is `arm64`.
    #[must_use]
    pub fn normal_architecture(&self) -> String {
        normal_arch(&self.architecture)
    }

    /// Says whether the platform marks an attestation manifest (`unknown/unknown`).
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

fn normal_arch(arch: &str) -> String {
    match arch.to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Parses Docker's `--platform`; a bare `wasm` means the whole Wasm family.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || PlatformError(text.to_owned());
        if text.eq_ignore_ascii_case("wasm") {
            return Ok(Self::new("wasi", "wasm"));
        }
        let mut parts = text.split('/');
        let (os, architecture) = match (parts.next(), parts.next()) {
            (Some(os), Some(arch)) if !os.is_empty() && !arch.is_empty() => (os, arch),
            (Some("linux"), None) => return Ok(Self::host()),
            _ => return Err(bad()),
        };
        let variant = parts.next().map(str::to_owned);
        let legal = |s: &str| {
            s.chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if parts.next().is_some() || !legal(text.replace('/', "").as_str()) {
            return Err(bad());
        }
        Ok(Self {
            os: os.to_ascii_lowercase(),
            architecture: normal_arch(architecture),
            variant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_wasm_is_one_family() {
        for text in [
            "wasi/wasm",
            "wasi/wasm32",
            "WASIP1/Wasm",
            "wasip2/wasm",
            "linux/wasm",
            "wasm",
        ] {
            assert!(text.parse::<Platform>().unwrap().is_wasm(), "{text}");
        }
        assert!(!"js/wasm".parse::<Platform>().unwrap().is_wasm());
        assert!(!"linux/amd64".parse::<Platform>().unwrap().is_wasm());
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for text in ["", "linux/", "/amd64", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
