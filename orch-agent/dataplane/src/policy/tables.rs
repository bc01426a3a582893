//! What the kernel holds of policies, what it is told, and what a set of rules says of an identity.

use std::collections::{BTreeSet, HashMap, HashSet};

use ipnet::IpNet;
use orch_ebpf::{
    endpoint::{ISOLATED_EGRESS, ISOLATED_INGRESS},
    policy::{EGRESS, IDENTITY_ANY, INGRESS},
};

use super::{
    compile::{Peers, Port, Rule, RuleSet, numbers_of},
    identify::Identity,
    ports::{Ports, RulePrefix},
};

/// What an endpoint's entry says of policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The `ISOLATED_*` flags that are set, and no others.
    pub flags: u32,
    /// The policy number; zero without flags.
    pub policy: u32,
}

/// The flags of [`Verdict`].
pub const ISOLATED: u32 = ISOLATED_INGRESS | ISOLATED_EGRESS;

/// Who carries changes out. Each call is one change, and a reader in between sees it whole or not at all.
pub trait Kernel {
    /// Why a change failed.
    type Error;

    /// Adds a rule.
    ///
    /// # Errors
    /// When it is not there then.
    fn allow(&mut self, rule: &RulePrefix) -> Result<(), Self::Error>;
    /// Removes a rule.
    ///
    /// # Errors
    /// When it is still there then.
    fn disallow(&mut self, rule: &RulePrefix) -> Result<(), Self::Error>;
    /// Sets or removes a network's identity.
    ///
    /// # Errors
    /// When it is as before then.
    fn identify(&mut self, network: IpNet, identity: Option<u32>) -> Result<(), Self::Error>;
    /// Sets what endpoints' entries say, those to come included; each entry is one change.
    ///
    /// # Errors
    /// When some are as before then.
    fn enforce(&mut self, verdicts: &[(String, Verdict)]) -> Result<(), Self::Error>;
}

/// A mirror of the tries.
#[derive(Debug, Default)]
pub struct Tables {
    /// The rules, by policy number and identity; never an empty set.
    pub rules: HashMap<(u32, u32), BTreeSet<RulePrefix>>,
    /// The identities.
    pub networks: HashMap<IpNet, u32>,
}

impl Tables {
    /// Adds what lacks of a pair's rules.
    ///
    /// # Errors
    /// The kernel's.
    pub fn allow<K: Kernel>(
        &mut self,
        pair: (u32, u32),
        rules: &BTreeSet<RulePrefix>,
        kernel: &mut K,
    ) -> Result<(), K::Error> {
        for rule in rules {
            if !self
                .rules
                .get(&pair)
                .is_some_and(|written| written.contains(rule))
            {
                kernel.allow(rule)?;
                self.rules.entry(pair).or_default().insert(*rule);
            }
        }
        Ok(())
    }

    /// Removes what is too much of a pair's rules.
    ///
    /// # Errors
    /// The kernel's.
    pub fn disallow<K: Kernel>(
        &mut self,
        pair: (u32, u32),
        keep: &BTreeSet<RulePrefix>,
        kernel: &mut K,
    ) -> Result<(), K::Error> {
        let Some(written) = self.rules.get_mut(&pair) else {
            return Ok(());
        };
        let extra: Vec<RulePrefix> = written.difference(keep).copied().collect();
        for rule in extra {
            kernel.disallow(&rule)?;
            written.remove(&rule);
        }
        if written.is_empty() {
            self.rules.remove(&pair);
        }
        Ok(())
    }

    /// Sets or removes a network's identity if it is another.
    ///
    /// # Errors
    /// The kernel's.
    pub fn identify<K: Kernel>(
        &mut self,
        network: IpNet,
        identity: Option<u32>,
        kernel: &mut K,
    ) -> Result<(), K::Error> {
        if self.networks.get(&network).copied() == identity {
            return Ok(());
        }
        kernel.identify(network, identity)?;
        match identity {
            Some(number) => self.networks.insert(network, number),
            None => self.networks.remove(&network),
        };
        Ok(())
    }

    /// Every policy number that a rule has.
    pub fn policies(&self) -> HashSet<u32> {
        self.rules.keys().map(|(policy, _)| *policy).collect()
    }

    /// Every identity that an entry or a rule has.
    pub fn identities(&self) -> HashSet<u32> {
        let of_rules = self.rules.keys().map(|(_, identity)| *identity);
        of_rules.chain(self.networks.values().copied()).collect()
    }
}

/// The isolating flags that go with a set of rules.
pub fn flags(rules: &RuleSet) -> u32 {
    let flag = |side: &Option<_>, flag| if side.is_some() { flag } else { 0 };
    flag(&rules.ingress, ISOLATED_INGRESS) | flag(&rules.egress, ISOLATED_EGRESS)
}

/// The rules of a set, which has the number `policy`, for an identity and its number; without one for every peer.
pub fn rules_for(rules: &RuleSet, policy: u32, identity: Option<(&Identity, u32)>) -> BTreeSet<RulePrefix> {
    let mut prefixes = BTreeSet::new();
    for (side, direction) in [(&rules.ingress, INGRESS), (&rules.egress, EGRESS)] {
        for rule in side.iter().flatten() {
            let number = identity.map_or(IDENTITY_ANY, |(_, number)| number);
            for ports in allowed(rule, identity.map(|(identity, _)| identity)) {
                prefixes.extend(ports.prefixes(policy, number, direction));
            }
        }
    }
    prefixes
}

/// The ports that a rule allows an identity, beyond what it allows every peer.
fn allowed(rule: &Rule, identity: Option<&Identity>) -> Vec<Ports> {
    let everybody = rule.peers == Peers::Any;
    let peer = identity.is_some_and(|identity| match &rule.peers {
        Peers::Any => true,
        Peers::Of { pods, blocks } => {
            identity.peers.iter().any(|peer| pods.contains(peer.as_ref()))
                || identity
                    .prefix
                    .is_some_and(|prefix| blocks.iter().any(|block| block.contains(&prefix)))
        }
    });
    let named: Vec<_> = identity
        .iter()
        .flat_map(|identity| identity.ports.iter().cloned())
        .collect();
    rule.ports
        .iter()
        .flat_map(|port| match port {
            Port::Number(ports) if everybody != identity.is_some() && (everybody || peer) => {
                vec![ports.clone()]
            }
            Port::Name(protocol, name) if peer => numbers_of(&named, *protocol, name).collect(),
            _ => Vec::new(),
        })
        .collect()
}
