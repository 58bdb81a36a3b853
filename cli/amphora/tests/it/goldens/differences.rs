//! The table of what differs on purpose.

use std::path::Path;

/// One difference: lines of docker's that are not there, lines of ours in their place.
#[derive(Debug)]
struct Row {
    title: String,
    /// Of one scenario only.
    scenario: Option<String>,
    theirs: Vec<String>,
    ours: Vec<String>,
    used: bool,
}

/// The rows that hold for one executor.
#[derive(Debug)]
pub(crate) struct Differences(Vec<Row>);

impl Differences {
    /// Reads the table: a row is a heading that names executor and scenario (or `all`), its reason
    /// as text, and a block of lines that begin with `-` or `+`.
    pub(crate) fn read(path: &Path, kind: &str) -> Self {
        let text = std::fs::read_to_string(path).expect("table");
        let mut rows = Vec::new();
        for section in text.split("\n## ").skip(1) {
            let title = section.lines().next().expect("a heading");
            let (of, rest) = title.split_once(' ').expect("executor and scenario");
            let scenario = rest.split(':').next().expect("scenario");
            assert!(
                ["linux", "wasm", "both"].contains(&of),
                "no executor: {title}"
            );
            let lines = |mark: char| -> Vec<String> {
                let marked = section.lines().filter_map(|l| l.strip_prefix(mark));
                marked.map(str::to_owned).collect()
            };
            let row = Row {
                title: title.to_owned(),
                scenario: Some(scenario.to_owned()).filter(|s| s != "all"),
                theirs: lines('-'),
                ours: lines('+'),
                used: false,
            };
            assert!(row.theirs.len() + row.ours.len() > 0, "no lines: {title}");
            if of == kind || of == "both" {
                rows.push(row);
            }
        }
        Self(rows)
    }

    /// What of a difference no row explains.
    pub(crate) fn explain(
        &mut self,
        scenario: &str,
        recorded: &[String],
        said: Vec<String>,
    ) -> Vec<String> {
        let (mut theirs, mut ours) = (recorded.to_vec(), said);
        if theirs == ours {
            return Vec::new();
        }
        let same_lines = ours.clone();
        ours.retain(|line| !take(&mut theirs, line));
        if theirs.is_empty() && ours.is_empty() {
            let other = same_lines.iter().map(|l| format!("  {l}"));
            return std::iter::once("  in another order:".to_owned())
                .chain(other)
                .collect();
        }
        for row in &mut self.0 {
            let here = row.scenario.as_ref().is_none_or(|s| s == scenario);
            let holds = |all: &[String], some: &[String]| some.iter().all(|l| all.contains(l));
            while here && holds(&theirs, &row.theirs) && holds(&ours, &row.ours) {
                row.used |= row.theirs.iter().all(|l| take(&mut theirs, l));
                row.used |= row.ours.iter().all(|l| take(&mut ours, l));
            }
        }
        let theirs = theirs.iter().map(|l| format!("-{l}"));
        theirs.chain(ours.iter().map(|l| format!("+{l}"))).collect()
    }

    /// Rows for what does not differ any more.
    pub(crate) fn unused(&self) -> Vec<String> {
        let unused = self.0.iter().filter(|row| !row.used);
        unused
            .map(|row| format!("differences.md: does not differ: {}", row.title))
            .collect()
    }
}

/// Takes one line out of a list, if it is in it.
fn take(list: &mut Vec<String>, line: &str) -> bool {
    let found = list.iter().position(|l| l == line);
    if let Some(at) = found {
        list.remove(at);
    }
    found.is_some()
}
