//! Strategic merge patch: a merge patch that knows which lists are sets or keyed by a field.
//!
//! Format: <https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md>.
//! Directives: `$patch` (`replace`, `delete`, `merge`), `$deleteFromPrimitiveList/FIELD`,
//! `$setElementOrder/FIELD` and `$retainKeys`.

mod order;
mod table;

use serde_json::{Map, Value};

use crate::ApiError;
use crate::schema::definitions::{Shape, definition};
pub use table::{ListMerge, list_merge, retains_keys};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `current`, an object of the type `schema`.
pub fn apply(schema: &str, current: &Value, patch: &Value) -> Result<Value, ApiError> {
    let merged = merge_value(Some(&Shape::Object(known(schema))), Some(current), patch)?;
    Ok(merged.unwrap_or_else(|| Value::Object(Map::new())))
}

/// The type's name with the lifetime of the table it is in; an unknown type merges as plain JSON.
fn known(schema: &str) -> &'static str {
    definition(schema).map_or("", |d| d.name)
}

fn refuse(why: impl Into<String>) -> ApiError {
    ApiError::bad_request(why)
}

/// The shape of a field of an object of a shape; none where the type does not say.
fn field_shape(shape: Option<&Shape>, field: &str) -> Option<&'static Shape> {
    match shape? {
        Shape::Object(name) => definition(name)?.field(field).map(|f| &f.shape),
        _ => None,
    }
}

/// Merges one value; none means that the value is to be absent.
fn merge_value(
    shape: Option<&Shape>,
    current: Option<&Value>,
    patch: &Value,
) -> Result<Option<Value>, ApiError> {
    match patch {
        Value::Null => Ok(None),
        Value::Object(patch) => {
            let empty = Map::new();
            let current = current.and_then(Value::as_object).unwrap_or(&empty);
            merge_object(shape, current, patch)
        }
        other => Ok(Some(other.clone())),
    }
}

fn merge_object(
    shape: Option<&Shape>,
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Option<Value>, ApiError> {
    match patch.get(PATCH).map(|d| (d, d.as_str())) {
        None | Some((_, Some("merge"))) => {}
        Some((_, Some("replace"))) => {
            let mut replacement = patch.clone();
            replacement.remove(PATCH);
            return Ok(Some(plain(Value::Object(replacement))));
        }
        // The map stays, empty: only null removes a field.
        Some((_, Some("delete"))) => return Ok(Some(Value::Object(Map::new()))),
        Some((other, _)) => return Err(refuse(format!("Unknown patch type found: {other}"))),
    }
    let mut merged = current.clone();
    if let Some(kept) = patch.get(RETAIN_KEYS) {
        retain_keys(&mut merged, patch, kept)?;
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_primitives(&mut merged, patch, field, value)?;
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let below = field_shape(shape, key);
        let result = match (value, list_rule(shape, key)) {
            (Value::Array(items), Some(rule)) => {
                let current = merged
                    .get(key)
                    .and_then(Value::as_array)
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                Some(Value::Array(merge_list(below, rule, current, items)?))
            }
            _ => merge_value(below, merged.get(key), value)?,
        };
        match result {
            Some(result) => merged.insert(key.clone(), result),
            None => merged.remove(key),
        };
    }
    for (key, wanted) in patch {
        let Some(field) = key.strip_prefix(ORDER) else {
            continue;
        };
        let wanted = wanted
            .as_array()
            .ok_or_else(|| refuse(format!("{key} must be a list")))?;
        let rule = list_rule(shape, field).unwrap_or(ListMerge::Set);
        if let Some(Value::Array(items)) = merged.get_mut(field) {
            order::arrange(items, wanted, rule);
        }
    }
    Ok(Some(Value::Object(merged)))
}

fn list_rule(shape: Option<&Shape>, key: &str) -> Option<ListMerge> {
    match shape? {
        Shape::Object(name) => list_merge(name, key),
        _ => None,
    }
}

fn retain_keys(
    merged: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    kept: &Value,
) -> Result<(), ApiError> {
    let kept = kept
        .as_array()
        .ok_or_else(|| refuse("$retainKeys must be a list"))?;
    let kept: Vec<&str> = kept.iter().filter_map(Value::as_str).collect();
    let stray = patch
        .iter()
        .find(|(k, v)| !k.starts_with('$') && !v.is_null() && !kept.contains(&k.as_str()));
    if let Some((key, _)) = stray {
        return Err(refuse(format!(
            "the retainKeys list doesn't contain the patched field {key:?}"
        )));
    }
    merged.retain(|key, _| kept.contains(&key.as_str()));
    Ok(())
}

fn delete_primitives(
    merged: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    field: &str,
    values: &Value,
) -> Result<(), ApiError> {
    let values = values
        .as_array()
        .ok_or_else(|| refuse(format!("{DELETE_FROM}{field} must be a list")))?;
    let Some(items) = merged.get_mut(field).and_then(Value::as_array_mut) else {
        return Ok(());
    };
    items.retain(|item| !values.contains(item));
    if items.is_empty() && !patch.contains_key(field) {
        merged.remove(field);
    }
    Ok(())
}

fn merge_list(
    shape: Option<&Shape>,
    rule: ListMerge,
    current: &[Value],
    patch: &[Value],
) -> Result<Vec<Value>, ApiError> {
    let element = match shape {
        Some(Shape::List(element)) => Some(element.as_ref()),
        _ => None,
    };
    let is_replace = |item: &Value| item.get(PATCH).and_then(Value::as_str) == Some("replace");
    let ListMerge::Key(key) = rule else {
        let mut merged = current.to_vec();
        for item in patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(merged);
    };
    if patch.iter().any(is_replace) {
        // `- $patch: replace` stands alone beside the new elements.
        return Ok(patch
            .iter()
            .filter(|item| !is_replace(item))
            .cloned()
            .map(plain)
            .collect());
    }
    let mut merged = current.to_vec();
    for item in patch {
        let Some(fields) = item.as_object() else {
            return Err(refuse(format!(
                "expected a map with the merge key {key}, found {item}"
            )));
        };
        let Some(id) = fields.get(key) else {
            return Err(refuse(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        if fields.get(PATCH).and_then(Value::as_str) == Some("delete") {
            merged.retain(|m| m.get(key) != Some(id));
            continue;
        }
        let at = merged.iter().position(|m| m.get(key) == Some(id));
        let before = at.and_then(|at| merged.get(at));
        let Some(after) = merge_value(element, before, item)? else {
            continue;
        };
        match at.and_then(|at| merged.get_mut(at)) {
            Some(place) => *place = after,
            None => merged.push(after),
        }
    }
    Ok(merged)
}

/// Removes directives from a value that is taken as it is.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(k, v)| !k.starts_with('$') && !v.is_null())
            .map(|(k, v)| (k, plain(v)))
            .collect(),
        Value::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
