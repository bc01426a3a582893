//! Requests to a kubelet: one TLS connection each, streamed both ways, upgraded connections joined byte by byte.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, Request, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

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

    /// Sends `request` (its URI is path and query only) to `host:port` and streams what comes back.
    ///
    /// When both sides agree to upgrade, `on_upgrade` (the client's side) is joined with the kubelet's: from then
    /// on bytes pass untouched until either side closes.
    ///
    /// # Errors
    /// When the kubelet cannot be reached or does not speak HTTP.
    pub async fn send(
        &self,
        host: &str,
        port: u16,
        mut request: Request<Body>,
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
        let failed = |source| TunnelError::Http {
            address: address.clone(),
            source,
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a kubelet ended");
            }
        });

        strip(request.headers_mut(), on_upgrade.is_some());
        if let Ok(host) = header::HeaderValue::from_str(&address) {
            request.headers_mut().insert(header::HOST, host);
        }
        let mut response = sender.send_request(request).await.map_err(failed)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = on_upgrade
        {
            let kubelet = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                match tokio::try_join!(client, kubelet) {
                    Ok((client, kubelet)) => {
                        let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
                        // Either side may simply go away; that is how these sessions end.
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut kubelet).await;
                    }
                    Err(error) => tracing::debug!(%error, "upgrade to a kubelet failed"),
                }
            });
            return Ok(response.map(|_| Body::empty()));
        }
        strip(response.headers_mut(), false);
        Ok(response.map(Body::new))
    }
}

/// Takes away what concerns one connection only (RFC 9110, 7.6.1), and the client's own credentials.
fn strip(headers: &mut HeaderMap, keep_upgrade: bool) {
    const HOP_BY_HOP: [HeaderName; 5] = [
        HeaderName::from_static("keep-alive"),
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRANSFER_ENCODING,
        header::TRAILER,
    ];
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
    if !keep_upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}
