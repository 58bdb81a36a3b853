//! What can be wrong with a template, in Go's words.

/// A template that does not parse or cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not parse.
    #[error("template: :{line}: {text}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        text: String,
    },
    /// It cannot be carried out over this value.
    #[error("template: :{line}:{column}: executing \"\" at <{node}>: {text}")]
    Exec {
        /// Line, from 1.
        line: usize,
        /// Byte in the line, from 0.
        column: usize,
        /// The part of the template.
        node: String,
        /// What is wrong.
        text: String,
    },
}
