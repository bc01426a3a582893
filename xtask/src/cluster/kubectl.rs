//! kubectl with the cluster's admin identity.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::layout;
use crate::{run, term};

/// `kubectl --kubeconfig target/orch/kubeconfig ARGS`.
pub fn command(args: &[&str]) -> Command {
    let mut command = run::command("kubectl", ["--kubeconfig"]);
    command.arg(layout::kubeconfig()).args(args);
    command
}

/// What it prints.
///
/// # Errors
/// When it fails.
pub fn output(args: &[&str]) -> Result<String> {
    run::output(&mut command(args))
}

/// Waits until a condition holds; `check` also stops the wait with an error.
///
/// # Errors
/// When the time is up or `check` fails for good.
pub fn wait_until(
    step: &term::Step,
    what: &str,
    patience: Duration,
    mut check: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    let mut said = Instant::now();
    while !check()? {
        if began.elapsed() > patience {
            bail!(
                "{what} did not come true within {} s; the logs are in {}",
                patience.as_secs(),
                layout::log("x")
                    .parent()
                    .unwrap_or(&layout::state_dir())
                    .display()
            );
        }
        if said.elapsed() > Duration::from_secs(5) {
            step.progress(&format!("waiting: {what}"));
            said = Instant::now();
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
