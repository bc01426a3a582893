//! The control plane of orch: API server, scheduler and controllers in one process.

mod issue_node;
mod networks;
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
            eprintln!("error: failed to {}", describe(&error));
            std::process::ExitCode::FAILURE
        }
    }
}

/// The error and its causes in one line. Many of our errors say their cause themselves: it is not said again.
fn describe(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use std::io::{Error, ErrorKind};

    #[test]
    fn every_cause_is_said_once() {
        let listen = orch_server::ServerError::Listen {
            address: "127.0.0.1:1".parse().unwrap(),
            source: Error::new(ErrorKind::AddrInUse, "in use"),
        };
        let error = Err::<(), _>(listen).context("start the API server").unwrap_err();
        assert_eq!(
            describe(&error),
            "start the API server: listen on 127.0.0.1:1: in use; another program uses this port: stop it, or choose another port"
        );
        let plain = Err::<(), _>(Error::other("no")).context("read").unwrap_err();
        assert_eq!(describe(&plain), "read: no");
    }
}
