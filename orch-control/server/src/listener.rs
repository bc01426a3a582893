//! The TLS listener: accepts connections, learns who is at the other end, and speaks HTTP/1.1 or HTTP/2.
//!
//! Client certificates are asked for, never required: a client without one may still carry a token. HTTP/2 is
//! offered by ALPN; upgrades (exec, attach, port-forward) use HTTP/1.1, which those clients ask for themselves.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{auth::identity::Identity, pki::Issued};

/// A client that has not finished its TLS handshake by then is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests that run at shutdown may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// As many as the reference API server allows on one connection.
const MAX_STREAMS: u32 = 250;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key is no valid PEM.
    #[error("read {what}: {source}")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why not.
        source: rustls_pki_types::pem::Error,
    },
    /// rustls refuses the certificate or key.
    #[error("use {what}: {reason}")]
    Config {
        /// Which.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

/// Certificates that `pem` holds.
pub(crate) fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })
}

/// The private key that `pem` holds.
pub(crate) fn private_key(pem: &str, what: &'static str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { what, source })
}

/// A root store with the authority `ca_pem` alone.
pub(crate) fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "the CA certificate")? {
        roots.add(certificate).map_err(|e| TlsError::Config {
            what: "the CA certificate",
            reason: e.to_string(),
        })?;
    }
    Ok(roots)
}

/// The server side: shows `server`, believes client certificates of `ca_pem`.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn tls_config(server: &Issued, ca_pem: &str) -> Result<rustls::ServerConfig, TlsError> {
    let refused = |what| {
        move |e: rustls::Error| TlsError::Config {
            what,
            reason: e.to_string(),
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|e| TlsError::Config {
                what: "the CA certificate",
                reason: e.to_string(),
            })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused("TLS"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            certificates(&server.cert_pem, "the server certificate")?,
            private_key(&server.key_pem, "the server key")?,
        )
        .map_err(refused("the server certificate"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves `router` on `listener` until `stop`; requests that run then get a few seconds to end.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Usually out of file descriptors; accepting again at once would only spin.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, router, watcher) = (acceptor.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
            };
            let service = connection_service(router, client_identity(stream.get_ref().1));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(60));
            builder
                .http2()
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(15));
            let connection = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service))
                .into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::info!("gave up waiting for requests that still run");
    }
}

/// What a connection proved before its first request; requests carry it as an extension.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Who its certificate says it is.
    pub(crate) certificate: Option<Arc<Identity>>,
}

type Service = tower::util::BoxCloneSyncService<
    http::Request<hyper::body::Incoming>,
    axum::response::Response,
    std::convert::Infallible,
>;

fn connection_service(router: Router, certificate: Option<Arc<Identity>>) -> Service {
    use tower::ServiceExt as _;
    let peer = Peer { certificate };
    Service::new(
        router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.map(axum::body::Body::new)
        }),
    )
}

/// Common name and organisations of the verified client certificate (RFC 5280; Kubernetes' x509 convention).
fn client_identity(connection: &rustls::ServerConnection) -> Option<Arc<Identity>> {
    let certificate = connection.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned);
    Some(Arc::new(Identity::authenticated(name, groups)))
}
