//! TokenRequest: a token for a service account, for a while, bound to an object if asked.

use jiff::{SignedDuration, Timestamp};
use orch_api::{ApiError, schema};
use serde_json::{Value, json};

use super::token::{Binding, Claims, ISSUER, Reference};
use crate::object::{Call, meta};

/// No token is made for less.
const MIN_SECONDS: i64 = 600;
/// What a request gets that names no time.
const DEFAULT_SECONDS: i64 = 3600;
/// No token is made for more.
const MAX_SECONDS: i64 = 1 << 32;

/// Answers a TokenRequest for the call's service account.
///
/// # Errors
/// 404 without the account, 409 when the object to bind to is another than meant, 422 for a bad time.
pub async fn create(call: &Call, mut body: Value, findings: &[String]) -> Result<Value, ApiError> {
    meta::check_type(&mut body, "authentication.k8s.io", "v1", "TokenRequest")?;
    let definition = "io.k8s.api.authentication.v1.TokenRequest";
    call.warn(schema::check_definition(
        definition,
        &mut body,
        call.validation,
        findings,
    )?);
    call.collection.fresh().await?;
    let account = call
        .collection
        .get_value(&call.namespace, &call.name)
        .ok_or_else(|| call.not_found())?;

    let seconds = body["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    let invalid = |why: &str| {
        ApiError::unprocessable(format!(
            "TokenRequest.authentication.k8s.io {:?} is invalid: spec.expirationSeconds: Invalid value: {seconds}: {why}",
            call.name
        ))
    };
    if seconds < MIN_SECONDS {
        return Err(invalid("may not specify a duration less than 10 minutes"));
    }
    if seconds > MAX_SECONDS {
        return Err(invalid("may not specify a duration larger than 2^32 seconds"));
    }
    let mut audiences: Vec<String> =
        serde_json::from_value(body["spec"]["audiences"].clone()).unwrap_or_default();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let reference = |object: &Value| Reference {
        name: meta::text(object, "name").to_owned(),
        uid: meta::text(object, "uid").to_owned(),
    };
    let mut binding = Binding {
        namespace: call.namespace.clone(),
        serviceaccount: reference(&account),
        pod: None,
        node: None,
        secret: None,
    };
    bind(call, &body["spec"]["boundObjectRef"], &mut binding).await?;

    let now = Timestamp::now();
    let expires = now
        .saturating_add(SignedDuration::from_secs(seconds))
        .map_err(ApiError::internal)?;
    let claims = Claims {
        aud: audiences.clone(),
        exp: expires.as_second(),
        iat: now.as_second(),
        nbf: now.as_second(),
        iss: ISSUER.to_owned(),
        jti: uuid::Uuid::new_v4().to_string(),
        sub: format!(
            "{}{}:{}",
            super::identity::SERVICE_ACCOUNT_PREFIX,
            call.namespace,
            call.name
        ),
        kubernetes: binding,
    };
    let token = call.state.tokens.sign(&claims).map_err(ApiError::internal)?;
    body["metadata"] = json!({
        "name": call.name, "namespace": call.namespace, "creationTimestamp": meta::time(now),
    });
    body["spec"]["audiences"] = json!(audiences);
    body["spec"]["expirationSeconds"] = json!(seconds);
    body["status"] = json!({ "token": token, "expirationTimestamp": meta::time(expires) });
    Ok(body)
}

async fn bind(call: &Call, wanted: &Value, binding: &mut Binding) -> Result<(), ApiError> {
    if !wanted.is_object() {
        if let Some(node) = call.user.node() {
            let detail = format!("node requested token not bound to a pod (node {node:?})");
            return Err(ApiError::forbidden(call.kind, &call.name, &detail));
        }
        return Ok(());
    }
    let name = wanted["name"].as_str().unwrap_or_default();
    let plural = match wanted["kind"].as_str() {
        Some("Pod") => "pods",
        Some("Secret") => "secrets",
        other => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {}",
                other.unwrap_or_default()
            )));
        }
    };
    let collection = call.state.core(plural)?;
    collection.fresh().await?;
    let object = collection
        .get_value(&call.namespace, name)
        .ok_or_else(|| ApiError::not_found(collection.kind, name))?;
    let uid = meta::text(&object, "uid");
    if let Some(wanted) = wanted["uid"]
        .as_str()
        .filter(|wanted| !wanted.is_empty() && *wanted != uid)
    {
        let detail = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(collection.kind, name, &detail));
    }
    let reference = Reference {
        name: name.to_owned(),
        uid: uid.to_owned(),
    };
    if plural == "secrets" {
        binding.secret = Some(reference);
        return Ok(());
    }
    if object["spec"]["serviceAccountName"] != call.name.as_str() {
        let detail = format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            call.name
        );
        return Err(ApiError::bad_request(detail));
    }
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if let Some(own) = call.user.node()
        && own != node
    {
        let detail = format!("node requested token bound to a pod scheduled on a different node ({node:?})");
        return Err(ApiError::forbidden(call.kind, &call.name, &detail));
    }
    if let Some(node) = call.state.core("nodes")?.get_value("", node) {
        binding.node = Some(Reference {
            name: meta::text(&node, "name").into(),
            uid: meta::text(&node, "uid").into(),
        });
    }
    binding.pod = Some(reference);
    Ok(())
}
