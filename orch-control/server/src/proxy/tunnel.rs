//! Requests to a kubelet: one TLS connection each, in the API server's name.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::Request;
use hyper::upgrade::OnUpgrade;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use super::exchange::exchange;
use crate::{
    listener::{TlsError, certificates, private_key, roots},
    pki::Issued,
};

/// A node that does not answer by then is taken to be down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a kubelet could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No connection.
    #[error("dial tcp {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// No TLS: most often the certificate is not of our authority or not for that address.
    #[error("tls: {address}: {source}")]
    Tls {
        /// Where to.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The host cannot stand in a certificate.
    #[error("{0:?} is neither an address nor a host name")]
    Host(String),
    /// HTTP went wrong.
    #[error("ask the kubelet at {address}: {source}")]
    Http {
        /// Where.
        address: String,
        /// How.
        source: hyper::Error,
    },
}

/// Asks kubelets in the API server's name.
#[derive(Clone)]
pub struct Kubelets {
    tls: tokio_rustls::TlsConnector,
}

impl Kubelets {
    /// Shows `client`, believes servers of `ca_pem`.
    ///
    /// # Errors
    /// When a certificate or key cannot be used.
    pub fn new(client: &Issued, ca_pem: &str) -> Result<Self, TlsError> {
        let refused = |e: rustls::Error| TlsError::Config {
            what: "the kubelet client certificate",
            reason: e.to_string(),
        };
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(refused)?
                .with_root_certificates(roots(ca_pem)?)
                .with_client_auth_cert(
                    certificates(&client.cert_pem, "the kubelet client certificate")?,
                    private_key(&client.key_pem, "the kubelet client key")?,
                )
                .map_err(refused)?;
        Ok(Self {
            tls: tokio_rustls::TlsConnector::from(Arc::new(config)),
        })
    }

    /// Sends `request` to `host:port`; see [`exchange`].
    ///
    /// # Errors
    /// When the kubelet cannot be reached or does not speak HTTP.
    pub async fn send(
        &self,
        host: &str,
        port: u16,
        request: Request<Body>,
        on_upgrade: Option<OnUpgrade>,
    ) -> Result<Response, TunnelError> {
        let address = match host.parse::<std::net::IpAddr>() {
            Ok(ip) => std::net::SocketAddr::from((ip, port)).to_string(),
            Err(_) => format!("{host}:{port}"),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TunnelError::Host(host.to_owned()))?;
        let connect = async {
            let stream = TcpStream::connect((host, port))
                .await
                .map_err(|source| TunnelError::Connect {
                    address: address.clone(),
                    source,
                })?;
            let _ = stream.set_nodelay(true);
            self.tls
                .connect(name, stream)
                .await
                .map_err(|source| TunnelError::Tls {
                    address: address.clone(),
                    source,
                })
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| TunnelError::Connect {
                address: address.clone(),
                source: std::io::ErrorKind::TimedOut.into(),
            })??;
        exchange(stream, &address, request, on_upgrade)
            .await
            .map_err(|source| TunnelError::Http { address, source })
    }
}
