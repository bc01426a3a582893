//! Services and their endpoints, arranged so that one question costs one hash lookup and one change costs what changed.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::entry::{Entry, endpoint_hosts, slice_service};

/// What the zone answers from. Shares the objects with the watch caches and stores little of its own: a key for each
/// object, and a pointer for each address that can be asked for in reverse.
#[derive(Default)]
pub(crate) struct Index {
    /// By `name.namespace`. A slice may come before its Service, so that an entry may have no Service yet.
    entries: HashMap<Arc<str>, Entry>,
    /// The entry that each slice, by `name.namespace`, stands in: its label may change.
    owners: HashMap<Box<str>, Arc<str>>,
    /// How many Services each namespace has.
    namespaces: HashMap<Box<str>, u32>,
    pointers: HashMap<IpAddr, Vec<Pointer>>,
}

/// What an address points back to.
#[derive(Clone)]
enum Pointer {
    /// The ClusterIP of this entry's Service.
    Service(Arc<str>),
    /// An endpoint of the headless Service of this entry, by its place in the slice.
    Endpoint(Arc<str>, Arc<EndpointSlice>, u32),
}

fn key(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}")
}

impl Index {
    /// Takes in the Service as it is now; `None` when it is gone.
    pub(crate) fn put_service(&mut self, name: &str, namespace: &str, service: Option<Arc<Service>>) {
        let key = key(name, namespace);
        let known = self.entries.get(key.as_str());
        let old = known.and_then(|entry| entry.service.clone());
        if let (Some(old), Some(new)) = (&old, &service)
            && Arc::ptr_eq(old, new)
        {
            return;
        }
        let key = self
            .entries
            .get_key_value(key.as_str())
            .map_or_else(|| Arc::from(key), |(k, _)| k.clone());
        self.set_pointers(&key, false);
        match (old.is_some(), service.is_some()) {
            (false, true) => *self.namespaces.entry(namespace.into()).or_default() += 1,
            (true, false) => {
                if let Some(count) = self.namespaces.get_mut(namespace) {
                    *count -= 1;
                    if *count == 0 {
                        self.namespaces.remove(namespace);
                    }
                }
            }
            _ => {}
        }
        self.entries.entry(key.clone()).or_default().service = service;
        self.set_pointers(&key, true);
        self.drop_if_empty(&key);
    }

    /// Takes in the EndpointSlice as it is now; `None` when it is gone.
    pub(crate) fn put_slice(&mut self, name: &str, namespace: &str, slice: Option<Arc<EndpointSlice>>) {
        let slice_key = key(name, namespace);
        if let Some(owner) = self.owners.get(slice_key.as_str()).cloned() {
            let Some(entry) = self.entries.get_mut(&owner) else {
                return;
            };
            let is_it = |s: &Arc<EndpointSlice>| s.metadata.name.as_deref() == Some(name);
            if let Some(at) = entry.slices.iter().position(is_it) {
                if slice
                    .as_ref()
                    .is_some_and(|new| Arc::ptr_eq(&entry.slices[at], new))
                {
                    return;
                }
                let old = entry.slices.swap_remove(at);
                let headless = entry.is_headless();
                if headless {
                    self.set_slice_pointers(&owner, &old, false);
                }
            }
            self.owners.remove(slice_key.as_str());
            self.drop_if_empty(&owner);
        }
        let Some(slice) = slice else { return };
        let Some(service) = slice_service(&slice) else {
            return;
        };
        let owner = key(service, namespace);
        let owner = self
            .entries
            .get_key_value(owner.as_str())
            .map_or_else(|| Arc::from(owner), |(k, _)| k.clone());
        self.owners.insert(slice_key.into(), owner.clone());
        let entry = self.entries.entry(owner.clone()).or_default();
        entry.slices.push(slice.clone());
        if entry.is_headless() {
            self.set_slice_pointers(&owner, &slice, true);
        }
    }

    /// Takes in everything there is; what is not among it is gone.
    pub(crate) fn sync(&mut self, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) {
        let mut present = HashSet::with_capacity(services.len());
        for service in services {
            if let (Some(name), Some(namespace)) = (&service.metadata.name, &service.metadata.namespace) {
                present.insert((name.as_str(), namespace.as_str()));
                self.put_service(name, namespace, Some(service.clone()));
            }
        }
        // Only a namespace may not contain a dot.
        let known = self.entries.iter().filter(|(_, entry)| entry.service.is_some());
        let gone: Vec<Arc<str>> = known
            .filter(|(k, _)| k.rsplit_once('.').is_none_or(|k| !present.contains(&k)))
            .map(|(k, _)| k.clone())
            .collect();
        for key in gone {
            if let Some((name, namespace)) = key.rsplit_once('.') {
                self.put_service(name, namespace, None);
            }
        }
        let mut present = HashSet::with_capacity(slices.len());
        for slice in slices {
            if let (Some(name), Some(namespace)) = (&slice.metadata.name, &slice.metadata.namespace) {
                present.insert((name.as_str(), namespace.as_str()));
                self.put_slice(name, namespace, Some(slice.clone()));
            }
        }
        let known = self.owners.keys();
        let gone: Vec<Box<str>> = known
            .filter(|k| k.rsplit_once('.').is_none_or(|k| !present.contains(&k)))
            .cloned()
            .collect();
        for key in gone {
            if let Some((name, namespace)) = key.rsplit_once('.') {
                self.put_slice(name, namespace, None);
            }
        }
    }

    /// Adds or removes all pointers of an entry, as its Service has it now.
    fn set_pointers(&mut self, key: &Arc<str>, add: bool) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        let ips = entry.cluster_ips();
        let slices = if entry.is_headless() {
            entry.slices.clone()
        } else {
            Vec::new()
        };
        for ip in ips {
            self.set_pointer(ip, Pointer::Service(key.clone()), add);
        }
        for slice in slices {
            self.set_slice_pointers(key, &slice, add);
        }
    }

    fn set_slice_pointers(&mut self, key: &Arc<str>, slice: &Arc<EndpointSlice>, add: bool) {
        for (place, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            let Ok(place) = u32::try_from(place) else { return };
            for ip in endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse().ok())
            {
                self.set_pointer(ip, Pointer::Endpoint(key.clone(), slice.clone(), place), add);
            }
        }
    }

    fn set_pointer(&mut self, ip: IpAddr, pointer: Pointer, add: bool) {
        if add {
            self.pointers
                .entry(ip)
                .or_insert_with(|| Vec::with_capacity(1))
                .push(pointer);
            return;
        }
        let Some(all) = self.pointers.get_mut(&ip) else {
            return;
        };
        let same = |p: &Pointer| match (p, &pointer) {
            (Pointer::Service(a), Pointer::Service(b)) => a == b,
            (Pointer::Endpoint(_, a, i), Pointer::Endpoint(_, b, j)) => Arc::ptr_eq(a, b) && i == j,
            _ => false,
        };
        if let Some(at) = all.iter().position(same) {
            all.swap_remove(at);
        }
        if all.is_empty() {
            self.pointers.remove(&ip);
        }
    }

    fn drop_if_empty(&mut self, key: &str) {
        if self
            .entries
            .get(key)
            .is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty())
        {
            self.entries.remove(key);
        }
    }

    /// The Service of a name and namespace in lower case.
    pub(crate) fn service(&self, name: &str, namespace: &str) -> Option<&Entry> {
        self.entries
            .get(key(name, namespace).as_str())
            .filter(|entry| entry.service.is_some())
    }

    /// Whether a namespace has any Service.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// Names, relative to the domain, that an address points back to.
    pub(crate) fn names_of(&self, ip: IpAddr) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for pointer in self.pointers.get(&ip).into_iter().flatten() {
            match pointer {
                Pointer::Service(key) => names.push(format!("{key}.svc")),
                Pointer::Endpoint(key, slice, place) => {
                    let entry = self.entries.get(key);
                    let endpoint = slice.endpoints.iter().flatten().nth(*place as usize);
                    let (Some(entry), Some(endpoint)) = (entry, endpoint) else {
                        continue;
                    };
                    if entry.publishes(endpoint) {
                        let here = endpoint_hosts(endpoint).filter(|host| host.ip == ip);
                        names.extend(here.map(|host| format!("{}.{key}.svc", host.label)));
                    }
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// How many keys and pointers are stored, for tests of what must leave nothing behind.
    #[cfg(test)]
    pub(crate) fn size(&self) -> (usize, usize, usize, usize) {
        let pointers = self.pointers.values().map(Vec::len).sum();
        (
            self.entries.len(),
            self.owners.len(),
            self.namespaces.len(),
            pointers,
        )
    }
}

#[cfg(test)]
mod tests;
