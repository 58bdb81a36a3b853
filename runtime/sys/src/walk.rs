//! Paths inside the container: resolved beneath a descriptor, made where they are missing. Works
//! on the stack alone.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat2, readlinkat_raw};
use rustix::io::Errno;

use crate::plan::Create;
use crate::raw::Sys;

const PATH_MAX: usize = 4096;

/// As the kernel's own limit.
const MAX_LINKS: usize = 40;

/// `openat2` answers EAGAIN to a path with `..` when anything is renamed or mounted meanwhile.
const MAX_TRIES: usize = 256;

/// How paths are confined.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Confine {
    /// Links are followed as if the descriptor were `/`.
    InRoot,
    /// Nothing may leave the descriptor.
    Beneath,
    /// Not even links are followed.
    NoLinks,
}

/// Opens `path` below `base`.
pub(crate) fn open(
    base: BorrowedFd<'_>,
    path: &CStr,
    confine: Confine,
    flags: OFlags,
) -> Sys<OwnedFd> {
    let resolve = ResolveFlags::NO_MAGICLINKS
        | match confine {
            Confine::InRoot => ResolveFlags::IN_ROOT,
            Confine::Beneath => ResolveFlags::BENEATH,
            Confine::NoLinks => ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
        };
    for _ in 0..MAX_TRIES {
        match openat2(base, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens `path` below `base` as a path only, and makes it (with the directories above it) when it
/// is missing and `create` says so. A dangling link is followed, and its target made.
pub(crate) fn ensure(
    base: BorrowedFd<'_>,
    path: &CStr,
    confine: Confine,
    create: Create,
) -> Sys<OwnedFd> {
    match open(base, path, confine, OFlags::PATH) {
        Err(Errno::NOENT) if create != Create::No => make(base, path, confine, create),
        result => result,
    }
}

/// Walks the path, making what is missing. On its own: it needs more of the stack than a child of the
/// launch otherwise touches.
#[cold]
#[inline(never)]
fn make(base: BorrowedFd<'_>, path: &CStr, confine: Confine, create: Create) -> Sys<OwnedFd> {
    let mut buffer = Buffer::new(path.to_bytes())?;
    for _ in 0..MAX_LINKS {
        match buffer.walk(base, confine, create)? {
            Walked::There(fd) => return Ok(fd),
            Walked::Link(next) => buffer = next,
        }
    }
    Err(Errno::LOOP)
}

/// Splits a path into the directory above, opened (and made), and the last name.
pub(crate) fn parent<'a>(
    base: BorrowedFd<'_>,
    path: &'a CStr,
    confine: Confine,
) -> Sys<(OwnedFd, &'a CStr)> {
    let bytes = path.to_bytes_with_nul();
    let cut = path
        .to_bytes()
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    let (above, name) = bytes.split_at(cut);
    let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
    let mut buffer = Buffer::new(if above.is_empty() { b"." } else { above })?;
    let above = buffer.text(buffer.len)?;
    Ok((ensure(base, above, confine, Create::Dir)?, name))
}

#[expect(clippy::large_enum_variant, reason = "the stack is all there is")]
enum Walked {
    There(OwnedFd),
    /// A link stood in the way; this is the path with the link's content in its place.
    Link(Buffer),
}

struct Buffer {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl Buffer {
    fn new(path: &[u8]) -> Sys<Self> {
        let mut buffer = Self {
            bytes: [0; PATH_MAX],
            len: 0,
        };
        buffer.push(path)?;
        Ok(buffer)
    }

    /// Appends, and leaves room for a null.
    fn push(&mut self, part: &[u8]) -> Sys<()> {
        let end = self
            .len
            .checked_add(part.len())
            .filter(|end| *end < PATH_MAX);
        let end = end.ok_or(Errno::NAMETOOLONG)?;
        let room = self
            .bytes
            .get_mut(self.len..end)
            .ok_or(Errno::NAMETOOLONG)?;
        room.copy_from_slice(part);
        self.len = end;
        Ok(())
    }

    /// The first `end` bytes as a string; what follows is cut off until [`Self::restore`].
    fn text(&mut self, end: usize) -> Sys<&CStr> {
        *self.bytes.get_mut(end).ok_or(Errno::NAMETOOLONG)? = 0;
        let bytes = self.bytes.get(..=end).ok_or(Errno::NAMETOOLONG)?;
        CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::INVAL)
    }

    fn restore(&mut self, end: usize) {
        if end < self.len
            && let Some(byte) = self.bytes.get_mut(end)
        {
            *byte = b'/';
        }
    }

    /// The component that begins at or after `from`, as a range.
    fn component(&self, from: usize) -> Option<(usize, usize)> {
        let rest = self.bytes.get(from..self.len)?;
        let start = from + rest.iter().position(|byte| *byte != b'/')?;
        let tail = self.bytes.get(start..self.len)?;
        let end = tail
            .iter()
            .position(|byte| *byte == b'/')
            .map_or(self.len, |at| start + at);
        Some((start, end))
    }

    fn walk(&mut self, base: BorrowedFd<'_>, confine: Confine, create: Create) -> Sys<Walked> {
        let mut above: Option<OwnedFd> = None;
        let mut next = self.component(0);
        while let Some((start, end)) = next {
            next = self.component(end);
            let last = next.is_none();
            let opened = open(base, self.text(end)?, confine, OFlags::PATH);
            let here = match opened {
                Err(Errno::NOENT) => {
                    let dir = above.as_ref().map_or(base, std::os::fd::AsFd::as_fd);
                    let mut link = [0u8; PATH_MAX];
                    match self.read_link(dir, start, end, &mut link)? {
                        Some(target) => {
                            return self.substitute(start, end, target).map(Walked::Link);
                        }
                        None => {
                            let create = if last { create } else { Create::Dir };
                            self.make(dir, start, end, create)?;
                        }
                    }
                    open(base, self.text(end)?, confine, OFlags::PATH)?
                }
                result => result?,
            };
            self.restore(end);
            above = Some(here);
        }
        above.map(Walked::There).ok_or(Errno::NOENT)
    }

    fn name(&self, start: usize, end: usize) -> Sys<&CStr> {
        let bytes = self.bytes.get(start..=end).ok_or(Errno::NAMETOOLONG)?;
        CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::INVAL)
    }

    fn read_link<'b>(
        &self,
        dir: BorrowedFd<'_>,
        start: usize,
        end: usize,
        into: &'b mut [u8; PATH_MAX],
    ) -> Sys<Option<&'b [u8]>> {
        match readlinkat_raw(dir, self.name(start, end)?, &mut into[..]) {
            Ok(len) => Ok(into.get(..len)),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn substitute(&self, start: usize, end: usize, target: &[u8]) -> Sys<Self> {
        let absolute = target.first() == Some(&b'/');
        let before = if absolute {
            &[][..]
        } else {
            self.bytes.get(..start).unwrap_or(&[])
        };
        let mut next = Self::new(before)?;
        next.push(target)?;
        if end < self.len {
            next.push(b"/")?;
            next.push(self.bytes.get(end + 1..self.len).unwrap_or(&[]))?;
        }
        Ok(next)
    }

    fn make(&self, dir: BorrowedFd<'_>, start: usize, end: usize, create: Create) -> Sys<()> {
        let name = self.name(start, end)?;
        if matches!(name.to_bytes(), b"." | b"..") {
            return Err(Errno::NOENT);
        }
        let made = match create {
            Create::File => {
                let mode = Mode::from_raw_mode(0o644);
                mknodat(dir, name, FileType::RegularFile, mode, 0)
            }
            Create::Dir | Create::No => mkdirat(dir, name, Mode::from_raw_mode(0o755)),
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("walk-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("root/etc")).unwrap();
            Self(path)
        }

        fn ensure(&self, path: &str, create: Create) -> Sys<OwnedFd> {
            let root = std::fs::File::open(self.0.join("root")).unwrap();
            let path = CString::new(path).unwrap();
            ensure(root.as_fd(), &path, Confine::InRoot, create)
        }

        fn kind(&self, path: &str) -> &'static str {
            match std::fs::symlink_metadata(self.0.join(path)) {
                Err(_) => "none",
                Ok(meta) if meta.is_dir() => "dir",
                Ok(meta) if meta.is_file() => "file",
                Ok(_) => "other",
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn missing_targets_are_made_with_their_parents() {
        let tree = Tree::new("make");
        tree.ensure("/a/b//c", Create::Dir).unwrap();
        tree.ensure("/x/y", Create::File).unwrap();
        assert_eq!(tree.kind("root/a/b/c"), "dir");
        assert_eq!(tree.kind("root/x/y"), "file");
        assert_eq!(tree.ensure("/none", Create::No).err(), Some(Errno::NOENT));
    }

    #[test]
    fn dangling_links_are_followed_inside_the_root() {
        let tree = Tree::new("dangling");
        symlink("../run/resolve/conf", tree.0.join("root/etc/resolv.conf")).unwrap();
        symlink("/../../../outside/dir", tree.0.join("root/escape")).unwrap();
        tree.ensure("/etc/resolv.conf", Create::File).unwrap();
        tree.ensure("/escape/deep", Create::Dir).unwrap();
        assert_eq!(tree.kind("root/run/resolve/conf"), "file");
        assert_eq!(tree.kind("root/outside/dir/deep"), "dir");
        assert_eq!(tree.kind("outside"), "none");
    }

    #[test]
    fn link_loops_and_long_paths_end() {
        let tree = Tree::new("loop");
        symlink("b", tree.0.join("root/a")).unwrap();
        symlink("a", tree.0.join("root/b")).unwrap();
        assert_eq!(tree.ensure("/a/x", Create::Dir).err(), Some(Errno::LOOP));
        let long = "/d".repeat(3000);
        assert_eq!(
            tree.ensure(&long, Create::Dir).err(),
            Some(Errno::NAMETOOLONG)
        );
    }

    #[test]
    fn parent_splits_off_the_last_name() {
        let tree = Tree::new("parent");
        let root = std::fs::File::open(tree.0.join("root")).unwrap();
        let (_, name) = parent(root.as_fd(), c"/p/q/last", Confine::InRoot).unwrap();
        assert_eq!(name.to_bytes(), b"last");
        assert_eq!(tree.kind("root/p/q"), "dir");
        let (_, name) = parent(root.as_fd(), c"single", Confine::Beneath).unwrap();
        assert_eq!(std::ffi::OsStr::from_bytes(name.to_bytes()), "single");
    }
}
