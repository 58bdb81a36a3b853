//! Carries out [`Release`] actions: what the container held is free again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use amphora_spec::release::Release;
use amphora_sys::netlink;

/// What a release leaves behind until the answer is out.
#[derive(Debug, Default)]
pub(crate) struct Released {
    /// What failed, a line each.
    pub(crate) failures: Vec<String>,
    /// Sockets that rules were removed through: closing one waits for the kernel to let go of the
    /// rules (some 10 ms), so that is left until everybody has been answered.
    pub(crate) sockets: Vec<OwnedFd>,
}

/// Does everything, whatever fails.
pub(crate) fn run(actions: &[Release]) -> Released {
    let mut released = Released::default();
    for action in actions {
        if let Err(e) = one(action, &mut released.sockets) {
            released.failures.push(describe(action, &e));
        }
    }
    released
}

fn describe(action: &Release, error: &io::Error) -> String {
    match action {
        Release::Unlink(path) => format!("failed to unlink \"{}\": {error}", path.display()),
        Release::RemoveTree(path) => format!("failed to remove \"{}\": {error}", path.display()),
        Release::Claim { path, .. } => format!("failed to release \"{}\": {error}", path.display()),
        Release::Netlink { protocol, .. } => {
            format!("failed to send to netlink protocol {protocol}: {error}")
        }
    }
}

fn one(action: &Release, sockets: &mut Vec<OwnedFd>) -> io::Result<()> {
    match action {
        Release::Unlink(path) => match std::fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => absent(remove_empty(path)),
            other => absent(other),
        },
        Release::RemoveTree(path) => absent(std::fs::remove_dir_all(path)),
        Release::Claim { path, target } => claim(path, target),
        Release::Netlink { protocol, bytes } => {
            let socket = netlink::replay(*protocol, bytes).map_err(|e| e.source)?;
            sockets.push(socket.into());
            Ok(())
        }
    }
}

/// Removes a folder that others may be using: theirs stays.
fn remove_empty(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

fn claim(path: &Path, target: &str) -> io::Result<()> {
    let ours = |path: &Path| std::fs::read_link(path).is_ok_and(|link| link.as_os_str() == target);
    if ours(path) {
        return absent(std::fs::remove_file(path));
    }
    let Some(beside) = path.parent() else {
        return Ok(());
    };
    for entry in std::fs::read_dir(beside)?.flatten() {
        if ours(&entry.path()) {
            absent(std::fs::remove_file(entry.path()))?;
        }
    }
    Ok(())
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_container_gives_up_its_own_name_only() {
        use std::os::unix::fs::symlink;
        let dir = std::env::temp_dir().join(format!("amphora-claim-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // It was "old", is "new" now, and "old" is somebody else's.
        symlink("other", dir.join("old")).unwrap();
        symlink("mine", dir.join("new")).unwrap();
        let actions = [Release::Claim {
            path: dir.join("old"),
            target: "mine".to_owned(),
        }];
        for _ in 0..2 {
            assert!(run(&actions).failures.is_empty());
            assert!(dir.join("new").symlink_metadata().is_err());
            assert!(dir.join("old").symlink_metadata().is_ok());
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn actions_are_idempotent_and_failures_do_not_stop_the_rest() {
        let dir = std::env::temp_dir().join(format!("amphora-release-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("tree/below")).unwrap();
        std::fs::write(dir.join("file"), "").unwrap();
        std::fs::write(dir.join("tree/below/x"), "").unwrap();
        // RTM_DELLINK of a link that does not exist, with an acknowledgement asked for.
        let mut message = Vec::new();
        message.extend(32_u32.to_ne_bytes());
        message.extend(17_u16.to_ne_bytes());
        message.extend(5_u16.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([0; 4]);
        message.extend(0x7fff_fff0_i32.to_ne_bytes());
        message.extend([0; 8]);
        let actions = [
            // No folder leads there.
            Release::Unlink(dir.join("file/below")),
            Release::Unlink(dir.join("file")),
            Release::RemoveTree(dir.join("tree")),
            Release::Netlink {
                protocol: 0,
                bytes: message,
            },
        ];
        let failed = run(&actions).failures;
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].contains("file/below"), "{failed:?}");
        assert!(run(&actions).failures.is_empty());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_folder_is_unlinked_by_the_last_who_has_something_in_it() {
        let dir = std::env::temp_dir().join(format!("amphora-folder-{}", std::process::id()));
        let (mine, others) = (dir.join("name/mine"), dir.join("name/others"));
        std::fs::create_dir_all(dir.join("name")).unwrap();
        for file in [&mine, &others] {
            std::fs::write(file, "").unwrap();
        }
        let release = |file| [Release::Unlink(file), Release::Unlink(dir.join("name"))];
        assert!(run(&release(mine.clone())).failures.is_empty());
        assert!(others.exists() && !mine.exists());
        assert!(run(&release(others)).failures.is_empty());
        assert!(!dir.join("name").exists());
        assert!(run(&release(mine)).failures.is_empty());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
