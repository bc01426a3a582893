//! Answers: JSON bodies, Status errors, warnings.

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use orch_api::ApiError;
use serde_json::Value;

/// An answer of `bytes`, which are JSON.
#[must_use]
pub fn json_bytes(code: StatusCode, bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer of `value`.
#[must_use]
pub fn json(code: StatusCode, value: &Value) -> Response {
    json_bytes(code, value.to_string().into())
}

/// The Status of `error`.
#[must_use]
pub fn error(error: &ApiError) -> Response {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &error.to_status());
    if let Some(seconds) = error.retry_after_seconds() {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Plain text.
#[must_use]
pub fn text(code: StatusCode, text: impl Into<String>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (code, headers, text.into()).into_response()
}

/// Adds `Warning: 299 - "..."` (RFC 7234, 5.5), which kubectl prints.
pub fn warn(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Indents a whole JSON body.
pub async fn prettify(response: Response) -> Response {
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|t| t == "application/json");
    if !is_json {
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
        return error(&ApiError::internal("the answer could not be read"));
    };
    let pretty = serde_json::from_slice::<Value>(&bytes).map(|value| format!("{value:#}\n"));
    Response::from_parts(parts, pretty.map_or_else(|_| Body::from(bytes), Body::from))
}
