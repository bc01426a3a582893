//! Impersonation: the headers `Impersonate-*`, by which whoever may acts as somebody else.
//!
//! Their meaning is documented with Kubernetes' authentication ("User impersonation"): each part of the wanted
//! identity is authorised by itself, with the verb `impersonate`, as the user who asks.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use orch_api::{
    ApiError,
    validation::names::{dns_label_faults, dns_subdomain_faults},
};
use percent_encoding::percent_decode_str;

use super::{
    authorize::{Attributes, authorise},
    identity::{ANONYMOUS, AUTHENTICATED, Identity, SERVICE_ACCOUNT_PREFIX, UNAUTHENTICATED},
};
use crate::state::State;

/// The verb that is authorised.
pub const IMPERSONATE: &str = "impersonate";
/// The API group of what is only ever impersonated.
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
/// What all of the headers start with.
const PREFIX: &str = "impersonate-";
const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
/// Followed by the key, percent-encoded where header names do not allow it.
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Who the request acts as: `asking`, unless its headers name somebody else whom `asking` may impersonate. Takes the
/// headers out, so that nothing behind the API server acts on them again.
///
/// # Errors
/// 400 when groups, uid or extra are wanted without a user, 403 when `asking` may not impersonate all that is wanted.
pub fn act_as(
    state: &State,
    asking: Arc<Identity>,
    headers: &mut HeaderMap,
) -> Result<Arc<Identity>, ApiError> {
    let Some(wanted) = Wanted::take(headers)? else {
        return Ok(asking);
    };
    for attributes in wanted.attributes() {
        authorise(state, &asking, &attributes)?;
    }
    tracing::debug!(user = asking.name, acts_as = wanted.user, "impersonation");
    Ok(Arc::new(wanted.identity()))
}

/// The identity that the headers ask for, in parts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    /// Takes the headers out of `headers`; `None` when there are none that ask for anything.
    fn take(headers: &mut HeaderMap) -> Result<Option<Self>, ApiError> {
        let names: Vec<HeaderName> = headers
            .keys()
            .filter(|name| name.as_str().starts_with(PREFIX))
            .cloned()
            .collect();
        let mut wanted = Self::default();
        for name in names {
            let values = headers.get_all(&name).iter().map(|value| text(&name, value));
            let values = values.collect::<Result<Vec<String>, _>>()?;
            headers.remove(&name);
            let first = || values.first().cloned().unwrap_or_default();
            match name.as_str() {
                USER => wanted.user = first(),
                UID => wanted.uid = first(),
                GROUP => wanted.groups = values,
                other => {
                    if let Some(key) = other.strip_prefix(EXTRA_PREFIX) {
                        wanted.extra.entry(extra_key(key)).or_default().extend(values);
                    }
                }
            }
        }
        if !wanted.user.is_empty() {
            return Ok(Some(wanted));
        }
        if wanted == Self::default() {
            return Ok(None);
        }
        Err(ApiError::bad_request(
            "requested groups, uid or extra fields without impersonating a user",
        ))
    }

    /// Namespace and name, when the user is a service account.
    fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
        (dns_label_faults(namespace).is_empty() && dns_subdomain_faults(name).is_empty())
            .then_some((namespace, name))
    }

    /// All that must be allowed.
    fn attributes(&self) -> Vec<Attributes> {
        let one =
            |group: &str, resource: &str, part: &str, namespace: &str, name: &str| Attributes::Resource {
                verb: IMPERSONATE.to_owned(),
                group: group.to_owned(),
                resource: resource.to_owned(),
                subresource: part.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                field_selector: String::new(),
            };
        let mut all = vec![match self.service_account() {
            Some((namespace, name)) => one("", "serviceaccounts", "", namespace, name),
            None => one("", "users", "", "", &self.user),
        }];
        all.extend(self.groups.iter().map(|group| one("", "groups", "", "", group)));
        for (key, values) in &self.extra {
            let value = |value: &String| one(AUTHENTICATION_GROUP, "userextras", key, "", value);
            all.extend(values.iter().map(value));
        }
        if !self.uid.is_empty() {
            all.push(one(AUTHENTICATION_GROUP, "uids", "", "", &self.uid));
        }
        all
    }

    /// The groups are as given, or those of the service account; and everyone but the anonymous user is
    /// authenticated, unless the given groups say themselves what the user is.
    fn identity(self) -> Identity {
        let mut groups = match self.service_account() {
            Some((namespace, _)) if self.groups.is_empty() => service_account_groups(namespace).into(),
            _ => self.groups,
        };
        let proved = if self.user == ANONYMOUS {
            UNAUTHENTICATED
        } else {
            AUTHENTICATED
        };
        if !groups
            .iter()
            .any(|group| matches!(group.as_str(), AUTHENTICATED | UNAUTHENTICATED))
        {
            groups.push(proved.to_owned());
        }
        Identity {
            name: self.user,
            uid: self.uid,
            groups,
            extra: self.extra,
        }
    }
}

/// The groups of every service account of `namespace`.
pub(super) fn service_account_groups(namespace: &str) -> [String; 2] {
    [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

fn text(name: &HeaderName, value: &HeaderValue) -> Result<String, ApiError> {
    String::from_utf8(value.as_bytes().to_vec())
        .map_err(|_| ApiError::bad_request(format!("the header {name} is not valid UTF-8")))
}

/// The key that a header's name encodes; taken literally when that is no valid encoding.
fn extra_key(encoded: &str) -> String {
    percent_decode_str(encoded)
        .decode_utf8()
        .map_or_else(|_| encoded.to_owned(), |key| key.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in of {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn identity(of: &[(&'static str, &str)]) -> Identity {
        Wanted::take(&mut headers(of)).unwrap().unwrap().identity()
    }

    #[test]
    fn groups_are_as_given_or_follow_from_the_user() {
        let sa = "system:serviceaccount:ns:app";
        for (given, groups) in [
            (vec![(USER, "bob")], vec![AUTHENTICATED]),
            (
                vec![(USER, "bob"), (GROUP, "dev"), (GROUP, "ops")],
                vec!["dev", "ops", AUTHENTICATED],
            ),
            (vec![(USER, "bob"), (GROUP, AUTHENTICATED)], vec![AUTHENTICATED]),
            (
                vec![(USER, "bob"), (GROUP, UNAUTHENTICATED)],
                vec![UNAUTHENTICATED],
            ),
            (vec![(USER, ANONYMOUS)], vec![UNAUTHENTICATED]),
            (
                vec![(USER, sa)],
                vec![
                    "system:serviceaccounts",
                    "system:serviceaccounts:ns",
                    AUTHENTICATED,
                ],
            ),
            (vec![(USER, sa), (GROUP, "dev")], vec!["dev", AUTHENTICATED]),
            // No name of a service account: a user like any other.
            (vec![(USER, "system:serviceaccount:ns:a:b")], vec![AUTHENTICATED]),
        ] {
            assert_eq!(identity(&given).groups, groups, "{given:?}");
        }
    }

    #[test]
    fn uid_and_extra_are_taken_and_nothing_is_left() {
        let mut headers = headers(&[
            (USER, "bob"),
            (UID, "u-1"),
            ("impersonate-extra-example.org%2fproject", "a"),
            ("impersonate-extra-example.org%2fproject", "b"),
            ("impersonate-unknown", "x"),
            ("accept", "*/*"),
        ]);
        let wanted = Wanted::take(&mut headers).unwrap().unwrap();
        let names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["accept"]);
        let asked: Vec<String> = wanted.attributes().iter().map(ToString::to_string).collect();
        let extra = r#"impersonate resource "userextras/example.org/project" in API group "authentication.k8s.io" at the cluster scope"#;
        assert_eq!(
            asked,
            [
                r#"impersonate resource "users" in API group "" at the cluster scope"#,
                extra,
                extra,
                r#"impersonate resource "uids" in API group "authentication.k8s.io" at the cluster scope"#,
            ]
        );
        let bob = wanted.identity();
        assert_eq!((bob.name.as_str(), bob.uid.as_str()), ("bob", "u-1"));
        assert_eq!(bob.extra["example.org/project"], ["a", "b"]);
    }

    #[test]
    fn a_user_must_be_named() {
        assert_eq!(Wanted::take(&mut headers(&[("accept", "*/*")])).unwrap(), None);
        for part in [GROUP, UID, "impersonate-extra-a"] {
            assert_eq!(
                Wanted::take(&mut headers(&[(part, "x")])).unwrap_err().code(),
                400,
                "{part}"
            );
        }
    }
}
