//! Image commands.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use amphora_distribution::{PlainProgress, Progress, Silent, TtyProgress};
use amphora_engine::{Engine, EngineError};
use amphora_spec::{Platform, Reference};
use clap::{Args, Subcommand};

use super::each;
use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

/// Largest module that `image add` reads, in bytes.
const MAX_MODULE: u64 = 256 << 20;

/// `image …`.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Image {
    /// List images
    #[command(visible_alias = "list")]
    Ls(super::images::ImagesArgs),
    /// Add a WebAssembly module or component as an image
    Add(AddArgs),
    /// Display detailed information on one or more images
    Inspect(super::inspect::OtherArgs),
    /// Show the history of an image
    History(super::history::HistoryArgs),
    /// Remove unused images
    Prune(super::prune::AllArgs),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// Load an image from a tar archive or STDIN
    Load(LoadArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(super::save::SaveArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(TagArgs),
    /// Import the contents from a tarball to create a filesystem image
    Import(super::import::ImportArgs),
}

/// Image commands that stand at the top level.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Short {
    /// List images
    Images(super::images::ImagesArgs),
    /// Show the history of an image
    History(super::history::HistoryArgs),
    /// Remove one or more images
    Rmi(RmiArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// Load an image from a tar archive or STDIN
    Load(LoadArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(super::save::SaveArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(TagArgs),
    /// Import the contents from a tarball to create a filesystem image
    Import(super::import::ImportArgs),
}

// Arguments of `image add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Name of the image
    #[arg(short, long, required = true)]
    tag: String,
    /// The `.wasm` file; "-" for STDIN
    file: PathBuf,
}

// Flags of `rmi`.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

// Flags of `pull`.
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

// Flags of `load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

// Arguments of `tag`.
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
        Image::Ls(args) => super::images::images(&engine, &args),
        Image::Add(args) => add(&engine, &args),
        Image::Inspect(args) => super::inspect::other(&engine, super::inspect::Kind::Image, &args),
        Image::History(args) => super::history::history(&engine, &args),
        Image::Prune(args) => super::prune::images(&engine, &args),
        Image::Rm(args) => remove(&engine, &args),
        Image::Pull(args) => pull(&engine, &args),
        Image::Load(args) => load(&engine, &args),
        Image::Save(args) => super::save::save(&engine, &args),
        Image::Tag(args) => tag(&engine, &args),
        Image::Import(args) => super::import::import(&engine, &args),
    }
}

/// Carries out an image command of the top level.
pub(crate) fn short(engine: impl FnOnce() -> Outcome<Engine>, command: Short) -> Outcome {
    let engine = engine()?;
    match command {
        Short::Images(args) => super::images::images(&engine, &args),
        Short::History(args) => super::history::history(&engine, &args),
        Short::Rmi(args) => remove(&engine, &args),
        Short::Pull(args) => pull(&engine, &args),
        Short::Load(args) => load(&engine, &args),
        Short::Save(args) => super::save::save(&engine, &args),
        Short::Tag(args) => tag(&engine, &args),
        Short::Import(args) => super::import::import(&engine, &args),
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
