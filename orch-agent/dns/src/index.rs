//! Services and their endpoints, arranged so that one question costs one hash lookup.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};

/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service with its slices. Shares the objects with the watch caches.
pub(crate) struct Entry {
    pub(crate) service: Arc<Service>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// A snapshot of everything the zone answers from.
#[derive(Default)]
pub(crate) struct Index {
    /// By `name.namespace`.
    services: HashMap<String, Entry>,
    namespaces: HashSet<String>,
    /// The name, relative to the domain, that an address points back to.
    pointers: HashMap<IpAddr, Vec<String>>,
}

/// One endpoint's address under its label below the Service's name.
pub(crate) struct Host {
    /// The endpoint's hostname, or its address with dashes.
    pub(crate) label: String,
    pub(crate) ip: IpAddr,
}

impl Index {
    pub(crate) fn build(services: Vec<Arc<Service>>, slices: Vec<Arc<EndpointSlice>>) -> Self {
        let mut index = Self::default();
        for service in services {
            let (Some(name), Some(namespace)) = (&service.metadata.name, &service.metadata.namespace) else {
                continue;
            };
            index.namespaces.insert(namespace.clone());
            let key = format!("{name}.{namespace}");
            index.services.insert(
                key,
                Entry {
                    service,
                    slices: Vec::new(),
                },
            );
        }
        for slice in slices {
            let service = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(SERVICE_NAME));
            let (Some(service), Some(namespace)) = (service, &slice.metadata.namespace) else {
                continue;
            };
            if let Some(entry) = index.services.get_mut(&format!("{service}.{namespace}")) {
                entry.slices.push(slice);
            }
        }
        for (key, entry) in &index.services {
            for ip in entry.cluster_ips() {
                index.pointers.entry(ip).or_default().push(format!("{key}.svc"));
            }
            if !entry.is_headless() {
                continue;
            }
            for host in entry.hosts() {
                index
                    .pointers
                    .entry(host.ip)
                    .or_default()
                    .push(format!("{}.{key}.svc", host.label));
            }
        }
        for names in index.pointers.values_mut() {
            names.sort_unstable();
            names.dedup();
        }
        index
    }

    /// The Service of a name and namespace in lower case.
    pub(crate) fn service(&self, name: &str, namespace: &str) -> Option<&Entry> {
        self.services.get(&format!("{name}.{namespace}"))
    }

    /// Whether a namespace has any Service.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// Names, relative to the domain, that an address points back to.
    pub(crate) fn pointers(&self, ip: IpAddr) -> &[String] {
        self.pointers.get(&ip).map_or(&[], Vec::as_slice)
    }
}

impl Entry {
    /// The ClusterIPs; none for headless and ExternalName Services.
    pub(crate) fn cluster_ips(&self) -> Vec<IpAddr> {
        let Some(spec) = &self.service.spec else {
            return Vec::new();
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            return Vec::new();
        }
        let all = spec.cluster_ips.iter().flatten();
        let mut ips: Vec<IpAddr> = all
            .chain(&spec.cluster_ip)
            .filter_map(|ip| ip.parse().ok())
            .collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }

    /// Whether the Service is headless (`clusterIP: None`).
    pub(crate) fn is_headless(&self) -> bool {
        let spec = self.service.spec.as_ref();
        spec.is_some_and(|s| {
            s.cluster_ip.as_deref() == Some("None") && s.type_.as_deref() != Some("ExternalName")
        })
    }

    /// The target of an ExternalName Service.
    pub(crate) fn external_name(&self) -> Option<&str> {
        let spec = self.service.spec.as_ref()?;
        (spec.type_.as_deref() == Some("ExternalName")).then_some(spec.external_name.as_deref()?)
    }

    /// Endpoints to publish: ready ones, or all when the Service publishes unready addresses.
    fn published<'a>(&'a self, slice: &'a EndpointSlice) -> impl Iterator<Item = &'a Endpoint> {
        let all = self
            .service
            .spec
            .as_ref()
            .and_then(|s| s.publish_not_ready_addresses)
            .unwrap_or(false);
        slice
            .endpoints
            .iter()
            .flatten()
            .filter(move |endpoint| all || endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
    }

    /// The addresses of all published endpoints, each once.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let mut seen = HashSet::new();
        let mut hosts = Vec::new();
        for slice in &self.slices {
            for host in self.slice_hosts(slice) {
                if seen.insert((host.label.clone(), host.ip)) {
                    hosts.push(host);
                }
            }
        }
        hosts
    }

    fn slice_hosts(&self, slice: &EndpointSlice) -> Vec<Host> {
        let endpoints = self.published(slice);
        endpoints
            .flat_map(|endpoint| endpoint.addresses.iter().map(move |address| (endpoint, address)))
            .filter_map(|(endpoint, address)| {
                let ip: IpAddr = address.parse().ok()?;
                let label = endpoint.hostname.as_ref().filter(|h| !h.is_empty());
                Some(Host {
                    label: label.map_or_else(|| dashed(ip), |h| h.to_lowercase()),
                    ip,
                })
            })
            .collect()
    }

    /// Port numbers and hosts behind a named port of a headless Service; all ports when none is named.
    pub(crate) fn host_ports(&self, wanted: Option<(&str, &str)>) -> Vec<(u16, Host)> {
        let mut found = Vec::new();
        for slice in &self.slices {
            for port in slice.ports.iter().flatten() {
                let number = port.port.and_then(|p| u16::try_from(p).ok());
                let (Some(number), true) = (
                    number,
                    matches(wanted, port.name.as_deref(), port.protocol.as_deref()),
                ) else {
                    continue;
                };
                found.extend(self.slice_hosts(slice).into_iter().map(|host| (number, host)));
            }
        }
        found
    }

    /// The Service's own port numbers of a name and protocol; all when none is named.
    pub(crate) fn service_ports(&self, wanted: Option<(&str, &str)>) -> Vec<u16> {
        let ports = self
            .service
            .spec
            .iter()
            .flat_map(|spec| spec.ports.iter().flatten());
        ports
            .filter(|port| matches(wanted, port.name.as_deref(), port.protocol.as_deref()))
            .filter_map(|port| u16::try_from(port.port).ok())
            .collect()
    }
}

/// An address as a single label.
pub(crate) fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn matches(wanted: Option<(&str, &str)>, name: Option<&str>, protocol: Option<&str>) -> bool {
    // Only named ports have SRV records (specification 2.3.2 and 2.4.2).
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return false;
    };
    wanted.is_none_or(|(port, proto)| {
        name.eq_ignore_ascii_case(port) && protocol.unwrap_or("TCP").eq_ignore_ascii_case(proto)
    })
}
