//! The virtual machine: started, listened to on a serial line, and ended in time.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{run, term, verified};

/// A machine to run.
pub struct Machine<'a> {
    /// The kernel's image.
    pub kernel: &'a Path,
    /// Its first root.
    pub initramfs: &'a Path,
    /// Where the kernel's own messages go.
    pub console: PathBuf,
    /// Where everything goes that the tests say.
    pub log: PathBuf,
    /// How long it may run.
    pub patience: Duration,
}

/// What the guest said.
#[derive(Default)]
pub struct Report {
    /// Lines of the verifier's test about programs.
    pub programs: Vec<verified::Program>,
    /// What went wrong, a line each.
    pub failures: Vec<String>,
    /// How many tests passed.
    pub passed: u32,
}

/// Memory of the guest: the archive is in it twice while it is unpacked, and maps are preallocated.
const MEMORY: &str = "3G";
/// What a kernel says when something in it is broken.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "Kernel panic",
    "general protection fault",
];

impl Machine<'_> {
    /// Boots, and listens until the guest powers off.
    ///
    /// # Errors
    /// When qemu cannot be started, the guest does not come up or the time is up.
    pub fn run(&self, release: &str, tests: usize) -> Result<Report> {
        let step = term::step(&format!(
            "running the tests on {release}, emulated: this takes minutes"
        ));
        let mut log =
            File::create(&self.log).with_context(|| format!("failed to create {}", self.log.display()))?;
        let mut guest = Guest(
            self.command()
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(log.try_clone().context("failed to share the log file")?)
                .spawn()
                .context("failed to start qemu-system-x86_64")?,
        );
        let output = guest.0.stdout.take().context("qemu has no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let began = Instant::now();
        let mut listener = Listener::new(tests);
        loop {
            let left = self.patience.saturating_sub(began.elapsed());
            match lines.recv_timeout(left.min(Duration::from_secs(20))) {
                Ok(line) => {
                    writeln!(log, "{line}")
                        .with_context(|| format!("failed to write {}", self.log.display()))?;
                    listener.hear(&line, &step);
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => bail!(
                    "the time of {} s is up (all that was said: {} and {})",
                    self.patience.as_secs(),
                    self.log.display(),
                    self.console.display()
                ),
                Err(RecvTimeoutError::Timeout) => step.progress(&listener.doing),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if !listener.finished {
            bail!(
                "the machine stopped while {}: {} (the kernel's messages: {})",
                listener.doing,
                run::last_words(&self.console),
                self.console.display()
            );
        }
        step.done();
        let mut report = listener.report;
        report.failures.extend(self.complaints());
        Ok(report)
    }

    fn command(&self) -> Command {
        // Two serial lines: the kernel's messages would cut those of the tests in two.
        let mut command = run::command(
            "qemu-system-x86_64",
            ["-nodefaults", "-no-user-config", "-no-reboot"],
        );
        command
            .args(["-display", "none", "-m", MEMORY, "-smp", "2", "-cpu", "max"])
            // Not the host's virtualisation: few build machines have it, and what passes here must pass there.
            .args(["-accel", "tcg,thread=multi"])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args([
                "-append",
                "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off",
            ]);
        command
    }

    fn complaints(&self) -> Option<String> {
        let text = std::fs::read(&self.console).ok()?;
        String::from_utf8_lossy(&text)
            .lines()
            .find(|line| COMPLAINTS.iter().any(|word| line.contains(word)))
            .map(|line| format!("the kernel says: {}", line.trim()))
    }
}

/// A running qemu that ends with its handle.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It has most often ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes sense of the lines.
struct Listener {
    report: Report,
    doing: String,
    finished: bool,
    done: usize,
    tests: usize,
    name: String,
}

impl Listener {
    fn new(tests: usize) -> Self {
        Self {
            report: Report::default(),
            doing: "it boots".into(),
            finished: false,
            done: 0,
            tests,
            name: String::new(),
        }
    }

    fn hear(&mut self, line: &str, step: &term::Step) {
        if let Some(program) = verified::Program::read(line) {
            self.report.programs.push(program);
        } else if let Some(word) = line.strip_prefix("ORCH ") {
            self.marker(word, step);
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            step.progress(&format!("{}: {counts}", self.name));
            self.report.passed += counts
                .split_once(" passed")
                .and_then(|(text, _)| text.rsplit(' ').next()?.parse().ok())
                .unwrap_or(0);
        } else if line.starts_with("test ") && line.ends_with("FAILED") || line.contains("panicked at") {
            self.report.failures.push(format!("{}: {line}", self.name));
        } else if verified::is_refusal(line) {
            term::warn(line);
        }
    }

    fn marker(&mut self, word: &str, step: &term::Step) {
        match word.split_once(' ').unwrap_or((word, "")) {
            ("booted", release) => step.progress(&format!("booted {release}")),
            ("problem", what) => self.report.failures.push(what.to_owned()),
            ("begin", name) => {
                name.clone_into(&mut self.name);
                self.doing = format!("{name} runs ({} of {})", self.done + 1, self.tests);
            }
            ("end", outcome) => {
                self.done += 1;
                match outcome.split_once(' ') {
                    Some((_, "0")) => {}
                    // 128 and SIGKILL.
                    Some((name, "137")) => self.report.failures.push(format!("{name}: its time was up")),
                    _ => self.report.failures.push(format!("{} failed", self.name)),
                }
            }
            ("finished", _) => self.finished = self.done == self.tests,
            _ => {}
        }
    }
}
