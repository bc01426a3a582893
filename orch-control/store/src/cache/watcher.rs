//! A reader's end of a watch on the cache.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::mpsc;

use super::{CacheError, Object};
use crate::Revision;

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With the next change.
    Now,
    /// With the present state, as `Added` events, then its changes.
    State,
    /// With the first change after this revision.
    After(Revision),
}

/// A change to one object.
#[derive(Clone, Debug)]
pub enum CacheEvent {
    /// It is new.
    Added {
        /// As it is now.
        object: Arc<Object>,
    },
    /// It has changed.
    Modified {
        /// As it is now.
        object: Arc<Object>,
        /// As it was: watchers with selectors need to know whether it matched.
        previous: Arc<Object>,
    },
    /// It is gone.
    Deleted {
        /// The last state, with the delete's revision.
        object: Arc<Object>,
        /// The last state, with its own revision.
        previous: Arc<Object>,
    },
}

impl CacheEvent {
    /// The object as of the change.
    #[must_use]
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Added { object } | Self::Modified { object, .. } | Self::Deleted { object, .. } => object,
        }
    }
}

/// A running watch; dropping it ends it.
pub struct Events {
    first: VecDeque<CacheEvent>,
    live: mpsc::Receiver<CacheEvent>,
    begins: Revision,
}

impl Events {
    pub(super) fn new(first: Vec<CacheEvent>, begins: Revision, live: mpsc::Receiver<CacheEvent>) -> Self {
        Self {
            first: first.into(),
            live,
            begins,
        }
    }

    /// The revision whose state the events up to now complete: after them, everything newer is yet to come.
    #[must_use]
    pub fn begins(&self) -> Revision {
        self.begins
    }

    /// How many of the next events describe the state the watch began with.
    #[must_use]
    pub fn initial(&self) -> usize {
        self.first.len()
    }

    /// The next change. Cancel-safe.
    ///
    /// # Errors
    /// `TooSlow` when the reader was cut off; the watch is over then.
    pub async fn next(&mut self) -> Result<CacheEvent, CacheError> {
        match self.first.pop_front() {
            Some(event) => Ok(event),
            None => self.live.recv().await.ok_or(CacheError::TooSlow),
        }
    }

    /// The next change if it is there already. A caller that reads [`super::WatchCache::revision`] and then takes
    /// all of these knows that its watcher has seen everything up to that revision: a bookmark.
    ///
    /// # Errors
    /// `TooSlow` when the reader was cut off; the watch is over then.
    pub fn try_next(&mut self) -> Result<Option<CacheEvent>, CacheError> {
        if let Some(event) = self.first.pop_front() {
            return Ok(Some(event));
        }
        match self.live.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(CacheError::TooSlow),
        }
    }
}
