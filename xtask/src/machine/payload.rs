//! The second disk: files under the paths they have here, and the script that the machine runs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Begins the line that tells a program's exit code.
pub(crate) const CODE: &str = "machine: code ";
/// Says that the machine is up and the stage runs.
pub(crate) const BEGIN: &str = "machine: up";
/// Where the second disk is mounted.
const MOUNT: &str = "/payload";
/// Tells the tests that the machine is theirs.
const ENVIRONMENT: &str = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
                           AMPHORA_MACHINE=1\n";
/// What a file system needs beside its files.
const SLACK_MIB: u64 = 64;

/// A test program.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) filters: Vec<String>,
}

/// The script that runs test programs.
pub(crate) fn tests(programs: &[Program]) -> String {
    let mut script = String::new();
    for Program {
        path,
        name,
        filters,
    } in programs
    {
        let filters: Vec<String> = filters.iter().map(|f| quoted(f)).collect();
        let _ = write!(
            script,
            "echo machine: {name}, $(cut -d. -f1 /proc/uptime) s after the start\n\
             {} --test-threads=1 --color=never --show-output {}\n\
             echo \"{CODE}$?\"\n",
            quoted(&path.display().to_string()),
            filters.join(" ")
        );
    }
    script
}

/// The script that runs one command, with our two names in the path.
pub(crate) fn command(amphora: &Path, command: &str) -> String {
    let amphora = quoted(&amphora.display().to_string());
    format!(
        "ln -s {amphora} /usr/bin/amphora; ln -s {amphora} /usr/bin/amphora-runc\n\
         ({command})\necho \"{CODE}$?\"\n"
    )
}

/// Makes the disk and returns its path.
pub(crate) fn write(place: &Path, files: &[PathBuf], script: &str) -> Result<PathBuf> {
    let tree = place.join("payload");
    let disk = place.join("payload.ext4");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    std::fs::create_dir_all(&tree)?;
    let mut stage = String::from(ENVIRONMENT);
    let mut bytes = 0;
    for file in files {
        let inside = tree.join(file.strip_prefix("/").context("an absolute path")?);
        let above = inside.parent().context("a file in a directory")?;
        std::fs::create_dir_all(above)?;
        bytes +=
            std::fs::copy(file, &inside).with_context(|| format!("failed to copy {file:?}"))?;
        let path = quoted(&file.display().to_string());
        let _ = writeln!(
            stage,
            "mkdir -p \"$(dirname {path})\"; : >>{path}; mount --bind {MOUNT}{path} {path}"
        );
    }
    let _ = write!(
        stage,
        "echo '{BEGIN}'\nmount -t tmpfs tmpfs /tmp; cd /tmp\n(\n"
    );
    stage.push_str(script);
    stage.push_str(") </dev/null\nsystemctl poweroff --force --force\n");
    std::fs::write(tree.join("stage"), stage)?;
    let _ = std::fs::remove_file(&disk);
    let mib = bytes / (1 << 20) * 5 / 4 + SLACK_MIB;
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
        .args([&tree, &disk])
        .arg(format!("{mib}M"));
    let status = super::quiet(&mut make).status().context("mke2fs")?;
    ensure!(status.success(), "mke2fs ended with {status}");
    std::fs::remove_dir_all(&tree)?;
    Ok(disk)
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_word_stays_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
