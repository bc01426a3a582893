//! What happens in the cluster, taken into the model.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use orch_cluster::policies::{PolicyEvent, Update, policy_key};

use super::{super::compile::Policy, Model};

impl Model {
    /// Takes an event in; the kernel is told by [`Self::sync`].
    pub fn apply(&mut self, event: PolicyEvent) {
        match event {
            PolicyEvent::Policy(Update::Put(policy)) => self.put_policy(&policy),
            PolicyEvent::Policy(Update::Remove(key)) => self.remove_policy(&key),
            PolicyEvent::Policy(Update::All(policies)) => {
                let present: HashSet<String> = policies.iter().map(|policy| policy_key(policy)).collect();
                let known: Vec<String> = self.policies.values().flat_map(BTreeMap::keys).cloned().collect();
                for key in known.iter().filter(|key| !present.contains(*key)) {
                    self.remove_policy(key);
                }
                for policy in policies {
                    self.put_policy(&policy);
                }
                self.policies_listed = true;
            }
            PolicyEvent::Namespace(Update::Put(namespace)) => {
                let name = namespace.name.clone();
                self.identifier.put_namespace(&name, Some(namespace));
            }
            PolicyEvent::Namespace(Update::Remove(name)) => self.identifier.put_namespace(&name, None),
            PolicyEvent::Namespace(Update::All(namespaces)) => {
                let present: HashSet<String> = namespaces
                    .iter()
                    .map(|namespace| namespace.name.clone())
                    .collect();
                for name in self.identifier.namespace_names() {
                    if !present.contains(&name) {
                        self.identifier.put_namespace(&name, None);
                    }
                }
                for namespace in namespaces {
                    let name = namespace.name.clone();
                    self.identifier.put_namespace(&name, Some(namespace));
                }
                self.namespaces_listed = true;
            }
            PolicyEvent::Pod(Update::Put(pod)) => {
                self.mark(&pod.uid);
                self.identifier.put_pod(pod);
            }
            PolicyEvent::Pod(Update::Remove(uid)) => {
                self.mark(&uid);
                self.identifier.remove_pod(&uid);
            }
            PolicyEvent::Pod(Update::All(mut pods)) => {
                pods.extend(self.dns.clone());
                let present: HashSet<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
                for uid in self.identifier.uids() {
                    if !present.contains(&uid) {
                        self.identifier.remove_pod(&uid);
                    }
                }
                for pod in pods {
                    self.identifier.put_pod(pod);
                }
                self.mark_all();
                self.pods_listed = true;
            }
            PolicyEvent::Unwatched => {
                for name in self.identifier.namespace_names() {
                    self.identifier.put_namespace(&name, None);
                }
                for uid in self.identifier.uids() {
                    self.identifier.remove_pod(&uid);
                }
                (self.namespaces_listed, self.pods_listed) = (false, false);
            }
        }
    }

    fn put_policy(&mut self, policy: &NetworkPolicy) {
        let key = policy_key(policy);
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        let complain = &mut |reason: String| {
            tracing::warn!(policy = key, reason, "a part of a network policy is left out");
        };
        match Policy::new(policy, complain) {
            Ok(compiled) => {
                let known = self.policies.entry(namespace.clone()).or_default();
                if known.get(&key).is_some_and(|known| **known == compiled) {
                    return;
                }
                known.insert(key, Arc::new(compiled));
                self.mark_namespace(&namespace);
            }
            Err(reason) => {
                tracing::error!(policy = key, reason, "a network policy cannot be enforced");
                self.remove_policy(&key);
            }
        }
    }

    fn remove_policy(&mut self, key: &str) {
        let namespace = key.split('/').next().unwrap_or_default();
        let Some(policies) = self.policies.get_mut(namespace) else {
            return;
        };
        if policies.remove(key).is_some() {
            if policies.is_empty() {
                self.policies.remove(namespace);
            }
            self.mark_namespace(namespace);
        }
    }

    fn mark(&mut self, uid: &str) {
        if self.locals.contains_key(uid) {
            self.stale_locals.insert(uid.to_owned());
        }
    }

    fn mark_all(&mut self) {
        self.stale_locals.extend(self.locals.keys().cloned());
    }

    fn mark_namespace(&mut self, namespace: &str) {
        let marked: Vec<String> = self
            .locals
            .keys()
            // Of one that nobody has described, the namespace is not known either.
            .filter(|uid| {
                self.subject(uid)
                    .is_none_or(|subject| subject.namespace == namespace)
            })
            .cloned()
            .collect();
        self.stale_locals.extend(marked);
    }
}
