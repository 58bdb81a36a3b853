//! Power cuts on a real file system: the data root is an ext4 on a loop device, and what the device
//! was given up to a moment is all that a cut at that moment leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fixtures::{busybox_image, probe_image};
use crate::numbers::Numbers;
use crate::registry::Registry;
use crate::sandbox::{Sandbox, path, tool, wait_until};

const SLOW: Duration = Duration::from_secs(20);
/// Size of the device; most of it is never written.
const DISK: &str = "256M";
/// How often all steps are gone through, and how many cuts are looked at then.
const ROUNDS: usize = 4;
const PULLED: &str = "localhost:5000/pulled";
const CUTS_MAX: usize = 48;

/// The data root on a device of its own.
struct Disk<'a> {
    s: &'a Sandbox,
    file: PathBuf,
    device: String,
}

impl<'a> Disk<'a> {
    fn new(s: &'a Sandbox) -> Self {
        let file = s.dir.join("disk");
        tool(&["truncate", "-s", DISK, path(&file)]);
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        tool(&[
            "mkfs.ext4",
            "-q",
            "-F",
            "-J",
            "size=8",
            "-E",
            options,
            path(&file),
        ]);
        fs::create_dir(s.root()).unwrap();
        let mut disk = Self {
            s,
            file,
            device: String::new(),
        };
        disk.mount();
        disk
    }

    fn mount(&mut self) {
        let root = self.s.root();
        tool(&["mount", "-o", "loop", path(&self.file), path(&root)]);
        let source = tool(&["findmnt", "-n", "-o", "SOURCE", path(&root)]);
        self.device = source.trim().trim_start_matches("/dev/").to_owned();
    }

    /// Takes the file system away; what still cleans up behind a command holds it for a moment.
    fn unmount(&self) {
        let root = self.s.root();
        wait_until("the data root to be let go of", SLOW, || {
            let out = std::process::Command::new("umount").arg(&root).output();
            out.unwrap().status.success()
        });
        let device = Path::new("/sys/block").join(&self.device).join("loop");
        wait_until("the device to go", SLOW, || !device.exists());
    }

    /// Writes that the device has taken, and how many it is at.
    fn writes(&self) -> (u64, u64) {
        let stat = Path::new("/sys/block").join(&self.device).join("stat");
        let text = fs::read_to_string(stat).unwrap();
        let fields: Vec<u64> = text
            .split_whitespace()
            .map(|f| f.parse().unwrap())
            .collect();
        (fields[4], fields[8])
    }

    /// Copies the device as it is at one moment.
    fn copy(&self, to: &Path) {
        for _ in 0..50 {
            let before = self.writes();
            tool(&["cp", "--sparse=always", path(&self.file), path(to)]);
            if before.1 == 0 && self.writes() == before {
                return;
            }
        }
        panic!("the device is never at rest");
    }

    /// Lets the kernel do what it does every few seconds.
    fn write_back(&self, how: WriteBack, numbers: &mut Numbers) {
        let mark = self.s.root().join(".journal");
        match how {
            WriteBack::None => return,
            WriteBack::Journal => {}
            WriteBack::Some => flush_some(&self.s.root().join("containers"), numbers),
            WriteBack::All => tool(&["sync", "-f", path(&self.s.root())]).clear(),
        }
        // Whoever waits for any file waits for the journal, and so for all that was done to
        // directories before; other files' data may stay behind.
        let file = fs::File::create(mark).unwrap();
        std::io::Write::write_all(&mut &file, b"x").unwrap();
        file.sync_all().unwrap();
    }
}

/// What has reached the disk when the power fails.
#[derive(Debug, Clone, Copy)]
enum WriteBack {
    /// What the engine itself waited for.
    None,
    /// Directories, and no more data than have been on their way.
    Journal,
    /// The same and the data of some files.
    Some,
    /// All.
    All,
}

fn flush_some(dir: &Path, numbers: &mut Numbers) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            flush_some(&entry.path(), numbers);
        } else if kind.is_file()
            && numbers.below(2) == 0
            && let Ok(file) = fs::File::open(entry.path())
        {
            let _ = file.sync_data();
        }
    }
}

/// What there is, as far as commands have answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct World {
    /// Ids by name.
    containers: BTreeMap<String, String>,
    images: BTreeSet<String>,
    volumes: BTreeSet<String>,
    /// Containers that are to run after a boot.
    wanted: BTreeSet<String>,
}

/// A copy, and which of the worlds it may show.
#[derive(Debug)]
struct Cut {
    file: PathBuf,
    #[expect(dead_code, reason = "told when a check fails")]
    how: WriteBack,
    /// The oldest: what was answered before has reached the disk.
    first: usize,
    /// The newest: the command that was being carried out.
    last: usize,
}

#[derive(Debug, Default)]
struct History {
    /// After each command.
    worlds: Vec<World>,
    /// Up to here what was answered is on disk for certain.
    durable: usize,
}

/// Where the image is that a round loads.
fn archive(s: &Sandbox, round: usize) -> PathBuf {
    s.dir.join(format!("loaded{round}.tar"))
}

/// Goes through the commands and keeps the book.
struct Driver<'a> {
    s: &'a Sandbox,
    history: &'a Mutex<History>,
}

impl Driver<'_> {
    fn run(&self, line: &str, change: impl FnOnce(&mut World, &str)) {
        let words: Vec<&str> = line.split(' ').collect();
        let out = self.s.run(&words).ok();
        let mut history = self.history.lock().unwrap();
        let mut world = history.worlds.last().cloned().unwrap_or_default();
        change(&mut world, out.trim());
        history.worlds.push(world);
    }

    /// The same with a command that waits until what it answers is on disk.
    fn durable(&self, line: &str, change: impl FnOnce(&mut World, &str)) {
        self.run(line, change);
        let mut history = self.history.lock().unwrap();
        history.durable = history.worlds.len() - 1;
    }

    fn create(&self, name: &str, image: &str) {
        self.run(
            &format!("create --name {name} {image} sleep 600"),
            |w, id| {
                w.containers.insert(name.to_owned(), id.to_owned());
            },
        );
    }

    /// All steps, with names of their own.
    fn round(&self, n: usize, image: &str) {
        let (a, b, c) = (format!("a{n}"), format!("b{n}"), format!("c{n}"));
        let nothing = |_: &mut World, _: &str| {};
        self.create(&a, image);
        self.run(&format!("start {a}"), nothing);
        let restart = "--restart always -v data:/data";
        let line = format!("run -d --name {b} {restart} {image} sleep 600");
        self.run(&line, |w, id| {
            w.containers.insert(b.clone(), id.to_owned());
            w.volumes.insert("data".to_owned());
            w.wanted.insert(b.clone());
        });
        self.run(&format!("stop -t 0 {a}"), nothing);
        self.run(&format!("rename {a} {c}"), |w, _| {
            let id = w.containers.remove(&a).unwrap();
            w.containers.insert(c.clone(), id);
        });
        let write = format!("run --rm -v data:/data {image} write /data/file{n} text");
        self.run(&write, nothing);
        self.durable(&format!("commit {c} made{n}"), |w, _| {
            w.images.insert(format!("made{n}"));
        });
        self.run(&format!("run --rm made{n} exit 0"), nothing);
        self.create(&a, image);
        self.run(&format!("rm {a}"), |w, _| _ = w.containers.remove(&a));
        let name = format!("loaded{n}");
        let archive = archive(self.s, n);
        let mut probe = probe_image();
        probe.name = format!("{name}:latest");
        probe.write_oci(&archive);
        self.durable(&format!("load -q -i {}", path(&archive)), |w, _| {
            w.images.insert(name.clone());
        });
        self.run(&format!("update --restart always {c}"), nothing);
        self.durable(&format!("rmi made{n}"), |w, _| {
            w.images.remove(&format!("made{n}"));
        });
        self.run(&format!("rm -f {b}"), |w, _| {
            w.containers.remove(&b);
            w.wanted.remove(&b);
        });
    }
}

/// What `ps -a` says after a cut.
struct Seen {
    /// State and id by name.
    rows: BTreeMap<String, (String, String)>,
    /// Names of the damaged ones, each of which is named with its file.
    damaged: BTreeSet<String>,
}

fn look(s: &Sandbox, cut: &Cut) -> Seen {
    let format = "{{.Names}} {{.State}} {{.ID}}";
    let listed = s.run(&["ps", "-a", "--no-trunc", "--format", format]);
    assert_eq!(listed.code, 0, "{cut:?}: {listed:?}");
    let mut seen = Seen {
        rows: BTreeMap::new(),
        damaged: BTreeSet::new(),
    };
    for line in listed.stdout.lines() {
        let f: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if f[1] == "dead" {
            let config = crate::boot::data(s, &f[2]).join("config.json");
            assert!(listed.stderr.contains(path(&config)), "{cut:?}: {listed:?}");
            seen.damaged.insert(f[0].clone());
        }
        seen.rows.insert(f[0].clone(), (f[1].clone(), f[2].clone()));
    }
    assert_eq!(
        seen.damaged.is_empty(),
        listed.stderr.is_empty(),
        "{listed:?}"
    );
    for name in fs::read_dir(s.root().join("names")).unwrap().flatten() {
        let name = name.file_name().into_string().unwrap();
        assert!(
            seen.rows.contains_key(&name),
            "{cut:?}: {name} leads nowhere"
        );
    }
    seen
}

fn words(out: &str) -> BTreeSet<String> {
    out.lines().map(str::to_owned).collect()
}

/// Which of the worlds is there.
fn find<'w>(s: &Sandbox, cut: &Cut, seen: &Seen, allowed: &'w [World]) -> &'w World {
    let id = |(name, (_, id)): (&String, &(String, String))| (name.clone(), id.clone());
    let shown = World {
        containers: seen.rows.iter().map(id).collect(),
        images: words(&s.run(&["images", "--format", "{{.Repository}}"]).ok()),
        volumes: words(&s.run(&["volume", "ls", "-q"]).ok()),
        wanted: BTreeSet::new(),
    };
    let same = |w: &&World| {
        w.containers == shown.containers
            && w.images == shown.images
            && w.volumes.is_subset(&shown.volumes)
    };
    allowed.iter().find(same).unwrap_or_else(|| {
        let lines: String = allowed.iter().map(|w| format!("{w:?}\n")).collect();
        panic!("{cut:?}: {shown:?}\nis none of\n{lines}")
    })
}

/// A boot after the cut: one of the worlds is there, and it can be worked with.
fn boot(s: &Sandbox, cut: &Cut, history: &History) -> Seen {
    let text = format!("another boot\n{}\n", s.run_root().display());
    fs::write(s.root().join("boot"), text).unwrap();
    let seen = look(s, cut);
    let allowed = &history.worlds[cut.first..=cut.last.min(history.worlds.len() - 1)];
    let world = find(s, cut, &seen, allowed);
    let out = s.run(&["system", "start"]);
    assert_eq!(
        out.code,
        i32::from(!seen.damaged.is_empty()),
        "{cut:?}: {out:?}"
    );
    let started = words(&out.stdout);
    // One that is being removed has been stopped for it.
    if allowed.iter().all(|w| w.wanted == world.wanted) {
        let wanted = world.wanted.difference(&seen.damaged);
        let missing: Vec<&String> = wanted.filter(|name| !started.contains(*name)).collect();
        assert!(missing.is_empty(), "{cut:?}: {missing:?} did not come back");
    }
    for name in &started {
        assert_eq!(s.inspect(name)["State"]["Status"], "running");
    }
    work(s, cut, &seen, &world.images);
    seen
}

/// How a container ended is known, or is said not to be.
fn ended(s: &Sandbox, name: &str) {
    let state = s.inspect(name)["State"].clone();
    let error = state["Error"].as_str().unwrap();
    match (
        state["Status"].as_str().unwrap(),
        state["ExitCode"].as_i64().unwrap(),
    ) {
        ("exited", 255) => assert_ne!(error, "", "{state}"),
        ("exited", code) => assert!(code == 137 || code == 143, "{state}"),
        ("created" | "running", _) => {}
        _ => panic!("{state}"),
    }
}

/// Everything that is there does what it is for, and goes.
fn work(s: &Sandbox, cut: &Cut, seen: &Seen, images: &BTreeSet<String>) {
    for image in images {
        let program = if image == PULLED {
            &["true"][..]
        } else {
            &["exit", "0"]
        };
        let out = s.run(&[&["run", "--rm", image], program].concat());
        assert_eq!(out.code, 0, "{cut:?}: {image}: {out:?}");
    }
    for (name, (state, id)) in &seen.rows {
        if state != "dead" {
            ended(s, name);
            s.run(&["start", name]).ok();
            // Perhaps what was being committed: what lies about of that is not taken for whole.
            s.run(&["commit", name, "again"]).ok();
            s.run(&["run", "--rm", "again", "exit", "0"]).ok();
        }
        s.run(&["rm", "-f", name]).ok();
        assert!(!crate::boot::data(s, id).exists(), "{cut:?}: {name}");
        s.run(&["create", "--name", name, "probe-linux"]).ok();
        s.run(&["rm", name]).ok();
    }
    s.run(&["load", "-q", "-i", path(&archive(s, ROUNDS - 1))])
        .ok();
    s.run(&["run", "--rm", &format!("loaded{}", ROUNDS - 1)])
        .ok();
    for dir in ["containers", "names"] {
        // What `--rm` removes goes some time after its command.
        let dir = s.root().join(dir);
        wait_until(
            &format!("{} to be empty, {cut:?}", path(&dir)),
            SLOW,
            || fs::read_dir(&dir).unwrap().count() == 0,
        );
    }
}

/// Copies the device again and again until the commands are through.
fn cut_on(disk: &Disk<'_>, history: &Mutex<History>, done: &AtomicBool) -> Vec<Cut> {
    let mut numbers = Numbers(7);
    let mut cuts = Vec::new();
    while !done.load(Ordering::Relaxed) && cuts.len() < CUTS_MAX {
        std::thread::sleep(Duration::from_millis(numbers.below(12) as u64));
        let how = match numbers.below(8) {
            0 | 1 => WriteBack::None,
            2..=4 => WriteBack::Journal,
            5 | 6 => WriteBack::Some,
            _ => WriteBack::All,
        };
        let file = disk.s.dir.join(format!("cut{}", cuts.len()));
        let first = {
            let history = history.lock().unwrap();
            match how {
                WriteBack::None => history.durable,
                _ => history.worlds.len() - 1,
            }
        };
        disk.write_back(how, &mut numbers);
        disk.copy(&file);
        let last = history.lock().unwrap().worlds.len();
        cuts.push(Cut {
            file,
            how,
            first,
            last,
        });
    }
    cuts
}

#[test]
fn what_was_answered_is_there_after_a_cut_at_any_moment() {
    let s = Sandbox::new();
    let mut disk = Disk::new(&s);
    s.load_probes();
    let history = Mutex::new(History::default());
    let probes = ["probe-linux", "probe-wasm", "probe-p1"];
    let first = World {
        images: probes.map(str::to_owned).into(),
        ..World::default()
    };
    history.lock().unwrap().worlds.push(first);
    let done = AtomicBool::new(false);
    let driver = Driver {
        s: &s,
        history: &history,
    };
    let cuts = std::thread::scope(|scope| {
        let cutter = scope.spawn(|| cut_on(&disk, &history, &done));
        let registry = Registry::start(&s);
        registry.push("pulled", "latest", &busybox_image("pulled").blobs());
        for n in 0..ROUNDS {
            driver.round(n, ["probe-linux", "probe-wasm"][n % 2]);
            if n == 0 {
                driver.durable(&format!("pull -q {PULLED}"), |w, _| {
                    w.images.insert(PULLED.to_owned());
                });
            }
        }
        done.store(true, Ordering::Relaxed);
        cutter.join().unwrap()
    });
    s.check();
    s.settle();
    disk.unmount();
    let history = history.into_inner().unwrap();
    assert!(cuts.len() > 8, "only {} cuts", cuts.len());
    let (mut rows, mut damaged) = (0, 0);
    for cut in &cuts {
        fs::remove_dir_all(s.run_root()).unwrap();
        disk.file.clone_from(&cut.file);
        disk.mount();
        let seen = boot(&s, cut, &history);
        rows += seen.rows.len();
        damaged += seen.damaged.len();
        s.settle();
        disk.unmount();
        fs::remove_file(&cut.file).unwrap();
    } // What lasts is on its way to the disk before it has its name.
    assert!(
        rows > 10 && damaged * 4 <= rows,
        "{damaged} of {rows} are damaged"
    );
}
