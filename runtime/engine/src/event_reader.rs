//! Reading events: what is on record, then what comes.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use amphora_supervisor::{events_path, older_events_path};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::{Engine, EngineError, Result};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// A reader of events. It sees every record that is written while it reads at least once a file
/// of [`amphora_supervisor::EVENTS_LIMIT`] bytes.
#[derive(Debug)]
pub struct EventReader {
    path: PathBuf,
    watch: OwnedFd,
    /// The file before, which a slow writer may still append to, and the current one.
    files: Vec<Tail>,
}

#[derive(Debug)]
struct Tail {
    file: File,
    inode: u64,
    /// The beginning of a record whose end is not there yet.
    rest: Vec<u8>,
}

impl Engine {
    /// Opens the events: from the first one on record, or from now on.
    ///
    /// # Errors
    /// When the run root cannot be watched.
    pub fn events(&self, from_start: bool) -> Result<EventReader> {
        let root = &self.options.run_root;
        let context = "failed to watch the events";
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(EngineError::io(context))?;
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, root, flags).map_err(EngineError::io(context))?;
        let mut reader = EventReader {
            path: events_path(root),
            watch,
            files: Vec::new(),
        };
        for path in [older_events_path(root), events_path(root)] {
            if let Ok(file) = File::open(&path) {
                reader.follow(file)?;
            }
        }
        if !from_start {
            reader.read()?;
        }
        Ok(reader)
    }
}

impl EventReader {
    fn follow(&mut self, file: File) -> Result<()> {
        let inode = file
            .metadata()
            .map_err(|e| EngineError::file("read", &self.path, e))?
            .ino();
        if self.files.iter().any(|t| t.inode == inode) {
            return Ok(());
        }
        self.files.push(Tail {
            file,
            inode,
            rest: Vec::new(),
        });
        if self.files.len() > 2 {
            self.files.remove(0);
        }
        Ok(())
    }

    /// Returns the records that came since the last call, a line of JSON each.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        self.drain(&mut out)?;
        // After the look at the old file: it was the current one until here.
        if let Ok(file) = File::open(&self.path) {
            let before = self.files.len();
            self.follow(file)?;
            if self.files.len() != before || before == 2 {
                self.drain(&mut out)?;
            }
        }
        Ok(out)
    }

    fn drain(&mut self, out: &mut Vec<String>) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        for tail in &mut self.files {
            loop {
                let count = tail
                    .file
                    .read(&mut chunk)
                    .map_err(|e| EngineError::file("read", &self.path, e))?;
                if count == 0 {
                    break;
                }
                tail.rest.extend(chunk.get(..count).unwrap_or_default());
                while let Some(end) = tail.rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = tail.rest.drain(..=end).collect();
                    out.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
            }
        }
        Ok(())
    }

    /// Waits until something may have been written, or the time is over.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        let spec = timeout.and_then(|t| Timespec::try_from(t).ok());
        match poll(
            &mut [PollFd::new(&self.watch, PollFlags::IN)],
            spec.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(EngineError::io("failed to wait for events")(e)),
        }
        let mut buffer = [0u8; 4096];
        while rustix::io::read(&self.watch, &mut buffer).is_ok_and(|n| n > 0) {}
        Ok(())
    }
}
