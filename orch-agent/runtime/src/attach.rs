//! Streams of a container's own process.
use crate::{Exec, Runtime, RuntimeError};
impl Runtime {
    /// The streams of a running container's process from now on; stdin only if it was created with one.
    pub async fn attach(&self, id: &str) -> Result<Exec, RuntimeError> {
        let _ = id;
        Err(RuntimeError::NotReady("attach"))
    }
}
