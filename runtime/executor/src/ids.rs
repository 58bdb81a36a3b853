//! Ranges of ids of a user namespace.

use std::fmt::Write as _;

use amphora_spec::runtime::IdMapping;

use crate::ExecutorError;

/// Most ranges of one map that the kernel takes.
const RANGES_MAX: usize = 340;
/// The number that stands for no id.
const NO_ID: u32 = u32::MAX;

/// One of the two maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ids(Vec<IdMapping>);

impl Ids {
    /// Takes ranges that are well formed.
    pub(crate) fn new(field: &str, ranges: &[IdMapping]) -> Result<Self, ExecutorError> {
        let invalid = |why: String| Err(ExecutorError::Invalid(format!("{field}: {why}")));
        if ranges.len() > RANGES_MAX {
            return invalid(format!("more than {RANGES_MAX} ranges"));
        }
        for range in ranges {
            if range.size == 0 {
                return invalid(format!("the range of {} is empty", range.container_id));
            }
            let fits = |first: u32| first.checked_add(range.size).is_some();
            if !fits(range.container_id) || !fits(range.host_id) {
                return invalid(format!("the range of {} is too long", range.container_id));
            }
        }
        for (at, one) in ranges.iter().enumerate() {
            let twice = |other: &IdMapping| {
                overlap(one.container_id, other.container_id, one.size, other.size)
                    || overlap(one.host_id, other.host_id, one.size, other.size)
            };
            if ranges.iter().skip(at + 1).any(twice) {
                return invalid(format!(
                    "the range of {} overlaps another",
                    one.container_id
                ));
            }
        }
        Ok(Self(ranges.to_vec()))
    }

    /// Reads a file of the kernel's.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let range = |line: &str| {
            let mut words = line.split_whitespace().map(str::parse);
            Some(IdMapping {
                container_id: words.next()?.ok()?,
                host_id: words.next()?.ok()?,
                size: words.next()?.ok()?,
            })
        };
        text.lines().map(range).collect::<Option<_>>().map(Self)
    }

    /// As the kernel's files take it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for range in &self.0 {
            // Into a string: never fails.
            let _ = writeln!(
                text,
                "{} {} {}",
                range.container_id, range.host_id, range.size
            );
        }
        text
    }

    /// The id outside.
    pub(crate) fn host(&self, id: u32) -> Option<u32> {
        if id == NO_ID {
            return None;
        }
        self.0.iter().find_map(|range| {
            let offset = id.checked_sub(range.container_id)?;
            (offset < range.size).then(|| range.host_id + offset)
        })
    }

    /// The only range, when it is that of one id.
    pub(crate) fn single(&self) -> Option<u32> {
        match self.0.as_slice() {
            [one] if one.size == 1 => Some(one.host_id),
            _ => None,
        }
    }

    pub(crate) fn ranges(&self) -> &[IdMapping] {
        &self.0
    }

    /// Says whether both map the same, in whatever order.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let sorted = |ids: &Self| {
            let mut list: Vec<_> = ids
                .0
                .iter()
                .map(|r| (r.container_id, r.host_id, r.size))
                .collect();
            list.sort_unstable();
            list
        };
        sorted(self) == sorted(other)
    }
}

fn overlap(one: u32, other: u32, one_size: u32, other_size: u32) -> bool {
    let end = |first: u32, size: u32| u64::from(first) + u64::from(size);
    u64::from(one) < end(other, other_size) && u64::from(other) < end(one, one_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ranges: &[(u32, u32, u32)]) -> Result<Ids, String> {
        let ranges: Vec<IdMapping> = ranges
            .iter()
            .map(|(container_id, host_id, size)| IdMapping {
                container_id: *container_id,
                host_id: *host_id,
                size: *size,
            })
            .collect();
        Ids::new("map", &ranges).map_err(|error| error.to_string())
    }

    #[test]
    fn ids_are_looked_up_in_their_ranges() {
        let ids = ids(&[(0, 1000, 1), (1, 100_000, 65_535)]).unwrap();
        assert_eq!(ids.host(0), Some(1000));
        assert_eq!(ids.host(1), Some(100_000));
        assert_eq!(ids.host(65_535), Some(165_534));
        assert_eq!(ids.host(65_536), None);
        assert_eq!(ids.text(), "0 1000 1\n1 100000 65535\n");
        assert_eq!(Ids::parse("  0   1000  1\n 1 100000 65535\n"), Some(ids));
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for (ranges, text) in [
            (&[(0, 0, 0)][..], "empty"),
            (&[(0, u32::MAX, 2)], "too long"),
            (&[(u32::MAX, 0, 2)], "too long"),
            (&[(0, 0, 10), (9, 100, 1)], "overlaps"),
            (&[(0, 0, 10), (10, 9, 1)], "overlaps"),
        ] {
            let error = ids(ranges).unwrap_err();
            assert!(
                error.starts_with("map: ") && error.contains(text),
                "{error}"
            );
        }
        assert!(ids(&[(0, 5, 10), (10, 15, 1)]).is_ok());
    }
}
