//! `orch-agent bpf`: what is in the pinned maps, for a person or as JSON.

use std::io::{ErrorKind, Write};

use orch_dataplane::inspect;

use crate::config::{BpfArgs, ConfigError, OutputForm};

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// It is not clear which maps are meant.
    #[error(transparent)]
    Root(#[from] ConfigError),
    /// The maps cannot be read.
    #[error(transparent)]
    Read(#[from] orch_dataplane::DataplaneError),
    /// The output is gone.
    #[error("write the output: {0}")]
    Write(#[from] std::io::Error),
}

/// Writes what is asked for.
///
/// # Errors
/// When the maps are not there or cannot be read.
pub fn show(args: &BpfArgs, out: &mut impl Write) -> Result<(), BpfError> {
    let table = inspect::read(&args.root()?, args.what)?;
    let written = match args.output {
        OutputForm::Text => write!(out, "{}", table.text()),
        OutputForm::Json => writeln!(out, "{:#}", table.json()),
    };
    match written.and_then(|()| out.flush()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
