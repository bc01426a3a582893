//! The paths of a kind: which operations there are, on what and with which parameters.

use serde_json::{Map, Value, json};

use super::Dialect;
use super::schemas::{DELETE_OPTIONS, STATUS, list_schema};
use crate::kind::Kind;

/// One operation of a path.
struct Operation<'a> {
    method: &'a str,
    action: &'a str,
    /// (group, version, kind) of the bodies.
    gvk: (&'a str, &'a str, &'a str),
    body: Option<&'a str>,
    answer: Option<&'a str>,
    parameters: &'a [&'a str],
}

const READ: &[&str] = &["pretty"];
const WRITE: &[&str] = &["pretty", "dryRun", "fieldManager", "fieldValidation"];
const PATCH: &[&str] = &["pretty", "dryRun", "fieldManager", "fieldValidation", "force"];
const DELETE: &[&str] = &[
    "pretty",
    "dryRun",
    "gracePeriodSeconds",
    "orphanDependents",
    "propagationPolicy",
];
const LIST: &[&str] = &[
    "pretty",
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];

/// Adds the paths of `kind` to `out`.
pub(super) fn add(kind: &Kind, dialect: Dialect, out: &mut Map<String, Value>) {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let gvk = (kind.group, kind.version, kind.kind);
    let list = list_schema(kind);
    let operation = |method, action, body, answer, parameters| Operation {
        method,
        action,
        gvk,
        body,
        answer,
        parameters,
    };
    let create = operation("post", "post", Some(kind.schema), Some(kind.schema), WRITE);
    let prefix = if kind.namespaced {
        format!("{root}/namespaces/{{namespace}}")
    } else {
        root.clone()
    };
    let collection = format!("{prefix}/{}", kind.plural);
    if !kind.is_stored() {
        out.insert(collection.clone(), path(&collection, &[create], dialect));
        return;
    }
    let list_all = || operation("get", "list", None, Some(list.as_str()), LIST);
    let delete_all = operation(
        "delete",
        "deletecollection",
        Some(DELETE_OPTIONS),
        Some(STATUS),
        DELETE,
    );
    if kind.namespaced {
        let everywhere = format!("{root}/{}", kind.plural);
        out.insert(everywhere.clone(), path(&everywhere, &[list_all()], dialect));
    }
    let mut operations = vec![list_all(), create];
    if kind.verbs().contains(&"deletecollection") {
        operations.push(delete_all);
    }
    out.insert(collection.clone(), path(&collection, &operations, dialect));
    let object = format!("{collection}/{{name}}");
    let patch_body = Some("patch");
    let operations = [
        operation("get", "get", None, Some(kind.schema), READ),
        operation("put", "put", Some(kind.schema), Some(kind.schema), WRITE),
        operation("patch", "patch", patch_body, Some(kind.schema), PATCH),
        operation("delete", "delete", Some(DELETE_OPTIONS), Some(STATUS), DELETE),
    ];
    out.insert(object.clone(), path(&object, &operations, dialect));
    for subresource in kind.subresources {
        let name = format!("{object}/{}", subresource.name());
        let gvk = subresource.gvk(kind);
        let schema = subresource
            .schema()
            .or((gvk.2 == kind.kind).then_some(kind.schema));
        let operations: Vec<Operation<'_>> = subresource
            .verbs()
            .iter()
            .map(|verb| match *verb {
                "create" => ("post", "connect", schema, WRITE),
                "update" => ("put", "put", schema, WRITE),
                "patch" => ("patch", "patch", patch_body, PATCH),
                "delete" => ("delete", "connect", None, DELETE),
                _ => ("get", "get", None, READ),
            })
            .map(|(method, action, body, parameters)| {
                let action = match (action, schema) {
                    ("connect", Some(_)) => "post",
                    (_, None) => "connect",
                    (action, _) => action,
                };
                Operation {
                    method,
                    action,
                    gvk,
                    body,
                    answer: schema,
                    parameters,
                }
            })
            .collect();
        out.insert(name.clone(), path(&name, &operations, dialect));
    }
}

fn path(name: &str, operations: &[Operation<'_>], dialect: Dialect) -> Value {
    let mut item: Map<String, Value> = operations
        .iter()
        .map(|o| (o.method.to_owned(), o.document(dialect)))
        .collect();
    let placeholders: Vec<Value> = ["namespace", "name"]
        .into_iter()
        .filter(|p| name.contains(&format!("{{{p}}}")))
        .map(|p| parameter(p, "path", dialect))
        .collect();
    if !placeholders.is_empty() {
        item.insert("parameters".to_owned(), Value::Array(placeholders));
    }
    Value::Object(item)
}

fn parameter(name: &str, place: &str, dialect: Dialect) -> Value {
    let kind = match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "force" | "orphanDependents" => "boolean",
        _ => "string",
    };
    let mut parameter = json!({"name": name, "in": place});
    if place == "path" {
        parameter["required"] = json!(true);
    }
    match dialect {
        Dialect::V2 => {
            parameter["type"] = json!(kind);
            parameter["uniqueItems"] = json!(true);
        }
        Dialect::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    parameter
}

impl Operation<'_> {
    fn document(&self, dialect: Dialect) -> Value {
        let (group, version, kind) = self.gvk;
        let mut parameters: Vec<Value> = self
            .parameters
            .iter()
            .map(|p| parameter(p, "query", dialect))
            .collect();
        let is_patch = self.body == Some("patch");
        let body = self.body.map(|b| {
            if is_patch {
                json!({"type": "object"})
            } else {
                dialect.reference(b)
            }
        });
        let answer = self
            .answer
            .map_or(json!({"type": "string"}), |a| dialect.reference(a));
        let mut document = json!({
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let patches: &[&str] = if is_patch { &crate::patch::ACCEPTED } else { &[] };
        match dialect {
            Dialect::V2 => {
                let consumes: &[&str] = if is_patch { patches } else { &["*/*"] };
                document["consumes"] = json!(consumes);
                document["produces"] = json!(["application/json", "application/yaml"]);
                if let Some(body) = body {
                    parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": body}));
                }
                document["responses"] = json!({"200": {"description": "OK", "schema": answer}});
            }
            Dialect::V3 => {
                if let Some(body) = body {
                    let types: &[&str] = if is_patch { patches } else { &["*/*"] };
                    let content: Map<String, Value> = types
                        .iter()
                        .map(|t| ((*t).to_owned(), json!({"schema": body})))
                        .collect();
                    document["requestBody"] = json!({"content": content, "required": true});
                }
                document["responses"] = json!({"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}});
            }
        }
        document["parameters"] = Value::Array(parameters);
        document
    }
}
