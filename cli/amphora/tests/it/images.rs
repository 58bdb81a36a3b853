//! The image store: what fails changes nothing, what is odd stops nothing.

use std::path::Path;

use serde_json::{Value, json};

use crate::fixtures::{Blob, Image, Wrap, busybox_image, digest, file, tarball};
use crate::registry::Registry;
use crate::sandbox::{Sandbox, path};
use crate::terminal::Seat;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes an OCI archive of blobs with these entries in its index.
fn archive(to: &Path, tops: &[(&str, Value)], blobs: &[Blob]) {
    let named = |(name, top): &(&str, Value)| {
        let mut top = top.clone();
        let name = format!("docker.io/library/{name}");
        top["annotations"] = json!({ "io.containerd.image.name": name });
        top
    };
    let tops: Vec<Value> = tops.iter().map(named).collect();
    let index = json!({ "schemaVersion": 2, "manifests": tops });
    let mut entries = vec![
        file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", 0o644, index.to_string()),
    ];
    for blob in blobs {
        let hex = digest(&blob.bytes).trim_start_matches("sha256:").to_owned();
        let name = format!("blobs/sha256/{hex}");
        entries.push(file(&name, 0o644, blob.bytes.clone()));
    }
    std::fs::write(to, tarball(&entries)).unwrap();
}

fn load(s: &Sandbox, tops: &[(&str, Value)], blobs: &[Blob]) -> crate::sandbox::Output {
    let to = s.dir.join("archive.tar");
    archive(&to, tops, blobs);
    s.run(&["load", "-i", path(&to)])
}

fn index(entries: &[Value]) -> Blob {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    Blob::new(INDEX, index.to_string())
}

fn small(name: &str, text: &str) -> Vec<Blob> {
    Image::new(name, json!({ "Cmd": ["/x"] }))
        .layer(&[file("x", 0o755, text)], Wrap::Plain)
        .blobs()
}

/// An artifact whose module is well formed and does not compile: it adds what is not there.
fn broken_module() -> Vec<Blob> {
    let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\
        \x07\x0a\x01\x06_start\0\0\x0a\x05\x01\x03\0\x6a\x0b";
    let config = Blob::new(
        "application/vnd.wasm.config.v0+json",
        r#"{"os":"wasip1","architecture":"wasm"}"#,
    );
    let layer = Blob::new("application/wasm", module.to_vec());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": config.media_type,
        "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    vec![Blob::new(MANIFEST, manifest.to_string()), config, layer]
}

fn listed(s: &Sandbox) -> Vec<String> {
    let text = s
        .run(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])
        .ok();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn blobs_held(s: &Sandbox) -> usize {
    let dir = s.root().join("blobs/sha256");
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_failed_load_leaves_every_name_what_it_was() {
    let s = Sandbox::new();
    let (base, web) = (busybox_image("base:1").blobs(), small("web:latest", "good"));
    load(&s, &[("base:1", base[0].descriptor())], &base).ok();
    load(&s, &[("web:latest", web[0].descriptor())], &web).ok();
    s.run(&["tag", "base:1", "mine:keep"]).ok();
    let (before, held) = (listed(&s), blobs_held(&s));
    assert_eq!(before.len(), 3, "{before:?}");

    let bad = broken_module();
    let tops = [
        ("base:1", base[0].descriptor()),
        ("web:latest", bad[0].descriptor()),
        ("web:bad", bad[0].descriptor()),
    ];
    let blobs: Vec<Blob> = base.into_iter().chain(bad).collect();
    let failed = load(&s, &tops, &blobs);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert_eq!(listed(&s), before);
    assert_eq!(blobs_held(&s), held, "what came with the bad image goes");
    s.run(&["run", "--rm", "mine:keep", "true"]).ok();
}

#[test]
fn a_failed_pull_leaves_the_name_what_it_was() {
    let s = Sandbox::new();
    let registry = Registry::start(&s);
    registry.push("app", "latest", &busybox_image("app").blobs());
    s.run(&["pull", "-q", "localhost:5000/app"]).ok();
    let before = listed(&s);
    registry.push("app", "latest", &broken_module());
    let failed = s.run(&["pull", "localhost:5000/app"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(
        !failed.stdout.contains("Downloaded newer image"),
        "{failed:?}"
    );
    assert_eq!(listed(&s), before);
    s.run(&["run", "--rm", "localhost:5000/app", "true"]).ok();
}

#[test]
fn an_index_that_was_not_fetched_stops_nothing() {
    let s = Sandbox::new();
    let mut blobs = small("multi:1", "here");
    let elsewhere = index(&[]);
    let top = index(&[blobs[0].descriptor(), elsewhere.descriptor()]);
    blobs.push(top.clone());
    load(&s, &[("multi:1", top.descriptor())], &blobs).ok();
    let other = small("other:1", "other");
    load(&s, &[("other:1", other[0].descriptor())], &other).ok();
    assert_eq!(listed(&s).len(), 2);
    s.run(&["rmi", "other:1"]).ok();
    s.run(&["rmi", "multi:1"]).ok();
    assert_eq!(blobs_held(&s), 0);
}

#[test]
fn a_dangling_index_is_removed_by_its_image_id() {
    let s = Sandbox::new();
    let old = small("multi:1", "old");
    let variant = small("variant", "another");
    let top = index(&[old[0].descriptor(), variant[0].descriptor()]);
    let id = digest(&old[1].bytes);
    let all: Vec<Blob> = old
        .into_iter()
        .chain(variant)
        .chain([top.clone()])
        .collect();
    load(&s, &[("multi:1", top.descriptor())], &all).ok();
    let new = small("multi:1", "new");
    load(&s, &[("multi:1", new[0].descriptor())], &new).ok();
    assert_eq!(listed(&s).len(), 2, "{:?}", listed(&s));
    assert_eq!(s.run(&["rmi", &id]).ok(), format!("Deleted: {id}\n"));
    assert_eq!(listed(&s).len(), 1, "{:?}", listed(&s));
    assert_eq!(blobs_held(&s), 3);
}

/// Four levels of indexes that each name the next one 300 times.
#[test]
fn what_is_named_often_is_looked_into_once() {
    let s = Sandbox::new();
    let mut blobs = small("deep:1", "x");
    let mut top = blobs[0].descriptor();
    for _ in 0..4 {
        let level = index(&vec![top; 300]);
        top = level.descriptor();
        blobs.push(level);
    }
    load(&s, &[("deep:1", top)], &blobs).ok();
    assert_eq!(listed(&s).len(), 1);
    s.run(&["rmi", "deep:1"]).ok();
    assert_eq!(blobs_held(&s), 0);
}

#[test]
fn as_many_layers_run_as_the_kernel_stacks_and_no_more_are_taken_in() {
    let s = Sandbox::new();
    let mut image = busybox_image("many:1");
    for n in image.layers.len()..499 {
        image = image.layer(&[file(&format!("f{n}"), 0o644, "x")], Wrap::Plain);
    }
    let blobs = image.blobs();
    load(&s, &[("many:1", blobs[0].descriptor())], &blobs).ok();
    s.run(&["run", "--rm", "many:1", "cat", "/f1", "/f498"])
        .ok();
    let blobs = image
        .layer(&[file("f499", 0o644, "x")], Wrap::Plain)
        .blobs();
    load(&s, &[("many:2", blobs[0].descriptor())], &blobs)
        .fails(1, "image has 500 layers, more than the 499");
    assert_eq!(listed(&s).len(), 1);
}

/// What an archive holds, by path.
fn unpacked(archive: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let file = std::fs::File::open(archive).unwrap();
    let mut out = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        assert!(out.insert(name, bytes).is_none(), "an entry twice");
    }
    out
}

/// Names and digests, of all images.
fn digests(s: &Sandbox) -> Vec<String> {
    let format = "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}";
    let out = s
        .run(&["images", "--no-trunc", "--digests", "--format", format])
        .ok();
    let mut lines: Vec<String> = out.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn saved_images_come_back_bit_for_bit() {
    let s = Sandbox::ready();
    s.run(&["tag", "probe-linux", "probe-linux:two"]).ok();
    let before = digests(&s);
    let (one, two) = (s.dir.join("one.tar"), s.dir.join("two.tar"));
    let names = ["probe-linux", "probe-wasm:latest", "probe-p1"];
    let save = |to: &Path| {
        let mut args = vec!["save", "-o", path(to)];
        args.extend(names);
        assert_eq!(s.run(&args).ok(), "");
    };
    save(&one);
    save(&two);
    let bytes = std::fs::read(&one).unwrap();
    assert_eq!(bytes, std::fs::read(&two).unwrap(), "not the same twice");
    // The same to a pipe, under the other name of the command.
    let mut command = s.command(&["image", "save"]);
    command.args(names);
    let piped = command.output().unwrap();
    assert!(piped.status.success() && piped.stdout == bytes);

    is_what_docker_writes(&one);
    s.run(&[
        "rmi",
        "-f",
        "probe-linux:two",
        "probe-linux",
        "probe-wasm",
        "probe-p1",
    ])
    .ok();
    assert_eq!(digests(&s), [""; 0]);
    s.run(&["load", "-i", path(&one)]).ok();
    assert_eq!(digests(&s), before);
    for image in names {
        assert_eq!(
            s.run(&["run", "--rm", image, "args", "again"]).ok(),
            "again\n"
        );
    }
    save(&two);
    assert_eq!(
        bytes,
        std::fs::read(&two).unwrap(),
        "not the same after a load"
    );
    for archive in [one, two] {
        std::fs::remove_file(archive).unwrap();
    }
}

/// Looks into an archive of the three probes, of which one has two names.
fn is_what_docker_writes(archive: &Path) {
    let files = unpacked(archive);
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    for (name, bytes) in &files {
        if let Some(hex) = name.strip_prefix("blobs/sha256/").filter(|h| !h.is_empty()) {
            assert_eq!(digest(bytes), format!("sha256:{hex}"));
        }
    }
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let tops = index["manifests"].as_array().unwrap();
    let annotation = |top: &Value, key: &str| top["annotations"][key].as_str().map(str::to_owned);
    let of = |key| {
        tops.iter()
            .filter_map(|t| annotation(t, key))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of("io.containerd.image.name"),
        [
            "docker.io/library/probe-linux:latest",
            "docker.io/library/probe-linux:two",
            "docker.io/library/probe-wasm:latest",
            "docker.io/library/probe-p1:latest",
        ]
    );
    assert_eq!(
        of("org.opencontainers.image.ref.name"),
        ["latest", "two", "latest", "latest"]
    );
    let listed: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(
        listed[0]["RepoTags"],
        json!(["probe-linux:latest", "probe-linux:two"])
    );
    for path in listed[0]["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&listed[0]["Config"]])
    {
        assert!(files.contains_key(path.as_str().unwrap()));
    }
}

#[test]
fn what_is_saved_and_what_is_refused() {
    let s = Sandbox::new();
    let here = busybox_image("duo").blobs();
    let there = Image::new("duo", json!({ "Cmd": ["/x"] }))
        .platform("wasip1", "wasm")
        .layer(&[file("x", 0o755, "x")], Wrap::Plain)
        .blobs();
    let mut tops = [here[0].descriptor(), there[0].descriptor()];
    tops[0]["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    tops[1]["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let index = Blob::new(
        INDEX,
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": tops }).to_string(),
    );
    // Only one of the two came along, as after a pull of one platform.
    let mut blobs = vec![index.clone()];
    blobs.extend(here.clone());
    load(&s, &[("duo:1", index.descriptor())], &blobs).ok();
    let to = s.dir.join("saved.tar");
    let saved = |args: &[&str]| {
        s.run(&[&["save", "-o", path(&to)], args].concat()).ok();
        let files = unpacked(&to);
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let listed: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        (index["manifests"].clone(), listed)
    };
    let (tops, listed) = saved(&["duo:1"]);
    assert_eq!(tops[0]["digest"], digest(&index.bytes));
    assert_eq!(listed[0]["RepoTags"], json!(["duo:1"]));
    let (tops, _) = saved(&["--platform", "linux/amd64", "duo:1", "duo"]);
    assert_eq!(tops.as_array().unwrap().len(), 1);
    assert_eq!(tops[0]["digest"], digest(&here[0].bytes));
    // By its id it has no name.
    let id = s.run(&["images", "-q", "--no-trunc"]).ok();
    let (tops, listed) = saved(&[id.trim()]);
    assert_eq!(
        (tops[0].get("annotations"), &listed[0]["RepoTags"]),
        (None, &Value::Null)
    );

    not_saved(&s, &to, &here[2]);
}

#[test]
fn images_recorded_by_an_earlier_version_are_found_by_their_id() {
    let s = Sandbox::ready();
    let id = s.run(&["images", "-q", "--no-trunc", "probe-linux"]).ok();
    let (id, records) = (id.trim(), s.root().join("images"));
    let age = || {
        for entry in std::fs::read_dir(&records).unwrap().flatten() {
            let bytes = std::fs::read(entry.path()).unwrap();
            let mut record: Value = serde_json::from_slice(&bytes).unwrap();
            record["version"] = json!(1);
            record["config"]["config"] = json!({});
            std::fs::write(entry.path(), record.to_string()).unwrap();
        }
    };
    s.run(&["create", "--name", "old", "probe-linux"]).ok();
    let before = s.run(&["image", "inspect", id]).ok();
    age();
    assert_eq!(s.run(&["image", "inspect", id]).ok(), before);
    age();
    s.run(&["run", "--rm", id]).ok();
    // One that cannot be looked into again hides no other.
    let blobs = s.root().join("blobs/sha256");
    let bare = s.run(&["images", "-q", "--no-trunc", "probe-p1"]).ok();
    let bare = blobs.join(bare.trim().trim_start_matches("sha256:"));
    let aside = s.dir.join("aside");
    std::fs::rename(&bare, &aside).unwrap();
    age();
    let names = || s.run(&["images", "--format", "{{.Repository}}"]).ok();
    assert!(names().contains("probe-linux\n") && !names().contains("probe-p1\n"));
    std::fs::rename(&aside, &bare).unwrap();
    assert!(names().contains("probe-p1\n"));
    age();
    s.run(&["commit", "old", "new"]).ok();
    s.run(&["rm", "old"]).ok();
    age();
    s.run(&["rmi", "new"]).ok();
    s.run(&["rmi", id]).ok();
    s.run(&["image", "inspect", id]).fails(1, "No such image");
    s.load_probes();
}

#[test]
fn what_rotted_is_named_removed_and_brought_again() {
    let s = Sandbox::ready();
    let show = |field: &str, name: &str| {
        let format = format!("{{{{{field}}}}}");
        let out = s.run(&["image", "inspect", "--format", &format, name]);
        out.ok().trim().to_owned()
    };
    let (bare, manifest) = (
        show(".Id", "probe-p1"),
        show(".Descriptor.digest", "probe-linux"),
    );
    let tear = || {
        for entry in std::fs::read_dir(s.root().join("images"))
            .unwrap()
            .flatten()
        {
            std::fs::write(entry.path(), "{").unwrap();
        }
    };
    let rot = || {
        tear();
        let hex = manifest.trim_start_matches("sha256:");
        let blob = s.root().join("blobs/sha256").join(hex);
        let len = std::fs::metadata(&blob).unwrap().len();
        std::fs::write(blob, vec![0; usize::try_from(len).unwrap()]).unwrap();
    };
    // A torn record alone is made anew.
    tear();
    let removed = s.run(&["rmi", &bare]).ok();
    assert_eq!(
        removed,
        format!("Untagged: probe-p1:latest\nDeleted: {bare}\n")
    );

    let removals = format!("Untagged: probe-linux:latest\nDeleted: {manifest}\n");
    for way in ["probe-linux", &manifest, &manifest[7..19]] {
        rot();
        let listed = s.run(&["images", "--format", "{{.Repository}}"]);
        assert_eq!(listed.stdout, "probe-wasm\n");
        let short = &manifest[7..19];
        let told = format!("image probe-linux:latest ({short}) is damaged");
        assert!(listed.stderr.contains(&told), "{listed:?}");
        assert_eq!(s.run(&["rmi", way]).ok(), removals);
        let listed = s.run(&["images", "-q"]);
        assert_eq!(listed.stderr, "");
        s.run(&["rmi", way]).fails(1, "No such image");
        s.load_probes();
        s.run(&["run", "--rm", "probe-linux"]).ok();
        s.run(&["rmi", "probe-p1"]).ok();
    }
    // Brought again it is whole.
    rot();
    s.load_probes();
    assert_eq!(s.run(&["images", "-q"]).stderr, "");
    s.run(&["run", "--rm", "probe-linux"]).ok();
}

#[test]
fn an_archive_is_written_behind_links() {
    let s = Sandbox::ready();
    let file = |name: &str| s.dir.join(name);
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, file(name)).unwrap();
    s.run(&["save", "-o", path(&file("plain.tar")), "probe-p1"])
        .ok();
    let plain = std::fs::read(file("plain.tar")).unwrap();
    std::fs::write(file("there.tar"), "old").unwrap();
    link("there.tar", "to-there");
    link(path(&file("to-there")), "to-link");
    link("new.tar", "to-new");
    for (name, real) in [("to-link", "there.tar"), ("to-new", "new.tar")] {
        s.run(&["save", "-o", path(&file(name)), "probe-p1"]).ok();
        assert!(file(name).is_symlink());
        assert!(!file(real).is_symlink());
        assert_eq!(std::fs::read(file(real)).unwrap(), plain, "{name}");
    }
    link("round", "round");
    s.run(&["save", "-o", path(&file("round")), "probe-p1"])
        .fails(1, "too many levels of symbolic links");
    assert!(file("round").is_symlink());
    // A pipe, and a file that has more in it already.
    let copy = file("copy.tar");
    let script = "\"$0\" save -o /dev/stdout probe-p1 | cat > \"$1\"; \
                  echo before > \"$2\"; \"$0\" save -o /dev/stdout probe-p1 >> \"$2\"";
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", script, env!("CARGO_BIN_EXE_amphora")])
        .args([&copy, &file("more.tar")])
        .env("AMPHORA_ROOT", s.root())
        .env("AMPHORA_RUN_ROOT", s.run_root());
    crate::sandbox::finish(shell).ok();
    assert_eq!(std::fs::read(&copy).unwrap(), plain);
    let more = std::fs::read(file("more.tar")).unwrap();
    assert_eq!(more, [b"before\n", plain.as_slice()].concat());
    assert!(std::path::Path::new("/dev/stdout").is_symlink());
}

/// What cannot be saved of `duo:1`, and what is left then; `layer` is one of its blobs.
fn not_saved(s: &Sandbox, to: &Path, layer: &Blob) {
    let missing = "was found but does not provide the specified platform (linux/s390x)";
    s.run(&["save", "-o", path(to), "--platform", "linux/s390x", "duo:1"])
        .fails(1, missing);
    s.run(&["save", "-o", path(to), "nosuch"])
        .fails(1, "No such image: nosuch:latest");
    s.run(&["save", "-o", "/nowhere/at/all.tar", "duo:1"])
        .fails(
            1,
            "failed to save image: invalid output path: directory \"/nowhere/at\" does not exist",
        );
    s.run(&["save", "-o", "/dev/null", "duo:1"]).fails(
        1,
        "failed to save image: invalid output path: \"/dev/null\" must be a directory or a regular \
         file: got a device",
    );
    let null = std::fs::metadata("/dev/null").unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&null));
    s.run(&["save", "-o", path(&s.dir), "duo:1"])
        .fails(1, "failed to save image: cannot write to a directory");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(to).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let mut seat = Seat::new(s, &["save", "duo:1"]);
    seat.hear("cowardly refusing to save to a terminal. Use the -o flag or redirect");
    assert_eq!(seat.end(), 1);
    // A damaged blob is found, and no half an archive stays.
    std::fs::remove_file(to).unwrap();
    let hex = digest(&layer.bytes)
        .trim_start_matches("sha256:")
        .to_owned();
    let blob = s.root().join("blobs/sha256").join(hex);
    let mut bytes = layer.bytes.clone();
    bytes[100] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    s.run(&["save", "-o", path(to), "duo:1"])
        .fails(1, "digest mismatch");
    let left: Vec<_> = std::fs::read_dir(&s.dir)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        !left.iter().any(|n| n.to_str().unwrap().contains("export")),
        "{left:?}"
    );
    assert!(!to.exists());
}

#[test]
fn docker_loads_what_is_saved() {
    let s = Sandbox::loaded();
    s.run(&["tag", "probe-linux", "probe-linux:two"]).ok();
    let to = s.dir.join("saved.tar");
    s.run(&["save", "-o", path(&to), "probe-linux"]).ok();
    let docker = crate::dockerd::Dockerd::start(&s);
    docker.docker(&["load", "-i", path(&to)]).ok();
    let format = "{{.Repository}}:{{.Tag}} {{.ID}}";
    let list = |out: crate::sandbox::Output| {
        let mut lines: Vec<String> = out.ok().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let args = ["images", "--no-trunc", "--format", format, "probe-linux"];
    let theirs = list(docker.docker(&args));
    assert_eq!(theirs.len(), 2);
    assert_eq!(theirs, list(s.run(&args)));
    docker.stop();
}
