//! Has the linker put the functions of `hot.txt` side by side.
//!
//! One that is not there any more is not missed, one that has become hot lies where it lay before.

use std::io::{Error, Result};
use std::path::PathBuf;

fn dir(name: &str) -> Result<PathBuf> {
    let value = std::env::var_os(name);
    Ok(value
        .ok_or_else(|| Error::other(format!("no {name}")))?
        .into())
}

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=hot.txt");
    let list = std::fs::read_to_string(dir("CARGO_MANIFEST_DIR")?.join("hot.txt"))?;
    let mut script = "SECTIONS\n{\n  .text.hot :\n  {\n".to_owned();
    for together in list.split("\n\n") {
        script += "    *(";
        for name in together.lines() {
            script += " .text.";
            script += name;
        }
        script += " )\n";
    }
    script += "  }\n}\nINSERT BEFORE .text;\n";
    let path = dir("OUT_DIR")?.join("hot.ld");
    std::fs::write(&path, script)?;
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", path.display());
    Ok(())
}
