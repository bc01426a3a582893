//! Announcing load balancers' addresses: one node answers for each by ARP and neighbour discovery.
//!
//! Which node that is, every agent decides by itself from the same order and from whether the nodes before it live.
//! The programs answer from a pinned map, so an address stays where it is while the agent is away.

mod choose;
mod frames;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use orch_ebpf::{
    Address as _, Address4, Address6,
    config::{ANNOUNCED_MAP, Announced},
};
use tokio::sync::watch;

use self::choose::Choice;
use crate::{
    DataplaneError,
    liveness::{Heard, Life},
    maps::{FamilyMaps, MapAddress, failed, gone_or},
    shared::Shared,
    sys,
};

/// How often it is looked whether the network is to be told of an address.
const TELL_TICK: Duration = Duration::from_millis(500);
/// How long to wait before trying again what the kernel has refused.
const RETRY: Duration = Duration::from_secs(1);
/// When, after an address has come here, the network is told: RFC 5227 section 2.3 asks for two announcements, two
/// seconds apart; one more at once meets neighbours that would not believe so quick a change.
const TELL_AFTER: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(1100),
    Duration::from_millis(3100),
];
/// How often the network is told again. A node that was cut off never knew that another took its address, which gives
/// it up without a word when the first is back: neighbours would go on to send to the other, alive or not.
const TELL_EVERY: Duration = Duration::from_secs(3);
/// How many announcements may be sent at once; the others follow with the next tick.
const TELL_AT_ONCE: usize = 250;
/// How many of these may be of what the network was told before: a segment with thousands of addresses is told less often,
/// and nobody waits behind what is only said again.
const TELL_AGAIN_AT_ONCE: usize = 25;

/// What is to be announced, and by whom it may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Addresses with the names of the nodes that may announce them; `None` for all.
    pub addresses: BTreeMap<IpAddr, Option<BTreeSet<String>>>,
    /// The nodes that may announce anything, with their addresses.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
}

/// Runs until the task is dropped. Until it is known what is wanted, what an earlier agent announced stays.
pub async fn run(shared: Arc<Shared>, mut wanted: watch::Receiver<Option<Wanted>>) {
    let mut heard = shared.liveness.heard();
    let mut uplinks = shared.uplinks.subscribe();
    let mut announcer = Announcer {
        shared,
        held: None,
        to_tell: BTreeMap::new(),
    };
    let mut ticks = tokio::time::interval(TELL_TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let current = wanted.borrow_and_update().clone();
        let mut busy = false;
        if let Some(current) = current {
            let known = Arc::clone(&heard.borrow_and_update());
            if let Err(error) = announcer.settle(&current, &known) {
                tracing::error!(%error, "announced addresses could not be brought up to date, trying again");
                announcer.held = None;
                tokio::time::sleep(RETRY).await;
            }
            busy = !announcer.to_tell.is_empty() || announcer.held.is_none();
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = uplinks.changed() => if changed.is_err() { return },
            changed = heard.changed() => if changed.is_err() { return },
            _ = ticks.tick(), if busy => {}
        }
    }
}

struct Announcer {
    shared: Arc<Shared>,
    /// What the maps hold, once that is known.
    held: Option<BTreeMap<IpAddr, Announced>>,
    /// When the network is to be told of which address, and for which time.
    to_tell: BTreeMap<IpAddr, (Instant, usize)>,
}

impl Announcer {
    /// Makes the maps what they should be, and says what has come here.
    fn settle(&mut self, wanted: &Wanted, heard: &Heard) -> Result<(), DataplaneError> {
        let held = match self.held.take() {
            Some(held) => held,
            None => self.read()?,
        };
        let own = &self.shared.config.node_name;
        let mut ask = BTreeSet::new();
        let mut desired = BTreeMap::new();
        for (address, only) in &wanted.addresses {
            let place = self.place(*address);
            // When no node is ready it is the judgement that is wrong, not all nodes.
            if wanted.nodes.is_empty() {
                if held.contains_key(address) {
                    desired.insert(*address, place);
                }
                continue;
            }
            let order = choose::order(*address, wanted.nodes.keys(), only.as_ref());
            let life = |name: &str| heard.get(name).map_or(Life::Unknown, |seen| seen.life);
            let Choice { announce, ask: more } =
                choose::choose(&order, own, held.contains_key(address), life);
            ask.extend(more);
            if announce {
                desired.insert(*address, place);
            }
        }
        let addresses = |name: String| {
            let addresses = wanted.nodes.get(&name).cloned().unwrap_or_default();
            (name, addresses)
        };
        let liveness = &self.shared.liveness;
        liveness.ask_for_announcements(ask.into_iter().map(addresses).collect());
        self.write(&held, &desired)?;
        let now = Instant::now();
        for (address, place) in &desired {
            if held.get(address) != Some(place) {
                tracing::info!(%address, "this node announces the address now");
                self.to_tell.insert(*address, (now, 0));
            }
        }
        for address in held.keys().filter(|address| !desired.contains_key(*address)) {
            tracing::info!(%address, "this node announces the address no longer");
        }
        self.tell(&desired, now);
        self.held = Some(desired);
        Ok(())
    }

    /// Where an address is announced: on the uplink on whose network it is, or else on the first.
    fn place(&self, address: IpAddr) -> Announced {
        let uplinks = self.shared.uplinks();
        let interface = uplinks
            .on_network_of(address)
            .map_or_else(|| uplinks.primary(), |uplink| &uplink.interface);
        Announced {
            ifindex: interface.index,
            mac: interface.mac,
            _pad: [0; 2],
        }
    }

    fn tell(&mut self, held: &BTreeMap<IpAddr, Announced>, now: Instant) {
        self.to_tell.retain(|address, _| held.contains_key(address));
        for address in held.keys() {
            let again = (now + TELL_EVERY, TELL_AFTER.len());
            self.to_tell.entry(*address).or_insert(again);
        }
        for address in due(&self.to_tell, now) {
            let (Some(place), Some((when, time))) = (held.get(&address), self.to_tell.get_mut(&address))
            else {
                continue;
            };
            let frame = frames::announcement(address, place.mac);
            if let Err(error) = sys::packet::send_frame(place.ifindex, &frame) {
                tracing::warn!(%error, %address, "the network could not be told of an address");
            }
            let pause = match (TELL_AFTER.get(*time), TELL_AFTER.get(*time + 1)) {
                (Some(this), Some(next)) => next.saturating_sub(*this),
                _ => TELL_EVERY,
            };
            (*when, *time) = (now + pause, *time + 1);
        }
    }

    fn read(&self) -> Result<BTreeMap<IpAddr, Announced>, DataplaneError> {
        let maps = self.shared.maps.lock();
        let mut all = BTreeMap::new();
        read_family(&maps.v4, &mut all)?;
        read_family(&maps.v6, &mut all)?;
        Ok(all)
    }

    fn write(
        &self,
        held: &BTreeMap<IpAddr, Announced>,
        desired: &BTreeMap<IpAddr, Announced>,
    ) -> Result<(), DataplaneError> {
        let mut maps = self.shared.maps.lock();
        for (ip, place) in desired.iter().filter(|(ip, place)| held.get(*ip) != Some(*place)) {
            put(&mut maps.v4, Address4::from_ip(*ip), *place)?;
            put(&mut maps.v6, Address6::from_ip(*ip), *place)?;
        }
        for ip in held.keys().filter(|ip| !desired.contains_key(*ip)) {
            remove(&mut maps.v4, Address4::from_ip(*ip))?;
            remove(&mut maps.v6, Address6::from_ip(*ip))?;
        }
        Ok(())
    }
}

/// The addresses to tell of now: those that have come here first, then those that have waited for longest.
fn due(to_tell: &BTreeMap<IpAddr, (Instant, usize)>, now: Instant) -> Vec<IpAddr> {
    let mut due: Vec<_> = to_tell
        .iter()
        .filter(|(_, (when, _))| *when <= now)
        .map(|(address, (when, time))| (*time >= TELL_AFTER.len(), *when, *address))
        .collect();
    due.sort_unstable();
    let first = due.partition_point(|(again, ..)| !again);
    due.truncate(TELL_AT_ONCE.min(first + TELL_AGAIN_AT_ONCE));
    due.into_iter().map(|(.., address)| address).collect()
}

fn read_family<A: MapAddress>(
    maps: &FamilyMaps<A>,
    all: &mut BTreeMap<IpAddr, Announced>,
) -> Result<(), DataplaneError> {
    for entry in maps.announced.iter() {
        let (address, place) = entry.map_err(failed(ANNOUNCED_MAP))?;
        all.insert(address.ip(), place);
    }
    Ok(())
}

fn put<A: MapAddress>(
    maps: &mut FamilyMaps<A>,
    address: Option<A>,
    place: Announced,
) -> Result<(), DataplaneError> {
    match address {
        Some(address) => maps
            .announced
            .insert(address, place, 0)
            .map_err(failed(ANNOUNCED_MAP)),
        None => Ok(()),
    }
}

fn remove<A: MapAddress>(maps: &mut FamilyMaps<A>, address: Option<A>) -> Result<(), DataplaneError> {
    match address {
        Some(address) => gone_or(maps.announced.remove(&address)).map_err(failed(ANNOUNCED_MAP)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn what_is_new_goes_first_and_nobody_waits_for_ever() {
        let start = Instant::now();
        let mut to_tell: BTreeMap<_, _> = (0..1000)
            .map(|number| (address(number), (start, TELL_AFTER.len())))
            .collect();
        to_tell.insert(address(5000), (start, 0));
        to_tell.insert(address(5001), (start + TELL_EVERY, 1));
        let mut told = BTreeSet::new();
        for tick in 0..40 {
            let now = start + TELL_TICK * tick;
            let due = due(&to_tell, now);
            assert_eq!(due.contains(&address(5000)), tick == 0);
            assert!(due.len() <= TELL_AGAIN_AT_ONCE + 2);
            for address in due {
                to_tell.insert(address, (now + TELL_EVERY, TELL_AFTER.len()));
                told.insert(address);
            }
        }
        // Forty ticks are enough for all of them, if each has its turn before another has its second.
        assert_eq!(told.len(), 40 * TELL_AGAIN_AT_ONCE + 2);
    }

    #[test]
    fn many_that_come_at_once_are_told_in_turns() {
        let start = Instant::now();
        let to_tell: BTreeMap<_, _> = (0..1000).map(|number| (address(number), (start, 0))).collect();
        assert_eq!(due(&to_tell, start).len(), TELL_AT_ONCE);
    }
}
