//! Talking to registries, and telling their failures apart.

use futures::TryStreamExt;
use futures::stream::BoxStream;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets;

use super::manifest::{Descriptor, MANIFEST_TYPES, sha256_digest};
use crate::{PullFailure, Reference, RegistryAuth};

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct FetchError {
    pub(crate) kind: PullFailure,
    pub(crate) message: String,
}

impl FetchError {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self {
            kind: PullFailure::Invalid,
            message: message.into(),
        }
    }
}

/// One repository at one registry, with credentials.
pub(crate) struct Repository {
    client: oci_client::Client,
    auth: secrets::RegistryAuth,
    reference: Reference,
}

/// How long a registry may take to accept a connection, and to send the next bytes.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);
const READ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

impl Repository {
    pub(crate) fn new(
        reference: &Reference,
        auth: Option<RegistryAuth>,
        insecure_registries: &[String],
    ) -> Result<Self, FetchError> {
        // The TLS library below is built without a provider of cryptography; a second installation is refused,
        // which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = insecure_registries.contains(&reference.registry) || is_loopback(&reference.registry);
        let protocol = if plain {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("orch/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).map_err(|e| FetchError {
            kind: PullFailure::Network,
            message: chain(&e),
        })?;
        let auth = match auth {
            Some(RegistryAuth { username, password }) => secrets::RegistryAuth::Basic(username, password),
            None => secrets::RegistryAuth::Anonymous,
        };
        Ok(Self {
            client,
            auth,
            reference: reference.clone(),
        })
    }

    /// Fetches a manifest or index by the repository's own reference or by digest: its bytes and digest.
    pub(crate) async fn manifest(&self, digest: Option<&str>) -> Result<(bytes::Bytes, String), FetchError> {
        let target = self.target(digest);
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&target, &self.auth, &MANIFEST_TYPES)
            .await
            .map_err(|e| self.classify(e))?;
        let actual = sha256_digest(&bytes);
        match digest
            .or(self.reference.digest.as_deref())
            .filter(|wanted| wanted.starts_with("sha256:"))
        {
            Some(wanted) if wanted != actual => Err(FetchError::invalid(format!(
                "manifest {wanted} has content of digest {actual}"
            ))),
            _ => Ok((bytes, actual)),
        }
    }

    /// Streams a blob.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, std::io::Result<bytes::Bytes>>, FetchError> {
        let target = self.target(None);
        let stream = self
            .client
            .pull_blob_stream(&target, descriptor.digest.as_str())
            .await
            .map_err(|e| self.classify(e))?;
        Ok(Box::pin(stream.into_stream()))
    }

    fn target(&self, digest: Option<&str>) -> oci_client::Reference {
        let Reference {
            registry,
            repository,
            tag,
            digest: own,
        } = self.reference.clone();
        match digest.map(str::to_owned).or(own) {
            Some(digest) => oci_client::Reference::with_digest(registry, repository, digest),
            None => oci_client::Reference::with_tag(
                registry,
                repository,
                tag.unwrap_or_else(|| "latest".to_owned()),
            ),
        }
    }

    fn classify(&self, error: OciDistributionError) -> FetchError {
        use OciDistributionError as E;
        let not_found = || (PullFailure::NotFound, format!("{}: not found", self.reference));
        let denied = |detail: &str| {
            let mut message =
                "pull access denied, repository does not exist or may require authorization".to_owned();
            if !detail.is_empty() {
                message.push_str(": ");
                message.push_str(detail);
            }
            (PullFailure::Unauthorized, message)
        };
        let (kind, message) = match &error {
            E::ImageManifestNotFoundError(_) => not_found(),
            E::RegistryError { envelope, .. } => {
                let has = |codes: &[OciErrorCode]| envelope.errors.iter().any(|e| codes.contains(&e.code));
                let details = envelope
                    .errors
                    .iter()
                    .map(|e| e.message.as_str())
                    .collect::<Vec<_>>()
                    .join("; ");
                if has(&[
                    OciErrorCode::ManifestUnknown,
                    OciErrorCode::NameUnknown,
                    OciErrorCode::NotFound,
                    OciErrorCode::BlobUnknown,
                ]) {
                    not_found()
                } else if has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                    denied(&details)
                } else if has(&[OciErrorCode::Toomanyrequests]) {
                    (PullFailure::Network, format!("too many requests: {details}"))
                } else {
                    (PullFailure::Invalid, chain(&error))
                }
            }
            E::AuthenticationFailure(detail) => denied(detail.trim()),
            E::UnauthorizedError { .. } => denied("server message: unauthorized"),
            E::ServerError { code: 404, .. } => not_found(),
            E::ServerError {
                code: 401 | 403,
                message,
                ..
            } => denied(message.trim()),
            E::ServerError { .. } | E::RequestError(_) | E::IoError(_) => {
                (PullFailure::Network, chain(&error))
            }
            _ => (PullFailure::Invalid, chain(&error)),
        };
        FetchError { kind, message }
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Whether a registry is on this machine (docker and containerd speak plain HTTP to those, too).
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_plain() {
        for registry in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in [
            "docker.io",
            "10.0.0.1:5000",
            "localhost.example:5000",
            "128.0.0.1",
        ] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
