//! What pods refer to: ConfigMaps, Secrets and service-account tokens, read by name from the API.
//!
//! Each start and each refresh reads anew: an answer that is never stale is worth a request of a millisecond.

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};

/// An object that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It does not exist; the text is Kubernetes'.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap`, `secret` or `serviceaccount`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The API refused or could not be reached.
    #[error("failed to read {kind} \"{name}\": {source}")]
    Api {
        /// What was asked for.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// The API gave no token.
    #[error("the API answered a token request for serviceaccount \"{0}\" without a token")]
    NoToken(String),
}

/// A service account's token.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token.
    pub token: String,
    /// When it was asked for.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// Reads objects by name.
#[derive(Clone)]
pub struct Objects {
    client: Client,
}

impl Objects {
    /// Reads through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// A ConfigMap.
    ///
    /// # Errors
    /// When it does not exist or the API cannot be asked.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, ObjectError> {
        Api::namespaced(self.client.clone(), namespace)
            .get(name)
            .await
            .map_err(|e| wrap("configmap", name, e))
    }

    /// A Secret.
    ///
    /// # Errors
    /// When it does not exist or the API cannot be asked.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, ObjectError> {
        Api::namespaced(self.client.clone(), namespace)
            .get(name)
            .await
            .map_err(|e| wrap("secret", name, e))
    }

    /// A new token of the pod's service account, bound to the pod.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<Token, ObjectError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.as_deref())
            .unwrap_or("default");
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.into_iter().map(str::to_owned).collect()),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(expiration_seconds),
            }),
            status: None,
        };
        let issued = Timestamp::now();
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|e| wrap("serviceaccount", account, e))?;
        let status = answer
            .status
            .ok_or_else(|| ObjectError::NoToken(account.to_owned()))?;
        match (status.token, status.expiration_timestamp) {
            (Some(token), Some(expires)) => Ok(Token {
                token,
                issued,
                expires: expires.0,
            }),
            _ => Err(ObjectError::NoToken(account.to_owned())),
        }
    }
}

fn wrap(kind: &'static str, name: &str, error: kube::Error) -> ObjectError {
    let name = name.to_owned();
    match &error {
        kube::Error::Api(status) if status.code == 404 => ObjectError::NotFound { kind, name },
        _ => ObjectError::Api {
            kind,
            name,
            source: Box::new(error),
        },
    }
}
