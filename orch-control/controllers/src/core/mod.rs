//! What every controller stands on: shared informers, a work queue, and the loop between the two.

mod informer;
mod informers;
mod queue;

pub use informer::{Change, Informer, Key};
pub use informers::Informers;
pub use queue::{Queue, drive};

use std::time::Duration;

/// Why a reconciliation did not come to its end; it is tried again after a while.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused something.
    #[error("failed to {doing}: {source}")]
    Api {
        /// What was being done, and to what.
        doing: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// What the cache holds is older than what this controller wrote; the watch will bring news.
    #[error("failed to see the newest {0}: the cache lags behind our own writes")]
    Stale(&'static str),
    /// There is no network left for another node.
    #[error("failed to give node {0} a pod network: all of them are taken")]
    CidrExhausted(String),
}

/// When to come back to a key without being called.
pub type Next = Option<Duration>;

/// Says what was being done when the API server refused.
pub trait Doing<T> {
    /// `doing` completes "failed to".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, ReconcileError>;
    /// The same, where an object that is not there any more is just what was wanted.
    fn doing_if_there(self, doing: impl FnOnce() -> String) -> Result<Option<T>, ReconcileError>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, ReconcileError> {
        self.map_err(|source| ReconcileError::Api {
            doing: doing(),
            source: Box::new(source),
        })
    }

    fn doing_if_there(self, doing: impl FnOnce() -> String) -> Result<Option<T>, ReconcileError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if is(&error, 404) => Ok(None),
            Err(error) => Err(error).doing(doing),
        }
    }
}

/// Whether the API server answered with this HTTP status.
pub fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Whether creation failed since the namespace is going away, which is no fault to report.
pub fn namespace_is_terminating(error: &kube::Error) -> bool {
    let terminating = |status: &kube::core::Status| {
        let causes = status.details.iter().flat_map(|d| &d.causes);
        causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
            || status.code == 403 && status.message.contains("being terminated")
    };
    matches!(error, kube::Error::Api(status) if terminating(status))
}
