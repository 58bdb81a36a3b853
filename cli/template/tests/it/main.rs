//! Templates as Go carries them out: outputs and complaints were recorded from Go's rules.

use amphora_template::{Map, Missing, Mode, Object, Template, Value};
use serde_json::json;

fn inspect() -> Value {
    Value::from_json(
        &json!({
            "Id": "0123456789abcdef",
            "Name": "/web",
            "State": { "Running": true, "ExitCode": 0, "Pid": 42, "Health": null },
            "Config": {
                "Env": ["A=1", "B=<2>"],
                "Cmd": null,
                "Labels": { "com.example.a": "x", "b": "y" },
                "Volumes": null,
            },
            "NetworkSettings": {
                "Ports": { "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }], "90/tcp": null },
                "Networks": { "bridge": { "IPAddress": "172.17.0.2" }, "own": { "IPAddress": "10.0.0.2" } },
            },
            "Mounts": [],
            "Size": 1.5,
        }),
        &["Labels", "Volumes", "Ports", "Networks"],
        &["Cmd"],
    )
}

fn run(template: &str) -> String {
    match Template::parse(template).and_then(|t| t.execute(&inspect(), Mode::Rows)) {
        Ok(text) => text,
        Err(e) => format!("! {e}"),
    }
}

#[track_caller]
fn all(cases: &[(&str, &str)]) {
    for (template, want) in cases {
        assert_eq!(run(template), *want, "{template}");
    }
}

#[test]
fn fields_and_values() {
    all(&[
        ("{{.State.Running}}", "true"),
        ("{{.State.Pid}} {{.Size}}", "42 1.5"),
        ("{{.Config.Env}}", "[A=1 B=<2>]"),
        ("{{.Config.Cmd}} {{.Config.Volumes}}", "[] map[]"),
        ("{{.Config.Labels}}", "map[b:y com.example.a:x]"),
        ("{{.State.Health}}", "<nil>"),
        ("{{.Config.Labels.nope}}", "<no value>"),
        ("{{index .Config.Labels \"nope\"}}", ""),
        ("{{index .Config.Labels \"com.example.a\"}}", "x"),
        (
            "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}",
            "8080",
        ),
        ("{{index .Config.Env 1}}", "B=<2>"),
        ("{{.Mounts}}", "[]"),
        ("plain", "plain"),
        ("", ""),
    ]);
}

#[test]
fn control() {
    all(&[
        (
            "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}",
            "172.17.0.2 10.0.0.2 ",
        ),
        (
            "{{range $k, $v := .NetworkSettings.Networks}}{{$k}}={{$v.IPAddress}};{{end}}",
            "bridge=172.17.0.2;own=10.0.0.2;",
        ),
        (
            "{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$e}}{{end}}",
            "A=1,B=<2>",
        ),
        ("{{range .Mounts}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        (
            "{{if eq .State.Pid 1}}one{{else if eq .State.Pid 42}}both{{else}}no{{end}}",
            "both",
        ),
        (
            "{{with .State}}{{.Pid}}{{end}}{{with .State.Health}}x{{else}}no{{end}}",
            "42no",
        ),
        ("{{$x := 1}}{{$x = 2}}{{$x}}", "2"),
        (
            "{{$n := .Name}}{{range .Config.Env}}{{$n}}{{$.State.Pid}} {{end}}",
            "/web42 /web42 ",
        ),
        ("{{range .Config.Env}}{{.}}{{break}}{{end}}", "A=1"),
        (
            "{{range $i, $e := .Config.Env}}{{if eq $i 0}}{{continue}}{{end}}{{$e}}{{end}}",
            "B=<2>",
        ),
        ("a {{- 1 -}} b {{/* c */}}d{{- /* e */ -}} f", "a1b df"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        (
            "{{range $p, $c := .NetworkSettings.Ports}}{{if $c}}{{$p}}->{{(index $c 0).HostPort}}{{end}}{{end}}",
            "80/tcp->8080",
        ),
    ]);
}

#[test]
fn functions() {
    all(&[
        ("{{json .Config.Env}}", r#"["A=1","B=<2>"]"#),
        (
            "{{json .State}}",
            r#"{"ExitCode":0,"Health":null,"Pid":42,"Running":true}"#,
        ),
        ("{{.Name | json}}", r#""/web""#),
        ("{{join .Config.Env \", \"}}", "A=1, B=<2>"),
        (
            "{{split .Name \"e\"}} {{len (split .Name \"e\")}}",
            "[/w b] 2",
        ),
        (
            "{{upper .Name}} {{.Name | upper | lower}} {{title \"a bc\"}}",
            "/WEB /web A Bc",
        ),
        (
            "[{{pad .Name 1 2}}] [{{truncate .Id 4}}]",
            "[ /web  ] [0123]",
        ),
        ("{{slice .Id 0 4}} {{slice .Config.Env 1}}", "0123 [B=<2>]"),
        (
            "{{printf \"%s|%5d|%-5d|%05d|%q|%x|%v|%.2f|%t|%%\" .Name 1 2 3 \"a\" 255 .State.Running .Size true}}",
            "/web|    1|2    |00003|\"a\"|ff|true|1.50|true|%",
        ),
        (
            "{{printf \"%s\" 3}} {{printf \"%d\" \"x\"}} {{printf \"%d\"}}",
            "%!s(int=3) %!d(string=x) %!d(MISSING)",
        ),
        (
            "{{print 1 2 \"a\" \"b\" 3}}|{{println \"x\" 1}}",
            "1 2ab3|x 1\n",
        ),
        (
            "{{and 1 0}} {{or 0 \"x\"}} {{not true}} {{and true .Name}}",
            "0 x false /web",
        ),
        (
            "{{eq 1 2 1}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt \"b\" \"a\"}} {{ge 1 2}}",
            "true true true true true false",
        ),
        (
            "{{len .Config.Labels}} {{len .Config.Cmd}} {{len .Name}}",
            "2 0 4",
        ),
        ("{{html \"<a>\"}} {{urlquery \"a b&\"}}", "&lt;a&gt; a+b%26"),
        (
            "{{\"a\\tb\"}}{{`raw\\n`}}{{'a'}}{{0x10}}{{-3}}{{1e3}}",
            "a\tbraw\\n9716-31000",
        ),
        ("{{(printf \"%s-%s\" .Name .Id) | len}}", "21"),
    ]);
}

#[test]
fn complaints_about_the_template() {
    all(&[
        ("{{", "! template: :1: unclosed action"),
        ("{{.Id", "! template: :1: unclosed action"),
        ("{{.Id}", "! template: :1: bad character U+007D '}'"),
        ("{{.Id }", "! template: :1: unexpected \"}\" in operand"),
        ("{{}}", "! template: :1: missing value for command"),
        ("{{if}}x{{end}}", "! template: :1: missing value for if"),
        ("{{if .Id}}x", "! template: :1: unexpected EOF"),
        ("{{end}}", "! template: :1: unexpected {{end}}"),
        ("{{else}}", "! template: :1: unexpected {{else}}"),
        (
            "{{nope .Id}}",
            "! template: :1: function \"nope\" not defined",
        ),
        (
            "\n{{invalid}}",
            "! template: :2: function \"invalid\" not defined",
        ),
        ("{{$x}}", "! template: :1: undefined variable \"$x\""),
        ("{{\"a}}", "! template: :1: unterminated quoted string"),
        ("{{(.Id}}", "! template: :1: unclosed left paren"),
        ("{{.Id)}}", "! template: :1: unexpected right paren"),
        (
            "{{.Id | 3}}",
            "! template: :1: non executable command in pipeline stage 2",
        ),
        ("{{break}}", "! template: :1: {{break}} outside {{range}}"),
        (
            "{{range $a, $b, $c := .X}}{{end}}",
            "! template: :1: too many declarations in range",
        ),
        ("{{3.x}}", "! template: :1: bad number syntax: \"3.x\""),
        (
            "{{template \"x\"}}",
            "! template: :1: {{template}} is not supported",
        ),
    ]);
}

#[test]
fn complaints_about_the_value() {
    all(&[
        (
            "{{.Nope}}",
            "! template: :1:2: executing \"\" at <.Nope>: map has no entry for key \"Nope\"",
        ),
        (
            "{{.State.Nope.Deeper}}",
            "! template: :1:8: executing \"\" at <.State.Nope.Deeper>: map has no entry for key \"Nope\"",
        ),
        (
            "a\n {{.Nope}}",
            "! template: :2:3: executing \"\" at <.Nope>: map has no entry for key \"Nope\"",
        ),
        (
            "{{.Name.X}}",
            "! template: :1:7: executing \"\" at <.Name.X>: can't evaluate field X in type string",
        ),
        (
            "{{len 3}}",
            "! template: :1:2: executing \"\" at <len 3>: error calling len: len of type int",
        ),
        (
            "{{len}}",
            "! template: :1:2: executing \"\" at <len>: wrong number of args for len: want 1 got 0",
        ),
        (
            "{{eq 1 \"a\"}}",
            "! template: :1:2: executing \"\" at <eq 1 \"a\">: error calling eq: incompatible types for comparison",
        ),
        (
            "{{range .Name}}{{end}}",
            "! template: :1:8: executing \"\" at <.Name>: range can't iterate over /web",
        ),
        (
            "{{index .Config.Env 5}}",
            "! template: :1:2: executing \"\" at <index .Config.Env 5>: error calling index: index out of range: 5",
        ),
        (
            "{{.Name 1}}",
            "! template: :1:2: executing \"\" at <.Name>: Name has arguments but cannot be invoked as function",
        ),
        (
            "{{upper 1}}",
            "! template: :1:2: executing \"\" at <upper>: wrong type for value; expected string; got int",
        ),
    ]);
}

#[test]
fn rows_of_a_type_of_their_own() {
    let row = |missing| {
        let mut object = Object::new(
            vec![
                ("Ports".to_owned(), "0.0.0.0:80->80/tcp".into()),
                ("ID".to_owned(), "abc".into()),
            ],
            missing,
        );
        object.labels = Some([("a".to_owned(), "b".to_owned())].into());
        Value::Object(object)
    };
    let value = row(Missing::Type("*formatter.ContainerContext"));
    let text = |t: &str| Template::parse(t).unwrap().execute(&value, Mode::Rows);
    assert_eq!(
        text("{{json .}}").unwrap(),
        r#"{"ID":"abc","Ports":"0.0.0.0:80-\u003e80/tcp"}"#
    );
    assert_eq!(text("{{json .Ports}}").unwrap(), "\"0.0.0.0:80->80/tcp\"");
    assert_eq!(text("{{.Label \"a\"}}{{.Label \"c\"}}").unwrap(), "b");
    assert_eq!(
        text("{{.Nope}}").unwrap_err().to_string(),
        "template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in type *formatter.ContainerContext"
    );
    let header = Template::parse("{{upper .ID}}\t{{truncate .Ports 3}}{{.Nope}}").unwrap();
    assert_eq!(
        header
            .execute(&row(Missing::NoValue), Mode::Header)
            .unwrap(),
        "abc\t0.0.0.0:80->80/tcp<no value>"
    );
}

#[test]
fn what_a_template_uses() {
    let uses = |t: &str, f: &str| Template::parse(t).unwrap().uses(f);
    assert!(uses("{{.Size}}", "Size") && uses("{{if .A}}{{.Size}}{{end}}", "Size"));
    assert!(uses("{{json .}}", "Size") && uses("{{$.Size}}", "Size"));
    assert!(!uses("{{.ID}} Size {{\"Size\"}}", "Size"));
}

/// Whatever is written, a template parses or is refused: it never panics.
#[test]
fn nothing_written_breaks_it() {
    let pieces = [
        "{{", "}}", ".", "$x", ":=", "|", "(", ")", "range", "if", "end", "else", "\"", "`", "'",
        "-", " ", "\n", "é", "0x", "1e", "json", "index", ",", "/*", "*/", ".Config", "\\",
    ];
    let mut state = 7u32;
    let value = Value::Map(Map::default());
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..8 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.push_str(pieces[(state >> 16) as usize % pieces.len()]);
        }
        if let Ok(template) = Template::parse(&text) {
            let _ = template.execute(&value, Mode::Rows);
        }
    }
}
