//! `cargo xtask verify-kernel`: the data plane's tests on another kernel than this machine's.
//!
//! A virtual machine boots Debian's own kernel with nothing but the tests and what they call, in memory, and without
//! hardware virtualisation, which few build machines have. Nothing is installed on the host and nothing outlives the command.

mod cpio;
mod machine;
mod modules;
mod package;
mod tests;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build_ebpf,
    deps::{self, Need},
    run, term, verified,
};

/// What `verify-kernel` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// Which of Debian's kernels, by the start of its version; the newest that apt knows is taken
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// Seconds that one test binary may take; emulation is slow
    #[arg(long, default_value_t = 2400)]
    patience: u64,
    /// Test binaries of orch-dataplane; all when none is given, `verifier` first
    tests: Vec<String>,
}

/// Boots the kernel, runs the tests in it and says what came of each program and each test.
///
/// # Errors
/// When a program is refused, a test fails, the kernel complains, or the time is up.
pub fn run(options: &Options) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("verify-kernel boots amd64 kernels, and runs on such machines only");
    }
    deps::install(&[Need::Build, Need::Ebpf, Need::Cluster, Need::Kernel])?;
    let step = term::step("building the eBPF programs and the data plane's tests");
    build_ebpf::build()?;
    let tests = tests::build(&options.tests)?;
    step.done();
    let kernel = package::fetch(&options.kernel)?;
    let folder = folder()?;
    let initramfs = folder.join("initramfs.cpio");
    let step = term::step("packing them for the virtual machine");
    tests::pack(&tests, &kernel, options.patience, &initramfs)?;
    step.done();
    let machine = machine::Machine {
        kernel: &kernel.image,
        initramfs: &initramfs,
        console: folder.join("console.log"),
        log: folder.join("tests.log"),
        // Booting takes half a minute where every instruction is emulated.
        patience: Duration::from_secs(180 + options.patience * tests.len() as u64),
    };
    let outcome = machine.run(&kernel.release, tests.len());
    fs::remove_file(&initramfs).with_context(|| format!("failed to remove {}", initramfs.display()))?;
    let report = outcome?;
    if !report.programs.is_empty() {
        verified::print(&report.programs);
    }
    for failure in &report.failures {
        term::warn(failure);
    }
    if !report.failures.is_empty() {
        bail!(
            "kernel {} does not carry the data plane: {} (all that the tests said: {}, the kernel: {})",
            kernel.release,
            report.failures.first().map_or("", String::as_str),
            machine.log.display(),
            machine.console.display()
        );
    }
    term::done(&format!(
        "the programs load on {} and {} tests pass there",
        kernel.release, report.passed
    ));
    Ok(())
}

/// Where kernels are kept and logs are written.
fn folder() -> Result<PathBuf> {
    let folder = run::root().join("target/verify-kernel");
    fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    Ok(folder)
}
