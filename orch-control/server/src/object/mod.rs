//! The one object path: decode, default, admit, validate, store, encode; the same for every kind.

pub mod delete;
pub mod meta;
pub mod read;
pub mod subresource;
pub mod watch;
pub mod write;

use std::sync::Arc;

use orch_api::{ApiError, FieldValidation, Kind};
use parking_lot::Mutex;

use crate::{
    auth::identity::Identity,
    http::{negotiate::Form, target::Query},
    state::{Collection, State},
};

/// One request, understood so far: who wants something of which object or collection.
pub struct Call {
    /// What all share.
    pub state: Arc<State>,
    /// Who asks.
    pub user: Arc<Identity>,
    /// The kind as served.
    pub kind: &'static Kind,
    /// Where its objects are.
    pub collection: Arc<Collection>,
    /// Empty for cluster-scoped kinds and for all namespaces.
    pub namespace: String,
    /// Empty for the collection.
    pub name: String,
    /// The parameters.
    pub query: Query,
    /// The form of the answer.
    pub form: Form,
    /// What to do about unknown fields.
    pub validation: FieldValidation,
    /// Whether all happens but the write.
    pub dry_run: bool,
    /// What the client should be told beside the answer.
    pub warnings: Mutex<Vec<String>>,
}

impl Call {
    /// A call of the server itself for one object, as `user`.
    ///
    /// # Errors
    /// When the kind is not stored.
    pub fn internal(
        state: &Arc<State>,
        user: Arc<Identity>,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            state: Arc::clone(state),
            user,
            kind,
            collection: Arc::clone(state.collection(kind)?),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            query: Query::default(),
            form: Form::Object,
            validation: FieldValidation::Strict,
            dry_run: false,
            warnings: Mutex::default(),
        })
    }

    /// The kind in which its objects are stored.
    #[must_use]
    pub fn stored(&self) -> &'static Kind {
        self.collection.kind
    }

    /// The store's key of the object.
    #[must_use]
    pub fn key(&self) -> String {
        self.stored().key(&self.namespace, &self.name)
    }

    /// 404 for the object.
    #[must_use]
    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(self.kind, &self.name)
    }

    /// Adds warnings, each once: what is tried again finds the same again.
    pub fn warn(&self, warnings: Vec<String>) {
        let mut known = self.warnings.lock();
        for warning in warnings {
            if !known.contains(&warning) {
                known.push(warning);
            }
        }
    }
}
