//! Compression of rotated log files, in a process of its own: a supervisor never stands still.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use amphora_sys::pidfd;
use amphora_sys::process::{Spawn, spawn_self};
use amphora_sys::supervise::take_inherited;
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{AtFlags, Mode, OFlags, open, openat, renameat, unlinkat};

/// The hidden entry that compresses one file.
pub const COMPRESS_ENTRY: &str = "compress-log";
/// The number of the directory it inherits.
const DIR_FD: i32 = 3;

/// At most one process that compresses.
#[derive(Debug, Default)]
pub(crate) struct Compressor {
    running: Option<OwnedFd>,
}

impl Compressor {
    /// Whether the last file is still being compressed.
    pub(crate) fn busy(&mut self) -> bool {
        let ended = self
            .running
            .as_ref()
            .is_none_or(|p| !matches!(pidfd::wait(p.as_fd(), pidfd::Wait::Poll), Ok(None)));
        if ended {
            self.running = None;
        }
        !ended
    }

    /// Waits for it: the next supervisor would not know of it.
    pub(crate) fn finish(&mut self) {
        if let Some(process) = self.running.take() {
            let _ = pidfd::wait(process.as_fd(), pidfd::Wait::Block);
        }
    }

    /// Has a file of a directory compressed. One that cannot be stays as it is.
    pub(crate) fn start(&mut self, dir: BorrowedFd<'_>, name: &str) {
        self.running = spawn(dir, name).ok();
    }
}

fn spawn(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let text = |text: &str| std::ffi::CString::new(text).map_err(io::Error::from);
    let args = [text("amphora")?, text(COMPRESS_ENTRY)?, text(name)?];
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let exe = open(
        "/proc/self/exe",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let null = null.as_fd();
    let launched = spawn_self(&Spawn {
        program: exe.as_fd(),
        args: &args,
        env: &[],
        fds: &[(null, 0), (null, 1), (null, 2), (dir, DIR_FD)],
        cgroup: None,
        cgroup_tasks: &[],
    })?;
    Ok(launched.pidfd)
}

/// Runs the hidden entry `compress-log NAME`: `NAME` in the inherited directory becomes
/// `NAME.gz`, at once.
#[must_use]
pub fn compress_main() -> ExitCode {
    let name = std::env::args().nth(2).unwrap_or_default();
    let done = take_inherited(DIR_FD).and_then(|dir| compress(dir.as_fd(), &name));
    if done.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn compress(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let (temporary, packed) = (format!("{name}.gz.tmp"), format!("{name}.gz"));
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut from = File::from(openat(dir, name, OFlags::RDONLY | flags, Mode::empty())?);
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | flags;
    let to = File::from(openat(dir, &temporary, create, Mode::from_raw_mode(0o640))?);
    let mut encoder = GzEncoder::new(to, Compression::fast());
    let done = io::copy(&mut from, &mut encoder)
        .and_then(|_| encoder.finish())
        .and_then(|_| Ok(renameat(dir, &temporary, dir, &packed)?));
    match done {
        Ok(()) => Ok(unlinkat(dir, name, AtFlags::empty())?),
        Err(e) => {
            let _ = unlinkat(dir, &temporary, AtFlags::empty());
            Err(e)
        }
    }
}
