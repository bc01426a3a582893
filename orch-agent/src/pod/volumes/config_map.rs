//! A ConfigMap as files.

use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, Pod};

use super::{Context, ObjectError, Payload, VolumeError, pick};

pub(super) async fn payload(
    context: &Context,
    pod: &Pod,
    source: &ConfigMapVolumeSource,
) -> Result<Payload, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let optional = source.optional == Some(true);
    let map = match context.objects.config_map(namespace, &source.name).await {
        Err(ObjectError::NotFound { .. }) if optional => ConfigMap::default(),
        other => other?,
    };
    files(map, source.items.as_deref(), source.default_mode, optional)
}

/// The files of a ConfigMap: text and binary data together.
pub(super) fn files(
    map: ConfigMap,
    items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let text = map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
    let binary = map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
    pick("config", text.chain(binary), items, mode, optional)
}
