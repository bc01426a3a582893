//! The listener: TLS, the client's identity, and one task per connection.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{Backend, auth::Identity, router, tls};

/// Connections served at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long a handshake or a request's headers may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the API listens, and its credentials as PEM files.
#[derive(Debug, Clone)]
pub struct KubeletConfig {
    /// Usually the node's addresses, port 10250.
    pub listen: Vec<SocketAddr>,
    /// The server's certificate chain.
    pub tls_cert: PathBuf,
    /// Its key.
    pub tls_key: PathBuf,
    /// The CA that signs clients' certificates.
    pub client_ca: PathBuf,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// A certificate or key cannot be used.
    #[error("cannot use {path}: {reason}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

/// Listens and serves in the background until `stop`; returns the addresses that were bound.
///
/// # Errors
/// When a file cannot be used or an address is taken.
pub async fn serve(
    config: &KubeletConfig,
    backend: Arc<dyn Backend>,
    stop: CancellationToken,
) -> Result<Vec<SocketAddr>, KubeletError> {
    let tls = tls::config(&config.tls_cert, &config.tls_key, &config.client_ca)?;
    let acceptor = TlsAcceptor::from(tls);
    let router = router(backend);
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for address in &config.listen {
        let failed = |source| KubeletError::Listen {
            address: *address,
            source,
        };
        let listener = bind(*address).await.map_err(failed)?;
        addresses.push(listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    for listener in listeners {
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = accept(listener, acceptor, router) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    Ok(addresses)
}

/// Binds an address; an IPv6 address that the machine has just got is not its own for a moment (RFC 4862 section 5.4).
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable
                    && address.is_ipv6()
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => return other,
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, acceptor, router).await {
                        tracing::debug!(%peer, %error, "kubelet API connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: others have to end first.
                tracing::warn!(%error, "cannot accept a connection to the kubelet API");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates.and_then(|chain| Identity::of(chain.first()?));
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(identity) = &identity {
            request.extensions_mut().insert(identity.clone());
        }
        router.clone().oneshot(request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}
