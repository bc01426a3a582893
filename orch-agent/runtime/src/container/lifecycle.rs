//! Starting and signalling a container.
use crate::{Runtime, RuntimeError};
impl Runtime {
    /// Starts a created container's process.
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let _ = id;
        Err(RuntimeError::NotReady("start"))
    }
    /// Sends a signal to a container's process, or with `all` to every process in it; fine when it has
    /// ended already.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), RuntimeError> {
        let _ = (id, signal, all);
        Err(RuntimeError::NotReady("kill"))
    }
    /// Sets the size of a container's terminal.
    pub async fn resize(&self, id: &str, cols: u16, rows: u16) -> Result<(), RuntimeError> {
        let _ = (id, cols, rows);
        Err(RuntimeError::NotReady("resize"))
    }
}
