//! A Secret as files, in memory only.

use k8s_openapi::api::core::v1::{KeyToPath, Pod, Secret, SecretVolumeSource};

use super::{Context, ObjectError, Payload, VolumeError, pick};

pub(super) async fn payload(
    context: &Context,
    pod: &Pod,
    source: &SecretVolumeSource,
) -> Result<Payload, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let optional = source.optional == Some(true);
    let name = source.secret_name.as_deref().unwrap_or_default();
    let secret = match context.objects.secret(namespace, name).await {
        Err(ObjectError::NotFound { .. }) if optional => Secret::default(),
        other => other?,
    };
    files(secret, source.items.as_deref(), source.default_mode, optional)
}

/// The files of a Secret.
pub(super) fn files(
    secret: Secret,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
) -> Result<Payload, VolumeError> {
    pick(
        "secret",
        secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)),
        items,
        mode,
        optional,
    )
}
