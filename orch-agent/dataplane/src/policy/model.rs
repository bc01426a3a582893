//! What the policies of the cluster mean for this node's pods, and the order in which the kernel is told.
//!
//! A pod that policies select has a number for what they come to together ([`RuleSet`]); equal ones share it. What a
//! number allows an identity is settled by what both stand for and never changes, so whatever changes in the cluster
//! gives pods or addresses another number. Rules of a new number are written before anything has the number, and
//! removed after nothing has it any more: each packet meets rules of before or of after, never a mixture.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use orch_cluster::policies::{NamedPort, Pod};
use orch_ebpf::{
    PROTOCOL_TCP, PROTOCOL_UDP,
    policy::{IDENTITY_ANY, IDENTITY_FIRST},
};

use super::{
    compile::{Policy, RuleSet, Subject},
    identify::{Identifier, Identity},
    numbers::Numbers,
    tables::{Kernel, Tables, Verdict, flags, rules_for},
};

mod events;

/// Where DNS servers answer (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// A number and how many have it.
#[derive(Debug)]
struct Numbered {
    number: u32,
    users: usize,
}

/// What is known, what the kernel holds, and what it is still to be told.
#[derive(Debug)]
pub struct Model {
    /// By namespace and key.
    policies: HashMap<String, BTreeMap<String, Arc<Policy>>>,
    policies_listed: bool,
    namespaces_listed: bool,
    pods_listed: bool,
    identifier: Identifier,

    /// What policies take the node's DNS server for.
    dns: Option<Pod>,

    /// This node's pods by uid, as the caller described them.
    locals: HashMap<String, Option<Subject>>,
    stale_locals: HashSet<String>,
    /// The rules of each pod that is isolated.
    subjects: HashMap<String, Arc<RuleSet>>,
    sets: HashMap<Arc<RuleSet>, Numbered>,
    set_numbers: Numbers<Arc<RuleSet>>,
    fresh_sets: HashSet<Arc<RuleSet>>,
    /// Sets that a pod had, one for each time; their rules stand until it has another.
    retired_sets: Vec<Arc<RuleSet>>,

    identities: HashMap<Arc<Identity>, Numbered>,
    identity_numbers: Numbers<Arc<Identity>>,
    fresh_identities: HashSet<Arc<Identity>>,

    tables: Tables,
    /// What endpoints' entries say.
    enforced: HashMap<String, Verdict>,
    stale_networks: HashSet<IpNet>,
    /// What endpoints' entries are to say.
    switches: HashMap<String, Verdict>,
    /// Whether the tables may hold what nothing has a number for.
    dead_rules: bool,
}

impl Model {
    /// A model that knows nothing yet, over what the kernel holds from an earlier life: tables, and what the entry of
    /// each endpoint says by the pod's uid.
    pub fn new(tables: Tables, enforced: HashMap<String, Verdict>) -> Self {
        let mut set_numbers = Numbers::new(1);
        let mut policies = tables.policies();
        policies.extend(enforced.values().map(|verdict| verdict.policy));
        set_numbers.set_foreign(policies);
        let mut identity_numbers = Numbers::new(IDENTITY_FIRST);
        identity_numbers.set_foreign(tables.identities());
        Self {
            policies: HashMap::new(),
            policies_listed: false,
            namespaces_listed: false,
            pods_listed: false,
            identifier: Identifier::default(),
            dns: None,
            locals: enforced.keys().map(|uid| (uid.clone(), None)).collect(),
            stale_locals: enforced.keys().cloned().collect(),
            subjects: HashMap::new(),
            sets: HashMap::new(),
            set_numbers,
            fresh_sets: HashSet::new(),
            retired_sets: Vec::new(),
            identities: HashMap::new(),
            identity_numbers,
            fresh_identities: HashSet::new(),
            stale_networks: tables.networks.keys().copied().collect(),
            tables,
            enforced,
            switches: HashMap::new(),
            dead_rules: true,
        }
    }

    /// Lets policies see the node's DNS server, which answers at these addresses, as they see it in other clusters: as
    /// the pods that are labelled `k8s-app: kube-dns` in the namespace `kube-system`. It is what rules name that are
    /// written to let pods ask for names.
    #[must_use]
    pub fn with_dns(mut self, addresses: &[IpAddr]) -> Self {
        let port = |name: &str, protocol| NamedPort {
            name: name.to_owned(),
            protocol,
            port: DNS_PORT,
        };
        self.dns = (!addresses.is_empty()).then(|| Pod {
            uid: "dns".to_owned(),
            namespace: "kube-system".to_owned(),
            name: "kube-dns".to_owned(),
            labels: Arc::new([("k8s-app".to_owned(), "kube-dns".to_owned())].into()),
            addresses: addresses.to_vec(),
            ports: vec![port("dns", PROTOCOL_UDP), port("dns-tcp", PROTOCOL_TCP)],
        });
        self
    }

    /// Adds a pod of this node; from the next [`Self::sync`] on there is a verdict for it.
    pub fn add_local(&mut self, uid: &str, subject: Subject) {
        self.locals.insert(uid.to_owned(), Some(subject));
        self.stale_locals.insert(uid.to_owned());
    }

    /// Forgets a pod whose endpoints are gone.
    pub fn remove_local(&mut self, uid: &str) {
        self.locals.remove(uid);
        self.stale_locals.remove(uid);
        self.switches.remove(uid);
        self.enforced.remove(uid);
        self.retired_sets.extend(self.subjects.remove(uid));
        self.dead_rules = true;
    }

    /// Every pod of the cluster, once policies have made it worth knowing.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.identifier.pods()
    }

    /// What the number of an identity stands for, in words.
    pub fn describe(&self, identity: u32) -> Option<String> {
        self.identities
            .iter()
            .find(|(_, numbered)| numbered.number == identity)
            .map(|(identity, _)| identity.to_string())
    }

    /// Whether enough is known to tell the kernel anything.
    pub fn is_ready(&self) -> bool {
        self.policies_listed && (self.policies.is_empty() || self.namespaces_listed && self.pods_listed)
    }

    /// Tells the kernel what has changed. Does nothing before [`Self::is_ready`].
    ///
    /// # Errors
    /// The kernel's; the next call goes on where this one ended.
    pub fn sync<K: Kernel>(&mut self, kernel: &mut K) -> Result<(), K::Error> {
        if !self.is_ready() {
            return Ok(());
        }
        self.judge_locals();
        self.write(kernel)?;
        if !self.switches.is_empty() {
            let verdicts: Vec<(String, Verdict)> = self
                .switches
                .iter()
                .map(|(uid, verdict)| (uid.clone(), *verdict))
                .collect();
            kernel.enforce(&verdicts)?;
            self.enforced.extend(self.switches.drain());
        }
        // No pod has a retired set now, so no question of theirs need be answered.
        for set in std::mem::take(&mut self.retired_sets) {
            self.release_set(&set);
        }
        self.write(kernel)?;
        if std::mem::take(&mut self.dead_rules)
            && let Err(error) = self.bury(kernel)
        {
            self.dead_rules = true;
            return Err(error);
        }
        Ok(())
    }

    /// Rules for whatever is new, then the identities.
    fn write<K: Kernel>(&mut self, kernel: &mut K) -> Result<(), K::Error> {
        self.identify();
        let any = |set: &RuleSet, number| rules_for(set, number, None);
        for set in &self.fresh_sets {
            let Some(policy) = self.sets.get(set).map(|set| set.number) else {
                continue;
            };
            self.tables
                .allow((policy, IDENTITY_ANY), &any(set, policy), kernel)?;
            for (identity, numbered) in &self.identities {
                let rules = rules_for(set, policy, Some((identity, numbered.number)));
                self.tables.allow((policy, numbered.number), &rules, kernel)?;
            }
        }
        self.fresh_sets.clear();
        for identity in &self.fresh_identities {
            let Some(number) = self.identities.get(identity).map(|identity| identity.number) else {
                continue;
            };
            for (set, Numbered { number: policy, .. }) in &self.sets {
                let rules = rules_for(set, *policy, Some((identity, number)));
                self.tables.allow((*policy, number), &rules, kernel)?;
            }
        }
        self.fresh_identities.clear();
        let stale: Vec<IpNet> = self.stale_networks.iter().copied().collect();
        for network in stale {
            let number = self
                .identifier
                .entries()
                .get(&network)
                .and_then(|identity| self.identities.get(identity))
                .map(|identity| identity.number);
            self.tables.identify(network, number, kernel)?;
            self.stale_networks.remove(&network);
        }
        Ok(())
    }

    /// Removes the rules that nobody can meet any more.
    fn bury<K: Kernel>(&mut self, kernel: &mut K) -> Result<(), K::Error> {
        let held: HashSet<u32> = self
            .enforced
            .iter()
            .filter(|(uid, _)| !self.subjects.contains_key(*uid))
            .map(|(_, verdict)| verdict.policy)
            .collect();
        let sets: HashMap<u32, &Arc<RuleSet>> = self
            .sets
            .iter()
            .map(|(set, numbered)| (numbered.number, set))
            .collect();
        let identities: HashMap<u32, &Arc<Identity>> = self
            .identities
            .iter()
            .map(|(identity, numbered)| (numbered.number, identity))
            .collect();
        let pairs: Vec<(u32, u32)> = self.tables.rules.keys().copied().collect();
        for pair in pairs {
            let (policy, number) = pair;
            let keep = match (sets.get(&policy), identities.get(&number)) {
                (None, _) if held.contains(&policy) => continue,
                (Some(set), _) if number == IDENTITY_ANY => rules_for(set, policy, None),
                (Some(set), Some(identity)) => rules_for(set, policy, Some((identity, number))),
                _ => BTreeSet::new(),
            };
            self.tables.disallow(pair, &keep, kernel)?;
        }
        self.set_numbers.rested(&held);
        // What the rules of a held number name must not be named again.
        let named = self
            .tables
            .rules
            .keys()
            .filter(|(policy, _)| held.contains(policy))
            .map(|(_, identity)| *identity)
            .collect();
        self.identity_numbers.rested(&named);
        Ok(())
    }

    fn subject(&self, uid: &str) -> Option<Subject> {
        let known = self.identifier.pod(uid).map(|pod| Subject {
            namespace: pod.namespace.clone(),
            labels: Arc::clone(&pod.labels),
            ports: pod.ports.clone(),
        });
        known.or_else(|| self.locals.get(uid).cloned().flatten())
    }

    /// Gives each of the marked pods its set of rules.
    fn judge_locals(&mut self) {
        let mut judged: Vec<(String, Arc<RuleSet>)> = Vec::new();
        for uid in std::mem::take(&mut self.stale_locals) {
            let rules = match self.subject(&uid) {
                Some(subject) => {
                    let policies = self
                        .policies
                        .get(&subject.namespace)
                        .into_iter()
                        .flat_map(BTreeMap::values);
                    let selecting = policies.filter(|policy| policy.subjects.matches(&subject.labels));
                    RuleSet::of(selecting, &subject.ports)
                }
                None if self.policies.is_empty() => RuleSet::default(),
                // It is on its way out; until then it keeps what it has.
                None => continue,
            };
            judged.push((uid, Arc::new(rules)));
        }
        let known: HashSet<Arc<RuleSet>> = judged
            .iter()
            .filter(|(uid, rules)| {
                self.enforced
                    .get(uid)
                    .is_some_and(|verdict| verdict.policy == self.set_numbers.wish(rules))
            })
            .map(|(_, rules)| Arc::clone(rules))
            .collect();
        for (uid, rules) in judged {
            let verdict = if rules.is_open() {
                self.retired_sets.extend(self.subjects.remove(&uid));
                Verdict::default()
            } else {
                let number = self.acquire_set(&rules, known.contains(&rules));
                let verdict = Verdict {
                    flags: flags(&rules),
                    policy: number,
                };
                self.retired_sets.extend(self.subjects.insert(uid.clone(), rules));
                verdict
            };
            if self.enforced.get(&uid) == Some(&verdict) {
                self.switches.remove(&uid);
            } else {
                self.switches.insert(uid, verdict);
                // The number that it had may have been from an earlier life.
                self.dead_rules = true;
            }
        }
    }

    fn acquire_set(&mut self, set: &Arc<RuleSet>, known: bool) -> u32 {
        if let Some(numbered) = self.sets.get_mut(set) {
            numbered.users += 1;
            return numbered.number;
        }
        let number = self.set_numbers.take(set, known);
        self.sets.insert(Arc::clone(set), Numbered { number, users: 1 });
        self.fresh_sets.insert(Arc::clone(set));
        self.identifier.acquire(set);
        number
    }

    fn release_set(&mut self, set: &Arc<RuleSet>) {
        let Some(numbered) = self.sets.get_mut(set) else {
            return;
        };
        numbered.users -= 1;
        if numbered.users == 0 {
            let number = numbered.number;
            self.sets.remove(set);
            self.set_numbers.release(Arc::clone(set), number);
            self.identifier.release(set);
            self.dead_rules = true;
        }
    }

    /// Gives every network and address whose identity changed the number of its new one.
    fn identify(&mut self) {
        let changes = self.identifier.settle();
        let known: HashSet<Arc<Identity>> = changes
            .iter()
            .filter_map(|(network, _, is)| {
                let is = is.as_ref()?;
                let written = self.tables.networks.get(network)?;
                (*written == self.identity_numbers.wish(is)).then(|| Arc::clone(is))
            })
            .collect();
        let mut given_up = Vec::new();
        for (network, was, is) in changes {
            if let Some(is) = is {
                if let Some(numbered) = self.identities.get_mut(&is) {
                    numbered.users += 1;
                } else {
                    let number = self.identity_numbers.take(&is, known.contains(&is));
                    self.identities
                        .insert(Arc::clone(&is), Numbered { number, users: 1 });
                    self.fresh_identities.insert(is);
                }
            }
            given_up.extend(was);
            self.stale_networks.insert(network);
        }
        // Only now, so that an identity that has moved from one address to the next keeps its number.
        for was in given_up {
            if let Some(numbered) = self.identities.get_mut(&was) {
                numbered.users -= 1;
                if numbered.users == 0 {
                    let number = numbered.number;
                    self.identities.remove(&was);
                    self.identity_numbers.release(was, number);
                    self.dead_rules = true;
                }
            }
        }
    }
}
