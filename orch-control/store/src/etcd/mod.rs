//! The etcd backend.
//!
//! Every revision of etcd's belongs to a change of some key, so one watch on all keys tells every prefix how far it
//! is, without asking for progress. It feeds all watches; its recent past is kept in memory for those that begin a
//! little later than they should.

mod follow;
mod recent;

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, ConnectOptions, GetOptions, SortOrder, SortTarget, Txn,
    TxnOp, TxnOpResponse,
};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Event, Expect, KeyValue, ListOptions, Page, Revision, Store, StoreError, Watch, prefix_range,
    watchers::{self, Watchers},
};
use recent::Recent;

/// A store in an etcd cluster (3.4 or later).
pub struct Etcd {
    client: Client,
    watchers: Arc<Watchers>,
    recent: Arc<Mutex<Recent>>,
    /// Ends the shared watch with this value.
    _follow: DropGuard,
}

impl Etcd {
    /// Connects and starts the shared watch.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn connect(endpoints: &[String]) -> Result<Arc<Self>, StoreError> {
        let options = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(std::time::Duration::from_secs(5))
            .with_keep_alive(
                std::time::Duration::from_secs(10),
                std::time::Duration::from_secs(5),
            );
        let mut client = Client::connect(endpoints, Some(options))
            .await
            .map_err(unavailable)?;
        let revision = newest(&mut client).await?;
        let watchers = Arc::new(Watchers::new(revision));
        let recent = Arc::new(Mutex::new(Recent::new(revision)));
        let token = CancellationToken::new();
        let task = follow::Follow {
            client: client.clone(),
            watchers: Arc::clone(&watchers),
            recent: Arc::clone(&recent),
        };
        let stop = token.clone();
        tokio::spawn(async move { stop.run_until_cancelled_owned(task.run()).await });
        Ok(Arc::new(Self {
            client,
            watchers,
            recent,
            _follow: token.drop_guard(),
        }))
    }
}

async fn newest(client: &mut Client) -> Result<Revision, StoreError> {
    let options = GetOptions::new().with_count_only();
    let response = client.get("orch", Some(options)).await.map_err(unavailable)?;
    revision(response.header())
}

#[async_trait::async_trait]
impl Store for Etcd {
    async fn revision(&self) -> Result<Revision, StoreError> {
        newest(&mut self.client.clone()).await
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let response = self.client.clone().get(key, None).await.map_err(unavailable)?;
        Ok((
            response.kvs().first().map(convert).transpose()?,
            revision(response.header())?,
        ))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page, StoreError> {
        let (start, end) = prefix_range(prefix);
        let (std::ops::Bound::Included(mut start), std::ops::Bound::Excluded(end)) = (start, end) else {
            return Err(StoreError::Corrupt(format!("{prefix:?} is no prefix of a key")));
        };
        if let Some(after) = options.after.filter(|after| after.as_str() >= prefix) {
            // The first key after another is that key and a zero byte.
            start = format!("{after}\0");
        }
        let mut query = GetOptions::new()
            .with_range(end)
            .with_sort(SortTarget::Key, SortOrder::Ascend);
        if let Some(limit) = options.limit {
            query = query.with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        if let Some(at) = options.at {
            query = query.with_revision(signed(at));
        }
        // A list of a large kind is larger than what gRPC takes by default.
        let mut client = self.client.kv_client().max_decoding_message_size(usize::MAX);
        let response = client.get(start, Some(query)).await;
        let response = match response {
            Ok(response) => response,
            Err(error) => return Err(self.past(error, options.at.unwrap_or_default()).await),
        };
        let items = response
            .kvs()
            .iter()
            .map(convert)
            .collect::<Result<Vec<_>, _>>()?;
        let remaining = u64::try_from(response.count())
            .unwrap_or(0)
            .saturating_sub(items.len() as u64);
        let revision = match options.at {
            Some(at) => at,
            None => revision(response.header())?,
        };
        Ok(Page {
            items,
            revision,
            remaining,
        })
    }

    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Revision, StoreError> {
        self.transact(key, expect, TxnOp::put(key, value.to_vec(), None))
            .await
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision, StoreError> {
        self.transact(key, Expect::At(expect), TxnOp::delete(key, None))
            .await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        // The reader may have read past what the shared watch has brought so far, but not past the newest.
        if after > self.watchers.revision() {
            let current = self.revision().await?;
            if after > current {
                return Err(StoreError::Future {
                    asked: after,
                    current,
                });
            }
        }
        let recent = self.recent.lock();
        let (live, joined) = self.watchers.join(prefix);
        let missed = recent.after(after, joined, prefix)?;
        drop(recent);
        Ok(watchers::stream(missed, joined, after, live))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let options = CompactionOptions::new().with_physical();
        let outcome = self.client.clone().compact(signed(revision), Some(options)).await;
        if let Err(error) = outcome {
            let error = self.past(error, revision).await;
            // To compact twice to the same revision is no fault.
            let again =
                matches!(error, StoreError::Compacted { .. }) && self.recent.lock().compacted() == revision;
            return if again { Ok(()) } else { Err(error) };
        }
        self.recent.lock().forget(revision);
        Ok(())
    }
}

impl Etcd {
    async fn transact(&self, key: &str, expect: Expect, write: TxnOp) -> Result<Revision, StoreError> {
        let at = match expect {
            Expect::Absent => 0,
            Expect::At(revision) => signed(revision),
        };
        let transaction = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, at)])
            .and_then([write])
            .or_else([TxnOp::get(key, None)]);
        let response = self.client.clone().txn(transaction).await.map_err(unavailable)?;
        if response.succeeded() {
            return revision(response.header());
        }
        let current = match response.op_responses().first() {
            Some(TxnOpResponse::Get(found)) => found.kvs().first().map(convert).transpose()?,
            _ => None,
        };
        Err(StoreError::Conflict {
            key: key.to_owned(),
            current: current.map(Box::new),
        })
    }

    /// What an error on a read of the past means.
    async fn past(&self, error: etcd_client::Error, asked: Revision) -> StoreError {
        // etcd has no code of its own for these: only the texts of its rpctypes package.
        let text = error.to_string();
        if text.contains("required revision has been compacted") {
            let oldest = self.recent.lock().oldest();
            StoreError::Compacted {
                asked,
                oldest: oldest.max(Revision(asked.0 + 1)),
            }
        } else if text.contains("required revision is a future revision") {
            let current = self.revision().await.unwrap_or_default();
            StoreError::Future { asked, current }
        } else {
            unavailable(error)
        }
    }
}

fn convert(kv: &etcd_client::KeyValue) -> Result<KeyValue, StoreError> {
    let key = kv
        .key_str()
        .map_err(|_| StoreError::Corrupt("a key that is not UTF-8".into()))?;
    Ok(KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: unsigned(kv.create_revision()),
        mod_revision: unsigned(kv.mod_revision()),
    })
}

/// One of etcd's events; `None` for one without a key-value pair, which etcd never sends.
fn convert_event(event: &etcd_client::Event) -> Result<Option<Event>, StoreError> {
    let Some(kv) = event.kv() else { return Ok(None) };
    let previous = event.prev_kv().map(convert).transpose()?;
    Ok(match (event.event_type(), previous) {
        (etcd_client::EventType::Put, previous) => Some(Event::Put {
            kv: convert(kv)?,
            previous,
        }),
        (etcd_client::EventType::Delete, Some(previous)) => Some(Event::Delete {
            previous,
            revision: unsigned(kv.mod_revision()),
        }),
        // The value before was compacted away: the key and the revision are all there is.
        (etcd_client::EventType::Delete, None) => Some(Event::Delete {
            previous: convert(kv)?,
            revision: unsigned(kv.mod_revision()),
        }),
    })
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> Result<Revision, StoreError> {
    header
        .map(|header| unsigned(header.revision()))
        .ok_or_else(|| StoreError::Unavailable("etcd answered without a header".into()))
}

fn unsigned(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn unavailable(error: etcd_client::Error) -> StoreError {
    StoreError::Unavailable(format!("etcd: {error}"))
}
