//! NetworkPolicy: who a peer is, and what a set of policies allows it.
//!
//! An address has an identity: a number that this agent has given to what policies can tell apart (namespace, labels
//! and named ports of a pod, the innermost network of an `ipBlock`). A rule allows an identity, or every peer, on a
//! protocol and a range of ports; ranges are cut into aligned blocks, which are prefixes of the port.

use crate::{Address4, Address6, abi};

/// Start of the name of the tries from a network to its identity (`u32`).
pub const IDENTITIES_MAP: &str = "ORCH_IDENTITIES";
/// Most networks and addresses with an identity of one family.
pub const IDENTITIES_MAX: usize = 262_144;
/// Name of the trie from [`RuleKey`] to [`Rule`]; the prefix length of a rule counts from the key's start.
pub const RULES_MAP: &str = "ORCH_RULES";
/// Most rules.
pub const RULES_MAX: usize = 262_144;

/// Identity in a rule: every peer.
pub const IDENTITY_ANY: u32 = 0;
/// Identity of an address that no trie entry covers.
pub const IDENTITY_WORLD: u32 = 1;
/// Identity of this node, whose packets always reach its pods (Kubernetes' NetworkPolicy: "traffic to and from the
/// node where a Pod is running is always allowed").
pub const IDENTITY_HOST: u32 = 2;
/// The first identity that the agent gives.
pub const IDENTITY_FIRST: u32 = 16;

/// [`RuleKey`] direction: to the pod.
pub const INGRESS: u8 = 1;
/// [`RuleKey`] direction: from the pod.
pub const EGRESS: u8 = 2;

/// What a rule is looked up by. Its bytes are in the order of an LPM trie: what may be left open stands last.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// [`crate::endpoint::Endpoint::policy`] of the isolated pod.
    pub policy: u32,
    /// The peer's identity, or [`IDENTITY_ANY`].
    pub identity: u32,
    /// Always zero.
    pub _pad: u8,
    /// [`INGRESS`] or [`EGRESS`].
    pub direction: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// The port, in wire order, split so that no byte is padding: high byte.
    pub port_high: u8,
    /// The port's low byte; the key's last three bytes are padding.
    pub port_low: u8,
    /// Always zero.
    pub _tail: [u8; 3],
}

abi!(RuleKey, size 16, align 4, {
    policy @ 0, identity @ 4, _pad @ 8, direction @ 9, protocol @ 10, port_high @ 11, port_low @ 12, _tail @ 13,
});

/// Prefix length of a rule for every protocol and port.
pub const RULE_ANY_PROTOCOL_BITS: u32 = 80;
/// Prefix length of a rule for every port of a protocol; one for a block of ports adds the block's fixed bits.
pub const RULE_ANY_PORT_BITS: u32 = 88;
/// Prefix length of a rule for one port.
pub const RULE_PORT_BITS: u32 = 104;
/// Prefix length that a lookup gives.
pub const RULE_LOOKUP_BITS: u32 = 128;

/// What the rule says.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    /// [`RULE_ALLOW`].
    pub verdict: u32,
}

/// [`Rule`] verdict: let it pass.
pub const RULE_ALLOW: u32 = 1;

abi!(Rule, size 4, align 4, { verdict @ 0 });

/// An identity as a map's value.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// The number.
    pub number: u32,
}

abi!(Identity, size 4, align 4, { number @ 0 });

const _: () = {
    assert!(
        size_of::<Address4>() * 8 == 32,
        "the trie of IPv4 identities has prefixes of up to 32 bits"
    );
    assert!(
        size_of::<Address6>() * 8 == 128,
        "the trie of IPv6 identities has prefixes of up to 128 bits"
    );
};
