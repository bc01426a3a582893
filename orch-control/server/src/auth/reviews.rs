//! Reviews: questions about users, tokens and rights, answered at once and stored nowhere.

use orch_api::{ApiError, schema};
use serde_json::{Value, json};

use super::{
    authenticate,
    authorize::{self, Attributes, Decision},
    identity::Identity,
    token::ISSUER,
};
use crate::object::{Call, meta};

/// Answers the review in `body`.
///
/// # Errors
/// 400 for a body that is none.
pub async fn create(call: &Call, mut body: Value, findings: &[String]) -> Result<Value, ApiError> {
    let kind = call.kind;
    meta::check_type(&mut body, kind.group, kind.version, kind.kind)?;
    call.warn(schema::check_body(kind, &mut body, call.validation, findings)?);
    // Nodes' rights depend on their pods.
    call.state.core("pods")?.fresh().await?;
    match kind.kind {
        "SelfSubjectReview" => {
            meta::metadata(&mut body).insert(
                "creationTimestamp".into(),
                json!(meta::time(jiff::Timestamp::now())),
            );
            body["status"] = json!({ "userInfo": call.user.to_value() });
        }
        "TokenReview" => body["status"] = token_review(call, &body["spec"]).await?,
        "SelfSubjectAccessReview" => body["status"] = access_review(call, &call.user, &body["spec"])?,
        "SelfSubjectRulesReview" => body["status"] = rules_review(call),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let local = kind.namespaced;
            if local && body["spec"]["resourceAttributes"]["namespace"] != call.namespace.as_str() {
                return Err(ApiError::bad_request(
                    "spec.resourceAttributes.namespace must match the namespace of the request",
                ));
            }
            let user = subject(&body["spec"])?;
            body["status"] = access_review(call, &user, &body["spec"])?;
        }
        other => return Err(ApiError::internal(format!("no review is called {other}"))),
    }
    Ok(body)
}

fn subject(spec: &Value) -> Result<Identity, ApiError> {
    let name = spec["user"].as_str().unwrap_or_default();
    let groups: Vec<String> = serde_json::from_value(spec["groups"].clone()).unwrap_or_default();
    if name.is_empty() && groups.is_empty() {
        return Err(ApiError::unprocessable(
            "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    // Taken as told: whoever asks states the groups, system:authenticated too.
    Ok(Identity {
        name: name.to_owned(),
        uid: String::new(),
        groups,
        extra: Default::default(),
    })
}

fn access_review(call: &Call, user: &Identity, spec: &Value) -> Result<Value, ApiError> {
    let text = |value: &Value| match value.as_str() {
        Some("*") | None => String::new(),
        Some(text) => text.to_owned(),
    };
    let attributes = match (
        spec["resourceAttributes"].is_object(),
        spec["nonResourceAttributes"].is_object(),
    ) {
        (true, false) => {
            let of = &spec["resourceAttributes"];
            let selector = of["fieldSelector"]["rawSelector"]
                .as_str()
                .map(str::to_owned)
                .unwrap_or_else(|| {
                    let terms = of["fieldSelector"]["requirements"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default();
                    let terms: Vec<String> = terms
                        .iter()
                        .filter(|term| {
                            term["operator"] == "In"
                                && term["values"].as_array().is_some_and(|v| v.len() == 1)
                        })
                        .map(|term| format!("{}={}", text(&term["key"]), text(&term["values"][0])))
                        .collect();
                    terms.join(",")
                });
            Attributes::Resource {
                verb: text(&of["verb"]),
                group: text(&of["group"]),
                resource: text(&of["resource"]),
                subresource: text(&of["subresource"]),
                namespace: text(&of["namespace"]),
                name: text(&of["name"]),
                field_selector: selector,
            }
        }
        (false, true) => {
            let of = &spec["nonResourceAttributes"];
            Attributes::Path {
                verb: text(&of["verb"]),
                path: text(&of["path"]),
            }
        }
        _ => {
            return Err(ApiError::unprocessable(format!(
                "{}.authorization.k8s.io \"\" is invalid: spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
                call.kind.kind
            )));
        }
    };
    Ok(match authorize::decide(user, &attributes, call.state.as_ref()) {
        Decision::Allowed(reason) => json!({ "allowed": true, "reason": reason }),
        Decision::Refused(reason) if reason.is_empty() => json!({ "allowed": false }),
        Decision::Refused(reason) => json!({ "allowed": false, "reason": reason }),
    })
}

/// What the authorizer can say without being asked about something in particular.
fn rules_review(call: &Call) -> Value {
    let anything = Attributes::Resource {
        verb: "*".into(),
        group: "*".into(),
        resource: "*".into(),
        subresource: String::new(),
        namespace: String::new(),
        name: String::new(),
        field_selector: String::new(),
    };
    let all = matches!(
        authorize::decide(&call.user, &anything, call.state.as_ref()),
        Decision::Allowed(_)
    );
    let (resources, paths) = if all {
        (
            json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]),
            json!([{ "verbs": ["*"], "nonResourceURLs": ["*"] }]),
        )
    } else {
        (
            json!([
                { "verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"] },
                {
                    "verbs": ["create"],
                    "apiGroups": ["authorization.k8s.io"],
                    "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                },
            ]),
            json!([{
                "verbs": ["get"],
                "nonResourceURLs": [
                    "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz",
                    "/version", "/version/",
                ],
            }]),
        )
    };
    // A node's rights depend on its pods: they cannot be listed.
    json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": call.user.node().is_some() })
}

async fn token_review(call: &Call, spec: &Value) -> Result<Value, ApiError> {
    let mut audiences: Vec<String> = serde_json::from_value(spec["audiences"].clone()).unwrap_or_default();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    Ok(
        match authenticate::service_account(&call.state, token, &audiences).await {
            Ok((identity, claims)) => {
                audiences.retain(|audience| claims.aud.contains(audience));
                json!({ "authenticated": true, "user": identity.to_value(), "audiences": audiences })
            }
            Err(reason) => json!({ "authenticated": false, "error": reason, "user": {} }),
        },
    )
}
