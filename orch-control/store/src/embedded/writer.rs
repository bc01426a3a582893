//! The writer: takes what is queued, checks it in order, commits it in one transaction, tells the watchers.

use std::sync::mpsc::Receiver;

use bytes::Bytes;
use redb::{Database, ReadableTable as _};
use tokio::sync::oneshot;

use super::{CURRENT, LOG, META, corrupt, decode, encode, log};
use crate::{Event, Expect, KeyValue, Revision, StoreError, watchers::Watchers};

/// At most this many writes share one commit, so that the first of them does not wait long for the last.
const BATCH: usize = 512;

/// A queued write and who waits for it.
pub(super) struct Write {
    pub key: String,
    pub change: Change,
    pub reply: oneshot::Sender<Result<Revision, StoreError>>,
}

/// What to do with the key.
pub(super) enum Change {
    Put { value: Bytes, expect: Expect },
    Delete { expect: Revision },
    Compact { revision: Revision },
}

/// Runs until every sender is gone.
pub(super) fn run(database: &Database, queue: &Receiver<Write>, watchers: &Watchers) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        batch.extend(queue.try_iter().take(BATCH - 1));
        let (replies, writes): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|write| (write.reply, (write.key, write.change)))
            .unzip();
        match commit(database, writes, watchers.revision()) {
            Ok((outcomes, events, revision)) => {
                // Watchers first: who has written finds its write in every cache soon after.
                watchers.publish(events, revision);
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // A writer that has given up does not need the answer.
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                let text = error.to_string();
                tracing::error!(error = text, "failed to commit");
                for reply in replies {
                    let _ = reply.send(Err(StoreError::Unavailable(text.clone())));
                }
            }
        }
    }
}

type Committed = (Vec<Result<Revision, StoreError>>, Vec<Event>, Revision);

pub(super) fn commit(
    database: &Database,
    writes: Vec<(String, Change)>,
    mut revision: Revision,
) -> Result<Committed, StoreError> {
    let transaction = database.begin_write().map_err(corrupt)?;
    let mut outcomes = Vec::with_capacity(writes.len());
    let mut events = Vec::with_capacity(writes.len());
    let mut compacted = false;
    {
        let mut current = transaction.open_table(CURRENT).map_err(corrupt)?;
        let mut history = transaction.open_table(LOG).map_err(corrupt)?;
        let mut meta = transaction.open_table(META).map_err(corrupt)?;
        for (key, change) in writes {
            if let Change::Compact { revision: upto } = change {
                let oldest = Revision(
                    meta.get("compacted")
                        .map_err(corrupt)?
                        .map_or(0, |guard| guard.value()),
                );
                outcomes.push(if upto > revision {
                    Err(StoreError::Future {
                        asked: upto,
                        current: revision,
                    })
                } else if upto < oldest {
                    Err(StoreError::Compacted { asked: upto, oldest })
                } else {
                    history.retain_in(..=upto.0, |_, _| false).map_err(corrupt)?;
                    meta.insert("compacted", upto.0).map_err(corrupt)?;
                    compacted = true;
                    Ok(revision)
                });
                continue;
            }
            let previous = current.get(key.as_str()).map_err(corrupt)?;
            let previous = previous.map(|guard| decode(&key, guard.value())).transpose()?;
            let next = Revision(revision.0 + 1);
            let event = match step(&key, change, previous, next) {
                Ok(event) => event,
                Err(error) => {
                    outcomes.push(Err(error));
                    continue;
                }
            };
            match &event {
                Event::Put { kv, .. } => {
                    let bytes = encode(kv.create_revision, kv.mod_revision, &kv.value);
                    current.insert(key.as_str(), bytes.as_slice()).map_err(corrupt)?;
                }
                Event::Delete { .. } => {
                    current.remove(key.as_str()).map_err(corrupt)?;
                }
            }
            history
                .insert(next.0, log::encode_entry(&event).as_slice())
                .map_err(corrupt)?;
            revision = next;
            outcomes.push(Ok(revision));
            events.push(event);
        }
        if !events.is_empty() {
            meta.insert("revision", revision.0).map_err(corrupt)?;
        }
    }
    if events.is_empty() && !compacted {
        transaction.abort().map_err(corrupt)?;
    } else {
        transaction.commit().map_err(corrupt)?;
    }
    Ok((outcomes, events, revision))
}

/// What the change does, if what is there is as expected.
fn step(key: &str, change: Change, previous: Option<KeyValue>, next: Revision) -> Result<Event, StoreError> {
    let expect = match &change {
        Change::Put { expect, .. } => *expect,
        Change::Delete { expect } => Expect::At(*expect),
        Change::Compact { .. } => return Err(StoreError::Corrupt("a compaction has no key".into())),
    };
    let holds = match expect {
        Expect::Absent => previous.is_none(),
        Expect::At(revision) => previous.as_ref().is_some_and(|kv| kv.mod_revision == revision),
    };
    match (change, previous) {
        (_, previous) if !holds => Err(StoreError::Conflict {
            key: key.to_owned(),
            current: previous.map(Box::new),
        }),
        (Change::Put { value, .. }, previous) => {
            let create_revision = previous.as_ref().map_or(next, |kv| kv.create_revision);
            let kv = KeyValue {
                key: key.to_owned(),
                value,
                create_revision,
                mod_revision: next,
            };
            Ok(Event::Put { kv, previous })
        }
        (_, Some(previous)) => Ok(Event::Delete {
            previous,
            revision: next,
        }),
        (_, None) => Err(StoreError::Conflict {
            key: key.to_owned(),
            current: None,
        }),
    }
}
