//! Making a container.
use crate::{ContainerSpec, Runtime, RuntimeError};
impl Runtime {
    /// Makes a container: snapshot, record and process, which waits for [`Runtime::start`].
    pub async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let _ = spec;
        Err(RuntimeError::NotReady("create"))
    }
}
