//! Volumes and mounts: what is shared, filled, shown with other owners, and what is refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use serde_json::json;

use crate::fixtures::{Image, Wrap, dir, file, probe};
use crate::linux::busybox;
use crate::sandbox::{Output, Sandbox, path, tool, wait_for, wait_until};
use crate::supervisor::{calls_of, kill, supervisor_pid, traced};

both!(
    a_tmpfs_volume_is_one_for_all_who_use_it_at_a_time,
    folders_of_volumes_are_mounted_and_never_left,
    a_tmpfs_is_no_larger_than_was_said,
    an_image_is_mounted_read_only,
    a_volume_is_filled_from_the_image,
    volumes_of_others_are_taken_in_docker_s_order,
);

const OTHER: [&str; 2] = ["probe-linux", "probe-wasm"];

fn sh(s: &Sandbox, flags: &[&str], script: &str) -> Output {
    let mut args = vec!["run", "--rm"];
    args.extend(flags);
    args.extend(["bb", "sh", "-c", script]);
    s.run(&args)
}

pub(crate) fn tmpfs_volume(s: &Sandbox, name: &str, options: &str) {
    let o = format!("o={options}");
    s.run(&[
        "volume",
        "create",
        "-o",
        "type=tmpfs",
        "-o",
        "device=tmpfs",
        "-o",
        &o,
        name,
    ])
    .ok();
}

fn a_tmpfs_volume_is_one_for_all_who_use_it_at_a_time(image: &str) {
    let s = Sandbox::ready();
    tmpfs_volume(&s, "shm", "size=1m");
    let options = s.inspect("shm")["Options"].clone();
    assert_eq!(
        options,
        json!({ "type": "tmpfs", "device": "tmpfs", "o": "size=1m" })
    );
    s.run(&[
        "run", "-d", "--name", "one", "-v", "shm:/v", image, "sleep", "600",
    ])
    .ok();
    let run = |image: &str, words: &[&str]| {
        s.run(&[&["run", "--rm", "-v", "shm:/v", image], words].concat())
    };
    for (writer, reader) in [(0, 1), (1, 0)] {
        run(OTHER[writer], &["write", "/v/x", OTHER[writer]]).ok();
        let read = run(OTHER[reader], &["cat", "/v/x"]).ok();
        assert_eq!(read, format!("{}\n", OTHER[writer]));
    }
    // Nothing of it lies on the disk, and none of it is mounted on the host.
    let data = s.root().join("volumes/shm/_data");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    s.run(&["volume", "rm", "shm"])
        .fails(1, "remove shm: volume is in use - [");
    s.run(&["rm", "-f", "one"]).ok();
    // It is mounted anew by the next, who finds nothing.
    assert_eq!(run(image, &["ls", "/v"]).ok(), "");
    s.run(&["volume", "rm", "shm"]).ok();
}

#[test]
fn containers_that_start_together_share_a_file_system() {
    let s = busybox();
    tmpfs_volume(&s, "shm", "size=1m");
    let names = ["n1", "n2", "n3", "n4"];
    let mut started: Vec<_> = names
        .iter()
        .map(|name| {
            let script = "touch /v/$(hostname); exec sleep 600";
            s.command(&[
                "run", "-d", "--name", name, "-h", name, "-v", "shm:/v", "bb",
            ])
            .args(["sh", "-c", script])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
        })
        .collect();
    for child in &mut started {
        assert_eq!(wait_for(child), 0);
    }
    for name in names {
        wait_until("all four files", Duration::from_secs(10), || {
            s.run(&["exec", name, "ls", "/v"]).stdout == "n1\nn2\nn3\nn4\n"
        });
    }
    // Whoever takes over from a killed supervisor holds nothing: the container itself still has it.
    for name in names {
        kill(supervisor_pid(&s, name));
    }
    s.run(&["ps"]).ok();
    assert_eq!(sh(&s, &["-v", "shm:/v"], "ls /v").ok(), "n1\nn2\nn3\nn4\n");
    for name in names {
        s.run(&["rm", "-f", name]).ok();
    }
    s.run(&["volume", "rm", "shm"]).ok();
}

#[test]
fn a_killed_supervisor_s_folder_is_no_reason_for_a_second_file_system() {
    let s = busybox();
    tmpfs_volume(&s, "shm", "size=1m");
    let hold = [
        "run", "-d", "--name", "all", "-v", "shm:/v", "bb", "sleep", "600",
    ];
    s.run(&hold).ok();
    s.run(&["exec", "all", "mkdir", "/v/sub"]).ok();
    let sub = "src=shm,dst=/v,volume-subpath=sub";
    s.run(&[
        "run", "-d", "--name", "part", "--mount", sub, "bb", "sleep", "600",
    ])
    .ok();
    s.run(&["rm", "-f", "all"]).ok();
    // As long as its supervisor lives, the rest is there too.
    assert_eq!(sh(&s, &["-v", "shm:/v"], "ls /v").ok(), "sub\n");
    kill(supervisor_pid(&s, "part"));
    sh(&s, &["-v", "shm:/v"], "ls /v").fails(125, "volume shm is mounted by container");
    s.run(&["rm", "-f", "part"]).ok();
    assert_eq!(sh(&s, &["-v", "shm:/v"], "ls /v").ok(), "");
    s.run(&["volume", "rm", "shm"]).ok();
}

#[test]
fn a_start_beside_one_that_is_to_run_again_ends() {
    let s = busybox();
    tmpfs_volume(&s, "shm", "size=1m");
    let flags = [
        "run",
        "-d",
        "--name",
        "dead",
        "--restart",
        "always",
        "-v",
        "shm:/v",
        "bb",
    ];
    let script = "echo run >>/v/x; exec sleep 600";
    s.run(&[&flags[..], &["sh", "-c", script]].concat()).ok();
    let init = s.inspect("dead")["State"]["Pid"].as_i64().unwrap();
    kill(supervisor_pid(&s, "dead"));
    kill(i32::try_from(init).unwrap());
    let read = "until test -s /v/x; do sleep 0.1; done; cat /v/x; echo seen >/v/y; exec sleep 600";
    let mut start = s
        .command(&["run", "-d", "--name", "next", "-v", "shm:/v", "bb"])
        .args(["sh", "-c", read])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(wait_for(&mut start), 0);
    wait_until("both to share it", Duration::from_secs(10), || {
        s.run(&["exec", "dead", "cat", "/v/y"]).stdout == "seen\n"
    });
    // It was mounted anew, once.
    assert_eq!(s.run(&["logs", "next"]).ok(), "run\n");
    for name in ["dead", "next"] {
        assert_eq!(s.inspect(name)["State"]["Status"], "running");
        s.run(&["exec", name, "touch", "/v/z"]).ok();
    }
    let seen = sh(&s, &["-v", "shm:/v"], "ls /v").ok();
    assert_eq!(seen, "x\ny\nz\n");
    s.run(&["rm", "-f", "dead", "next"]).ok();
    s.run(&["volume", "rm", "shm"]).ok();
}

#[test]
fn a_damaged_container_stops_no_start() {
    let s = busybox();
    tmpfs_volume(&s, "shm", "size=1m");
    s.run(&["create", "--name", "hurt", "-v", "shm:/v", "bb"])
        .ok();
    let id = s.inspect("hurt")["Id"].as_str().unwrap().to_owned();
    sh(&s, &["-v", "shm:/v"], "touch /v/x").ok();
    assert!(s.run_root().join("volumes/shm").exists());
    let config = s.root().join("containers").join(id).join("config.json");
    let text = fs::read(&config).unwrap();
    fs::write(&config, "{").unwrap();
    assert_eq!(sh(&s, &["-v", "shm:/v"], "ls /v").ok(), "");
    fs::write(&config, text).unwrap();
    s.run(&["rm", "hurt"]).ok();
    s.run(&["volume", "rm", "shm"]).ok();
}

#[test]
fn a_start_that_fails_leaves_no_anonymous_volume() {
    let s = busybox();
    let spec = "dst=/v,volume-opt=type=tmpfs,volume-opt=device=tmpfs";
    let busy = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = format!("{}:80", busy.local_addr().unwrap().port());
    sh(&s, &["--mount", spec, "-p", &port], "true").fails(125, "address already in use");
    assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "");
    assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
    assert!(!s.run_root().join("volumes").exists());
}

#[test]
fn a_restarted_container_mounts_its_volume_again() {
    let s = busybox();
    tmpfs_volume(&s, "shm", "size=1m");
    let script = "test -e /v/x && exit 7; touch /v/x; sleep 1; exit 1";
    let flags = [
        "run",
        "-d",
        "--name",
        "again",
        "--restart",
        "on-failure:1",
        "-v",
        "shm:/v",
    ];
    s.run(&[&flags[..], &["bb", "sh", "-c", script]].concat())
        .ok();
    // Nobody else kept it between the two runs: both found it empty.
    wait_until("the second run to end", Duration::from_secs(15), || {
        let state = s.inspect("again");
        state["State"]["Status"] == "exited" && state["RestartCount"] == 1
    });
    assert_eq!(s.inspect("again")["State"]["ExitCode"], 1);
    s.run(&["rm", "-v", "again"]).ok();
    s.run(&["volume", "rm", "shm"]).ok();
}

fn folders_of_volumes_are_mounted_and_never_left(image: &str) {
    let s = Sandbox::ready();
    tmpfs_volume(&s, "shm", "size=1m");
    s.run(&["volume", "create", "own"]).ok();
    let own = s.root().join("volumes/own/_data");
    fs::create_dir_all(own.join("a/b")).unwrap();
    fs::write(own.join("a/b/leaf"), "deep\n").unwrap();
    for (link, target) in [
        ("out", "/etc"),
        ("up", "../.."),
        ("a/far", "../../../../../../etc"),
        ("loop", "loop"),
        ("in", "a/b"),
    ] {
        std::os::unix::fs::symlink(target, own.join(link)).unwrap();
    }
    let ls = |spec: &str| s.run(&["run", "--rm", "--mount", spec, image, "ls", "/v"]);
    let of = |folder: &str| format!("src=own,dst=/v,volume-subpath={folder}");
    for folder in ["a/b", "in", "a/../in", "./a/b"] {
        assert_eq!(ls(&of(folder)).ok(), "leaf\n", "{folder}");
    }
    for folder in ["out", "up", "a/far", "loop", "none", "a/b/leaf/x"] {
        let said = ls(&of(folder)).fails(125, "cannot access path");
        assert!(
            said.contains(&format!("volumes/own/_data/{folder}")),
            "{said}"
        );
    }
    for folder in ["/a", "../own", "a/../../x"] {
        ls(&of(folder)).fails(125, "subpath must be a relative path within the volume");
    }
    // A file alone, and a folder of a file system of its own.
    let leaf = "src=own,dst=/leaf,volume-subpath=a/b/leaf,ro";
    let read = s.run(&["run", "--rm", "--mount", leaf, image, "cat", "/leaf"]);
    assert_eq!(read.ok(), "deep\n");
    let write = s.run(&["run", "--rm", "--mount", leaf, image, "write", "/leaf", "x"]);
    assert_eq!(write.code, 1, "{write:?}");
    ls("src=shm,dst=/v,volume-subpath=none").fails(125, "cannot access path");
    // A destination that leads out of the root, by a link or by its text, ends in it.
    for target in ["/../../../v", "/v/../w"] {
        let spec = format!("src=own,dst={target},volume-subpath=a");
        let at = if target.ends_with('w') { "/w" } else { "/v" };
        let out = s.run(&["run", "--rm", "--mount", &spec, image, "ls", at]);
        assert_eq!(out.ok(), "b\nfar\n");
    }
    s.run(&["volume", "rm", "shm", "own"]).ok();
}

fn a_tmpfs_is_no_larger_than_was_said(image: &str) {
    let s = Sandbox::ready();
    let text = "x".repeat(100_000);
    let write = |size: &str| {
        let spec = format!("type=tmpfs,dst=/t,tmpfs-size={size}");
        s.run(&[
            "run", "--rm", "--mount", &spec, image, "write", "/t/x", &text,
        ])
    };
    write("256k").ok();
    assert_eq!(write("64k").code, 1);
    let spec = "type=tmpfs,dst=/t,ro";
    let refused = s.run(&["run", "--rm", "--mount", spec, image, "write", "/t/x", "y"]);
    assert_eq!(refused.code, 1, "{refused:?}");
}

fn an_image_is_mounted_read_only(image: &str) {
    let s = Sandbox::ready();
    let run = |spec: &str, words: &[&str]| {
        s.run(&[&["run", "--rm", "--mount", spec, image], words].concat())
    };
    let whole = "type=image,source=probe-linux,target=/im";
    assert_eq!(run(whole, &["cat", "/im/data/seed"]).ok(), "from image\n");
    assert_eq!(run(whole, &["write", "/im/data/x", "y"]).code, 1);
    let folder = "type=image,src=probe-linux:latest,dst=/im,image-subpath=data";
    assert_eq!(run(folder, &["ls", "/im"]).ok(), "seed\n");
    run("type=image,src=probe-linux,dst=/im,image-subpath=none", &[])
        .fails(125, "cannot access path probe-linux/none");
    run(
        "type=image,src=probe-linux,dst=/im,image-subpath=../..",
        &[],
    )
    .fails(125, "subpath must be a relative path within the image");
    run("type=image,src=ghost,dst=/im", &[]).fails(125, "No such image: ghost");
    run("type=image,src=probe-wasm,dst=/im", &[]).fails(125, "has no files");
    // What somebody mentions stays.
    let archive = s.dir.join("extra.tar");
    Image::new("files:latest", json!({}))
        .layer(
            &[dir("d", 0o755), file("d/f", 0o644, "text\n")],
            Wrap::Plain,
        )
        .write_docker(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    let spec = "type=image,src=files,dst=/im";
    s.run(&[
        "create", "--name", "user", "--mount", spec, image, "cat", "/im/d/f",
    ])
    .ok();
    s.run(&["rmi", "files"]).fails(1, "conflict");
    s.run(&["image", "prune", "-f"]).ok();
    assert_eq!(s.run(&["start", "-a", "user"]).ok(), "text\n");
    let shown = &s.inspect("user")["Mounts"][0];
    assert_eq!(
        (&shown["Type"], &shown["Source"], &shown["RW"]),
        (&json!("image"), &json!("files"), &json!(false))
    );
    s.run(&["rm", "user"]).ok();
    s.run(&["rmi", "files"]).ok();
    fs::remove_file(&archive).unwrap();
}

/// A probe of either kind with files to fill a volume from.
fn stocked(kind: &str, big: usize) -> Image {
    let wasm = kind == "probe-wasm";
    let target = if wasm {
        "wasm32-wasip1"
    } else {
        "x86_64-unknown-linux-musl"
    };
    let program = fs::read(probe(target)).expect("probe");
    let config = json!({ "Entrypoint": ["/probe"], "Env": ["PATH=/"], "WorkingDir": "/" });
    let mut entries = vec![dir("stock", 0o1775), dir("stock/deep", 0o700)];
    for n in 0..40 {
        entries.push(file(&format!("stock/deep/{n:02}"), 0o640, "text\n"));
    }
    entries.push(file("stock/big", 0o644, vec![b'x'; big]));
    entries.push(file("probe", 0o755, program));
    let image = Image::new("stocked:latest", config).layer(&entries, Wrap::Plain);
    if wasm {
        image.platform("wasi", "wasm")
    } else {
        image
    }
}

fn load_stocked(s: &Sandbox, kind: &str, big: usize) {
    let archive = s.dir.join("stocked.tar");
    stocked(kind, big).write_oci(&archive);
    s.run(&["load", "-q", "-i", path(&archive)]).ok();
    fs::remove_file(&archive).unwrap();
}

/// Checks that a copy of the image's directory is whole.
fn is_whole(data: &Path, big: usize) {
    let names = |at: &Path| fs::read_dir(at).unwrap().count();
    assert_eq!((names(data), names(&data.join("deep"))), (2, 40));
    assert_eq!(fs::metadata(data.join("big")).unwrap().len(), big as u64);
    assert_eq!(fs::metadata(data).unwrap().mode() & 0o7777, 0o1775);
    let mode = |name: &str| fs::metadata(data.join(name)).unwrap().permissions().mode();
    assert_eq!(
        (mode("deep") & 0o777, mode("deep/07") & 0o777),
        (0o700, 0o640)
    );
}

fn a_volume_is_filled_from_the_image(image: &str) {
    const BIG: usize = 300_000;
    let mut s = Sandbox::ready();
    load_stocked(&s, image, BIG);
    s.run(&["run", "--rm", "stocked"]).ok();
    s.settle();
    s.mark();
    let run = |flags: &[&str], words: &[&str]| {
        s.run(&[&["run", "--rm"], flags, &["stocked"], words].concat())
    };
    // Together, read-only, in a read-only container.
    let mut racers: Vec<_> = (0..4)
        .map(|_| {
            s.command(&[
                "run",
                "--rm",
                "--read-only",
                "-v",
                "own:/stock:ro",
                "stocked",
            ])
            .args(["ls", "/stock/deep"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
        })
        .collect();
    for child in &mut racers {
        let out = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
        assert_eq!((wait_for(child), out.lines().count()), (0, 40));
    }
    is_whole(&s.root().join("volumes/own/_data"), BIG);
    // A volume with anything in it is as it is, and one that is not to be filled stays empty.
    run(&["-v", "own:/stock"], &["rm", "/stock/big"]).ok();
    assert_eq!(run(&["-v", "own:/stock"], &["ls", "/stock"]).ok(), "deep\n");
    assert_eq!(
        run(&["-v", "bare:/stock:nocopy"], &["ls", "/stock"]).ok(),
        ""
    );
    let nocopy = "src=bare,dst=/stock,volume-nocopy";
    assert_eq!(run(&["--mount", nocopy], &["ls", "/stock"]).ok(), "");
    // A folder of a volume, and a file system of its own.
    let bare = s.root().join("volumes/bare/_data");
    fs::create_dir(bare.join("sub")).unwrap();
    let sub = "src=bare,dst=/stock,volume-subpath=sub";
    assert_eq!(
        run(&["--mount", sub], &["ls", "/stock"]).ok(),
        "big\ndeep\n"
    );
    is_whole(&bare.join("sub"), BIG);
    tmpfs_volume(&s, "shm", "size=2m");
    let seen = run(&["-v", "shm:/stock"], &["ls", "/stock"]).ok();
    assert_eq!(seen, "big\ndeep\n");
    // One that is too small: said with its name, and nothing of it stays half filled.
    tmpfs_volume(&s, "small", "size=64k");
    let keep = [
        "run", "-d", "--name", "keep", "-v", "small:/v", "stocked", "sleep", "600",
    ];
    s.run(&keep).ok();
    let said = run(&["-v", "small:/stock"], &["ls", "/stock"]);
    said.fails(125, "/stock/big");
    assert_eq!(run(&["-v", "small:/v"], &["ls", "/v"]).ok(), "");
    s.run(&["rm", "-f", "keep"]).ok();
    s.run(&["volume", "rm", "own", "bare", "shm", "small"]).ok();
}

#[test]
fn a_full_disk_leaves_no_half_volume() {
    const BIG: usize = 8 << 20;
    let s = Sandbox::with_tmpfs("size=48m");
    load_stocked(&s, "probe-linux", BIG);
    s.run(&["run", "--rm", "stocked"]).ok();
    let filler = s.dir.join("filler");
    let taken = fs::File::create(&filler).unwrap();
    let mut size = 48 << 20;
    while rustix::fs::fallocate(&taken, rustix::fs::FallocateFlags::empty(), 0, size).is_err() {
        size -= 1 << 20;
    }
    let run = || s.run(&["run", "--rm", "-v", "own:/stock", "stocked", "ls", "/stock"]);
    run().fails(
        125,
        "failed to copy \"/stock/big\": No space left on device",
    );
    let folder = s.root().join("volumes/own");
    assert_eq!(fs::read_dir(folder.join("_data")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "staging is left");
    fs::remove_file(&filler).unwrap();
    drop(taken);
    assert_eq!(run().ok(), "big\ndeep\n");
    is_whole(&folder.join("_data"), BIG);
    s.run(&["volume", "rm", "own"]).ok();
}

#[test]
fn a_start_killed_at_any_step_fills_and_shares_in_the_end() {
    const BIG: usize = 20_000;
    let mut s = Sandbox::ready();
    load_stocked(&s, "probe-linux", BIG);
    s.run(&["run", "--rm", "stocked"]).ok();
    s.settle();
    s.mark();
    let create = [
        "create",
        "--name",
        "victim",
        "-v",
        "own:/stock",
        "-v",
        "shm:/shm",
        "stocked",
        "sleep",
        "600",
    ];
    let make = || {
        tmpfs_volume(&s, "shm", "size=1m");
        s.run(&create).ok();
    };
    let clear = || {
        s.run(&["rm", "-f", "victim"]).ok();
        s.run(&["volume", "rm", "own", "shm"]).ok();
    };
    make();
    let start = ["start", "victim"];
    let calls = calls_of(&s, &start);
    clear();
    let mut harmed = 0;
    for step in (0..calls.len()).step_by(37) {
        let name = &calls[step];
        if name.starts_with("exit") || name == "execve" {
            continue;
        }
        make();
        let when = calls[..=step].iter().filter(|c| *c == name).count();
        let inject = format!("inject={name}:signal=KILL:when={when}");
        let trace = format!("trace={name}");
        let options = ["-o", "/dev/null", "-e", &trace, "-e", &inject];
        harmed += usize::from(!traced(&s, &options, &start).success());
        let mut ran = s.run(&start);
        wait_until("the victim to be free", Duration::from_secs(10), || {
            if ran.code != 0 {
                ran = s.run(&start);
            }
            ran.code == 0
        });
        is_whole(&s.root().join("volumes/own/_data"), BIG);
        let mount = [
            "run",
            "--rm",
            "-v",
            "shm:/shm",
            "probe-wasm",
            "write",
            "/shm/x",
            "y",
        ];
        s.run(&mount).ok();
        assert_eq!(
            s.run(&["exec", "victim", "/probe", "ls", "/shm"]).ok(),
            "x\n"
        );
        clear();
    }
    assert!(harmed > 3, "only {harmed} were harmed");
}

fn volumes_of_others_are_taken_in_docker_s_order(image: &str) {
    let s = Sandbox::ready();
    let donor = |name: &str, mounts: &[&str]| {
        let mut args = vec!["run", "--name", name];
        args.extend(mounts);
        args.extend([image, "write", "/v/who", name]);
        s.run(&args).ok();
    };
    donor("first", &["-v", "one:/v", "--mount", "type=tmpfs,dst=/t"]);
    donor("second", &["-v", "/v", "--tmpfs", "/own"]);
    let who =
        |flags: &[&str]| s.run(&[&["run", "--rm"], flags, &[image, "cat", "/v/who"]].concat());
    assert_eq!(who(&["--volumes-from", "first"]).ok(), "first\n");
    // The last one counts, and what the container itself has before all of them.
    let both = ["--volumes-from", "first", "--volumes-from", "second:ro"];
    assert_eq!(who(&both).ok(), "second\n");
    assert_eq!(who(&[&both[..], &["-v", "/v"]].concat()).code, 1);
    let tmp = [
        "--read-only",
        "--volumes-from",
        "first",
        image,
        "write",
        "/t/x",
        "y",
    ];
    s.run(&[&["run", "--rm"], &tmp[..]].concat()).ok();
    let ro = ["--volumes-from", "first:ro", image, "write", "/v/x", "y"];
    assert_eq!(s.run(&[&["run", "--rm"], &ro[..]].concat()).code, 1);
    who(&["--volumes-from", "first:bad"]).fails(125, "invalid mode: bad");
    who(&["--volumes-from", "first:rslave"]).fails(125, "invalid mode: rslave");
    who(&["--volumes-from", ""]).fails(125, "volumes-from specification cannot be an empty string");
    // An anonymous volume goes with the last that has it.
    let heir = [
        "create",
        "--name",
        "heir",
        "--volumes-from",
        "second",
        image,
    ];
    s.run(&heir).ok();
    let volumes = || s.run(&["volume", "ls", "-q", "-f", "dangling=false"]).ok();
    s.run(&["rm", "-v", "second"]).ok();
    assert_eq!(volumes().lines().count(), 2);
    s.run(&["rm", "-v", "heir"]).ok();
    assert_eq!(volumes(), "one\n");
    s.run(&["rm", "-v", "first"]).ok();
    assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "one\n");
    s.run(&["volume", "rm", "one"]).ok();
}

#[test]
fn ids_of_a_bind_are_shown_as_others() {
    let s = busybox();
    let bound = s.dir.join("bound");
    fs::create_dir(&bound).unwrap();
    fs::write(bound.join("f"), "text").unwrap();
    std::os::unix::fs::chown(bound.join("f"), Some(5), Some(6)).unwrap();
    let spec = |map: &str| format!("type=bind,src={},dst=/b,idmap={map}", path(&bound));
    let both = spec("uids=5-1005-1#0-0-1;gids=0-2000-10#100-0-1");
    let shown = sh(&s, &["--mount", &both], "stat -c %u:%g /b/f; touch /b/new").ok();
    assert_eq!(shown, "1005:2006\n");
    let new = sh(
        &s,
        &["--mount", &both],
        "chown 1005:2003 /b/new; stat -c %u:%g /b/new",
    )
    .ok();
    assert_eq!(new, "1005:2003\n");
    let meta = fs::metadata(bound.join("new")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (5, 3));
    // What has no number inside is nobody's, and ids without a map stay.
    let users = spec("uids=0-0-1");
    let shown = sh(&s, &["--mount", &users], "stat -c %u:%g /b/f").ok();
    assert_eq!(shown, "65534:6\n");
    for (map, why) in [
        ("uids=0-0-0", "invalid value for idmap: uids=0-0-0"),
        ("uids=0-0-2#1-5-1", "ranges overlap"),
        ("odd", "invalid value for idmap: odd"),
    ] {
        sh(&s, &["--mount", &spec(map)], "true").fails(125, why);
    }
    let bare = format!("type=bind,src={},dst=/b,idmap", path(&bound));
    sh(&s, &["--mount", &bare], "true").fails(125, "option 'idmap' needs a mapping");
    let volume = "src=vol,dst=/b,idmap=uids=0-0-1";
    sh(&s, &["--mount", volume], "true").fails(125, "cannot mix 'bind-*' options");
    // proc has no ids to map.
    let proc = "type=bind,src=/proc,dst=/b,idmap=uids=0-1-1";
    sh(&s, &["--mount", proc], "true").fails(125, "cannot show other ids");
    fs::remove_dir_all(&bound).unwrap();
}

#[test]
fn mounts_travel_as_far_as_was_said() {
    let s = busybox();
    let top = s.dir.join("top");
    fs::create_dir(&top).unwrap();
    let none = MountFlags::empty();
    mount("tmpfs", &top, "tmpfs", none, None).unwrap();
    for name in ["host", "inside"] {
        fs::create_dir(top.join(name)).unwrap();
    }
    let spec = |mode: &str| format!("{}:/top:{mode}", path(&top));
    for mode in ["rshared", "rslave", "shared", "slave"] {
        let said = sh(&s, &["-v", &spec(mode)], "true").fails(125, "but it is not a shared");
        assert!(
            said.contains(&format!("is mounted on {}", path(&top))),
            "{said}"
        );
    }
    mount_change(&top, MountPropagationFlags::SHARED).unwrap();
    for (mode, inwards, outwards) in [
        ("rshared", true, true),
        ("rslave", true, false),
        ("rprivate", false, false),
    ] {
        let inner = "mount -t tmpfs x /top/inside && touch /top/inside/theirs && exec sleep 600";
        let flags = [
            "run",
            "-d",
            "--name",
            "cc",
            "--privileged",
            "-v",
            &spec(mode),
        ];
        s.run(&[&flags[..], &["bb", "sh", "-c", inner]].concat())
            .ok();
        wait_until("the container's mount", Duration::from_secs(10), || {
            s.run(&["exec", "cc", "test", "-e", "/top/inside/theirs"])
                .code
                == 0
        });
        mount("tmpfs", top.join("host"), "tmpfs", none, None).unwrap();
        fs::write(top.join("host/ours"), "").unwrap();
        let seen = s.run(&["exec", "cc", "test", "-e", "/top/host/ours"]).code == 0;
        assert_eq!(seen, inwards, "{mode} from the host");
        assert_eq!(
            top.join("inside/theirs").exists(),
            outwards,
            "{mode} to the host"
        );
        unmount(top.join("host"), UnmountFlags::DETACH).unwrap();
        s.run(&["rm", "-f", "cc"]).ok();
        if outwards {
            unmount(top.join("inside"), UnmountFlags::DETACH).unwrap();
        }
        assert!(!top.join("inside/theirs").exists());
    }
    unmount(&top, UnmountFlags::DETACH).unwrap();
    fs::remove_dir(&top).unwrap();
}

#[test]
fn what_lies_below_a_read_only_bind_is_read_only_unless_said() {
    let s = busybox();
    let top = s.dir.join("top");
    fs::create_dir_all(top.join("below")).unwrap();
    mount(
        "tmpfs",
        top.join("below"),
        "tmpfs",
        MountFlags::empty(),
        None,
    )
    .unwrap();
    let spec = |more: &str| format!("type=bind,src={},dst=/top,{more}", path(&top));
    let write =
        |more: &str, to: &str| sh(&s, &["--mount", &spec(more)], &format!("touch /top/{to}x")).code;
    assert_eq!((write("ro", ""), write("ro", "below/")), (1, 1));
    let writable = "ro,bind-recursive=writable";
    assert_eq!((write(writable, ""), write(writable, "below/")), (1, 0));
    let forced = "ro,bind-propagation=rprivate,bind-recursive=readonly";
    assert_eq!((write(forced, ""), write(forced, "below/")), (1, 1));
    assert!(top.join("below/x").exists());
    for alone in ["bind-nonrecursive", "bind-recursive=disabled"] {
        let seen = sh(&s, &["--mount", &spec(alone)], "ls /top/below").ok();
        assert_eq!(seen, "");
    }
    unmount(top.join("below"), UnmountFlags::DETACH).unwrap();
    fs::remove_dir_all(&top).unwrap();
}

#[test]
fn what_cannot_be_mounted_is_said_with_volume_and_device() {
    let s = busybox();
    let create = |name: &str, options: &[&str]| {
        let mut args = vec!["volume", "create"];
        options.iter().for_each(|o| args.extend(["-o", *o]));
        args.push(name);
        s.run(&args).ok();
    };
    create("lost", &["type=none", "o=bind", "device=/no/such"]);
    create("odd", &["type=odd", "device=/dev/null"]);
    create("told", &["type=tmpfs", "device=tmpfs", "o=odd=1"]);
    create("null", &["type=ext4", "device=/dev/null", "o=noatime"]);
    create(
        "far",
        &["type=nfs", "device=:/srv", "o=addr=no.such.host.invalid"],
    );
    for (name, why) in [
        (
            "lost",
            "mount /no/such:*, flags: 0x1000: no such file or directory",
        ),
        ("odd", "mount /dev/null:*: no such device"),
        (
            "told",
            "mount tmpfs:*, data: odd=1: invalid argument (tmpfs: Unknown parameter 'odd')",
        ),
        ("null", "mount /dev/null:*, flags: 0x400: "),
        (
            "far",
            "error resolving passed in network volume address of :/srv:*",
        ),
    ] {
        let place = s.root().join(format!("volumes/{name}/_data"));
        let bind = format!("{name}:/v");
        let said = sh(&s, &["-v", "other:/w", "-v", &bind], "true").fails(125, path(&place));
        let want = why.replace('*', path(&place));
        assert!(said.contains(&want), "{want}\n{said}");
        // The container is gone, the volume as it was.
        assert_eq!(s.run(&["ps", "-aq"]).ok(), "");
        s.run(&["volume", "rm", name]).ok();
    }
    s.run(&["volume", "rm", "other"]).ok();
}

#[test]
fn a_volume_can_be_a_path_of_the_host_or_a_disk() {
    let s = busybox();
    let place = s.dir.join("place");
    fs::create_dir_all(place.join("sub")).unwrap();
    let device = format!("device={}", path(&place));
    let create = [
        "volume",
        "create",
        "-o",
        "type=none",
        "-o",
        "o=bind",
        "-o",
        &device,
        "host",
    ];
    s.run(&create).ok();
    sh(&s, &["-v", "host:/v"], "echo here >/v/sub/x").ok();
    assert_eq!(fs::read_to_string(place.join("sub/x")).unwrap(), "here\n");
    let sub = "src=host,dst=/v,volume-subpath=sub,ro";
    assert_eq!(sh(&s, &["--mount", sub], "cat /v/x; touch /v/y").code, 1);
    s.run(&["volume", "rm", "host"]).ok();
    assert!(
        place.join("sub/x").exists(),
        "the files are not the engine's"
    );
    // A disk: it keeps its files when nobody has it mounted.
    let disk = s.dir.join("disk");
    fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    tool(&["mkfs.ext4", "-q", path(&disk)]);
    let loop_device = tool(&["losetup", "--find", "--show", path(&disk)]);
    let loop_device = loop_device.trim();
    let device = format!("device={loop_device}");
    let create = ["volume", "create", "-o", "type=ext4", "-o", &device, "disk"];
    s.run(&create).ok();
    let hold = [
        "run", "-d", "--name", "one", "-v", "disk:/v", "bb", "sleep", "600",
    ];
    s.run(&hold).ok();
    sh(&s, &["-v", "disk:/v"], "echo kept >/v/x").ok();
    assert_eq!(s.run(&["exec", "one", "cat", "/v/x"]).ok(), "kept\n");
    s.run(&["rm", "-f", "one"]).ok();
    let read_only = sh(&s, &["-v", "disk:/v:ro"], "cat /v/x; touch /v/y");
    assert_eq!((read_only.code, read_only.stdout.as_str()), (1, "kept\n"));
    s.run(&["volume", "rm", "disk"]).ok();
    tool(&["losetup", "--detach", loop_device]);
    fs::remove_file(&disk).unwrap();
    fs::remove_dir_all(&place).unwrap();
}

#[test]
fn a_volume_is_renamed_and_cloned() {
    let s = busybox();
    let label = [
        "volume", "create", "--label", "a=1", "--label", "b=1", "old",
    ];
    s.run(&label).ok();
    let fill =
        "mkdir /v/d; echo text >/v/d/f; chown 5:6 /v/d/f; ln /v/d/f /v/hard; ln -s d /v/soft";
    s.run(&[
        "run", "--name", "user", "-v", "old:/v", "bb", "sh", "-c", fill,
    ])
    .ok();
    s.run(&["volume", "rename", "old", "new"])
        .fails(1, "rename old: volume is in use - [");
    // A clone may be made of one that is in use.
    let cloned = s.run(&["volume", "clone", "--label", "b=2", "old", "copy"]);
    assert_eq!(cloned.ok(), "copy\n");
    assert_eq!(s.inspect("copy")["Labels"], json!({ "a": "1", "b": "2" }));
    let look = "cat /v/soft/f; stat -c %u:%g:%h /v/hard";
    assert_eq!(sh(&s, &["-v", "copy:/v"], look).ok(), "text\n5:6:2\n");
    sh(&s, &["-v", "copy:/v"], "echo other >/v/hard").ok();
    assert_eq!(sh(&s, &["-v", "old:/v"], look).ok(), "text\n5:6:2\n");
    s.run(&["volume", "clone", "old", "copy"])
        .fails(1, "volume copy already exists");
    s.run(&["volume", "clone", "ghost", "x2"])
        .fails(1, "get ghost: no such volume");
    assert_eq!(s.run(&["volume", "clone", "old"]).ok().trim().len(), 64);
    s.run(&["rm", "user"]).ok();
    s.run(&["volume", "rename", "old", "copy"])
        .fails(1, "volume copy already exists");
    s.run(&["volume", "rename", "old", "a b"])
        .fails(1, "includes invalid characters for a local volume name");
    s.run(&["volume", "rename", "ghost", "x2"])
        .fails(1, "get ghost: no such volume");
    assert_eq!(s.run(&["volume", "rename", "old", "new"]).ok(), "");
    assert_eq!(s.inspect("new")["Labels"], json!({ "a": "1", "b": "1" }));
    assert_eq!(sh(&s, &["-v", "new:/v"], look).ok(), "text\n5:6:2\n");
    s.run(&["volume", "rm", "old"])
        .fails(1, "get old: no such volume");
    tmpfs_volume(&s, "shm", "size=1m");
    s.run(&["volume", "clone", "shm", "x2"])
        .fails(1, "clone shm: the volume has driver options");
    s.run(&["volume", "rename", "shm", "mem"]).ok();
    sh(&s, &["-v", "mem:/v"], "touch /v/x").ok();
    s.run(&["volume", "prune", "-a", "-f"]).ok();
    assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "");
}

#[test]
fn options_of_a_volume_are_kept_and_not_exchanged() {
    let s = busybox();
    tmpfs_volume(&s, "shm", "size=1m");
    tmpfs_volume(&s, "shm", "size=1m");
    s.run(&["volume", "create", "shm"]).ok();
    let other = [
        "volume",
        "create",
        "-o",
        "type=tmpfs",
        "-o",
        "device=x",
        "shm",
    ];
    s.run(&other).fails(
        1,
        "create shm: a volume of this name exists with other options",
    );
    let spec = "src=shm,dst=/v,volume-opt=type=tmpfs,volume-opt=device=tmpfs";
    sh(&s, &["--mount", spec], "true").fails(125, "exists with other options");
    let same = format!("{spec},\"volume-opt=o=size=1m\"");
    sh(&s, &["--mount", &same], "touch /v/x").ok();
    // In quotes, a value may have commas.
    let fresh = "src=fresh,dst=/v,volume-opt=type=tmpfs,volume-opt=device=tmpfs,\"volume-opt=o=size=64k,mode=700,uid=9\"";
    let seen = sh(&s, &["--mount", fresh], "stat -c %u:%a /v").ok();
    assert_eq!(seen, "9:700\n");
    assert_eq!(
        s.inspect("fresh")["Options"]["o"],
        "size=64k,mode=700,uid=9"
    );
    // An anonymous one goes with its container.
    let anonymous = "dst=/v,volume-opt=type=tmpfs,volume-opt=device=tmpfs";
    sh(&s, &["--mount", anonymous], "touch /v/x").ok();
    s.settle();
    assert_eq!(s.run(&["volume", "ls", "-q"]).ok(), "fresh\nshm\n");
    s.run(&["volume", "rm", "fresh", "shm"]).ok();
}
