//! Checks objects against the types of Kubernetes: unknown fields, wrong types, canonical quantities.

mod check;
pub mod definitions;
pub(crate) mod numbers;

use serde_json::Value;

use crate::kind::split_api_version;
use crate::{ApiError, Kind};

/// What to do about unknown and duplicate fields (the `fieldValidation` parameter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and warn.
    Warn,
    /// Refuse the request.
    Strict,
}

impl FieldValidation {
    /// Reads the parameter; absent or empty means Warn.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(ApiError::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
            ))),
        }
    }
}

/// [`check_body`] without findings from decoding.
pub fn check(kind: &Kind, obj: &mut Value, mode: FieldValidation) -> Result<Vec<String>, ApiError> {
    check_body(kind, obj, mode, &[])
}

/// Checks the types of `obj`'s fields, removes unknown fields and puts quantities into canonical form.
///
/// `findings` are the duplicate fields that [`crate::decode::decode`] saw: they are treated as unknown
/// fields are. Answers the warnings to give (only under [`FieldValidation::Warn`]).
pub fn check_body(
    kind: &Kind,
    obj: &mut Value,
    mode: FieldValidation,
    findings: &[String],
) -> Result<Vec<String>, ApiError> {
    check_named(kind.schema, kind.kind, kind.version, obj, mode, findings)
}

/// [`check_body`] for a body whose type is not a kind of the table, e.g. `io.k8s.api.policy.v1.Eviction`.
pub fn check_definition(
    definition: &str,
    obj: &mut Value,
    mode: FieldValidation,
    findings: &[String],
) -> Result<Vec<String>, ApiError> {
    let version = obj["apiVersion"]
        .as_str()
        .map(|v| split_api_version(v).1.to_owned());
    let version = version.unwrap_or_else(|| "v1".to_owned());
    check_named(
        definition,
        definitions::short(definition),
        &version,
        obj,
        mode,
        findings,
    )
}

fn check_named(
    definition: &str,
    kind: &str,
    version: &str,
    obj: &mut Value,
    mode: FieldValidation,
    findings: &[String],
) -> Result<Vec<String>, ApiError> {
    let refuse = |why: &str| {
        ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
        ))
    };
    let definition = definitions::definition(definition)
        .ok_or_else(|| ApiError::internal(format!("no schema is known for {definition}")))?;
    let mut unknown = findings.to_vec();
    unknown.extend(check::object(definition, obj).map_err(|e| refuse(&e.to_string()))?);
    match mode {
        _ if unknown.is_empty() => Ok(unknown),
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(unknown),
        FieldValidation::Strict => Err(refuse(&format!("strict decoding error: {}", unknown.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> &'static Kind {
        Kind::find("apps", "v1", "deployments").unwrap()
    }

    #[track_caller]
    fn refused(mut obj: Value, why: &str) {
        let error = check(deployment(), &mut obj, FieldValidation::Strict).unwrap_err();
        assert_eq!(error.code(), 400);
        let prefix = "Deployment in version \"v1\" cannot be handled as a Deployment: ";
        assert_eq!(error.message(), format!("{prefix}{why}"));
    }

    #[test]
    fn wrong_types_are_told_as_go_tells_them() {
        let template = |c: Value| json!({"spec": {"template": {"spec": {"containers": c}}}});
        refused(
            json!({"spec": {"replicas": "three"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
        refused(
            json!({"spec": {"replicas": 4_000_000_000_i64}}),
            "json: cannot unmarshal number 4000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
        refused(
            json!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        );
        refused(
            template(json!({"name": "x"})),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        );
        refused(
            template(json!([{"resources": {"limits": {"cpu": "lots"}}}])),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        );
        refused(
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#,
        );
    }

    #[test]
    fn unknown_fields_are_refused_warned_about_or_dropped() {
        let obj =
            json!({"spec": {"foo": 1, "template": {"spec": {"containers": [{"name": "a"}, {"bar": 2}]}}}});
        refused(
            obj.clone(),
            r#"strict decoding error: unknown field "spec.foo", unknown field "spec.template.spec.containers[1].bar""#,
        );
        let mut pruned = obj.clone();
        let warnings = check(deployment(), &mut pruned, FieldValidation::Warn).unwrap();
        assert_eq!(warnings.len(), 2);
        assert_eq!(
            pruned,
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}, {}]}}}})
        );
        let mut pruned = obj;
        assert!(
            check(deployment(), &mut pruned, FieldValidation::Ignore)
                .unwrap()
                .is_empty()
        );
        assert!(pruned["spec"].get("foo").is_none());
    }

    #[test]
    fn a_condition_without_its_time_has_gos_zero_time() {
        let services = Kind::find("", "v1", "services").unwrap();
        for time in [json!({}), json!({"lastTransitionTime": null})] {
            let mut condition = json!({"type": "a", "status": "True", "reason": "b", "message": "c"});
            condition
                .as_object_mut()
                .unwrap()
                .extend(time.as_object().unwrap().clone());
            let mut service = json!({"metadata": {"name": "s"}, "status": {"conditions": [condition]}});
            check(services, &mut service, FieldValidation::Strict).unwrap();
            let time = &service["status"]["conditions"][0]["lastTransitionTime"];
            assert_eq!(time, "0001-01-01T00:00:00Z");
            assert_eq!(service["metadata"], json!({"name": "s"}));
        }
    }

    #[test]
    fn quantities_become_canonical_and_nulls_go() {
        let pods = Kind::find("", "v1", "pods").unwrap();
        let mut pod = json!({"metadata": {"creationTimestamp": null}, "spec": {"containers": [
            {"resources": {"limits": {"cpu": 0.5, "memory": "1024Ki"}}}]}});
        check(pods, &mut pod, FieldValidation::Strict).unwrap();
        let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
        assert_eq!(limits, &json!({"cpu": "500m", "memory": "1Mi"}));
        assert_eq!(pod["metadata"], json!({}));
    }
}
