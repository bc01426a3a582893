//! From a pod's or node's subresource to the kubelet's path for it.

use axum::{body::Body, response::Response};
use http::{HeaderValue, Request, StatusCode, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use orch_api::{ApiError, Subresource};
use serde_json::{Value, json};

use crate::{
    http::{respond, target::Resource},
    object::Call,
};

/// Where kubelets listen that say nothing.
const KUBELET_PORT: u16 = 10250;
/// Names the container that `kubectl` means when nobody names one.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// As much of a kubelet's refusal is passed on.
const MAX_REFUSAL: usize = 8 * 1024;

/// Passes the request on to the pod's node.
///
/// # Errors
/// 404 without the pod, 400 when the container is not clear or the pod is nowhere, 500 when its node cannot be asked.
pub async fn pod(call: &Call, subresource: Subresource, mut parts: Parts) -> Result<Response, ApiError> {
    call.collection.fresh().await?;
    let pod = call
        .collection
        .get_value(&call.namespace, &call.name)
        .ok_or_else(|| call.not_found())?;
    let target = kubelet_path(call, subresource, &pod)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        if subresource == Subresource::Log {
            return Ok(respond::text(StatusCode::OK, ""));
        }
        return Err(ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            call.name
        )));
    }
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let response = send(call, node, target, parts, Body::empty(), upgrade).await?;
    if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let mut response = response;
        if subresource == Subresource::Log {
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        return Ok(response);
    }
    Ok(refusal(response).await)
}

/// The kubelet's path and query for a pod's subresource.
fn kubelet_path(call: &Call, subresource: Subresource, pod: &Value) -> Result<String, ApiError> {
    let (namespace, name) = (&call.namespace, &call.name);
    let mut query = form_urlencoded::Serializer::new(String::new());
    let mut pass = |from: &str, to: &str| {
        for value in call.query.all(from).filter(|value| !value.is_empty()) {
            query.append_pair(to, value);
        }
    };
    let path = match subresource {
        Subresource::Log => {
            for key in [
                "follow",
                "previous",
                "timestamps",
                "sinceSeconds",
                "sinceTime",
                "tailLines",
                "limitBytes",
                "stream",
            ] {
                pass(key, key);
            }
            check_log_options(call)?;
            format!("/containerLogs/{namespace}/{name}/{}", container(call, pod)?)
        }
        Subresource::Exec | Subresource::Attach => {
            pass("command", "command");
            for (from, to) in [
                ("stdin", "input"),
                ("stdout", "output"),
                ("stderr", "error"),
                ("tty", "tty"),
            ] {
                if call.query.flag(from) {
                    query.append_pair(to, "1");
                }
            }
            let word = if subresource == Subresource::Exec {
                "exec"
            } else {
                "attach"
            };
            format!("/{word}/{namespace}/{name}/{}", container(call, pod)?)
        }
        Subresource::PortForward => {
            pass("ports", "port");
            format!("/portForward/{namespace}/{name}")
        }
        _ => return Err(ApiError::internal("the subresource is not the kubelet's")),
    };
    let query = query.finish();
    Ok(if query.is_empty() {
        path
    } else {
        format!("{path}?{query}")
    })
}

/// Passes the request on to the node's kubelet as it is.
///
/// # Errors
/// 404 without the node, 500 when it cannot be asked.
pub async fn node(
    call: &Call,
    node: &str,
    resource: &Resource,
    mut parts: Parts,
    body: Body,
) -> Result<Response, ApiError> {
    let query = parts
        .uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let path = if resource.rest.is_empty() {
        "/"
    } else {
        &resource.rest
    };
    let target = format!("{path}{query}");
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    send(call, node, target, parts, body, upgrade).await
}

fn check_log_options(call: &Call) -> Result<(), ApiError> {
    for key in ["sinceSeconds", "tailLines", "limitBytes"] {
        let Some(text) = call.query.get(key) else { continue };
        let least = i64::from(key != "tailLines");
        if !text.parse::<i64>().is_ok_and(|number| number >= least) {
            return Err(ApiError::unprocessable(format!(
                "PodLogOptions \"\" is invalid: {key}: Invalid value: {text:?}: must be greater than or equal to {least}"
            )));
        }
    }
    if call.query.get("sinceSeconds").is_some() && call.query.get("sinceTime").is_some() {
        return Err(ApiError::unprocessable(
            "PodLogOptions \"\" is invalid: : Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    Ok(())
}

/// The container that the request means.
fn container(call: &Call, pod: &Value) -> Result<String, ApiError> {
    choose(&call.name, pod, call.query.get("container"))
}

fn choose(name: &str, pod: &Value, wanted: Option<&str>) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<&str> {
        let list = pod["spec"][field]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        list.iter()
            .filter_map(|container| container["name"].as_str())
            .collect()
    };
    let (containers, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let all = || containers.iter().chain(&init).chain(&ephemeral);
    match wanted {
        Some(wanted) if all().any(|own| *own == wanted) => Ok(wanted.to_owned()),
        Some(wanted) => Err(ApiError::bad_request(format!(
            "container {wanted} is not valid for pod {name}"
        ))),
        None => {
            let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
            match (containers.as_slice(), annotated) {
                ([only], _) => Ok((*only).to_owned()),
                (_, Some(annotated)) if containers.contains(&annotated) => Ok(annotated.to_owned()),
                _ => {
                    let mut message = format!(
                        "a container name must be specified for pod {name}, choose one of: [{}]",
                        containers.join(" ")
                    );
                    if !init.is_empty() {
                        message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                    }
                    if !ephemeral.is_empty() {
                        message.push_str(&format!(
                            " or one of the ephemeral containers: [{}]",
                            ephemeral.join(" ")
                        ));
                    }
                    Err(ApiError::bad_request(message))
                }
            }
        }
    }
}

async fn send(
    call: &Call,
    node: &str,
    target: String,
    parts: Parts,
    body: Body,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, ApiError> {
    let nodes = call.state.core("nodes")?;
    let object = nodes
        .get_value("", node)
        .ok_or_else(|| ApiError::not_found(nodes.kind, node))?;
    let (host, port) = address(&object).ok_or_else(|| {
        ApiError::internal(format!(
            "no preferred addresses found; known addresses: [] of node {node}"
        ))
    })?;
    let failed = |error: &dyn std::fmt::Display| {
        let path = target.split('?').next().unwrap_or_default();
        ApiError::internal(format!("error dialing backend: {path}: {error}"))
    };
    let mut request = Request::builder()
        .method(parts.method.clone())
        .uri(target.clone());
    if let Some(headers) = request.headers_mut() {
        headers.clone_from(&parts.headers);
    }
    let request = request.body(body).map_err(|error| failed(&error))?;
    call.state
        .kubelets
        .send(&host, port, request, upgrade)
        .await
        .map_err(|error| failed(&error))
}

/// Where the node's kubelet is, in the order that the reference API server prefers.
pub(super) fn address(node: &Value) -> Option<(String, u16)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let host = ["InternalIP", "ExternalIP", "Hostname"].iter().find_map(|kind| {
        addresses
            .iter()
            .find(|a| a["type"] == *kind)
            .and_then(|a| a["address"].as_str())
    })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    Some((
        host.to_owned(),
        port.and_then(|port| u16::try_from(port).ok())
            .unwrap_or(KUBELET_PORT),
    ))
}

/// A kubelet's refusal as a Status, in its own words.
async fn refusal(response: Response) -> Response {
    let code = response.status();
    let body = axum::body::to_bytes(response.into_body(), MAX_REFUSAL)
        .await
        .unwrap_or_default();
    if let Ok(status) = serde_json::from_slice::<Value>(&body)
        && status["kind"] == "Status"
    {
        return respond::json(code, &status);
    }
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        _ => "InternalError",
    };
    let message = String::from_utf8_lossy(&body).trim().to_owned();
    respond::json(
        code,
        &json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code.as_u16(),
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_must_be_clear() {
        let pod = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }], "initContainers": [{ "name": "i" }] } });
        assert_eq!(
            choose("p", &pod, None).unwrap_err().message(),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(
            choose("p", &pod, Some("c")).unwrap_err().message(),
            "container c is not valid for pod p"
        );
        assert_eq!(choose("p", &pod, Some("i")).unwrap(), "i");
        assert_eq!(
            choose("p", &json!({ "spec": { "containers": [{ "name": "a" }] } }), None).unwrap(),
            "a"
        );
    }
}
