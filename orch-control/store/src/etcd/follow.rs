//! The one watch on all of etcd's keys.

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, WatchOptions, WatchResponse};
use parking_lot::Mutex;

use super::{convert_event, recent::Recent, recent::at, signed, unavailable};
use crate::{Revision, StoreError, watchers::Watchers};

/// What the task needs.
pub(super) struct Follow {
    pub client: Client,
    pub watchers: Arc<Watchers>,
    pub recent: Arc<Mutex<Recent>>,
}

impl Follow {
    /// Runs until it is cancelled; a broken watch goes on where it broke.
    pub(super) async fn run(mut self) {
        let mut patience = Duration::from_millis(50);
        loop {
            let before = self.watchers.revision();
            let outcome = self.follow().await;
            if self.watchers.revision() > before {
                patience = Duration::from_millis(50);
            }
            match outcome {
                Ok(()) => {}
                Err(StoreError::Compacted { oldest, .. }) => {
                    tracing::warn!("etcd has compacted what the watch had not seen, starting anew");
                    self.start_anew(oldest).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the etcd watch broke, going on");
                    patience = (patience * 2).min(Duration::from_secs(2));
                }
            }
            tokio::time::sleep(patience).await;
        }
    }

    async fn follow(&mut self) -> Result<(), StoreError> {
        let after = self.watchers.revision();
        let options = WatchOptions::new()
            .with_all_keys()
            .with_prev_key()
            .with_start_revision(signed(after) + 1);
        let mut stream = self.client.watch("", Some(options)).await.map_err(unavailable)?;
        while let Some(response) = stream.message().await.map_err(unavailable)? {
            check(&response, after)?;
            // Without fragments, etcd never splits a revision's events.
            let mut events = Vec::with_capacity(response.events().len());
            for event in response.events() {
                events.extend(convert_event(event)?);
            }
            if let Some(revision) = events.last().map(at) {
                // Under the lock, so that a watch that begins now sees each event once.
                let mut recent = self.recent.lock();
                recent.extend(&events);
                self.watchers.publish(events, revision);
            }
        }
        Ok(())
    }

    async fn start_anew(&mut self, oldest: Revision) {
        let newest = super::newest(&mut self.client).await.unwrap_or(oldest);
        let mut recent = self.recent.lock();
        *recent = Recent::new(newest);
        self.watchers.reset(newest);
    }
}

fn check(response: &WatchResponse, after: Revision) -> Result<(), StoreError> {
    if response.compact_revision() > 0 {
        let oldest = super::unsigned(response.compact_revision());
        return Err(StoreError::Compacted { asked: after, oldest });
    }
    if response.canceled() {
        return Err(StoreError::Unavailable(format!(
            "etcd ended the watch: {}",
            response.cancel_reason()
        )));
    }
    Ok(())
}
