//! Image commands.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use amphora_distribution::{PlainProgress, Progress, Silent, TtyProgress};
use amphora_engine::{Engine, EngineError, ImageSummary};
use amphora_spec::{Platform, Reference};
use clap::{Args, Subcommand};
use serde_json::json;

use super::container::inspect;
use super::each;
use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

/// Largest module that `image add` reads, in bytes.
const MAX_MODULE: u64 = 256 << 20;

/// `image …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Add a WebAssembly module or component as an image
    Add(AddArgs),
    /// Display detailed information on one or more images
    Inspect(NamesArgs),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// Load an image from a tar archive or STDIN
    Load(LoadArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(TagArgs),
}

/// Image commands that stand at the top level.
#[derive(Debug, Subcommand)]
pub(crate) enum Short {
    /// List images
    Images(ImagesArgs),
    /// Remove one or more images
    Rmi(RmiArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// Load an image from a tar archive or STDIN
    Load(LoadArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(TagArgs),
}

/// Flags of `images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show all images (there are no hidden ones)
    #[arg(short, long)]
    all: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Format output: table or json
    #[arg(long, value_parser = ["table", "json"])]
    format: Option<String>,
    /// Only this repository
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

/// Arguments of `image add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Name of the image
    #[arg(short, long, required = true)]
    tag: String,
    /// The `.wasm` file; "-" for STDIN
    file: PathBuf,
}

/// Names of images.
#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

/// Flags of `rmi`.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

/// Flags of `pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    /// Set platform if the image is for several
    #[arg(long)]
    platform: Option<String>,
    /// Image to pull
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
}

/// Flags of `load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

/// Arguments of `tag`.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Existing image
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// New name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

/// Carries out `image …`.
pub(crate) fn image(engine: impl FnOnce() -> Outcome<Engine>, command: Image) -> Outcome {
    let engine = engine()?;
    match command {
        Image::Ls(args) => images(&engine, &args),
        Image::Add(args) => add(&engine, &args),
        Image::Inspect(args) => inspect(&args.names, |name| engine.inspect_image(name)),
        Image::Rm(args) => remove(&engine, &args),
        Image::Pull(args) => pull(&engine, &args),
        Image::Load(args) => load(&engine, &args),
        Image::Tag(args) => tag(&engine, &args),
    }
}

/// Carries out an image command of the top level.
pub(crate) fn short(engine: impl FnOnce() -> Outcome<Engine>, command: Short) -> Outcome {
    let engine = engine()?;
    match command {
        Short::Images(args) => images(&engine, &args),
        Short::Rmi(args) => remove(&engine, &args),
        Short::Pull(args) => pull(&engine, &args),
        Short::Load(args) => load(&engine, &args),
        Short::Tag(args) => tag(&engine, &args),
    }
}

fn reference(text: &str) -> Outcome<Reference> {
    text.parse::<Reference>()
        .map(Reference::with_default_tag)
        .map_err(|e| Failure::Local(e.to_string()))
}

fn open(path: &std::path::Path) -> Outcome<Box<dyn Read + Send>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path)
        .map_err(|e| Failure::Local(format!("open {}: {}", path.display(), parse::os_text(&e))))?;
    Ok(Box::new(file))
}

fn add(engine: &Engine, args: &AddArgs) -> Outcome {
    let name = reference(&args.tag)?;
    let mut bytes = Vec::new();
    open(&args.file)?
        .take(MAX_MODULE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::Local(format!("read {}: {e}", args.file.display())))?;
    if bytes.len() as u64 > MAX_MODULE {
        return Err(Failure::Local(format!(
            "{} is larger than {} bytes",
            args.file.display(),
            MAX_MODULE
        )));
    }
    let id = engine.add_wasm(&bytes, &name)?;
    ui::line(&id.to_string());
    Ok(())
}

fn load(engine: &Engine, args: &LoadArgs) -> Outcome {
    let input = match &args.input {
        Some(path) => open(path)?,
        None if io::IsTerminal::is_terminal(&io::stdin()) => {
            return Err(Failure::Local(
                "requested load from stdin, but stdin is empty".into(),
            ));
        }
        None => Box::new(io::stdin()),
    };
    for loaded in engine.load(input)? {
        if args.quiet {
            continue;
        }
        match loaded {
            Ok(name) => ui::line(&format!("Loaded image: {}", name.familiar())),
            Err(id) => ui::line(&format!("Loaded image ID: {id}")),
        }
    }
    Ok(())
}

fn tag(engine: &Engine, args: &TagArgs) -> Outcome {
    let target = reference(&args.target)?;
    Ok(engine.tag(&args.source, &target)?)
}

fn pull(engine: &Engine, args: &PullArgs) -> Outcome {
    let given: Reference = args
        .name
        .parse()
        .map_err(|e: amphora_spec::reference::ReferenceError| Failure::Local(e.to_string()))?;
    if given.tag().is_none() && given.digest().is_none() && !args.quiet {
        ui::line("Using default tag: latest");
    }
    let name = given.with_default_tag();
    pull_into(engine, &name, args.platform.as_deref(), args.quiet, false)
}

/// Pulls with the progress the place allows; `run` shows it on stderr and leaves the last line out.
pub(crate) fn pull_into(
    engine: &Engine,
    name: &Reference,
    platform: Option<&str>,
    quiet: bool,
    for_run: bool,
) -> Outcome {
    let platform = platform
        .map(str::parse::<Platform>)
        .transpose()
        .map_err(|e| Failure::Local(e.to_string()))?;
    let terminal = if for_run {
        super::run::stderr_is_terminal()
    } else {
        ui::stdout_is_terminal()
    };
    let sink = || -> Box<dyn io::Write + Send> {
        if for_run {
            Box::new(io::stderr())
        } else {
            Box::new(io::stdout())
        }
    };
    let progress: Box<dyn Progress> = match (quiet, terminal) {
        (true, _) => Box::new(Silent),
        (false, true) => {
            let (columns, rows) = ui::terminal_size();
            Box::new(TtyProgress::new(sink(), columns, rows))
        }
        (false, false) => Box::new(PlainProgress::new(sink())),
    };
    engine.pull(name, platform.as_ref(), progress.as_ref())?;
    if quiet && !for_run {
        ui::line(&name.to_string());
    }
    Ok(())
}

fn remove(engine: &Engine, args: &RmiArgs) -> Outcome {
    each(&args.names, |name| {
        match engine.remove_image(name, args.force) {
            Err(EngineError::NoSuchImage(_)) if args.force => Ok(()),
            Err(e) => Err(e.into()),
            Ok(lines) => {
                lines.iter().for_each(|l| ui::line(l));
                Ok(())
            }
        }
    })
}

fn images(engine: &Engine, args: &ImagesArgs) -> Outcome {
    let mut rows = engine.images()?;
    if let Some(filter) = &args.repository {
        rows.retain(|row| matches_filter(row, filter));
    }
    rows.sort_by(|a, b| b.record.config.created.cmp(&a.record.config.created));
    if args.quiet {
        let mut seen = std::collections::BTreeSet::new();
        for row in rows.iter().filter(|r| seen.insert(r.record.image_id)) {
            ui::line(&id_text(row, args.no_trunc));
        }
        return Ok(());
    }
    if args.format.as_deref() == Some("json") {
        for row in &rows {
            let (repository, tag) = names(row);
            ui::line(
                &json!({
                    "Repository": repository, "Tag": tag, "ID": id_text(row, args.no_trunc),
                    "Digest": row.target.digest, "CreatedAt": row.record.config.created,
                    "CreatedSince": created(row), "Size": ui::human_size(row.record.size),
                    "Platform": row.record.config.platform().to_string(),
                })
                .to_string(),
            );
        }
        return Ok(());
    }
    let mut header = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if args.digests {
        header.insert(2, "DIGEST");
    }
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let (repository, tag) = names(row);
            let mut cells = vec![
                repository,
                tag,
                id_text(row, args.no_trunc),
                created(row),
                ui::human_size(row.record.size),
            ];
            if args.digests {
                cells.insert(2, row.target.digest.to_string());
            }
            cells
        })
        .collect();
    ui::table(&header, &table);
    Ok(())
}

fn matches_filter(row: &ImageSummary, filter: &str) -> bool {
    row.reference
        .as_ref()
        .is_some_and(|r| r.familiar_repository() == filter || r.familiar() == filter)
}

fn names(row: &ImageSummary) -> (String, String) {
    let none = || "<none>".to_owned();
    match &row.reference {
        Some(r) => (
            r.familiar_repository(),
            r.tag().map_or_else(none, str::to_owned),
        ),
        None => (none(), none()),
    }
}

fn created(row: &ImageSummary) -> String {
    row.record
        .config
        .created
        .as_deref()
        .map_or_else(|| "N/A".to_owned(), ui::ago)
}

fn id_text(row: &ImageSummary, whole: bool) -> String {
    if whole {
        row.record.image_id.to_string()
    } else {
        row.record.image_id.short()
    }
}
