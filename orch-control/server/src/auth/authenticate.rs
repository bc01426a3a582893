//! Authentication: in-process identity, client certificate, bearer token, else anonymous.

use std::sync::Arc;

use http::{HeaderMap, header, request::Parts};
use orch_api::ApiError;

use super::{
    identity::{Identity, SERVICE_ACCOUNT_PREFIX},
    impersonate::service_account_groups,
    token::{Claims, ISSUER},
};
use crate::{listener::Peer, state::State};

/// Marks a request that came from this process, and in whose name. Cannot come from outside: extensions are not
/// part of HTTP.
#[derive(Clone, Debug)]
pub struct InProcess(pub Arc<Identity>);

/// Who sent the request.
///
/// # Errors
/// 401 when it carries a token that is not believed.
pub async fn authenticate(state: &State, parts: &Parts) -> Result<Arc<Identity>, ApiError> {
    if let Some(InProcess(identity)) = parts.extensions.get() {
        return Ok(Arc::clone(identity));
    }
    if let Some(identity) = parts
        .extensions
        .get::<Peer>()
        .and_then(|peer| peer.certificate.as_ref())
    {
        return Ok(Arc::clone(identity));
    }
    match bearer(&parts.headers) {
        Some(token) => match service_account(state, token, &[ISSUER.to_owned()]).await {
            Ok((identity, _)) => Ok(Arc::new(identity)),
            Err(reason) => {
                tracing::debug!(reason, "refused a bearer token");
                Err(ApiError::unauthorized())
            }
        },
        None => Ok(Arc::new(Identity::anonymous())),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

/// The service account that `token` speaks for, if all that it is bound to still lives.
///
/// # Errors
/// Why not.
pub async fn service_account(
    state: &State,
    token: &str,
    audiences: &[String],
) -> Result<(Identity, Claims), String> {
    let claims = state
        .tokens
        .check(token, audiences)
        .map_err(|error| error.to_string())?;
    let bound = &claims.kubernetes;
    let alive = |plural: &'static str, namespace: &str, name: &str, uid: &str| {
        state
            .core(plural)
            .ok()
            .and_then(|collection| collection.get_value(namespace, name))
            .is_some_and(|object| object["metadata"]["uid"] == uid)
    };
    // What it is bound to may have been made, or deleted, a moment ago.
    for plural in ["serviceaccounts", "pods", "secrets"] {
        let fresh = async { state.core(plural)?.fresh().await };
        fresh.await.map_err(|error| error.to_string())?;
    }
    if !alive(
        "serviceaccounts",
        &bound.namespace,
        &bound.serviceaccount.name,
        &bound.serviceaccount.uid,
    ) {
        return Err(format!(
            "service account {}/{} is gone",
            bound.namespace, bound.serviceaccount.name
        ));
    }
    for (plural, reference) in [("pods", &bound.pod), ("secrets", &bound.secret)] {
        if let Some(reference) = reference
            && !alive(plural, &bound.namespace, &reference.name, &reference.uid)
        {
            return Err(format!(
                "the token is bound to one of {plural} that is gone: {}",
                reference.name
            ));
        }
    }
    let groups = service_account_groups(&bound.namespace);
    let name = format!(
        "{SERVICE_ACCOUNT_PREFIX}{}:{}",
        bound.namespace, bound.serviceaccount.name
    );
    let mut identity = Identity::authenticated(&name, groups);
    identity.uid.clone_from(&bound.serviceaccount.uid);
    let mut extra = |key: &str, value: &str| {
        identity.extra.insert(
            format!("authentication.kubernetes.io/{key}"),
            vec![value.to_owned()],
        );
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    for (kind, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(reference) = reference {
            extra(&format!("{kind}-name"), &reference.name);
            extra(&format!("{kind}-uid"), &reference.uid);
        }
    }
    Ok((identity, claims))
}
