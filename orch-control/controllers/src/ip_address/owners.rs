//! [`Owners`]: which service has a cluster IP.

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;

use crate::core::Key;

/// See the module.
#[derive(Default)]
pub struct Owners(Mutex<HashMap<IpAddr, Key>>);

/// The cluster IPs of a service; none for one that is headless.
fn addresses(service: Option<&Service>) -> Vec<IpAddr> {
    let spec = service.and_then(|s| s.spec.as_ref());
    let listed = spec.into_iter().flat_map(|s| s.cluster_ips.iter().flatten());
    let first = spec.and_then(|s| s.cluster_ip.as_ref());
    let mut all: Vec<IpAddr> = listed.chain(first).filter_map(|ip| ip.parse().ok()).collect();
    all.sort();
    all.dedup();
    all
}

impl Owners {
    /// Takes note of a change; answers the addresses that it is about.
    pub fn note(&self, old: Option<&Service>, new: Option<&Service>) -> Vec<IpAddr> {
        let mut owners = self.0.lock();
        let (mut before, after) = (addresses(old), addresses(new));
        if let Some(old) = old.map(Key::of) {
            for address in &before {
                // The next owner of an address may be told of before the last one's end.
                if owners.get(address) == Some(&old) {
                    owners.remove(address);
                }
            }
        }
        if let Some(new) = new.map(Key::of) {
            for address in &after {
                owners.insert(*address, new.clone());
            }
        }
        before.extend(after);
        before.sort();
        before.dedup();
        before
    }

    /// The service that has the address.
    pub fn of(&self, address: &IpAddr) -> Option<Key> {
        self.0.lock().get(address).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, ips: &[&str]) -> Service {
        let first = ips.first();
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "n" },
            "spec": { "clusterIP": first, "clusterIPs": ips } }))
        .unwrap()
    }

    #[test]
    fn an_address_passes_from_one_service_to_another() {
        let owners = Owners::default();
        let (v4, v6): (IpAddr, IpAddr) = ("10.96.0.9".parse().unwrap(), "fd00::9".parse().unwrap());
        let a = service("a", &["10.96.0.9", "fd00::9"]);
        assert_eq!(owners.note(None, Some(&a)), [v4, v6]);
        assert_eq!(owners.of(&v6), Some(Key::new("n", "a")));
        let b = service("b", &["10.96.0.9"]);
        assert_eq!(owners.note(None, Some(&b)), [v4]);
        assert_eq!(owners.note(Some(&a), None), [v4, v6]);
        assert_eq!((owners.of(&v4), owners.of(&v6)), (Some(Key::new("n", "b")), None));
        assert!(owners.note(None, Some(&service("c", &["None"]))).is_empty());
    }
}
