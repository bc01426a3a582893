//! The developer's commands: one entry here, one file each.

mod bench;
mod build_ebpf;
mod cluster;
mod deps;
mod image;
mod kernel;
mod run;
mod term;
mod test;
mod tidy;
mod traffic;
mod verified;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, runs, tests and measures orch"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a cluster on this machine and waits until it is Ready; installs what is missing first
    Up(cluster::up::Options),
    /// Stops the cluster and leaves nothing behind
    Down,
    /// Shows what of a cluster is on this machine: processes, namespaces, mounts, cgroups, links, pins
    Residue,
    /// Imports OCI or docker archives into every node
    LoadImage {
        /// The archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Builds container images from Debian packages, without a registry or a Docker engine
    BuildImage {
        /// Folders with an image.toml; all of deploy/images when none is given
        recipes: Vec<PathBuf>,
    },
    /// Builds the eBPF programs with whichever toolchain the machine has, and says what the kernel thinks of them
    BuildEbpf(build_ebpf::Options),
    /// Boots another kernel in a virtual machine and runs the data plane's tests on it
    VerifyKernel(kernel::Options),
    /// Runs the tests, after setting up what they need
    Test(test::Options),
    /// Checks the house rules that no compiler knows
    Tidy,
    /// Measures; prints tables and writes JSON under target/bench/
    Bench(bench::Options),
    /// Servers and clients that benchmarks start inside namespaces
    #[command(hide = true, subcommand)]
    Traffic(traffic::Traffic),
}

fn main() {
    let outcome = match Cli::parse().command {
        Command::Up(options) => cluster::up::run(&options),
        Command::Down => cluster::down::run(),
        Command::Residue => cluster::residue::run(),
        Command::LoadImage { files } => cluster::load_image::run(&files),
        Command::BuildImage { recipes } => image::run(&recipes),
        Command::BuildEbpf(options) => build_ebpf::run(&options),
        Command::VerifyKernel(options) => kernel::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Tidy => tidy::run(),
        Command::Bench(options) => bench::run(&options),
        Command::Traffic(traffic) => traffic::run(&traffic),
    };
    if let Err(error) = outcome {
        term::fail(&error);
        std::process::exit(1);
    }
}
