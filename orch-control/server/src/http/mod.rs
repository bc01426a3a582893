//! From a request to its answer: authenticate, authorise, find the kind, walk the object path.

pub mod negotiate;
pub mod respond;
pub mod system;
pub mod target;

use std::{sync::Arc, time::Instant};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use orch_api::{ApiError, FieldValidation, Kind, Subresource, decode, patch::PatchType};
use serde_json::Value;

use crate::{
    auth::{
        authenticate::authenticate,
        authorize::{Attributes, authorise},
        impersonate::act_as,
        reviews, token_request,
    },
    metrics::RequestLabels,
    object::{Call, delete, read, subresource, watch, write},
    proxy,
    state::State,
};
use target::{Query, Resource, Verb};

/// No body may be larger; as in Kubernetes (`MaxRequestBodyBytes`).
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// Answers any request.
pub async fn handle(state: Arc<State>, request: Request<Body>) -> Response {
    let began = Instant::now();
    let (mut parts, body) = request.into_parts();
    let resource = target::parse(parts.uri.path());
    let query = Query::parse(parts.uri.query());
    let watching = query.flag("watch");
    let verb = resource
        .as_ref()
        .and_then(|resource| target::verb(&parts.method, resource, watching));
    let (method, pretty) = (
        parts.method.clone(),
        query.get("pretty").is_some() && query.flag("pretty"),
    );

    let outcome = match (&resource, verb) {
        (Some(resource), Some(verb)) => answer(&state, parts, body, resource, verb, query).await,
        (Some(_), None) => Err(ApiError::method_not_allowed()),
        (None, _) => other(&state, &mut parts).await,
    };
    let mut response = outcome.unwrap_or_else(|error| {
        if error.code() >= 500 {
            tracing::warn!(%error, code = error.code(), "a request failed");
        }
        respond::error(&error)
    });

    let long = verb == Some(Verb::Watch);
    let labels = RequestLabels {
        verb: verb
            .filter(|verb| *verb != Verb::Other)
            .map_or_else(|| method.to_string(), |verb| verb.as_str().to_uppercase()),
        group: resource.as_ref().map(|r| r.group.clone()).unwrap_or_default(),
        // Paths that nobody serves must not make new time series.
        resource: resource
            .as_ref()
            .filter(|r| Kind::find(&r.group, &r.version, &r.resource).is_some())
            .map(|r| r.resource.clone())
            .unwrap_or_default(),
        subresource: resource
            .as_ref()
            .and_then(|r| {
                Kind::find(&r.group, &r.version, &r.resource)?.subresource(r.subresource.as_deref()?)
            })
            .map(|s| s.name().to_owned())
            .unwrap_or_default(),
        code: response.status().as_u16(),
    };
    state.metrics.request(labels, (!long).then(|| began.elapsed()));
    let proxied = resource
        .as_ref()
        .is_some_and(|r| r.subresource.as_deref() == Some("proxy"));
    if pretty && !long && !proxied {
        response = respond::prettify(response).await;
    }
    if method == Method::HEAD {
        response = response.map(|_| Body::empty());
    }
    response
}

async fn other(state: &Arc<State>, parts: &mut Parts) -> Result<Response, ApiError> {
    let user = act_as(state, authenticate(state, parts).await?, &mut parts.headers)?;
    let attributes = Attributes::Path {
        verb: parts.method.as_str().to_ascii_lowercase(),
        path: parts.uri.path().to_owned(),
    };
    authorise(state, &user, &attributes)?;
    system::answer(state, parts).await
}

async fn answer(
    state: &Arc<State>,
    mut parts: Parts,
    body: Body,
    resource: &Resource,
    verb: Verb,
    query: Query,
) -> Result<Response, ApiError> {
    let user = act_as(state, authenticate(state, &parts).await?, &mut parts.headers)?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let attributes = Attributes::Resource {
        verb: verb.as_str().to_owned(),
        group: resource.group.clone(),
        resource: resource.resource.clone(),
        subresource: text(&resource.subresource),
        namespace: text(&resource.namespace),
        name: text(&resource.name),
        field_selector: query.get("fieldSelector").unwrap_or_default().to_owned(),
    };
    if user.node().is_some() {
        // What a node may do depends on its pods, of which one may have been bound a moment ago.
        state.core("pods")?.fresh().await?;
    }
    authorise(state, &user, &attributes)?;

    let kind = Kind::find(&resource.group, &resource.version, &resource.resource)
        .ok_or_else(ApiError::no_such_resource)?;
    if resource.namespace.is_some() && !kind.namespaced {
        return Err(ApiError::no_such_resource());
    }
    let part = match resource.subresource.as_deref() {
        None => None,
        Some(name) => Some(kind.subresource(name).ok_or_else(ApiError::no_such_resource)?),
    };
    if part == Some(Subresource::Proxy) {
        // Headers, parameters and body are for whom it is passed on to.
        let name = text(&resource.name);
        let call = Call::internal(state, user, kind, &text(&resource.namespace), &name)?;
        return proxy::workload::pass(&call, resource, parts, body).await;
    }
    let one_of_namespace = resource.name.is_some() || verb == Verb::Create;
    if kind.namespaced && resource.namespace.is_none() && one_of_namespace {
        return Err(ApiError::method_not_allowed());
    }
    let dry_run = match query.all("dryRun").next() {
        None | Some("") => false,
        Some("All") => true,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            )));
        }
    };
    let form = if part.is_some() && verb == Verb::Get {
        // Logs and streams are no objects: whatever is accepted is right for them.
        negotiate::form(&parts.headers, &query).unwrap_or(negotiate::Form::Object)
    } else {
        negotiate::form(&parts.headers, &query)?
    };
    let collection = match state.collection(kind) {
        Ok(collection) => Arc::clone(collection),
        Err(_) if verb == Verb::Create && resource.name.is_none() => Arc::clone(state.core("namespaces")?),
        Err(_) => return Err(ApiError::method_not_allowed()),
    };
    let call = Call {
        state: Arc::clone(state),
        user,
        kind,
        collection,
        namespace: text(&resource.namespace),
        name: text(&resource.name),
        form,
        validation: FieldValidation::parse(query.get("fieldValidation").unwrap_or_default())?,
        query,
        dry_run,
        warnings: Default::default(),
    };
    if verb == Verb::Watch {
        return watch::watch(call).await;
    }
    let outcome = match part {
        None => whole(&call, verb, &parts, body).await,
        Some(part) => subresource(&call, part, verb, parts, body).await,
    };
    let mut response = outcome.unwrap_or_else(|error| {
        if error.code() >= 500 {
            tracing::warn!(%error, code = error.code(), "a request failed");
        }
        respond::error(&error)
    });
    respond::warn(&mut response, &call.warnings.lock());
    Ok(response)
}

async fn whole(call: &Call, verb: Verb, parts: &Parts, body: Body) -> Result<Response, ApiError> {
    let object = |code, value: Value| respond::json_bytes(code, read::encode_value(call, value).into());
    match verb {
        Verb::Get => Ok(respond::json_bytes(StatusCode::OK, read::get(call).await?)),
        Verb::List => Ok(respond::json_bytes(StatusCode::OK, read::list(call).await?)),
        Verb::Create if !call.name.is_empty() => Err(ApiError::method_not_allowed()),
        Verb::Create => {
            let (value, findings) = read_body(parts, body).await?;
            if !call.kind.is_stored() {
                let review = reviews::create(call, value, &findings).await?;
                return Ok(respond::json(StatusCode::CREATED, &review));
            }
            Ok(object(
                StatusCode::CREATED,
                write::create(call, value, &findings).await?,
            ))
        }
        Verb::Update if call.name.is_empty() => Err(ApiError::method_not_allowed()),
        Verb::Update => {
            let (value, findings) = read_body(parts, body).await?;
            Ok(object(
                StatusCode::OK,
                write::update(call, None, value, &findings).await?,
            ))
        }
        Verb::Patch => {
            let (patch_type, value, findings) = read_patch(parts, body).await?;
            Ok(object(
                StatusCode::OK,
                write::patch(call, None, patch_type, &value, &findings).await?,
            ))
        }
        Verb::Delete => {
            let options = read_delete_options(call, parts, body).await?;
            Ok(match delete::delete(call, &options).await? {
                delete::Outcome::Gone(last) => {
                    respond::json(StatusCode::OK, &delete::success(call.kind, &last))
                }
                delete::Outcome::Terminating(now) => object(StatusCode::OK, now),
            })
        }
        Verb::DeleteCollection => {
            let options = read_delete_options(call, parts, body).await?;
            Ok(respond::json(
                StatusCode::OK,
                &delete::delete_collection(call, &options).await?,
            ))
        }
        Verb::Watch | Verb::Other => Err(ApiError::method_not_allowed()),
    }
}

async fn subresource(
    call: &Call,
    part: Subresource,
    verb: Verb,
    parts: Parts,
    body: Body,
) -> Result<Response, ApiError> {
    let ok = |value: Value| {
        Ok(respond::json_bytes(
            StatusCode::OK,
            read::encode_value(call, value).into(),
        ))
    };
    let made = |value: &Value| Ok(respond::json(StatusCode::CREATED, value));
    match (part, verb) {
        (Subresource::Log, Verb::Get)
        | (Subresource::Exec | Subresource::Attach | Subresource::PortForward, Verb::Get | Verb::Create) => {
            proxy::kubelet::pod(call, part, parts).await
        }
        (Subresource::Scale, Verb::Get) => {
            let object: Value =
                serde_json::from_slice(&read::get(&plain(call)?).await?).map_err(ApiError::internal)?;
            Ok(respond::json(StatusCode::OK, &subresource::scale_of(&object)?))
        }
        (Subresource::Scale, Verb::Update) => {
            let (value, findings) = read_body(&parts, body).await?;
            Ok(respond::json(
                StatusCode::OK,
                &subresource::change_scale(call, None, &value, &findings).await?,
            ))
        }
        (Subresource::Scale, Verb::Patch) => {
            let (patch_type, value, findings) = read_patch(&parts, body).await?;
            let scale = subresource::change_scale(call, Some(patch_type), &value, &findings).await?;
            Ok(respond::json(StatusCode::OK, &scale))
        }
        (Subresource::Status | Subresource::EphemeralContainers | Subresource::Resize, Verb::Get) => {
            Ok(respond::json_bytes(StatusCode::OK, read::get(call).await?))
        }
        (Subresource::Status, Verb::Update) => {
            let (value, findings) = read_body(&parts, body).await?;
            ok(write::update(call, Some(part), value, &findings).await?)
        }
        (Subresource::Status, Verb::Patch) => {
            let (patch_type, value, findings) = read_patch(&parts, body).await?;
            ok(write::patch(call, Some(part), patch_type, &value, &findings).await?)
        }
        (Subresource::EphemeralContainers | Subresource::Resize, Verb::Update) => {
            let (value, findings) = read_body(&parts, body).await?;
            ok(subresource::change_pod(call, part, None, &value, &findings).await?)
        }
        (Subresource::EphemeralContainers | Subresource::Resize, Verb::Patch) => {
            let (patch_type, value, findings) = read_patch(&parts, body).await?;
            ok(subresource::change_pod(call, part, Some(patch_type), &value, &findings).await?)
        }
        (Subresource::Binding, Verb::Create) => {
            made(&subresource::bind(call, &read_body(&parts, body).await?.0).await?)
        }
        (Subresource::Eviction, Verb::Create) => {
            made(&delete::evict(call, &read_body(&parts, body).await?.0).await?)
        }
        (Subresource::Finalize, Verb::Update) => {
            ok(delete::finalize(call, &read_body(&parts, body).await?.0).await?)
        }
        (Subresource::Token, Verb::Create) => {
            let (value, findings) = read_body(&parts, body).await?;
            made(&token_request::create(call, value, &findings).await?)
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// The same object, as it is.
fn plain(call: &Call) -> Result<Call, ApiError> {
    Call::internal(
        &call.state,
        Arc::clone(&call.user),
        call.kind,
        &call.namespace,
        &call.name,
    )
}

fn content_type(parts: &Parts) -> &str {
    parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

async fn read_bytes(parts: &Parts, body: Body) -> Result<Bytes, ApiError> {
    let told = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if told.is_some_and(|length| length > MAX_BODY) {
        return Err(ApiError::request_entity_too_large(MAX_BODY));
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::request_entity_too_large(MAX_BODY)),
        Err(error) => Err(ApiError::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    }
}

async fn read_body(parts: &Parts, body: Body) -> Result<(Value, Vec<String>), ApiError> {
    let bytes = read_bytes(parts, body).await?;
    decode::decode(&bytes, content_type(parts))
}

async fn read_patch(parts: &Parts, body: Body) -> Result<(PatchType, Value, Vec<String>), ApiError> {
    let patch_type = PatchType::from_content_type(content_type(parts))?;
    let bytes = read_bytes(parts, body).await?;
    // kubectl may send a patch as YAML, of which JSON is a part.
    let (value, findings) = match decode::json(&bytes) {
        Ok(decoded) => decoded,
        Err(_) => decode::yaml(&bytes)?,
    };
    Ok((patch_type, value, findings))
}

async fn read_delete_options(call: &Call, parts: &Parts, body: Body) -> Result<delete::Options, ApiError> {
    let bytes = read_bytes(parts, body).await?;
    let value = if bytes.is_empty() {
        Value::Null
    } else {
        decode::decode(&bytes, content_type(parts))?.0
    };
    delete::Options::read(call, &value)
}
