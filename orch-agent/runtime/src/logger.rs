//! The process behind containerd's `binary://` logging: one per container, outliving the agent.
use std::path::Path;

use crate::RuntimeError;

/// Runs as the logger of one container until its output ends: `main` calls it for `orch-agent logger FILE`
/// before it starts anything else (no tokio, no tracing). Returns when the container's output is closed.
pub fn run(path: &Path) -> Result<(), RuntimeError> {
    let _ = path;
    Err(RuntimeError::NotReady("logger"))
}
