//! Paths that are no resource's: health, version, metrics, discovery, OpenAPI, the token issuer.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderValue, StatusCode, header, request::Parts};
use orch_api::{ApiError, discovery, openapi};
use serde_json::{Value, json};

use super::respond;
use crate::{auth::token::ISSUER, state::State};

/// The Kubernetes release whose API this is.
const KUBERNETES: (&str, &str, &str) = ("1", "36", "v1.36.0");

/// Answers `parts`.
///
/// # Errors
/// 404 for a path that nobody serves, 405 for a method other than GET and HEAD.
pub async fn answer(state: &Arc<State>, parts: &Parts) -> Result<Response, ApiError> {
    if !matches!(parts.method.as_str(), "GET" | "HEAD") {
        return Err(ApiError::method_not_allowed());
    }
    let path = parts.uri.path().trim_end_matches('/');
    let ok = |value: &Value| Ok(respond::json(StatusCode::OK, value));
    let found = |value: Option<Value>| {
        value
            .map(|v| respond::json(StatusCode::OK, &v))
            .ok_or_else(not_served)
    };
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Ok(health(state, &segments, parts.uri.query()).await),
        ["version"] => ok(&version()),
        ["metrics"] => {
            let mut response = respond::text(
                StatusCode::OK,
                state.metrics.render().map_err(ApiError::internal)?,
            );
            let openmetrics =
                HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, openmetrics);
            Ok(response)
        }
        ["api"] | ["apis"] => Ok(groups(state, parts, segments == ["api"])),
        ["api", version] => found(discovery::resources("", version)),
        ["apis", group] => found(discovery::api_group(group)),
        ["apis", group, version] => found(discovery::resources(group, version)),
        ["openapi", "v3"] => ok(&openapi::v3_index()),
        ["openapi", "v3", ..] => found(openapi::v3(path.trim_start_matches("/openapi/v3/"))),
        ["openapi", "v2"] => Ok(openapi_v2(parts)),
        ["openid", "v1", "jwks"] => ok(&state.tokens.jwks()),
        [".well-known", "openid-configuration"] => ok(&json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{}/openid/v1/jwks", external(state)),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })),
        [""] => ok(&json!({ "paths": paths() })),
        _ => Err(not_served()),
    }
}

/// Kubernetes takes the first name and answers with the second, which is a valid media type.
fn openapi_v2(parts: &Parts) -> Response {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    const ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let accept = parts
        .headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    if !accept.is_some_and(|accept| accept.contains(PROTOBUF) || accept.contains(ANSWER)) {
        return respond::json(StatusCode::OK, &openapi::v2());
    }
    let mut response = Response::new(openapi::v2_protobuf().into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(ANSWER));
    response
}

fn not_served() -> ApiError {
    ApiError::no_such_resource()
}

fn external(state: &State) -> String {
    let port = state
        .config
        .listen
        .first()
        .map_or(6443, std::net::SocketAddr::port);
    format!(
        "https://{}",
        std::net::SocketAddr::from((state.config.advertise_address, port))
    )
}

/// `/api` or `/apis`, aggregated (`apidiscovery.k8s.io/v2`) when the client asks for that first.
fn groups(state: &State, parts: &Parts, core: bool) -> Response {
    let accept = parts
        .headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let aggregated = accept.split(',').any(|clause| {
        ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
            .iter()
            .all(|wanted| clause.split(';').any(|part| part.trim() == *wanted))
            && clause.trim_start().starts_with("application/json")
    });
    if aggregated {
        let value = if core {
            discovery::aggregated_api()
        } else {
            discovery::aggregated_apis()
        };
        let mut response = respond::json(StatusCode::OK, &value);
        let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept"));
        return response;
    }
    let value = if core {
        discovery::api_versions(external(state).trim_start_matches("https://"))
    } else {
        discovery::api_groups()
    };
    respond::json(StatusCode::OK, &value)
}

fn paths() -> Vec<&'static str> {
    vec![
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
}

/// `/version`: the API's version, with ours as build metadata (Semantic Versioning 2.0.0, 10).
#[must_use]
pub fn version() -> Value {
    let (major, minor, git) = KUBERNETES;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("{git}+orch.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, arch()),
    })
}

/// The machine in Go's words.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn health(state: &State, segments: &[&str], query: Option<&str>) -> Response {
    let mut checks: Vec<(&str, Result<(), String>)> = vec![("ping", Ok(()))];
    checks.push((
        "etcd",
        state
            .store
            .revision()
            .await
            .map(|_| ())
            .map_err(|error| error.to_string()),
    ));
    if segments.first() == Some(&"readyz") {
        let behind = state
            .collections()
            .find(|collection| collection.cache.revision().0 == 0);
        let informers = behind.map_or(Ok(()), |c| Err(format!("{} not synced", c.kind.plural)));
        checks.push(("informer-sync", informers));
        let stopping = if state.stop.is_cancelled() {
            Err("process is shutting down".into())
        } else {
            Ok(())
        };
        checks.push(("shutdown", stopping));
    }
    if let Some(one) = segments.get(1) {
        checks.retain(|(name, _)| name == one);
        if checks.is_empty() {
            return respond::error(&not_served());
        }
    }
    let word = segments.first().copied().unwrap_or("healthz");
    let failed = checks.iter().any(|(_, result)| result.is_err());
    let verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part.split('=').next() == Some("verbose"))
    });
    if !failed && !verbose {
        return respond::text(StatusCode::OK, "ok");
    }
    let mut text = String::new();
    for (name, result) in &checks {
        match result {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => text.push_str(&format!("[-]{name} failed: {reason}\n")),
        }
    }
    text.push_str(&format!(
        "{word} check {}\n",
        if failed { "failed" } else { "passed" }
    ));
    respond::text(
        if failed {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::OK
        },
        text,
    )
}
