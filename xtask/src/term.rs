//! The terminal: progress on stderr, data on stdout, and nothing else prints.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Instant,
};

/// A step that is under way. Says how long it took when it is done.
pub struct Step {
    text: String,
    began: Instant,
}

/// Announces a step.
pub fn step(text: &str) -> Step {
    line("•", "36", text);
    Step {
        text: text.to_owned(),
        began: Instant::now(),
    }
}

impl Step {
    /// The step succeeded.
    pub fn done(self) {
        let took = self.began.elapsed().as_secs_f32();
        line("✓", "32", &format!("{} ({took:.1} s)", self.text));
    }

    /// Word of how far the step is.
    pub fn progress(&self, detail: &str) {
        line(
            "·",
            "2",
            &format!("  {detail} ({:.0} s)", self.began.elapsed().as_secs_f32()),
        );
    }
}

/// Something is finished.
pub fn done(text: &str) {
    line("✓", "32", text);
}

/// Something is odd, but the command goes on.
pub fn warn(text: &str) {
    line("!", "33", text);
}

/// What the user may want to do next.
pub fn hint(text: &str) {
    line("→", "35", text);
}

/// The command failed: one line, outermost context first.
pub fn fail(error: &anyhow::Error) {
    line("✗", "31", &format!("{error:#}"));
}

/// Data, on stdout.
pub fn data(text: &str) {
    println!("{text}");
}

fn line(mark: &str, colour: &str, text: &str) {
    let mut stderr = std::io::stderr().lock();
    let plain = !stderr.is_terminal() || std::env::var_os("NO_COLOR").is_some();
    // A closed stderr is no reason to stop working.
    let _ = if plain {
        writeln!(stderr, "{mark} {text}")
    } else {
        writeln!(stderr, "\u{1b}[{colour}m{mark}\u{1b}[0m {text}")
    };
}
