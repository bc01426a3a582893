//! Running other programs, with errors that say which one and why.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// A command with its arguments.
pub fn command<I, S>(program: &str, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// cargo, as if it were typed: without what the cargo that runs this program has told it. Build scripts that look
/// at those variables (ring's) would otherwise run anew each time a build changes hands.
pub fn cargo<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = command("cargo", args);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|head| text.starts_with(head))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs to the end with output on the terminal.
///
/// # Errors
/// When it cannot be started or fails.
pub fn show(command: &mut Command) -> Result<()> {
    let text = words(command);
    let status = command
        .status()
        .with_context(|| format!("failed to start `{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed ({status})");
    }
    Ok(())
}

/// Runs to the end and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; the error holds the last line of its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let text = words(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start `{text}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{text}` failed: {}",
            stderr.trim().lines().last().unwrap_or("no message")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Calls `ip` with these arguments.
///
/// # Errors
/// As for [`output`].
pub fn ip(args: &[&str]) -> Result<()> {
    output(&mut command("ip", args)).map(drop)
}

/// Runs to the end with all output appended to a log; on failure the log's tail is in the error.
///
/// # Errors
/// When it cannot be started or fails.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let text = words(command);
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("failed to open {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("failed to share the log file")?)
        .stderr(file)
        .status()
        .with_context(|| format!("failed to start `{text}`"))?;
    if !status.success() {
        bail!(
            "`{text}` failed: {} (all of it: {})",
            last_words(log),
            log.display()
        );
    }
    Ok(())
}

/// The last line of a log that says something.
pub fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it printed nothing")
        .trim()
        .to_owned()
}

/// Where a program is on the PATH.
pub fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// The workspace's root.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
