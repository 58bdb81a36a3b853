//! `cp`: both ways, in every state, by Docker's rules, and never out of the container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use crate::fixtures::{Wrap, busybox_image, dir, file, link, tarball};
use crate::sandbox::{Sandbox, path};

/// How long each race is run.
const RACE: Duration = Duration::from_secs(3);

both!(
    files_go_in_and_out_in_every_state,
    volumes_are_part_of_the_container,
);

/// A sandbox with busybox and some files to copy.
fn busybox() -> Sandbox {
    let mut s = Sandbox::new();
    let image = busybox_image("bb").layer(
        &[
            dir("src", 0o755),
            file("src/a", 0o640, "aaa"),
            dir("src/sub", 0o755),
            file("src/sub/b", 0o4755, "bbb"),
            link("src/rel", "sub/b"),
            link("src/abs", "/src/sub"),
            link("to-src", "/src"),
            link("nowhere", "/not/there"),
        ],
        Wrap::Plain,
    );
    s.load_image(&image);
    s.run(&["run", "--rm", "bb", "true"]).ok();
    s.settle();
    s.mark();
    fs::create_dir(s.dir.join("host")).unwrap();
    s
}

/// A path on the host's side.
fn host(s: &Sandbox, name: &str) -> String {
    path(&s.dir.join("host").join(name)).to_owned()
}

fn clear(s: &Sandbox) {
    fs::remove_dir_all(s.dir.join("host")).unwrap();
}

fn files_go_in_and_out_in_every_state(image: &str) {
    let s = Sandbox::ready();
    fs::create_dir(s.dir.join("host")).unwrap();
    fs::write(host(&s, "in"), "carried in").unwrap();
    fs::set_permissions(host(&s, "in"), fs::Permissions::from_mode(0o604)).unwrap();
    s.run(&["create", "--name", "box", image, "sleep", "600"])
        .ok();
    for state in ["created", "running", "paused", "exited"] {
        match state {
            "running" => drop(s.run(&["start", "box"]).ok()),
            "paused" => drop(s.run(&["pause", "box"]).ok()),
            "exited" => drop(s.run(&["rm", "-f", "box"]).ok()),
            _ => {}
        }
        if state == "exited" {
            s.run(&["run", "--name", "box", image]).ok();
        }
        assert_eq!(s.inspect("box")["State"]["Status"], state);
        let (to, back) = (format!("box:/etc/{state}"), host(&s, state));
        assert_eq!(s.run(&["cp", &host(&s, "in"), &to]).ok(), "");
        s.run(&["cp", &to, &back]).ok();
        assert_eq!(fs::read_to_string(&back).unwrap(), "carried in", "{state}");
        assert_eq!(fs::metadata(&back).unwrap().mode() & 0o777, 0o604);
        let text = s.run(&["cp", "box:/no/such", &back]);
        text.fails(
            1,
            "Error response from daemon: Could not find the file /no/such in container box",
        );
    }
    s.run(&["rm", "-f", "box"]).ok();
    // What was copied before the first start is there when it starts.
    s.run(&["create", "--name", "early", image, "cat", "/etc/cfg"])
        .ok();
    s.run(&["cp", &host(&s, "in"), "early:/etc/cfg"]).ok();
    assert_eq!(s.run(&["start", "-a", "early"]).ok(), "carried in");
    s.run(&["rm", "early"]).ok();
    clear(&s);
}

fn volumes_are_part_of_the_container(image: &str) {
    let s = Sandbox::ready();
    fs::create_dir(s.dir.join("host")).unwrap();
    fs::create_dir(s.dir.join("host/bound")).unwrap();
    fs::write(host(&s, "in"), "x").unwrap();
    let bind = format!("{}:/bound", host(&s, "bound"));
    s.run(&[
        "create",
        "--name",
        "box",
        "-v",
        "vol:/vol/deep",
        "-v",
        &bind,
        "-v",
        "vol:/ro:ro",
        image,
        "sleep",
        "600",
    ])
    .ok();
    for state in ["created", "running"] {
        if state == "running" {
            s.run(&["start", "box"]).ok();
        }
        s.run(&["cp", &host(&s, "in"), &format!("box:/vol/deep/{state}")])
            .ok();
        s.run(&["cp", &host(&s, "in"), &format!("box:/bound/{state}")])
            .ok();
        assert!(s.dir.join("host/bound").join(state).exists());
        // Through the other mount of the same volume.
        s.run(&["cp", &format!("box:/ro/{state}"), &host(&s, "out")])
            .ok();
        s.run(&["cp", &host(&s, "in"), "box:/ro/"])
            .fails(1, "mounted volume is marked read-only");
    }
    // The writable layer has none of it.
    s.run(&["rm", "-f", "box"]).ok();
    let kept = s
        .run(&["run", "--rm", "-v", "vol:/v", image, "ls", "/v"])
        .ok();
    assert_eq!(kept, "created\nrunning\n");
    s.run(&["volume", "rm", "vol"]).ok();
    clear(&s);
}

#[test]
fn destinations_follow_docker_s_rules() {
    let s = busybox();
    s.run(&["create", "--name", "box", "bb", "true"]).ok();
    fs::write(host(&s, "f"), "f").unwrap();
    fs::create_dir(host(&s, "d")).unwrap();
    fs::write(host(&s, "d/inner"), "i").unwrap();
    let to = |from: &str, to: &str| s.run(&["cp", &host(&s, from), &format!("box:{to}")]);
    let has = |what: &str| s.run(&["cp", &format!("box:{what}"), "-"]).code == 0;
    // A file: to a directory, over a file, as a new name; never as a directory.
    to("f", "/src").ok();
    to("f", "/src/").ok();
    to("f", "/src/a").ok();
    to("f", "/src/new").ok();
    to("f", "/to-src/via-link").ok();
    for name in ["/src/f", "/src/new", "/src/via-link"] {
        assert!(has(name), "{name}");
    }
    to("f", "/absent/").fails(1, "no such directory");
    to("f", "/absent/new").fails(1, "Could not find the file /absent in container box");
    // A directory: into a directory, as a new name, its contents alone; never over a file.
    to("d", "/src").ok();
    to("d", "/made").ok();
    to("d/.", "/made").ok();
    to("d/.", "/tmp").ok();
    to("d", "/made2/").ok();
    for name in ["/src/d/inner", "/made/inner", "/tmp/inner", "/made2/inner"] {
        assert!(has(name), "{name}");
    }
    assert!(!has("/tmp/d") && !has("/made/d"));
    to("d", "/src/a").fails(1, "cannot copy directory");
    // Kinds are kept.
    fs::create_dir(host(&s, "a")).unwrap();
    to("a", "/src").fails(
        1,
        "cannot overwrite non-directory \"/src/a\" with directory \"/src\"",
    );
    fs::write(host(&s, "sub"), "").unwrap();
    to("sub", "/src").fails(
        1,
        "cannot overwrite directory \"/src/sub\" with non-directory \"/src\"",
    );
    to("missing", "/src").fails(1, "no such file or directory");
    to("f/", "/src").fails(1, "not a directory");
    s.run(&["cp", &host(&s, "f"), "ghost:/x"])
        .fails(1, "No such container: ghost");
    s.run(&["cp", "box:/a", "box:/b"])
        .fails(1, "copying between containers is not supported");
    s.run(&["cp", "a", "b"])
        .fails(1, "must specify at least one container source");
    s.run(&["cp", "", "box:/"])
        .fails(1, "source can not be empty");
    s.run(&["cp", "box:/src", "/no/such/dir/x"]).fails(
        1,
        "invalid output path: directory \"/no/such/dir\" does not exist",
    );
    s.run(&["cp", "box:/src", "/dev/null"])
        .fails(1, "must be a directory or a regular file: got a device");
    s.run(&["cp", &host(&s, "f"), "box:/src/a/x"])
        .fails(1, "extraction point is not a directory");
    clear(&s);
}

#[test]
fn what_comes_out_follows_docker_s_rules() {
    let s = busybox();
    s.run(&["create", "--name", "box", "bb", "true"]).ok();
    let from = |from: &str, to: &str| s.run(&["cp", &format!("box:{from}"), &host(&s, to)]);
    let read = |name: &str| fs::read_to_string(host(&s, name)).unwrap();
    from("/src", "copy").ok();
    assert_eq!(
        (read("copy/a"), read("copy/sub/b")),
        ("aaa".into(), "bbb".into())
    );
    assert_eq!(
        fs::read_link(host(&s, "copy/abs")).unwrap().to_str(),
        Some("/src/sub")
    );
    let meta = fs::metadata(host(&s, "copy/sub/b")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.mtime()),
        (0o4755, 1_700_000_000)
    );
    from("/src", "copy").ok();
    from("/src/.", "copy").ok();
    assert_eq!(read("copy/src/a"), "aaa");
    from("src/a", "renamed").ok();
    assert_eq!(read("renamed"), "aaa");
    from("/src/a", "copy/").ok();
    from("/src", "renamed").fails(1, "cannot copy directory");
    from("/src/a", "absent/").fails(1, "no such directory");
    from("/src/a/", "x").fails(1, "not a directory");
    // Links: as links, or what they lead to under the link's name.
    from("/src/rel", "rel").ok();
    assert_eq!(
        fs::read_link(host(&s, "rel")).unwrap().to_str(),
        Some("sub/b")
    );
    s.run(&["cp", "-q", "-L", "box:/src/rel", &host(&s, "followed")])
        .ok();
    assert_eq!(read("followed"), "bbb");
    fs::create_dir(host(&s, "into")).unwrap();
    s.run(&["cp", "-L", "box:/to-src", &host(&s, "into")]).ok();
    assert_eq!(read("into/to-src/a"), "aaa");
    from("/to-src/", "slash").ok();
    assert_eq!(read("slash/a"), "aaa");
    s.run(&["cp", "-L", "box:/nowhere", &host(&s, "z")])
        .fails(1, "Could not find the file /not/there in container box");
    // The whole root.
    from("/", "root").ok();
    assert_eq!(read("root/src/a"), "aaa");
    clear(&s);
}

#[test]
fn tar_streams_and_owners() {
    let s = busybox();
    s.run(&["create", "--name", "box", "-u", "alice", "bb", "true"])
        .ok();
    let mut command = s.command(&["cp", "box:/src", "-"]);
    let out = command.output().unwrap();
    let mut archive = tar::Archive::new(out.stdout.as_slice());
    let mut names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "src/",
            "src/a",
            "src/abs",
            "src/rel",
            "src/sub/",
            "src/sub/b"
        ]
    );
    let mut entry = file("new/file", 0o600, "from a stream");
    entry.uid = 4321;
    let tar = tarball(&[entry]);
    s.run_with_input(&["cp", "-", "box:/tmp"], &tar).ok();
    let gz = {
        use std::io::Write;
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&tarball(&[file("zipped", 0o600, "z")]))
            .unwrap();
        gz.finish().unwrap()
    };
    s.run_with_input(&["cp", "-", "box:/tmp"], &gz).ok();
    s.run_with_input(&["cp", "-", "box:/src/a"], &tar)
        .fails(1, "destination \"box:/src/a\" must be a directory");
    s.run_with_input(
        &["cp", "-", "box:/tmp"],
        b"this is no archive, and longer than a block is\n"
            .repeat(20)
            .as_slice(),
    )
    .fails(1, "tar");
    s.run(&["cp", "box:/tmp/new/file", &host(&s, "mine")]).ok();
    s.run(&["cp", "-a", "box:/tmp/new/file", &host(&s, "theirs")])
        .ok();
    assert_eq!(fs::metadata(host(&s, "mine")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(host(&s, "theirs")).unwrap().uid(), 4321);
    // Into the container: the archive's owners, or the container's user.
    s.run(&["cp", &host(&s, "theirs"), "box:/tmp/kept"]).ok();
    s.run(&["cp", "-a", &host(&s, "theirs"), "box:/tmp/users"])
        .ok();
    for (name, uid) in [("kept", 4321), ("users", 1000)] {
        s.run(&["cp", "-a", &format!("box:/tmp/{name}"), &host(&s, name)])
            .ok();
        assert_eq!(fs::metadata(host(&s, name)).unwrap().uid(), uid, "{name}");
    }
    clear(&s);
}

#[test]
fn a_read_only_root_takes_nothing() {
    let s = busybox();
    fs::write(host(&s, "f"), "f").unwrap();
    s.run(&[
        "run",
        "-d",
        "--read-only",
        "--tmpfs",
        "/t",
        "--name",
        "box",
        "bb",
        "sleep",
        "600",
    ])
    .ok();
    s.run(&["cp", &host(&s, "f"), "box:/src/"])
        .fails(1, "container rootfs is marked read-only");
    s.run(&["cp", &host(&s, "f"), "box:/t/"]).ok();
    s.run(&["cp", "box:/t/f", &host(&s, "g")]).ok();
    // A copy of everything has neither the kernel's files nor the devices.
    s.run(&["cp", "box:/", &host(&s, "all")]).ok();
    assert_eq!(fs::read_dir(host(&s, "all/proc")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(host(&s, "all/dev")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(host(&s, "all/t/f")).unwrap(), "f");
    s.run(&["rm", "-f", "box"]).ok();
    s.run(&["create", "--read-only", "--name", "box", "bb", "true"])
        .ok();
    s.run(&["cp", &host(&s, "f"), "box:/src/"])
        .fails(1, "container rootfs is marked read-only");
    clear(&s);
}

#[test]
fn links_and_archives_do_not_lead_out() {
    let s = busybox();
    let victim = s.dir.join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(s.dir.join("secret"), "the host's").unwrap();
    fs::write(host(&s, "f"), "f").unwrap();
    let inside = path(&s.dir).trim_start_matches('/').to_owned();
    s.run(&["run", "-d", "--name", "box", "bb", "sleep", "600"])
        .ok();
    let tar = tarball(&[
        link("up", &format!("../../../../../../../../../{inside}")),
        link("abs", path(&s.dir)),
        link("proc", "/proc/1/root/../.."),
    ]);
    for state in ["running", "exited"] {
        if state == "exited" {
            s.run(&["stop", "-t", "0", "box"]).ok();
        }
        s.run_with_input(&["cp", "-", "box:/tmp"], &tar).ok();
        for way in ["up", "abs", "proc"] {
            let out = s.run(&["cp", &host(&s, "f"), &format!("box:/tmp/{way}/victim/f")]);
            assert_ne!(out.code, 0, "{state} {way}");
            s.run(&["cp", &format!("box:/tmp/{way}/secret"), &host(&s, "got")])
                .fails(1, "");
            let out = s.run(&["cp", "-L", &format!("box:/tmp/{way}"), &host(&s, "got")]);
            assert!(!s.dir.join("host/got/secret").exists(), "{out:?}");
        }
    }
    // An archive that names what is above it, or that goes through its own links.
    for entries in [
        vec![
            file("x", 0o644, "x"),
            link("l", "/"),
            file("l/victim/x", 0o644, "x"),
        ],
        vec![link("l", path(&s.dir)), file("l/victim/x", 0o644, "x")],
    ] {
        let _ = s.run_with_input(&["cp", "-", "box:/tmp"], &tarball(&entries));
    }
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..9].copy_from_slice(b"../victim");
    header.set_size(0);
    header.set_cksum();
    let evil = [header.as_bytes().as_slice(), &[0; 1024]].concat();
    s.run_with_input(&["cp", "-", "box:/tmp"], &evil)
        .fails(1, "is outside of \"/tmp\"");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    fs::remove_dir_all(&victim).unwrap();
    fs::remove_file(s.dir.join("secret")).unwrap();
    clear(&s);
}

/// CVE-2018-15664: a link is put in the place of a directory while a copy goes through it.
#[test]
fn a_link_swapped_in_during_a_copy_leads_nowhere() {
    let s = busybox();
    let victim = s.dir.join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("w"), "the host's").unwrap();
    fs::write(host(&s, "w"), "from the host").unwrap();
    let script = format!(
        "mkdir -p /r/real; echo own > /r/real/w; ln -s {0} /r/link; while :; do mv /r/real /r/d; mv /r/d /r/real; mv /r/link /r/d; mv /r/d /r/link; done",
        path(&victim)
    );
    s.run(&[
        "run", "-d", "--name", "box", "bb", "busybox", "sh", "-c", &script,
    ])
    .ok();
    let end = Instant::now() + RACE;
    let (mut wrote, mut got) = (0, 0);
    while Instant::now() < end {
        let into = s.run(&["cp", &host(&s, "w"), "box:/r/d/w"]);
        wrote += usize::from(into.code == 0);
        let _ = fs::remove_file(host(&s, "out"));
        if s.run(&["cp", "box:/r/d/w", &host(&s, "out")]).code == 0 {
            got += 1;
            assert_ne!(fs::read_to_string(host(&s, "out")).unwrap(), "the host's");
        }
        let _ = fs::remove_dir_all(host(&s, "tree"));
        if s.run(&["cp", "-L", "box:/r", &host(&s, "tree")]).code == 0 {
            let seen = fs::read_to_string(host(&s, "tree/d/w")).unwrap_or_default();
            assert!(seen != "the host's" || s.dir.join("host/tree/d").is_symlink());
        }
        assert_eq!(fs::read_to_string(victim.join("w")).unwrap(), "the host's");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    }
    println!("{wrote} copies in and {got} out met the directory");
    s.run(&["rm", "-f", "box"]).ok();
    fs::remove_dir_all(&victim).unwrap();
    clear(&s);
}

/// The other way round: the destination on the host has links that a container could know of.
#[test]
fn links_of_the_destination_are_not_followed() {
    let s = busybox();
    s.run(&["create", "--name", "box", "bb", "true"]).ok();
    let victim = s.dir.join("victim");
    fs::create_dir(&victim).unwrap();
    fs::create_dir_all(s.dir.join("host/copy")).unwrap();
    symlink(&victim, s.dir.join("host/copy/src")).unwrap();
    s.run(&["cp", "box:/src", &host(&s, "copy")])
        .fails(1, "cannot overwrite non-directory");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    fs::remove_dir_all(&victim).unwrap();
    clear(&s);
}

/// CVE-2019-14271: nothing of the container is loaded or run. What name lookups of the host's C
/// library would open is a pipe here, which whoever opens it waits for.
#[test]
fn nothing_of_the_container_is_loaded() {
    let s = busybox();
    s.run(&[
        "run",
        "-d",
        "--name",
        "box",
        "-u",
        "1000",
        "bb",
        "sh",
        "-c",
        "busybox mkfifo /tmp/p; sleep 600",
    ])
    .ok();
    let pipes = {
        let mut builder = tar::Builder::new(Vec::new());
        for name in [
            "etc/nsswitch.conf",
            "lib/libnss_files.so.2",
            "lib64/libnss_files.so.2",
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Fifo);
            header.set_size(0);
            header.set_mode(0o666);
            builder
                .append_data(&mut header, name, std::io::empty())
                .unwrap();
        }
        builder.into_inner().unwrap()
    };
    s.run_with_input(&["cp", "-", "box:/"], &pipes).ok();
    fs::write(host(&s, "f"), "f").unwrap();
    s.run(&["cp", "-a", &host(&s, "f"), "box:/tmp/f"]).ok();
    s.run(&["cp", "-a", "box:/etc", &host(&s, "etc")]).ok();
    s.run(&["rm", "-f", "box"]).ok();
    clear(&s);
}
