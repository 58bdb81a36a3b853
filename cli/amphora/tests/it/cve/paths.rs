//! Paths of an image that lead out of it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use super::{load, naive, outside, world, world_with_image};
use crate::fixtures::{Wrap, busybox_image, link};
use crate::runc::World;
use crate::sandbox::{finish, path};

/// How often the race is run against ours.
const ROUNDS: usize = 40;

/// Swaps two names until it is told to stop; returns how often it did.
fn swapped(a: &Path, b: &Path, meanwhile: impl FnOnce()) -> usize {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        meanwhile();
        stop.store(true, Ordering::Relaxed);
    });
    count.into_inner()
}

/// What is in the host's directory.
fn found_outside(w: &World) -> Vec<String> {
    let entries = std::fs::read_dir(outside(w)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn a_target_swapped_for_a_link_leads_nowhere() {
    let w = world_with_image();
    let volume = w.s.dir.join("volume");
    let (x, y) = (volume.join("x"), volume.join("y"));
    std::fs::create_dir_all(&x).unwrap();
    symlink(outside(&w), &y).unwrap();
    // Whoever looks first and makes the directory then.
    let check_then_make = "mount --bind $D/volume $R/tmp; \
        for i in $(seq 20000); do test -L $R/tmp/x || mkdir -p $R/tmp/x/inner 2>/dev/null; \
        test -d $O/inner && exit 0; rmdir $R/tmp/x/inner $R/tmp/y/inner 2>/dev/null; done; exit 1";
    swapped(&x, &y, || {
        naive(&w, check_then_make).ok();
    });
    assert_eq!(found_outside(&w), ["inner", "secret"]);
    std::fs::remove_dir(outside(&w).join("inner")).unwrap();

    w.bundle(&["sh", "-c", "echo ran"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.extend([
            json!({"destination": "/vol", "source": path(&volume), "options": ["rbind"]}),
            json!({"destination": "/vol/x/inner", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/vol/x/file", "source": "/etc/hostname", "options": ["bind"]}),
        ]);
    });
    let bind = format!("{}:/vol", path(&volume));
    let swaps = swapped(&x, &y, || {
        let mut ran = 0;
        for _ in 0..ROUNDS {
            ran += usize::from(w.run(&["run", "one"]).stdout.contains("ran"));
            assert_eq!(found_outside(&w), ["secret"]);
            let args = [
                "run",
                "--rm",
                "-v",
                &bind,
                "-v",
                "/vol/x/deep",
                "bb",
                "true",
            ];
            w.s.run(&args);
            assert_eq!(found_outside(&w), ["secret"]);
        }
        assert!(ran > 0, "it never got as far as to run");
    });
    assert!(swaps > ROUNDS, "the attack did not happen");
    w.done();
}

#[test]
fn proc_and_sys_are_not_mounted_behind_a_link() {
    let w = world_with_image();
    let rootfs = w.s.dir.join("rootfs");
    for (name, mark) in [("proc", "self"), ("sys", "kernel")] {
        let place = rootfs.join(name);
        std::fs::remove_dir(&place).unwrap();
        symlink(outside(&w), &place).unwrap();
        let script = format!(
            "fs={name}; test $fs = sys && fs=sysfs; mount -t $fs $fs $R/{name}; ls -d $O/{mark}"
        );
        let said = naive(&w, &script).ok();
        assert!(said.contains(mark), "the naive runtime withstands: {said}");
        // The same with a link that stays in the root: what is masked is then elsewhere.
        for target in [outside(&w), "/tmp".into()] {
            std::fs::remove_file(&place).unwrap();
            symlink(&target, &place).unwrap();
            w.bundle(&["sh", "-c", "echo ran"], |spec| {
                let mounts = spec["mounts"].as_array_mut().unwrap();
                mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}));
            });
            for verb in ["create", "run"] {
                let failed = w.detached(&[verb, "one"]);
                assert_eq!(failed.code, 1, "{name} {target:?}: {failed:?}");
            }
        }
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        let hostile = busybox_image("hostile").layer(&[link(name, "tmp")], Wrap::Plain);
        load(&w.s, &hostile);
        let failed = w.s.run(&["run", "--rm", "hostile", "echo", "ran"]);
        assert_eq!((failed.code, &*failed.stdout), (125, ""), "{failed:?}");
        w.s.run(&["rmi", "hostile"]).ok();
    }
    assert_eq!(found_outside(&w), ["secret"]);
    w.done();
}

/// Puts a directory of the attacker's in the place of `/proc`.
fn with_own_proc(w: &World, spec: &mut Value) {
    let own = json!({"destination": "/proc", "source": path(&w.s.dir.join("proc")),
        "options": ["bind"]});
    spec["mounts"][0] = own;
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
}

#[test]
fn a_proc_of_the_image_is_not_written_to() {
    let w = world();
    let own = w.s.dir.join("proc");
    let secret = outside(&w).join("secret");
    std::fs::create_dir_all(own.join("sys/net/ipv4")).unwrap();
    std::fs::create_dir_all(own.join("self/attr")).unwrap();
    symlink(&secret, own.join("sys/net/ipv4/ip_forward")).unwrap();
    symlink(&secret, own.join("self/oom_score_adj")).unwrap();
    let led =
        "mount --bind $D/proc $R/proc; echo 1 > $R/proc/sys/net/ipv4/ip_forward; cat $O/secret";
    assert_eq!(naive(&w, led).ok(), "1\n", "the naive runtime withstands");
    let read = || std::fs::read_to_string(&secret).unwrap();
    for (object, field, value) in [
        ("linux", "sysctl", json!({"net.ipv4.ip_forward": "1"})),
        ("process", "oomScoreAdj", json!(500)),
    ] {
        std::fs::write(&secret, "of the host\n").unwrap();
        w.bundle(&["sh", "-c", "echo ran"], |spec| {
            with_own_proc(&w, spec);
            spec[object][field] = value;
        });
        let failed = w.run(&["run", "one"]);
        assert_eq!(
            (failed.code, &*failed.stdout),
            (1, ""),
            "{field}: {failed:?}"
        );
        assert_eq!(read(), "of the host\n", "{field}");
    }
    w.done();
}

#[test]
fn masks_do_not_come_from_the_image() {
    let w = world();
    let rootfs = w.s.dir.join("rootfs");
    std::fs::write(rootfs.join("etc/secret"), "masked\n").unwrap();
    symlink(outside(&w).join("secret"), rootfs.join("dev/null")).unwrap();
    let mask = "mount --bind $R/dev/null $R/etc/secret; cat $R/etc/secret";
    assert_eq!(
        naive(&w, mask).ok(),
        "of the host\n",
        "the naive runtime withstands"
    );
    // In the root too, which is what the image's link leads to from inside.
    let inside = rootfs.join(path(&outside(&w)).trim_start_matches('/'));
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::write(inside.join("secret"), "of the image\n").unwrap();
    for target in [outside(&w).join("secret"), "/etc/passwd".into()] {
        std::fs::remove_file(rootfs.join("dev/null")).unwrap();
        symlink(&target, rootfs.join("dev/null")).unwrap();
        w.bundle(&["sh", "-c", "cat /etc/secret; echo end"], |spec| {
            // The image's /dev, as it is.
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] == "/proc");
            let dev = path(&rootfs.join("dev")).to_owned();
            mounts.push(json!({"destination": "/dev", "source": dev, "options": ["bind"]}));
            spec["linux"]["maskedPaths"] = json!(["/etc/secret"]);
        });
        let said = w.run(&["run", "one"]);
        assert_eq!((said.code, &*said.stdout), (0, "end\n"), "{said:?}");
        // Without any mount at /dev.
        w.bundle(&["sh", "-c", "cat /etc/secret; echo end"], |spec| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] == "/proc");
            spec["linux"]["maskedPaths"] = json!(["/etc/secret"]);
        });
        let said = w.run(&["run", "one"]);
        assert!(said.code == 1 || said.stdout == "end\n", "{said:?}");
    }
    w.done();
}

#[test]
fn the_console_is_mounted_where_it_says() {
    let w = world();
    let rootfs = w.s.dir.join("rootfs");
    let secret = outside(&w).join("secret");
    symlink(&secret, rootfs.join("dev/console")).unwrap();
    let led = "mount --bind /dev/null $R/dev/console; grep -c \" $O/secret \" /proc/self/mountinfo";
    assert_eq!(naive(&w, led).ok(), "1\n", "the naive runtime withstands");
    for target in [secret.clone(), "/etc/target".into()] {
        std::fs::remove_file(rootfs.join("dev/console")).unwrap();
        symlink(&target, rootfs.join("dev/console")).unwrap();
        std::fs::write(rootfs.join("etc/target"), "of the image\n").unwrap();
        w.bundle(
            &["sh", "-c", "cat /proc/self/mountinfo; cat /etc/target"],
            |spec| {
                let mounts = spec["mounts"].as_array_mut().unwrap();
                let dev = path(&rootfs.join("dev")).to_owned();
                mounts[1] = json!({"destination": "/dev", "source": dev, "options": ["bind"]});
                spec["process"]["terminal"] = true.into();
            },
        );
        let said = w.run(&["run", "one"]);
        let hit = said.stdout.contains("secret ") || said.stdout.contains(" /etc/target ");
        assert!(!hit, "{said:?}");
        assert!(said.stdout.contains("of the image"), "{said:?}");
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of the host\n");
    }
    w.done();
}

#[test]
fn no_directory_of_the_host_is_worked_in() {
    let w = world_with_image();
    let led = "exec 7<$O; mount -t proc proc $R/proc; cd $R; \
               exec chroot . /bin/sh -c 'cd /proc/self/fd/7 && cat secret'";
    assert_eq!(
        naive(&w, led).ok(),
        "of the host\n",
        "the naive runtime withstands"
    );
    let open = (3..10).fold(String::new(), |all, n| {
        format!("{all} {n}<{}", path(&outside(&w)))
    });
    // With the same directory open in whoever calls us.
    let calls = |words: &str| {
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", &format!("exec {open}; exec {words}")])
            .env("AMPHORA_ROOT", w.s.root())
            .env("AMPHORA_RUN_ROOT", w.s.run_root())
            .current_dir(&w.s.dir);
        finish(command)
    };
    let runc = format!(
        "{} --root {}",
        path(&w.program),
        path(&w.s.dir.join("state"))
    );
    let amphora = env!("CARGO_BIN_EXE_amphora");
    let look = "cat secret ../secret ../outside/secret ../../../../../etc/hostname; pwd";
    w.bundle(&["sleep", "600"], |spec| {
        spec["linux"]["cgroupsPath"] = "/amphora-it-runc/second".into();
    });
    w.detached(&["run", "-d", "two"]).ok();
    w.s.run(&["run", "-d", "--name", "cc", "bb", "sleep", "600"])
        .ok();
    for n in 0..20 {
        let cwd = format!("/proc/self/fd/{n}");
        w.bundle(&["sh", "-c", look], |spec| {
            spec["process"]["cwd"] = cwd.clone().into();
        });
        for words in [
            format!("{runc} run one"),
            format!("{runc} exec --cwd {cwd} two sh -c '{look}'"),
            format!("{amphora} run --rm -w {cwd} bb sh -c '{look}'"),
            format!("{amphora} exec -w {cwd} cc sh -c '{look}'"),
        ] {
            let said = calls(&words);
            let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
            let seen = said.stdout.contains("of the host")
                || (host.len() > 1 && said.stdout.contains(host.trim()));
            assert!(!seen, "{words}: {said:?}");
        }
    }
    w.run(&["delete", "-f", "two"]).ok();
    w.s.run(&["rm", "-f", "cc"]).ok();
    w.done();
}
