//! Ports of rules, as prefixes of the rules' trie.

use std::ops::RangeInclusive;

use orch_ebpf::policy::{RULE_ANY_PORT_BITS, RULE_ANY_PROTOCOL_BITS, RULE_PORT_BITS, RuleKey};

/// A prefix of the trie of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RulePrefix {
    /// How many bits of the key count.
    pub bits: u32,
    /// The key; bits that do not count are zero.
    pub key: RuleKey,
}

/// Ports that a rule allows, of a pod or address that is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every protocol, ICMP too.
    All,
    /// Every port of a protocol.
    Protocol(u8),
    /// A range of a protocol's ports.
    Range(u8, PortRange),
}

/// First and last port; unlike the standard library's range, ordered and without a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl Ports {
    /// The prefixes that cover exactly these ports for a policy number, identity and direction.
    pub fn prefixes(&self, policy: u32, identity: u32, direction: u8) -> Vec<RulePrefix> {
        let key = RuleKey {
            policy,
            identity,
            direction,
            ..RuleKey::default()
        };
        match *self {
            Self::All => vec![RulePrefix {
                bits: RULE_ANY_PROTOCOL_BITS,
                key,
            }],
            Self::Protocol(protocol) => vec![RulePrefix {
                bits: RULE_ANY_PORT_BITS,
                key: RuleKey { protocol, ..key },
            }],
            Self::Range(protocol, range) => blocks(range.first..=range.last)
                .into_iter()
                .map(|(port, open)| {
                    let [port_high, port_low] = port.to_be_bytes();
                    RulePrefix {
                        bits: RULE_PORT_BITS - open,
                        key: RuleKey {
                            protocol,
                            port_high,
                            port_low,
                            ..key
                        },
                    }
                })
                .collect(),
        }
    }
}

/// Cuts a range of ports into the fewest aligned blocks: first port, and how many of its low bits are open.
fn blocks(range: RangeInclusive<u16>) -> Vec<(u16, u32)> {
    let (mut next, last) = (u32::from(*range.start()), u32::from(*range.end()));
    let mut blocks = Vec::new();
    while next <= last {
        let aligned = next.trailing_zeros().min(16);
        let fits = (last - next + 1).ilog2();
        let open = aligned.min(fits);
        blocks.push((u16::try_from(next).unwrap_or(u16::MAX), open));
        next += 1 << open;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_cut_where_they_are_aligned() {
        assert_eq!(blocks(80..=80), [(80, 0)]);
        assert_eq!(blocks(0..=65535), [(0, 16)]);
        assert_eq!(blocks(32000..=32768), [(32000, 8), (32256, 9), (32768, 0)]);
    }

    proptest! {
        #[test]
        fn blocks_cover_the_range_and_nothing_else(first: u16, last: u16, port: u16) {
            let blocks = blocks(first..=last);
            prop_assert!(blocks.len() <= 30);
            let covering = blocks.iter().filter(|(start, open)| (port ^ start) >> open.min(&15) == 0 || *open == 16);
            prop_assert_eq!(covering.count(), usize::from((first..=last).contains(&port)));
        }
    }
}
