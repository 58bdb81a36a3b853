//! Order statistics: medians and minima, because a mean on a shared machine says nothing.

use serde::Serialize;

/// What is reported of one series of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Number of measurements.
    pub n: usize,
    /// Smallest.
    pub min: f64,
    /// Middle.
    pub median: f64,
    /// Nine tenths are below.
    pub p90: f64,
}

impl Summary {
    /// Summarises a series; `None` when it is empty.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied();
        Some(Self {
            n: sorted.len(),
            min: at(0)?,
            median: at(sorted.len() / 2)?,
            p90: at(sorted.len() * 9 / 10)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_series_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn order_does_not_matter() {
        let summary = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((summary.min, summary.median, summary.n), (1.0, 2.0, 3));
    }
}
