//! The addresses that load balancers may have, and who has which.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use orch_api::service::Family;

use crate::core::Key;

/// Why a text does not name addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Neither `A-B` nor a network.
    #[error("{0:?} is neither a range (10.0.0.10-10.0.0.20) nor a network (10.0.0.0/24) nor an address")]
    Form(String),
    /// The ends are of different families.
    #[error("the ends of {0:?} are of different address families")]
    Mixed(String),
    /// The first is after the last.
    #[error("the first address of {0:?} is after the last")]
    Backwards(String),
    /// Two parts share addresses.
    #[error("{0} and {1} overlap")]
    Overlap(Range, Range),
}

/// Addresses of one family, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Range {
    fn parse(text: &str) -> Result<Self, PoolError> {
        let form = || PoolError::Form(text.to_owned());
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self {
                first: network.network(),
                last: network.broadcast(),
            });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| form());
        let (first, last) = (address(first)?, address(last)?);
        if first.is_ipv4() != last.is_ipv4() {
            return Err(PoolError::Mixed(text.to_owned()));
        }
        if first > last {
            return Err(PoolError::Backwards(text.to_owned()));
        }
        Ok(Self { first, last })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        Family::of(ip) == Family::of(self.first) && (self.first..=self.last).contains(&ip)
    }
}

/// The address after `ip`.
fn next(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

/// The addresses that may be given out: `A-B`, `A` or a CIDR, separated by commas, of either family. A network is
/// taken whole, its first and last address included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool(Vec<Range>);

impl FromStr for AddressPool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let mut ranges: Vec<Range> = Vec::new();
        for part in text.split(',') {
            let range = Range::parse(part.trim())?;
            let overlaps = |other: &&Range| other.contains(range.first) || range.contains(other.first);
            if let Some(other) = ranges.iter().find(overlaps) {
                return Err(PoolError::Overlap(*other, range));
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }
}

impl AddressPool {
    /// Whether the address is one of the pool's.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(ip))
    }

    fn of(&self, family: Family) -> impl Iterator<Item = &Range> {
        self.0
            .iter()
            .filter(move |range| Family::of(range.first) == family)
    }
}

/// What a Service is to get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Its families, the primary first.
    pub families: Vec<Family>,
    /// The address it asks for by name (`spec.loadBalancerIP`).
    pub asked: Option<IpAddr>,
    /// The addresses that its status says it has.
    pub has: Vec<IpAddr>,
}

/// Why a Service is without an address of a family.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// Everything is given out.
    #[error("no {0} address is left in the load balancer pool")]
    Exhausted(Family),
    /// There is nothing to give out.
    #[error("the load balancer pool has no {0} addresses")]
    NoSuchFamily(Family),
    /// The address asked for is another Service's.
    #[error("the address {0} is in use by service {1}")]
    InUse(IpAddr, Key),
    /// The address asked for is not ours.
    #[error("the address {0} is not in the load balancer pool")]
    Outside(IpAddr),
    /// The address asked for is of a family that the Service has not.
    #[error("the address {0} is not of one of the service's IP families")]
    OtherFamily(IpAddr),
}

/// The addresses a Service gets, in the order of its families, and what it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// At most one per family.
    pub ips: Vec<IpAddr>,
    /// Empty when all wishes are met.
    pub lacks: Vec<Lack>,
}

/// Who has which address.
#[derive(Debug)]
pub struct Allocator {
    pool: AddressPool,
    owners: BTreeMap<IpAddr, Key>,
    held: HashMap<Key, Vec<IpAddr>>,
}

impl Allocator {
    /// Nothing given out.
    pub fn new(pool: AddressPool) -> Self {
        Self {
            pool,
            owners: BTreeMap::new(),
            held: HashMap::new(),
        }
    }

    /// Takes over what a stored Service has: those addresses of the pool that nobody has yet.
    pub fn adopt(&mut self, key: &Key, has: &[IpAddr]) {
        for ip in has {
            if self.pool.contains(*ip) && !self.owners.contains_key(ip) {
                self.owners.insert(*ip, key.clone());
                self.held.entry(key.clone()).or_default().push(*ip);
            }
        }
    }

    /// Gives a Service what it is to have. What it has stays, unless it asks for another by name and that one is free.
    pub fn grant(&mut self, key: &Key, wish: &Wish) -> Grant {
        self.adopt(key, &wish.has);
        let held = self.held.get(key).cloned().unwrap_or_default();
        let mut grant = Grant::default();
        let stray = |ip: &IpAddr| !wish.families.contains(&Family::of(*ip));
        grant
            .lacks
            .extend(wish.asked.filter(stray).map(Lack::OtherFamily));
        for &family in &wish.families {
            let has = held.iter().copied().find(|ip| Family::of(*ip) == family);
            let given = match wish.asked.filter(|ip| Family::of(*ip) == family) {
                Some(asked) => self.named(key, asked).map_err(|lack| (has, lack)),
                None => has
                    .or_else(|| self.lowest_free(family))
                    .ok_or_else(|| (None, self.lack(family))),
            };
            match given {
                Ok(ip) => grant.ips.push(ip),
                Err((kept, lack)) => {
                    grant.ips.extend(kept);
                    grant.lacks.push(lack);
                }
            }
        }
        self.release(key);
        for ip in &grant.ips {
            self.owners.insert(*ip, key.clone());
        }
        if !grant.ips.is_empty() {
            self.held.insert(key.clone(), grant.ips.clone());
        }
        grant
    }

    /// Sets free all that a Service has; tells whether that was anything.
    pub fn release(&mut self, key: &Key) -> bool {
        let held = self.held.remove(key).unwrap_or_default();
        for ip in &held {
            self.owners.remove(ip);
        }
        !held.is_empty()
    }

    /// What a Service has.
    pub fn held(&self, key: &Key) -> &[IpAddr] {
        self.held.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    fn named(&self, key: &Key, asked: IpAddr) -> Result<IpAddr, Lack> {
        if !self.pool.contains(asked) {
            return Err(Lack::Outside(asked));
        }
        match self.owners.get(&asked) {
            Some(owner) if owner != key => Err(Lack::InUse(asked, owner.clone())),
            _ => Ok(asked),
        }
    }

    /// The walk is over what is taken, not over the range, which may be a network of IPv6.
    fn lowest_free(&self, family: Family) -> Option<IpAddr> {
        self.pool.of(family).find_map(|range| {
            let mut candidate = range.first;
            for taken in self.owners.range(range.first..=range.last).map(|(ip, _)| *ip) {
                if taken != candidate {
                    break;
                }
                candidate = next(candidate)?;
            }
            range.contains(candidate).then_some(candidate)
        })
    }

    fn lack(&self, family: Family) -> Lack {
        match self.pool.of(family).next() {
            Some(_) => Lack::Exhausted(family),
            None => Lack::NoSuchFamily(family),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(pool: &str) -> Allocator {
        Allocator::new(pool.parse().unwrap())
    }

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    fn wish(families: &[Family]) -> Wish {
        Wish {
            families: families.to_vec(),
            ..Wish::default()
        }
    }

    fn text(grant: &Grant) -> Vec<String> {
        grant.ips.iter().map(ToString::to_string).collect()
    }

    const FOUR: &[Family] = &[Family::V4];
    const BOTH: &[Family] = &[Family::V6, Family::V4];

    #[test]
    fn pools_are_read_and_bad_ones_refused() {
        let pool: AddressPool = "172.30.0.200-172.30.0.250, fd00:30::200-fd00:30::2ff,10.0.0.0/30,10.1.1.1"
            .parse()
            .unwrap();
        for (ip, is_in) in [
            ("172.30.0.200", true),
            ("172.30.0.251", false),
            ("fd00:30::2ff", true),
            ("10.0.0.3", true),
            ("10.0.0.4", false),
            ("10.1.1.1", true),
        ] {
            assert_eq!(pool.contains(ip.parse().unwrap()), is_in, "{ip}");
        }
        for (text, want) in [
            ("", "is neither a range"),
            ("10.0.0.1-", "is neither a range"),
            ("10.0.0.1-fd00::1", "different address families"),
            ("10.0.0.2-10.0.0.1", "after the last"),
            (
                "10.0.0.0/24,10.0.0.9",
                "10.0.0.0-10.0.0.255 and 10.0.0.9-10.0.0.9 overlap",
            ),
        ] {
            let error = text.parse::<AddressPool>().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn every_service_gets_its_own_until_none_is_left() {
        let mut all = allocator("10.0.0.1-10.0.0.2,fd00::/64");
        assert_eq!(text(&all.grant(&key("a"), &wish(BOTH))), ["fd00::", "10.0.0.1"]);
        assert_eq!(text(&all.grant(&key("b"), &wish(FOUR))), ["10.0.0.2"]);
        let c = all.grant(&key("c"), &wish(BOTH));
        assert_eq!(
            (text(&c), c.lacks),
            (vec!["fd00::1".to_owned()], vec![Lack::Exhausted(Family::V4)])
        );
        assert!(all.release(&key("a")) && !all.release(&key("a")));
        assert_eq!(text(&all.grant(&key("c"), &wish(BOTH))), ["fd00::1", "10.0.0.1"]);
        // A family less is an address less.
        assert_eq!(text(&all.grant(&key("c"), &wish(FOUR))), ["10.0.0.1"]);
        assert_eq!(text(&all.grant(&key("d"), &wish(&[Family::V6]))), ["fd00::"]);
        assert_eq!(
            allocator("10.0.0.1").grant(&key("a"), &wish(&[Family::V6])).lacks,
            [Lack::NoSuchFamily(Family::V6)]
        );
    }

    #[test]
    fn a_restart_gives_everybody_what_they_had() {
        let mut all = allocator("10.0.0.1-10.0.0.9");
        let has = |ip: &str| vec![ip.parse::<IpAddr>().unwrap()];
        all.adopt(&key("a"), &has("10.0.0.5"));
        all.adopt(&key("b"), &has("10.0.0.1"));
        // By an older mistake two have the same, or one from another pool: they get others.
        all.adopt(&key("c"), &has("10.0.0.5"));
        let mut c = wish(FOUR);
        c.has = has("10.0.0.5");
        assert_eq!(text(&all.grant(&key("c"), &c)), ["10.0.0.2"]);
        let mut d = wish(FOUR);
        d.has = has("192.0.2.1");
        assert_eq!(text(&all.grant(&key("d"), &d)), ["10.0.0.3"]);
        let mut a = wish(FOUR);
        a.has = has("10.0.0.5");
        assert_eq!(text(&all.grant(&key("a"), &a)), ["10.0.0.5"]);
    }

    #[test]
    fn an_address_asked_for_is_given_or_waited_for() {
        let mut all = allocator("10.0.0.1-10.0.0.9");
        let asking = |ip: &str| Wish {
            asked: Some(ip.parse().unwrap()),
            ..wish(FOUR)
        };
        assert_eq!(text(&all.grant(&key("a"), &asking("10.0.0.7"))), ["10.0.0.7"]);
        let b = all.grant(&key("b"), &asking("10.0.0.7"));
        assert_eq!(
            (b.ips.len(), b.lacks),
            (0, vec![Lack::InUse("10.0.0.7".parse().unwrap(), key("a"))])
        );
        let c = all.grant(&key("c"), &asking("192.0.2.1"));
        assert_eq!(c.lacks, [Lack::Outside("192.0.2.1".parse().unwrap())]);
        let six = all.grant(&key("d"), &asking("fd00::1"));
        assert_eq!(six.lacks, [Lack::OtherFamily("fd00::1".parse().unwrap())]);
        // Who has one keeps it while the one asked for is taken, and moves once it is free.
        assert_eq!(text(&all.grant(&key("b"), &wish(FOUR))), ["10.0.0.2"]);
        assert_eq!(text(&all.grant(&key("b"), &asking("10.0.0.7"))), ["10.0.0.2"]);
        all.release(&key("a"));
        assert_eq!(text(&all.grant(&key("b"), &asking("10.0.0.7"))), ["10.0.0.7"]);
        assert_eq!(text(&all.grant(&key("e"), &asking("10.0.0.2"))), ["10.0.0.2"]);
    }
}
