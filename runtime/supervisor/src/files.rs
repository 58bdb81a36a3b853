//! Small files beneath a directory descriptor: whole reads, and writes that appear at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Advice, AtFlags, Mode, OFlags, fadvise, open, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::SupervisorError;

/// Opens a directory for use as an anchor.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, SupervisorError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|e| SupervisorError::file("open", path, e))
}

/// Writes everything, however often the kernel takes only a part.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes a file of its own name plus `.new` and renames it into place.
pub(crate) fn replace(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    replace_with(dir, name, bytes, |_| {})
}

/// The same for what is to survive a power cut. Nothing is waited for, but the bytes go on their
/// way to the disk first: a file system that puts off where data go would else have the name there
/// half a minute before them.
pub(crate) fn replace_lasting(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    replace_with(dir, name, bytes, |file| {
        // Advice: what it fails at is no failure of ours.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
    })
}

/// Writes over the beginning of a file that is there, which needs no room on the disk.
pub(crate) fn overwrite(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(dir, name, flags, Mode::empty())?;
    write_all(file.as_fd(), bytes)
}

fn replace_with(
    dir: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    written: impl FnOnce(&OwnedFd),
) -> io::Result<()> {
    let temporary = format!("{name}.new");
    let result = write_new(dir, &temporary, bytes)
        .map(|file| written(&file))
        .and_then(|()| Ok(renameat(dir, &temporary, dir, name)?));
    if result.is_err() {
        let _ = unlinkat(dir, &temporary, AtFlags::empty());
    }
    result
}

fn write_new(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    write_all(file.as_fd(), bytes)?;
    Ok(file)
}

/// Reads a file of at most `limit` bytes; `None` when it is not there.
pub(crate) fn read(dir: BorrowedFd<'_>, name: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut bytes = vec![0; 512];
    let mut len = 0;
    loop {
        if len == bytes.len() {
            if len >= limit {
                return Err(io::ErrorKind::InvalidData.into());
            }
            bytes.resize((len * 4).min(limit), 0);
        }
        match rustix::io::read(&file, &mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    bytes.truncate(len);
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_files_are_read_back_and_limited() {
        let path = std::env::temp_dir().join(format!("amphora-files-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let dir = open_dir(&path).unwrap();
        assert_eq!(read(dir.as_fd(), "x", 10).unwrap(), None);
        replace(dir.as_fd(), "x", &[7; 5000]).unwrap();
        assert_eq!(
            read(dir.as_fd(), "x", 8192).unwrap().unwrap(),
            vec![7; 5000]
        );
        assert!(read(dir.as_fd(), "x", 600).is_err());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
