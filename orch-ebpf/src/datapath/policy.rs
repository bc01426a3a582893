//! What NetworkPolicies allow.

use aya_ebpf::btf_maps::lpm_trie::Key;

use super::{
    conntrack, events,
    family::{Family, node_kind},
    maps,
    parse::Parsed,
};
use crate::{
    config::NODE_LOCAL,
    conntrack::Tuple,
    endpoint::{Endpoint, ISOLATED_EGRESS, ISOLATED_INGRESS},
    event::{DropReason, EVENT_VERDICT, Path},
    policy::{
        EGRESS, IDENTITY_ANY, IDENTITY_HOST, IDENTITY_WORLD, INGRESS, RULE_ALLOW, RULE_LOOKUP_BITS, RuleKey,
    },
};

/// Either direction of isolation.
const ISOLATED: u32 = ISOLATED_INGRESS | ISOLATED_EGRESS;

/// Judges a packet of a flow's original direction, which `tuple` describes as it is after the choice of a backend
/// and before that of a source. `from` and `to` are its sides where those are this node's pods.
///
/// # Errors
/// The reason why it must not pass.
#[inline(never)]
pub fn judge<A: Family>(
    parsed: &Parsed<A>,
    tuple: &Tuple<A>,
    from: Option<&Endpoint>,
    to: Option<&Endpoint>,
) -> Result<(), DropReason> {
    let mut tracked = false;
    if let Some(from) = from {
        if from.flags & ISOLATED_EGRESS != 0 {
            allow(parsed, from, EGRESS, tuple)?;
        }
        tracked |= from.flags & ISOLATED != 0;
    }
    if let Some(to) = to {
        if to.flags & ISOLATED_INGRESS != 0 {
            allow(parsed, to, INGRESS, tuple)?;
        }
        tracked |= to.flags & ISOLATED != 0;
    }
    // An answer that is not known for one would be taken for a flow of its own, and the flow that it answers for the
    // answers to that, which no policy is asked about: so both directions of isolation remember who began.
    if tracked {
        conntrack::expect_answers(parsed, tuple)?;
    }
    Ok(())
}

/// The identity of an address.
#[inline(never)]
pub fn identity<A: Family>(address: &A) -> u32 {
    if node_kind(*address) == NODE_LOCAL {
        return IDENTITY_HOST;
    }
    A::identities()
        .get(&Key::new(A::BITS, *address))
        .map_or(IDENTITY_WORLD, |identity| identity.number)
}

#[inline(never)]
fn allow<A: Family>(
    parsed: &Parsed<A>,
    endpoint: &Endpoint,
    direction: u8,
    tuple: &Tuple<A>,
) -> Result<(), DropReason> {
    let (peer, reason) = if direction == INGRESS {
        (&tuple.source, DropReason::PolicyIngress)
    } else {
        (&tuple.destination, DropReason::PolicyEgress)
    };
    let identity = identity(peer);
    if identity == IDENTITY_HOST {
        return Ok(());
    }
    let [port_high, port_low] = tuple.destination_port.to_be_bytes();
    let mut key = Key::new(
        RULE_LOOKUP_BITS,
        RuleKey {
            policy: endpoint.policy,
            identity,
            _pad: 0,
            direction,
            protocol: tuple.protocol,
            port_high,
            port_low,
            _tail: [0; 3],
        },
    );
    if !listed(&key) {
        key.data.identity = IDENTITY_ANY;
        if !listed(&key) {
            // A pod is never kept from itself.
            if tuple.source.same(tuple.destination) {
                return Ok(());
            }
            return Err(reason);
        }
    }
    events::count(Path::PolicyAllowed, 0);
    if parsed.opens() {
        events::flow(tuple, tuple, EVENT_VERDICT, u32::from(direction), identity);
    }
    Ok(())
}

#[inline(always)]
fn listed(key: &Key<RuleKey>) -> bool {
    maps::ORCH_RULES
        .get(key)
        .is_some_and(|rule| rule.verdict == RULE_ALLOW)
}
