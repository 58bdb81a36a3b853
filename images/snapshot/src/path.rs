//! Paths of tar entries, made relative to the layer and told apart from whiteouts. Pure.

use crate::unpack::Limits;

/// A path below the layer's root: components without `.`, `..`, empty ones and zero bytes, joined
/// by `/`. Empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RelPath(Vec<u8>);

impl RelPath {
    /// Normalises a path as Docker does: absolute paths start at the layer's root, `a/../b` is
    /// `b`; what would leave the root is refused.
    pub(crate) fn parse(path: &[u8], limits: &Limits) -> Result<Self, &'static str> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop().ok_or("the path leaves the root of the layer")?;
                }
                _ => parts.push(part),
            }
        }
        if parts.len() > limits.depth {
            return Err("the path has too many components");
        }
        Ok(Self(parts.join(&b'/')))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Splits into the parent and the last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => Some((self.0.get(..at)?, self.0.get(at + 1..)?)),
            None => Some((&[], &self.0)),
        }
    }
}

/// What the name of an entry asks for (OCI image spec, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Intent<'a> {
    /// Make the entry.
    Make,
    /// Hide this name of the parent directory in the layers below.
    Hide(&'a [u8]),
    /// Hide all that the layers below have in the parent directory.
    Opaque,
    /// Bookkeeping of aufs.
    Skip,
}

const WHITEOUT: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Tells entries from whiteouts.
pub(crate) fn intent(path: &RelPath) -> Result<Intent<'_>, &'static str> {
    let Some((parent, name)) = path.split() else {
        return Ok(Intent::Make);
    };
    for part in parent.split(|b| *b == b'/') {
        if part.starts_with(META) {
            return Ok(Intent::Skip);
        }
        if part.starts_with(WHITEOUT) {
            return Err("it lies below a whiteout");
        }
    }
    if name == OPAQUE {
        return Ok(Intent::Opaque);
    }
    if name.starts_with(META) {
        return Ok(Intent::Skip);
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Intent::Make),
        Some(b"" | b"." | b"..") => Err("the whiteout names no file"),
        Some(hidden) => Ok(Intent::Hide(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rel(path: &str) -> Result<RelPath, &'static str> {
        RelPath::parse(path.as_bytes(), &Limits::default())
    }

    #[test]
    fn paths_stay_below_the_root() {
        for (from, to) in [
            ("a/b", "a/b"),
            ("/a/b/", "a/b"),
            ("./a//./b", "a/b"),
            ("a/../b", "b"),
            ("./", ""),
            ("/", ""),
            ("a/..", ""),
        ] {
            assert_eq!(rel(from).unwrap().bytes(), to.as_bytes(), "{from}");
        }
        for bad in ["..", "../x", "/../x", "a/../../x", "a/b/../../../x"] {
            assert!(rel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let limit = Limits::default().depth;
        assert!(rel(&vec!["d"; limit].join("/")).is_ok());
        assert!(rel(&vec!["d"; limit + 1].join("/")).is_err());
    }

    #[test]
    fn whiteouts_never_name_a_directory_above() {
        let of = |p: &str| {
            let path = rel(p).unwrap();
            match intent(&path) {
                Ok(Intent::Hide(name)) => format!("hide {}", String::from_utf8_lossy(name)),
                Ok(other) => format!("{other:?}").to_lowercase(),
                Err(_) => "refused".to_owned(),
            }
        };
        assert_eq!(of("a/.wh.b"), "hide b");
        assert_eq!(of(".wh..b"), "hide .b");
        assert_eq!(of("a/.wh..wh..opq"), "opaque");
        assert_eq!(of(".wh..wh.plnk/1"), "skip");
        assert_eq!(of("a/.wh..wh.aufs"), "skip");
        for bad in [".wh.", "a/.wh..", ".wh...", ".wh.x/y"] {
            assert_eq!(of(bad), "refused", "{bad}");
        }
    }
}
