//! `--format` of commands that print rows: Docker's table, JSON and templates of one's own.

use std::collections::BTreeMap;

use amphora_template::{Missing, Mode, Object, Template, TemplateError, Value};

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

/// Aligns cells that end in tabs by Go's rule: a column is as wide as its widest cell in a block
/// of lines that all have it; what follows the last tab of a line is in no column.
pub(crate) fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text
        .strip_suffix('\n')
        .unwrap_or(text)
        .split('\n')
        .map(|line| line.split('\t').collect())
        .collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|l| vec![0; l.len()]).collect();
    let most = lines.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..most {
        let mut start = 0;
        while start < lines.len() {
            let has = |i: usize| lines.get(i).is_some_and(|l| l.len() > column + 1);
            if !has(start) {
                start += 1;
                continue;
            }
            let end = (start..).find(|i| !has(*i)).unwrap_or(lines.len());
            let width = lines
                .iter()
                .take(end)
                .skip(start)
                .filter_map(|l| l.get(column))
                .map(|cell| cell.chars().count() + GAP)
                .max()
                .unwrap_or(0)
                .max(MIN_WIDTH);
            for row in widths.iter_mut().take(end).skip(start) {
                if let Some(slot) = row.get_mut(column) {
                    *slot = width;
                }
            }
            start = end;
        }
    }
    let mut out = String::new();
    for (line, widths) in lines.iter().zip(&widths) {
        for (cell, width) in line.iter().zip(widths) {
            out.push_str(cell);
            let fill = width.saturating_sub(cell.chars().count());
            out.extend(std::iter::repeat_n(' ', fill));
        }
        out.push('\n');
    }
    out
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
}
