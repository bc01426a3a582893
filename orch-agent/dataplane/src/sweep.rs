//! Forgetting flows that are over: slow and cheap, since a full table evicts by itself.

use std::{collections::BTreeSet, io, net::IpAddr, sync::Arc, time::Duration};

use orch_ebpf::{
    Address4, Address6, PROTOCOL_TCP, PROTOCOL_UDP,
    conntrack::{CONNTRACK_MAP, Conntrack, SEEN_FIN, SEEN_RST, SEEN_TRAFFIC, Tuple},
    flow_table::{ROWS, Slot},
};

use crate::{
    maps::{FamilyMaps, MapAddress, Maps},
    shared::Shared,
    sys::monotonic,
};

const INTERVAL: Duration = Duration::from_secs(30);
/// Rows that are looked at before others have their turn.
const BATCH: usize = 1024;
/// What programs take to write a slot after they have said where it is, and much more.
const PAUSE: Duration = Duration::from_millis(10);
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
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.sweep.notified() => {}
        }
        // A pod that goes while this runs is for the next time; its address rests until its flows are forgotten.
        let gone = shared.gone.lock().clone();
        let swept = async {
            let v4 = sweep::<Address4>(&shared, &gone, |maps| &maps.v4).await?;
            let v6 = sweep::<Address6>(&shared, &gone, |maps| &maps.v6).await?;
            io::Result::Ok((v4, v6))
        };
        match swept.await {
            Ok((v4, v6)) => {
                shared.gone.lock().retain(|ip| !gone.contains(ip));
                tracing::debug!(v4, v6, "swept connection tracking");
            }
            Err(error) => tracing::warn!(%error, "connection tracking could not be swept"),
        }
    }
}

/// Forgets one family's flows that are over or belong to a pod that has gone; how many entries.
async fn sweep<A: MapAddress>(
    shared: &Shared,
    gone: &BTreeSet<IpAddr>,
    family: impl Fn(&Maps) -> &FamilyMaps<A>,
) -> io::Result<usize> {
    let gone: BTreeSet<A> = gone.iter().filter_map(|ip| A::from_ip(*ip)).collect();
    let flows = family(&shared.maps.lock()).conntrack.open()?;
    let (mut read, mut removed) = (0, 0);
    let mut marks = flows.marks()?;
    // Whoever said something before has written its slot by then.
    tokio::time::sleep(PAUSE).await;
    let now = monotonic()?;
    for start in (0..ROWS as u32).step_by(BATCH) {
        for (row, Slot { tuple, entry }) in flows.of_rows(start..(start + BATCH as u32).min(ROWS as u32))? {
            read += 1;
            if !is_gone(&gone, &tuple, &entry)
                && (!is_over(now, &tuple, &entry, None)
                    || !is_over(now, &tuple, &entry, flows.get(&entry.becomes.reverse())?.as_ref()))
            {
                flows.note(&mut marks, row, &tuple);
                continue;
            }
            // One that has gone by itself meanwhile is as gone as one removed here.
            flows.remove(&tuple)?;
            removed += 1;
        }
        tokio::task::yield_now().await;
    }
    flows.forget_marks(&marks)?;
    shared.metrics.counted(CONNTRACK_MAP, A::SUFFIX, read - removed);
    Ok(removed)
}

/// Whether the flow is one of a pod that has gone.
fn is_gone<A: MapAddress>(gone: &BTreeSet<A>, tuple: &Tuple<A>, entry: &Conntrack<A>) -> bool {
    !gone.is_empty()
        && [tuple, &entry.becomes]
            .into_iter()
            .any(|tuple| gone.contains(&tuple.source) || gone.contains(&tuple.destination))
}

/// Whether a flow is over, judged by both directions: one side may be silent for long.
fn is_over<A>(now: Duration, tuple: &Tuple<A>, entry: &Conntrack<A>, other: Option<&Conntrack<A>>) -> bool {
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
    use orch_ebpf::conntrack::KIND_DIRECT;

    use super::*;

    fn entry(last_seen: u64, seen: u8) -> Conntrack<Address4> {
        Conntrack {
            last_seen: last_seen * 1_000_000_000,
            seen,
            ..Conntrack::default()
        }
    }

    fn tuple(protocol: u8) -> Tuple<Address4> {
        Tuple {
            protocol,
            ..Tuple::default()
        }
    }

    #[test]
    fn a_flow_lives_while_either_side_speaks() {
        let tuple = tuple(PROTOCOL_UDP);
        let now = Duration::from_secs(1000);
        let (old, new) = (entry(10, 0), entry(990, 0));
        assert!(is_over(now, &tuple, &old, None));
        assert!(!is_over(now, &tuple, &old, Some(&new)));
    }

    #[test]
    fn a_closed_connection_goes_sooner_than_an_idle_one() {
        let tuple = tuple(PROTOCOL_TCP);
        let now = Duration::from_secs(1000);
        assert!(!is_over(now, &tuple, &entry(10, SEEN_TRAFFIC), None));
        assert!(is_over(now, &tuple, &entry(10, SEEN_TRAFFIC | SEEN_FIN), None));
    }

    #[test]
    fn a_direct_flow_is_judged_by_the_side_that_is_seen() {
        let tuple = tuple(PROTOCOL_TCP);
        let now = Duration::from_secs(1000);
        let direct = |last_seen, seen| Conntrack {
            kind: KIND_DIRECT,
            ..entry(last_seen, seen)
        };
        assert!(!is_over(now, &tuple, &direct(10, SEEN_TRAFFIC), None));
        for end in [SEEN_FIN, SEEN_RST] {
            assert!(is_over(now, &tuple, &direct(10, SEEN_TRAFFIC | end), None));
            assert!(!is_over(now, &tuple, &direct(800, SEEN_TRAFFIC | end), None));
        }
    }

    #[test]
    fn what_a_pod_became_belongs_to_it_too() {
        let gone = BTreeSet::from([[10, 244, 1, 7]]);
        let mut entry = entry(10, 0);
        assert!(!is_gone(&gone, &tuple(PROTOCOL_TCP), &entry));
        entry.becomes.destination = [10, 244, 1, 7];
        assert!(is_gone(&gone, &tuple(PROTOCOL_TCP), &entry));
    }
}
