//! Kubeconfig files: how a client finds the server and proves who it is.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::Issued;

/// A kubeconfig (`v1/Config`) with one cluster, user and context, all certificates inside.
///
/// It is JSON, which is YAML: every reader of kubeconfigs takes it.
#[must_use]
pub fn render(server: &str, ca_pem: &str, user: &str, credentials: &Issued) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "orch",
            "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(ca_pem) },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": STANDARD.encode(&credentials.cert_pem),
                "client-key-data": STANDARD.encode(&credentials.key_pem),
            },
        }],
        "contexts": [{ "name": "orch", "context": { "cluster": "orch", "user": user } }],
        "current-context": "orch",
        "preferences": {},
    });
    format!("{config:#}\n")
}
