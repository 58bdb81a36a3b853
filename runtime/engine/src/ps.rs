//! The list of containers for `ps`: of those that do not run it comes from the [index](crate::index),
//! of those that do from their records.

use std::collections::HashSet;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use amphora_spec::ContainerId;
use rustix::fs::{AtFlags, RawDir, fstat, statat};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::container::{ContainerView, Status};
use crate::files::{Lock, open_dir};
use crate::index::{Contents, Index, Stamp};
use crate::summary::Summary;
use crate::{Engine, EngineError, Result};

/// Containers that run from which on their records are read by two threads.
const SPLIT: usize = 64;
/// Bytes of directory entries that are read at once.
const ENTRIES: usize = 32 << 10;

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// When, nanoseconds since 1970; 0 when nobody knows.
    pub at: u64,
}

/// One container in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What does not change.
    pub summary: Summary,
    /// Status.
    pub status: Status,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
    /// Everything, for one that has a run directory.
    pub view: Option<Box<ContainerView>>,
    /// What is wrong with its records, if they cannot be read.
    pub damage: Option<Box<str>>,
}

impl Listed {
    /// One that does not run.
    pub(crate) fn idle(summary: Summary, ended: Option<Ended>) -> Self {
        let status = if ended.is_some() {
            Status::Exited
        } else {
            Status::Created
        };
        Self {
            summary,
            status,
            ended,
            view: None,
            damage: None,
        }
    }
}

impl From<ContainerView> for Listed {
    fn from(view: ContainerView) -> Self {
        let ended = view.exit.as_ref().map(|e| Ended {
            code: e.code,
            at: crate::list::nanos(&e.finished_at),
        });
        Self {
            summary: Summary::of(&view.config),
            status: view.status,
            ended: ended.filter(|_| view.status != Status::Running),
            view: Some(Box::new(view)),
            damage: None,
        }
    }
}

impl Engine {
    /// Lists containers for `ps`, newest first; only running ones unless `all`.
    ///
    /// # Errors
    /// When the roots cannot be read.
    pub fn ps(&self, all: bool) -> Result<Vec<Listed>> {
        let live = self.live()?;
        let running = self.live_rows(&live, all)?;
        let mut rows = if all {
            self.idle_rows(live.into_iter().collect())?
        } else {
            Vec::new()
        };
        rows.extend(running);
        newest_first(&mut rows, |row| row.summary.created);
        Ok(rows)
    }

    /// Ids that have a run directory.
    fn live(&self) -> Result<Vec<ContainerId>> {
        let path = self.options.run_root.join("containers");
        let mut ids = Vec::new();
        names_in(open_dir(&path)?.as_fd(), |name| ids.extend(id_of(name)))
            .map_err(|e| EngineError::file("read", &path, e))?;
        Ok(ids)
    }

    fn live_rows(&self, ids: &[ContainerId], all: bool) -> Result<Vec<Listed>> {
        let some = |ids: &[ContainerId]| -> Result<Vec<Listed>> {
            let mut rows = Vec::with_capacity(ids.len());
            for id in ids {
                if !Lock::is_held(&self.run_dir(id)) {
                    // Kept for the next time when it fails, as for every other command.
                    let _ = self.reconcile_one(id);
                }
                match self.view(id) {
                    Ok(view) if all || view.status.is_active() => rows.push(view.into()),
                    Ok(_) | Err(EngineError::NoSuchContainer(_)) => {}
                    Err(e) => rows.push(self.damaged(id, &e)),
                }
            }
            Ok(rows)
        };
        if ids.len() < SPLIT {
            return some(ids);
        }
        let (left, right) = ids.split_at(ids.len() / 2);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| some(right));
            let mut rows = some(left)?;
            let joined = other.join().map_err(|_| {
                EngineError::State("the reader of container records ended".to_owned())
            })?;
            rows.extend(joined?);
            Ok(rows)
        })
    }

    /// Lists the containers that are not among the `live` ones.
    fn idle_rows(&self, live: HashSet<ContainerId>) -> Result<Vec<Listed>> {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let path = self.options.root.join("containers");
        let dir = open_dir(&path)?;
        let stat = fstat(&dir).map_err(|e| EngineError::file("read", &path, e))?;
        let index = Index::read(&self.options.run_root);
        let mut scan = Scan {
            engine: self,
            dir: dir.as_fd(),
            now,
            live,
            contents: Contents {
                containers: Stamp::of(&stat).settled(now),
                device: stat.st_dev,
                ..Contents::default()
            },
            damaged: Vec::new(),
            changed: false,
        };
        if index.containers() == Some(Stamp::of(&stat)) {
            // No container came or went since.
            scan.known(&index, |_| true);
        } else {
            let mut ids = scan.ids()?;
            scan.known(&index, |id| ids.remove(id));
            scan.changed |= !ids.is_empty() || scan.contents.containers.is_some();
            for id in ids {
                scan.examine(id);
            }
        }
        Ok(scan.end())
    }

    /// What is left to say of a container whose records cannot be read.
    fn damaged(&self, id: &ContainerId, error: &EngineError) -> Listed {
        let dir = self.container_dir(id);
        let created = crate::boot::changed(&dir).unwrap_or(0);
        let name = self.claimed_name(id).unwrap_or_default();
        let damage = format!(
            "container {} is damaged: {}",
            id.short(),
            amphora_spec::error::chain(error)
        );
        Listed {
            status: Status::Dead,
            damage: Some(damage.into()),
            ..Listed::idle(Summary::unknown(*id, created, &name), None)
        }
    }

    /// The name that is claimed for a container, whose own record of it cannot be read.
    fn claimed_name(&self, id: &ContainerId) -> Option<String> {
        let entries = std::fs::read_dir(self.options.root.join("names")).ok()?;
        let hex = id.hex();
        entries.flatten().find_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            (target.as_os_str() == hex.as_str()).then(|| entry.file_name().into_string().ok())?
        })
    }

    /// Reads the records of a container that does not run; `None` for one that never came to be.
    fn idle(&self, id: &ContainerId) -> Result<Option<Listed>> {
        let config = match self.config(id) {
            Ok(config) => config,
            // Without a writable layer it never came to be.
            Err(EngineError::NoSuchContainer(_)) if !self.lost_its_config(id) => return Ok(None),
            Err(EngineError::NoSuchContainer(_)) => {
                return Err(EngineError::State(format!(
                    "\"{}/config.json\" is missing",
                    self.container_dir(id).display()
                )));
            }
            Err(e) => return Err(e),
        };
        // Most of those that do not run never did.
        let exit = self.container_dir(id).join("exit").exists();
        let ended = exit.then(|| self.ended(id)).flatten().map(|e| Ended {
            code: e.code,
            at: crate::list::nanos(&e.finished_at),
        });
        Ok(Some(Listed::idle(Summary::of(&config), ended)))
    }
}

/// One look at all containers that do not run.
struct Scan<'a> {
    engine: &'a Engine,
    dir: BorrowedFd<'a>,
    /// From before anything was looked at.
    now: Timespec,
    live: HashSet<ContainerId>,
    /// What the next index is made of, and what is listed.
    contents: Contents,
    damaged: Vec<Listed>,
    /// Whether the index could say more than it does.
    changed: bool,
}

impl Scan<'_> {
    /// The ids of all containers.
    fn ids(&mut self) -> Result<HashSet<ContainerId>> {
        let (mut ids, mut cut_off) = (HashSet::new(), false);
        names_in(self.dir, |name| match id_of(name) {
            Some(id) => drop(ids.insert(id)),
            None => cut_off = true,
        })
        .map_err(|e| {
            let path = self.engine.options.root.join("containers");
            EngineError::file("read", &path, e)
        })?;
        if cut_off {
            // Kept for the next time when it fails.
            let _ = self.engine.sweep_removed();
            self.contents.containers = None;
        }
        Ok(ids)
    }

    /// Takes over what the index says of the containers that `is_there` knows.
    fn known(&mut self, index: &Index, mut is_there: impl FnMut(&ContainerId) -> bool) {
        self.contents.rows.reserve(index.len());
        for (listed, stamp) in index.rows() {
            let id = listed.summary.id;
            if !is_there(&id) {
                self.changed = true;
            } else if self.live.contains(&id) {
                // Its end leaves another stamp behind.
                self.contents.others.push(id);
            } else if stamp.is_some() && self.stamp(&id) == stamp {
                self.contents.rows.push((listed, stamp));
            } else {
                self.examine(id);
            }
        }
    }

    /// Reads a container's records.
    fn examine(&mut self, id: ContainerId) {
        if self.live.contains(&id) {
            self.contents.others.push(id);
            return;
        }
        // Before they are read: what changes meanwhile leaves another stamp behind.
        let stamp = self.stamp(&id).and_then(|stamp| stamp.settled(self.now));
        match self.engine.idle(&id) {
            Ok(Some(listed)) => {
                self.changed |= stamp.is_some();
                self.contents.rows.push((listed, stamp));
            }
            Ok(None) => self.contents.others.push(id),
            Err(e) => {
                self.damaged.push(self.engine.damaged(&id, &e));
                self.contents.others.push(id);
            }
        }
    }

    fn stamp(&self, id: &ContainerId) -> Option<Stamp> {
        let mut path = [0; 65];
        path.split_at_mut(64).0.copy_from_slice(&id.digits());
        let path = CStr::from_bytes_with_nul(&path).ok()?;
        let stat = statat(self.dir, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(Stamp::of(&stat))
    }

    /// Writes the index anew, if that is of use, and returns the list.
    fn end(mut self) -> Vec<Listed> {
        newest_first(&mut self.contents.rows, |(row, _)| row.summary.created);
        if self.changed {
            self.contents.write(&self.engine.options.run_root);
        }
        let rows = self.contents.rows.into_iter().map(|(row, _)| row);
        let mut rows: Vec<Listed> = rows
            // It is being removed.
            .filter(|row| row.ended.is_none() || !row.summary.auto_remove)
            .collect();
        rows.append(&mut self.damaged);
        rows
    }
}

fn newest_first<T>(rows: &mut [T], created: impl Fn(&T) -> u64) {
    rows.sort_by_key(|row| std::cmp::Reverse(created(row)));
}

fn id_of(name: &CStr) -> Option<ContainerId> {
    name.to_str().ok()?.parse().ok()
}

/// Hands out the names in a directory.
fn names_in(dir: BorrowedFd<'_>, mut f: impl FnMut(&CStr)) -> Result<(), Errno> {
    let mut buffer = [const { MaybeUninit::uninit() }; ENTRIES];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            f(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use amphora_supervisor::ExitRecord;

    use super::*;
    use crate::EngineOptions;
    use crate::config::ContainerConfig;
    use crate::files::{Lasting, write, write_json};

    /// A data root and a run root of its own, without anything that runs.
    struct Place {
        dir: PathBuf,
        engine: Engine,
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    fn open(dir: &std::path::Path, run: &std::path::Path) -> Engine {
        let options = EngineOptions {
            warn: |_| (),
            root: dir.join("root"),
            run_root: run.join("run"),
            insecure_registries: Vec::new(),
            settings: crate::Settings::default(),
        };
        Engine::open(options, Vec::new()).unwrap()
    }

    impl Place {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("amphora-ps-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            let engine = open(&dir, &dir);
            Self { dir, engine }
        }

        fn data(&self, n: u8) -> PathBuf {
            self.engine.container_dir(&id(n))
        }

        fn configure(&self, n: u8, name: &str) {
            let text = include_str!("../testdata/config-v1.json");
            let mut config: ContainerConfig = serde_json::from_str(text).unwrap();
            config.id = id(n);
            config.name = name.to_owned();
            config.created = crate::list::time_text(1_700_000_000_000_000_000 + u64::from(n));
            write_json(&self.data(n).join("config.json"), &config, Lasting::Long).unwrap();
        }

        fn create(&self, n: u8, name: &str) {
            fs::create_dir_all(self.data(n).join("upper")).unwrap();
            self.configure(n, name);
        }

        fn end(&self, n: u8, code: i32) {
            let record = ExitRecord {
                code,
                ..ExitRecord::unknown("", 1, 2)
            };
            record
                .write(open_dir(&self.data(n)).unwrap().as_fd())
                .unwrap();
        }

        /// Name and status of each, as `ps` has them.
        fn list(&self) -> Vec<String> {
            let word = |row: &Listed| match row.ended {
                Some(ended) => format!("{} ended {}", row.summary.name(), ended.code),
                None => format!("{} {}", row.summary.name(), row.status.as_str()),
            };
            self.engine.ps(true).unwrap().iter().map(word).collect()
        }

        fn index(&self) -> Index {
            Index::read(&self.engine.options.run_root)
        }

        /// Lists until the index answers for `known` containers and for that there are no others.
        #[track_caller]
        fn settle(&self, known: usize) {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                self.list();
                let index = self.index();
                let rows = index.rows().filter(|(_, stamp)| stamp.is_some());
                if rows.count() == known && index.containers().is_some() {
                    return;
                }
                assert!(Instant::now() < deadline, "the index does not settle");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn id(n: u8) -> ContainerId {
        ContainerId::from_random([n; 32])
    }

    #[test]
    fn newest_come_first_from_the_index_too() {
        let p = Place::new("order");
        for (n, name) in [(2, "two"), (3, "three"), (1, "one")] {
            p.create(n, name);
        }
        let all = ["three created", "two created", "one created"];
        assert_eq!(p.list(), all);
        p.settle(3);
        assert_eq!(p.list(), all);
    }

    /// What changed within a tick of the clock may change again unseen.
    #[test]
    fn what_is_young_is_not_believed() {
        let believed = |p: &Place| {
            let index = p.index();
            let rows: Vec<bool> = index.rows().map(|(_, stamp)| stamp.is_some()).collect();
            (rows, index.containers().is_some())
        };
        for _ in 0..100 {
            let p = Place::new("young");
            let begin = Instant::now();
            p.create(1, "one");
            assert_eq!(p.list(), ["one created"]);
            let first = believed(&p);
            let early = begin.elapsed();
            p.settle(1);
            // A second container makes the directory of all young again, and not the first one.
            let begin = Instant::now();
            p.create(2, "two");
            p.list();
            let second = believed(&p);
            // On a busy machine they are old when they are looked at.
            if early.max(begin.elapsed()) < Duration::from_millis(90) {
                assert_eq!(first, (vec![false], false));
                assert_eq!(second, (vec![false, true], false));
                return;
            }
        }
        panic!("the machine is too slow");
    }

    #[test]
    fn containers_that_come_and_go_are_seen() {
        let p = Place::new("come");
        p.create(1, "one");
        p.settle(1);
        p.create(2, "two");
        assert_eq!(p.list(), ["two created", "one created"]);
        p.settle(2);
        fs::remove_dir_all(p.data(1)).unwrap();
        assert_eq!(p.list(), ["two created"]);
        p.settle(1);
        assert_eq!(p.index().len(), 1);
    }

    #[test]
    fn records_that_are_replaced_are_seen() {
        let p = Place::new("replace");
        p.create(1, "one");
        p.settle(1);
        p.configure(1, "two");
        assert_eq!(p.list(), ["two created"]);
        p.settle(1);
        for code in [4, 5] {
            p.end(1, code);
            assert_eq!(p.list(), [format!("two ended {code}")]);
            p.settle(1);
        }
        // What a start does with it, and what it does when it fails.
        crate::finish::put_exit_aside(&p.data(1)).unwrap();
        assert_eq!(p.list(), ["two created"]);
        p.settle(1);
        crate::finish::settle_exit(&p.data(1)).unwrap();
        assert_eq!(p.list(), ["two ended 5"]);
    }

    /// Nothing changes in the directory of all containers when a run directory goes.
    #[test]
    fn one_that_somebody_was_at_is_listed_afterwards() {
        let p = Place::new("live");
        p.create(1, "one");
        p.create(2, "two");
        let lock = Lock::try_acquire(&p.engine.run_dir(&id(2)))
            .unwrap()
            .unwrap();
        assert_eq!(p.list(), ["two created", "one created"]);
        p.settle(1);
        assert_eq!(p.list(), ["two created", "one created"]);
        p.end(2, 3);
        lock.remove_dir().unwrap();
        assert_eq!(p.list(), ["two ended 3", "one created"]);
        p.settle(2);
        // Known from the index and somebody at it: listed once, from its records.
        let lock = Lock::try_acquire(&p.engine.run_dir(&id(2)))
            .unwrap()
            .unwrap();
        assert_eq!(p.list(), ["two ended 3", "one created"]);
        lock.remove_dir().unwrap();
    }

    #[test]
    fn one_that_is_made_only_now_is_listed_then() {
        let p = Place::new("half");
        p.create(1, "one");
        fs::create_dir(p.data(2)).unwrap();
        p.settle(1);
        assert_eq!(p.list(), ["one created"]);
        p.configure(2, "two");
        assert_eq!(p.list(), ["two created", "one created"]);
    }

    #[test]
    fn damage_is_told_each_time_and_forgotten_when_it_is_mended() {
        let p = Place::new("damage");
        p.create(1, "one");
        symlink(id(1).hex(), p.engine.name_path("one")).unwrap();
        p.settle(1);
        write(&p.data(1).join("config.new"), b"{\"version\"").unwrap();
        fs::rename(p.data(1).join("config.new"), p.data(1).join("config.json")).unwrap();
        for _ in 0..2 {
            assert_eq!(p.list(), ["one dead"]);
        }
        // In an index that was made meanwhile it has its place too.
        p.create(2, "two");
        p.settle(1);
        let mut both = p.list();
        both.sort();
        assert_eq!(both, ["one dead", "two created"]);
        p.configure(1, "one");
        assert_eq!(p.list(), ["two created", "one created"]);
    }

    /// The rest of a removal stays in sight until somebody could finish it.
    #[test]
    fn a_removal_that_was_cut_off_is_not_forgotten() {
        let p = Place::new("removal");
        p.create(1, "one");
        p.create(2, "two");
        p.settle(2);
        let left = p
            .dir
            .join("root/containers")
            .join(format!("{}.removed", id(1)));
        let lock = Lock::try_acquire(&p.engine.run_dir(&id(1)))
            .unwrap()
            .unwrap();
        fs::rename(p.data(1), &left).unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            assert_eq!(p.list(), ["two created"]);
            assert_eq!(p.index().containers(), None);
        }
        lock.remove_dir().unwrap();
        assert!(left.exists());
        p.list();
        assert!(!left.exists());
        p.settle(1);
    }

    /// A copy of a data root has the same ids and other files.
    #[test]
    fn another_data_root_is_not_taken_for_the_first() {
        let p = Place::new("first");
        let other = Place::new("second");
        p.create(1, "one");
        other.create(1, "another");
        p.settle(1);
        let moved = open(&other.dir, &p.dir);
        let rows = moved.ps(true).unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row.summary.name()).collect();
        assert_eq!(names, ["another"]);
    }

    #[test]
    fn whatever_lies_in_the_place_of_the_index_is_no_matter() {
        let p = Place::new("torn");
        p.create(1, "one");
        p.create(2, "two");
        p.end(2, 3);
        p.settle(2);
        let path = p.engine.options.run_root.join("index");
        let whole = fs::read(&path).unwrap();
        let all = p.list();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            for bytes in [&whole[..at], flipped.as_slice()] {
                write(&path, bytes).unwrap();
                assert_eq!(p.index().len(), 0, "{at}");
                if at % 64 == 0 {
                    assert_eq!(p.list(), all, "{at}");
                }
            }
        }
        let mut longer = whole.clone();
        longer.push(0);
        write(&path, &longer).unwrap();
        assert_eq!(p.index().len(), 0);
        write(&path, &whole).unwrap();
        assert_eq!(p.index().len(), 2);
    }
}
