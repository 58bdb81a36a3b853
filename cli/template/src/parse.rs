//! From tokens to a tree, by Go's grammar and with Go's complaints.

use crate::TemplateError;
use crate::lex::{KEYWORDS, Kind, Token, error, lex};
use crate::node::{Branch, Command, Node, Operand, Pipe, What};

/// Deepest nesting of parentheses and blocks.
const MAX_DEPTH: usize = 100;

/// Parses a whole template.
pub(crate) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser {
        text,
        tokens: lex(text),
        at: 0,
        variables: vec!["$".to_owned()],
        loops: 0,
        depth: 0,
    };
    let (nodes, end) = parser.list(true)?;
    debug_assert!(matches!(end, Stop::Eof), "only the end ends the top");
    Ok(nodes)
}

enum Stop {
    Eof,
    End,
    Else,
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    variables: Vec<String>,
    loops: usize,
    depth: usize,
}

type Parsed<T> = Result<T, TemplateError>;

impl Parser<'_> {
    fn peek(&self) -> &Token {
        // The last token is the end, and nobody goes beyond it.
        let last = self.tokens.len().saturating_sub(1);
        &self.tokens[self.at.min(last)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn skip_space(&mut self) {
        while self.peek().kind == Kind::Space {
            self.at += 1;
        }
    }

    fn next_non_space(&mut self) -> Token {
        self.skip_space();
        self.next()
    }

    fn fail<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err(error(self.text, self.peek().pos, what))
    }

    fn unexpected<T>(&self, token: &Token, context: &str) -> Parsed<T> {
        let shown = match &token.kind {
            Kind::Bad(why) => return Err(error(self.text, token.pos, why.as_str())),
            Kind::Eof => "EOF".to_owned(),
            Kind::Word(w) if KEYWORDS.contains(&w.as_str()) => format!("<{w}>"),
            Kind::Dot => "<.>".to_owned(),
            Kind::Nil => "<nil>".to_owned(),
            _ if token.raw.chars().count() > 10 => {
                let cut: String = token.raw.chars().take(10).collect();
                format!("{}...", crate::print::quote(&cut))
            }
            _ => crate::print::quote(&token.raw),
        };
        Err(error(
            self.text,
            token.pos,
            format!("unexpected {shown} in {context}"),
        ))
    }

    fn deeper(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail("max expression depth exceeded");
        }
        Ok(())
    }

    /// Reads nodes until the end, `{{end}}` or `{{else`; the word is consumed.
    fn list(&mut self, top: bool) -> Parsed<(Vec<Node>, Stop)> {
        let mut nodes = Vec::new();
        loop {
            let token = self.next();
            match token.kind {
                Kind::Text(text) => nodes.push(Node::Text(text)),
                Kind::Eof if top => return Ok((nodes, Stop::Eof)),
                Kind::Eof => return self.fail("unexpected EOF"),
                Kind::Bad(_) => return self.unexpected(&token, "input"),
                _ => {
                    self.skip_space();
                    let word = match &self.peek().kind {
                        Kind::Word(w) if KEYWORDS.contains(&w.as_str()) => Some(w.clone()),
                        _ => None,
                    };
                    match word.as_deref() {
                        Some(word @ ("end" | "else")) => {
                            if top {
                                return self.fail(format!("unexpected {{{{{word}}}}}"));
                            }
                            self.at += 1;
                            if word == "else" {
                                return Ok((nodes, Stop::Else));
                            }
                            self.right("end")?;
                            return Ok((nodes, Stop::End));
                        }
                        Some(word) => {
                            self.at += 1;
                            nodes.push(self.keyword(word)?);
                        }
                        None => {
                            let pipe = self.pipeline("command", &Kind::Right)?;
                            nodes.push(Node::Action(pipe));
                        }
                    }
                }
            }
        }
    }

    fn right(&mut self, context: &str) -> Parsed<()> {
        let token = self.next_non_space();
        if token.kind == Kind::Right {
            return Ok(());
        }
        self.unexpected(&token, context)
    }

    fn keyword(&mut self, word: &str) -> Parsed<Node> {
        match word {
            "if" => Ok(Node::If(self.branch("if")?)),
            "with" => Ok(Node::With(self.branch("with")?)),
            "range" => Ok(Node::Range(self.branch("range")?)),
            "break" | "continue" => {
                if self.loops == 0 {
                    return self.fail(format!("{{{{{word}}}}} outside {{{{range}}}}"));
                }
                self.right(word)?;
                Ok(if word == "break" {
                    Node::Break
                } else {
                    Node::Continue
                })
            }
            other => self.fail(format!("{{{{{other}}}}} is not supported")),
        }
    }

    fn branch(&mut self, word: &str) -> Parsed<Branch> {
        self.deeper()?;
        let scope = self.variables.len();
        let pipe = self.pipeline(word, &Kind::Right)?;
        let is_loop = usize::from(word == "range");
        self.loops += is_loop;
        let body = self.list(false);
        self.loops -= is_loop;
        let (body, end) = body?;
        let mut other = Vec::new();
        if matches!(end, Stop::Else) {
            self.skip_space();
            let chained =
                matches!(&self.peek().kind, Kind::Word(w) if w == word && word != "range");
            if chained {
                // `{{else if x}}` is `{{else}}{{if x}}` with one `{{end}}` for both.
                self.at += 1;
                let inner = self.branch(word)?;
                other.push(if word == "if" {
                    Node::If(inner)
                } else {
                    Node::With(inner)
                });
            } else {
                self.right("else")?;
                let (nodes, end) = self.list(false)?;
                if matches!(end, Stop::Else) {
                    return self.fail("expected end; found {{else}}");
                }
                other = nodes;
            }
        }
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok(Branch { pipe, body, other })
    }

    fn pipeline(&mut self, context: &str, end: &Kind) -> Parsed<Pipe> {
        self.deeper()?;
        self.skip_space();
        let mut pipe = Pipe {
            variables: Vec::new(),
            assign: false,
            commands: Vec::new(),
            pos: self.peek().pos,
        };
        self.declarations(&mut pipe, context)?;
        loop {
            let token = self.next_non_space();
            if token.kind == *end {
                self.check(&pipe, context)?;
                self.depth -= 1;
                return Ok(pipe);
            }
            let starts = match &token.kind {
                Kind::Word(w) => !KEYWORDS.contains(&w.as_str()),
                Kind::Bool(_)
                | Kind::Dot
                | Kind::Field(_)
                | Kind::Nil
                | Kind::Int(_)
                | Kind::Float(_)
                | Kind::Str(_)
                | Kind::Variable(_)
                | Kind::LeftParen => true,
                _ => false,
            };
            if !starts {
                return self.unexpected(&token, context);
            }
            self.at -= 1;
            let command = self.command()?;
            pipe.commands.push(command);
        }
    }

    fn check(&self, pipe: &Pipe, context: &str) -> Parsed<()> {
        if pipe.commands.is_empty() {
            return self.fail(format!("missing value for {context}"));
        }
        for (i, command) in pipe.commands.iter().enumerate().skip(1) {
            let first = command.args.first().map(|a| &a.what);
            if matches!(
                first,
                Some(
                    What::Bool(_)
                        | What::Dot
                        | What::Nil
                        | What::Int(_)
                        | What::Float(_)
                        | What::Str(..)
                )
            ) {
                return self.fail(format!(
                    "non executable command in pipeline stage {}",
                    i + 1
                ));
            }
        }
        Ok(())
    }

    fn declarations(&mut self, pipe: &mut Pipe, context: &str) -> Parsed<()> {
        loop {
            self.skip_space();
            let start = self.at;
            let Kind::Variable(name) = self.peek().kind.clone() else {
                return Ok(());
            };
            self.at += 1;
            self.skip_space();
            match self.peek().kind {
                Kind::Assign | Kind::Declare => {
                    pipe.assign = self.peek().kind == Kind::Assign;
                    self.at += 1;
                    pipe.variables.push(name.clone());
                    self.variables.push(name);
                    return Ok(());
                }
                Kind::Comma => {
                    self.at += 1;
                    pipe.variables.push(name.clone());
                    self.variables.push(name);
                    if context != "range" || pipe.variables.len() >= 2 {
                        return self.fail(format!("too many declarations in {context}"));
                    }
                    self.skip_space();
                    if !matches!(self.peek().kind, Kind::Variable(_)) {
                        return self.fail("range can only initialize variables");
                    }
                }
                _ => {
                    self.at = start;
                    return Ok(());
                }
            }
        }
    }

    fn command(&mut self) -> Parsed<Command> {
        let mut args = Vec::new();
        loop {
            self.skip_space();
            if let Some(operand) = self.operand()? {
                args.push(operand);
            }
            let token = self.next();
            match token.kind {
                Kind::Space => {}
                Kind::Right | Kind::RightParen => {
                    self.at -= 1;
                    break;
                }
                Kind::Pipe => break,
                _ => return self.unexpected(&token, "operand"),
            }
        }
        if args.is_empty() {
            return self.fail("empty command");
        }
        Ok(Command { args })
    }

    fn operand(&mut self) -> Parsed<Option<Operand>> {
        let Some(mut operand) = self.term()? else {
            return Ok(None);
        };
        let mut names = Vec::new();
        let mut chain_pos = None;
        while let Kind::Field(name) = &self.peek().kind {
            names.push(name.clone());
            chain_pos.get_or_insert(self.peek().pos);
            self.at += 1;
        }
        let Some(pos) = chain_pos else {
            return Ok(Some(operand));
        };
        match &mut operand.what {
            What::Field(have) | What::Variable(_, have) => {
                have.extend(names);
                operand.pos = pos;
                Ok(Some(operand))
            }
            What::Bool(_)
            | What::Str(..)
            | What::Int(_)
            | What::Float(_)
            | What::Nil
            | What::Dot => {
                let shown = operand.what.to_string();
                self.fail(format!(
                    "unexpected . after term {}",
                    crate::print::quote(&shown)
                ))
            }
            _ => Ok(Some(Operand {
                what: What::Chain(Box::new(operand), names),
                pos,
            })),
        }
    }

    fn term(&mut self) -> Parsed<Option<Operand>> {
        self.skip_space();
        let token = self.next();
        let what = match token.kind {
            Kind::Word(name) if !KEYWORDS.contains(&name.as_str()) => {
                if !crate::funcs::exists(&name) {
                    self.at -= 1;
                    return self.fail(format!(
                        "function {} not defined",
                        crate::print::quote(&name)
                    ));
                }
                What::Function(name)
            }
            Kind::Dot => What::Dot,
            Kind::Nil => What::Nil,
            Kind::Bool(b) => What::Bool(b),
            Kind::Int(n) => What::Int(n),
            Kind::Float(n) => What::Float(n),
            Kind::Str(s) => What::Str(s, token.raw),
            Kind::Field(name) => What::Field(vec![name]),
            Kind::Variable(name) => {
                if !self.variables.contains(&name) {
                    self.at -= 1;
                    return self.fail(format!("undefined variable {}", crate::print::quote(&name)));
                }
                What::Variable(name, Vec::new())
            }
            Kind::LeftParen => {
                let pipe = self.pipeline("parenthesized pipeline", &Kind::RightParen)?;
                What::Pipe(Box::new(pipe))
            }
            _ => {
                self.at -= 1;
                return Ok(None);
            }
        };
        Ok(Some(Operand {
            what,
            pos: token.pos,
        }))
    }
}
