//! The empty mount namespace of one supervisor, taken by those that start after it.
//!
//! To make one, the kernel visits every process of the host; to find this one costs the same however
//! many containers run. Its place stands in a symbolic link in the run root, `base`:
//! `<pid>/<descriptor>/<number of the namespace>`. Who reads it believes the number alone.

use std::fs;
use std::path::{Path, PathBuf};

use amphora_sys::base::{Base, BasePlace};

/// Beginning of the argument with the run root.
const WORD: &str = "base=";
const FILE: &str = "base";

/// The argument for a supervisor of a container with this run directory.
pub(crate) fn word(run_dir: &Path) -> Option<String> {
    root(run_dir).map(|root| format!("{WORD}{}", root.display()))
}

/// The base of the run root that this process was told of.
pub(crate) fn find_asked() -> Option<Base> {
    let mut words = std::env::args_os().skip(2);
    let word = words.find_map(|word| Some(word.to_str()?.strip_prefix(WORD)?.to_owned()))?;
    find(Path::new(&word))
}

fn find(root: &Path) -> Option<Base> {
    Base::shared(&read(root)?).ok()
}

fn read(root: &Path) -> Option<BasePlace> {
    let target = fs::read_link(root.join(FILE)).ok()?;
    let mut parts = target.to_str()?.split('/');
    let mut next = || parts.next();
    Some(BasePlace {
        pid: next()?.parse().ok()?,
        fd: next()?.parse().ok()?,
        id: next()?.parse().ok()?,
    })
}

/// Lets others have a base, as long as this process holds it; says whether they will want it.
pub(crate) fn offer(base: &Base, run_dir: &Path) -> bool {
    let Some((root, place)) = root(run_dir).zip(base.place().ok()) else {
        return false;
    };
    if find(&root).is_some() {
        return false;
    }
    let new = root.join(format!("{FILE}.{}", place.pid));
    let target = format!("{}/{}/{}", place.pid, place.fd, place.id);
    let made = std::os::unix::fs::symlink(target, &new);
    let offered = made.and_then(|()| fs::rename(&new, root.join(FILE)));
    if offered.is_err() {
        let _ = fs::remove_file(&new);
    }
    offered.is_ok()
}

/// Removes what a killed supervisor has left of its offer in a run root.
pub fn sweep(root: &Path) {
    if read(root).is_some_and(|place| Base::shared(&place).is_err()) {
        let _ = fs::remove_file(root.join(FILE));
    }
}

/// Takes the offer back. Somebody else's stays.
pub(crate) fn withdraw(base: &Base, run_dir: &Path) {
    let Some((root, place)) = root(run_dir).zip(base.place().ok()) else {
        return;
    };
    if read(&root) == Some(place) {
        let _ = fs::remove_file(root.join(FILE));
    }
}

/// Run directories lie in `containers` in the run root.
fn root(run_dir: &Path) -> Option<PathBuf> {
    Some(run_dir.parent()?.parent()?.to_owned())
}
