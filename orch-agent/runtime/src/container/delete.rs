//! Removing a container.
use crate::{Runtime, RuntimeError};
impl Runtime {
    /// Kills what runs and removes everything of a container but its log; fine when it is gone already.
    pub async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        let _ = id;
        Err(RuntimeError::NotReady("delete"))
    }
}
