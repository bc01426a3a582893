//! The schemas of a document: what its kinds reach, and no more.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Dialect;
use crate::kind::Kind;
use crate::patch::strategic::{ListMerge, list_merge, retains_keys};
use crate::schema::definitions::{Field, Shape, definition};

/// Names that stand for values rather than objects, as Kubernetes publishes them.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
/// The body of deletes and the answer of failures.
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// The schema of a kind's lists.
pub(super) fn list_schema(kind: &Kind) -> String {
    format!("{}List", kind.schema)
}

/// The schemas that a document needs.
pub(super) struct Names {
    dialect: Dialect,
    wanted: BTreeSet<&'static str>,
    kinds: Vec<&'static Kind>,
}

impl Names {
    pub(super) fn new(dialect: Dialect) -> Self {
        let mut names = Self {
            dialect,
            wanted: BTreeSet::new(),
            kinds: Vec::new(),
        };
        for name in [DELETE_OPTIONS, STATUS, LIST_META] {
            names.reach(name);
        }
        names
    }

    /// Adds a kind, its list and its subresources' bodies.
    pub(super) fn add_kind(&mut self, kind: &'static Kind) {
        self.reach(kind.schema);
        for schema in kind.subresources.iter().filter_map(|s| s.schema()) {
            self.reach(schema);
        }
        self.kinds.push(kind);
    }

    fn reach(&mut self, name: &'static str) {
        if !self.wanted.insert(name) {
            return;
        }
        for field in definition(name).into_iter().flat_map(|d| &d.fields) {
            let mut shape = &field.shape;
            while let Shape::List(inner) | Shape::Map(inner) = shape {
                shape = inner;
            }
            match shape {
                Shape::Object(name) => self.reach(name),
                Shape::Quantity => self.reach(QUANTITY),
                Shape::IntOrString => self.reach(INT_OR_STRING),
                Shape::Time => self.reach(TIME),
                Shape::MicroTime => self.reach(MICRO_TIME),
                _ => {}
            }
        }
    }

    /// The schemas by name.
    pub(super) fn schemas(&self) -> Map<String, Value> {
        let mut out: Map<String, Value> = self
            .wanted
            .iter()
            .map(|name| ((*name).to_owned(), self.schema(name)))
            .collect();
        for kind in self.kinds.iter().filter(|k| k.is_stored()) {
            out.insert(list_schema(kind), self.list(kind));
        }
        out
    }

    fn schema(&self, name: &'static str) -> Value {
        match name {
            QUANTITY if self.dialect == Dialect::V3 => {
                json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
            }
            QUANTITY => json!({"type": "string"}),
            INT_OR_STRING if self.dialect == Dialect::V3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            INT_OR_STRING => json!({"type": "string", "format": "int-or-string"}),
            TIME | MICRO_TIME => json!({"type": "string", "format": "date-time"}),
            _ => self.object(name),
        }
    }

    fn object(&self, name: &'static str) -> Value {
        let Some(definition) = definition(name) else {
            return json!({"type": "object"});
        };
        let properties: Map<String, Value> = definition
            .fields
            .iter()
            .map(|f| (f.name.to_owned(), self.property(name, f)))
            .collect();
        let required: Vec<&str> = definition
            .fields
            .iter()
            .filter(|f| f.required && f.name != "metadata")
            .map(|f| f.name)
            .collect();
        let mut schema = json!({"type": "object", "properties": properties});
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        let gvks = self.gvks(name);
        if !gvks.is_empty() {
            schema["x-kubernetes-group-version-kind"] = Value::Array(gvks);
        }
        schema
    }

    fn gvks(&self, name: &str) -> Vec<Value> {
        let gvk = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
        if name == DELETE_OPTIONS {
            let versions: BTreeSet<_> = self
                .kinds
                .iter()
                .map(|k| (k.group, k.version, "DeleteOptions"))
                .collect();
            return versions.into_iter().map(gvk).collect();
        }
        if name == STATUS {
            return vec![gvk(("", "v1", "Status"))];
        }
        for kind in &self.kinds {
            if kind.schema == name {
                return vec![gvk((kind.group, kind.version, kind.kind))];
            }
            if let Some(s) = kind.subresources.iter().find(|s| s.schema() == Some(name)) {
                return vec![gvk(s.gvk(kind))];
            }
        }
        Vec::new()
    }

    fn property(&self, owner: &str, field: &Field) -> Value {
        let mut schema = self.shape(&field.shape);
        // A reference in version 3 may not have neighbours, so it is wrapped.
        if self.dialect == Dialect::V3 && schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        let retains = retains_keys(owner, field.name);
        match list_merge(owner, field.name) {
            Some(rule) => {
                schema["x-kubernetes-patch-strategy"] =
                    json!(if retains { "merge,retainKeys" } else { "merge" });
                if let ListMerge::Key(key) = rule {
                    schema["x-kubernetes-patch-merge-key"] = json!(key);
                }
            }
            None if retains => schema["x-kubernetes-patch-strategy"] = json!("retainKeys"),
            None => {}
        }
        schema
    }

    fn shape(&self, shape: &Shape) -> Value {
        match shape {
            Shape::Any => json!({"type": "object"}),
            Shape::String => json!({"type": "string"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Number => json!({"type": "number", "format": "double"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Time => self.dialect.reference(TIME),
            Shape::MicroTime => self.dialect.reference(MICRO_TIME),
            Shape::IntOrString => self.dialect.reference(INT_OR_STRING),
            Shape::Quantity => self.dialect.reference(QUANTITY),
            Shape::List(inner) => json!({"type": "array", "items": self.shape(inner)}),
            Shape::Map(inner) => json!({"type": "object", "additionalProperties": self.shape(inner)}),
            Shape::Object(name) => self.dialect.reference(name),
        }
    }

    fn list(&self, kind: &Kind) -> Value {
        json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": self.dialect.reference(LIST_META),
                "items": {"type": "array", "items": self.dialect.reference(kind.schema)},
            },
            "x-kubernetes-group-version-kind":
                [{"group": kind.group, "version": kind.version, "kind": kind.list_kind}],
        })
    }
}
