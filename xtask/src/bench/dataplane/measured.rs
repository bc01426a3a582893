//! The parts that stand where the maps are typed: bench binaries of orch-dataplane, which print their rows as JSON.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::Row;
use crate::{run, term};

/// Builds and runs one of orch-dataplane's bench binaries, optimised as the agent is.
///
/// # Errors
/// When it does not compile or fails; what it says is on the screen.
pub fn by(bench: &str) -> Result<Vec<Row>> {
    let arguments = ["bench", "--quiet", "-p", "orch-dataplane", "--bench", bench];
    let step = term::step(&format!("building the {bench} benchmark"));
    run::show(run::cargo(arguments).arg("--no-run").current_dir(run::root()))?;
    step.done();
    let step = term::step(&format!("measuring {bench}"));
    let output = run::cargo(arguments)
        .current_dir(run::root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start cargo")?;
    if !output.status.success() {
        bail!("the {bench} benchmark failed (above)");
    }
    step.done();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).with_context(|| format!("the {bench} benchmark printed no rows"))
}
