//! The control plane of orch: API server, scheduler and controllers in one process.

mod issue_node;
mod serve;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "orch-control", version, about = "The control plane of orch")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane until SIGTERM or SIGINT
    Serve(Box<serve::Serve>),
    /// Write what a new node needs to join: a kubeconfig, serving certificates and the CA
    IssueNode(issue_node::IssueNode),
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("ORCH_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    let outcome = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::IssueNode(issue) => issue.run(),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
