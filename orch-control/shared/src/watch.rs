//! A list and watch that never ends: errors are logged and waited out, managed fields are dropped on arrival.

use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::core::Status;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

/// The first wait after an error; short, so that a control plane that starts up is not kept waiting.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Watches everything `api` reaches. `trim` drops what nobody here reads, so that it is never kept.
pub fn events<K>(
    api: Api<K>,
    config: watcher::Config,
    trim: fn(&mut K),
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    steady(kind, watcher::watcher(api, config).boxed(), trim)
}

/// Makes a watcher's stream (of objects called `kind` in the log) one without errors.
pub fn steady<K>(
    kind: String,
    stream: impl Stream<Item = Result<Event<K>, watcher::Error>> + Unpin + Send,
    trim: fn(&mut K),
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Send + 'static,
{
    futures::stream::unfold((stream, FIRST_WAIT), move |(mut stream, mut wait)| {
        let kind = kind.clone();
        async move {
            loop {
                match stream.next().await? {
                    Ok(event) => {
                        if !matches!(event, Event::Init) {
                            wait = FIRST_WAIT;
                        }
                        let event = event.modify(|object| {
                            object.meta_mut().managed_fields = None;
                            trim(object);
                        });
                        return Some((event, (stream, wait)));
                    }
                    Err(error) => {
                        report(&kind, &error, wait);
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                    }
                }
            }
        }
    })
}

fn report(kind: &str, error: &watcher::Error, wait: Duration) {
    let expired = |status: &Status| status.code == 410;
    match error {
        // An old resource version is an ordinary reason to list again.
        watcher::Error::WatchError(status) if expired(status) => debug!(kind, %error, "listing again"),
        _ if wait < Duration::from_secs(1) => debug!(kind, %error, "watch interrupted"),
        _ => warn!(kind, %error, "failed to watch; trying again in {wait:?}"),
    }
}
