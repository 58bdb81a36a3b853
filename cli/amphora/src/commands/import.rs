//! `import`.

use std::fs::File;
use std::io;

use amphora_engine::{Engine, ImportOptions};
use amphora_spec::{Platform, Reference};
use clap::Args;

use crate::errors::{Failure, Outcome};
use crate::{parse, ui};

// Arguments of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(short, long)]
    message: Option<String>,
    /// Set platform if server is multi-platform capable
    #[arg(long)]
    platform: Option<String>,
    /// The archive; "-" for STDIN
    #[arg(value_name = "file|URL|-")]
    source: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

/// `import`.
pub(crate) fn import(engine: &Engine, args: &ImportArgs) -> Outcome {
    let source = args.source.as_str();
    if source.starts_with("http://") || source.starts_with("https://") {
        return Err(Failure::Local(format!(
            "importing from a URL is not supported: download {source} and import the file"
        )));
    }
    let platform = args
        .platform
        .clone()
        .or_else(super::run::default_platform)
        .map(|text| text.parse::<Platform>())
        .transpose()
        .map_err(|e| Failure::Local(e.to_string()))?;
    let options = ImportOptions {
        message: args
            .message
            .clone()
            .unwrap_or_else(|| "Imported from -".to_owned()),
        changes: args.change.clone(),
        platform,
    };
    let reference = reference(args.reference.as_deref())?;
    let id = if source == "-" {
        engine.import(io::stdin(), reference.as_ref(), &options)?
    } else {
        let file = File::open(source)
            .map_err(|e| Failure::Local(format!("open {source}: {}", parse::os_text(&e))))?;
        engine.import(file, reference.as_ref(), &options)?
    };
    ui::line(&id.to_string());
    Ok(())
}

/// Parses the name of an image that is about to be made.
pub(crate) fn reference(text: Option<&str>) -> Outcome<Option<Reference>> {
    let Some(text) = text else { return Ok(None) };
    let parsed: Reference = text
        .parse()
        .map_err(|e: amphora_spec::reference::ReferenceError| Failure::Local(e.to_string()))?;
    if parsed.digest().is_some() {
        return Err(Failure::Local(
            "refusing to create a tag with a digest reference".to_owned(),
        ));
    }
    Ok(Some(parsed.with_default_tag()))
}
