//! `--change`: Dockerfile instructions that alter an image's config. Pure.

use amphora_spec::health::Healthcheck;
use serde_json::{Map, Value, json};

use crate::{EngineError, Result};

/// Carries out instructions on the `config` part of an image config.
///
/// # Errors
/// An instruction that changes no config, or that does not parse.
pub(crate) fn apply(config: &mut Map<String, Value>, changes: &[String]) -> Result<()> {
    let mut state = State {
        config,
        cmd_given: false,
    };
    for change in changes {
        for line in change.lines().map(str::trim).filter(|l| !l.is_empty()) {
            state.one(line)?;
        }
    }
    Ok(())
}

struct State<'a> {
    config: &'a mut Map<String, Value>,
    cmd_given: bool,
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(EngineError::Invalid(text.into()))
}

impl State<'_> {
    fn one(&mut self, line: &str) -> Result<()> {
        let (word, rest) = line
            .split_once(|c: char| c.is_ascii_whitespace())
            .unwrap_or((line, ""));
        let (word, rest) = (word.to_ascii_uppercase(), rest.trim());
        if rest.is_empty() && word != "CMD" && word != "ENTRYPOINT" {
            return invalid(format!("{word} requires at least one argument"));
        }
        match word.as_str() {
            "CMD" => {
                let command = self.command(rest);
                self.set("Cmd", command);
                self.cmd_given = true;
            }
            "ENTRYPOINT" => {
                let command = self.command(rest);
                self.set("Entrypoint", command);
                if !self.cmd_given {
                    self.config.remove("Cmd");
                }
            }
            "ENV" => self.env(rest)?,
            "LABEL" => self.labels(rest)?,
            "EXPOSE" => self.expose(rest)?,
            "ONBUILD" => self.append("OnBuild", rest),
            "STOPSIGNAL" => {
                let signal = self.substitute(rest);
                if amphora_spec::signal::parse(&signal).is_none() {
                    return invalid(format!("invalid signal: {signal}"));
                }
                self.set("StopSignal", json!(signal));
            }
            "USER" => self.set("User", json!(self.substitute(rest))),
            "VOLUME" => {
                let words = list(rest).unwrap_or_else(|| words(rest));
                for path in words {
                    let path = self.substitute(&path);
                    self.key("Volumes", &path, json!({}));
                }
            }
            "WORKDIR" => {
                let path = self.substitute(rest);
                let now = self.config.get("WorkingDir").and_then(Value::as_str);
                let now = now.filter(|dir| !dir.is_empty()).unwrap_or("/");
                let path = crate::archive::path::join(now, &path);
                self.set("WorkingDir", json!(path));
            }
            "HEALTHCHECK" => {
                let check = self.healthcheck(rest)?;
                self.set("Healthcheck", json!(check));
            }
            _ => return invalid(format!("{word} is not a valid change command")),
        }
        Ok(())
    }

    fn healthcheck(&self, text: &str) -> Result<Healthcheck> {
        let mut check = Healthcheck::default();
        let mut rest = text;
        while let Some(flag) = rest.strip_prefix("--") {
            let (flag, after) = flag
                .split_once(|c: char| c.is_ascii_whitespace())
                .unwrap_or((flag, ""));
            rest = after.trim_start();
            let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
            let slot = match name {
                "interval" => &mut check.interval,
                "timeout" => &mut check.timeout,
                "start-period" => &mut check.start_period,
                "start-interval" => &mut check.start_interval,
                "retries" => &mut check.retries,
                _ => return invalid(format!("Unknown flag: {name}")),
            };
            let parsed = match name {
                "retries" => value.parse().ok(),
                _ => amphora_spec::duration::parse(value),
            };
            let Some(parsed) = parsed else {
                return invalid(format!("invalid value for --{name}: \"{value}\""));
            };
            *slot = parsed;
        }
        let (kind, command) = rest
            .split_once(|c: char| c.is_ascii_whitespace())
            .unwrap_or((rest, ""));
        let command = command.trim();
        check.test = match (kind.to_ascii_uppercase().as_str(), command) {
            ("", _) => return invalid("HEALTHCHECK requires at least one argument"),
            ("NONE", "") => vec!["NONE".to_owned()],
            ("NONE", _) => return invalid("HEALTHCHECK NONE takes no arguments"),
            ("CMD", "") => return invalid("Missing command after HEALTHCHECK CMD"),
            ("CMD", line) => match list(line) {
                Some(words) => std::iter::once("CMD".to_owned()).chain(words).collect(),
                None => vec!["CMD-SHELL".to_owned(), line.to_owned()],
            },
            (kind, _) => {
                return invalid(format!("Unknown type \"{kind}\" in HEALTHCHECK (try CMD)"));
            }
        };
        check.check().map_err(EngineError::Invalid)?;
        Ok(check)
    }

    fn set(&mut self, key: &str, value: Value) {
        self.config.insert(key.to_owned(), value);
    }

    /// Adds a key to an object, which may be missing or null.
    fn key(&mut self, object: &str, key: &str, value: Value) {
        let slot = self.config.entry(object).or_insert(Value::Null);
        if !slot.is_object() {
            *slot = json!({});
        }
        if let Some(map) = slot.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
    }

    fn append(&mut self, array: &str, line: &str) {
        let slot = self.config.entry(array).or_insert(Value::Null);
        match slot.as_array_mut() {
            Some(list) => list.push(json!(line)),
            None => *slot = json!([line]),
        }
    }

    /// The exec form is taken as it is, the shell form is handed to a shell.
    fn command(&self, text: &str) -> Value {
        if text.is_empty() {
            return Value::Null;
        }
        if let Some(list) = list(text) {
            return json!(list);
        }
        let shell = self.config.get("Shell").and_then(Value::as_array);
        let mut words = shell
            .filter(|shell| !shell.is_empty())
            .cloned()
            .unwrap_or_else(|| vec![json!("/bin/sh"), json!("-c")]);
        words.push(json!(text));
        Value::Array(words)
    }

    fn env(&mut self, text: &str) -> Result<()> {
        for (key, value) in pairs("ENV", text)? {
            let line = format!("{key}={}", self.substitute(&value));
            let slot = self.config.entry("Env").or_insert(Value::Null);
            if !slot.is_array() {
                *slot = json!([]);
            }
            let same = |have: &Value| have.as_str().and_then(|l| l.split('=').next()) == Some(&key);
            if let Some(list) = slot.as_array_mut() {
                match list.iter().position(same).and_then(|at| list.get_mut(at)) {
                    Some(have) => *have = json!(line),
                    None => list.push(json!(line)),
                }
            }
        }
        Ok(())
    }

    fn labels(&mut self, text: &str) -> Result<()> {
        for (key, value) in pairs("LABEL", text)? {
            let value = self.substitute(&value);
            self.key("Labels", &key, json!(value));
        }
        Ok(())
    }

    fn expose(&mut self, text: &str) -> Result<()> {
        for word in words(text) {
            let word = self.substitute(&word);
            let (ports, protocol) = word.split_once('/').unwrap_or((&word, "tcp"));
            let protocol = protocol.to_ascii_lowercase();
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let known = matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
            let range = (first.parse::<u16>(), last.parse::<u16>());
            let (true, (Ok(first), Ok(last))) = (known, range) else {
                return invalid(format!("invalid containerPort: {word}"));
            };
            for port in first..=last {
                self.key("ExposedPorts", &format!("{port}/{protocol}"), json!({}));
            }
        }
        Ok(())
    }

    /// Puts variables of the config in the place of `$NAME`, `${NAME}` and `${NAME:-default}`.
    fn substitute(&self, text: &str) -> String {
        let env = self.config.get("Env").and_then(Value::as_array);
        let value = |name: &str| -> Option<&str> {
            let lines = env.into_iter().flatten().filter_map(Value::as_str);
            let mut found = lines.filter_map(|line| line.split_once('='));
            found.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['$', '\\']) {
            let (before, tail) = rest.split_at(at);
            out.push_str(before);
            if let Some(escaped) = tail.strip_prefix("\\$") {
                out.push('$');
                rest = escaped;
                continue;
            }
            let Some(name) = tail.strip_prefix('$') else {
                out.push('\\');
                rest = tail.get(1..).unwrap_or_default();
                continue;
            };
            if let Some((inner, after)) = name.strip_prefix('{').and_then(|n| n.split_once('}')) {
                let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
                let found = value(name).filter(|v| !v.is_empty());
                out.push_str(found.unwrap_or(default));
                rest = after;
                continue;
            }
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (name, after) = name.split_at(end.unwrap_or(name.len()));
            if name.is_empty() {
                out.push('$');
            }
            out.push_str(value(name).unwrap_or_default());
            rest = after;
        }
        out + rest
    }
}

/// Parses the exec form, a JSON array of strings.
fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// Splits at white space outside of quotes, and takes the quotes off.
pub(crate) fn words(text: &str) -> Vec<String> {
    let (mut out, mut word, mut begun) = (Vec::new(), String::new(), false);
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), '\\') => match chars.next() {
                // What a variable is kept from is decided later.
                Some('$') => word.push_str("\\$"),
                Some(next) => word.push(next),
                None => word.push('\\'),
            },
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            (None, _) if c.is_whitespace() => {
                if begun {
                    out.push(std::mem::take(&mut word));
                }
                begun = false;
                continue;
            }
            (Some('\''), '$') => word.push_str("\\$"),
            _ => word.push(c),
        }
        begun = true;
    }
    if begun {
        out.push(word);
    }
    out
}

/// Parses `key=value …`, or the old form `key the rest`.
fn pairs(what: &str, text: &str) -> Result<Vec<(String, String)>> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let Some((key, value)) = text.split_once(char::is_whitespace) else {
            return invalid(format!("{what} must have two arguments"));
        };
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    words(text)
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) | None => invalid(format!(
                "Syntax error - can't find = in \"{word}\". Must be of the form: name=value"
            )),
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> Result<Value> {
        let mut config = Map::new();
        config.insert("Env".to_owned(), json!(["A=1", "HOME=/h"]));
        config.insert("Cmd".to_owned(), json!(["old"]));
        let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
        apply(&mut config, &changes)?;
        Ok(Value::Object(config))
    }

    #[test]
    fn every_instruction_changes_its_part() {
        let config = applied(&[
            "CMD [\"a\", \"b c\"]",
            "ENTRYPOINT run it",
            "ENV A=2 B=\"two words\" C=$HOME/x D='$HOME' E=\\$HOME",
            "env F the rest",
            "LABEL k=v \"k 2\"=v2",
            "EXPOSE 80 53/udp 9000-9001",
            "ONBUILD RUN x",
            "USER alice",
            "VOLUME /a /b\nVOLUME [\"/c\"]",
            "WORKDIR /x",
            "WORKDIR y",
            "STOPSIGNAL SIGINT",
        ])
        .unwrap();
        assert_eq!(config["Cmd"], json!(["a", "b c"]));
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "run it"]));
        let env = [
            "A=2",
            "HOME=/h",
            "B=two words",
            "C=/h/x",
            "D=$HOME",
            "E=$HOME",
            "F=the rest",
        ];
        assert_eq!(config["Env"], json!(env));
        assert_eq!(config["Labels"], json!({ "k": "v", "k 2": "v2" }));
        let ports = config["ExposedPorts"].as_object().unwrap();
        let ports: Vec<&str> = ports.keys().map(String::as_str).collect();
        assert_eq!(ports, ["53/udp", "80/tcp", "9000/tcp", "9001/tcp"]);
        assert_eq!(config["OnBuild"], json!(["RUN x"]));
        assert_eq!(config["User"], "alice");
        assert_eq!(config["Volumes"], json!({ "/a": {}, "/b": {}, "/c": {} }));
        assert_eq!(config["WorkingDir"], "/x/y");
        assert_eq!(config["StopSignal"], "SIGINT");
    }

    #[test]
    fn a_healthcheck_is_that_of_a_dockerfile() {
        let check = |line: &str| applied(&[&format!("HEALTHCHECK {line}")]);
        let of = |line: &str| check(line).unwrap()["Healthcheck"].clone();
        assert_eq!(of("NONE"), json!({ "Test": ["NONE"] }));
        assert_eq!(of("cmd a b"), json!({ "Test": ["CMD-SHELL", "a b"] }));
        let all = of(
            "--interval=5s --timeout=1m --start-period=2s --start-interval=10ms --retries=4 CMD [\"a\", \"b c\"]",
        );
        let want = json!({
            "Test": ["CMD", "a", "b c"], "Interval": 5_000_000_000_i64,
            "Timeout": 60_000_000_000_i64, "StartPeriod": 2_000_000_000,
            "StartInterval": 10_000_000, "Retries": 4,
        });
        assert_eq!(all, want);
        for (line, text) in [
            ("CMD", "Missing command after HEALTHCHECK CMD"),
            ("NONE x", "HEALTHCHECK NONE takes no arguments"),
            ("RUN x", "Unknown type \"RUN\" in HEALTHCHECK (try CMD)"),
            (
                "--interval=1us CMD x",
                "Interval in Healthcheck cannot be less than 1ms",
            ),
            (
                "--interval=soon CMD x",
                "invalid value for --interval: \"soon\"",
            ),
            ("--colour=1 CMD x", "Unknown flag: colour"),
        ] {
            assert_eq!(check(line).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn an_entry_point_alone_drops_the_arguments() {
        assert_eq!(applied(&["ENTRYPOINT [\"x\"]"]).unwrap().get("Cmd"), None);
        let both = applied(&["CMD [\"y\"]", "ENTRYPOINT [\"x\"]"]).unwrap();
        assert_eq!(both["Cmd"], json!(["y"]));
    }

    #[test]
    fn what_changes_no_config_is_refused() {
        for (change, text) in [
            ("RUN x", "RUN is not a valid change command"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV A", "ENV must have two arguments"),
            ("EXPOSE x", "invalid containerPort: x"),
            ("STOPSIGNAL NO", "invalid signal: NO"),
        ] {
            assert_eq!(applied(&[change]).unwrap_err().to_string(), text);
        }
    }
}
