//! One Service with its EndpointSlices: what of them DNS publishes.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};
use orch_cluster::SERVICE_NAME_LABEL;

/// A Service with its slices. Shares the objects with the watch caches.
#[derive(Default)]
pub(crate) struct Entry {
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// One endpoint's address under its label below the Service's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    /// The endpoint's hostname, or its address with dashes.
    pub(crate) label: String,
    pub(crate) ip: IpAddr,
}

/// The Service that a slice belongs to.
pub(crate) fn slice_service(slice: &EndpointSlice) -> Option<&str> {
    slice
        .metadata
        .labels
        .as_ref()?
        .get(SERVICE_NAME_LABEL)
        .map(String::as_str)
}

/// An endpoint's addresses with their labels.
pub(crate) fn endpoint_hosts(endpoint: &Endpoint) -> impl Iterator<Item = Host> {
    let hostname = endpoint.hostname.as_deref().filter(|h| !h.is_empty());
    endpoint.addresses.iter().filter_map(move |address| {
        let ip: IpAddr = address.parse().ok()?;
        let label = hostname.map_or_else(|| dashed(ip), str::to_ascii_lowercase);
        Some(Host { label, ip })
    })
}

/// An address as a single label.
pub(crate) fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

impl Entry {
    fn spec(&self) -> Option<&ServiceSpec> {
        self.service.as_ref()?.spec.as_ref()
    }

    fn is_external(&self) -> bool {
        self.spec()
            .is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"))
    }

    /// The ClusterIPs, the primary one first; none for headless and ExternalName Services.
    pub(crate) fn cluster_ips(&self) -> Vec<IpAddr> {
        let Some(spec) = self.spec().filter(|_| !self.is_external()) else {
            return Vec::new();
        };
        let all = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
        let mut ips: Vec<IpAddr> = Vec::with_capacity(2);
        for ip in all.filter_map(|ip| ip.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        ips
    }

    /// Whether the Service is headless (`clusterIP: None`).
    pub(crate) fn is_headless(&self) -> bool {
        self.spec()
            .is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
            && !self.is_external()
    }

    /// The target of an ExternalName Service.
    pub(crate) fn external_name(&self) -> Option<&str> {
        self.spec()
            .filter(|_| self.is_external())?
            .external_name
            .as_deref()
    }

    /// Whether an endpoint is to be found: a ready one, or any when the Service publishes unready addresses.
    pub(crate) fn publishes(&self, endpoint: &Endpoint) -> bool {
        self.spec()
            .and_then(|spec| spec.publish_not_ready_addresses)
            .unwrap_or(false)
            || endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
    }

    fn slice_hosts<'a>(&'a self, slice: &'a EndpointSlice) -> impl Iterator<Item = Host> + 'a {
        let published = slice
            .endpoints
            .iter()
            .flatten()
            .filter(|endpoint| self.publishes(endpoint));
        published.flat_map(endpoint_hosts)
    }

    /// The addresses of all published endpoints, each label and address once.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let mut seen = HashSet::new();
        let all = self.slices.iter().flat_map(|slice| self.slice_hosts(slice));
        all.filter(|host| seen.insert(host.clone())).collect()
    }

    /// The addresses of all published endpoints, each once whatever its labels.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let endpoints = self
            .slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten());
        let published = endpoints.filter(|endpoint| self.publishes(endpoint));
        let mut seen = HashSet::new();
        let parsed = published
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|ip| ip.parse().ok());
        parsed.filter(|ip| seen.insert(*ip)).collect()
    }

    /// Port numbers and hosts behind a named port of a headless Service; all named ports when none is given.
    pub(crate) fn host_ports(&self, wanted: Option<(&str, &str)>) -> Vec<(u16, Host)> {
        let mut seen = HashSet::new();
        for slice in &self.slices {
            for port in slice.ports.iter().flatten() {
                let number = port.port.and_then(|p| u16::try_from(p).ok());
                if let Some(number) = number
                    && matches(wanted, port.name.as_deref(), port.protocol.as_deref())
                {
                    seen.extend(self.slice_hosts(slice).map(|host| (number, host)));
                }
            }
        }
        seen.into_iter().collect()
    }

    /// The Service's own port numbers of a name and protocol; all named ones when none is given.
    pub(crate) fn service_ports(&self, wanted: Option<(&str, &str)>) -> Vec<u16> {
        let ports = self
            .spec()
            .into_iter()
            .flat_map(|spec| spec.ports.iter().flatten());
        ports
            .filter(|port| matches(wanted, port.name.as_deref(), port.protocol.as_deref()))
            .filter_map(|port| u16::try_from(port.port).ok())
            .collect()
    }

    /// Whether any named port has this protocol, so that names lie below `_protocol`.
    pub(crate) fn has_protocol(&self, protocol: &str) -> bool {
        let is = |name: Option<&str>, p: Option<&str>| {
            name.is_some_and(|n| !n.is_empty()) && p.unwrap_or("TCP").eq_ignore_ascii_case(protocol)
        };
        if self.is_headless() {
            let ports = self.slices.iter().flat_map(|slice| slice.ports.iter().flatten());
            return ports
                .into_iter()
                .any(|port| is(port.name.as_deref(), port.protocol.as_deref()));
        }
        let mut ports = self
            .spec()
            .into_iter()
            .flat_map(|spec| spec.ports.iter().flatten());
        ports.any(|port| is(port.name.as_deref(), port.protocol.as_deref()))
    }
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
