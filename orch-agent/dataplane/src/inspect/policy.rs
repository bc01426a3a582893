//! Rules of policies, and who is who for them.

use aya::maps::lpm_trie::Key;
use orch_ebpf::policy::{
    IDENTITIES_MAP, IDENTITY_ANY, IDENTITY_HOST, IDENTITY_WORLD, INGRESS, Identity, RULE_ALLOW,
    RULE_ANY_PORT_BITS, RULE_ANY_PROTOCOL_BITS, RULE_PORT_BITS, RULES_MAP, Rule, RuleKey,
};
use serde_json::json;

use super::{Cell, Pins, Table, both, network, table::row};
use crate::{DataplaneError, maps::MapAddress, monitor::protocol};

fn identity(number: u32) -> Cell {
    let text = match number {
        IDENTITY_ANY => "any",
        IDENTITY_WORLD => "world",
        IDENTITY_HOST => "host",
        _ => return json!(number).into(),
    };
    Cell::shown(json!(number), text.to_owned())
}

/// The block of ports that a prefix stands for; `None` for every port.
pub(super) fn ports(key: &RuleKey, bits: u32) -> Option<String> {
    let fixed = bits.checked_sub(RULE_ANY_PORT_BITS).filter(|fixed| *fixed > 0)?;
    let open = (RULE_PORT_BITS - RULE_ANY_PORT_BITS).saturating_sub(fixed);
    let first = u32::from(u16::from_be_bytes([key.port_high, key.port_low]));
    let last = first | ((1 << open) - 1);
    Some(if open == 0 {
        first.to_string()
    } else {
        format!("{first}-{last}")
    })
}

pub(super) fn rules(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let mut table = Table::new(&[
        "policy",
        "direction",
        "peer_identity",
        "protocol",
        "ports",
        "verdict",
    ]);
    let rank = |key: &Key<RuleKey>| {
        let rule = key.data();
        (
            rule.policy,
            rule.direction,
            rule.identity,
            rule.protocol,
            rule.port_high,
            rule.port_low,
        )
    };
    for (key, rule) in pins.trie::<RuleKey, Rule, _>(RULES_MAP, "", rank)? {
        let (bits, rule_key) = (key.prefix_len(), key.data());
        let any_protocol = bits <= RULE_ANY_PROTOCOL_BITS;
        table.push(vec![
            json!(rule_key.policy).into(),
            json!(if rule_key.direction == INGRESS {
                "ingress"
            } else {
                "egress"
            })
            .into(),
            identity(rule_key.identity),
            json!(if any_protocol {
                "any".to_owned()
            } else {
                protocol(rule_key.protocol)
            })
            .into(),
            json!(ports(&rule_key, bits).unwrap_or_else(|| "any".to_owned())).into(),
            json!(if rule.verdict == RULE_ALLOW {
                "allow"
            } else {
                "unknown"
            })
            .into(),
        ]);
    }
    Ok(table)
}

pub(super) fn identities(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    both!(Table::new(&["network", "identity"]), identities_of, pins)
}

fn identities_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    let rank = |key: &Key<A>| (key.data(), key.prefix_len());
    for (key, who) in pins.trie::<A, Identity, _>(IDENTITIES_MAP, A::SUFFIX, rank)? {
        let mut row = row![network(key.data(), key.prefix_len())];
        row.push(identity(who.number));
        table.push(row);
    }
    Ok(())
}
