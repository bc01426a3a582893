//! `cargo xtask tidy`: the house rules that no compiler knows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{run, term};

/// A file is one idea: longer ones want to be two. Only ever lowered.
const MOST_LINES: usize = 700;

/// Reads every tracked source file once.
///
/// # Errors
/// When a rule is broken; each finding is a line on stdout.
pub fn run() -> Result<()> {
    let root = run::root();
    let listed = run::output(
        run::command("git", ["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(&root),
    )?;
    let files: Vec<PathBuf> = listed
        .lines()
        .map(PathBuf::from)
        .filter(|path| root.join(path).is_file())
        .collect();
    let mut findings = Vec::new();
    for file in files
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
    {
        let text = fs::read_to_string(root.join(file))
            .with_context(|| format!("failed to read {}", file.display()))?;
        findings.extend(check(file, &text));
    }
    let architecture =
        fs::read_to_string(root.join("ARCHITECTURE.md")).context("failed to read ARCHITECTURE.md")?;
    findings.extend(unnamed_crates(&files, &architecture));
    findings.iter().for_each(|finding| term::data(finding));
    if !findings.is_empty() {
        bail!("{} house rules are broken (above)", findings.len());
    }
    term::done(&format!("{} files keep the house rules", files.len()));
    Ok(())
}

fn check(file: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut say = |what: &str| findings.push(format!("{}: {what}", file.display()));
    let opening = text
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with("#!["));
    if !opening.is_some_and(|line| line.starts_with("//!")) {
        say("opens without a `//!` sentence: say what the file is");
    }
    let lines = text.lines().count();
    if lines > MOST_LINES {
        say(&format!(
            "has {lines} lines, over {MOST_LINES}: split it where the idea ends"
        ));
    }
    // Put together here, so that this file does not find itself.
    for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")] {
        if text.contains(word) {
            say(&format!("holds a {word}: open an issue, or do it"));
        }
    }
    findings
}

/// Every crate has its paragraph on the map.
fn unnamed_crates(files: &[PathBuf], architecture: &str) -> Vec<String> {
    files
        .iter()
        .filter(|path| path.file_name().is_some_and(|name| name == "Cargo.toml"))
        .filter_map(|path| path.parent().filter(|folder| !folder.as_os_str().is_empty()))
        .filter(|folder| !architecture.contains(&format!("`{}", folder.display())))
        .map(|folder| format!("{}: ARCHITECTURE.md does not name this crate", folder.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_rules_are_found() {
        let findings = |text: &str| check(Path::new("a.rs"), text).len();
        assert_eq!(findings("//! One idea.\n"), 0);
        assert_eq!(findings("#![no_std]\n//! One idea.\n"), 0);
        assert_eq!(findings("use std::fs;\n"), 1);
        assert_eq!(findings(&format!("//! Long.\n{}", "\n".repeat(MOST_LINES))), 1);
        assert_eq!(findings(concat!("//! Half.\n// TO", "DO the other half\n")), 1);
    }
}
