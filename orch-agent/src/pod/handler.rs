//! HTTP and TCP towards a container, and lifecycle hooks: what probes and hooks have in common.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, LifecycleHandler},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::context::Target;

/// How much of an answer is read; Kubernetes reads as much for its messages.
const MAX_BODY: usize = 10 * 1024;
/// How long a hook's HTTP request or TCP connection may take; its command may take as long as the grace period.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request towards a container failed; the text is the tail of Kubernetes' probe messages.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The port is a name that the container does not declare.
    #[error("couldn't find port: {0}")]
    Port(String),
    /// Nothing listens, or no route.
    #[error("dial tcp {host}:{port}: connect: {source}")]
    Connect {
        /// Address tried.
        host: String,
        /// Port tried.
        port: u16,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("context deadline exceeded (timeout of {} s)", .0.as_secs())]
    Timeout(Duration),
    /// The request cannot be made from the pod's spec.
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    /// The other side broke the protocol.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// TLS failed.
    #[error("tls: {0}")]
    Tls(String),
    /// The pod has no address yet.
    #[error("the pod has no address")]
    NoAddress,
}

/// The number of a port that may be a name in the container.
///
/// # Errors
/// When the name is unknown or the number no port.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, CallError> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).map_err(|_| CallError::Port(n.to_string())),
        IntOrString::String(name) => (container.ports.iter().flatten())
            .find(|p| p.name.as_ref() == Some(name))
            .and_then(|p| u16::try_from(p.container_port).ok())
            .or_else(|| name.parse().ok())
            .ok_or_else(|| CallError::Port(name.clone())),
    }
}

/// Opens a connection.
///
/// # Errors
/// When it is refused or takes longer than `limit`.
pub async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, CallError> {
    let attempt = TcpStream::connect((host.trim_matches(['[', ']']), port));
    match timeout(limit, attempt).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(CallError::Connect {
            host: host.to_owned(),
            port,
            source: plain(source),
        }),
        Err(_) => Err(CallError::Timeout(limit)),
    }
}

/// The error without Rust's "(os error N)", in the lower case of Kubernetes' messages.
fn plain(error: std::io::Error) -> std::io::Error {
    if error.kind() == std::io::ErrorKind::ConnectionRefused {
        return std::io::Error::new(error.kind(), "connection refused");
    }
    error
}

/// The URL of an `httpGet`.
#[must_use]
pub fn url(action: &HTTPGetAction, ip: Option<IpAddr>, port: u16) -> String {
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
    let ip = ip.map(|ip| {
        if ip.is_ipv6() {
            format!("[{ip}]")
        } else {
            ip.to_string()
        }
    });
    let host = action
        .host
        .clone()
        .filter(|h| !h.is_empty())
        .or(ip)
        .unwrap_or_default();
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}:{port}{slash}{path}")
}

/// Performs an `httpGet` and returns the status code. Certificates are not verified, redirects not followed.
///
/// # Errors
/// When there is no answer within `limit`.
pub async fn get(
    action: &HTTPGetAction,
    container: &Container,
    ip: Option<IpAddr>,
    agent: &str,
    limit: Duration,
) -> Result<u16, CallError> {
    let port = port(container, &action.port)?;
    let uri: Uri = url(action, ip, port).parse().map_err(http::Error::from)?;
    let host = uri
        .host()
        .filter(|h| !h.is_empty())
        .ok_or(CallError::NoAddress)?
        .to_owned();
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    let custom = |name: &str| {
        action
            .http_headers
            .iter()
            .flatten()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .map(|h| h.value.clone())
    };
    let host_header = custom("host").unwrap_or_else(|| format!("{host}:{port}"));
    request = request.header("host", host_header);
    request = request.header(
        "user-agent",
        custom("user-agent").unwrap_or_else(|| agent.to_owned()),
    );
    request = request.header("accept", custom("accept").unwrap_or_else(|| "*/*".to_owned()));
    request = request.header("connection", "close");
    let reserved = ["host", "user-agent", "accept", "connection"];
    for header in action.http_headers.iter().flatten() {
        if !reserved.iter().any(|r| header.name.eq_ignore_ascii_case(r)) {
            request = request.header(&header.name, &header.value);
        }
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async {
        let stream = connect(&host, port, limit).await?;
        if uri.scheme_str() == Some("https") {
            send(tls::wrap(stream, &host).await?, request).await
        } else {
            send(stream, request).await
        }
    };
    timeout(limit, Box::pin(exchange))
        .await
        .map_err(|_| CallError::Timeout(limit))?
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<u16, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            driver.abort();
            return Err(error.into());
        }
    };
    let status = answer.status().as_u16();
    // A server that is cut off in the middle of its answer logs errors; a little is read for its sake.
    let _ = Limited::new(answer.into_body(), MAX_BODY).collect().await;
    driver.abort();
    Ok(status)
}

/// Runs a lifecycle hook. `limit` bounds all of it.
///
/// # Errors
/// A one-line reason when the hook fails.
pub async fn hook(target: &Target, handler: &LifecycleHandler, limit: Duration) -> Result<(), String> {
    let Some(container) = target.container() else {
        return Ok(());
    };
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = target
            .context
            .host
            .exec_sync(&target.id, &command, limit)
            .await
            .map_err(|e| e.to_string())?;
        if output.exit_code == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.output).into_owned();
        return Err(format!(
            "command {command:?} exited with {}: {}",
            output.exit_code,
            text.trim_end()
        ));
    }
    if let Some(action) = &handler.http_get {
        let limit = limit.min(HOOK_TIMEOUT);
        let code = get(action, container, target.ip(), "kube-lifecycle/1.36", limit)
            .await
            .map_err(|e| e.to_string())?;
        // Only a server's refusal counts as failure.
        return if code >= 400 {
            Err(format!("HTTP lifecycle hook failed with statuscode: {code}"))
        } else {
            Ok(())
        };
    }
    if let Some(sleep) = &handler.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(limit)).await;
        return Ok(());
    }
    if let Some(action) = &handler.tcp_socket {
        let port = port(container, &action.port).map_err(|e| e.to_string())?;
        let host = action
            .host
            .clone()
            .or_else(|| target.ip().map(|ip| ip.to_string()))
            .unwrap_or_default();
        return connect(&host, port, limit.min(HOOK_TIMEOUT))
            .await
            .map(drop)
            .map_err(|e| e.to_string());
    }
    Ok(())
}

/// TLS towards a container whose certificate nobody vouches for.
mod tls {
    use std::sync::Arc;

    use rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::CryptoProvider,
    };
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::CallError;

    pub(super) async fn wrap(stream: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, CallError> {
        let fail = |e: &dyn std::fmt::Display| CallError::Tls(e.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| fail(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| fail(&e))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|e| fail(&e))
    }

    /// Accepts every certificate, as Kubernetes' HTTPS probes do: the probe asks for health, not for identity.
    #[derive(Debug)]
    struct AnyCertificate(Arc<CryptoProvider>);

    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
