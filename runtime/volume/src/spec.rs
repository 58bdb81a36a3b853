//! The `-v` notation: `[source:]target[:options]`.

use std::path::{Component, Path, PathBuf};

use amphora_spec::{Classify, ErrorKind};
use serde::{Deserialize, Serialize};

/// Where a mounted directory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A new volume without a name of its own, removed with its container.
    Anonymous,
    /// A named volume.
    Named(String),
    /// A path on the host.
    Bind(PathBuf),
}

/// How mounts made later below a bind travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host into the container.
    Slave,
    /// Both ways.
    Shared,
}

/// What `-v` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Where it comes from.
    pub source: Source,
    /// Absolute, clean path in the container.
    pub target: PathBuf,
    /// `ro`.
    pub readonly: bool,
    /// `nocopy`: a new volume stays empty.
    pub nocopy: bool,
    /// `shared`, `slave`, `private`.
    pub propagation: Propagation,
    /// The mount and those below it, or (`private` and its like without the `r`) it alone.
    pub recursive: bool,
    /// The options as given, for showing them again.
    pub mode: String,
}

/// Says why a volume specification is refused, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeSpecError {
    /// Nothing at all.
    #[error("invalid empty volume spec")]
    Empty,
    /// Nothing between two colons.
    #[error("invalid spec: {0}: empty section between colons")]
    EmptySection(String),
    /// More than three sections.
    #[error("invalid volume specification: '{0}'")]
    TooManyColons(String),
    /// Options without a source.
    #[error("invalid volume specification: '{0}'")]
    Form(String),
    /// Unknown or contradicting options.
    #[error("invalid mode: {0}")]
    Mode(String),
    /// A relative path in the container.
    #[error(
        "invalid volume specification: '{spec}': invalid mount config for type \"{kind}\": \
         invalid mount path: '{target}' mount path must be absolute"
    )]
    Relative {
        /// The whole specification.
        spec: String,
        /// `bind` or `volume`.
        kind: &'static str,
        /// The path.
        target: String,
    },
    /// Options that only the other kind has.
    #[error(
        "invalid volume specification: '{spec}': invalid mount config for type \"{kind}\": \
         field {field} must not be specified"
    )]
    Misplaced {
        /// The whole specification.
        spec: String,
        /// `bind` or `volume`.
        kind: &'static str,
        /// What the options are together.
        field: &'static str,
    },
    /// The root of the container.
    #[error(
        "invalid volume specification: '{spec}': invalid mount config for type \"{kind}\": \
         invalid specification: destination can't be '/'"
    )]
    Root {
        /// The whole specification.
        spec: String,
        /// `bind` or `volume`.
        kind: &'static str,
    },
    /// Not a name for a volume.
    #[error("create {name}: {problem}")]
    Name {
        /// The text.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Classify for VolumeSpecError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// Parses one `-v` value. A source that begins with `.` is a path relative to `cwd`.
///
/// # Errors
/// [`VolumeSpecError`] with the part that is wrong.
pub fn parse_volume_spec(spec: &str, cwd: &Path) -> Result<VolumeSpec, VolumeSpecError> {
    if spec.is_empty() {
        return Err(VolumeSpecError::Empty);
    }
    let sections: Vec<&str> = spec.split(':').collect();
    if sections.iter().any(|section| section.is_empty()) {
        return Err(VolumeSpecError::EmptySection(spec.to_owned()));
    }
    let (source, target, mode) = match *sections.as_slice() {
        [target] => (None, target, ""),
        [_, mode] if parse_mode(mode).is_some() => {
            return Err(VolumeSpecError::Form(spec.to_owned()));
        }
        [source, target] => (Some(source), target, ""),
        [source, target, mode] => (Some(source), target, mode),
        _ => return Err(VolumeSpecError::TooManyColons(spec.to_owned())),
    };
    let options = parse_mode(mode).ok_or_else(|| VolumeSpecError::Mode(mode.to_owned()))?;
    let is_path = source.is_some_and(|source| source.starts_with(['/', '.']));
    let misplaced = match is_path {
        true if options.nocopy => Some(("bind", "VolumeOptions")),
        false if options.propagation.is_some() => Some(("volume", "BindOptions")),
        _ => None,
    };
    if let Some((kind, field)) = misplaced {
        let spec = spec.to_owned();
        return Err(VolumeSpecError::Misplaced { spec, kind, field });
    }
    let source = match source {
        None => Source::Anonymous,
        Some(path) if path.starts_with('/') => Source::Bind(clean(Path::new(path))),
        Some(path) if path.starts_with('.') => Source::Bind(clean(&cwd.join(path))),
        Some(name) => Source::Named(name.to_owned()),
    };
    let kind = if matches!(source, Source::Bind(_)) {
        "bind"
    } else {
        "volume"
    };
    if !target.starts_with('/') {
        let (spec, target) = (spec.to_owned(), target.to_owned());
        return Err(VolumeSpecError::Relative { spec, kind, target });
    }
    let target = clean(Path::new(target));
    if target == Path::new("/") {
        return Err(VolumeSpecError::Root {
            spec: spec.to_owned(),
            kind,
        });
    }
    if let Source::Named(name) = &source {
        check_name(name)?;
    }
    Ok(VolumeSpec {
        source,
        target,
        readonly: options.readonly,
        nocopy: options.nocopy,
        propagation: options.propagation.unwrap_or_default(),
        recursive: options.recursive,
        mode: mode.to_owned(),
    })
}

/// Checks the mode of `--volumes-from`, and says whether it is `ro`.
///
/// # Errors
/// [`VolumeSpecError::Mode`], also for what another container's mounts cannot be given.
pub fn check_donor_mode(mode: &str) -> Result<bool, VolumeSpecError> {
    match parse_mode(mode) {
        Some(parsed) if parsed.propagation.is_none() && !parsed.nocopy => Ok(parsed.readonly),
        _ => Err(VolumeSpecError::Mode(mode.to_owned())),
    }
}

/// Checks a volume's name.
///
/// # Errors
/// [`VolumeSpecError::Name`] in Docker's words.
pub fn check_name(name: &str) -> Result<(), VolumeSpecError> {
    check(name).map_err(|problem| VolumeSpecError::Name {
        name: name.to_owned(),
        problem,
    })
}

/// Says what is wrong with a volume's name, in Docker's words.
pub(crate) fn check(name: &str) -> Result<(), String> {
    if name.len() == 1 {
        return Err(
            "volume name is too short, names should be at least two alphanumeric \
                    characters"
                .to_owned(),
        );
    }
    amphora_spec::id::check_name(name).map_err(|_| {
        format!(
            "{name:?} includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host \
             directory, use absolute path"
        )
    })
}

struct Mode {
    readonly: bool,
    nocopy: bool,
    propagation: Option<Propagation>,
    recursive: bool,
}

/// Every kind of option may be given once.
fn parse_mode(mode: &str) -> Option<Mode> {
    let mut parsed = Mode {
        readonly: false,
        nocopy: false,
        propagation: None,
        recursive: true,
    };
    let (mut access, mut label, mut consistency) = (0, 0, 0);
    if mode.is_empty() {
        return Some(parsed);
    }
    for option in mode.split(',') {
        match option {
            "ro" | "rw" => {
                parsed.readonly = option == "ro";
                access += 1;
            }
            // Labels of a security module that this engine does not drive.
            "z" | "Z" => label += 1,
            "nocopy" if !parsed.nocopy => parsed.nocopy = true,
            "consistent" | "cached" | "delegated" => consistency += 1,
            _ => {
                let (propagation, recursive) = propagation(option)?;
                parsed.recursive = recursive;
                if parsed.propagation.replace(propagation).is_some() {
                    return None;
                }
            }
        }
    }
    (access <= 1 && label <= 1 && consistency <= 1).then_some(parsed)
}

fn propagation(option: &str) -> Option<(Propagation, bool)> {
    Some(match option {
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        _ => return None,
    })
}

/// Resolves `.` and `..` by the text alone, as Docker does for both sides.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Result<VolumeSpec, VolumeSpecError> {
        parse_volume_spec(spec, Path::new("/home/u"))
    }

    #[test]
    fn forms_are_understood() {
        let named = parse("data:/srv").unwrap();
        assert_eq!(named.source, Source::Named("data".to_owned()));
        assert_eq!(
            (named.target.to_str(), named.readonly),
            (Some("/srv"), false)
        );
        let bind = parse("/a//b/../c:/x/./y/:ro,z").unwrap();
        assert_eq!(bind.source, Source::Bind("/a/c".into()));
        assert_eq!((bind.target.to_str(), bind.readonly), (Some("/x/y"), true));
        assert_eq!(bind.mode, "ro,z");
        assert_eq!(parse("/cache").unwrap().source, Source::Anonymous);
        assert_eq!(
            parse("./src:/src").unwrap().source,
            Source::Bind("/home/u/src".into())
        );
        assert_eq!(
            parse(".:/src").unwrap().source,
            Source::Bind("/home/u".into())
        );
        assert_eq!(
            parse("../x:/src").unwrap().source,
            Source::Bind("/home/x".into())
        );
        assert!(parse("data:/srv:nocopy").unwrap().nocopy);
        let shared = parse("/a:/b:rw,rshared").unwrap();
        assert_eq!(
            (shared.propagation, shared.recursive),
            (Propagation::Shared, true)
        );
        let alone = parse("/a:/b:private").unwrap();
        assert_eq!(
            (alone.propagation, alone.recursive),
            (Propagation::Private, false)
        );
    }

    #[test]
    fn refusals_use_dockers_words() {
        let name = |n: &str| {
            format!(
                "create {n}: \"{n}\" includes invalid characters for a local volume name, only \
                 \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host \
                 directory, use absolute path"
            )
        };
        for (spec, text) in [
            ("", "invalid empty volume spec".to_owned()),
            (":/x", "invalid spec: :/x: empty section between colons".to_owned()),
            ("a::/x", "invalid spec: a::/x: empty section between colons".to_owned()),
            ("a:/x:", "invalid spec: a:/x:: empty section between colons".to_owned()),
            ("a:/b:ro:x", "invalid volume specification: 'a:/b:ro:x'".to_owned()),
            ("/foo:ro", "invalid volume specification: '/foo:ro'".to_owned()),
            ("a:/b:rx", "invalid mode: rx".to_owned()),
            ("a:/b:ro,rw", "invalid mode: ro,rw".to_owned()),
            ("a:/b:shared,slave", "invalid mode: shared,slave".to_owned()),
            ("a:b", "invalid volume specification: 'a:b': invalid mount config for type \"volume\": invalid mount path: 'b' mount path must be absolute".to_owned()),
            ("/a:/", "invalid volume specification: '/a:/': invalid mount config for type \"bind\": invalid specification: destination can't be '/'".to_owned()),
            ("/a:/x/..", "invalid volume specification: '/a:/x/..': invalid mount config for type \"bind\": invalid specification: destination can't be '/'".to_owned()),
            ("a/b:/x", name("a/b")),
            ("a%b:/y", name("a%b")),
            ("x:/y", "create x: volume name is too short, names should be at least two alphanumeric characters".to_owned()),
        ] {
            assert_eq!(parse(spec).unwrap_err().to_string(), text, "{spec}");
        }
    }
}
