//! The logger by itself, `orch-logger logger FILE`: what `orch-agent logger FILE` does, without the agent.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(command), Some(file), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: orch-logger logger FILE");
        return ExitCode::from(2);
    };
    if command != "logger" {
        eprintln!("orch-logger: the only command is `logger`");
        return ExitCode::from(2);
    }
    match orch_runtime::logger::run(Path::new(&file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orch-logger: {error}");
            ExitCode::FAILURE
        }
    }
}
