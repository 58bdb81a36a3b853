//! `--format`: what Docker prints for the same templates.

use serde_json::Value;

use crate::sandbox::Sandbox;

fn web(s: &Sandbox) {
    s.run(&[
        "create",
        "--name",
        "web",
        "-l",
        "com.example.a=x",
        "-l",
        "b",
        "-e",
        "A=1",
        "-v",
        "data:/data",
        "-p",
        "127.0.0.1:18080:80",
        "probe-linux",
        "exit",
        "3",
    ])
    .ok();
}

fn inspect(s: &Sandbox, template: &str) -> String {
    let mut text = s.run(&["inspect", "-f", template, "web"]).ok();
    assert_eq!(text.pop(), Some('\n'));
    text
}

/// Docker's type has fields that its JSON leaves out.
#[test]
fn templates_name_what_a_volume_does_not_say() {
    let s = Sandbox::ready();
    s.run(&["volume", "create", "vol"]).ok();
    for (template, want) in [
        ("{{.Status}}", "map[]"),
        ("{{json .Status}} {{len .Status}}", "null 0"),
        ("{{.Status.x}}", "<no value>"),
        ("{{.UsageData}} {{.ClusterVolume}}", "<nil> <nil>"),
        ("{{.Name}} {{.Labels}}", "vol map[]"),
    ] {
        for words in [&["volume", "inspect"][..], &["inspect"]] {
            let all = [words, &["-f", template, "vol"]].concat();
            assert_eq!(s.run(&all).ok(), format!("{want}\n"), "{template}");
        }
    }
    let json = s
        .run(&["volume", "inspect", "-f", "{{json .}}", "vol"])
        .ok();
    assert!(!json.contains("Status"), "{json}");
    s.run(&["volume", "inspect", "-f", "{{.Nope}}", "vol"])
        .fails(1, "Nope");
    s.run(&["volume", "rm", "vol"]).ok();
}

#[test]
fn inspect_templates() {
    let s = Sandbox::ready();
    web(&s);
    for (template, want) in [
        ("{{.State.Running}} {{.State.Status}}", "false created"),
        ("{{.Name}}", "/web"),
        ("{{.Config.Labels}}", "map[b: com.example.a:x]"),
        ("{{index .Config.Labels \"com.example.a\"}}", "x"),
        (
            "{{index .Config.Labels \"nope\"}}{{.Config.Labels.nope}}",
            "<no value>",
        ),
        (
            "{{json .Config.Cmd}} {{.Config.Cmd}}",
            "[\"exit\",\"3\"] [exit 3]",
        ),
        ("{{join .Config.Entrypoint \",\"}}", "/probe"),
        (
            "{{range $i, $m := .Mounts}}{{$i}}:{{$m.Type}}={{$m.Name}}{{end}}",
            "0:volume=data",
        ),
        (
            "{{(index (index .HostConfig.PortBindings \"80/tcp\") 0).HostPort}}",
            "18080",
        ),
        (
            "{{range $k, $v := .NetworkSettings.Networks}}{{$k}}{{end}}",
            "bridge",
        ),
        (
            "{{if .State.Running}}up{{else}}down{{end}} {{len .Id}} {{slice .Id 0 0}}",
            "down 64 ",
        ),
        ("{{upper .Name | printf \"%-6s|\"}}", "/WEB  |"),
    ] {
        assert_eq!(inspect(&s, template), want, "{template}");
    }
    let text = s.run(&["inspect", "--format", "json", "web"]).ok();
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list[0]["Name"], "/web");
    assert_eq!(text.lines().count(), 1);
    let pretty = s.run(&["inspect", "web"]).ok();
    assert!(pretty.starts_with("[\n    {\n        \""), "{pretty}");
    s.run(&["rm", "web"]).ok();
    s.run(&["volume", "rm", "data"]).ok();
}

#[test]
fn templates_that_are_wrong() {
    let s = Sandbox::ready();
    web(&s);
    let fails = |args: &[&str], code, text: &str| {
        s.run(args).fails(code, text);
    };
    fails(
        &["inspect", "-f", "{{.Nope}}", "web"],
        1,
        "template parsing error: template: :1:2: executing \"\" at <.Nope>: map has no entry for key \"Nope\"",
    );
    fails(
        &["inspect", "-f", "{{.Id", "web"],
        64,
        "template parsing error: template: :1: unclosed action",
    );
    fails(
        &["ps", "-a", "--format", "{{.Nope}}"],
        1,
        "failed to execute template: template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in type *formatter.ContainerContext",
    );
    fails(
        &["images", "--format", "{{nope}}"],
        1,
        "template parsing error: template: :1: function \"nope\" not defined",
    );
    fails(
        &["inspect", "--type", "bogus", "web"],
        1,
        "unknown type: \"bogus\": must be one of",
    );
    fails(
        &["inspect", "--type", "image", "web"],
        1,
        "No such image: web",
    );
    s.run(&["rm", "web"]).ok();
    s.run(&["volume", "rm", "data"]).ok();
}

#[test]
fn lists_as_tables_json_and_templates() {
    let s = Sandbox::ready();
    web(&s);
    let ps = |format: &str| s.run(&["ps", "-a", "--format", format]).ok();
    let header = s.run(&["ps"]).ok();
    assert_eq!(
        header,
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    );
    assert_eq!(ps("{{.Names}}\\t{{.Label \"com.example.a\"}}"), "web\tx\n");
    assert_eq!(
        ps("table {{.Names}}\\t{{.Image}}\\t{{.Mounts}}"),
        "NAMES     IMAGE         MOUNTS\nweb       probe-linux   data\n"
    );
    let row: Value = serde_json::from_str(&ps("json")).unwrap();
    assert_eq!(row["Names"], "web");
    assert_eq!(row["Command"], "\"/probe exit 3\"");
    assert_eq!(row["Labels"], "b=,com.example.a=x");
    assert_eq!(row["State"], "created");
    assert_eq!(row["LocalVolumes"], "1");
    assert_eq!(row["Size"], "0B");
    let row: Value = serde_json::from_str(&ps("{{json .}}")).unwrap();
    assert!(row["Size"].as_str().unwrap().contains("virtual"), "{row}");

    let text = s
        .run(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])
        .ok();
    assert!(text.contains("probe-linux:latest "), "{text}");
    let digests = s.run(&["images", "--digests"]).ok();
    assert!(digests.starts_with("REPOSITORY   "), "{digests}");
    assert!(
        digests.lines().next().unwrap().contains("DIGEST"),
        "{digests}"
    );
    assert_eq!(
        s.run(&["images", "-q", "--filter", "reference=probe-l*"])
            .ok()
            .lines()
            .count(),
        1
    );
    s.run(&["images", "--filter", "dangling=maybe"]).fails(
        1,
        "Error response from daemon: invalid filter 'dangling=[maybe]'",
    );
    assert_eq!(
        s.run(&["volume", "ls"]).ok(),
        "DRIVER    VOLUME NAME\nlocal     data\n"
    );
    assert_eq!(
        s.run(&["volume", "ls", "-f", "dangling=true", "-q"]).ok(),
        ""
    );
    let row = s.run(&["volume", "ls", "--format", "json"]).ok();
    let row: Value = serde_json::from_str(&row).unwrap();
    assert_eq!(
        (&row["Name"], &row["Links"]),
        (&"data".into(), &"N/A".into())
    );
    s.run(&["volume", "ls", "-f", "bogus=1"])
        .fails(1, "Error response from daemon: invalid filter 'bogus'");
    s.run(&["rm", "web"]).ok();
    s.run(&["volume", "rm", "data"]).ok();
}
