//! Subresources that change an object in their own way: scale, binding, ephemeral containers, resize.

use orch_api::{ApiError, Subresource, patch, patch::PatchType, schema, selector::LabelSelector};
use serde_json::{Value, json};

use super::{Call, meta, write};

/// The Scale of a workload (`autoscaling/v1`), read from the object as served.
///
/// # Errors
/// When the object's selector is malformed.
pub fn scale_of(object: &Value) -> Result<Value, ApiError> {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let selector = &object["spec"]["selector"];
    let selector = match object["kind"].as_str() {
        // Older than label selectors: a plain map.
        Some("ReplicationController") => LabelSelector::from_map(selector),
        _ => LabelSelector::from_value(selector)?,
    };
    Ok(json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": { "replicas": object["spec"]["replicas"].as_i64().unwrap_or(0) },
        "status": { "replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector.to_string() },
    }))
}

/// Replaces (`patch_type` is `None`) or patches the Scale; `findings` are what decoding saw. Returns the Scale after.
///
/// # Errors
/// As an update of the object.
pub async fn change_scale(
    call: &Call,
    patch_type: Option<PatchType>,
    body: &Value,
    findings: &[String],
) -> Result<Value, ApiError> {
    let object = write::modify(call, Some(Subresource::Scale), &mut |old| {
        let current = scale_of(old)?;
        let mut scale = match patch_type {
            // A Scale has no lists, so a strategic merge is a merge.
            Some(PatchType::Strategic) => patch::apply(call.kind, &current, PatchType::Merge, body)?,
            Some(other) => patch::apply(call.kind, &current, other, body)?,
            None => body.clone(),
        };
        meta::check_type(&mut scale, "autoscaling", "v1", "Scale")?;
        call.warn(schema::check_definition(
            "io.k8s.api.autoscaling.v1.Scale",
            &mut scale,
            call.validation,
            findings,
        )?);
        let mut new = old.clone();
        new["spec"]["replicas"] = json!(scale["spec"]["replicas"].as_i64().unwrap_or(0));
        copy_conditions(&scale, &mut new);
        Ok(new)
    })
    .await?;
    scale_of(&object)
}

/// Takes over the uid and resource version that the writer expects.
fn copy_conditions(body: &Value, new: &mut Value) {
    for field in ["uid", "resourceVersion"] {
        match body["metadata"][field].as_str().filter(|text| !text.is_empty()) {
            Some(text) => meta::metadata(new).insert(field.into(), json!(text)),
            None if field == "resourceVersion" => meta::metadata(new).remove(field),
            None => continue,
        };
    }
}

/// Binds a pod to the node that a Binding names.
///
/// # Errors
/// 409 when the pod is bound already or being deleted.
pub async fn bind(call: &Call, body: &Value) -> Result<Value, ApiError> {
    let node = body["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        return Err(ApiError::unprocessable(format!(
            "Binding \"{}\" is invalid: target.name: Required value",
            call.name
        )));
    }
    if let Some(kind) = body["target"]["kind"]
        .as_str()
        .filter(|kind| !matches!(*kind, "" | "Node" | "Minion"))
    {
        return Err(ApiError::unprocessable(format!(
            "Binding \"{}\" is invalid: target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\"",
            call.name
        )));
    }
    let metadata = body["metadata"].clone();
    write::modify(call, Some(Subresource::Binding), &mut |old| {
        let conflict = |detail: String| Err(ApiError::conflict(call.kind, &call.name, &detail));
        if meta::is_terminating(old) {
            return conflict(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                call.name
            ));
        }
        if let Some(bound) = old["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
            return conflict(format!("pod {} is already assigned to node {bound:?}", call.name));
        }
        if old["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|gates| !gates.is_empty())
        {
            return conflict(format!("pod {} has non-empty .spec.schedulingGates", call.name));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = json!(node);
        for field in ["annotations", "labels"] {
            for (key, value) in metadata[field].as_object().into_iter().flatten() {
                new["metadata"][field][key] = value.clone();
            }
        }
        let now = meta::time(jiff::Timestamp::now());
        let scheduled = json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
        });
        if !new["status"]["conditions"].is_array() {
            new["status"]["conditions"] = json!([]);
        }
        if let Some(conditions) = new["status"]["conditions"].as_array_mut() {
            conditions.retain(|condition| condition["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        copy_conditions(&json!({ "metadata": metadata }), &mut new);
        Ok(new)
    })
    .await?;
    Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }))
}

/// The pod that results when `body` (a pod) is written to `ephemeralcontainers` or `resize` of `old`.
fn merged(subresource: Subresource, body: &Value, old: &Value) -> Value {
    let mut new = old.clone();
    if subresource == Subresource::EphemeralContainers {
        take_field(&mut new["spec"], &body["spec"], "ephemeralContainers");
    } else {
        for list in ["containers", "initContainers"] {
            let wanted = body["spec"][list].as_array().cloned().unwrap_or_default();
            for container in new["spec"][list]
                .as_array_mut()
                .map(Vec::as_mut_slice)
                .unwrap_or_default()
            {
                if let Some(same) = wanted.iter().find(|w| w["name"] == container["name"]) {
                    take_field(container, same, "resources");
                }
            }
        }
    }
    copy_conditions(body, &mut new);
    new
}

/// Makes `field` of `target` what it is in `source`: absent where that has none, or null.
fn take_field(target: &mut Value, source: &Value, field: &str) {
    match (source.get(field), target.as_object_mut()) {
        (Some(value), _) if !value.is_null() => target[field] = value.clone(),
        (_, Some(target)) => {
            target.remove(field);
        }
        (_, None) => {}
    }
}

/// Replaces or patches through `ephemeralcontainers` or `resize`; `findings` are what decoding saw.
///
/// # Errors
/// As an update of the pod.
pub async fn change_pod(
    call: &Call,
    subresource: Subresource,
    patch_type: Option<PatchType>,
    body: &Value,
    findings: &[String],
) -> Result<Value, ApiError> {
    write::modify(call, Some(subresource), &mut |old| {
        let mut pod = match patch_type {
            Some(patch_type) => patch::apply(call.kind, old, patch_type, body)?,
            None => body.clone(),
        };
        meta::check_type(&mut pod, "", "v1", "Pod")?;
        call.warn(schema::check_body(
            call.kind,
            &mut pod,
            call.validation,
            findings,
        )?);
        Ok(merged(subresource, &pod, old))
    })
    .await
}
