//! Forgetting flows that are over: slow and cheap, since a full table evicts by itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use orch_ebpf::{
    PROTOCOL_TCP, PROTOCOL_UDP,
    conntrack::{Conntrack, SEEN_FIN, SEEN_RST, SEEN_TRAFFIC, Tuple},
};

use crate::shared::Shared;

const INTERVAL: Duration = Duration::from_secs(30);
/// An idle TCP flow on which both sides could still speak (RFC 5382 REQ-5 asks for at least 2 h 4 min).
const ESTABLISHED: Duration = Duration::from_secs(6 * 3600);
/// A TCP flow that is opening or closing (RFC 5382 REQ-5: at least 4 min).
const TRANSITORY: Duration = Duration::from_secs(240);
/// An idle UDP flow (RFC 4787 REQ-5: at least 2 min).
const UDP: Duration = Duration::from_secs(120);
/// An idle ICMP flow (RFC 5508 REQ-2: at least 60 s).
const OTHER: Duration = Duration::from_secs(60);

/// Sweeps until the task is dropped.
pub async fn run(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let gone = std::mem::take(&mut *shared.gone.lock());
        let Ok(now) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) else {
            continue;
        };
        let now = Duration::from(now);
        let mut maps = shared.maps.lock();
        let entries: HashMap<Tuple, Conntrack> = maps.conntrack.iter().filter_map(Result::ok).collect();
        if entries.is_empty() {
            continue;
        }
        let removed = maps.forget_flows(|tuple, entry| {
            gone.contains(&tuple.source.into())
                || gone.contains(&tuple.destination.into())
                || gone.contains(&entry.becomes.source.into())
                || gone.contains(&entry.becomes.destination.into())
                || is_over(now, tuple, entry, entries.get(&entry.becomes.reverse()))
        });
        tracing::debug!(entries = entries.len(), removed, "swept connection tracking");
    }
}

/// Whether a flow is over, judged by both directions: one side may be silent for long.
fn is_over(now: Duration, tuple: &Tuple, entry: &Conntrack, other: Option<&Conntrack>) -> bool {
    let seen = entry.seen | other.map_or(0, |other| other.seen);
    let last = entry.last_seen.max(other.map_or(0, |other| other.last_seen));
    let limit = match tuple.protocol {
        PROTOCOL_TCP if seen & (SEEN_FIN | SEEN_RST) != 0 || seen & SEEN_TRAFFIC == 0 => TRANSITORY,
        PROTOCOL_TCP => ESTABLISHED,
        PROTOCOL_UDP => UDP,
        _ => OTHER,
    };
    now.saturating_sub(Duration::from_nanos(last)) > limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(last_seen: u64, seen: u8) -> Conntrack {
        Conntrack {
            last_seen: last_seen * 1_000_000_000,
            seen,
            ..Conntrack::default()
        }
    }

    #[test]
    fn a_flow_lives_while_either_side_speaks() {
        let tuple = Tuple {
            protocol: PROTOCOL_UDP,
            ..Tuple::default()
        };
        let now = Duration::from_secs(1000);
        let (old, new) = (entry(10, 0), entry(990, 0));
        assert!(is_over(now, &tuple, &old, None));
        assert!(!is_over(now, &tuple, &old, Some(&new)));
    }

    #[test]
    fn a_closed_connection_goes_sooner_than_an_idle_one() {
        let tuple = Tuple {
            protocol: PROTOCOL_TCP,
            ..Tuple::default()
        };
        let now = Duration::from_secs(1000);
        assert!(!is_over(now, &tuple, &entry(10, SEEN_TRAFFIC), None));
        assert!(is_over(now, &tuple, &entry(10, SEEN_TRAFFIC | SEEN_FIN), None));
    }
}
