//! [`Strategy`]: the few typed functions that a kind may add to the one object path.

use serde_json::Value;

use crate::field::FieldError;

/// What a kind does differently. Objects are JSON that the schema has already type-checked, so hooks
/// need not report fields of a wrong type; they must not panic on them either.
///
/// Hooks that prepare run before [`Self::validate`], and [`Self::default`] runs before all others.
pub trait Strategy: Send + Sync {
    /// Fills in the defaults that Kubernetes documents. Idempotent.
    fn default(&self, obj: &mut Value) {
        let _ = obj;
    }

    /// Drops what a client may not set on create (status) and sets `metadata.generation` where the
    /// kind has one.
    fn prepare_create(&self, obj: &mut Value) {
        let _ = obj;
    }

    /// Restores what an update may not change (status) and bumps the generation if the spec changed.
    fn prepare_update(&self, new: &mut Value, old: &Value) {
        let _ = (new, old);
    }

    /// Restores what an update of the status subresource may not change: all but status.
    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        prepare_status_update(new, old);
    }

    /// The faults of a new object, metadata included.
    fn validate(&self, obj: &Value) -> Vec<FieldError>;

    /// The faults of an update, those that [`Self::validate`] finds included.
    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let _ = old;
        self.validate(new)
    }

    /// The fields that a field selector may name, with their values. Namespaced kinds list
    /// `metadata.namespace` too.
    fn fields(&self, obj: &Value) -> Vec<(&'static str, String)> {
        crate::selector::metadata_fields(obj)
    }
}

/// Keeps `old`'s status.
pub(crate) fn keep_status(new: &mut Value, old: &Value) {
    let Some(object) = new.as_object_mut() else { return };
    match old.get("status") {
        Some(status) => object.insert("status".to_owned(), status.clone()),
        None => object.remove("status"),
    };
}

/// Takes the status and the free part of the metadata from `new`, the rest from `old`.
pub(crate) fn prepare_status_update(new: &mut Value, old: &Value) {
    keep_system_metadata(new, old);
    let Some(object) = new.as_object_mut() else { return };
    let status = object.remove("status");
    let metadata = object.remove("metadata");
    let mut merged = old.clone();
    let Some(target) = merged.as_object_mut() else {
        return;
    };
    for (key, value) in [("status", status), ("metadata", metadata)] {
        match value {
            Some(value) => target.insert(key.to_owned(), value),
            None => target.remove(key),
        };
    }
    if let Some(metadata) = target.get_mut("metadata").and_then(Value::as_object_mut) {
        keep(metadata, old, &["ownerReferences"]);
    }
    *new = merged;
}

/// Restores the metadata that no client may change: what `rest.BeforeUpdate` restores.
pub fn keep_system_metadata(new: &mut Value, old: &Value) {
    let metadata = crate::value::metadata_mut(new);
    const KEPT: [&str; 6] = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ];
    keep(metadata, old, &KEPT);
}

fn keep(metadata: &mut serde_json::Map<String, Value>, old: &Value, keys: &[&str]) {
    for key in keys {
        match old["metadata"].get(key) {
            Some(value) => metadata.insert((*key).to_owned(), value.clone()),
            None => metadata.remove(*key),
        };
    }
}

/// Sets the generation of a new object.
pub(crate) fn first_generation(obj: &mut Value) {
    crate::value::metadata_mut(obj).insert("generation".to_owned(), 1.into());
}

/// Keeps the generation, one more if the spec changed.
pub(crate) fn next_generation(new: &mut Value, old: &Value) {
    let current = old["metadata"]["generation"].as_i64().unwrap_or(0);
    let changed = new.get("spec") != old.get("spec");
    let generation = if changed { current + 1 } else { current };
    let metadata = crate::value::metadata_mut(new);
    if generation > 0 {
        metadata.insert("generation".to_owned(), generation.into());
    } else {
        metadata.remove("generation");
    }
}
