//! Tables: what `kubectl get` prints, as `meta.k8s.io/v1` Table.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{ApiError, Kind};

/// How much of each object a row carries (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, as PartialObjectMetadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Reads the parameter; empty means Metadata.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(ApiError::bad_request(format!(
                "unrecognized includeObject value: {other:?}"
            ))),
        }
    }
}

/// A Table of `items` at the moment `now`. The caller sets the list's metadata.
pub fn render(kind: &Kind, items: &[&Value], include: IncludeObject, now: Timestamp) -> Value {
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let cells: Vec<Value> = kind.columns.iter().map(|c| (c.cell)(item, now)).collect();
            let mut row = Map::new();
            row.insert("cells".to_owned(), Value::Array(cells));
            if let Some(object) = carried(item, include) {
                row.insert("object".to_owned(), object);
            }
            Value::Object(row)
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions(kind),
        "rows": rows,
    })
}

/// The column headings; a watch sends them with its first event only.
fn definitions(kind: &Kind) -> Vec<Value> {
    kind.columns
        .iter()
        .map(|c| {
            json!({
                "name": c.name,
                "type": c.kind,
                "format": c.format,
                "description": c.description,
                "priority": c.priority,
            })
        })
        .collect()
}

fn carried(item: &Value, include: IncludeObject) -> Option<Value> {
    match include {
        IncludeObject::None => None,
        IncludeObject::Object => Some(item.clone()),
        IncludeObject::Metadata => Some(partial_metadata(item)),
    }
}

/// An object's metadata as `meta.k8s.io/v1` PartialObjectMetadata.
pub fn partial_metadata(item: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": item["metadata"],
    })
}

#[cfg(test)]
mod tests;
