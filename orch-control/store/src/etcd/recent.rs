//! The shared watch's recent past.

use std::collections::VecDeque;

use crate::{Event, Revision, StoreError};

/// How many events are kept.
const EVENTS: usize = 8192;
/// How many bytes of values they may hold on to.
const BYTES: usize = 8 << 20;

/// The last events, and since when there are none missing.
pub(super) struct Recent {
    events: VecDeque<Event>,
    bytes: usize,
    oldest: Revision,
    compacted: Revision,
}

impl Recent {
    pub(super) fn new(revision: Revision) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            oldest: revision,
            compacted: Revision(0),
        }
    }

    /// Watches can begin after this revision.
    pub(super) fn oldest(&self) -> Revision {
        self.oldest
    }

    /// Adds a commit's events.
    pub(super) fn extend(&mut self, events: &[Event]) {
        for event in events {
            self.bytes += size(event);
            self.events.push_back(event.clone());
        }
        while self.events.len() > EVENTS || self.bytes > BYTES {
            self.drop_first();
        }
    }

    /// Forgets what happened up to and including `revision`.
    pub(super) fn forget(&mut self, revision: Revision) {
        while self.events.front().is_some_and(|event| at(event) <= revision) {
            self.drop_first();
        }
        self.oldest = self.oldest.max(revision);
        self.compacted = revision;
    }

    /// The last revision this process has compacted to.
    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Changes to keys with this prefix after `after`, up to and including `until`.
    pub(super) fn after(
        &self,
        after: Revision,
        until: Revision,
        prefix: &str,
    ) -> Result<Vec<Event>, StoreError> {
        if after < self.oldest {
            return Err(StoreError::Compacted {
                asked: after,
                oldest: self.oldest,
            });
        }
        let matching = self.events.iter().filter(|event| {
            let (Event::Put { kv, .. } | Event::Delete { previous: kv, .. }) = event;
            at(event) > after && at(event) <= until && kv.key.starts_with(prefix)
        });
        Ok(matching.cloned().collect())
    }

    fn drop_first(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= size(&event);
            self.oldest = self.oldest.max(at(&event));
        }
    }
}

/// When it happened.
pub(super) fn at(event: &Event) -> Revision {
    match event {
        Event::Put { kv, .. } => kv.mod_revision,
        Event::Delete { revision, .. } => *revision,
    }
}

fn size(event: &Event) -> usize {
    match event {
        Event::Put { kv, previous } => kv.value.len() + previous.as_ref().map_or(0, |kv| kv.value.len()),
        Event::Delete { previous, .. } => previous.value.len(),
    }
}
