//! Resolvers' answers, kept for as long as they allow and never more than a fixed amount of memory.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{LowerName, Name, RData, Record, RecordType},
};

use crate::answer::Answer;

/// Answers kept at most, and the bytes that they may take with their keys, both generations together.
const MAX_ENTRIES: usize = 8192;
const MAX_BYTES: usize = 2 << 20;
/// The longest that a name is believed to be or not to be, in seconds, whatever a zone says (RFC 8767 section 4 and
/// RFC 2308 section 5 leave such limits to resolvers).
const MAX_POSITIVE: u32 = 3600;
const MAX_NEGATIVE: u32 = 300;
/// How long a failure of all resolvers is remembered (RFC 9520 section 3.2 wants a second at least).
const FAILURE: u32 = 1;
/// What an entry takes beside its name and message: the map's slot and the allocations' own.
const OVERHEAD: usize = 128;

/// What an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) name: LowerName,
    pub(crate) kind: RecordType,
    /// Whether DNSSEC records were asked for.
    pub(crate) dnssec_ok: bool,
    /// Whether answers that fail validation were asked for.
    pub(crate) checking_disabled: bool,
}

struct Kept {
    /// The whole message as it was on the wire: a third of the records' size in memory.
    message: Box<[u8]>,
    stored: Instant,
    ttl: Duration,
}

#[derive(Default)]
struct Generation {
    map: HashMap<Key, Kept>,
    bytes: usize,
}

/// Two generations: what is used moves to the young one; when that is half of all, the old one is forgotten. Each
/// operation takes constant time.
#[derive(Default)]
pub(crate) struct Cache {
    young: Generation,
    old: Generation,
}

impl Generation {
    fn insert(&mut self, key: Key, kept: Kept) {
        let size = size(&key, &kept);
        let name = key.name.len();
        if let Some(before) = self.map.insert(key, kept) {
            self.bytes -= OVERHEAD + name + before.message.len();
        }
        self.bytes += size;
    }

    fn remove(&mut self, key: &Key) -> Option<(Key, Kept)> {
        let (key, kept) = self.map.remove_entry(key)?;
        self.bytes -= size(&key, &kept);
        Some((key, kept))
    }
}

fn size(key: &Key, kept: &Kept) -> usize {
    OVERHEAD + key.name.len() + kept.message.len()
}

impl Cache {
    /// The answer, its TTLs less its age, with `name` spelled as it is here.
    pub(crate) fn get(&mut self, key: &Key, name: &Name, now: Instant) -> Option<Answer> {
        if !self.young.map.contains_key(key) {
            let (key, kept) = self.old.remove(key)?;
            self.insert(key, kept);
        }
        let kept = self.young.map.get(key)?;
        let age = now.saturating_duration_since(kept.stored);
        if age >= kept.ttl {
            self.young.remove(key);
            return None;
        }
        let message = Message::from_vec(&kept.message).ok()?;
        let mut answer = Answer {
            code: message.metadata.response_code,
            authoritative: false,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        };
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        // Whoever asks again should find the records still at hand, not the limit that stands here.
        let longest = u32::try_from(kept.ttl.as_secs())
            .unwrap_or(u32::MAX)
            .saturating_sub(age);
        for record in answer.records_mut() {
            record.ttl = record.ttl.saturating_sub(age).min(longest.max(1));
            // Some clients compare the spelling that they asked with.
            if record.name == *name {
                record.name = name.clone();
            }
        }
        Some(answer)
    }

    /// Keeps an answer, unless it says that it may not be kept.
    pub(crate) fn put(&mut self, key: Key, answer: &Answer, now: Instant) {
        let ttl = ttl(answer, key.kind);
        if ttl == 0 {
            return;
        }
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.response_code = answer.code;
        message.answers.clone_from(&answer.answers);
        message.authorities.clone_from(&answer.authorities);
        message.additionals.clone_from(&answer.additionals);
        // What does not fit a message cannot be kept; it came in one, so this does not happen.
        let Ok(message) = message.to_vec() else { return };
        let kept = Kept {
            message: message.into(),
            stored: now,
            ttl: Duration::from_secs(u64::from(ttl)),
        };
        self.old.remove(&key);
        self.insert(key, kept);
    }

    fn insert(&mut self, key: Key, kept: Kept) {
        let size = size(&key, &kept);
        if size > MAX_BYTES / 2 {
            return;
        }
        if self.young.map.len() >= MAX_ENTRIES / 2 || self.young.bytes + size > MAX_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, kept);
    }

    /// Entries and bytes.
    #[cfg(test)]
    fn size(&self) -> (usize, usize) {
        (
            self.young.map.len() + self.old.map.len(),
            self.young.bytes + self.old.bytes,
        )
    }
}

/// How many seconds an answer may be kept; 0 for not at all.
fn ttl(answer: &Answer, kind: RecordType) -> u32 {
    if !matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return FAILURE;
    }
    let shortest = answer.answers.iter().map(|record| record.ttl).min();
    let found = |record: &Record| kind == RecordType::ANY || record.record_type() == kind;
    if answer.code == ResponseCode::NoError && answer.answers.iter().any(found) {
        return shortest.unwrap_or(0).min(MAX_POSITIVE);
    }
    // RFC 2308 section 5: a negative answer without an SOA must not be kept.
    let soa = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    soa.map_or(0, |soa| soa.min(shortest.unwrap_or(u32::MAX)).min(MAX_NEGATIVE))
}

#[cfg(test)]
mod tests;
