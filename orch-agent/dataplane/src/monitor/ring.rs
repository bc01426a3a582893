//! The one reader of the programs' events.

use std::{sync::Arc, time::Duration};

use aya::maps::{MapData, RingBuf};
use nix::time::{ClockId, clock_gettime};
use orch_ebpf::event::{EVENT_DROP, Event};

use super::{hub::Hub, names::Naming, record};
use crate::sys;

/// Events that are handled before others may have the thread.
const BATCH: usize = 1024;

/// Whether the agent's log shows drops.
pub fn logs_drops() -> bool {
    tracing::enabled!(target: "orch::drop", tracing::Level::DEBUG)
}

/// Reads until the task is dropped.
pub async fn follow(events: RingBuf<MapData>, hub: Arc<Hub>, naming: Arc<Naming>) {
    let Ok(mut events) = sys::readable(events) else {
        tracing::error!("the programs' events cannot be waited for");
        return;
    };
    while let Ok(mut guard) = events.readable_mut().await {
        let names = naming.current();
        let boot = boot_time();
        let mut read = 0;
        while read < BATCH
            && let Some(item) = guard.get_inner_mut().next()
        {
            read += 1;
            let Some(event) = sys::read_as::<Event>(&item) else {
                continue;
            };
            if event.kind == EVENT_DROP {
                log(&event);
            }
            hub.publish(&event, || timestamp(boot, event.time), &names);
        }
        if read < BATCH {
            guard.clear_ready();
        } else {
            drop(guard);
            tokio::task::yield_now().await;
        }
    }
}

/// The wall clock's time at which the monotonic clock was zero: what has to be added to an event's time.
fn boot_time() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    read(ClockId::CLOCK_REALTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

fn timestamp(boot: Duration, nanoseconds: u64) -> String {
    let time = boot.saturating_add(Duration::from_nanos(nanoseconds));
    jiff::Timestamp::UNIX_EPOCH
        .checked_add(jiff::SignedDuration::try_from(time).unwrap_or_default())
        .map(|time| format!("{time:.9}"))
        .unwrap_or_default()
}

fn log(event: &Event) {
    tracing::debug!(
        target: "orch::drop",
        reason = record::drop_reason(event.reason),
        source = ?record::address(event.source),
        destination = ?record::address(event.destination),
        protocol = record::protocol(event.protocol),
        source_port = event.source_port,
        destination_port = event.destination_port,
        ifindex = event.ifindex,
        "packet dropped"
    );
}
