//! Go's `text/template` as far as Docker's `--format` needs it, with Docker's functions and the
//! error texts that Go prints.
//!
//! Supported: fields, variables, pipelines, parentheses, `if`, `with`, `range`, `else`, `break`,
//! `continue`, trim markers, comments, the built-in functions but `js` and `call`, and Docker's
//! `json join split lower upper title pad truncate`. Not there: `define`, `template`, `block`.
//!
//! Pure: no I/O, no clock. Knows nothing of containers.

mod error;
mod exec;
mod funcs;
mod lex;
mod node;
mod parse;
mod print;
mod printf;
mod value;

pub use error::TemplateError;
pub use value::{Map, Missing, Nil, Object, Value};

use node::Node;

/// A template that parsed.
#[derive(Debug, Clone)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
}

/// Which functions a template is carried out with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Docker's functions.
    Rows,
    /// The header line of a table: functions that change text leave it alone.
    Header,
}

/// A part of a plain template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text as it stands there.
    Text(&'a str),
    /// A field of the value: `{{.Name}}`.
    Field(&'a str),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Go's text for what is wrong with it, for example `template: :1: unclosed action`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self {
            text: text.to_owned(),
            nodes: parse::parse(text)?,
        })
    }

    /// Carries the template out over a value.
    ///
    /// # Errors
    /// Go's text, for example `template: :1:2: executing "" at <.X>: map has no entry for key "X"`.
    pub fn execute(&self, value: &Value, mode: Mode) -> Result<String, TemplateError> {
        exec::execute(&self.text, &self.nodes, value, mode)
    }

    /// Returns the parts of a template that only puts fields between texts; `None` for any other.
    #[must_use]
    pub fn pieces(&self) -> Option<Vec<Piece<'_>>> {
        self.nodes.iter().map(Node::piece).collect()
    }

    /// Says whether the template mentions a field of this name, or the whole value.
    #[must_use]
    pub fn uses(&self, field: &str) -> bool {
        self.nodes.iter().any(|n| n.mentions(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_templates_have_pieces() {
        let plain = Template::parse("{{.ID}}\t{{ .Names -}}  !").unwrap();
        let pieces = [
            Piece::Field("ID"),
            Piece::Text("\t"),
            Piece::Field("Names"),
            Piece::Text("!"),
        ];
        assert_eq!(plain.pieces().unwrap(), pieces);
        for other in [
            "{{.}}",
            "{{.A.B}}",
            "{{.A | upper}}",
            "{{upper .A}}",
            "{{.Label \"a\"}}",
            "{{$x := .A}}",
            "{{$}}",
            "{{if .A}}{{end}}",
            "{{(.A)}}",
            "{{\"a\"}}",
            "{{len .A}}",
        ] {
            assert_eq!(Template::parse(other).unwrap().pieces(), None, "{other}");
        }
    }
}
