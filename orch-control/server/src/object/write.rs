//! Create, update and patch.

use jiff::Timestamp;
use orch_api::{
    ApiError, Kind, Subresource,
    patch::{self, PatchType},
    schema,
    strategy::keep_system_metadata,
    validation::ephemeral_containers,
};
use orch_store::{Expect, StoreError};
use serde_json::{Value, json};

use super::{Call, delete, meta};
use crate::admission::{self, Attempt, Operation};

/// How often a generated name that is taken is replaced by another.
const NAME_TRIES: usize = 8;
/// How often a patch is tried again on the version that came between.
const PATCH_TRIES: usize = 5;

/// What a create or update came to.
pub struct Written {
    /// The object, as served.
    pub object: Value,
    /// Whether it is new.
    pub created: bool,
}

/// Creates `object`, a body as served; `findings` are what decoding saw.
///
/// # Errors
/// Whatever Kubernetes would refuse.
pub async fn create(call: &Call, mut object: Value, findings: &[String]) -> Result<Value, ApiError> {
    take_body(call, call.kind, &mut object, findings)?;
    let stored = call.stored();
    call.kind.to_stored(&mut object);

    let metadata = meta::metadata(&mut object);
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|rv| !rv.is_empty())
    {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for field in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".into(), json!(meta::time(Timestamp::now())));
    let prefix = meta::text(&object, "generateName").to_owned();
    let generated = meta::text(&object, "name").is_empty() && !prefix.is_empty();
    if generated {
        meta::metadata(&mut object).insert("name".into(), json!(meta::generate_name(&prefix)));
    }

    stored.strategy.default(&mut object);
    let mut attempt = Attempt::new(call, Operation::Create, None, &mut object, None);
    admission::admit(&mut attempt).await?;
    let reservations = attempt.into_reservations();
    stored.strategy.default(&mut object);
    stored.strategy.prepare_create(&mut object);
    refuse_invalid(stored, &object, stored.strategy.validate(&object))?;

    for attempt in 1.. {
        let name = meta::text(&object, "name").to_owned();
        let key = stored.key(&call.namespace, &name);
        let written = if call.dry_run {
            match call.state.store.get(&key).await {
                Ok((Some(kv), _)) => Err(StoreError::Conflict {
                    key,
                    current: Some(Box::new(kv)),
                }),
                Ok((None, _)) => Ok(None),
                Err(error) => Err(error),
            }
        } else {
            call.state
                .store
                .put(&key, meta::encode(&object), Expect::Absent)
                .await
                .map(Some)
        };
        match written {
            Ok(revision) => {
                if let Some(revision) = revision {
                    call.collection.wrote(revision);
                    meta::set_revision(&mut object, revision);
                    admission::keep(reservations);
                }
                break;
            }
            Err(StoreError::Conflict { .. }) if generated && attempt < NAME_TRIES => {
                meta::metadata(&mut object).insert("name".into(), json!(meta::generate_name(&prefix)));
            }
            Err(StoreError::Conflict { .. }) => return Err(ApiError::already_exists(call.kind, &name)),
            Err(error) => return Err(meta::store_error(&error, call.kind, &name)),
        }
    }
    call.kind.from_stored(&mut object);
    Ok(object)
}

/// Checks a body's type, fields and namespace.
fn take_body(
    call: &Call,
    kind: &'static Kind,
    object: &mut Value,
    findings: &[String],
) -> Result<(), ApiError> {
    meta::check_type(object, kind.group, kind.version, kind.kind)?;
    call.warn(schema::check_body(kind, object, call.validation, findings)?);
    let metadata = meta::metadata(object);
    if call.kind.namespaced {
        match metadata
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or_default()
        {
            "" => {
                metadata.insert("namespace".into(), json!(call.namespace));
            }
            other if other != call.namespace => {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            _ => {}
        }
    } else {
        metadata.remove("namespace");
    }
    Ok(())
}

/// Replaces the object, or its `subresource`, by `object`, a body as served.
///
/// # Errors
/// Whatever Kubernetes would refuse.
pub async fn update(
    call: &Call,
    subresource: Option<Subresource>,
    mut object: Value,
    findings: &[String],
) -> Result<Value, ApiError> {
    take_body(call, call.kind, &mut object, findings)?;
    let metadata = meta::metadata(&mut object);
    match metadata.get("name").and_then(Value::as_str).unwrap_or_default() {
        "" => {
            return Err(ApiError::bad_request("name must be provided"));
        }
        name if name != call.name => {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.name
            )));
        }
        _ => {}
    }
    call.kind.to_stored(&mut object);
    modify(call, subresource, &mut |_| Ok(object.clone())).await
}

/// Applies a patch to the object, or to its `subresource`; `findings` are what decoding the patch saw.
///
/// # Errors
/// Whatever Kubernetes would refuse.
pub async fn patch(
    call: &Call,
    subresource: Option<Subresource>,
    patch_type: PatchType,
    body: &Value,
    findings: &[String],
) -> Result<Value, ApiError> {
    modify(call, subresource, &mut |current| {
        let mut served = current.clone();
        call.kind.from_stored(&mut served);
        let mut patched = patch::apply(call.kind, &served, patch_type, body)?;
        if meta::text(&patched, "name") != call.name {
            return Err(ApiError::bad_request(
                "the name of the object may not be changed by a patch",
            ));
        }
        take_body(call, call.kind, &mut patched, findings)?;
        call.kind.to_stored(&mut patched);
        Ok(patched)
    })
    .await
}

/// Changes the object from what `change` makes of its present state (both as stored). A change that carries no
/// resource version of its own is tried again on what came between.
///
/// # Errors
/// What `change` refuses, and what the path refuses.
pub async fn modify(
    call: &Call,
    subresource: Option<Subresource>,
    change: &mut (dyn FnMut(&Value) -> Result<Value, ApiError> + Send),
) -> Result<Value, ApiError> {
    let key = call.key();
    let read = |error: StoreError| meta::store_error(&error, call.kind, &call.name);
    let (mut current, _) = call.state.store.get(&key).await.map_err(read)?;
    for attempt in 1.. {
        let kv = current.ok_or_else(|| call.not_found())?;
        let old = meta::decode(&kv)?;
        let mut new = change(&old)?;
        let wanted = meta::text(&new, "resourceVersion");
        let conditional = !wanted.is_empty();
        if conditional && wanted != meta::text(&old, "resourceVersion") {
            meta::parse_revision(wanted)?;
            return Err(ApiError::modified(call.kind, &call.name));
        }
        // A patch starts from what is there: its resource version is the current one unless it says otherwise.
        let outcome = replace(call, subresource, &kv, &old, &mut new).await;
        match outcome {
            Ok(Some(mut object)) => {
                call.kind.from_stored(&mut object);
                return Ok(object);
            }
            Ok(None) if attempt < PATCH_TRIES => {
                (current, _) = call.state.store.get(&key).await.map_err(read)?;
            }
            Ok(None) => break,
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::modified(call.kind, &call.name))
}

/// One try of [`modify`]; `None` when the object changed meanwhile.
async fn replace(
    call: &Call,
    subresource: Option<Subresource>,
    kv: &orch_store::KeyValue,
    old: &Value,
    new: &mut Value,
) -> Result<Option<Value>, ApiError> {
    let stored = call.stored();
    let (uid, own) = (meta::text(new, "uid").to_owned(), meta::text(old, "uid"));
    if !uid.is_empty() && uid != own {
        let detail = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
        return Err(ApiError::conflict(call.kind, &call.name, &detail));
    }
    meta::metadata(new).remove("managedFields");
    stored.strategy.default(new);
    keep_system_metadata(new, old);
    let mut attempt = Attempt::new(call, Operation::Update, subresource, new, Some(old));
    admission::admit(&mut attempt).await?;
    let reservations = attempt.into_reservations();
    keep_system_metadata(new, old);
    match subresource {
        None | Some(Subresource::Scale) => stored.strategy.prepare_update(new, old),
        Some(Subresource::Status) => stored.strategy.prepare_status_update(new, old),
        // Their bodies were merged into the old object by the subresource itself.
        Some(Subresource::EphemeralContainers | Subresource::Resize) if new["spec"] != old["spec"] => {
            if let Some(generation) = old["metadata"]["generation"].as_i64() {
                meta::metadata(new).insert("generation".into(), json!(generation + 1));
            }
        }
        Some(_) => {}
    }
    let errors = match subresource {
        None | Some(Subresource::Scale | Subresource::Status) => stored.strategy.validate_update(new, old),
        // They change just what a plain update may not.
        Some(subresource) => {
            let mut errors = stored.strategy.validate(new);
            if subresource == Subresource::EphemeralContainers {
                errors.extend(ephemeral_containers(new, old));
            }
            errors
        }
    };
    refuse_invalid(stored, new, errors)?;
    // The deletion marks of a graceful delete are the server's, not the strategy's, to keep.
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        match old["metadata"].get(field) {
            Some(value) => meta::metadata(new).insert(field.into(), value.clone()),
            None => meta::metadata(new).remove(field),
        };
    }

    if delete::is_due(stored, new) {
        if !call.dry_run && delete::remove(call, kv, old).await?.is_none() {
            return Ok(None);
        }
        return Ok(Some(new.clone()));
    }
    let bytes = meta::encode(new);
    if call.dry_run || bytes == kv.value {
        meta::set_revision(new, kv.mod_revision);
        return Ok(Some(new.clone()));
    }
    match call
        .state
        .store
        .put(&kv.key, bytes, Expect::At(kv.mod_revision))
        .await
    {
        Ok(revision) => {
            call.collection.wrote(revision);
            admission::keep(reservations);
            meta::set_revision(new, revision);
            Ok(Some(new.clone()))
        }
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(meta::store_error(&error, call.kind, &call.name)),
    }
}

fn refuse_invalid(kind: &Kind, object: &Value, errors: Vec<orch_api::FieldError>) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    let name = Some(meta::text(object, "name")).filter(|name| !name.is_empty());
    Err(ApiError::invalid(
        kind,
        name.unwrap_or_else(|| meta::text(object, "generateName")),
        errors,
    ))
}
