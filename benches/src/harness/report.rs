//! The table for people and the numbers for programs.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::timing::Outcome;
use crate::stats::Summary;

/// One contestant in one row.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) summary: Option<Summary>,
    pub(super) cpu_us: Option<f64>,
    pub(super) instructions: Option<f64>,
    /// Ours divided by this one's median: below 1 we are faster (or smaller).
    pub(super) ours_to_this: Option<f64>,
    /// Why it has no numbers.
    pub(super) skipped: Option<String>,
}

/// One row of the budget table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) number: u32,
    pub(super) title: String,
    pub(super) unit: &'static str,
    pub(super) yardstick: String,
    /// Ours divided by the yardstick's median.
    pub(super) ratio: Option<f64>,
    pub(super) first: f64,
    pub(super) goal: f64,
    pub(super) entries: Vec<Entry>,
}

/// What a row is compared with.
pub(super) struct Budget {
    pub(super) number: u32,
    pub(super) title: String,
    pub(super) unit: &'static str,
    /// Names of which the best is the yardstick.
    pub(super) yardsticks: &'static [&'static str],
    pub(super) first: f64,
    pub(super) goal: f64,
}

impl Entry {
    pub(super) fn of(outcome: &Outcome) -> Self {
        let us: Vec<f64> = outcome.samples.iter().map(|sample| sample.us).collect();
        let cpu: Vec<f64> = outcome.samples.iter().map(|sample| sample.cpu_us).collect();
        let counted = outcome
            .samples
            .iter()
            .filter_map(|sample| sample.instructions);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let counted: Vec<f64> = counted.map(|count| count as f64).collect();
        Self {
            name: outcome.name.clone(),
            summary: Summary::of(&us),
            cpu_us: Summary::of(&cpu).map(|summary| summary.median),
            instructions: Summary::of(&counted).map(|summary| summary.median),
            ours_to_this: None,
            skipped: outcome.failure.clone(),
        }
    }

    pub(super) fn values(name: &str, values: &[f64]) -> Self {
        Self {
            name: name.to_owned(),
            summary: Summary::of(values),
            cpu_us: None,
            instructions: None,
            ours_to_this: None,
            skipped: None,
        }
    }

    pub(super) fn skipped(name: &str, why: impl Into<String>) -> Self {
        Self {
            skipped: Some(why.into()),
            ..Self::values(name, &[])
        }
    }
}

impl Row {
    pub(super) fn new(budget: Budget, mut entries: Vec<Entry>) -> Self {
        let median = |entry: &Entry| entry.summary.map(|summary| summary.median);
        let ours = entries
            .iter()
            .find(|entry| entry.name == "amphora")
            .and_then(median);
        for entry in &mut entries {
            entry.ours_to_this = ours.zip(median(entry)).map(|(ours, theirs)| ours / theirs);
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let best = entries
            .iter()
            .filter(|entry| budget.yardsticks.contains(&entry.name.as_str()))
            .filter(|entry| median(entry).is_some())
            .min_by(|a, b| f64::total_cmp(&median(a).unwrap_or(0.0), &median(b).unwrap_or(0.0)));
        Self {
            number: budget.number,
            title: budget.title,
            unit: budget.unit,
            yardstick: best.map_or_else(|| budget.yardsticks.join(", "), |best| best.name.clone()),
            ratio: best.and_then(|best| best.ours_to_this),
            first: budget.first,
            goal: budget.goal,
            entries,
        }
    }

    fn verdict(&self) -> &'static str {
        match self.ratio {
            None => "not measured",
            Some(ratio) if ratio <= self.goal => "goal reached",
            Some(ratio) if ratio <= self.first => "first reached",
            Some(_) => "MISSED",
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cgroup: String,
    pub(super) kernel: String,
    pub(super) cpus: usize,
    pub(super) load_before: String,
    pub(super) load_after: String,
    pub(super) versions: Vec<(String, String)>,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn write_json(&self, file: std::fs::File) -> Result<()> {
        Ok(serde_json::to_writer_pretty(file, self)?)
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "cgroup {}, kernel {}, {} processors, load {} before, {} after\n",
            self.cgroup, self.kernel, self.cpus, self.load_before, self.load_after
        )?;
        writeln!(
            out,
            "| # | figure | yardstick | ours / yardstick | first | goal | |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let ratio = row
                .ratio
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
            let Row {
                number,
                title,
                yardstick,
                first,
                goal,
                ..
            } = row;
            let verdict = row.verdict();
            writeln!(
                out,
                "| {number} | {title} | {yardstick} | {ratio} | {first} | {goal} | {verdict} |"
            )?;
        }
        writeln!(
            out,
            "\n| # | contestant | n | median | min | p90 | unit | cpu us | ours / this |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            for entry in &row.entries {
                entry.print(row, out)?;
            }
        }
        writeln!(out)?;
        for (name, version) in &self.versions {
            writeln!(out, "- {name}: {version}")?;
        }
        Ok(())
    }
}

impl Entry {
    fn print(&self, row: &Row, out: &mut dyn Write) -> Result<()> {
        let (number, name, unit) = (row.number, &self.name, row.unit);
        if let Some(Summary {
            n,
            min,
            median,
            p90,
        }) = self.summary
        {
            let ratio = self
                .ours_to_this
                .map_or_else(String::new, |ratio| format!("{ratio:.3}"));
            let cpu = self
                .cpu_us
                .map_or_else(String::new, |cpu| format!("{cpu:.0}"));
            writeln!(
                out,
                "| {number} | {name} | {n} | {median:.1} | {min:.1} | {p90:.1} | {unit} | {cpu} | {ratio} |"
            )?;
        }
        if let Some(why) = &self.skipped {
            let why = why.replace('\n', " ").replace('|', "/");
            writeln!(out, "| {number} | {name} | SKIPPED: {why} | | | | | | |")?;
        }
        Ok(())
    }
}
