//! The tree of a template, and how its parts are written in error texts.

use std::fmt;

use crate::Piece;

/// One node.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Text(String),
    Action(Pipe),
    If(Branch),
    With(Branch),
    Range(Branch),
    Break,
    Continue,
}

/// `if`, `with` or `range`.
#[derive(Debug, Clone)]
pub(crate) struct Branch {
    pub(crate) pipe: Pipe,
    pub(crate) body: Vec<Node>,
    pub(crate) other: Vec<Node>,
}

/// A pipeline, perhaps with variables that it sets.
#[derive(Debug, Clone)]
pub(crate) struct Pipe {
    pub(crate) variables: Vec<String>,
    /// `=` in place of `:=`.
    pub(crate) assign: bool,
    pub(crate) commands: Vec<Command>,
    pub(crate) pos: usize,
}

/// One command of a pipeline.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) args: Vec<Operand>,
}

/// An operand with where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    pub(crate) what: What,
    pub(crate) pos: usize,
}

/// What an operand is.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Value, and as it was written.
    Str(String, String),
    /// `.A.B`
    Field(Vec<String>),
    /// `$x.A.B`
    Variable(String, Vec<String>),
    Function(String),
    Pipe(Box<Pipe>),
    /// `(…).A.B`
    Chain(Box<Operand>, Vec<String>),
}

impl Node {
    /// A text, or an action that is no more than one field.
    pub(crate) fn piece(&self) -> Option<Piece<'_>> {
        let pipe = match self {
            Self::Text(text) => return Some(Piece::Text(text)),
            Self::Action(pipe) if pipe.variables.is_empty() => pipe,
            _ => return None,
        };
        let [Command { args }] = pipe.commands.as_slice() else {
            return None;
        };
        match args.as_slice() {
            [
                Operand {
                    what: What::Field(names),
                    ..
                },
            ] => match names.as_slice() {
                [name] => Some(Piece::Field(name)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether a field of this name is looked up anywhere, or the whole value is used.
    pub(crate) fn mentions(&self, field: &str) -> bool {
        match self {
            Self::Text(_) | Self::Break | Self::Continue => false,
            Self::Action(pipe) => pipe.mentions(field),
            Self::If(b) | Self::With(b) | Self::Range(b) => {
                b.pipe.mentions(field) || b.body.iter().chain(&b.other).any(|n| n.mentions(field))
            }
        }
    }
}

impl Pipe {
    fn mentions(&self, field: &str) -> bool {
        self.commands
            .iter()
            .flat_map(|c| &c.args)
            .any(|a| a.what.mentions(field))
    }
}

impl What {
    fn mentions(&self, field: &str) -> bool {
        match self {
            Self::Dot => true,
            Self::Field(names) => names.iter().any(|n| n == field),
            Self::Variable(_, names) => names.is_empty() || names.iter().any(|n| n == field),
            Self::Pipe(pipe) => pipe.mentions(field),
            Self::Chain(inner, names) => {
                inner.what.mentions(field) || names.iter().any(|n| n == field)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.variables.is_empty() {
            let sign = if self.assign { "=" } else { ":=" };
            write!(f, "{} {sign} ", self.variables.join(", "))?;
        }
        for (i, command) in self.commands.iter().enumerate() {
            if i > 0 {
                f.write_str(" | ")?;
            }
            write!(f, "{command}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, arg) in self.args.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{}", arg.what)?;
        }
        Ok(())
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = |f: &mut fmt::Formatter<'_>, names: &[String]| {
            names.iter().try_for_each(|n| write!(f, ".{n}"))
        };
        match self {
            Self::Dot => f.write_str("."),
            Self::Nil => f.write_str("nil"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Float(n) => f.write_str(&crate::print::float(*n)),
            Self::Str(_, raw) => f.write_str(raw),
            Self::Field(names) => chain(f, names),
            Self::Variable(name, names) => {
                f.write_str(name)?;
                chain(f, names)
            }
            Self::Function(name) => f.write_str(name),
            Self::Pipe(pipe) => write!(f, "({pipe})"),
            Self::Chain(inner, names) => {
                write!(f, "{}", inner.what)?;
                chain(f, names)
            }
        }
    }
}
