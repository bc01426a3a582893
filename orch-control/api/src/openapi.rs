//! OpenAPI documents, built from the table of kinds and the schemas when they are asked for.
//!
//! Nothing is kept: the documents are large, asked for rarely and cached by clients.

mod paths;
mod schemas;

use serde_json::{Map, Value, json};

use crate::discovery::group_versions;
use crate::kinds::KINDS;

/// The version of Kubernetes whose API this is.
const VERSION: &str = "v1.36.0";

/// How a document refers to its schemas.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// `api/v1` or `apis/GROUP/VERSION`.
fn document_name(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// `/openapi/v3`: where the documents of the group versions are.
///
/// Clients cache a document by its hash, so that it must change with the schemas and the table.
pub fn v3_index() -> Value {
    let kinds: String = KINDS
        .iter()
        .map(|k| format!("{k:?}{:?}", k.subresources))
        .collect();
    let text = [
        env!("CARGO_PKG_VERSION"),
        kinds.as_str(),
        crate::schema::definitions::TEXT,
    ]
    .concat();
    let hash = crate::value::hash(&text);
    let paths: Map<String, Value> = group_versions()
        .into_iter()
        .map(|(group, version)| {
            let name = document_name(group, version);
            let url = format!("/openapi/v3/{name}?hash={hash:016X}");
            (name, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/NAME`, where `name` is `api/v1` or e.g. `apis/apps/v1`.
pub fn v3(name: &str) -> Option<Value> {
    let (group, version) = group_versions()
        .into_iter()
        .find(|(group, version)| document_name(group, version) == name)?;
    let mut names = schemas::Names::new(Dialect::V3);
    let mut all = Map::new();
    for kind in KINDS.iter().filter(|k| k.group == group && k.version == version) {
        names.add_kind(kind);
        paths::add(kind, Dialect::V3, &mut all);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": all,
        "components": {"schemas": names.schemas()},
    }))
}

/// The OpenAPI v2 document in protobuf (gnostic's `openapi.v2.Document`), for clients that read no other form:
/// kubectl before it reports an unknown kind, and kubectl older than 1.27 before each apply. It names the API and no
/// types, upon which they leave validation to the server.
#[must_use]
pub fn v2_protobuf() -> Vec<u8> {
    /// A length-delimited field; all of these are shorter than 128 bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap_or(0x7f);
        [&[number << 3 | 2, length], bytes].concat()
    }
    let info = [field(1, b"Kubernetes"), field(2, VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(8, b"")].concat()
}

/// `/openapi/v2`: everything in one document.
pub fn v2() -> Value {
    let mut names = schemas::Names::new(Dialect::V2);
    let mut all = Map::new();
    for kind in KINDS {
        names.add_kind(kind);
        paths::add(kind, Dialect::V2, &mut all);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": all,
        "definitions": names.schemas(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of a document leads to a schema in it.
    fn references(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::String(target) if key == "$ref" => out.push(target.clone()),
                        other => references(other, out),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, out)),
            _ => {}
        }
    }

    fn closed(document: &Value) {
        let mut targets = Vec::new();
        references(document, &mut targets);
        assert!(!targets.is_empty());
        for target in targets {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn every_kind_is_in_the_documents() {
        closed(&v2());
        for kind in KINDS {
            let name = document_name(kind.group, kind.version);
            assert!(v3_index()["paths"][&name].is_object());
            let document = v3(&name).unwrap();
            closed(&document);
            let schema = &document["components"]["schemas"][kind.schema];
            assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], kind.kind);
            let has = document["paths"].as_object().unwrap().values().any(|path| {
                path["post"]["x-kubernetes-group-version-kind"]["kind"] == kind.kind
                    && path["post"]["parameters"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|p| p["name"] == "fieldValidation")
            });
            assert!(has, "{kind:?}");
        }
        assert!(v3("apis/apps/v9").is_none());
    }

    #[test]
    fn merge_keys_are_published() {
        let document = v3("api/v1").unwrap();
        let containers =
            &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    }
}
