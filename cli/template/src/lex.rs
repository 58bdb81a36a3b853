//! Tokens: text, and what stands between `{{` and `}}`.

use crate::TemplateError;

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Text(String),
    Left,
    Right,
    /// `.Name`
    Field(String),
    /// `.`
    Dot,
    /// `$` or `$name`
    Variable(String),
    /// A function or a keyword.
    Word(String),
    Str(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Nil,
    Pipe,
    Comma,
    Assign,
    Declare,
    LeftParen,
    RightParen,
    Space,
    /// Anything else that can be printed.
    Char,
    /// Text that is no token: why.
    Bad(String),
    Eof,
}

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// Byte in the text.
    pub(crate) pos: usize,
    /// As it was written.
    pub(crate) raw: String,
}

/// Keywords, which no function may be called.
pub(crate) const KEYWORDS: [&str; 10] = [
    "if", "else", "end", "with", "range", "break", "continue", "define", "template", "block",
];

/// Line of a byte, from 1.
pub(crate) fn line(text: &str, pos: usize) -> usize {
    1 + text.bytes().take(pos).filter(|b| *b == b'\n').count()
}

pub(crate) fn error(text: &str, pos: usize, what: impl Into<String>) -> TemplateError {
    TemplateError::Parse {
        line: line(text, pos),
        text: what.into(),
    }
}

/// Splits a template into tokens. The first bad one ends the list: the parser may find something
/// wrong before it.
pub(crate) fn lex(text: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        text,
        pos: 0,
        parens: 0,
        out: Vec::new(),
    };
    if let Err(why) = lexer.run() {
        lexer.push(Kind::Bad(why), lexer.pos);
    }
    lexer.out
}

struct Lexer<'a> {
    text: &'a str,
    pos: usize,
    parens: usize,
    out: Vec<Token>,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.pos..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn push(&mut self, kind: Kind, start: usize) {
        let raw = self
            .text
            .get(start..self.pos)
            .unwrap_or_default()
            .to_owned();
        self.out.push(Token {
            kind,
            pos: start,
            raw,
        });
    }

    #[expect(clippy::unused_self, reason = "reads like the parser's")]
    fn fail<T>(&self, what: impl Into<String>) -> Result<T, String> {
        Err(what.into())
    }

    fn run(&mut self) -> Result<(), String> {
        loop {
            let start = self.pos;
            let Some(at) = self.rest().find("{{") else {
                let text = self.rest().to_owned();
                self.pos = self.text.len();
                self.text_token(text, start);
                self.push(Kind::Eof, self.pos);
                return Ok(());
            };
            let mut text = self.rest().get(..at).unwrap_or_default().to_owned();
            self.pos += at;
            let after = self.rest().get(2..).unwrap_or_default();
            let trim =
                after.starts_with('-') && after.chars().nth(1).is_some_and(char::is_whitespace);
            if trim {
                text.truncate(text.trim_end().len());
            }
            self.text_token(text, start);
            let skip = if trim { 4 } else { 2 };
            let inside = self.text.get(self.pos + skip..).unwrap_or_default();
            if inside.starts_with("/*") {
                self.comment(skip)?;
                continue;
            }
            let left = self.pos;
            self.pos += 2;
            self.push(Kind::Left, left);
            self.pos = left + skip;
            self.action()?;
        }
    }

    fn text_token(&mut self, text: String, start: usize) {
        if !text.is_empty() {
            self.out.push(Token {
                raw: text.clone(),
                kind: Kind::Text(text),
                pos: start,
            });
        }
    }

    fn comment(&mut self, skip: usize) -> Result<(), String> {
        self.pos += skip;
        let Some(end) = self.rest().find("*/") else {
            return self.fail("unclosed comment");
        };
        self.pos += end + 2;
        if self.rest().starts_with("}}") {
            self.pos += 2;
        } else if self.closes_with_trim() {
            self.skip_trim();
        } else {
            return self.fail("comment ends before closing delimiter");
        }
        Ok(())
    }

    /// Whether ` -}}` comes next.
    fn closes_with_trim(&self) -> bool {
        let mut chars = self.rest().chars();
        chars.next().is_some_and(char::is_whitespace) && chars.as_str().starts_with("-}}")
    }

    fn skip_trim(&mut self) {
        let width = self.peek().map_or(0, char::len_utf8);
        self.pos += width + 3;
        let rest = self.rest();
        self.pos += rest.len() - rest.trim_start().len();
    }

    fn action(&mut self) -> Result<(), String> {
        self.parens = 0;
        loop {
            let start = self.pos;
            let trim = self.closes_with_trim();
            if trim || self.rest().starts_with("}}") {
                if self.parens > 0 {
                    return self.fail("unclosed left paren");
                }
                if trim {
                    self.pos += self.peek().map_or(0, char::len_utf8) + 1;
                }
                let right = self.pos;
                self.pos += 2;
                self.push(Kind::Right, right);
                if trim {
                    let rest = self.rest();
                    self.pos += rest.len() - rest.trim_start().len();
                }
                return Ok(());
            }
            let Some(c) = self.peek() else {
                return self.fail("unclosed action");
            };
            self.pos += c.len_utf8();
            self.token(c, start)?;
        }
    }

    fn token(&mut self, c: char, start: usize) -> Result<(), String> {
        match c {
            c if c.is_whitespace() => {
                while self.peek().is_some_and(char::is_whitespace) && !self.closes_with_trim() {
                    self.pos += self.peek().map_or(1, char::len_utf8);
                }
                self.push(Kind::Space, start);
            }
            '=' => self.push(Kind::Assign, start),
            ':' if self.rest().starts_with('=') => {
                self.pos += 1;
                self.push(Kind::Declare, start);
            }
            ':' => return self.fail("expected :="),
            '|' => self.push(Kind::Pipe, start),
            ',' => self.push(Kind::Comma, start),
            '(' => {
                self.parens += 1;
                self.push(Kind::LeftParen, start);
            }
            ')' => {
                if self.parens == 0 {
                    return self.fail("unexpected right paren");
                }
                self.parens -= 1;
                self.push(Kind::RightParen, start);
            }
            '"' => self.quoted(start)?,
            '`' => self.raw_quoted(start)?,
            '\'' => self.character(start)?,
            '.' if !self.peek().is_some_and(|c| c.is_ascii_digit()) => {
                let name = self.word();
                let kind = if name.is_empty() {
                    Kind::Dot
                } else {
                    Kind::Field(name)
                };
                self.ends(start)?;
                self.push(kind, start);
            }
            '$' => {
                let name = self.word();
                self.ends(start)?;
                self.push(Kind::Variable(format!("${name}")), start);
            }
            c if c == '+' || c == '-' || c == '.' || c.is_ascii_digit() => self.number(start)?,
            c if c.is_alphabetic() || c == '_' => {
                self.pos = start;
                let word = self.word();
                self.ends(start)?;
                let kind = match word.as_str() {
                    "true" => Kind::Bool(true),
                    "false" => Kind::Bool(false),
                    "nil" => Kind::Nil,
                    _ => Kind::Word(word),
                };
                self.push(kind, start);
            }
            // Left for the parser to stumble over.
            c if c.is_ascii_graphic() => self.push(Kind::Char, start),
            c => {
                return self.fail(format!(
                    "unrecognized character in action: U+{:04X} '{c}'",
                    c as u32
                ));
            }
        }
        Ok(())
    }

    fn word(&mut self) -> String {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default().to_owned();
        self.pos += end;
        word
    }

    /// A field, variable or word must end where something else may begin.
    fn ends(&self, start: usize) -> Result<(), String> {
        let fine = match self.peek() {
            None => true,
            Some(c) if c.is_whitespace() => true,
            Some('.' | ',' | '|' | ':' | ')' | '(') => true,
            Some('=') => self.text.as_bytes().get(start) == Some(&b'$'),
            Some('}') => self.rest().starts_with("}}"),
            Some(_) => false,
        };
        if fine {
            return Ok(());
        }
        let c = self.peek().unwrap_or('?');
        self.fail(format!("bad character U+{:04X} '{c}'", c as u32))
    }

    fn quoted(&mut self, start: usize) -> Result<(), String> {
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                return self.fail("unterminated quoted string");
            };
            self.pos += c.len_utf8();
            match c {
                '"' => break,
                '\n' => return self.fail("unterminated quoted string"),
                '\\' => out.push(self.escape()?),
                c => out.push(c),
            }
        }
        self.push(Kind::Str(out), start);
        Ok(())
    }

    fn escape(&mut self) -> Result<char, String> {
        let Some(c) = self.peek() else {
            return self.fail("unterminated quoted string");
        };
        self.pos += c.len_utf8();
        let digits = match c {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'v' => return Ok('\u{b}'),
            'f' => return Ok('\u{c}'),
            '\\' | '"' | '\'' => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return self.fail("invalid syntax"),
        };
        let hex = self.rest().get(..digits).unwrap_or_default();
        let found = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
        self.pos += hex.len();
        found.map_or_else(|| self.fail("invalid syntax"), Ok)
    }

    fn raw_quoted(&mut self, start: usize) -> Result<(), String> {
        let Some(end) = self.rest().find('`') else {
            return self.fail("unterminated raw quoted string");
        };
        let inside = self.rest().get(..end).unwrap_or_default().to_owned();
        self.pos += end + 1;
        self.push(Kind::Str(inside), start);
        Ok(())
    }

    fn character(&mut self, start: usize) -> Result<(), String> {
        let c = match self.peek() {
            Some('\\') => {
                self.pos += 1;
                self.escape()?
            }
            Some(c) => {
                self.pos += c.len_utf8();
                c
            }
            None => return self.fail("unterminated character constant"),
        };
        if self.peek() != Some('\'') {
            return self.fail("unterminated character constant");
        }
        self.pos += 1;
        self.push(Kind::Int(i64::from(c as u32)), start);
        Ok(())
    }

    fn number(&mut self, start: usize) -> Result<(), String> {
        let rest = self.text.get(start..).unwrap_or_default();
        let signed = usize::from(rest.starts_with(['+', '-']));
        let body = rest.get(signed..).unwrap_or_default();
        let end = body
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'))
            .unwrap_or(body.len());
        let written = rest.get(..signed + end).unwrap_or_default();
        self.pos = start + written.len();
        let plain = written.replace('_', "");
        let digits = plain.trim_start_matches(['+', '-']);
        let whole = match digits.get(..2) {
            Some("0x" | "0X") => i64::from_str_radix(digits.get(2..).unwrap_or_default(), 16).ok(),
            Some("0b" | "0B") => i64::from_str_radix(digits.get(2..).unwrap_or_default(), 2).ok(),
            Some("0o" | "0O") => i64::from_str_radix(digits.get(2..).unwrap_or_default(), 8).ok(),
            _ => digits.parse().ok(),
        };
        let sign = if plain.starts_with('-') { -1 } else { 1 };
        let kind = match (whole, plain.parse::<f64>()) {
            (Some(n), _) => Kind::Int(n * sign),
            (None, Ok(f)) if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                Kind::Float(f)
            }
            _ => return self.fail(format!("bad number syntax: {written:?}")),
        };
        self.push(kind, start);
        Ok(())
    }
}
