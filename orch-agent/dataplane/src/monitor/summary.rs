//! What was dropped, in the agent's log once a minute: the counters cost nothing, and a flood of drops stays one line.

use std::{sync::Arc, time::Duration};

use orch_ebpf::event::DropReason;

use crate::{inspect::counter, shared::Shared};

const INTERVAL: Duration = Duration::from_secs(60);

/// Logs until the task is dropped.
pub async fn run(shared: Arc<Shared>) {
    let mut before = dropped(&shared);
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = dropped(&shared);
        for ((reason, now), before) in DropReason::ALL.iter().zip(&now).zip(&before) {
            let packets = now.saturating_sub(*before);
            if packets > 0 {
                tracing::info!(target: "orch::drops", reason = reason.text(), packets, "dropped in the last minute");
            }
        }
        before = now;
    }
}

/// Packets by reason.
fn dropped(shared: &Shared) -> Vec<u64> {
    let maps = shared.maps.lock();
    let packets =
        |reason: &DropReason| counter(&maps.metrics, *reason as u32).map_or(0, |counter| counter.packets);
    DropReason::ALL.iter().map(packets).collect()
}
