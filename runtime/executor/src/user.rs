//! `USER` of an image, resolved with the image's own `/etc/passwd` and `/etc/group`.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use amphora_spec::runtime::User;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::ExecutorError;

/// Most bytes of a passwd or group file that are read.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// Highest id, as Docker has it.
const ID_MAX: i64 = (1 << 31) - 1;

/// Who the process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// Ids; `additional_gids` holds the supplementary groups, the primary one first.
    pub user: User,
    /// Home directory, `/` when the user has no entry.
    pub home: String,
}

/// Resolves `user`, `uid`, `user:group` and the like, as Docker does: names are looked up, numbers
/// need no entry, and a user of the passwd file gets its supplementary groups unless a group is
/// named. An empty text is user 0.
///
/// # Errors
/// A name without an entry, an id out of range, or a file that cannot be read.
pub fn resolve_user(root: BorrowedFd<'_>, text: &str) -> Result<ResolvedUser, ExecutorError> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let passwd = read(root, c"etc/passwd")?;
    let entry = find_user(&passwd, user);
    // A number without an entry has no supplementary groups: nothing to look up.
    let groups = if entry.is_some() || !group.is_empty() {
        read(root, c"etc/group")?
    } else {
        String::new()
    };
    resolve(user, group, entry.as_ref(), &groups)
}

/// Resolves supplementary groups by name or number; a number needs no entry.
///
/// # Errors
/// A name without an entry, an id out of range, or a file that cannot be read.
pub fn resolve_groups(root: BorrowedFd<'_>, groups: &[String]) -> Result<Vec<u32>, ExecutorError> {
    let file = read(root, c"etc/group")?;
    groups
        .iter()
        .map(|group| {
            let found = file
                .lines()
                .filter_map(group_line)
                .find(|line| line.name == group);
            match found.map(|line| line.gid).or_else(|| number(group)) {
                Some(gid) => checked(gid),
                None => Err(ExecutorError::User(format!("Unable to find group {group}"))),
            }
        })
        .collect()
}

struct Entry<'a> {
    name: &'a str,
    uid: i64,
    gid: i64,
    home: &'a str,
}

fn number(text: &str) -> Option<i64> {
    // Docker reads an optional sign as well.
    text.parse().ok()
}

fn find_user<'a>(passwd: &'a str, wanted: &str) -> Option<Entry<'a>> {
    let id = if wanted.is_empty() {
        Some(0)
    } else {
        number(wanted)
    };
    passwd.lines().filter_map(user_line).find(|entry| match id {
        Some(id) => entry.uid == id,
        None => entry.name == wanted,
    })
}

fn user_line(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let mut fields = fields.skip(1);
    let mut id = || fields.next().map_or(0, |text| number(text).unwrap_or(0));
    let (uid, gid) = (id(), id());
    Some(Entry {
        name,
        uid,
        gid,
        home: fields.nth(1).unwrap_or(""),
    })
}

struct Group<'a> {
    name: &'a str,
    gid: i64,
    members: &'a str,
}

fn group_line(line: &str) -> Option<Group<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1).map_or(0, |text| number(text).unwrap_or(0));
    Some(Group {
        name,
        gid,
        members: fields.next().unwrap_or(""),
    })
}

fn resolve(
    user: &str,
    group: &str,
    entry: Option<&Entry<'_>>,
    groups: &str,
) -> Result<ResolvedUser, ExecutorError> {
    let fail = |kind: &str, name: &str| {
        let file = if kind == "user" { "passwd" } else { "group" };
        ExecutorError::User(format!(
            "unable to find {kind} {name}: no matching entries in {file} file"
        ))
    };
    let (uid, mut gid, home) = match entry {
        Some(entry) => (entry.uid, entry.gid, entry.home),
        None if user.is_empty() => (0, 0, "/"),
        None => (number(user).ok_or_else(|| fail("user", user))?, 0, "/"),
    };
    let mut supplementary = Vec::new();
    if !group.is_empty() {
        let id = number(group);
        let wanted = |line: &Group<'_>| match id {
            Some(id) => line.gid == id,
            None => line.name == group,
        };
        gid = match groups.lines().filter_map(group_line).find(wanted) {
            Some(line) => line.gid,
            None => id.ok_or_else(|| fail("group", group))?,
        };
    } else if let Some(entry) = entry {
        let member = |line: &Group<'_>| line.members.split(',').any(|name| name == entry.name);
        supplementary = groups
            .lines()
            .filter_map(group_line)
            .filter(member)
            .collect();
    }
    let gid = checked(gid)?;
    let mut additional_gids = vec![gid];
    for line in supplementary {
        let id = checked(line.gid)?;
        if !additional_gids.contains(&id) {
            additional_gids.push(id);
        }
    }
    let user = User {
        uid: checked(uid)?,
        gid,
        umask: None,
        additional_gids,
    };
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    Ok(ResolvedUser { user, home })
}

fn checked(id: i64) -> Result<u32, ExecutorError> {
    u32::try_from(id)
        .ok()
        .filter(|_| id <= ID_MAX)
        .ok_or_else(|| ExecutorError::User(format!("uids and gids must be in range 0-{ID_MAX}")))
}

/// Reads a file of the image; a missing one is empty.
fn read(root: BorrowedFd<'_>, path: &std::ffi::CStr) -> Result<String, ExecutorError> {
    let name = format!("read \"/{}\" of the image", path.to_string_lossy());
    let failed = |source: io::Error| ExecutorError::kernel(name.as_str())(source);
    // Never block on a FIFO, never touch a device.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(failed(errno.into())),
    };
    let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let mut bytes = Vec::new();
    let mut limited = std::fs::File::from(file).take(FILE_BYTES_MAX + 1);
    limited.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# note\nweb:x:33:34:Web:/srv/www:/bin/no\nbig:x:4294967296:0::/:\nshort\n";
    const GROUP: &str =
        "root:x:0:root\nweb:x:34:\nlog:x:4:web,syslog\nadm:x:5:other,web\ntwin:x:34:web\n";

    fn resolved(text: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        resolve(user, group, find_user(PASSWD, user).as_ref(), GROUP)
            .map(|r| (r.user.uid, r.user.gid, r.user.additional_gids, r.home))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_does() {
        assert_eq!(resolved(""), Ok((0, 0, vec![0], "/root".into())));
        assert_eq!(resolved("root"), Ok((0, 0, vec![0], "/root".into())));
        assert_eq!(
            resolved("web"),
            Ok((33, 34, vec![34, 4, 5], "/srv/www".into()))
        );
        assert_eq!(
            resolved("33"),
            Ok((33, 34, vec![34, 4, 5], "/srv/www".into()))
        );
        assert_eq!(resolved("web:log"), Ok((33, 4, vec![4], "/srv/www".into())));
        assert_eq!(resolved("1000"), Ok((1000, 0, vec![0], "/".into())));
        assert_eq!(resolved("1000:77"), Ok((1000, 77, vec![77], "/".into())));
        assert_eq!(resolved(":log"), Ok((0, 4, vec![4], "/root".into())));
        assert_eq!(resolved("short"), Ok((0, 0, vec![0], "/".into())));
    }

    #[test]
    fn unknown_names_and_ids_out_of_range_are_refused() {
        let text = "unable to find user foo: no matching entries in passwd file";
        assert_eq!(resolved("foo"), Err(text.into()));
        let text = "unable to find group foo: no matching entries in group file";
        assert_eq!(resolved("web:foo"), Err(text.into()));
        let text = "uids and gids must be in range 0-2147483647";
        for bad in ["4294967296", "-1", "2147483648", "big", "1:2147483648"] {
            assert_eq!(resolved(bad), Err(text.into()), "{bad}");
        }
    }

    #[test]
    fn links_in_the_image_stay_in_it_and_odd_files_are_refused() {
        use std::os::fd::AsFd;
        let dir = std::env::temp_dir().join(format!("user-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::create_dir_all(dir.join("x")).unwrap();
        std::fs::write(dir.join("x/passwd"), "inner:x:7:8::/home/inner:").unwrap();
        std::os::unix::fs::symlink("/x/../../../../x/passwd", dir.join("etc/passwd")).unwrap();
        let root = std::fs::File::open(&dir).unwrap();
        let user = resolve_user(root.as_fd(), "inner").unwrap();
        assert_eq!((user.user.uid, user.user.gid), (7, 8));
        std::fs::create_dir(dir.join("etc/group")).unwrap();
        assert!(resolve_user(root.as_fd(), "inner").is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
