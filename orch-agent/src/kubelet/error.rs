//! Failures of a request, as the Status that clients of Kubernetes read.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::pod::LookupError;

/// Why a request cannot be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// No certificate, or one that says nothing (401).
    #[error("Unauthorized")]
    Unauthorized,
    /// An identity that may not do this (403).
    #[error("{0}")]
    Forbidden(String),
    /// No such pod or container (404).
    #[error("{0}")]
    NotFound(String),
    /// A request that makes no sense, now or ever (400).
    #[error("{0}")]
    BadRequest(String),
    /// Something on this node failed (500).
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// The HTTP status and Kubernetes' reason for it.
    #[must_use]
    pub fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }

    /// The `metav1.Status` of this failure.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let (code, reason) = self.code();
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "code": code.as_u16(),
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.code().0, Json(self.status())).into_response()
    }
}

impl From<LookupError> for Failure {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Pod(_) => Self::NotFound(error.to_string()),
            LookupError::Container { .. } | LookupError::Waiting { .. } | LookupError::NoPrevious { .. } => {
                Self::BadRequest(error.to_string())
            }
        }
    }
}

impl From<orch_runtime::RuntimeError> for Failure {
    fn from(error: orch_runtime::RuntimeError) -> Self {
        if error.is_not_found() {
            Self::NotFound(error.to_string())
        } else {
            Self::Internal(error.to_string())
        }
    }
}
