//! The agent's command line.

use std::{path::Path, process::ExitCode};

use clap::Parser as _;
use orch_agent::{
    bpf, chain,
    config::{Cli, Command},
    monitor, run,
};

/// Threads of the asynchronous runtime: the agent waits far more than it computes.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    // One logger runs for each container, so it starts before anything that costs memory.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == "logger")
        && let Some(file) = args
            .next()
            .filter(|word| !word.to_string_lossy().starts_with('-'))
    {
        return finish(
            "log a container's output",
            orch_runtime::logger::run(Path::new(&file)),
        );
    }
    match Cli::parse().command {
        Command::Logger { file } => finish("log a container's output", orch_runtime::logger::run(&file)),
        Command::Bpf(args) => finish(
            "show the data plane",
            bpf::show(&args, &mut std::io::stdout().lock()),
        ),
        Command::Monitor(args) => finish(
            "monitor the data plane",
            monitor::run(&args, &mut std::io::stdout().lock()),
        ),
        Command::Run(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .max_blocking_threads(64)
                .thread_stack_size(1 << 20)
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    let result = runtime.block_on(run::run(*args));
                    // Blocking reads of logs and mounts must not hold up the end.
                    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
                    finish("run the node", result)
                }
                Err(error) => finish("run the node", Err(error)),
            }
        }
    }
}

fn finish<E: std::error::Error>(what: &str, result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orch-agent: failed to {what}: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
