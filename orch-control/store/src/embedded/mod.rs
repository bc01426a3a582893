//! The embedded backend: one file, one writer thread, group commit.
//!
//! The file (redb) holds two tables: the newest value of every key, and the log of every change since the last
//! compaction. Reads at an older revision undo the log; watches replay it and then follow the writer.

mod log;
mod writer;

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::oneshot;

use crate::{
    Expect, KeyValue, ListOptions, Page, Revision, Store, StoreError, Watch, prefix_range,
    watchers::{self, Watchers},
};
use writer::{Change, Write};

/// Key → create revision, modify revision (both little-endian u64), value.
const CURRENT: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("current");
/// Revision → encoded event (see `log`).
const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
/// `revision` and `compacted`.
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// Bytes of the file's pages kept in memory: the watch caches hold the objects, so this needs to be no more than
/// the working set of a commit.
const CACHE: usize = 4 << 20;

/// A store in a file. Clones of the `Arc` share it; the file is locked against other processes.
pub struct Embedded {
    database: Arc<Database>,
    /// Taken when the store is dropped: its thread ends with it.
    writer: Option<(mpsc::Sender<Write>, JoinHandle<()>)>,
    watchers: Arc<Watchers>,
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some((queue, thread)) = self.writer.take() {
            drop(queue);
            // It holds the file: who opens it next must find it free. A panic of its own was logged by then.
            let _ = thread.join();
        }
    }
}

impl Embedded {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// When another process has it open, it is not such a file, or the disk refuses.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let database =
            Database::builder()
                .set_cache_size(CACHE)
                .create(path)
                .map_err(|error| match error {
                    redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Unavailable(format!(
                        "{} is in use by another process: stop it, or choose another --data-dir",
                        path.display()
                    )),
                    redb::DatabaseError::Storage(redb::StorageError::Io(error)) => {
                        StoreError::Unavailable(format!("failed to open {}: {error}", path.display()))
                    }
                    other => StoreError::Corrupt(format!("failed to open {}: {other}", path.display())),
                })?;
        let database = Arc::new(database);
        let revision = prepare(&database)?;
        let watchers = Arc::new(Watchers::new(revision));
        let (writes, queue) = mpsc::channel();
        let (for_thread, told) = (Arc::clone(&database), Arc::clone(&watchers));
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer::run(&for_thread, &queue, &told))
            .map_err(|error| StoreError::Unavailable(format!("failed to start the writer: {error}")))?;
        Ok(Arc::new(Self {
            database,
            writer: Some((writes, thread)),
            watchers,
        }))
    }

    async fn write(&self, key: &str, change: Change) -> Result<Revision, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Unavailable("the store's writer has ended".into());
        let (queue, _) = self.writer.as_ref().ok_or_else(gone)?;
        queue
            .send(Write {
                key: key.to_owned(),
                change,
                reply,
            })
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Runs a read that may touch many pages off the async threads.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        tokio::task::spawn_blocking(move || read(&database))
            .await
            .map_err(|error| StoreError::Unavailable(format!("a read was cut off: {error}")))?
    }
}

/// Makes the tables; returns the newest revision.
fn prepare(database: &Database) -> Result<Revision, StoreError> {
    let transaction = database.begin_write().map_err(corrupt)?;
    let revision;
    {
        transaction.open_table(CURRENT).map_err(corrupt)?;
        transaction.open_table(LOG).map_err(corrupt)?;
        let mut meta = transaction.open_table(META).map_err(corrupt)?;
        let stored = meta.get("revision").map_err(corrupt)?.map(|guard| guard.value());
        revision = match stored {
            Some(revision) => revision,
            None => {
                // Kubernetes gives resourceVersion "0" a meaning of its own: history starts at 1.
                meta.insert("revision", 1).map_err(corrupt)?;
                meta.insert("compacted", 0).map_err(corrupt)?;
                1
            }
        };
    }
    transaction.commit().map_err(corrupt)?;
    Ok(Revision(revision))
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn revision(&self) -> Result<Revision, StoreError> {
        let transaction = self.database.begin_read().map_err(corrupt)?;
        meta(&transaction, "revision")
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError> {
        // One key is a page or two, most likely in memory: cheaper here than on another thread.
        let transaction = self.database.begin_read().map_err(corrupt)?;
        let revision = meta(&transaction, "revision")?;
        let current = transaction.open_table(CURRENT).map_err(corrupt)?;
        let found = current.get(key).map_err(corrupt)?;
        let found = found.map(|guard| decode(key, guard.value())).transpose()?;
        Ok((found, revision))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |database| list(database, &prefix, &options)).await
    }

    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Revision, StoreError> {
        self.write(key, Change::Put { value, expect }).await
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision, StoreError> {
        self.write(key, Change::Delete { expect }).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        // The live part begins at `joined`; what came before is replayed from the log.
        let (live, joined) = self.watchers.join(prefix);
        // A commit can be read a moment before the watchers are told of it.
        if after > joined {
            let current = self.revision().await?;
            if after > current {
                return Err(StoreError::Future {
                    asked: after,
                    current,
                });
            }
        }
        let prefix = prefix.to_owned();
        let missed = self
            .read(move |database| log::replay(database, &prefix, after, joined))
            .await?;
        Ok(watchers::stream(missed, joined, after, live))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.write("", Change::Compact { revision }).await.map(drop)
    }
}

fn list(database: &Database, prefix: &str, options: &ListOptions) -> Result<Page, StoreError> {
    let transaction = database.begin_read().map_err(corrupt)?;
    let newest = meta(&transaction, "revision")?;
    let at = options.at.unwrap_or(newest);
    if at > newest {
        return Err(StoreError::Future {
            asked: at,
            current: newest,
        });
    }
    if at < newest {
        return log::list_at(&transaction, prefix, options, at);
    }
    let table = transaction.open_table(CURRENT).map_err(corrupt)?;
    let (start, end) = prefix_range(prefix);
    let start = match &options.after {
        Some(key) if key.as_str() >= prefix => std::ops::Bound::Excluded(key.clone()),
        _ => start,
    };
    let range = (as_str(&start), as_str(&end));
    let mut page = Page {
        revision: newest,
        ..Page::default()
    };
    for entry in table.range::<&str>(range).map_err(corrupt)? {
        let (key, value) = entry.map_err(corrupt)?;
        if options.limit.is_some_and(|limit| page.items.len() >= limit) {
            page.remaining += 1;
        } else {
            page.items.push(decode(key.value(), value.value())?);
        }
    }
    Ok(page)
}

fn as_str(bound: &std::ops::Bound<String>) -> std::ops::Bound<&str> {
    bound.as_ref().map(String::as_str)
}

fn meta(transaction: &redb::ReadTransaction, name: &str) -> Result<Revision, StoreError> {
    let table = transaction.open_table(META).map_err(corrupt)?;
    let value = table.get(name).map_err(corrupt)?.map(|guard| guard.value());
    value
        .map(Revision)
        .ok_or_else(|| StoreError::Corrupt(format!("the file has no {name}")))
}

/// A stored value's header: when it was created and last written.
fn encode(create: Revision, modified: Revision, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + value.len());
    bytes.extend(create.0.to_le_bytes());
    bytes.extend(modified.0.to_le_bytes());
    bytes.extend(value);
    bytes
}

fn decode(key: &str, bytes: &[u8]) -> Result<KeyValue, StoreError> {
    let header = bytes.split_first_chunk::<8>().and_then(|(create, rest)| {
        let (modified, value) = rest.split_first_chunk::<8>()?;
        Some((u64::from_le_bytes(*create), u64::from_le_bytes(*modified), value))
    });
    let Some((create, modified, value)) = header else {
        return Err(StoreError::Corrupt(format!("the value of {key} is cut off")));
    };
    Ok(KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision(create),
        mod_revision: Revision(modified),
    })
}

fn corrupt(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        error @ (redb::Error::Io(_) | redb::Error::PreviousIo) => {
            StoreError::Unavailable(format!("the disk refused: {error}"))
        }
        other => StoreError::Corrupt(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;
    use crate::{Event, WatchItem};

    #[tokio::test]
    async fn what_was_read_can_be_watched_before_the_watchers_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("store")).unwrap();
        let put = |key: &str| {
            let change = Change::Put {
                value: Bytes::from_static(b"x"),
                expect: Expect::Absent,
            };
            vec![(key.to_owned(), change)]
        };
        let (_, events, committed) =
            writer::commit(&store.database, put("/a"), store.watchers.revision()).unwrap();
        let page = store.list("/", ListOptions::default()).await.unwrap();
        assert_eq!((page.revision, page.items.len()), (committed, 1));
        assert_eq!(store.revision().await.unwrap(), committed);
        let mut watch = store.watch("/", page.revision).await.unwrap();
        assert!(matches!(
            store.watch("/", Revision(committed.0 + 1)).await,
            Err(StoreError::Future { current, .. }) if current == committed
        ));

        store.watchers.publish(events, committed);
        let second = store
            .put("/b", Bytes::from_static(b"x"), Expect::Absent)
            .await
            .unwrap();
        assert!(matches!(
            watch.next().await,
            Some(Ok(WatchItem::Progress(revision))) if revision == committed
        ));
        let Some(Ok(WatchItem::Events(events))) = watch.next().await else {
            panic!("no events");
        };
        assert!(matches!(
            &events[..],
            [Event::Put { kv, .. }] if kv.key == "/b" && kv.mod_revision == second
        ));
    }
}
