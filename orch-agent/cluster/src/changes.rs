//! Which objects changed, for readers that keep something per object and need not look at all of them again.

use std::sync::Arc;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Resource,
    runtime::{reflector::ObjectRef, watcher::Event},
};
use tokio::sync::{broadcast, watch};

/// Changes that a reader may be behind before it has to look at everything again.
const BACKLOG: usize = 1024;

/// What to look at again in the stores. The object may have gone, or changed once more, by the time it is looked at.
#[derive(Debug, Clone)]
pub enum Change {
    /// This Service was put or removed.
    Service(Arc<ObjectRef<Service>>),
    /// This EndpointSlice was put or removed.
    Slice(Arc<ObjectRef<EndpointSlice>>),
    /// Any object of either kind may have changed: a list was read again, or the reader fell behind.
    Everything,
}

/// The sending side.
#[derive(Clone)]
pub(crate) struct Feed(broadcast::Sender<Change>);

impl Feed {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }

    /// Passes an event on, as `change` of its object.
    pub(crate) fn tell<K>(&self, event: &Event<K>, change: fn(Arc<ObjectRef<K>>) -> Change)
    where
        K: Resource,
        K::DynamicType: Default,
    {
        let change = match event {
            Event::Apply(object) | Event::Delete(object) => change(Arc::new(ObjectRef::from_obj(object))),
            Event::InitDone => Change::Everything,
            Event::Init | Event::InitApply(_) => return,
        };
        // That nobody listens is no failure.
        let _ = self.0.send(change);
    }
}

/// The receiving side.
pub struct Changes {
    /// None for a view over stores that somebody else fills: then each mark stands for everything.
    feed: Option<broadcast::Receiver<Change>>,
    marks: watch::Receiver<u64>,
    first: bool,
}

impl Changes {
    pub(crate) fn new(feed: Option<&Feed>, mut marks: watch::Receiver<u64>) -> Self {
        marks.mark_unchanged();
        Self {
            feed: feed.map(|feed| feed.0.subscribe()),
            marks,
            first: true,
        }
    }

    /// The next change; `None` when there will be no more. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Change> {
        if std::mem::replace(&mut self.first, false) {
            return Some(Change::Everything);
        }
        match &mut self.feed {
            None => self.marks.changed().await.ok().map(|()| Change::Everything),
            Some(feed) => match feed.recv().await {
                Ok(change) => Some(change),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    // What is still queued would only be looked at twice.
                    *feed = feed.resubscribe();
                    Some(Change::Everything)
                }
                Err(broadcast::error::RecvError::Closed) => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some(name.into());
        service.metadata.namespace = Some("shop".into());
        service
    }

    #[tokio::test]
    async fn each_object_is_named_and_a_reader_that_falls_behind_looks_at_everything_once() {
        let feed = Feed::new();
        let (_mark, marks) = watch::channel(0);
        let mut changes = Changes::new(Some(&feed), marks);
        assert!(matches!(changes.next().await, Some(Change::Everything)));
        feed.tell(&Event::InitApply(service("listed")), Change::Service);
        feed.tell(&Event::InitDone::<Service>, Change::Service);
        feed.tell(&Event::Apply(service("web")), Change::Service);
        assert!(matches!(changes.next().await, Some(Change::Everything)));
        let Some(Change::Service(web)) = changes.next().await else {
            panic!("a Service changed");
        };
        assert_eq!(
            (web.name.as_str(), web.namespace.as_deref()),
            ("web", Some("shop"))
        );
        for _ in 0..=BACKLOG {
            feed.tell(&Event::Delete(service("web")), Change::Service);
        }
        assert!(matches!(changes.next().await, Some(Change::Everything)));
        feed.tell(&Event::Apply(service("last")), Change::Service);
        assert!(matches!(changes.next().await, Some(Change::Service(last)) if last.name == "last"));
    }

    #[tokio::test]
    async fn without_a_feed_a_mark_stands_for_everything() {
        let (mark, marks) = watch::channel(0);
        let mut changes = Changes::new(None, marks);
        assert!(matches!(changes.next().await, Some(Change::Everything)));
        mark.send_modify(|n| *n += 1);
        assert!(matches!(changes.next().await, Some(Change::Everything)));
        drop(mark);
        assert!(changes.next().await.is_none());
    }
}
