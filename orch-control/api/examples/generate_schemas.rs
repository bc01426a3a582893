//! Writes `schemas/v1.36.txt` from the schemas that the k8s-openapi crate carries.
//!
//! Run it when the Kubernetes version changes:
//! `cargo run -p orch-api --features generate --example generate_schemas`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// Everything reachable from these is written.
fn generator() -> SchemaGenerator {
    let mut settings = SchemaSettings::draft07();
    settings.transforms.clear();
    let mut generator = settings.into_generator();
    macro_rules! roots {
        ($($root:ty),* $(,)?) => { $( generator.subschema_for::<$root>(); )* };
    }
    use k8s_openapi::api::{
        apps, authentication, authorization, autoscaling, coordination, core, discovery, events, networking,
        policy,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta;
    roots![
        core::v1::Binding,
        core::v1::ConfigMap,
        core::v1::Endpoints,
        core::v1::Event,
        core::v1::Namespace,
        core::v1::Node,
        core::v1::Pod,
        core::v1::ReplicationController,
        core::v1::Secret,
        core::v1::Service,
        core::v1::ServiceAccount,
        apps::v1::Deployment,
        apps::v1::ReplicaSet,
        authentication::v1::SelfSubjectReview,
        authentication::v1::TokenRequest,
        authentication::v1::TokenReview,
        authorization::v1::LocalSubjectAccessReview,
        authorization::v1::SelfSubjectAccessReview,
        authorization::v1::SelfSubjectRulesReview,
        authorization::v1::SubjectAccessReview,
        autoscaling::v1::Scale,
        coordination::v1::Lease,
        discovery::v1::EndpointSlice,
        events::v1::Event,
        networking::v1::IPAddress,
        networking::v1::Ingress,
        networking::v1::IngressClass,
        networking::v1::NetworkPolicy,
        networking::v1::ServiceCIDR,
        policy::v1::Eviction,
        meta::v1::DeleteOptions,
        meta::v1::ListMeta,
        meta::v1::Status,
    ];
    generator
}

/// The word for a schema that is not an object with properties; see `orch_api::schema`.
fn shape(schema: &Value, definitions: &Map<String, Value>) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.trim_start_matches("#/definitions/").replace("~1", "/");
        return match name.rsplit('.').next().unwrap_or_default() {
            "Quantity" => "quantity".into(),
            "IntOrString" => "intorstring".into(),
            "Time" => "time".into(),
            "MicroTime" => "microtime".into(),
            "RawExtension" | "FieldsV1" => "any".into(),
            _ if definitions[&name].get("properties").is_some() => name,
            _ => shape(&definitions[&name], definitions),
        };
    }
    if let Some([only]) = schema["allOf"].as_array().map(Vec::as_slice) {
        return shape(only, definitions);
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("string"), Some("byte")) => "bytes".into(),
        (Some("string"), Some("date-time")) => "time".into(),
        (Some("string"), _) => "string".into(),
        (Some("integer"), Some("int64")) => "int64".into(),
        (Some("integer"), _) => "int32".into(),
        (Some("number"), _) => "number".into(),
        (Some("boolean"), _) => "bool".into(),
        (Some("array"), _) => format!("[]{}", shape(&schema["items"], definitions)),
        (Some("object"), _) if schema.get("additionalProperties").is_some() => {
            format!("{{}}{}", shape(&schema["additionalProperties"], definitions))
        }
        _ => "any".into(),
    }
}

fn main() -> std::io::Result<()> {
    let mut generator = generator();
    let definitions: Map<String, Value> = generator.take_definitions(true).into_iter().collect();
    let sorted: BTreeMap<&String, &Value> = definitions.iter().collect();
    let mut out = String::from(
        "# Kubernetes v1.36 types, written by examples/generate_schemas.rs. \"!\" marks required fields.\n",
    );
    for (name, schema) in sorted {
        let Some(properties) = schema["properties"].as_object() else {
            continue;
        };
        let _ = writeln!(out, "{name}");
        let required: Vec<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let properties: BTreeMap<&String, &Value> = properties.iter().collect();
        for (field, schema) in properties {
            let mark = if required.contains(&field.as_str()) {
                "!"
            } else {
                ""
            };
            let _ = writeln!(out, " {field}{mark} {}", shape(schema, &definitions));
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/v1.36.txt");
    std::fs::write(path, out)
}
