//! What a kernel's verifier said of each program: lines of the data plane's `verifier` test, and the table of them.

use anyhow::{Context as _, Result, bail};

use crate::{run, term};

/// One program as the kernel has loaded it.
pub struct Program {
    name: String,
    /// Instructions after the kernel has resolved and inlined what it can.
    loaded: u64,
    /// Instructions that the verifier has walked through; zero where the kernel does not count them.
    verified: u64,
    /// How many of those the test allows; zero where it has no bound.
    bound: u64,
}

impl Program {
    /// Reads `program NAME loaded=N verified=N bound=N`.
    pub fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("program ")?.split(' ');
        let name = words.next()?.to_owned();
        let mut number = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=')?.parse().ok();
        Some(Self {
            loaded: number("loaded")?,
            verified: number("verified")?,
            bound: number("bound")?,
            name,
        })
    }
}

/// What came of asking.
pub enum Answer {
    /// The kernel took them all.
    Programs(Vec<Program>),
    /// Nobody was asked, and why.
    Unasked(&'static str),
}

/// Loads the programs into this machine's kernel and asks it about each.
///
/// # Errors
/// When a program is refused or needs more than its bound; the refusals are shown.
pub fn here() -> Result<Answer> {
    let step = term::step("asking this kernel's verifier");
    let cargo = |last: &[&str]| {
        let mut cargo = run::cargo(["test", "--quiet", "-p", "orch-dataplane", "--test", "verifier"]);
        cargo.args(last).current_dir(run::root());
        cargo
    };
    // The programs are built and may be of use all the same: user space often follows them by some minutes.
    if let Err(error) = run::output(&mut cargo(&["--no-run"])) {
        term::warn(&format!("{error:#}"));
        return Ok(Answer::Unasked(
            "the verifier was not asked: user space does not compile with these programs",
        ));
    }
    let output = cargo(&["--", "--nocapture"])
        .output()
        .context("failed to start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().filter(|line| is_refusal(line)) {
        term::warn(line);
    }
    if !output.status.success() {
        bail!("{}", reason(&String::from_utf8_lossy(&output.stderr)));
    }
    step.done();
    Ok(Answer::Programs(text.lines().filter_map(Program::read).collect()))
}

/// Whether a line of the test is part of the verifier's refusal.
pub fn is_refusal(line: &str) -> bool {
    line.starts_with("refused ") || line.starts_with("  | ")
}

/// What a panicking test says under the line with its place.
fn reason(stderr: &str) -> String {
    let said = stderr
        .lines()
        .skip_while(|line| !line.contains("panicked at"))
        .skip(1);
    let text: Vec<&str> = said.take_while(|line| !line.starts_with("note: ")).collect();
    if text.is_empty() {
        return format!(
            "the verifier's test failed: {}",
            stderr.trim().lines().last().unwrap_or("no message")
        );
    }
    text.join("; ")
}

/// Prints the table, the heaviest last.
pub fn print(programs: &[Program]) {
    let mut sorted: Vec<&Program> = programs.iter().collect();
    sorted.sort_by_key(|program| (program.verified, &program.name));
    term::data(&format!(
        "{:<20} {:>12} {:>12} {:>12}",
        "program", "instructions", "verified", "allowed"
    ));
    let shown = |number| {
        if number == 0 {
            "-".to_owned()
        } else {
            format!("{number}")
        }
    };
    for program in sorted {
        term::data(&format!(
            "{:<20} {:>12} {:>12} {:>12}",
            program.name,
            program.loaded,
            shown(program.verified),
            shown(program.bound)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::Program;

    #[test]
    fn a_line_of_the_test_is_read_and_others_are_not() {
        let program = Program::read("program uplink_xdp loaded=812 verified=20345 bound=50000").unwrap();
        assert_eq!((program.name.as_str(), program.loaded), ("uplink_xdp", 812));
        assert_eq!((program.verified, program.bound), (20345, 50000));
        assert!(Program::read("program uplink_xdp loaded=x").is_none());
        assert!(Program::read("running 1 test").is_none());
    }
}
