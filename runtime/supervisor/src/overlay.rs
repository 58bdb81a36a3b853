//! Networks over several hosts: the other hosts' questions for names, and their file, which is
//! watched. A change of it is told to the kernel by a program of our own, once on a host.

use std::ffi::{CString, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use amphora_names::{Hosts, Overlay};
use amphora_sys::pidfd;
use amphora_sys::process::{Spawn, spawn_self};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

use crate::again::{c_strings, exe};
use crate::clock;
use crate::server::{Server, TOKEN_OVERLAY};

/// The hidden entry that tells the kernel of a network's hosts: `peers ROOT RUN_ROOT NETWORK`.
pub const PEERS_ENTRY: &str = "peers";
/// Of the numbers that events carry: the watch, the programs, the networks.
const PART_PROGRAM: u64 = 1;
const PART_NETWORKS: u64 = 0x1000;
/// When what somebody else does, or what could not be watched, is looked at again.
const AGAIN_NS: u64 = clock::NANOS;
/// Longest pause before what failed is tried again.
const PAUSE_MAX_NS: u64 = 64 * clock::NANOS;
/// What changes a file comes seldom alone.
const SOON_NS: u64 = 20_000_000;
/// Longest file of hosts that is compared.
const FILE_MAX: u64 = 1 << 20;
/// Most links that lead to a file.
const LINKS_MAX: usize = 16;
/// Room for what a watch tells.
const NOTES: usize = 4 << 10;

/// What a supervisor does for its container's networks over several hosts.
#[derive(Debug)]
pub(crate) struct Overlays {
    hosts: Hosts,
    data: PathBuf,
    run: PathBuf,
    watched: Vec<Watched>,
    /// `None`: it could not be made. Closing it waits in the kernel: it is kept to the end.
    notes: Option<OwnedFd>,
    /// What a note may be about; others' files in the same folders are not ours.
    names: Vec<OsString>,
    /// When the files are looked at again, whatever was told of them.
    due: Option<u64>,
}

/// A file of hosts.
#[derive(Debug)]
struct Watched {
    overlay: Overlay,
    tried: Option<Tried>,
    running: Option<Program>,
}

/// What came to nothing for another reason than itself.
#[derive(Debug)]
struct Tried {
    text: Vec<u8>,
    /// When it is tried again, and how long was waited for that.
    at: u64,
    pause: u64,
}

impl Tried {
    /// Waits twice as long as the last time.
    fn new(text: Vec<u8>, last: Option<&Self>, now: u64) -> Self {
        let last = last.filter(|last| last.text == text);
        let pause = last.map_or(AGAIN_NS, |last| PAUSE_MAX_NS.min(last.pause * 2));
        let at = now.saturating_add(pause);
        Self { text, at, pause }
    }
}

/// The program that tells the kernel, and the lock that keeps others from doing the same.
#[derive(Debug)]
struct Program {
    process: OwnedFd,
    #[expect(dead_code, reason = "held until the program has ended")]
    lock: OwnedFd,
    text: Vec<u8>,
}

impl Overlays {
    /// What is closed behind everything else.
    pub(crate) fn into_late(self) -> Option<OwnedFd> {
        self.notes
    }

    fn watch(&mut self, epoll: &OwnedFd) {
        self.due = None;
        self.names.clear();
        if self.watched.is_empty() {
            return;
        }
        if self.notes.is_none() {
            self.notes = notes(epoll);
        }
        let mut whole = self.notes.is_some();
        for one in &self.watched {
            self.names.extend(names(&one.overlay.file));
            let Some(notes) = &self.notes else { continue };
            whole &= add(notes, &one.overlay.file).is_ok();
            // It is replaced when the link was made anew. Before the first time it is not there.
            let _ = inotify::add_watch(notes, &one.overlay.applied, WatchFlags::DELETE_SELF);
        }
        if !whole {
            self.due = Some(clock::monotonic().saturating_add(AGAIN_NS));
        }
    }

    /// Takes the notes; says whether one of them is about what is watched.
    fn noted(&self) -> bool {
        let mut room = [MaybeUninit::uninit(); NOTES];
        let Some(notes) = &self.notes else {
            return false;
        };
        let mut reader = inotify::Reader::new(notes, &mut room);
        let mut ours = false;
        while let Ok(note) = reader.next() {
            let name = note.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
            // Without a name it is about a folder itself, or some were lost.
            ours |= name.is_none_or(|name| self.names.iter().any(|n| n == name));
        }
        ours && !self.watched.is_empty()
    }
}

/// An instance that wakes the loop.
fn notes(epoll: &OwnedFd) -> Option<OwnedFd> {
    let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
    let notes = inotify::init(flags).ok()?;
    let token = EventData::new_u64(TOKEN_OVERLAY);
    epoll::add(epoll, &notes, token, EventFlags::IN).ok()?;
    Some(notes)
}

/// What a file is called, and everything on the way to it when it is a link.
fn names(file: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = file.file_name().map(Into::into).into_iter().collect();
    let mut at = file.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(to) = std::fs::read_link(&at) else {
            break;
        };
        names.extend(to.iter().map(Into::into));
        at = at.parent().unwrap_or(Path::new("/")).join(to);
    }
    names
}

/// Watches a file wherever it is: one that is replaced is told of by its directory, one that a link
/// leads to by itself and by its own directory.
fn add(notes: &OwnedFd, file: &Path) -> Result<(), Errno> {
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::CREATE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    let above = |path: &Path| path.parent().map(Path::to_owned).ok_or(Errno::NOENT);
    inotify::add_watch(notes, above(file)?, changes | WatchFlags::ONLYDIR)?;
    let real = std::fs::canonicalize(file).map_err(|_| Errno::NOENT)?;
    if real != file {
        inotify::add_watch(notes, above(&real)?, changes | WatchFlags::ONLYDIR)?;
    }
    Ok(())
}

fn read(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    // What is no file must not hold the loop up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = std::fs::File::from(open(path, flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

impl Server {
    /// Looks which networks over several hosts the container is in, if there are any.
    pub(crate) fn begin_overlays(&mut self) {
        if self.parts.config.overlay {
            self.look_at_overlays();
        }
    }

    /// Looks which networks over several hosts the container is in.
    pub(crate) fn look_at_overlays(&mut self) {
        let Some(settings) = &self.parts.config.names else {
            return;
        };
        let known = self.overlays.take();
        let mut all = known.unwrap_or_else(|| {
            Box::new(Overlays {
                hosts: Hosts::new(settings.clone(), TOKEN_OVERLAY + PART_NETWORKS),
                data: settings.data.clone(),
                run: settings.run.clone(),
                watched: Vec::new(),
                notes: None,
                names: Vec::new(),
                due: None,
            })
        });
        let wanted = all.hosts.look(&self.epoll);
        let same = wanted.len() == all.watched.len()
            && all.watched.iter().all(|w| wanted.contains(&w.overlay));
        if !same {
            all.watched.retain(|w| wanted.contains(&w.overlay));
            for overlay in wanted {
                if !all.watched.iter().any(|w| w.overlay == overlay) {
                    all.watched.push(Watched {
                        overlay,
                        tried: None,
                        running: None,
                    });
                }
            }
            all.watch(&self.epoll);
        }
        let any = !all.watched.is_empty() || all.notes.is_some();
        self.overlays = any.then_some(all);
        // It may have changed before it was watched.
        self.compare_hosts();
    }

    pub(crate) fn overlay_event(&mut self, token: u64) {
        let Some(all) = &mut self.overlays else {
            return;
        };
        match token - TOKEN_OVERLAY {
            0 => {
                // What has changed is seen by looking; what was replaced is watched anew.
                if !all.noted() {
                    return;
                }
                let soon = clock::monotonic().saturating_add(SOON_NS);
                all.due = Some(all.due.map_or(soon, |due| due.min(soon)));
            }
            PART_PROGRAM => self.program_ended(),
            _ => all.hosts.ready(token),
        }
    }

    /// Has the kernel told of what has changed.
    fn compare_hosts(&mut self) {
        let Some(all) = &mut self.overlays else {
            return;
        };
        let token = EventData::new_u64(TOKEN_OVERLAY + PART_PROGRAM);
        let now = clock::monotonic();
        let mut due = all.due;
        let mut again = |at: u64| due = Some(due.map_or(at, |due| due.min(at)));
        for one in &mut all.watched {
            // A file that is gone for now says nothing.
            let Some(text) = read(&one.overlay.file).filter(|_| one.running.is_none()) else {
                continue;
            };
            let known = ["", "refused"].map(|e| one.overlay.applied.with_extension(e));
            if known.iter().any(|path| read(path).as_ref() == Some(&text)) {
                one.tried = None;
                continue;
            }
            if let Some(tried) = &one.tried
                && tried.text == text
                && tried.at > now
            {
                again(tried.at);
                continue;
            }
            let lock = one.overlay.applied.with_extension("lock");
            let Some(lock) = try_lock(&lock) else {
                // Somebody else is at it; should that one be killed, it is done here.
                again(now.saturating_add(AGAIN_NS));
                continue;
            };
            let words: [OsString; 5] = [
                "amphora".into(),
                PEERS_ENTRY.into(),
                all.data.clone().into(),
                all.run.clone().into(),
                one.overlay.network.clone().into(),
            ];
            let started = spawn(&words).and_then(|process| {
                let watched = epoll::add(&self.epoll, &process, token, EventFlags::IN);
                watched.ok().map(|()| process)
            });
            match started {
                Some(process) => {
                    one.running = Some(Program {
                        process,
                        lock,
                        text,
                    });
                }
                None => again(now.saturating_add(AGAIN_NS)),
            }
        }
        all.due = due;
    }

    fn program_ended(&mut self) {
        let Some(all) = &mut self.overlays else {
            return;
        };
        for one in &mut all.watched {
            let ended = |p: &mut Program| {
                !matches!(pidfd::wait(p.process.as_fd(), pidfd::Wait::Poll), Ok(None))
            };
            if let Some(program) = one.running.take_if(ended) {
                // It has said itself what is wrong. What it noted is not tried twice.
                let now = clock::monotonic();
                one.tried = Some(Tried::new(program.text, one.tried.as_ref(), now));
            }
        }
        self.compare_hosts();
    }

    /// Does what is due.
    pub(crate) fn overlay_tick(&mut self) {
        let Some(all) = &mut self.overlays else {
            return;
        };
        if all.due.is_some_and(|due| due <= clock::monotonic()) {
            all.watch(&self.epoll);
            // The link may be another.
            let _same = all.hosts.look(&self.epoll);
            self.compare_hosts();
        }
    }

    /// Shortens a wait to what is due first.
    pub(crate) fn overlay_timeout(&self, timeout: Option<Timespec>) -> Option<Timespec> {
        let Some(due) = self.overlays.as_ref().and_then(|all| all.due) else {
            return timeout;
        };
        let left = due.saturating_sub(clock::monotonic());
        let left = Timespec {
            tv_sec: i64::try_from(left / clock::NANOS).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(left % clock::NANOS).unwrap_or(0),
        };
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }
}

/// A lock that nobody waits for.
fn try_lock(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::from_raw_mode(0o600)).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

fn spawn(words: &[OsString]) -> Option<OwnedFd> {
    let words: Option<Vec<&str>> = words.iter().map(|w| w.to_str()).collect();
    let args: Vec<CString> = c_strings(&words?).ok()?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let null = null.as_fd();
    let launched = spawn_self(&Spawn {
        program: exe().ok()?.as_fd(),
        args: &args,
        env: &[],
        fds: &[(null, 0), (null, 1), (null, 2)],
        cgroup: None,
        cgroup_tasks: &[],
    });
    launched.ok().map(|launched| launched.pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlays(dir: &Path) -> Overlays {
        let settings = amphora_names::Settings {
            data: dir.into(),
            run: dir.into(),
            container: "one".to_owned(),
            servers: Vec::new(),
            bare_names_stay: false,
            place: amphora_names::Place::Here,
        };
        Overlays {
            hosts: Hosts::new(settings, TOKEN_OVERLAY + PART_NETWORKS),
            data: dir.into(),
            run: dir.into(),
            watched: vec![Watched {
                overlay: Overlay {
                    network: "wide".to_owned(),
                    link: "vx-0".to_owned(),
                    own: std::net::Ipv4Addr::LOCALHOST,
                    file: dir.join("peers"),
                    applied: dir.join("run/peers"),
                },
                tried: None,
                running: None,
            }],
            notes: None,
            names: Vec::new(),
            due: None,
        }
    }

    #[test]
    fn notes_are_of_the_files_and_the_instance_stays() {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::symlink;
        let dir = std::env::temp_dir().join(format!("amphora-overlay-{}", std::process::id()));
        let dir = dir.as_path();
        std::fs::create_dir(dir).unwrap();
        for below in ["run", "one", "two"] {
            std::fs::create_dir(dir.join(below)).unwrap();
            std::fs::write(dir.join(below).join("peers"), "").unwrap();
        }
        symlink("one", dir.join("now")).unwrap();
        symlink("now/peers", dir.join("peers")).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut all = overlays(dir);
        all.watch(&epoll);
        let first = all.notes.as_ref().map(AsRawFd::as_raw_fd);
        assert!(first.is_some() && all.due.is_none() && !all.noted());

        std::fs::write(dir.join("other"), "").unwrap();
        std::fs::write(dir.join("one/other"), "").unwrap();
        assert!(!all.noted());
        std::fs::write(dir.join("one/peers"), "a").unwrap();
        assert!(all.noted());
        symlink("two", dir.join("new")).unwrap();
        assert!(!all.noted());
        std::fs::rename(dir.join("new"), dir.join("now")).unwrap();
        assert!(all.noted());
        all.watch(&epoll);
        assert_eq!(all.notes.as_ref().map(AsRawFd::as_raw_fd), first);
        std::fs::write(dir.join("two/peers"), "b").unwrap();
        assert!(all.noted());
        // What the kernel was told last is replaced.
        std::fs::write(dir.join("run/new"), "").unwrap();
        assert!(!all.noted());
        std::fs::rename(dir.join("run/new"), dir.join("run/peers")).unwrap();
        assert!(all.noted());

        assert_eq!(read(&dir.join("two/peers")).unwrap(), b"b");
        let fifo = dir.join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        assert_eq!(read(&fifo), None);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_seldom() {
        let mut tried = Tried::new(b"a".to_vec(), None, 5);
        assert_eq!(tried.at, 5 + AGAIN_NS);
        for _ in 0..9 {
            tried = Tried::new(b"a".to_vec(), Some(&tried), 0);
        }
        assert_eq!(tried.at, PAUSE_MAX_NS);
        tried = Tried::new(b"b".to_vec(), Some(&tried), 0);
        assert_eq!(tried.at, AGAIN_NS);
    }
}
