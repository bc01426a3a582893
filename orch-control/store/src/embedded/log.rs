//! The log of changes: replayed for watches, undone for reads of the past.

use std::collections::BTreeMap;

use redb::{Database, ReadTransaction, ReadableDatabase as _};

use super::{CURRENT, LOG, corrupt, decode, encode, meta};
use crate::{Event, KeyValue, ListOptions, Page, Revision, StoreError, prefix_range};

/// Encodes a change: key length and key, then the value before and the value now, each behind its length plus one
/// (zero for none). All lengths are little-endian u32.
pub(super) fn encode_entry(event: &Event) -> Vec<u8> {
    let (key, previous, now) = match event {
        Event::Put { kv, previous } => (&kv.key, previous.as_ref(), Some(kv)),
        Event::Delete { previous, .. } => (&previous.key, Some(previous), None),
    };
    let mut bytes = Vec::new();
    bytes.extend(length(key.len()));
    bytes.extend(key.as_bytes());
    for side in [previous, now] {
        match side {
            Some(kv) => {
                let value = encode(kv.create_revision, kv.mod_revision, &kv.value);
                bytes.extend(length(value.len() + 1));
                bytes.extend(value);
            }
            None => bytes.extend(length(0)),
        }
    }
    bytes
}

fn length(length: usize) -> [u8; 4] {
    // Values are limited to a few MiB by the API server.
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

fn decode_entry(revision: Revision, bytes: &[u8]) -> Result<Event, StoreError> {
    let cut_off = || StoreError::Corrupt(format!("log entry {} is cut off", revision.0));
    let mut rest = bytes;
    let mut take = |plus: usize| -> Option<Option<&[u8]>> {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        let Some(size) = (u32::from_le_bytes(*head) as usize).checked_sub(plus) else {
            rest = tail;
            return Some(None);
        };
        let (field, tail) = tail.split_at_checked(size)?;
        rest = tail;
        Some(Some(field))
    };
    let key = take(0)
        .flatten()
        .and_then(|key| std::str::from_utf8(key).ok())
        .ok_or_else(cut_off)?
        .to_owned();
    let previous = take(1)
        .ok_or_else(cut_off)?
        .map(|value| decode(&key, value))
        .transpose()?;
    let now = take(1)
        .ok_or_else(cut_off)?
        .map(|value| decode(&key, value))
        .transpose()?;
    match (previous, now) {
        (previous, Some(kv)) => Ok(Event::Put { kv, previous }),
        (Some(previous), None) => Ok(Event::Delete { previous, revision }),
        (None, None) => Err(cut_off()),
    }
}

fn key_of(event: &Event) -> &str {
    match event {
        Event::Put { kv, .. } => &kv.key,
        Event::Delete { previous, .. } => &previous.key,
    }
}

/// Changes to keys with this prefix after `after`, up to and including `until`.
pub(super) fn replay(
    database: &Database,
    prefix: &str,
    after: Revision,
    until: Revision,
) -> Result<Vec<Event>, StoreError> {
    let transaction = database.begin_read().map_err(corrupt)?;
    check(&transaction, after)?;
    if after >= until {
        return Ok(Vec::new());
    }
    let table = transaction.open_table(LOG).map_err(corrupt)?;
    let mut events = Vec::new();
    for entry in table.range(after.0 + 1..=until.0).map_err(corrupt)? {
        let (key, value) = entry.map_err(corrupt)?;
        let event = decode_entry(Revision(key.value()), value.value())?;
        if key_of(&event).starts_with(prefix) {
            events.push(event);
        }
    }
    Ok(events)
}

/// The keys with this prefix as they were at `at`: the newest ones with every later change undone.
pub(super) fn list_at(
    transaction: &ReadTransaction,
    prefix: &str,
    options: &ListOptions,
    at: Revision,
) -> Result<Page, StoreError> {
    check(transaction, at)?;
    let current = transaction.open_table(CURRENT).map_err(corrupt)?;
    let (start, end) = prefix_range(prefix);
    let range = (super::as_str(&start), super::as_str(&end));
    let mut then: BTreeMap<String, KeyValue> = BTreeMap::new();
    for entry in current.range::<&str>(range).map_err(corrupt)? {
        let (key, value) = entry.map_err(corrupt)?;
        then.insert(key.value().to_owned(), decode(key.value(), value.value())?);
    }
    let log = transaction.open_table(LOG).map_err(corrupt)?;
    for entry in log.range(at.0 + 1..).map_err(corrupt)?.rev() {
        let (key, value) = entry.map_err(corrupt)?;
        let event = decode_entry(Revision(key.value()), value.value())?;
        if !key_of(&event).starts_with(prefix) {
            continue;
        }
        match event {
            Event::Put { kv, previous: None } => then.remove(&kv.key),
            Event::Put {
                previous: Some(previous),
                ..
            }
            | Event::Delete { previous, .. } => then.insert(previous.key.clone(), previous),
        };
    }
    let mut rest = then
        .into_values()
        .filter(|kv| options.after.as_ref().is_none_or(|after| kv.key > *after));
    let items: Vec<KeyValue> = rest.by_ref().take(options.limit.unwrap_or(usize::MAX)).collect();
    Ok(Page {
        items,
        revision: at,
        remaining: rest.count() as u64,
    })
}

/// Whether history still reaches back to `revision`.
fn check(transaction: &ReadTransaction, revision: Revision) -> Result<(), StoreError> {
    let oldest = meta(transaction, "compacted")?;
    if revision < oldest {
        return Err(StoreError::Compacted {
            asked: revision,
            oldest,
        });
    }
    Ok(())
}
