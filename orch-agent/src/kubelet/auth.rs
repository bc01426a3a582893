//! Who a client certificate is, and whether that identity may use this API.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Failure;

/// The group that may do everything.
pub const ADMINS: &str = "system:masters";
/// The common name of the API server's client certificate.
pub const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// What a verified client certificate says (X.509 client certificates in Kubernetes: CN is the user, O the groups).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The common name.
    pub user: String,
    /// The organisations.
    pub groups: Vec<String>,
}

impl Identity {
    /// Reads the subject of a certificate that TLS has verified; `None` when it names nobody.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect();
        Some(Self { user, groups })
    }

    /// Whether this identity may use the API.
    ///
    /// # Errors
    /// [`Failure::Forbidden`] in the words of the API server.
    pub fn authorize(&self, method: &str, path: &str) -> Result<(), Failure> {
        if self.user == API_SERVER || self.groups.iter().any(|group| group == ADMINS) {
            return Ok(());
        }
        Err(Failure::Forbidden(format!(
            "Forbidden (user={}, verb={}, resource=nodes, subresource=proxy, path={path}): only {ADMINS} and the API \
             server may use this API; delegated authorization is not supported yet",
            self.user,
            method.to_ascii_lowercase(),
        )))
    }
}
