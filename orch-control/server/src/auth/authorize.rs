//! Whether a request may happen: one small typed authorizer, asked by the object path and by access reviews alike.
//!
//! In order: `system:masters` may do everything; nobody else may impersonate; the API server's own scheduler and
//! controllers may do everything but that; nodes what
//! [`super::node`] says; everyone who proved who they are may use discovery, `/version` and reviews about
//! themselves; everyone may ask for health and version. All else is refused. RBAC objects are not evaluated yet.

use std::fmt;

use orch_api::ApiError;

use super::{
    identity::{AUTHENTICATED, Identity},
    impersonate::IMPERSONATE,
    node::{self, NodeGraph},
};
use crate::{pki::SYSTEM_MASTERS, state::State};

/// What is asked, as in `authorization.k8s.io/v1` `SubjectAccessReviewSpec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// An API resource.
    Resource {
        /// E.g. `get`.
        verb: String,
        /// Empty for the core group.
        group: String,
        /// The plural.
        resource: String,
        /// Empty for the resource itself.
        subresource: String,
        /// Empty for cluster-scoped resources and all namespaces.
        namespace: String,
        /// Empty for collections.
        name: String,
        /// The field selector of a list, watch or deletecollection as sent; empty without.
        field_selector: String,
    },
    /// Any other path.
    Path {
        /// The lower-case HTTP method.
        verb: String,
        /// E.g. `/healthz`.
        path: String,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may happen; why.
    Allowed(&'static str),
    /// It may not; why, or empty when simply nothing allows it.
    Refused(String),
}

impl Decision {
    /// Refused, because nothing allows it.
    pub(crate) fn nothing() -> Self {
        Self::Refused(String::new())
    }
}

/// Decides.
#[must_use]
pub fn decide(user: &Identity, attributes: &Attributes, graph: &dyn NodeGraph) -> Decision {
    if user.is_in(SYSTEM_MASTERS) {
        return Decision::Allowed("system:masters may do everything");
    }
    if matches!(attributes, Attributes::Resource { verb, .. } if verb == IMPERSONATE) {
        return Decision::nothing();
    }
    if matches!(
        user.name.as_str(),
        "system:kube-scheduler" | "system:kube-controller-manager"
    ) {
        return Decision::Allowed("it is part of the control plane");
    }
    if open_to_all(attributes) || (user.is_in(AUTHENTICATED) && open_to_authenticated(attributes)) {
        return Decision::Allowed("it is open to everyone who proved who they are");
    }
    match user.node() {
        Some(node) => node::decide(node, attributes, graph),
        None => Decision::nothing(),
    }
}

/// Decides, and words the refusal as clients know it.
///
/// # Errors
/// 403.
pub(crate) fn authorise(state: &State, user: &Identity, attributes: &Attributes) -> Result<(), ApiError> {
    let Decision::Refused(reason) = decide(user, attributes, state) else {
        return Ok(());
    };
    let mut detail = format!("User {:?} cannot {attributes}", user.name);
    if !reason.is_empty() {
        detail = format!("{detail}: {reason}");
    }
    Err(match attributes {
        Attributes::Resource {
            group,
            resource,
            name,
            ..
        } => ApiError::forbidden_resource(group, resource, name, &detail),
        Attributes::Path { .. } => ApiError::forbidden_resource("", "", "", &detail),
    })
}

fn open_to_all(attributes: &Attributes) -> bool {
    let Attributes::Path { verb, path } = attributes else {
        return false;
    };
    matches!(verb.as_str(), "get" | "head")
        && (["/healthz", "/livez", "/readyz", "/version", "/version/"].contains(&path.as_str())
            || path.starts_with("/livez/")
            || path.starts_with("/readyz/"))
}

fn open_to_authenticated(attributes: &Attributes) -> bool {
    match attributes {
        Attributes::Path { verb, path } => {
            let prefixed = ["/api/", "/apis/", "/openapi/", "/openid/"]
                .iter()
                .any(|prefix| path.starts_with(prefix));
            let exact =
                ["/api", "/apis", "/openapi", "/.well-known/openid-configuration"].contains(&path.as_str());
            matches!(verb.as_str(), "get" | "head") && (prefixed || exact)
        }
        Attributes::Resource {
            verb,
            group,
            resource,
            subresource,
            ..
        } => {
            verb == "create"
                && subresource.is_empty()
                && matches!(
                    (group.as_str(), resource.as_str()),
                    ("authentication.k8s.io", "selfsubjectreviews")
                        | (
                            "authorization.k8s.io",
                            "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
                        )
                )
        }
    }
}

impl Attributes {
    /// `resource` or `resource/subresource`; empty for a path.
    #[must_use]
    pub fn full_resource(&self) -> String {
        match self {
            Self::Resource {
                resource,
                subresource,
                ..
            } if !subresource.is_empty() => {
                format!("{resource}/{subresource}")
            }
            Self::Resource { resource, .. } => resource.clone(),
            Self::Path { .. } => String::new(),
        }
    }
}

/// Completes `User "x" cannot ...`, in the words that clients know.
impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { verb, path } => write!(f, "{verb} path {path:?}"),
            Self::Resource {
                verb,
                group,
                namespace,
                ..
            } => {
                write!(
                    f,
                    "{verb} resource {:?} in API group {group:?} ",
                    self.full_resource()
                )?;
                if namespace.is_empty() {
                    f.write_str("at the cluster scope")
                } else {
                    write!(f, "in the namespace {namespace:?}")
                }
            }
        }
    }
}
