//! The tries and the endpoints' entries in the kernel: reading back what is there, and making changes.

use std::collections::HashMap;

use aya::maps::{HashMap as BpfHashMap, LpmTrie, MapData, lpm_trie::Key};
use ipnet::IpNet;
use orch_ebpf::{
    endpoint::{ENDPOINTS_MAP, Endpoint},
    policy::{IDENTITIES_MAP, Identity, RULE_ALLOW, RULES_MAP, Rule},
};
use parking_lot::Mutex;

use super::{
    ports::RulePrefix,
    tables::{ISOLATED, Kernel, Tables, Verdict},
};
use crate::{
    DataplaneError,
    maps::{FamilyMaps, MapAddress, Maps, failed, gone_or},
};

/// What policies say of each pod that has or will have endpoints, by uid.
pub type Enforced = Mutex<HashMap<String, Verdict>>;

/// The uid of an endpoint's pod.
fn uid(endpoint: &Endpoint) -> String {
    let bytes = endpoint.uid.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn verdict(endpoint: &Endpoint) -> Verdict {
    Verdict {
        flags: endpoint.flags & ISOLATED,
        policy: endpoint.policy,
    }
}

/// An endpoint's entry that says what `verdict` says, and otherwise what it said.
pub fn with_verdict(endpoint: Endpoint, verdict: Verdict) -> Endpoint {
    Endpoint {
        flags: endpoint.flags & !ISOLATED | verdict.flags,
        policy: verdict.policy,
        ..endpoint
    }
}

/// Reads back what an earlier agent has written: the tries, and what each pod's endpoints say.
///
/// # Errors
/// When the kernel refuses.
pub fn read(maps: &Maps) -> Result<(Tables, HashMap<String, Verdict>), DataplaneError> {
    let mut tables = Tables::default();
    for entry in maps.rules.iter() {
        let (key, _) = entry.map_err(failed(RULES_MAP))?;
        let rule = RulePrefix {
            bits: key.prefix_len(),
            key: key.data(),
        };
        let pair = (rule.key.policy, rule.key.identity);
        tables.rules.entry(pair).or_default().insert(rule);
    }
    read_networks(&maps.v4.identities, &mut tables)?;
    read_networks(&maps.v6.identities, &mut tables)?;
    let mut enforced = HashMap::new();
    read_endpoints(&maps.v4.endpoints, &mut enforced)?;
    read_endpoints(&maps.v6.endpoints, &mut enforced)?;
    Ok((tables, enforced))
}

fn read_networks<A: MapAddress>(
    trie: &LpmTrie<MapData, A, Identity>,
    tables: &mut Tables,
) -> Result<(), DataplaneError> {
    for entry in trie.iter() {
        let (key, identity) = entry.map_err(failed(IDENTITIES_MAP))?;
        let length = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
        if let Ok(network) = IpNet::new(key.data().ip(), length) {
            tables.networks.insert(network, identity.number);
        }
    }
    Ok(())
}

fn read_endpoints<A: MapAddress>(
    endpoints: &BpfHashMap<MapData, A, Endpoint>,
    enforced: &mut HashMap<String, Verdict>,
) -> Result<(), DataplaneError> {
    for entry in endpoints.iter() {
        let (_, endpoint) = entry.map_err(failed(ENDPOINTS_MAP))?;
        let verdict = verdict(&endpoint);
        // An agent that died between a pod's two entries left one behind the other: neither is what is enforced.
        enforced
            .entry(uid(&endpoint))
            .and_modify(|known| {
                if *known != verdict {
                    *known = TORN;
                }
            })
            .or_insert(verdict);
    }
    Ok(())
}

/// What no pod is given: flags without a number, so that both entries are written again.
const TORN: Verdict = Verdict {
    flags: ISOLATED,
    policy: 0,
};

/// The running data plane's maps.
pub struct MapsKernel<'a> {
    /// The maps. Locked for each change on its own, so that nobody waits for all of them.
    pub maps: &'a Mutex<Maps>,
    /// What endpoints that come later are to say. Locked after the maps.
    pub enforced: &'a Enforced,
}

impl Kernel for MapsKernel<'_> {
    type Error = DataplaneError;

    fn allow(&mut self, rule: &RulePrefix) -> Result<(), DataplaneError> {
        let allow = Rule { verdict: RULE_ALLOW };
        let key = Key::new(rule.bits, rule.key);
        self.maps
            .lock()
            .rules
            .insert(&key, allow, 0)
            .map_err(failed(RULES_MAP))
    }

    fn disallow(&mut self, rule: &RulePrefix) -> Result<(), DataplaneError> {
        let key = Key::new(rule.bits, rule.key);
        gone_or(self.maps.lock().rules.remove(&key)).map_err(failed(RULES_MAP))
    }

    fn identify(&mut self, network: IpNet, identity: Option<u32>) -> Result<(), DataplaneError> {
        let mut maps = self.maps.lock();
        match network {
            IpNet::V4(_) => set_identity(&mut maps.v4, network, identity),
            IpNet::V6(_) => set_identity(&mut maps.v6, network, identity),
        }
    }

    fn enforce(&mut self, verdicts: &[(String, Verdict)]) -> Result<(), DataplaneError> {
        // One who writes an endpoint's entry asks for the verdict with the maps locked: it is in the entries that are
        // walked through here, or asks after this.
        let mut maps = self.maps.lock();
        self.enforced.lock().extend(verdicts.iter().cloned());
        let verdicts: HashMap<&str, Verdict> = verdicts
            .iter()
            .map(|(uid, verdict)| (uid.as_str(), *verdict))
            .collect();
        set_verdicts(&mut maps.v4, &verdicts)?;
        set_verdicts(&mut maps.v6, &verdicts)
    }
}

fn set_identity<A: MapAddress>(
    maps: &mut FamilyMaps<A>,
    network: IpNet,
    identity: Option<u32>,
) -> Result<(), DataplaneError> {
    let Some(address) = A::from_ip(network.network()) else {
        return Ok(());
    };
    let key = Key::new(u32::from(network.prefix_len()), address);
    match identity {
        Some(number) => maps.identities.insert(&key, Identity { number }, 0),
        None => gone_or(maps.identities.remove(&key)),
    }
    .map_err(failed(IDENTITIES_MAP))
}

fn set_verdicts<A: MapAddress>(
    maps: &mut FamilyMaps<A>,
    verdicts: &HashMap<&str, Verdict>,
) -> Result<(), DataplaneError> {
    let entries: Vec<(A, Endpoint)> = maps
        .endpoints
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(ENDPOINTS_MAP))?;
    for (address, endpoint) in entries {
        if let Some(wanted) = verdicts.get(uid(&endpoint).as_str())
            && verdict(&endpoint) != *wanted
        {
            maps.endpoints
                .insert(address, with_verdict(endpoint, *wanted), 0)
                .map_err(failed(ENDPOINTS_MAP))?;
        }
    }
    Ok(())
}
