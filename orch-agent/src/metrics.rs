//! The agent's metrics over plain HTTP, where kube-proxy has its own: for scrapers on the node, without certificates.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::kubelet::{Backend, metrics_router};

/// Pause between attempts to take an address that is in use, as while an earlier agent ends.
const RETRY: Duration = Duration::from_secs(5);

/// Serves until `stop`. An address that cannot be had is warned about and tried again: metrics are not worth a node.
pub async fn serve(address: SocketAddr, backend: Arc<dyn Backend>, stop: CancellationToken) {
    let router = metrics_router(backend);
    let mut warned = false;
    while !stop.is_cancelled() {
        match TcpListener::bind(address).await {
            Ok(listener) => return answer(listener, router, &stop).await,
            Err(error) => {
                if !warned {
                    tracing::warn!(%address, %error, "cannot listen for metrics, trying again");
                    warned = true;
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}

async fn answer(listener: TcpListener, router: Router, stop: &CancellationToken) {
    let stopped = stop.clone().cancelled_owned();
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(stopped)
        .await
    {
        tracing::warn!(%error, "metrics are no longer served");
    }
}
