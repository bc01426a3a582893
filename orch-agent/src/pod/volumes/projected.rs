//! Several sources in one directory: tokens, ConfigMaps, Secrets, the pod's own fields.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, Pod, ProjectedVolumeSource, Secret, ServiceAccountTokenProjection, VolumeProjection,
};

use super::{
    Context, Memory, ObjectError, Payload, Token, VolumeError, config_map, downward, payload::File, secret,
};
use crate::pod::backoff::elapsed;

/// A token is replaced when it has spent this share of its life, in percent, as Kubernetes does.
const TOKEN_SPENT: u32 = 80;
/// Or when it is this old.
const TOKEN_OLD: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn payload(
    context: &Context,
    pod: &Pod,
    volume: &str,
    source: &ProjectedVolumeSource,
    memory: &Memory,
) -> Result<Payload, VolumeError> {
    let mut out = Payload::new();
    for projection in source.sources.iter().flatten() {
        out.extend(one(context, pod, volume, projection, source.default_mode, memory).await?);
    }
    Ok(out)
}

async fn one(
    context: &Context,
    pod: &Pod,
    volume: &str,
    source: &VolumeProjection,
    mode: Option<i32>,
    memory: &Memory,
) -> Result<Payload, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(s) = &source.service_account_token {
        let token = token(context, pod, volume, s, memory).await?;
        return Ok(Payload::from([(
            s.path.clone(),
            File::private(token.into_bytes()),
        )]));
    }
    if let Some(s) = &source.config_map {
        let optional = s.optional == Some(true);
        let map = match context.objects.config_map(namespace, &s.name).await {
            Err(ObjectError::NotFound { .. }) if optional => ConfigMap::default(),
            other => other?,
        };
        return config_map::files(map, s.items.as_deref(), mode, optional);
    }
    if let Some(s) = &source.secret {
        let optional = s.optional == Some(true);
        let found = match context.objects.secret(namespace, &s.name).await {
            Err(ObjectError::NotFound { .. }) if optional => Secret::default(),
            other => other?,
        };
        return secret::files(found, s.items.as_deref(), mode, optional);
    }
    if let Some(s) = &source.downward_api {
        return downward::payload(context, pod, s.items.as_deref().unwrap_or_default(), mode);
    }
    let kind = if source.cluster_trust_bundle.is_some() {
        "clusterTrustBundle"
    } else {
        "podCertificate"
    };
    Err(VolumeError::Unsupported {
        name: volume.to_owned(),
        kind: format!("projected {kind}"),
    })
}

/// The token in use while it is young, else a new one.
async fn token(
    context: &Context,
    pod: &Pod,
    volume: &str,
    source: &ServiceAccountTokenProjection,
    memory: &Memory,
) -> Result<String, VolumeError> {
    let key = (volume.to_owned(), source.path.clone());
    let now = Timestamp::now();
    let known = memory.tokens.lock().get(&key).cloned();
    if let Some(known) = &known
        && is_young(known, now)
    {
        return Ok(known.token.clone());
    }
    let audience = source.audience.as_deref().filter(|a| !a.is_empty());
    match context
        .objects
        .token(pod, audience, source.expiration_seconds.unwrap_or(3600))
        .await
    {
        Ok(token) => {
            let text = token.token.clone();
            memory.tokens.lock().insert(key, token);
            Ok(text)
        }
        // An old token that still works is better than none.
        Err(error) => match known {
            Some(known) if now < known.expires => Ok(known.token),
            _ => Err(error.into()),
        },
    }
}

fn is_young(token: &Token, now: Timestamp) -> bool {
    let age = elapsed(token.issued, now);
    age < TOKEN_OLD && age < elapsed(token.issued, token.expires) * TOKEN_SPENT / 100
}
