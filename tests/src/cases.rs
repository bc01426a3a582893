//! Several cases on the same pods: each is tried, whatever became of those before.

use std::time::Instant;

use anyhow::{Result, bail};

/// What became of the cases so far.
#[derive(Default)]
pub struct Cases {
    tried: usize,
    failures: Vec<String>,
}

impl Cases {
    /// Tries one.
    pub fn case(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        let began = Instant::now();
        self.tried += 1;
        let outcome = check();
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("  {name}: ok ({seconds:.1} s)"),
            Err(error) => {
                println!("  {name}: FAILED ({seconds:.1} s): {error:#}");
                self.failures.push(format!("{name}: {error:#}"));
            }
        }
    }

    /// Succeeds when all did.
    ///
    /// # Errors
    /// What failed, a line each.
    pub fn finish(self) -> Result<()> {
        if !self.failures.is_empty() {
            bail!(
                "{} of {} cases failed:\n{}",
                self.failures.len(),
                self.tried,
                self.failures.join("\n")
            );
        }
        Ok(())
    }
}
