//! The store: what orch keeps, at which revision, and who is told.
//!
//! One trait, [`Store`], with two backends that pass the same contract tests: [`embedded`] (a file, for a
//! single control node) and [`etcd`]. [`cache`] holds one watch per prefix and serves every reader from memory.

pub mod cache;
pub mod embedded;
pub mod etcd;
mod watchers;

use std::{ops::Bound, pin::Pin};

use bytes::Bytes;
use futures::Stream;

/// A point in the store's history. Grows by at least one with every write; never reused.
/// Kubernetes shows it as `metadata.resourceVersion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// One key's value as of `mod_revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The full key, e.g. `/registry/pods/default/web-0`.
    pub key: String,
    /// The encoded object (JSON, without `metadata.resourceVersion`).
    pub value: Bytes,
    /// When this incarnation of the key was created.
    pub create_revision: Revision,
    /// When the value was last written.
    pub mod_revision: Revision,
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key must not exist.
    Absent,
    /// The key must exist with exactly this `mod_revision`.
    At(Revision),
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In key order.
    pub items: Vec<KeyValue>,
    /// The revision that the whole list (all its pages) shows.
    pub revision: Revision,
    /// How many keys with this prefix follow the page; zero on the last one.
    pub remaining: u64,
}

/// Which part of a prefix to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// At most this many items; all of them when `None`.
    pub limit: Option<usize>,
    /// Start after this key (exclusive): the last key of the page before.
    pub after: Option<String>,
    /// Show the state as of this revision; the newest when `None`.
    pub at: Option<Revision>,
}

/// One change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Created (`kv.create_revision == kv.mod_revision`) or updated; `previous` is the value before, if any.
    Put {
        /// The value now.
        kv: KeyValue,
        /// The value before; `None` on create.
        previous: Option<KeyValue>,
    },
    /// Deleted at `revision`; `previous` is the last value.
    Delete {
        /// The last value.
        previous: KeyValue,
        /// The revision of the delete.
        revision: Revision,
    },
}

/// What a watch yields: all events of one revision or more, in order, or word that there were none up to a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// In revision order, never split within a revision.
    Events(Vec<Event>),
    /// Nothing with this prefix has changed up to and including this revision.
    Progress(Revision),
}

/// A running watch. Ends with an `Err` (after which it yields nothing); dropping it cancels.
pub type Watch = Pin<Box<dyn Stream<Item = Result<WatchItem, StoreError>> + Send>>;

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `Expect` did not hold; `current` is what is there instead.
    #[error("{key} is not as expected")]
    Conflict {
        /// The key.
        key: String,
        /// What is there: `None` when the key does not exist.
        current: Option<Box<KeyValue>>,
    },
    /// The revision asked for has been compacted away; history starts after `oldest`.
    #[error("revision {asked} has been compacted, history starts at {oldest}", asked = asked.0, oldest = oldest.0)]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The revision asked for is in the future.
    #[error("revision {asked} is newer than the newest, {current}", asked = asked.0, current = current.0)]
    Future {
        /// The revision asked for.
        asked: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The backend failed or cannot be reached; the write may or may not have happened.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Stored bytes that no version of orch wrote.
    #[error("store corrupt: {0}")]
    Corrupt(String),
}

/// A revisioned key-value store.
///
/// *Promises*: writes are atomic, durable when they return, and totally ordered by revision; a read sees every
/// write that returned before it began; a watch from `r` yields every change after `r` once, in order, or ends
/// with `Compacted`.
///
/// *Not promised*: revisions are dense per prefix; a watch is told of a write before the writer is.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision.
    async fn revision(&self) -> Result<Revision, StoreError>;
    /// The value of `key`, and the revision this read shows.
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError>;
    /// Keys that start with `prefix`, in order.
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page, StoreError>;
    /// Writes `key` if `expect` holds. Returns the write's revision.
    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Revision, StoreError>;
    /// Deletes `key` if it is still at `expect`. Returns the delete's revision.
    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision, StoreError>;
    /// Changes to keys that start with `prefix`, after revision `after`.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;
    /// Forgets history up to and including `revision`; the newest values stay.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}

/// The range of keys that start with `prefix`, for ordered maps.
#[must_use]
pub fn prefix_range(prefix: &str) -> (Bound<String>, Bound<String>) {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0x7f {
            end.push(last + 1);
            let end = String::from_utf8(end).unwrap_or_default();
            return (Bound::Included(prefix.to_owned()), Bound::Excluded(end));
        }
    }
    (Bound::Included(prefix.to_owned()), Bound::Unbounded)
}
