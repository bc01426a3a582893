//! Admission: what the cluster adds to an object, and refuses, before it is validated and stored.
//!
//! A fixed list of plug-ins, compiled in, in the order in which Kubernetes runs those of the same names.

mod default_ingress_class;
mod default_toleration_seconds;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod service_account;
mod service_allocation;

use orch_api::{ApiError, Subresource};
use serde_json::Value;

use crate::{object::Call, services::allocate::Reservation};

/// What is about to happen to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is new.
    Create,
    /// It changes.
    Update,
}

/// A write on its way to the store.
pub struct Attempt<'a> {
    /// The request.
    pub call: &'a Call,
    /// What it does.
    pub operation: Operation,
    /// Through which subresource.
    pub subresource: Option<Subresource>,
    /// The object as it would be stored.
    pub object: &'a mut Value,
    /// The object before; `None` on create.
    pub old: Option<&'a Value>,
    reservations: Vec<Reservation>,
}

impl<'a> Attempt<'a> {
    /// An attempt that no plug-in has seen.
    pub fn new(
        call: &'a Call,
        operation: Operation,
        subresource: Option<Subresource>,
        object: &'a mut Value,
        old: Option<&'a Value>,
    ) -> Self {
        Self {
            call,
            operation,
            subresource,
            object,
            old,
            reservations: Vec::new(),
        }
    }

    /// What plug-ins took for the object; dropping it gives it back.
    #[must_use]
    pub fn into_reservations(self) -> Vec<Reservation> {
        self.reservations
    }

    /// Whether the object (not a subresource) of this core kind is written by `operation`.
    fn is(&self, plural: &str, operation: Operation) -> bool {
        let kind = self.call.stored();
        self.subresource.is_none() && self.operation == operation && (kind.group, kind.plural) == ("", plural)
    }

    /// 403 for the object.
    fn forbidden(&self, detail: &str) -> ApiError {
        let name = self.object["metadata"]["name"].as_str().unwrap_or_default();
        ApiError::forbidden(self.call.kind, name, detail)
    }
}

/// Runs all plug-ins.
///
/// # Errors
/// The first refusal.
pub async fn admit(attempt: &mut Attempt<'_>) -> Result<(), ApiError> {
    namespace_lifecycle::admit(attempt).await?;
    service_account::admit(attempt).await?;
    node_restriction::admit(attempt)?;
    priority::admit(attempt)?;
    default_toleration_seconds::admit(attempt);
    default_ingress_class::admit(attempt).await?;
    service_allocation::admit(attempt)
}

/// The write has happened.
pub fn keep(reservations: Vec<Reservation>) {
    for reservation in reservations {
        reservation.keep();
    }
}

/// Runs what concerns deletes.
///
/// # Errors
/// The first refusal.
pub fn admit_delete(call: &Call, object: &Value) -> Result<(), ApiError> {
    namespace_lifecycle::admit_delete(call)?;
    node_restriction::admit_delete(call, object)
}

/// The object is gone.
pub fn deleted(call: &Call, object: &Value) {
    service_allocation::deleted(call, object);
}
