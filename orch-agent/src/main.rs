//! The agent's command line.

use std::{path::Path, process::ExitCode};

use clap::Parser as _;
use orch_agent::{
    bpf, chain,
    config::{Cli, Command},
    keeper, monitor, run,
};

/// Threads of the asynchronous runtime: the agent waits far more than it computes.
const WORKERS: usize = 2;

/// What a logger and a keeper of sockets do, for their errors.
const LOG: &str = "log a container's output";
const KEEP: &str = "keep sockets";

fn main() -> ExitCode {
    // One logger runs for each container, and the sockets' keeper does nothing: they start before anything that costs
    // memory.
    let mut args = std::env::args_os().skip(1);
    if let (Some(word), Some(file)) = (args.next(), args.next())
        && !file.to_string_lossy().starts_with('-')
    {
        let file = Path::new(&file);
        if word == "logger" {
            return finish(LOG, orch_runtime::logger::run(file));
        }
        if word == keeper::COMMAND {
            return finish(KEEP, keeper::run(file));
        }
    }
    match Cli::parse().command {
        Command::Logger { file } => finish(LOG, orch_runtime::logger::run(&file)),
        Command::KeepSockets { file } => finish(KEEP, keeper::run(&file)),
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
