//! Requests to a kubelet: one TLS connection each, in the API server's name.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{Request, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::exchange::exchange;
use crate::{
    listener::{TlsError, certificates, private_key, roots},
    pki::Issued,
};

/// A node that does not answer by then is taken to be down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// As much of an agent's refusal is passed on.
const MAX_REFUSAL: usize = 8 * 1024;

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
    /// An agent could not connect to what it was asked to connect to.
    #[error("node at {address}: {reason}")]
    Refused {
        /// The agent's.
        address: String,
        /// In its words.
        reason: String,
    },
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

    /// A TLS connection to the kubelet at `host:port`, and what that is called in errors.
    async fn connect(&self, host: &str, port: u16) -> Result<(TlsStream<TcpStream>, String), TunnelError> {
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
        Ok((stream, address))
    }

    /// Sends `request` (its URI is path and query only) to `host:port` and streams what comes back; when both sides
    /// agree to upgrade, `on_upgrade` (the client's side) is joined with the kubelet's.
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
        let (stream, address) = self.connect(host, port).await?;
        exchange(stream, &address, request, on_upgrade)
            .await
            .map_err(|source| TunnelError::Http { address, source })
    }

    /// A connection to what `path` names, made by the agent at `host:port`: so the API server needs no way into the
    /// pod network. `None` when the kubelet there is not an agent of ours and does not know `path`.
    ///
    /// # Errors
    /// When the agent cannot be reached, or cannot connect in its turn.
    pub async fn dial(
        &self,
        host: &str,
        port: u16,
        path: &str,
    ) -> Result<Option<TokioIo<Upgraded>>, TunnelError> {
        let (stream, address) = self.connect(host, port).await?;
        let failed = |source| TunnelError::Http {
            address: address.clone(),
            source,
        };
        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a tunnel ended");
            }
        });
        let request = Request::get(path)
            .header(header::HOST, &address)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .body(Body::empty())
            .map_err(|_| TunnelError::Host(path.to_owned()))?;
        let response = sender.send_request(request).await.map_err(failed)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
                Ok(Some(TokioIo::new(upgraded)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => {
                let body = axum::body::to_bytes(Body::new(response.into_body()), MAX_REFUSAL).await;
                let body = body.unwrap_or_default();
                let status: Option<Value> = serde_json::from_slice(&body).ok();
                let message = status.as_ref().and_then(|status| status["message"].as_str());
                let reason = message.map_or_else(|| String::from_utf8_lossy(&body).into(), str::to_owned);
                Err(TunnelError::Refused { address, reason })
            }
        }
    }
}
