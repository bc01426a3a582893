//! The pod's own fields as files.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Pod};

use super::{super::fields, Context, Payload, VolumeError, payload::File};

pub(super) fn payload(
    context: &Context,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<Payload, VolumeError> {
    let mut out = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::field(pod, &field.field_path, &context.facts(), &[])?
        } else if let Some(selector) = &item.resource_field_ref {
            fields::resource(pod, "", selector, &context.facts())?
        } else {
            continue;
        };
        let mode = item
            .mode
            .or(default_mode)
            .and_then(|m| u32::try_from(m).ok())
            .unwrap_or(0o644)
            & 0o777;
        out.insert(item.path.clone(), File::new(text.into_bytes(), mode));
    }
    Ok(out)
}
