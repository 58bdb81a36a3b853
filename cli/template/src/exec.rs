//! Carrying a template out.

use std::borrow::Cow;

use crate::funcs::{self, Call};
use crate::node::{Branch, Command, Node, Operand, Pipe, What};
use crate::value::{Missing, Nil, Value};
use crate::{Mode, TemplateError, print};

/// Most bytes that a template may write: a loop in a loop is easily written.
const MAX_OUTPUT: usize = 256 << 20;

pub(crate) fn execute(
    text: &str,
    nodes: &[Node],
    value: &Value,
    mode: Mode,
) -> Result<String, TemplateError> {
    let mut run = Run {
        text,
        mode,
        out: String::new(),
        variables: vec![("$".to_owned(), Cow::Borrowed(value))],
    };
    run.list(nodes, value)?;
    Ok(run.out)
}

struct Run<'a> {
    text: &'a str,
    mode: Mode,
    out: String,
    variables: Vec<(String, Cow<'a, Value>)>,
}

/// How a list of nodes ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

type Done<T> = Result<T, TemplateError>;

impl Run<'_> {
    fn fail<T>(&self, pos: usize, node: &dyn ToString, text: impl Into<String>) -> Done<T> {
        let before = self.text.get(..pos).unwrap_or_default();
        let column = before.rfind('\n').map_or(pos, |at| pos - at - 1);
        Err(TemplateError::Exec {
            line: crate::lex::line(self.text, pos),
            column,
            node: node.to_string(),
            text: text.into(),
        })
    }

    fn list(&mut self, nodes: &[Node], dot: &Value) -> Done<Flow> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        self.out.push_str(&print::action(&value));
                    }
                }
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
                Node::If(branch) => {
                    let flow = self.either(branch, dot, false)?;
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
                Node::With(branch) => {
                    let flow = self.either(branch, dot, true)?;
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
                Node::Range(branch) => self.range(branch, dot)?,
            }
        }
        Ok(Flow::On)
    }

    fn either(&mut self, branch: &Branch, dot: &Value, with: bool) -> Done<Flow> {
        let scope = self.variables.len();
        let value = self.pipe(&branch.pipe, dot)?;
        let flow = if value.truth() {
            self.list(&branch.body, if with { &value } else { dot })
        } else {
            self.list(&branch.other, dot)
        };
        self.variables.truncate(scope);
        flow
    }

    fn range(&mut self, branch: &Branch, dot: &Value) -> Done<()> {
        let scope = self.variables.len();
        let value = self.pipe(&branch.pipe, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::List(list) => (0..).map(Value::Int).zip(list).collect(),
            Value::Map(map) => map
                .entries
                .into_iter()
                .map(|(k, v)| (Value::Str(k), v))
                .collect(),
            // An object read from JSON is a map to Go as well.
            Value::Object(o) if o.missing == Missing::Key => o
                .fields
                .into_iter()
                .map(|(k, v)| (Value::Str(k), v))
                .collect(),
            Value::Int(n) => (0..n).map(|i| (Value::Int(i), Value::Int(i))).collect(),
            Value::Nil(_) => Vec::new(),
            other => {
                let shown = print::plain(&other);
                return self.fail(
                    branch.pipe.pos,
                    &branch.pipe,
                    format!("range can't iterate over {shown}"),
                );
            }
        };
        if items.is_empty() {
            self.variables.truncate(scope);
            self.list(&branch.other, dot)?;
            return Ok(());
        }
        for (key, item) in items {
            self.variables.truncate(scope);
            match branch.pipe.variables.as_slice() {
                [one] => self.bind(one, branch.pipe.assign, item.clone()),
                [first, second] => {
                    self.bind(first, branch.pipe.assign, key);
                    self.bind(second, branch.pipe.assign, item.clone());
                }
                _ => {}
            }
            if self.out.len() > MAX_OUTPUT {
                return self.fail(branch.pipe.pos, &branch.pipe, "too much output");
            }
            if self.list(&branch.body, &item)? == Flow::Break {
                break;
            }
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn bind(&mut self, name: &str, assign: bool, value: Value) {
        if assign && let Some((_, slot)) = self.variables.iter_mut().rev().find(|(n, _)| n == name)
        {
            *slot = Cow::Owned(value);
            return;
        }
        self.variables.push((name.to_owned(), Cow::Owned(value)));
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Done<Value> {
        let mut value = None;
        for command in &pipe.commands {
            value = Some(self.command(command, dot, value)?);
        }
        let value = value.unwrap_or(Value::Nil(Nil::Interface));
        if let [name] = pipe.variables.as_slice() {
            self.bind(name, pipe.assign, value.clone());
        }
        Ok(value)
    }

    fn command(&mut self, command: &Command, dot: &Value, last: Option<Value>) -> Done<Value> {
        let Some((first, rest)) = command.args.split_first() else {
            return Ok(Value::Nil(Nil::Interface));
        };
        if let What::Function(name) = &first.what {
            return self.function(command, first, name, rest, dot, last);
        }
        let takes_arguments = matches!(
            first.what,
            What::Field(_) | What::Variable(..) | What::Chain(..)
        );
        if takes_arguments {
            let mut args = Vec::new();
            for arg in rest {
                args.push(self.operand(arg, dot)?);
            }
            args.extend(last);
            return self.with_arguments(first, dot, &args);
        }
        if !rest.is_empty() || last.is_some() {
            return self.fail(
                first.pos,
                &first.what,
                format!("can't give argument to non-function {}", first.what),
            );
        }
        if matches!(first.what, What::Nil) {
            return self.fail(first.pos, &first.what, "nil is not a command");
        }
        self.operand(first, dot)
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Done<Value> {
        Ok(match &operand.what {
            What::Dot => dot.clone(),
            What::Nil => Value::Nil(Nil::Interface),
            What::Bool(b) => Value::Bool(*b),
            What::Int(n) => Value::Int(*n),
            What::Float(n) => Value::Float(*n),
            What::Str(s, _) => Value::Str(s.clone()),
            What::Pipe(pipe) => self.pipe(pipe, dot)?,
            What::Function(name) => {
                let command = Command {
                    args: vec![operand.clone()],
                };
                self.function(&command, operand, name, &[], dot, None)?
            }
            _ => self.with_arguments(operand, dot, &[])?,
        })
    }

    /// A field, variable or chain, whose last part may be a method.
    fn with_arguments(&mut self, operand: &Operand, dot: &Value, args: &[Value]) -> Done<Value> {
        const NOTHING: Value = Value::Nil(Nil::Interface);
        let (base, names) = match &operand.what {
            What::Field(names) => (Cow::Borrowed(dot), names),
            What::Variable(name, names) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name);
                let value = found.map_or(Cow::Owned(NOTHING), |(_, v)| Cow::Borrowed(&**v));
                if names.is_empty() && !args.is_empty() {
                    return self.fail(
                        operand.pos,
                        &operand.what,
                        format!("can't give argument to non-function {name}"),
                    );
                }
                (value, names)
            }
            What::Chain(inner, names) => (Cow::Owned(self.operand(inner, dot)?), names),
            _ => return self.operand(operand, dot),
        };
        let Some((first, rest)) = names.split_first() else {
            return Ok(base.into_owned());
        };
        let arguments = |at: usize| if at == rest.len() { args } else { &[] };
        let mut value = self.field(operand, &base, first, arguments(0))?;
        for (i, name) in rest.iter().enumerate() {
            value = Cow::Owned(
                self.field(operand, &value, name, arguments(i + 1))?
                    .into_owned(),
            );
        }
        Ok(value.into_owned())
    }

    fn field<'v>(
        &self,
        at: &Operand,
        value: &'v Value,
        name: &str,
        args: &[Value],
    ) -> Done<Cow<'v, Value>> {
        let fail = |text: String| self.fail(at.pos, &at.what, text);
        if let Value::Object(object) = value
            && let (Some(labels), "Label") = (&object.labels, name)
        {
            return match args {
                [Value::Str(key)] => Ok(Cow::Owned(Value::Str(
                    labels.get(key).cloned().unwrap_or_default(),
                ))),
                [_] => fail("wrong type for value; expected string".to_owned()),
                _ => fail(format!(
                    "wrong number of args for Label: want 1 got {}",
                    args.len()
                )),
            };
        }
        let type_name = value.type_name();
        let nothing = || Cow::Owned(Value::Nil(Nil::Interface));
        let found = match value {
            Value::Object(object) => match (object.get(name), object.missing) {
                (Some(found), _) => Cow::Borrowed(found),
                (None, Missing::NoValue) => nothing(),
                (None, Missing::Key) => {
                    return fail(format!("map has no entry for key {}", print::quote(name)));
                }
                (None, Missing::Type(type_name)) => {
                    return fail(format!("can't evaluate field {name} in type {type_name}"));
                }
            },
            Value::Map(map) => map.entries.get(name).map_or_else(nothing, Cow::Borrowed),
            Value::Nil(Nil::Interface | Nil::Map) => nothing(),
            Value::Nil(_) => {
                return fail(format!("nil pointer evaluating {type_name}.{name}"));
            }
            _ => return fail(format!("can't evaluate field {name} in type {type_name}")),
        };
        if args.is_empty() {
            Ok(found)
        } else {
            fail(format!(
                "{name} has arguments but cannot be invoked as function"
            ))
        }
    }

    fn function(
        &mut self,
        command: &Command,
        first: &Operand,
        name: &str,
        rest: &[Operand],
        dot: &Value,
        last: Option<Value>,
    ) -> Done<Value> {
        if matches!(name, "and" | "or") {
            return self.short_circuit(first, name, rest, dot, last);
        }
        let mut args = Vec::new();
        for arg in rest {
            args.push(self.operand(arg, dot)?);
        }
        args.extend(last);
        match funcs::call(name, args, self.mode) {
            Ok(value) => Ok(value),
            Err(Call::Arguments(text)) => self.fail(first.pos, &first.what, text),
            Err(Call::Failed(text)) => {
                self.fail(first.pos, command, format!("error calling {name}: {text}"))
            }
        }
    }

    /// `and` and `or` stop at the argument that decides.
    fn short_circuit(
        &mut self,
        first: &Operand,
        name: &str,
        rest: &[Operand],
        dot: &Value,
        last: Option<Value>,
    ) -> Done<Value> {
        let mut value = None;
        for arg in rest {
            let found = self.operand(arg, dot)?;
            let decided = found.truth() == (name == "or");
            value = Some(found);
            if decided {
                return Ok(value.unwrap_or(Value::Nil(Nil::Interface)));
            }
        }
        match last.or(value) {
            Some(value) => Ok(value),
            None => self.fail(
                first.pos,
                &first.what,
                format!("wrong number of args for {name}: want at least 1 got 0"),
            ),
        }
    }
}
