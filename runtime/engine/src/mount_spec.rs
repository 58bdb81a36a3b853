//! Mounts and ports as they are asked for: `--volumes-from`, `--expose`; how binds are mounted.

use amphora_volume::{BindOptions, Propagation, ReadOnly};

use crate::config::{HostConfig, MountPoint};
use crate::{Engine, EngineError, Result};

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(EngineError::Invalid(text.into()))
}

/// How a bind of the configuration is mounted.
pub(crate) fn bind_options(point: &MountPoint) -> BindOptions {
    let MountPoint::Bind {
        read_only,
        create,
        propagation,
        alone,
        writable_below,
        ..
    } = point
    else {
        return BindOptions::default();
    };
    BindOptions {
        readonly: match (read_only, writable_below) {
            (false, _) => ReadOnly::No,
            (true, true) => ReadOnly::Alone,
            (true, false) => ReadOnly::All,
        },
        recursive: !alone,
        create_missing: *create,
        propagation: match propagation.as_str() {
            "shared" | "rshared" => Propagation::Shared,
            "slave" | "rslave" => Propagation::Slave,
            _ => Propagation::Private,
        },
    }
}

impl Engine {
    /// Adds the volumes and binds of other containers where nothing else is to be mounted; of several
    /// the last one counts.
    pub(crate) fn volumes_from(&self, host: &mut HostConfig) -> Result<()> {
        let mut taken = Vec::new();
        for text in &host.volumes_from {
            if text.is_empty() {
                return invalid("volumes-from specification cannot be an empty string");
            }
            let (container, mode) = text.split_once(':').unwrap_or((text, ""));
            let read_only = amphora_volume::check_donor_mode(mode)
                .map_err(|e| EngineError::Invalid(e.to_string()))?;
            let donor = self.config(&self.find(container)?)?;
            taken.push((donor, mode.to_owned(), read_only));
        }
        for (donor, mode, read_only) in taken.into_iter().rev() {
            let clean = |p: &MountPoint| p.destination().trim_end_matches('/').to_owned();
            for mut point in donor.host.mounts.clone() {
                if host.mounts.iter().any(|m| clean(m) == clean(&point)) {
                    continue;
                }
                match &mut point {
                    MountPoint::Volume {
                        read_only: ro,
                        mode: shown,
                        ..
                    }
                    | MountPoint::Bind {
                        read_only: ro,
                        mode: shown,
                        ..
                    } => {
                        *ro = *ro || read_only;
                        if !mode.is_empty() {
                            *shown = Some(mode.clone());
                        }
                    }
                    // Those of `--tmpfs` are their container's own.
                    MountPoint::Tmpfs { destination, .. }
                        if !crate::inspect_host::given(&donor.host, destination) =>
                    {
                        continue;
                    }
                    MountPoint::Image { .. } | MountPoint::Tmpfs { .. } => {}
                }
                host.mounts.push(point);
            }
        }
        Ok(())
    }
}

/// Merges `--expose` values with the ports of the image, as `port/proto`.
///
/// # Errors
/// Docker's words for a value that is no port, range or protocol.
pub fn expose<'a>(
    given: &[String],
    image: impl Iterator<Item = &'a String>,
) -> Result<Vec<String>> {
    let mut out: Vec<String> = image.cloned().collect();
    for text in given {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if ports.contains(':') {
            return invalid(format!("invalid port format for --expose: {text}"));
        }
        let bad = |why: &str| {
            EngineError::Invalid(format!(
                "invalid range format for --expose: {text}, error: {why}"
            ))
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |port: &str| {
            let why = || format!("strconv.ParseUint: parsing \"{port}\": invalid syntax");
            port.parse::<u16>().map_err(|_| bad(&why()))
        };
        let (first, last) = (port(first)?, port(last)?);
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(bad(&format!("invalid proto: {protocol}")));
        }
        if first > last {
            return Err(bad("Invalid range specified for the Port"));
        }
        for port in first..=last {
            let key = format!("{port}/{protocol}");
            if !out.contains(&key) {
                out.push(key);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_exposed_beside_the_image_s() {
        let image = ["80/tcp".to_owned()];
        let given = ["80".to_owned(), "53/udp".to_owned(), "1-2".to_owned()];
        let all = expose(&given, image.iter()).unwrap();
        assert_eq!(all, ["80/tcp", "53/udp", "1/tcp", "2/tcp"]);
        assert!(expose(&["1:2".to_owned()], image.iter()).is_err());
        assert!(expose(&["x".to_owned()], image.iter()).is_err());
    }
}
