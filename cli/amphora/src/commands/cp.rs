//! `cp`: which way, and under which name things arrive.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use amphora_engine::Engine;
use amphora_engine::archive::{
    LocalTarget, Named, Owner, PathStat, PutOptions, Unpacked, pack_local, path, unpack_local,
};
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::ui;

/// Most symbolic links followed to a destination on the host.
const MAX_LINKS: usize = 10;

// Flags of `cp`.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress progress output during copy
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a local path, or - for a tar stream
    #[arg(value_name = "SRC_PATH")]
    source: String,
    /// CONTAINER:PATH, a local path, or - for a tar stream
    #[arg(value_name = "DEST_PATH")]
    destination: String,
}

/// What is known of one end of a copy.
#[derive(Debug, Clone)]
struct End {
    path: String,
    exists: bool,
    is_dir: bool,
    /// Name in place of the path's last part.
    rebase: Option<String>,
}

/// `cp`.
pub(crate) fn cp(engine: &Engine, args: &CpArgs) -> Outcome {
    let empty = |what: &str| Err(Failure::Local(format!("{what} can not be empty")));
    if args.source.is_empty() {
        return empty("source");
    }
    if args.destination.is_empty() {
        return empty("destination");
    }
    match (split(&args.source), split(&args.destination)) {
        ((Some(container), from), (None, to)) => from_container(engine, args, container, from, to),
        ((None, from), (Some(container), to)) => to_container(engine, args, from, container, to),
        ((Some(_), _), (Some(_), _)) => local("copying between containers is not supported"),
        _ => local("must specify at least one container source"),
    }
}

fn local<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Failure::Local(text.into()))
}

/// Tells `CONTAINER:PATH` from a local path, which may have a colon when it begins with a slash
/// or a dot.
fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((container, path))
            if !text.starts_with('/') && !container.starts_with('.') && !container.is_empty() =>
        {
            (Some(container), path)
        }
        _ => (None, text),
    }
}

fn from_container(
    engine: &Engine,
    args: &CpArgs,
    container: &str,
    from: &str,
    to: &str,
) -> Outcome {
    let to = if to == "-" {
        to.to_owned()
    } else {
        absolute(to)?
    };
    check_output(&to)?;
    let id = engine.find(container)?;
    let named = Named {
        id: &id,
        text: container,
    };
    let (mut from, mut rebase) = (from.to_owned(), None);
    if args.follow_link
        && let Ok(stat) = engine.archive_stat(named, &from)
        && stat.is_link()
    {
        (from, rebase) = rebased(&from, &stat.link_target);
    }
    if to == "-" {
        let out = engine.archive_get(named, &from, |_| Ok(io::stdout().lock()))?;
        drop(out);
        return Ok(());
    }
    let (reader, writer) = io::pipe().map_err(|e| Failure::Local(format!("pipe: {e}")))?;
    let (told, wanted) = std::sync::mpsc::channel::<PathStat>();
    let done = std::thread::scope(|scope| {
        let (path, to, archive) = (from.clone(), to.as_str(), args.archive);
        let unpacking = scope.spawn(move || {
            // Not told: the source was refused, and that is what is reported.
            let Ok(stat) = wanted.recv() else {
                return Ok(Unpacked::default());
            };
            let source = End {
                path,
                exists: true,
                is_dir: stat.is_dir(),
                rebase,
            };
            unpack(&source, to, archive, reader)
        });
        let got = engine.archive_get(named, &from, |stat| {
            // A receiver that is gone closed its end of the pipe too.
            let _ = told.send(stat.clone());
            Ok(writer)
        });
        // Closes the pipe: the other side reads to its end.
        let got = got.map(drop);
        drop(told);
        let unpacked = unpacking
            .join()
            .unwrap_or_else(|_| local("unpacking ended early"));
        match (got, unpacked) {
            (Ok(()), unpacked) => unpacked,
            // The reader's reason comes first: a writer only sees that nobody reads.
            (Err(_), Err(failure)) => Err(failure),
            (Err(error), Ok(_)) => Err(error.into()),
        }
    })?;
    report(args, &done, &to);
    Ok(())
}

fn unpack(source: &End, to: &str, archive: bool, input: impl Read) -> Outcome<Unpacked> {
    let destination = local_destination(to)?;
    let (directory, arranged) = arrange(source, &destination)?;
    // The archive has the name of what was read, whatever it is called here.
    let (_, base) = path::split(&source.path);
    let name = arranged
        .map(|(_, name)| name)
        .or_else(|| source.rebase.clone());
    let rebase = name.map(|name| (base, name));
    let target = LocalTarget {
        directory: Path::new(&directory),
        owner: if archive {
            Owner::Archive
        } else {
            Owner::Caller
        },
        rebase,
    };
    unpack_local(&target, input).map_err(|e| Failure::Local(e.to_string()))
}

fn to_container(engine: &Engine, args: &CpArgs, from: &str, container: &str, to: &str) -> Outcome {
    let id = engine.find(container)?;
    let named = Named {
        id: &id,
        text: container,
    };
    let mut destination = End {
        path: to.to_owned(),
        exists: false,
        is_dir: false,
        rebase: None,
    };
    let mut stat = engine.archive_stat(named, to);
    if let Ok(link) = &stat
        && link.is_link()
    {
        destination.path.clone_from(&link.link_target);
        stat = engine.archive_stat(named, &destination.path);
    }
    if let Ok(stat) = &stat {
        if stat.is_device() {
            return local(format!(
                "destination \"{container}:{to}\" must be a directory or a regular file: got a device"
            ));
        }
        (destination.exists, destination.is_dir) = (true, stat.is_dir());
    }
    let mut options = PutOptions {
        keep_kind: true,
        as_user: args.archive,
        rebase: None,
    };
    if from == "-" {
        if !destination.is_dir {
            return local(format!(
                "destination \"{container}:{to}\" must be a directory"
            ));
        }
        engine.archive_put(named, &destination.path, &options, io::stdin())?;
        return Ok(());
    }
    let source = local_source(&absolute(from)?, args.follow_link)?;
    let (directory, rebase) = arrange(&source, &destination)?;
    options.rebase = rebase;
    let done = send(engine, named, &source, &directory, &options)?;
    report(args, &done, &format!("{container}:{}", destination.path));
    Ok(())
}

/// Packs on one thread and puts on another.
fn send(
    engine: &Engine,
    container: Named<'_>,
    source: &End,
    directory: &str,
    options: &PutOptions,
) -> Outcome<Unpacked> {
    let (above, base) = path::split(&source.path);
    let name = source.rebase.clone().unwrap_or_else(|| base.clone());
    let (reader, writer) = io::pipe().map_err(|e| Failure::Local(format!("pipe: {e}")))?;
    std::thread::scope(|scope| {
        let packing =
            scope.spawn(move || pack_local(Path::new(&above), &base, &name, writer).map(drop));
        let put = engine.archive_put(container, directory, options, reader);
        let packed = packing
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("packing ended early")));
        match (put, packed) {
            // A pipe that nobody reads any more tells nothing new.
            (Err(error), Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => Err(error.into()),
            (_, Err(e)) => local(e.to_string()),
            (put, Ok(())) => Ok(put?),
        }
    })
}

/// Chooses the directory to unpack into and the name that the source arrives under.
fn arrange(source: &End, destination: &End) -> Outcome<(String, Option<(String, String)>)> {
    if destination.exists && destination.is_dir {
        return Ok((destination.path.clone(), None));
    }
    if destination.exists && source.is_dir {
        return local("cannot copy directory");
    }
    if !destination.exists && !source.is_dir && path::asserts_directory(&destination.path) {
        return local("no such directory");
    }
    let (directory, name) = path::split(&destination.path);
    let (_, base) = path::split(&source.path);
    let from = source.rebase.clone().unwrap_or(base);
    Ok((directory, Some((from, name))))
}

/// Makes a local path absolute; what its end says stays.
fn absolute(text: &str) -> Outcome<String> {
    let cwd = std::env::current_dir()
        .map_err(|e| Failure::Local(format!("failed to find the working directory: {e}")))?;
    let whole = path::join(&cwd.to_string_lossy(), text);
    Ok(path::keep_end(&whole, text))
}

/// A link's target in place of the path that led to it, and the name to arrive under.
fn rebased(original: &str, resolved: &str) -> (String, Option<String>) {
    let mut path = resolved.to_owned();
    if path::specifies_current(original) && !path::specifies_current(&path) {
        path.push_str("/.");
    }
    if original.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    let rebase =
        (path::base(original) != path::base(&path)).then(|| path::base(original).to_owned());
    (path, rebase)
}

fn local_source(text: &str, follow: bool) -> Outcome<End> {
    let failed =
        |e: io::Error| Failure::Local(format!("lstat {text}: {}", crate::parse::os_text(&e)));
    let (resolved, rebase) = if follow || path::asserts_directory(text) {
        let real = fs::canonicalize(text).map_err(failed)?;
        rebased(text, &real.to_string_lossy())
    } else {
        let (above, base) = path::split(text);
        let above = fs::canonicalize(&above).map_err(failed)?;
        (above.join(base).to_string_lossy().into_owned(), None)
    };
    let meta = fs::symlink_metadata(&resolved).map_err(failed)?;
    if path::asserts_directory(text) && !meta.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(End {
        path: resolved,
        exists: true,
        is_dir: meta.is_dir(),
        rebase,
    })
}

/// Follows the links of a local destination, also to where nothing is yet.
fn local_destination(text: &str) -> Outcome<End> {
    let mut path = text.to_owned();
    for _ in 0..=MAX_LINKS {
        let failed =
            |e: io::Error| Failure::Local(format!("lstat {path}: {}", crate::parse::os_text(&e)));
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(&path).map_err(failed)?;
                let (above, _) = path::split(&path);
                path = path::join(&above, &target.to_string_lossy());
            }
            Ok(meta) => {
                return Ok(End {
                    is_dir: meta.is_dir(),
                    path,
                    exists: true,
                    rebase: None,
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let (above, _) = path::split(&path);
                let meta = fs::metadata(&above).map_err(failed)?;
                if !meta.is_dir() {
                    return local("not a directory");
                }
                return Ok(End {
                    path,
                    exists: false,
                    is_dir: false,
                    rebase: None,
                });
            }
            Err(e) => return Err(failed(e)),
        }
    }
    local(format!("too many symlinks in {text}"))
}

/// Refuses a local destination that cannot be written to, before anything is read.
fn check_output(text: &str) -> Outcome {
    use std::os::unix::fs::FileTypeExt;
    if text == "-" {
        return Ok(());
    }
    let above = PathBuf::from(path::clean(text));
    let above = above.parent().unwrap_or(Path::new("/"));
    if !above.exists() {
        return local(format!(
            "invalid output path: directory \"{}\" does not exist",
            above.display()
        ));
    }
    match fs::metadata(text) {
        Ok(meta) if meta.file_type().is_char_device() || meta.file_type().is_block_device() => {
            local(format!(
                "invalid output path: \"{text}\" must be a directory or a regular file: got a device"
            ))
        }
        _ => Ok(()),
    }
}

/// Says what was copied, to a terminal only, as Docker does; what was left out, always.
fn report(args: &CpArgs, done: &Unpacked, to: &str) {
    for line in &done.skipped {
        ui::error(&format!("WARNING: left out {line}"));
    }
    if !args.quiet && io::stderr().is_terminal() {
        let size = ui::human_size(done.bytes);
        ui::error(&format!("Successfully copied {size} to {to}"));
    }
    let _ = io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_is_part_of_an_explicit_local_path() {
        assert_eq!(split("c:/x"), (Some("c"), "/x"));
        assert_eq!(split("c:x:y"), (Some("c"), "x:y"));
        assert_eq!(split("/a:b"), (None, "/a:b"));
        assert_eq!(split("./a:b"), (None, "./a:b"));
        assert_eq!(split("plain"), (None, "plain"));
        assert_eq!(split("-"), (None, "-"));
    }

    #[test]
    fn a_followed_link_arrives_under_its_own_name() {
        assert_eq!(
            rebased("/a/link", "/b/file"),
            ("/b/file".to_owned(), Some("link".to_owned()))
        );
        assert_eq!(rebased("/a/dir/.", "/b/dir"), ("/b/dir/.".to_owned(), None));
    }
}
