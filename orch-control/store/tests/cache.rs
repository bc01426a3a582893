//! What the watch cache promises its readers, on each backend.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use orch_store::{
    Expect, Revision, Store,
    cache::{CacheError, CacheEvent, Events, From, WatchCache},
};
use support::{all, embedded};

const PATIENCE: Duration = Duration::from_secs(10);

fn object(name: &str, colour: &str) -> Bytes {
    format!(
        r#"{{"kind":"Thing","metadata":{{"name":"{name}","namespace":"ns","labels":{{"colour":"{colour}"}}}},"spec":{{"node":"n-{name}"}}}}"#
    )
    .into()
}

async fn put(store: &dyn Store, name: &str, colour: &str) -> Revision {
    let key = format!("/things/ns/{name}");
    let (found, _) = store.get(&key).await.unwrap();
    let expect = found.map_or(Expect::Absent, |kv| Expect::At(kv.mod_revision));
    store.put(&key, object(name, colour), expect).await.unwrap()
}

fn start(store: &Arc<dyn Store>) -> Arc<WatchCache> {
    let extract = |value: &serde_json::Value| {
        vec![(
            "spec.node",
            value["spec"]["node"].as_str().unwrap_or_default().to_owned(),
        )]
    };
    WatchCache::start(Arc::clone(store), "/things/", Arc::new(extract))
}

async fn next(events: &mut Events) -> CacheEvent {
    tokio::time::timeout(PATIENCE, events.next())
        .await
        .expect("an event in time")
        .unwrap()
}

#[tokio::test]
async fn a_list_shows_its_revision_and_the_objects_carry_theirs() {
    for backend in &all().await {
        let store = &backend.store;
        let a = put(store.as_ref(), "a", "red").await;
        let cache = start(store);
        cache.ready().await;
        let b = put(store.as_ref(), "b", "blue").await;
        cache.wait_for(b, PATIENCE).await.unwrap();
        let (found, revision) = cache.list("/things/ns/", |_| true);
        assert_eq!(revision, b, "on {}", backend.name);
        assert_eq!(
            found.iter().map(|object| object.revision).collect::<Vec<_>>(),
            [a, b]
        );
        let first: serde_json::Value = serde_json::from_slice(&found[0].json).unwrap();
        assert_eq!(first["metadata"]["resourceVersion"], a.0.to_string());
        assert_eq!((found[0].name.as_str(), found[0].namespace.as_str()), ("a", "ns"));
        assert_eq!(found[0].fields, [("spec.node", "n-a".to_owned())]);
        let (blue, _) = cache.list("/things/", |object| object.labels["colour"] == "blue");
        assert_eq!(blue.len(), 1);
        assert!(cache.get("/things/ns/a").is_some() && cache.get("/things/ns/c").is_none());
        assert!(cache.list("/things/other/", |_| true).0.is_empty());
    }
}

#[tokio::test]
async fn watch_is_ordered_unique_and_resumable() {
    for backend in &all().await {
        let store = &backend.store;
        let cache = start(store);
        cache.ready().await;
        let mut now = cache.watch(From::Now, "/things/").unwrap();
        let a = put(store.as_ref(), "a", "red").await;
        let b = put(store.as_ref(), "a", "blue").await;
        let c = store.delete("/things/ns/a", b).await.unwrap();
        cache.wait_for(c, PATIENCE).await.unwrap();
        for (after, expect) in [(Revision(a.0 - 1), vec![a, b, c]), (a, vec![b, c]), (b, vec![c])] {
            let mut watch = cache.watch(From::After(after), "/things/").unwrap();
            for revision in expect {
                assert_eq!(
                    next(&mut watch).await.object().revision,
                    revision,
                    "on {}",
                    backend.name
                );
            }
        }
        assert!(matches!(next(&mut now).await, CacheEvent::Added { .. }));
        match next(&mut now).await {
            CacheEvent::Modified { previous, object } => {
                assert_eq!(
                    (&previous.labels["colour"][..], &object.labels["colour"][..]),
                    ("red", "blue")
                );
            }
            other => panic!("{other:?}"),
        }
        match next(&mut now).await {
            CacheEvent::Deleted { object, .. } => {
                let json: serde_json::Value = serde_json::from_slice(&object.json).unwrap();
                assert_eq!(json["metadata"]["resourceVersion"], c.0.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn watch_from_the_state_begins_with_what_is_there() {
    let backend = embedded();
    put(backend.store.as_ref(), "a", "red").await;
    let cache = start(&backend.store);
    cache.ready().await;
    let mut watch = cache.watch(From::State, "/things/").unwrap();
    assert_eq!(watch.initial(), 1);
    assert!(matches!(next(&mut watch).await, CacheEvent::Added { object } if object.name == "a"));
    let b = put(backend.store.as_ref(), "b", "red").await;
    assert_eq!(next(&mut watch).await.object().revision, b);
}

#[tokio::test]
async fn what_the_cache_no_longer_knows_is_too_old_and_the_future_is_waited_for() {
    let backend = embedded();
    let old = put(backend.store.as_ref(), "a", "red").await;
    let newer = put(backend.store.as_ref(), "a", "blue").await;
    let cache = start(&backend.store);
    cache.ready().await;
    assert!(matches!(
        cache.watch(From::After(old), "/things/"),
        Err(CacheError::TooOld { .. })
    ));
    assert!(cache.watch(From::After(newer), "/things/").is_ok());
    let future = cache
        .wait_for(Revision(newer.0 + 5), Duration::from_millis(20))
        .await;
    assert!(matches!(future, Err(CacheError::Behind { .. })));
    // A quiet prefix gets there with writes elsewhere.
    let elsewhere = backend
        .store
        .put("/other", Bytes::from_static(b"{}"), Expect::Absent)
        .await
        .unwrap();
    cache.wait_for(elsewhere, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off_and_nobody_waits_for_it() {
    let backend = embedded();
    let cache = start(&backend.store);
    cache.ready().await;
    let mut lazy = cache.watch(From::Now, "/things/").unwrap();
    let mut last = Revision(0);
    let writes = (0..6000).map(|n| {
        let store = Arc::clone(&backend.store);
        async move {
            store
                .put(&format!("/things/ns/{n}"), object("x", "red"), Expect::Absent)
                .await
                .unwrap()
        }
    });
    for revision in futures::future::join_all(writes).await {
        last = last.max(revision);
    }
    cache.wait_for(last, PATIENCE).await.unwrap();
    let cut_off = loop {
        match lazy.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(cut_off, CacheError::TooSlow));
}

#[tokio::test]
async fn an_event_is_parsed_once_for_a_thousand_watchers() {
    let backend = embedded();
    let parsed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&parsed);
    let extract = move |_: &serde_json::Value| {
        count.fetch_add(1, Ordering::Relaxed);
        Vec::new()
    };
    let cache = WatchCache::start(Arc::clone(&backend.store), "/things/", Arc::new(extract));
    cache.ready().await;
    let mut watchers: Vec<Events> = (0..1000)
        .map(|_| cache.watch(From::Now, "/things/").unwrap())
        .collect();
    put(backend.store.as_ref(), "a", "red").await;
    let mut bytes = Vec::new();
    for watcher in &mut watchers {
        bytes.push(next(watcher).await.object().json.as_ptr());
    }
    assert_eq!(parsed.load(Ordering::Relaxed), 1);
    assert!(
        bytes.iter().all(|pointer| *pointer == bytes[0]),
        "all share the same bytes"
    );
}
