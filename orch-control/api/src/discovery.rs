//! Discovery documents: what is served, in the legacy form and in the aggregated one.

use serde_json::{Map, Value, json};

use crate::kind::{Kind, Subresource};
use crate::kinds::KINDS;

/// `/api`: `APIVersions`. `server_address` is `host:port` as clients reach it.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// The named groups with their versions, in the order of the table; without the core group.
fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in KINDS.iter().filter(|k| !k.group.is_empty()) {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) if versions.contains(&kind.version) => {}
            Some((_, versions)) => versions.push(kind.version),
            None => groups.push((kind.group, vec![kind.version])),
        }
    }
    groups
}

/// Every (group, version) that is served, the core group first.
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let named = groups()
        .into_iter()
        .flat_map(|(group, versions)| versions.into_iter().map(move |v| (group, v)));
    [("", "v1")].into_iter().chain(named).collect()
}

fn group_document(group: &str, versions: &[&str]) -> Map<String, Value> {
    let version = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let mut document = Map::new();
    document.insert("name".to_owned(), group.into());
    document.insert("versions".to_owned(), versions.iter().map(version).collect());
    document.insert(
        "preferredVersion".to_owned(),
        versions.first().map_or(Value::Null, version),
    );
    document
}

/// `/apis`: `APIGroupList`.
pub fn api_groups() -> Value {
    let groups: Vec<Value> = groups()
        .iter()
        .map(|(group, versions)| Value::Object(group_document(group, versions)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`: `APIGroup`.
pub fn api_group(group: &str) -> Option<Value> {
    let (group, versions) = groups().into_iter().find(|(name, _)| *name == group)?;
    let mut document = group_document(group, &versions);
    document.insert("kind".to_owned(), "APIGroup".into());
    document.insert("apiVersion".to_owned(), "v1".into());
    Some(Value::Object(document))
}

fn kinds_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    KINDS
        .iter()
        .filter(move |k| k.group == group && k.version == version)
}

/// `/api/v1`, `/apis/GROUP/VERSION`: `APIResourceList`.
pub fn resources(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds_of(group, version) {
        let mut resource = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs(),
        });
        for (key, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
            if !names.is_empty() {
                resource[key] = json!(names);
            }
        }
        if kind.is_stored() {
            resource["storageVersionHash"] = json!(storage_version_hash(kind.stored_kind()));
        }
        resources.push(resource);
        resources.extend(kind.subresources.iter().map(|s| subresource(kind, *s)));
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }))
}

fn subresource(parent: &Kind, subresource: Subresource) -> Value {
    let (group, version, kind) = subresource.gvk(parent);
    let mut resource = json!({
        "name": format!("{}/{}", parent.plural, subresource.name()),
        "singularName": "",
        "namespaced": parent.namespaced,
        "kind": kind,
        "verbs": subresource.verbs(),
    });
    if (group, version) != (parent.group, parent.version) {
        resource["group"] = group.into();
        resource["version"] = version.into();
    }
    resource
}

/// A text that changes when the stored form does.
fn storage_version_hash(stored: &Kind) -> String {
    use base64::Engine as _;
    let text = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
    base64::engine::general_purpose::STANDARD.encode(crate::value::hash(&text).to_be_bytes())
}

/// `/api` in the aggregated form (`apidiscovery.k8s.io/v2` APIGroupDiscoveryList).
pub fn aggregated_api() -> Value {
    aggregated(&[("", vec!["v1"])])
}

/// `/apis` in the aggregated form (`apidiscovery.k8s.io/v2` APIGroupDiscoveryList).
pub fn aggregated_apis() -> Value {
    aggregated(&groups())
}

fn aggregated(groups: &[(&str, Vec<&str>)]) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = kinds_of(group, version).map(aggregated_resource).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({})
            } else {
                json!({"name": group})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(kind: &'static Kind) -> Value {
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": gvk(kind.group, kind.version, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs(),
    });
    for (key, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
        if !names.is_empty() {
            resource[key] = json!(names);
        }
    }
    if !kind.subresources.is_empty() {
        resource["subresources"] = kind
            .subresources
            .iter()
            .map(|s| {
                let (group, version, name) = s.gvk(kind);
                json!({"subresource": s.name(), "responseKind": gvk(group, version, name), "verbs": s.verbs()})
            })
            .collect();
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_discovered_in_both_forms() {
        for kind in KINDS {
            let list = resources(kind.group, kind.version).unwrap();
            let find = |name: &str| {
                list["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|r| r["name"] == *name)
            };
            let resource = find(kind.plural).unwrap_or_else(|| panic!("{kind:?}"));
            assert_eq!(resource["kind"], kind.kind);
            for s in kind.subresources {
                assert!(
                    find(&format!("{}/{}", kind.plural, s.name())).is_some(),
                    "{kind:?} {s:?}"
                );
            }
            let aggregated = if kind.group.is_empty() {
                aggregated_api()
            } else {
                aggregated_apis()
            };
            let found = aggregated["items"].as_array().unwrap().iter().any(|group| {
                group["metadata"]["name"].as_str().unwrap_or("") == kind.group
                    && group["versions"][0]["resources"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|r| r["resource"] == kind.plural)
            });
            assert!(found, "{kind:?}");
        }
        assert!(resources("apps", "v2").is_none() && api_group("nope").is_none());
        assert_eq!(
            api_group("apps").unwrap()["preferredVersion"]["groupVersion"],
            "apps/v1"
        );
        assert_eq!(group_versions()[0], ("", "v1"));
    }
}
