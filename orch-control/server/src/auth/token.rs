//! Service account tokens: JSON Web Tokens (RFC 7519) signed with ES256, bound to the objects they were made for.
//!
//! A token is only as alive as its service account, and its pod when it is bound to one: both are looked up each
//! time it is shown, so deleting either ends it at once.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Who says so: the `iss` of every token, and where its keys are found.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// An object that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// The claim `kubernetes.io`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The namespace of all of these.
    pub namespace: String,
    /// Whose token it is.
    pub serviceaccount: Reference,
    /// The pod that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The node that the pod is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The secret that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
}

/// All claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom.
    pub aud: Vec<String>,
    /// Until when, Unix seconds.
    pub exp: i64,
    /// Made when, Unix seconds.
    pub iat: i64,
    /// Valid from, Unix seconds.
    pub nbf: i64,
    /// By whom.
    pub iss: String,
    /// Tells tokens apart.
    pub jti: String,
    /// The user name.
    pub sub: String,
    /// To what it is bound.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Binding,
}

/// Why a token is not believed, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The signing key cannot be used.
    #[error("use the service account key: {0}")]
    Key(String),
    /// The token is malformed, expired, for somebody else, or not ours.
    #[error("invalid bearer token: {0}")]
    Invalid(jsonwebtoken::errors::Error),
    /// The token could not be signed.
    #[error("sign a token: {0}")]
    Sign(jsonwebtoken::errors::Error),
}

/// Signs tokens and checks signatures.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    x: String,
    y: String,
}

impl Tokens {
    /// With `key_pem`, a P-256 key in PKCS #8.
    ///
    /// # Errors
    /// When the key is something else.
    pub fn new(key_pem: &str) -> Result<Self, TokenError> {
        let key = rcgen::KeyPair::from_pem(key_pem).map_err(|e| TokenError::Key(e.to_string()))?;
        // An uncompressed point (SEC 1, 2.3.3): 4, x, y.
        let [4, point @ ..] = key.public_key_raw() else {
            return Err(TokenError::Key("it is not on the curve P-256".into()));
        };
        if point.len() != 64 {
            return Err(TokenError::Key("it is not on the curve P-256".into()));
        }
        let (x, y) = point.split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let unusable = |e: jsonwebtoken::errors::Error| TokenError::Key(e.to_string());
        Ok(Self {
            encoding: EncodingKey::from_ec_pem(key_pem.as_bytes()).map_err(unusable)?,
            decoding: DecodingKey::from_ec_components(&x, &y).map_err(unusable)?,
            key_id: {
                use sha2::Digest as _;
                URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(point))
            },
            x,
            y,
        })
    }

    /// Signs `claims`.
    ///
    /// # Errors
    /// When they cannot be encoded.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(TokenError::Sign)
    }

    /// The claims of `token`, if it is ours, of this hour, and for one of `audiences`.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, token: &str, audiences: &[String]) -> Result<Claims, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = 5;
        validation.validate_nbf = true;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(audiences);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        jsonwebtoken::decode(token, &self.decoding, &validation)
            .map(|data| data.claims)
            .map_err(TokenError::Invalid)
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    #[must_use]
    pub fn jwks(&self) -> Value {
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": self.x, "y": self.y,
        }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(now: i64) -> Claims {
        Claims {
            aud: vec![ISSUER.into()],
            exp: now + 600,
            iat: now,
            nbf: now,
            iss: ISSUER.into(),
            jti: "1".into(),
            sub: "system:serviceaccount:default:default".into(),
            kubernetes: Binding {
                namespace: "default".into(),
                serviceaccount: Reference {
                    name: "default".into(),
                    uid: "u".into(),
                },
                pod: None,
                node: None,
                secret: None,
            },
        }
    }

    fn tokens() -> Tokens {
        Tokens::new(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    #[test]
    fn only_what_we_signed_for_them_and_now_is_believed() {
        let (ours, theirs) = (tokens(), tokens());
        let now = jiff::Timestamp::now().as_second();
        let audience = [ISSUER.to_owned()];
        let token = ours.sign(&claims(now)).unwrap();
        assert_eq!(ours.check(&token, &audience).unwrap(), claims(now));
        assert!(ours.check(&token, &["vault".to_owned()]).is_err());
        assert!(theirs.check(&token, &audience).is_err());
        assert!(
            ours.check(&ours.sign(&claims(now - 3600)).unwrap(), &audience)
                .is_err()
        );
        assert!(
            ours.check(&ours.sign(&claims(now + 3600)).unwrap(), &audience)
                .is_err()
        );
        let (head, signature) = token.rsplit_once('.').unwrap();
        assert!(ours.check(&format!("{head}x.{signature}"), &audience).is_err());
    }
}
