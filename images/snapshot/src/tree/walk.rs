//! Parents that lead through symbolic links of the layer, resolved by hand as if the layer's root
//! were `/`: absolute links start there, `..` stops there, and no step follows anything.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, readlinkat, unlinkat};
use rustix::io::Errno;

use super::{DIR, Dir, Fault, IMPLICIT_DIR_MODE, Owner, Placed, Tree};
use super::{dress, is_whiteout, look, opaque, step};

/// Most links on the way to one directory, as in the kernel.
const MAX_LINKS: usize = 40;

const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// What becomes of a directory that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Stop,
}

/// What stands at a component.
enum Found {
    Dir(OwnedFd),
    Link(Vec<u8>),
    Nothing,
}

impl Tree {
    /// Walks to a directory; `None` when it is not there and is not to be made. A whiteout on the
    /// way becomes an opaque directory.
    pub(super) fn walk(&self, path: &[u8], missing: Missing) -> Placed<Option<Rc<Dir>>> {
        let mut above = vec![Rc::clone(&self.root)];
        // What is still to go, the next component last.
        let mut rest = components(path);
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == b".." {
                if above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            let here = above.last().unwrap_or(&self.root);
            let depth = here.depth + 1;
            if depth > self.limits.depth {
                return Err(Fault::Refused("the path has too many components"));
            }
            let found = match enter(&here.fd, &part, missing)? {
                Found::Nothing if missing == Missing::Make => Found::Dir(make(&here.fd, &part)?),
                found => found,
            };
            match found {
                Found::Dir(fd) => above.push(Rc::new(Dir { fd, depth })),
                Found::Nothing => return Ok(None),
                Found::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Fault::Refused("its path leads through too many links"));
                    }
                    if target.first() == Some(&b'/') {
                        above.truncate(1);
                    }
                    rest.extend(components(&target));
                }
            }
        }
        Ok(above.pop())
    }
}

/// The components of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

fn enter(dir: &OwnedFd, name: &[u8], missing: Missing) -> Placed<Found> {
    match openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(next) => return Ok(Found::Dir(next)),
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(e) => return Err(step("open parent of")(e)),
    }
    let Some(found) = look(dir, name)? else {
        return Ok(Found::Nothing);
    };
    if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
        let target = readlinkat(dir, name, Vec::new()).map_err(step("read link above"))?;
        return Ok(Found::Link(target.into_bytes()));
    }
    if missing == Missing::Stop {
        return Ok(Found::Nothing);
    }
    if !is_whiteout(&found) {
        return Err(Fault::Refused("its path leads through a file of the layer"));
    }
    unlinkat(dir, name, AtFlags::empty()).map_err(step("replace"))?;
    let made = make(dir, name)?;
    opaque(&made)?;
    Ok(Found::Dir(made))
}

/// Makes a directory that no entry describes.
fn make(dir: &OwnedFd, name: &[u8]) -> Placed<OwnedFd> {
    let mode = Mode::from_raw_mode(IMPLICIT_DIR_MODE);
    mkdirat(dir, name, mode).map_err(step("make parent of"))?;
    let made = openat(dir, name, DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(step("open"))?;
    let stat = rustix::fs::fstat(&made).map_err(step("stat"))?;
    dress(&made, &stat, ROOT, IMPLICIT_DIR_MODE)?;
    Ok(made)
}
