//! Processes started beside a container's first one.
use std::time::Duration;

use crate::{OutputStream, Runtime, RuntimeError, StdinStream, UserSpec};

/// What to run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give it a terminal (stderr then comes with stdout).
    pub tty: bool,
    /// Give it an input.
    pub stdin: bool,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// Run as this user instead of the container's.
    pub user: Option<UserSpec>,
    /// The terminal's first size: columns, rows.
    pub size: Option<(u16, u16)>,
}

/// A running process with its streams; take the streams out to use them side by side.
pub struct Exec {
    /// Input, if asked for.
    pub stdin: Option<StdinStream>,
    /// Standard output.
    pub stdout: Option<OutputStream>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<OutputStream>,
    /// Resizing, killing and waiting; cheap to clone.
    pub control: ProcessControl,
}

/// Control of a process in a container: of an exec, or of the container's own through attach.
#[derive(Clone)]
pub struct ProcessControl {}

impl ProcessControl {
    /// Sets the size of its terminal.
    pub async fn resize(&self, cols: u16, rows: u16) -> Result<(), RuntimeError> {
        let _ = (cols, rows);
        Err(RuntimeError::NotReady("resize"))
    }
    /// Waits for its end: the exit code, 128 + signal for a signal.
    pub async fn wait(&self) -> Result<i32, RuntimeError> {
        Err(RuntimeError::NotReady("wait"))
    }
    /// Sends it a signal; fine when it has ended. Does nothing to an attached container.
    pub async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        let _ = signal;
        Err(RuntimeError::NotReady("kill"))
    }
}

/// What a short command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code.
    pub exit_code: i32,
    /// The first 16 KiB of stdout and stderr as they came.
    pub output: Vec<u8>,
}

impl Runtime {
    /// Starts a process in a running container.
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Exec, RuntimeError> {
        let _ = (id, spec);
        Err(RuntimeError::NotReady("exec"))
    }
    /// Runs a command to its end; when it takes longer than `timeout` it is killed and the error is
    /// [`RuntimeError::Timeout`].
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let _ = (id, command, timeout);
        Err(RuntimeError::NotReady("exec_sync"))
    }
}
