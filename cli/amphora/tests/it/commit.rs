//! Images made of containers: diff, export, import, commit.

use std::collections::BTreeMap;
use std::fs;

use serde_json::json;

use crate::fixtures::{Wrap, busybox_image, dir, file};
use crate::sandbox::{Sandbox, path};

fn busybox() -> Sandbox {
    let s = Sandbox::new();
    let image = busybox_image("bb").layer(
        &[
            dir("d", 0o755),
            file("d/one", 0o644, "1"),
            file("d/two", 0o644, "2"),
            dir("gone", 0o755),
            file("gone/x", 0o644, "x"),
            file("f", 0o644, "f"),
            file("same", 0o644, "s"),
        ],
        Wrap::Gzip,
    );
    s.load_image(&image);
    s.run(&["run", "--rm", "bb", "true"]).ok();
    s.settle();
    s
}

/// Changes of every kind: content, mode, removal, replacement of a directory, a file turned into a
/// directory, links of both kinds.
const SCRIPT: &str = "echo new > /made; busybox mkdir -p /deep/er; echo 3 >> /d/one; \
    rm -r /gone; rm -r /d/two; busybox chmod 600 /same; rm /f; mkdir /f; echo in > /f/in; \
    busybox ln /made /hard; ln -s made /soft; busybox chmod 4711 /made; \
    busybox mv /etc/group /etc/group2; rm -r /root; mkdir /root; echo r > /root/r";

#[test]
fn diff_lists_every_kind_of_change() {
    let s = busybox();
    s.run(&["create", "--name", "still", "bb"]).ok();
    assert_eq!(s.run(&["diff", "still"]).ok(), "");
    s.run(&["diff", "ghost"])
        .fails(1, "No such container: ghost");
    s.run(&[
        "run",
        "--name",
        "box",
        "-v",
        "vv:/mnt/vol",
        "bb",
        "sh",
        "-c",
        SCRIPT,
    ])
    .ok();
    let wanted = "C /d\nC /d/one\nD /d/two\nA /deep\nA /deep/er\nC /etc\nD /etc/group\nA /etc/group2\n\
        C /f\nA /f/in\nD /gone\nA /hard\nA /made\nA /mnt\nA /mnt/vol\nC /root\nA /root/r\nC /same\nA /soft\n";
    assert_eq!(s.run(&["diff", "box"]).ok(), wanted);
    // The same while it runs.
    s.run(&[
        "run",
        "-d",
        "--name",
        "live",
        "bb",
        "sh",
        "-c",
        "echo x > /x; busybox sleep 600",
    ])
    .ok();
    crate::sandbox::wait_until("the file", std::time::Duration::from_secs(10), || {
        s.run(&["diff", "live"]).ok() == "A /x\n"
    });
    s.run(&["rm", "-f", "-v", "live", "box"]).ok();
    s.run(&["volume", "rm", "vv"]).ok();
}

#[test]
fn a_wasm_container_s_changes_are_listed_and_committed() {
    let s = Sandbox::ready();
    for image in ["probe-wasm", "probe-p1"] {
        s.run(&[
            "run", "--name", "box", "-e", "K=v", image, "write", "/note", "kept",
        ])
        .ok();
        assert_eq!(s.run(&["diff", "box"]).ok(), "A /note\n");
        let id = s.run(&["commit", "-m", "wasm too", "box", "made:1"]).ok();
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(s.inspect("made:1")["Id"], id.trim());
        assert_eq!(
            s.run(&["run", "--rm", "made:1", "cat", "/note"]).ok(),
            "kept\n"
        );
        assert!(
            s.run(&["run", "--rm", "made:1", "env"])
                .ok()
                .contains("K=v\n")
        );
        // And once more upon that.
        s.run(&["run", "--name", "again", "made:1", "rm", "/note"])
            .ok();
        s.run(&["commit", "again", "made:2"]).ok();
        assert_eq!(s.run(&["run", "--rm", "made:2", "cat", "/note"]).code, 1);
        s.run(&["create", "--name", "look", "made:2"]).ok();
        assert_eq!(s.inspect("look")["Executor"]["Kind"], "wasm");
        s.run(&["rm", "look", "again", "box"]).ok();
        s.run(&["rmi", "made:1", "made:2"]).ok();
    }
}

#[test]
fn a_committed_container_is_an_image_that_runs() {
    let s = busybox();
    s.run(&[
        "run", "--name", "box", "-w", "/tmp", "bb", "sh", "-c", SCRIPT,
    ])
    .ok();
    let before = s.inspect("bb");
    let id = s
        .run(&[
            "commit",
            "-a",
            "A. Uthor",
            "-m",
            "changed",
            "box",
            "local/made:v1",
        ])
        .ok();
    let image = s.inspect("local/made:v1");
    assert_eq!(image["Id"], id.trim());
    assert_eq!(image["Author"], "A. Uthor");
    let layers = |v: &serde_json::Value| v["RootFS"]["Layers"].as_array().unwrap().len();
    assert_eq!(layers(&image), layers(&before) + 1);
    assert_eq!(image["Config"]["WorkingDir"], "/tmp");
    assert_eq!(image["Config"]["Cmd"], json!(["sh", "-c", SCRIPT]));
    let look = "cat /made /d/one /f/in /root/r; ls /d; ls /root; test -e /gone || echo gone; \
        stat -c %a:%h /made /same; readlink /soft; test -e /etc/group || echo moved";
    let seen = s
        .run(&["run", "--rm", "local/made:v1", "sh", "-c", look])
        .ok();
    assert_eq!(
        seen,
        "new\n13\nin\nr\none\nr\ngone\n4711:2\n600:1\nmade\nmoved\n"
    );
    // Exactly the same files as the container has.
    assert_eq!(listing(&s, "box"), {
        s.run(&["create", "--name", "copy", "local/made:v1"]).ok();
        listing(&s, "copy")
    });
    s.run(&["rm", "copy", "box"]).ok();
    s.run(&["rmi", "local/made:v1"]).ok();
}

/// Path, mode and size of all that `export` gives.
fn listing(s: &Sandbox, name: &str) -> BTreeMap<String, (u32, u64)> {
    let file = s.dir.join("listing.tar");
    s.run(&["export", "-o", path(&file), name]).ok();
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let entry = |e: tar::Entry<'_, &[u8]>| {
        let name = e.path().unwrap().display().to_string();
        (name, (e.header().mode().unwrap(), e.size()))
    };
    archive
        .entries()
        .unwrap()
        .map(|e| entry(e.unwrap()))
        .collect()
}

#[test]
fn commit_takes_instructions_and_pauses() {
    let s = busybox();
    s.run(&[
        "run",
        "-d",
        "--name",
        "box",
        "-e",
        "FROM_RUN=1",
        "-v",
        "/anon",
        "bb",
        "sleep",
        "600",
    ])
    .ok();
    let mut args = vec!["commit"];
    for change in [
        "CMD [\"echo\", \"from the image\"]",
        "ENV ADDED=\"two words\" PATH=/bin:/sbin",
        "EXPOSE 80 53/udp",
        "LABEL who=me",
        "ONBUILD RUN true",
        "USER alice",
        "VOLUME /data",
        "WORKDIR /etc",
    ] {
        args.extend(["-c", change]);
    }
    args.extend(["box", "changed"]);
    s.run(&args).ok();
    assert_eq!(s.inspect("box")["State"]["Status"], "running");
    let config = s.inspect("changed")["Config"].clone();
    assert_eq!(config["Cmd"], json!(["echo", "from the image"]));
    let env = config["Env"].as_array().unwrap();
    for line in ["FROM_RUN=1", "ADDED=two words", "PATH=/bin:/sbin"] {
        assert!(env.contains(&json!(line)), "{line}: {env:?}");
    }
    assert_eq!(
        config["ExposedPorts"],
        json!({ "80/tcp": {}, "53/udp": {} })
    );
    assert_eq!(config["Labels"], json!({ "who": "me" }));
    assert_eq!(config["OnBuild"], json!(["RUN true"]));
    assert_eq!(
        (&config["User"], &config["WorkingDir"]),
        (&json!("alice"), &json!("/etc"))
    );
    assert_eq!(config["Volumes"], json!({ "/anon": {}, "/data": {} }));
    assert_eq!(s.run(&["run", "--rm", "changed"]).ok(), "from the image\n");
    s.run(&["commit", "-c", "RUN x", "box"])
        .fails(1, "RUN is not a valid change command");
    s.run(&["commit", "box", "UPPER"])
        .fails(1, "must be lowercase");
    s.run(&["commit", "ghost"])
        .fails(1, "No such container: ghost");
    // One that is paused stays so; one that is not to be paused is not.
    s.run(&["pause", "box"]).ok();
    let id = s.run(&["commit", "--pause=false", "box"]).ok();
    assert_eq!(s.inspect("box")["State"]["Status"], "paused");
    s.run(&["rmi", id.trim()]).ok();
    s.run(&["rm", "-f", "-v", "box"]).ok();
    // Without changes there is no new layer.
    s.run(&["create", "--name", "made", "bb"]).ok();
    s.run(&["commit", "made", "empty"]).ok();
    assert_eq!(s.inspect("empty")["RootFS"], s.inspect("bb")["RootFS"]);
    s.run(&["run", "--rm", "empty", "true"]).ok();
    s.run(&["rm", "made"]).ok();
    s.run(&["rmi", "empty", "changed"]).ok();
}

#[test]
fn export_and_import_carry_a_root_over() {
    let s = busybox();
    s.run(&[
        "run",
        "--name",
        "box",
        "-v",
        "vv:/mnt",
        "bb",
        "sh",
        "-c",
        "echo hidden > /mnt/h; echo seen > /seen",
    ])
    .ok();
    let tar = s.dir.join("root.tar");
    s.run(&["export", "-o", path(&tar), "box"]).ok();
    let out = s.command(&["export", "box"]).output().unwrap();
    assert_eq!(out.stdout, fs::read(&tar).unwrap());
    let listed = listing(&s, "box");
    assert!(
        listed.contains_key("seen") && !listed.contains_key("mnt/h"),
        "{listed:?}"
    );
    s.run(&["export", "-o", "/no/such/dir/x", "box"]).fails(
        1,
        "failed to export container: invalid output path: directory \"/no/such/dir\" does not exist",
    );
    let id = s
        .run(&[
            "import",
            "-m",
            "moved",
            "-c",
            "CMD [\"/bin/cat\", \"/seen\"]",
            path(&tar),
            "moved:1",
        ])
        .ok();
    let image = s.inspect("moved:1");
    assert_eq!(image["Id"], id.trim());
    assert_eq!(image["Os"], "linux");
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    assert_eq!(s.run(&["run", "--rm", "moved:1"]).ok(), "seen\n");
    let zipped = zstd::encode_all(fs::read(&tar).unwrap().as_slice(), 1).unwrap();
    s.run_with_input(
        &["import", "--platform", "linux/arm64", "-", "arm"],
        &zipped,
    )
    .ok();
    assert_eq!(s.inspect("arm")["Architecture"], "arm64");
    s.run(&["image", "import", "https://example.org/x.tar"])
        .fails(1, "importing from a URL is not supported");
    s.run_with_input(
        &["import", "-"],
        b"no archive at all, but long enough to be looked at"
            .repeat(30)
            .as_slice(),
    )
    .fails(1, "tar");
    s.run(&["import", "/no/such/file"]).fails(1, "no such file");
    assert_eq!(s.run(&["images", "-q"]).ok().lines().count(), 3);
    fs::remove_file(&tar).unwrap();
    s.run(&["rm", "box"]).ok();
    s.run(&["volume", "rm", "vv"]).ok();
}
