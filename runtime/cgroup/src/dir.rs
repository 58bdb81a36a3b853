//! A cgroup directory held open, and its files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir as ReadDir, FileType, Mode, OFlags, fstat, fstatfs, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;

use crate::CgroupError;

/// `cgroup` (v1) magic of `statfs(2)`.
pub(crate) const CGROUP_MAGIC: u64 = 0x0027_e0eb;
/// `cgroup2` magic of `statfs(2)`.
pub(crate) const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Most bytes read from one cgroup file; the longest, `cgroup.procs`, is read in parts.
const FILE_MAX: usize = 1 << 20;

/// An open directory and the path it was opened by, for messages and records.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) path: PathBuf,
    pub(crate) fd: OwnedFd,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl Dir {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = openat(CWD, path, DIRECTORY, Mode::empty())?;
        Ok(Self {
            path: path.to_owned(),
            fd,
        })
    }

    /// Opens a directory below; `name` may have several components, already checked, or none.
    pub(crate) fn child(&self, name: &str) -> io::Result<Self> {
        if name.is_empty() {
            let fd = openat(&self.fd, c".", DIRECTORY, Mode::empty())?;
            let path = self.path.clone();
            return Ok(Self { path, fd });
        }
        let fd = openat(&self.fd, name, DIRECTORY, Mode::empty())?;
        Ok(Self {
            path: self.path.join(name),
            fd,
        })
    }

    /// Makes a directory; says whether it is new.
    pub(crate) fn mkdir(&self, name: &str) -> io::Result<bool> {
        match mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes every missing directory of `name` and opens the last.
    pub(crate) fn make_all(&self, name: &str) -> Result<Self, CgroupError> {
        let mut at: Option<Self> = None;
        for part in name.split('/') {
            let dir = at.as_ref().unwrap_or(self);
            dir.mkdir(part)
                .map_err(|source| dir.error("make", part, source))?;
            at = Some(
                dir.child(part)
                    .map_err(|source| dir.error("open", part, source))?,
            );
        }
        at.ok_or_else(|| CgroupError::invalid("cgroup parent", "it is empty"))
    }

    pub(crate) fn magic(&self) -> io::Result<u64> {
        Ok(u64::try_from(fstatfs(&self.fd)?.f_type).unwrap_or(0))
    }

    pub(crate) fn device(&self) -> io::Result<u64> {
        Ok(fstat(&self.fd)?.st_dev)
    }

    pub(crate) fn open_file(&self, file: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(openat(
            &self.fd,
            file,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )?)
    }

    pub(crate) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let fd = self.open_file(file, OFlags::WRONLY)?;
        loop {
            match rustix::io::write(&fd, value.as_bytes()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    pub(crate) fn read(&self, file: &str) -> io::Result<String> {
        let fd = self.open_file(file, OFlags::RDONLY)?;
        read_all(fd.as_fd())
    }

    /// Reads a file that holds one number; `max` and a missing file are `None`.
    pub(crate) fn read_number(&self, file: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self
            .read_optional(file)?
            .and_then(|text| text.trim().parse().ok()))
    }

    /// Reads a file; `None` when it does not exist, as on a kernel without the feature.
    pub(crate) fn read_optional(&self, file: &str) -> Result<Option<String>, CgroupError> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // The cgroup itself went away while its directory was open.
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            Err(source) => Err(self.error("read", file, source)),
        }
    }

    /// Names of the directories below.
    pub(crate) fn subdirs(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in ReadDir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if entry.file_type() == FileType::Directory && name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// Names of the files in it.
    pub(crate) fn files(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in ReadDir::read_from(&self.fd)? {
            let entry = entry?;
            if entry.file_type() == FileType::RegularFile {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    pub(crate) fn rmdir(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    pub(crate) fn error(&self, action: &'static str, file: &str, source: io::Error) -> CgroupError {
        CgroupError::Io {
            action,
            path: self.path.join(file),
            source,
        }
    }
}

fn read_all(fd: BorrowedFd<'_>) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(4096);
    while bytes.len() < FILE_MAX {
        if bytes.capacity() - bytes.len() < 1024 {
            bytes.reserve(bytes.len());
        }
        match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Finds `key value` in a flat keyed file such as `cpu.stat`.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::keyed;

    #[test]
    fn keyed_takes_whole_keys_only() {
        let text = "oom 1\noom_kill 7\nlow 0\n";
        assert_eq!(keyed(text, "oom_kill"), Some(7));
        assert_eq!(keyed(text, "oom"), Some(1));
        assert_eq!(keyed(text, "oo"), None);
    }
}
