//! What every backend promises, by the names of etcd's guarantees; run on each.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use orch_store::{Event, Expect, ListOptions, Revision, Store, StoreError, Watch, WatchItem};
use support::{Backend, all};

async fn create(store: &dyn Store, key: &str, value: &str) -> Revision {
    store
        .put(key, Bytes::copy_from_slice(value.as_bytes()), Expect::Absent)
        .await
        .unwrap()
}

async fn update(store: &dyn Store, key: &str, value: &str, at: Revision) -> Revision {
    store
        .put(key, Bytes::copy_from_slice(value.as_bytes()), Expect::At(at))
        .await
        .unwrap()
}

async fn keys(store: &dyn Store, prefix: &str, options: ListOptions) -> (Vec<String>, u64, Revision) {
    let page = store.list(prefix, options).await.unwrap();
    (
        page.items.into_iter().map(|kv| kv.key).collect(),
        page.remaining,
        page.revision,
    )
}

/// The next `count` events, whatever the batches.
async fn events(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut found = Vec::new();
    while found.len() < count {
        let item = tokio::time::timeout(Duration::from_secs(10), watch.next())
            .await
            .expect("an event in time");
        if let WatchItem::Events(events) = item.expect("a running watch").unwrap() {
            found.extend(events);
        }
    }
    assert!(found.len() >= count);
    found
}

fn summary(event: &Event) -> (String, String, u64) {
    match event {
        Event::Put { kv, previous } => {
            let what = if previous.is_some() { "update" } else { "create" };
            (
                what.into(),
                format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value)),
                kv.mod_revision.0,
            )
        }
        Event::Delete { previous, revision } => ("delete".into(), previous.key.clone(), revision.0),
    }
}

/// Runs a case on every backend.
async fn check<F: AsyncFn(&dyn Store)>(case: F) {
    for Backend { name, store, .. } in &all().await {
        println!("on {name}");
        case(store.as_ref()).await;
    }
}

#[tokio::test]
async fn a_write_is_read_back_with_its_revisions() {
    check(async |store| {
        let first = create(store, "/a", "1").await;
        let second = update(store, "/a", "2", first).await;
        assert!(second > first);
        let (found, revision) = store.get("/a").await.unwrap();
        let found = found.unwrap();
        assert_eq!(
            (found.create_revision, found.mod_revision, &found.value[..]),
            (first, second, &b"2"[..])
        );
        assert!(revision >= second);
        assert_eq!(store.get("/none").await.unwrap().0, None);
        assert_eq!(store.revision().await.unwrap(), second);
    })
    .await;
}

#[tokio::test]
async fn a_write_that_expects_something_else_is_refused_with_what_is_there() {
    check(async |store| {
        let first = create(store, "/a", "1").await;
        let value = Bytes::from_static(b"2");
        for expect in [Expect::Absent, Expect::At(Revision(first.0 + 1))] {
            match store.put("/a", value.clone(), expect).await {
                Err(StoreError::Conflict {
                    current: Some(kv), ..
                }) => assert_eq!(kv.mod_revision, first),
                other => panic!("{expect:?} gave {other:?}"),
            }
        }
        match store.put("/b", value, Expect::At(first)).await {
            Err(StoreError::Conflict { current: None, .. }) => {}
            other => panic!("an update of nothing gave {other:?}"),
        }
        match store.delete("/a", Revision(first.0 + 1)).await {
            Err(StoreError::Conflict { current: Some(_), .. }) => {}
            other => panic!("a delete at another revision gave {other:?}"),
        }
        assert_eq!(
            store.revision().await.unwrap(),
            first,
            "a refused write has no revision"
        );
        store.delete("/a", first).await.unwrap();
        assert!(matches!(
            store.delete("/a", first).await,
            Err(StoreError::Conflict { current: None, .. })
        ));
    })
    .await;
}

#[tokio::test]
async fn pages_show_one_revision() {
    check(async |store| {
        for key in ["/p/a", "/p/b", "/p/c", "/p/d", "/q/a"] {
            create(store, key, key).await;
        }
        let (first, remaining, revision) = keys(
            store,
            "/p/",
            ListOptions {
                limit: Some(2),
                ..Default::default()
            },
        )
        .await;
        assert_eq!((first, remaining), (vec!["/p/a".to_owned(), "/p/b".into()], 2));
        // What is written between the pages is not on them.
        create(store, "/p/bb", "late").await;
        let (c, _) = store.get("/p/c").await.unwrap();
        store.delete("/p/c", c.unwrap().mod_revision).await.unwrap();
        let rest = ListOptions {
            limit: Some(2),
            after: Some("/p/b".into()),
            at: Some(revision),
        };
        let (second, remaining, shown) = keys(store, "/p/", rest).await;
        assert_eq!((second, remaining), (vec!["/p/c".to_owned(), "/p/d".into()], 0));
        assert_eq!(shown, revision);
        let future = ListOptions {
            at: Some(Revision(revision.0 + 100)),
            ..Default::default()
        };
        assert!(matches!(
            store.list("/p/", future).await,
            Err(StoreError::Future { .. })
        ));
    })
    .await;
}

#[tokio::test]
async fn watch_is_ordered_and_unique() {
    check(async |store| {
        let start = store.revision().await.unwrap();
        let mut watch = store.watch("/w/", start).await.unwrap();
        let a = create(store, "/w/a", "1").await;
        create(store, "/other", "x").await;
        let b = update(store, "/w/a", "2", a).await;
        let c = store.delete("/w/a", b).await.unwrap();
        let seen: Vec<_> = events(&mut watch, 3).await.iter().map(summary).collect();
        assert_eq!(
            seen,
            [
                ("create".into(), "/w/a=1".into(), a.0),
                ("update".into(), "/w/a=2".into(), b.0),
                ("delete".into(), "/w/a".into(), c.0)
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn watch_is_resumable_from_any_revision() {
    check(async |store| {
        let mut at = vec![create(store, "/w/0", "0").await];
        for n in 1..6 {
            at.push(create(store, &format!("/w/{n}"), "x").await);
        }
        for (n, revision) in at.iter().enumerate() {
            let mut watch = store.watch("/w/", *revision).await.unwrap();
            let last = create(store, &format!("/w/last{n}"), "x").await;
            let seen = events(&mut watch, 6 - n - 1 + n + 1).await;
            assert_eq!(
                summary(seen.last().unwrap()).2,
                last.0,
                "resumed after {revision:?}"
            );
            let revisions: Vec<u64> = seen.iter().map(|event| summary(event).2).collect();
            assert!(revisions.is_sorted() && revisions[0] > revision.0);
        }
        let newest = store.revision().await.unwrap();
        let future = store.watch("/w/", Revision(newest.0 + 10)).await;
        assert!(matches!(future, Err(StoreError::Future { .. })));
    })
    .await;
}

#[tokio::test]
async fn watch_is_reliable_under_concurrent_writers() {
    check(async |store| {
        let start = store.revision().await.unwrap();
        let mut watch = store.watch("/r/", start).await.unwrap();
        let writers = (0..8).map(async |writer| {
            for n in 0..25 {
                create(store, &format!("/r/{writer}-{n}"), "x").await;
            }
        });
        futures::future::join_all(writers).await;
        let seen = events(&mut watch, 200).await;
        let revisions: Vec<u64> = seen.iter().map(|event| summary(event).2).collect();
        assert!(
            revisions.windows(2).all(|pair| pair[0] < pair[1]),
            "each revision once, in order"
        );
    })
    .await;
}

#[tokio::test]
async fn watch_is_bookmarkable() {
    check(async |store| {
        let start = store.revision().await.unwrap();
        let mut watch = store.watch("/quiet/", start).await.unwrap();
        let elsewhere = create(store, "/loud/a", "x").await;
        let told = async {
            loop {
                match watch.next().await.unwrap().unwrap() {
                    WatchItem::Progress(revision) if revision >= elsewhere => break,
                    WatchItem::Progress(_) => {}
                    WatchItem::Events(events) => panic!("nothing happened here, but {events:?}"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told)
            .await
            .expect("word of progress");
    })
    .await;
}

#[tokio::test]
async fn compaction_forgets_history_and_keeps_the_newest() {
    check(async |store| {
        let first = create(store, "/a", "1").await;
        let second = update(store, "/a", "2", first).await;
        let third = update(store, "/a", "3", second).await;
        store.compact(second).await.unwrap();
        let (found, _) = store.get("/a").await.unwrap();
        assert_eq!(found.unwrap().mod_revision, third);
        let past = ListOptions {
            at: Some(first),
            ..Default::default()
        };
        assert!(matches!(
            store.list("/", past).await,
            Err(StoreError::Compacted { .. })
        ));
        assert!(matches!(
            store.watch("/", first).await,
            Err(StoreError::Compacted { .. })
        ));
        let mut watch = store.watch("/", second).await.unwrap();
        assert_eq!(summary(&events(&mut watch, 1).await[0]).2, third.0);
        assert!(matches!(
            store.compact(first).await,
            Err(StoreError::Compacted { .. })
        ));
        assert!(matches!(
            store.compact(Revision(third.0 + 9)).await,
            Err(StoreError::Future { .. })
        ));
    })
    .await;
}

#[tokio::test]
async fn a_list_then_watch_loses_nothing_while_others_write() {
    check(async |store| {
        let write = async {
            for n in 0..200 {
                create(store, &format!("/busy/{n:03}"), "x").await;
            }
        };
        let read = async {
            for _ in 0..20 {
                let page = store.list("/busy/", ListOptions::default()).await.unwrap();
                let mut watch = store.watch("/busy/", page.revision).await.unwrap();
                if page.items.len() < 200 {
                    let next = events(&mut watch, 1).await;
                    assert_eq!(summary(&next[0]).1, format!("/busy/{:03}=x", page.items.len()));
                }
            }
        };
        // `events` may take several from one batch: only their order matters there.
        futures::future::join(write, async {
            tokio::time::timeout(Duration::from_secs(30), read).await.unwrap()
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_page_never_leaves_its_prefix_and_may_be_large() {
    check(async |store| {
        create(store, "/a", "other").await;
        create(store, "/b/1", &"x".repeat(1 << 20)).await;
        for n in 2..7 {
            create(store, &format!("/b/{n}"), &"x".repeat(1 << 20)).await;
        }
        let before = ListOptions {
            after: Some("/".into()),
            ..Default::default()
        };
        assert_eq!(keys(store, "/b/", before).await.0.len(), 6);
    })
    .await;
}

#[tokio::test]
async fn compacting_twice_is_no_fault() {
    check(async |store| {
        create(store, "/a", "1").await;
        let revision = create(store, "/b", "1").await;
        store.compact(revision).await.unwrap();
        store.compact(revision).await.unwrap();
    })
    .await;
}
