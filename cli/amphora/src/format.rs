//! `--format` of commands that print rows: Docker's table, JSON and templates of one's own.

use std::collections::BTreeMap;

use amphora_template::{Missing, Mode, Object, Piece, Template, TemplateError, Value};

use crate::errors::{Failure, Outcome};

/// How the rows of a command are printed.
#[derive(Debug)]
pub(crate) struct Format {
    template: Template,
    table: bool,
    json: bool,
}

/// One row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    fields: Vec<(String, Value)>,
    labels: Option<BTreeMap<String, String>>,
}

impl Row {
    /// Makes a row of fields.
    pub(crate) fn new<const N: usize>(fields: [(&str, String); N]) -> Self {
        Self {
            fields: fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), Value::Str(v)))
                .collect(),
            labels: None,
        }
    }

    /// Makes a row of any number of fields.
    pub(crate) fn of<'a>(fields: impl Iterator<Item = (&'a str, String)>) -> Self {
        Self {
            fields: fields.map(|(k, v)| (k.to_owned(), Value::Str(v))).collect(),
            labels: None,
        }
    }

    /// Gives it one more field.
    pub(crate) fn with(mut self, field: &str, value: String) -> Self {
        self.fields.push((field.to_owned(), Value::Str(value)));
        self
    }

    /// Gives it the method `Label`.
    pub(crate) fn with_labels(mut self, labels: &BTreeMap<String, String>) -> Self {
        self.labels = Some(labels.clone());
        self
    }
}

/// What is printed of one object: its fields are made when a template wants them.
pub(crate) trait Fields {
    /// Writes a field.
    fn put(&self, field: &str, out: &mut String);

    /// What a template sees in a field: mostly the same text.
    fn value(&self, field: &str) -> Value;

    /// What the method `Label` looks up.
    fn labels(&self) -> BTreeMap<String, String>;
}

/// The format that is asked for; `quiet` is a template of its own where there is none.
pub(crate) fn format_or_quiet<'a>(
    format: Option<&'a str>,
    quiet: bool,
    name: &'a str,
) -> Option<&'a str> {
    format.or(quiet.then_some(name))
}

/// Labels as a list shows them.
pub(crate) fn label_list(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    labels.join(",")
}

/// What a template says is wrong, as Docker shows it.
pub(crate) fn parsing_error(error: &TemplateError) -> String {
    format!("template parsing error: {error}")
}

impl Format {
    /// Parses a `--format` value; `table` is the template of the default table.
    pub(crate) fn parse(given: Option<&str>, table: &str) -> Outcome<Self> {
        let given = given.unwrap_or_default();
        let (text, is_table) = match given {
            "" | "table" => (table, true),
            "json" => ("{{json .}}", false),
            other => match other.strip_prefix("table") {
                Some(rest) => (rest, true),
                None => (other, false),
            },
        };
        let text = text
            .trim_matches(' ')
            .replace("\\t", "\t")
            .replace("\\n", "\n");
        let template = Template::parse(&text).map_err(|e| Failure::Local(parsing_error(&e)))?;
        Ok(Self {
            template,
            table: is_table,
            json: given == "json",
        })
    }

    /// The same for `ps`, which tries the template before it looks for containers.
    pub(crate) fn parse_for_ps(
        given: Option<&str>,
        table: &str,
        type_name: &'static str,
        fields: &[(&str, &str)],
    ) -> Outcome<Self> {
        let instead = |failure, words: &str| match failure {
            Failure::Local(text) => {
                let why = text.trim_start_matches("template parsing error: ");
                Failure::Local(format!("failed to {words} template: {why}"))
            }
            other => other,
        };
        let format = Self::parse(given, table).map_err(|e| instead(e, "parse"))?;
        let row = Row::of(fields.iter().map(|(field, _)| (*field, String::new())));
        let row = row.with_labels(&BTreeMap::new());
        let tried = format
            .template
            .execute(&row.value(Missing::Type(type_name)), Mode::Rows);
        match tried {
            Err(e) if !format.table => Err(instead(Failure::Local(parsing_error(&e)), "execute")),
            _ => Ok(format),
        }
    }

    /// Whether it needs this field; the plain `json` prints what is there at no cost.
    pub(crate) fn uses(&self, field: &str) -> bool {
        !self.json && self.template.uses(field)
    }

    /// Whether the template looks at this field at all.
    pub(crate) fn shows(&self, field: &str) -> bool {
        self.template.uses(field)
    }

    /// Renders rows; `headers` are the titles of their fields.
    pub(crate) fn render(
        &self,
        type_name: &'static str,
        headers: &[(&str, &str)],
        rows: Vec<Row>,
    ) -> Outcome<String> {
        let mut out = String::new();
        if self.table {
            let titles = Row {
                fields: headers
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), Value::from(*v)))
                    .collect(),
                labels: None,
            };
            let titles = titles.value(Missing::NoValue);
            // A header that cannot be made is left out, as Docker does.
            out.push_str(
                &self
                    .template
                    .execute(&titles, Mode::Header)
                    .unwrap_or_default(),
            );
            out.push('\n');
        }
        for row in rows {
            let line = self
                .template
                .execute(&row.value(Missing::Type(type_name)), Mode::Rows)
                .map_err(|e| Failure::Local(parsing_error(&e)))?;
            out.push_str(&line);
            out.push('\n');
        }
        Ok(if self.table { align(&out) } else { out })
    }

    /// Renders many rows: a template that only puts fields between texts, as the default tables
    /// are, is not carried out row by row.
    pub(crate) fn render_fields<T: Fields>(
        &self,
        type_name: &'static str,
        headers: &[(&str, &str)],
        rows: &[T],
    ) -> Outcome<String> {
        if let Some(out) = self.plain(headers, rows) {
            return Ok(out);
        }
        let shown: Vec<&str> = headers
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| self.shows(name))
            .collect();
        let labels = self.shows("Label");
        let made = rows.iter().map(|row| {
            let fields = shown.iter().map(|&name| (name.to_owned(), row.value(name)));
            let made = Row {
                fields: fields.collect(),
                labels: None,
            };
            if labels {
                made.with_labels(&row.labels())
            } else {
                made
            }
        });
        self.render(type_name, headers, made.collect())
    }

    /// The rows by a template that is no more than fields that are there, and texts.
    fn plain<T: Fields>(&self, headers: &[(&str, &str)], rows: &[T]) -> Option<String> {
        let title = |field: &str| {
            let found = headers.iter().find(|(name, _)| *name == field);
            found.map(|(_, title)| *title)
        };
        let mut steps = Vec::new();
        for piece in self.template.pieces()? {
            match piece {
                Piece::Text(text) => steps.extend(text.split_inclusive('\t').map(Step::Text)),
                Piece::Field(field) => steps.push(Step::Field(field, title(field)?)),
            }
        }
        let mut table = Table::new(&steps, rows.len() + 1);
        if self.table {
            table.line(&steps, |_, title, out| out.push_str(title));
        }
        for row in rows {
            table.line(&steps, |field, _, out| row.put(field, out));
        }
        Some(if self.table {
            table.aligned()
        } else {
            table.text
        })
    }

    /// Renders and prints rows.
    pub(crate) fn print(
        &self,
        type_name: &'static str,
        headers: &[(&str, &str)],
        rows: Vec<Row>,
    ) -> Outcome {
        crate::ui::raw(&self.render(type_name, headers, rows)?);
        Ok(())
    }
}

impl Row {
    fn value(self, missing: Missing) -> Value {
        Value::Object(Object {
            fields: self.fields,
            missing,
            labels: self.labels,
        })
    }
}

/// Narrowest column of a table, the gap in it counted.
const MIN_WIDTH: usize = 10;
/// Gap between columns.
const GAP: usize = 3;

/// Bytes that a row usually has room in.
const ROW_BYTES: usize = 128;

/// A part of a plain template: text, with at most one tab, which ends it, or a field and its title.
enum Step<'a> {
    Text(&'a str),
    Field(&'a str, &'a str),
}

impl Step<'_> {
    fn ends_cell(&self) -> bool {
        matches!(self, Self::Text(text) if text.ends_with('\t'))
    }
}

/// Lines that are all made by the same steps, and where their cells end.
struct Table {
    text: String,
    /// The last byte of each cell, its tab, and the places it takes.
    cells: Vec<(usize, usize)>,
    columns: usize,
    lines: usize,
    /// Tabs and line ends that the steps bring into each line.
    breaks: usize,
}

impl Table {
    fn new(steps: &[Step<'_>], lines: usize) -> Self {
        let columns = steps.iter().filter(|step| step.ends_cell()).count();
        let of_step = |step: &Step<'_>| match step {
            Step::Text(text) => breaks(text),
            Step::Field(..) => 0,
        };
        Self {
            text: String::with_capacity(lines * ROW_BYTES),
            cells: Vec::with_capacity(lines * columns),
            columns,
            lines: 0,
            breaks: steps.iter().map(of_step).sum(),
        }
    }

    fn line(&mut self, steps: &[Step<'_>], put: impl Fn(&str, &str, &mut String)) {
        let mut start = self.text.len();
        for step in steps {
            match step {
                Step::Text(text) => self.text.push_str(text),
                Step::Field(field, title) => put(field, title, &mut self.text),
            }
            if step.ends_cell() {
                let tab = self.text.len() - 1;
                let cell = self.text.get(start..tab).unwrap_or_default();
                self.cells.push((tab, cell.chars().count()));
                start = tab + 1;
            }
        }
        self.text.push('\n');
        self.lines += 1;
    }

    /// The lines aligned, as [`align`] does it.
    fn aligned(self) -> String {
        // A cell that holds a tab or a line's end is more than one; a step that does, too.
        let expected = self.lines * (self.columns + 1);
        if self.breaks != self.columns || breaks(&self.text) != expected {
            return align(&self.text);
        }
        let mut widths = vec![MIN_WIDTH; self.columns];
        for line in self.cells.chunks_exact(self.columns.max(1)) {
            for (widest, (_, width)) in widths.iter_mut().zip(line) {
                *widest = (*widest).max(width + GAP);
            }
        }
        let mut out = String::with_capacity(self.text.len() * 2);
        let mut rest = self.text.as_str();
        let mut at = 0;
        for (cell, (tab, width)) in self.cells.iter().enumerate() {
            let Some((text, behind)) = rest.split_at_checked(tab - at) else {
                break;
            };
            out.push_str(text);
            let widest = widths.get(cell % self.columns).copied().unwrap_or(0);
            fill(&mut out, widest - width);
            rest = behind.get(1..).unwrap_or_default();
            at = tab + 1;
        }
        out.push_str(rest);
        out
    }
}

/// Counts tabs and line ends.
fn breaks(text: &str) -> usize {
    let is_break = |byte: &u8| *byte == b'\t' || *byte == b'\n';
    text.as_bytes().iter().filter(|b| is_break(b)).count()
}

/// Aligns cells that end in tabs by Go's rule: a column is as wide as its widest cell in a block
/// of lines that all have it; what follows the last tab of a line is in no column.
pub(crate) fn align(text: &str) -> String {
    let lines = || text.strip_suffix('\n').unwrap_or(text).split('\n');
    // Blocks column by column, in the order of their first lines.
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut before = 0;
    for line in lines() {
        let mut columns = 0;
        let mut cells = line.split('\t').peekable();
        while let Some(cell) = cells.next() {
            if cells.peek().is_none() {
                break;
            }
            if columns == blocks.len() {
                blocks.push(Vec::new());
            }
            if let Some(column) = blocks.get_mut(columns) {
                if columns >= before {
                    column.push(MIN_WIDTH);
                }
                if let Some(widest) = column.last_mut() {
                    *widest = (*widest).max(cell.chars().count() + GAP);
                }
            }
            columns += 1;
        }
        before = columns;
    }
    let mut blocks: Vec<_> = blocks.into_iter().map(Vec::into_iter).collect();
    let mut widths: Vec<usize> = Vec::new();
    let mut out = String::with_capacity(text.len() * 2);
    for line in lines() {
        let mut columns = 0;
        let mut cells = line.split('\t').peekable();
        while let Some(cell) = cells.next() {
            out.push_str(cell);
            if cells.peek().is_none() {
                break;
            }
            if columns >= widths.len() {
                widths.extend(blocks.get_mut(columns).and_then(Iterator::next));
            }
            let wide = widths.get(columns).copied().unwrap_or(0);
            fill(&mut out, wide.saturating_sub(cell.chars().count()));
            columns += 1;
        }
        // What a line does not have ends there.
        widths.truncate(columns);
        out.push('\n');
    }
    out
}

fn fill(out: &mut String, mut count: usize) {
    const SPACES: &str = "                                ";
    while count > 0 {
        let some = count.min(SPACES.len());
        out.push_str(SPACES.get(..some).unwrap_or_default());
        count -= some;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: Option<&str>) -> String {
        let row = |id: &str, name: &str| {
            Row::new([("ID", id.to_owned()), ("Names", name.to_owned())])
                .with_labels(&[("com.a".to_owned(), "1".to_owned())].into())
        };
        let rows = vec![row("0123456789ab", "web"), row("ba9876543210", "a>b")];
        let headers = [("ID", "CONTAINER ID"), ("Names", "NAMES")];
        match Format::parse(format, "{{.ID}}\t{{.Names}}")
            .and_then(|f| f.render("*formatter.ContainerContext", &headers, rows))
        {
            Ok(text) => text,
            Err(Failure::Local(text)) => text,
            Err(_) => "?".to_owned(),
        }
    }

    #[test]
    fn formats_are_docker_s() {
        let table = "CONTAINER ID   NAMES\n0123456789ab   web\nba9876543210   a>b\n";
        assert_eq!(print(None), table);
        assert_eq!(print(Some("table")), table);
        assert_eq!(
            print(Some("table {{.Names}}\\t{{upper .ID}}")),
            "NAMES     CONTAINER ID\nweb       0123456789AB\na>b       BA9876543210\n"
        );
        assert_eq!(
            print(Some("{{.Names}}\\t{{.Label \"com.a\"}}")),
            "web\t1\na>b\t1\n"
        );
        assert_eq!(
            print(Some("json")),
            "{\"ID\":\"0123456789ab\",\"Names\":\"web\"}\n{\"ID\":\"ba9876543210\",\"Names\":\"a\\u003eb\"}\n"
        );
        assert_eq!(
            print(Some("{{.Nope}}")),
            "template parsing error: template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in type *formatter.ContainerContext"
        );
        assert_eq!(
            print(Some("{{.ID")),
            "template parsing error: template: :1: unclosed action"
        );
    }

    #[test]
    fn columns_are_go_s() {
        assert_eq!(
            align("DRIVER\tVOLUME NAME\nlocal\ta\n"),
            "DRIVER    VOLUME NAME\nlocal     a\n"
        );
        assert_eq!(
            align("a\tb\tc\nx\ny\tz\n"),
            "a         b         c\nx\ny         z\n"
        );
    }

    /// Go's rule, column by column, as it is written down.
    fn slowly(text: &str) -> String {
        let lines: Vec<Vec<&str>> = text
            .strip_suffix('\n')
            .unwrap_or(text)
            .split('\n')
            .map(|line| line.split('\t').collect())
            .collect();
        let has = |i: usize, column: usize| lines.get(i).is_some_and(|l| l.len() > column + 1);
        let places = |i: usize, column: usize| {
            let first = (0..=i).rev().take_while(|i| has(*i, column)).last()?;
            let block = (first..).take_while(|i| has(*i, column));
            block
                .map(|i| lines[i][column].chars().count() + GAP)
                .max()
                .map(|width| width.max(MIN_WIDTH))
        };
        let mut out = String::new();
        for (i, line) in lines.iter().enumerate() {
            for (column, cell) in line.iter().enumerate() {
                let width = places(i, column).unwrap_or(0);
                out.push_str(&format!("{cell:width$}"));
            }
            out.push('\n');
        }
        out
    }

    struct Cells(Vec<String>);

    impl Fields for Cells {
        fn put(&self, field: &str, out: &mut String) {
            let at: usize = field.strip_prefix('F').unwrap().parse().unwrap();
            out.push_str(&self.0[at]);
        }

        fn value(&self, field: &str) -> Value {
            let mut text = String::new();
            self.put(field, &mut text);
            Value::Str(text)
        }

        fn labels(&self) -> BTreeMap<String, String> {
            BTreeMap::new()
        }
    }

    /// Both ways to align agree with the rule, whatever the cells hold.
    #[test]
    fn tables_of_all_kinds_are_aligned_as_the_rule_says() {
        const PARTS: [&str; 8] = [
            "",
            "a",
            "…",
            "long text, long text",
            "b c",
            "\t",
            "\n",
            "é\tx",
        ];
        const HEADERS: [(&str, &str); 3] = [("F0", "ONE"), ("F1", "TWO"), ("F2", "")];
        let mut state = 7_u32;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as usize % below
        };
        for round in 0..2000 {
            // Most tables have no cell that breaks a line.
            let parts = if round % 3 == 0 { 8 } else { 5 };
            let rows: Vec<Cells> = (0..next(6))
                .map(|_| Cells((0..3).map(|_| PARTS[next(parts)].to_owned()).collect()))
                .collect();
            for template in [
                "{{.F0}}\t{{.F1}}\t{{.F2}}",
                "x{{.F0}} {{.F1}}\t",
                "\t\t{{.F2}}",
                "{{.F1}}",
                "a\tb\n{{.F0}}\t{{.F1}}",
            ] {
                let format = Format::parse(Some(&format!("table {template}")), "").unwrap();
                let lines = |row: Option<&Cells>| {
                    let template = template.trim_matches(' ');
                    HEADERS.iter().enumerate().fold(
                        template.to_owned(),
                        |text, (i, (name, title))| {
                            let cell = row.map_or(*title, |row| &row.0[i]);
                            text.replace(&format!("{{{{.{name}}}}}"), cell)
                        },
                    ) + "\n"
                };
                let text = rows
                    .iter()
                    .fold(lines(None), |text, row| text + &lines(Some(row)));
                assert_eq!(align(&text), slowly(&text), "{text:?}");
                assert!(format.plain(&HEADERS, &rows).is_some());
                let made = format.render_fields("T", &HEADERS, &rows).unwrap();
                assert_eq!(made, slowly(&text), "{text:?}");
            }
        }
    }
}
