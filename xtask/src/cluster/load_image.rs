//! `cargo xtask load-image`: archives into every node's containerd.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::{layout::Node, node, state::State};
use crate::{deps, run, term};

/// Imports each archive into every node.
///
/// # Errors
/// When there is no cluster, a file is missing, or containerd refuses it.
pub fn run(files: &[PathBuf]) -> Result<()> {
    deps::require_root("load-image")?;
    let Some(state) = State::load()? else {
        bail!("no cluster is running: type `cargo xtask up` first")
    };
    for file in files {
        if !file.is_file() {
            bail!(
                "there is no file {}: build one with `cargo xtask build-image`",
                file.display()
            );
        }
        for node in Node::all(state.nodes) {
            let step = term::step(&format!("loading {} into {}", file.display(), node.name()));
            run::output(node::ctr(node, &["images", "import"]).arg(file))
                .with_context(|| format!("{} did not take {}", node.name(), file.display()))?;
            step.done();
        }
    }
    Ok(())
}
