//! Who a request comes from.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The group of everyone who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user name of everyone who did not prove who they are.
pub const ANONYMOUS: &str = "system:anonymous";
/// What a service account's user name starts with: `system:serviceaccount:NAMESPACE:NAME`.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// What a node's user name starts with.
pub const NODE_PREFIX: &str = "system:node:";

/// A user, as in `authentication.k8s.io/v1` `UserInfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user name.
    pub name: String,
    /// Tells apart users that had the same name at different times; empty when unknown.
    pub uid: String,
    /// The groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user who proved who they are.
    #[must_use]
    pub fn authenticated(name: &str, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups
            .into_iter()
            .filter(|group| group != AUTHENTICATED)
            .collect();
        groups.push(AUTHENTICATED.to_owned());
        Self {
            name: name.to_owned(),
            uid: String::new(),
            groups,
            extra: BTreeMap::new(),
        }
    }

    /// A user who did not.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            extra: BTreeMap::new(),
        }
    }

    /// The scheduler that runs in this process.
    #[must_use]
    pub fn scheduler() -> Self {
        Self::authenticated("system:kube-scheduler", [])
    }

    /// The controllers that run in this process.
    #[must_use]
    pub fn controller_manager() -> Self {
        Self::authenticated("system:kube-controller-manager", [])
    }

    /// The API server itself, for what it creates on start.
    #[must_use]
    pub fn apiserver() -> Self {
        Self::authenticated("system:apiserver", [crate::pki::SYSTEM_MASTERS.to_owned()])
    }

    /// Whether the user is in `group`.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node whose agent this is; `None` for everyone else.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.name
            .strip_prefix(NODE_PREFIX)
            .filter(|_| self.is_in(crate::pki::SYSTEM_NODES))
    }

    /// As `UserInfo`.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut info = Map::new();
        info.insert("username".into(), json!(self.name));
        if !self.uid.is_empty() {
            info.insert("uid".into(), json!(self.uid));
        }
        info.insert("groups".into(), json!(self.groups));
        if !self.extra.is_empty() {
            info.insert("extra".into(), json!(self.extra));
        }
        Value::Object(info)
    }
}
