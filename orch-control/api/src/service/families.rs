//! Which address families a Service has, given what it asks for and what the cluster has.

use serde_json::{Value, json};

use super::{Family, families, is_headless, needs_cluster_ip, same, service_type};
use crate::field::{FieldError, Path};
use crate::validation::service::cluster_ips as valid;
use crate::value::{child_mut, is_empty, list, text};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// Fills in `ipFamilyPolicy` and `ipFamilies`, and shortens them and `clusterIPs` where an update gives up the second
/// family. `configured` are the cluster's families, the primary one first.
///
/// # Errors
/// What the cluster cannot give, or fields that contradict one another, as Kubernetes words it. When there are any,
/// the Service is half done and not to be used.
pub fn settle_families(service: &mut Value, old: Option<&Value>, configured: &[Family]) -> Vec<FieldError> {
    if !needs_cluster_ip(service) || is_untouched_preference(service, old) {
        return Vec::new();
    }
    let selectorless = service["spec"]["selector"]
        .as_object()
        .is_none_or(serde_json::Map::is_empty);
    let free_choice = is_headless(service) && selectorless;
    if is_empty(&service["spec"]["ipFamilyPolicy"]) {
        let before = old.map(|old| text(old, &["spec", "ipFamilyPolicy"]));
        let policy = match before.filter(|p| !p.is_empty()) {
            Some(before) => before,
            None if free_choice => REQUIRE,
            None => SINGLE,
        };
        child_mut(service, "spec").insert("ipFamilyPolicy".to_owned(), json!(policy));
    }
    let mut errors = valid(service);
    if !errors.is_empty() {
        return errors;
    }
    let policy = text(service, &["spec", "ipFamilyPolicy"]).to_owned();
    let path = Path::new("spec").child("ipFamilyPolicy");
    if let Some(old) = old {
        give_up_second(service, old, &policy, &path, &mut errors);
    }
    if policy == SINGLE {
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if list(service, &["spec", field]).len() == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(FieldError::invalid(&path, SINGLE, why));
            }
        }
    }
    infer_from_addresses(service, configured, &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    if !free_choice {
        // Who brings the endpoints of a headless Service may have families that the cluster's Services have not.
        if policy == REQUIRE && configured.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(&path, REQUIRE, why));
        }
        for (i, family) in families(service).enumerate() {
            if !configured.contains(&family) {
                let path = Path::new("spec").child("ipFamilies").index(i);
                errors.push(FieldError::invalid(
                    &path,
                    family.as_str(),
                    "not configured on this cluster",
                ));
            }
        }
        if !errors.is_empty() {
            return errors;
        }
    }
    let mut wanted: Vec<Family> = families(service).collect();
    if wanted.is_empty() {
        wanted.extend(configured.first());
    }
    if let [only] = wanted[..]
        && policy != SINGLE
        && (free_choice || configured.len() == 2)
    {
        wanted.push(only.other());
    }
    set_families(service, &wanted);
    errors
}

/// A Service that prefers two families and is written back as it was keeps what it has, even when the cluster has
/// got or lost a family meanwhile: going from one to two takes an explicit word.
fn is_untouched_preference(service: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return false };
    let prefers = |s: &Value| text(s, &["spec", "ipFamilyPolicy"]) == PREFER;
    service_type(old) == service_type(service)
        && prefers(service)
        && prefers(old)
        && same(service, old, "clusterIPs")
        && same(service, old, "ipFamilies")
}

/// From two families to one: either the policy says so and the lists follow, or the lists do without leave.
fn give_up_second(service: &mut Value, old: &Value, policy: &str, path: &Path, errors: &mut Vec<FieldError>) {
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (now, before) = (
            list(service, &["spec", field]).len(),
            list(old, &["spec", field]).len(),
        );
        if policy == SINGLE {
            if now > 1 && same(service, old, field) {
                let first = service["spec"][field][0].clone();
                child_mut(service, "spec").insert(field.to_owned(), json!([first]));
            }
        } else if now > 0 && now < before {
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid(path, policy, why));
        }
    }
}

/// Addresses that are asked for by name say which family they are of.
fn infer_from_addresses(service: &mut Value, configured: &[Family], errors: &mut Vec<FieldError>) {
    let mut wanted: Vec<Family> = families(service).collect();
    let given = wanted.len();
    let addresses = list(service, &["spec", "clusterIPs"]);
    for (i, ip) in addresses.iter().enumerate().skip(given) {
        let Some(ip) = ip.as_str().and_then(|ip| ip.parse().ok()) else {
            break;
        };
        let family = Family::of(ip);
        if configured.contains(&family) {
            wanted.push(family);
        } else {
            errors.push(FieldError::invalid(
                &Path::new("spec").child("clusterIPs").index(i),
                service["spec"]["clusterIPs"].clone(),
                format!("{family} is not configured on this cluster"),
            ));
        }
    }
    if wanted.len() > given {
        set_families(service, &wanted);
    }
}

fn set_families(service: &mut Value, wanted: &[Family]) {
    let names: Vec<&str> = wanted.iter().map(|f| f.as_str()).collect();
    child_mut(service, "spec").insert("ipFamilies".to_owned(), json!(names));
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: &[Family] = &[Family::V4];
    const BOTH: &[Family] = &[Family::V4, Family::V6];
    const SIX_FIRST: &[Family] = &[Family::V6, Family::V4];

    #[track_caller]
    fn settles(spec: Value, configured: &[Family], policy: &str, families: &[&str]) {
        let mut service = json!({ "spec": spec });
        assert_eq!(settle_families(&mut service, None, configured), []);
        assert_eq!(service["spec"]["ipFamilyPolicy"], policy);
        assert_eq!(service["spec"]["ipFamilies"], json!(families));
    }

    #[track_caller]
    fn refused(spec: Value, old: Option<Value>, configured: &[Family], want: &[&str]) {
        let mut service = json!({ "spec": spec });
        let old = old.map(|spec| json!({ "spec": spec }));
        let got: Vec<String> = settle_families(&mut service, old.as_ref(), configured)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn new_services_get_what_they_ask_for_and_the_cluster_has() {
        settles(json!({}), FOUR, SINGLE, &["IPv4"]);
        settles(json!({}), SIX_FIRST, SINGLE, &["IPv6"]);
        settles(json!({ "ipFamilyPolicy": PREFER }), FOUR, PREFER, &["IPv4"]);
        settles(
            json!({ "ipFamilyPolicy": PREFER }),
            BOTH,
            PREFER,
            &["IPv4", "IPv6"],
        );
        settles(
            json!({ "ipFamilyPolicy": REQUIRE, "ipFamilies": ["IPv6"] }),
            BOTH,
            REQUIRE,
            &["IPv6", "IPv4"],
        );
        settles(json!({ "ipFamilies": ["IPv6"] }), BOTH, SINGLE, &["IPv6"]);
        settles(
            json!({ "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"] }),
            BOTH,
            SINGLE,
            &["IPv6"],
        );
        settles(
            json!({ "ipFamilyPolicy": PREFER, "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"] }),
            BOTH,
            PREFER,
            &["IPv6", "IPv4"],
        );
    }

    #[test]
    fn headless_services_without_selector_may_have_any_families() {
        let headless = |more: Value| {
            let mut spec = json!({ "clusterIP": "None", "clusterIPs": ["None"] });
            for (key, value) in more.as_object().unwrap() {
                spec[key] = value.clone();
            }
            spec
        };
        settles(headless(json!({})), FOUR, REQUIRE, &["IPv4", "IPv6"]);
        settles(headless(json!({})), SIX_FIRST, REQUIRE, &["IPv6", "IPv4"]);
        settles(
            headless(json!({ "ipFamilyPolicy": PREFER })),
            FOUR,
            PREFER,
            &["IPv4", "IPv6"],
        );
        settles(
            headless(json!({ "ipFamilyPolicy": SINGLE, "ipFamilies": ["IPv6"] })),
            FOUR,
            SINGLE,
            &["IPv6"],
        );
        settles(
            headless(json!({ "selector": { "a": "b" } })),
            FOUR,
            SINGLE,
            &["IPv4"],
        );
        settles(
            headless(json!({ "selector": { "a": "b" }, "ipFamilyPolicy": PREFER })),
            BOTH,
            PREFER,
            &["IPv4", "IPv6"],
        );
    }

    #[test]
    fn what_the_cluster_has_not_is_refused() {
        refused(
            json!({ "ipFamilyPolicy": REQUIRE }),
            None,
            FOUR,
            &[
                r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#,
            ],
        );
        refused(
            json!({ "ipFamilies": ["IPv6"] }),
            None,
            FOUR,
            &[r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#],
        );
        refused(
            json!({ "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"] }),
            None,
            FOUR,
            &[r#"spec.clusterIPs[0]: Invalid value: ["fd00::9"]: IPv6 is not configured on this cluster"#],
        );
        refused(
            json!({ "ipFamilies": ["IPv4", "IPv6"] }),
            None,
            BOTH,
            &[
                r#"spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"#,
            ],
        );
    }

    fn dual() -> Value {
        json!({ "ipFamilyPolicy": PREFER, "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9", "fd00::9"] })
    }

    #[test]
    fn a_second_family_comes_and_goes_on_request_only() {
        let old = json!({ "spec": dual() });
        let mut new = old.clone();
        new["spec"]["ipFamilyPolicy"] = json!(SINGLE);
        assert_eq!(settle_families(&mut new, Some(&old), BOTH), []);
        assert_eq!(new["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.9"]));
        let single = new.clone();
        new["spec"]["ipFamilyPolicy"] = json!(REQUIRE);
        assert_eq!(settle_families(&mut new, Some(&single), BOTH), []);
        assert_eq!(new["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        // Written back as it was, it stays as it was, whatever the cluster has become.
        let mut same = old.clone();
        assert_eq!(settle_families(&mut same, Some(&old), FOUR), []);
        assert_eq!(same, old);
        let mut shorter = dual();
        shorter["clusterIPs"] = json!(["10.0.0.9"]);
        refused(
            shorter,
            Some(dual()),
            BOTH,
            &[
                r#"spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be 'SingleStack' to release the secondary cluster IP"#,
            ],
        );
    }
}
