//! The real kubectl, as the cluster's admin.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::root;

/// What a kubectl call gave.
pub struct Outcome {
    /// Its exit code was 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// `kubectl ARGS`, for a caller that adds to it.
#[must_use]
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command
        .arg("--kubeconfig")
        .arg(root().join("target/orch/kubeconfig"))
        .args(args);
    command
}

/// Runs kubectl, whether it succeeds or not; `input` goes to its standard input.
///
/// # Errors
/// When it cannot be started.
pub fn attempt(args: &[&str], input: &str) -> Result<Outcome> {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to start kubectl")?;
    let mut stdin = child.stdin.take().context("kubectl has no stdin")?;
    let input = input.to_owned();
    // It may answer before it has read everything: a broken pipe is no failure.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).ok());
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().context("failed to wait for kubectl")?;
    writer.join().ok();
    Ok(Outcome {
        success: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

/// Runs kubectl and returns what it printed.
///
/// # Errors
/// When it fails; the error holds its stderr.
pub fn run(args: &[&str]) -> Result<String> {
    with_input(args, "")
}

/// Runs kubectl on standard input and returns what it printed.
///
/// # Errors
/// When it fails; the error holds its stderr.
pub fn with_input(args: &[&str], input: &str) -> Result<String> {
    let outcome = attempt(args, input)?;
    if !outcome.success {
        bail!(
            "kubectl {} failed: {}{}",
            args.join(" "),
            outcome.stdout,
            outcome.stderr.trim()
        );
    }
    Ok(outcome.stdout)
}

/// `kubectl ARGS -o json`, parsed.
///
/// # Errors
/// When it fails.
pub fn json(args: &[&str]) -> Result<Value> {
    let text = run(&[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("kubectl {} gave no JSON", args.join(" ")))
}
