//! The keys that detach a client from a terminal, in Docker's syntax.

/// Most keys in a sequence.
pub(crate) const KEYS_MAX: usize = 64;
/// The keys Docker has when nothing is said: ctrl-p, ctrl-q.
const DEFAULT: [u8; 2] = [0x10, 0x11];

/// A sequence of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    fn default() -> Self {
        Self(DEFAULT.to_vec())
    }
}

impl DetachKeys {
    /// Parses keys separated by commas: a character, or `ctrl-` and a letter or one of `@[\\]^_`.
    ///
    /// # Errors
    /// The key that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for key in text.split(',') {
            let code = match (key.len(), key.strip_prefix("ctrl-")) {
                (1, _) => key.bytes().next(),
                (_, Some(name)) => control(name),
                _ => None,
            };
            keys.push(code.ok_or_else(|| format!("Unknown character: '{key}'"))?);
        }
        if keys.len() > KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys"));
        }
        Ok(Self(keys))
    }

    pub(crate) fn watch(&self) -> KeyWatch<'_> {
        KeyWatch {
            keys: &self.0,
            matched: 0,
        }
    }
}

fn control(name: &str) -> Option<u8> {
    let [key] = name.as_bytes() else { return None };
    match key {
        b'a'..=b'z' => Some(key - b'a' + 1),
        b'@' => Some(0),
        b'[' => Some(27),
        b'\\' => Some(28),
        b']' => Some(29),
        b'^' => Some(30),
        b'_' => Some(31),
        _ => None,
    }
}

/// Looks for the keys in what is typed, however it arrives.
#[derive(Debug)]
pub(crate) struct KeyWatch<'a> {
    keys: &'a [u8],
    /// How many of the keys came last, and are held back.
    matched: usize,
}

impl KeyWatch<'_> {
    /// Returns what goes on to the container, and whether the keys were there; what was typed
    /// after them goes nowhere.
    pub(crate) fn scan(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len() + self.matched);
        for byte in typed {
            if self.keys.get(self.matched) != Some(byte) {
                out.extend(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
            } else {
                out.push(*byte);
            }
            if self.matched == self.keys.len() {
                self.matched = 0;
                return (out, true);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_docker_s() {
        assert_eq!(
            DetachKeys::parse("ctrl-p,ctrl-q").unwrap(),
            DetachKeys::default()
        );
        assert_eq!(
            DetachKeys::parse("a,ctrl-@,ctrl-_,ctrl-\\").unwrap().0,
            [b'a', 0, 31, 28]
        );
        for bad in ["", "ctrl-", "ctrl-1", "shift-a", "ab", "a,"] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            DetachKeys::parse("shift-a").unwrap_err(),
            "Unknown character: 'shift-a'"
        );
    }

    #[test]
    fn keys_are_found_across_reads_and_near_misses_pass() {
        let keys = DetachKeys::default();
        let mut watch = keys.watch();
        assert_eq!(watch.scan(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(watch.scan(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(watch.scan(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(watch.scan(b"\x11lost"), (Vec::new(), true));
        assert_eq!(watch.scan(b"\x11"), (b"\x11".to_vec(), false));
    }
}
