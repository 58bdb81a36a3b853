//! Volumes of file servers, which only a kernel has that knows them: NFS, served by the machine's own
//! kernel on loopback.

use std::path::Path;

use super::{IMAGES, Machine, SLOW};
use crate::sandbox::{tool, wait_until};

/// A folder that is served, with a file in it that is whose it is.
fn folder(path: &str) {
    std::fs::create_dir_all(path).unwrap();
    std::fs::write(format!("{path}/greeting"), "from the server\n").unwrap();
}

fn serves(port: u16) {
    wait_until("the server", SLOW, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
}

/// Serves a folder over NFS.
fn serve_nfs(path: &str) {
    folder(path);
    let export = format!("{path} *(rw,no_root_squash,no_subtree_check,insecure)\n");
    std::fs::write("/etc/exports", export).unwrap();
    tool(&["systemctl", "start", "nfs-server"]);
    serves(2049);
}

/// A volume as Linux and Wasm containers have it: what the server has is there, what is written
/// comes to it, one mount serves all, and nothing of it is left.
fn shared(m: &Machine, path: &str, kind: &str) {
    assert_eq!(mounts(), 0, "of {kind}");
    let volume = format!("{kind}:/files");
    for image in IMAGES {
        let mount = ["-v", &volume];
        let run = [&["run", "--rm"], &mount[..], &[image]].concat();
        let read = [&run[..], &["cat", "/files/greeting"]].concat();
        assert_eq!(m.run(&read).ok(), "from the server\n");
        let note = format!("/files/{image}");
        m.run(&[&run[..], &["write", &note, image]].concat()).ok();
        let written = std::fs::read_to_string(format!("{path}/{image}"));
        assert_eq!(written.unwrap().trim_end(), image);
        m.sleeper("holds", image, &mount);
        m.sleeper("shares", "bb", &["-v", &format!("{volume}:ro")]);
        assert_eq!(mounts(), 1, "of {kind}");
        let seen = m.run(&["exec", "shares", "cat", &note]).ok();
        assert_eq!(seen.trim_end(), image);
        assert_ne!(m.run(&["exec", "shares", "touch", "/files/no"]).code, 0);
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let of_kind = |line: &str| line.split(' ').nth(2).is_some_and(|k| k.starts_with(kind));
        let line = table
            .lines()
            .find(|line| of_kind(line) && !line.contains("nfsd"));
        assert_eq!(line, None);
        m.run(&["rm", "-f", "holds", "shares"]).ok();
        wait_until("the mount to go", SLOW, || mounts() == 0);
    }
    m.run(&["volume", "rm", kind]).ok();
    assert!(Path::new(&format!("{path}/greeting")).exists());
}

/// What nobody serves: the kernel says so, and the volume stays.
fn refused(m: &Machine, kind: &str, why: &str) {
    let volume = format!("{kind}:/files");
    m.run(&["run", "--rm", "-v", &volume, "bb", "true"])
        .fails(125, why);
    m.run(&["volume", "rm", kind]).ok();
    assert_eq!(mounts(), 0);
}

#[test]
fn nfs_volumes_are_the_servers_folders() {
    let Some(m) = Machine::here() else { return };
    let path = "/srv/nfs";
    serve_nfs(path);
    // A server that has a name.
    std::fs::write("/etc/hosts", "127.0.0.1 localhost fileserver\n").unwrap();
    let with = |options: &str| {
        let device = format!("device=:{path}");
        let options = format!("o={options}");
        let flags = ["-o", "type=nfs", "-o", &device, "-o", &options];
        let create = [&["volume", "create"], &flags[..], &["nfs"]].concat();
        m.run(&create).ok();
    };
    for version in ["4.2", "3"] {
        with(&format!("addr=fileserver,rw,nolock,nfsvers={version}"));
        shared(&m, path, "nfs");
        with(&format!(
            "addr=127.0.0.1,soft,nolock,nfsvers={version},port=9"
        ));
        refused(&m, "nfs", "connection refused");
    }
}

/// How many file systems of NFS are mounted, wherever.
fn mounts() -> usize {
    let text = std::fs::read_to_string("/proc/fs/nfsfs/volumes").unwrap_or_default();
    text.lines().filter(|line| line.starts_with('v')).count()
}
