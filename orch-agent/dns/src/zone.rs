//! The cluster zone: what each kind of name answers (Kubernetes DNS specification 1.1.0).

use std::{collections::HashSet, net::IpAddr};

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};
use ipnet::IpNet;

use crate::{DnsError, answer::Answer, entry::Entry, index::Index, reverse};

/// Seconds that clients may keep an answer: short, because endpoints come and go.
pub(crate) const TTL: u32 = 5;
/// The version of the specification, answered for `dns-version`.
const SPEC_VERSION: &str = "1.1.0";

/// The zone of one cluster domain, with the reverse zones of the cluster's networks.
pub(crate) struct Zone {
    /// In lower case, without the last dot.
    domain: String,
    origin: Name,
    /// The name of the server itself.
    server: Name,
    /// Its addresses.
    addresses: Vec<IpAddr>,
    soa: SOA,
    networks: Vec<IpNet>,
}

/// What is at a name: records of any type, or that the name does not exist.
enum Found {
    Records {
        answers: Vec<RData>,
        additionals: Vec<Record>,
    },
    Nothing,
}

impl Found {
    /// The name exists and has no records of the type asked for.
    fn empty() -> Self {
        Self::only(Vec::new())
    }

    fn only(answers: Vec<RData>) -> Self {
        Self::Records {
            answers,
            additionals: Vec::new(),
        }
    }

    fn of_kind(data: RData, kind: RecordType) -> Self {
        Self::only(if is_kind(&data, kind) {
            vec![data]
        } else {
            Vec::new()
        })
    }
}

fn is_kind(data: &RData, kind: RecordType) -> bool {
    kind == RecordType::ANY || data.record_type() == kind
}

impl Zone {
    /// The zone of `domain`, served on `addresses`; misses in the reverse zones of `networks` are the zone's too.
    pub(crate) fn new(domain: &str, networks: &[IpNet], addresses: Vec<IpAddr>) -> Result<Self, DnsError> {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let bad = |reason: &dyn std::fmt::Display| DnsError::BadDomain {
            domain: domain.clone(),
            reason: reason.to_string(),
        };
        if domain.is_empty() {
            return Err(bad(&"it is empty"));
        }
        let name = |text: String| Name::from_ascii(text).map_err(|error| bad(&error));
        let origin = name(format!("{domain}."))?;
        let server = name(format!("ns.dns.{domain}."))?;
        let mailbox = name(format!("hostmaster.{domain}."))?;
        let soa = SOA::new(server.clone(), mailbox, 1, 7200, 1800, 86400, TTL);
        let networks = networks.iter().map(IpNet::trunc).collect();
        Ok(Self {
            domain,
            origin,
            server,
            addresses,
            soa,
            networks,
        })
    }

    /// The answer to a question inside the zone, or to a reverse question about an address of the cluster; `None`
    /// for every other question.
    pub(crate) fn answer(&self, index: &Index, query: &Query) -> Option<Answer> {
        if query.query_class() != DNSClass::IN {
            return None;
        }
        let (kind, name) = (query.query_type(), query.name());
        let (found, apex) = if self.origin.zone_of(name) {
            (self.inside(index, name, kind), self.origin.clone())
        } else {
            self.reverse(index, name, kind)?
        };
        let (code, answers, additionals) = match found {
            Found::Records { answers, additionals } => (ResponseCode::NoError, answers, additionals),
            Found::Nothing => (ResponseCode::NXDomain, Vec::new(), Vec::new()),
        };
        let answers: Vec<Record> = answers
            .into_iter()
            .map(|data| Record::from_rdata(name.clone(), TTL, data))
            .collect();
        let authorities = if answers.is_empty() {
            vec![Record::from_rdata(apex, TTL, RData::SOA(self.soa.clone()))]
        } else {
            Vec::new()
        };
        Some(Answer {
            code,
            authoritative: true,
            answers,
            authorities,
            additionals,
        })
    }

    fn inside(&self, index: &Index, name: &Name, kind: RecordType) -> Found {
        // Not `num_labels`, which leaves out an asterisk.
        let depth = name.iter().count() - self.origin.iter().count();
        let mut labels = Vec::with_capacity(depth);
        for label in name.iter().take(depth) {
            // No name of Kubernetes has anything but ASCII in it.
            let Ok(label) = std::str::from_utf8(label) else {
                return Found::Nothing;
            };
            labels.push(label.to_ascii_lowercase());
        }
        labels.reverse();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => self.apex(kind),
            ["dns", "ns"] => addresses(self.addresses.iter().copied(), kind),
            ["dns-version"] => Found::of_kind(RData::TXT(TXT::new(vec![SPEC_VERSION.into()])), kind),
            ["svc" | "pod" | "dns"] => Found::empty(),
            ["svc", namespace] if index.has_namespace(namespace) => Found::empty(),
            // Every address has its name in every namespace, as with CoreDNS' `pods insecure`.
            ["pod", _] => Found::empty(),
            ["pod", _, label] => pod(label, kind),
            ["svc", namespace, name, rest @ ..] => match index.service(name, namespace) {
                Some(entry) => self.service(entry, &format!("{name}.{namespace}.svc"), rest, kind),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    /// What stands at the top of the zone itself and of its reverse zones.
    fn apex(&self, kind: RecordType) -> Found {
        match kind {
            RecordType::SOA => Found::only(vec![RData::SOA(self.soa.clone())]),
            RecordType::NS => Found::Records {
                answers: vec![RData::NS(NS(self.server.clone()))],
                additionals: self
                    .addresses
                    .iter()
                    .map(|ip| record(&self.server, *ip))
                    .collect(),
            },
            _ => Found::empty(),
        }
    }

    /// `rest` are the labels below the Service's name, from the right.
    fn service(&self, entry: &Entry, relative: &str, rest: &[&str], kind: RecordType) -> Found {
        if let Some(target) = entry.external_name() {
            let target = Name::from_ascii(format!("{}.", target.trim_end_matches('.')));
            return match (rest, target) {
                ([], Ok(target)) => Found::only(vec![RData::CNAME(CNAME(target))]),
                _ => Found::Nothing,
            };
        }
        match rest {
            [] if kind == RecordType::SRV => self.srv(entry, relative, None),
            [] if entry.is_headless() => addresses(entry.addresses(), kind),
            [] => addresses(entry.cluster_ips(), kind),
            [label] => match label.strip_prefix('_') {
                Some(protocol) if entry.has_protocol(protocol) => Found::empty(),
                Some(_) => Found::Nothing,
                // Endpoints of Services with a ClusterIP have names too: no record shows them, clients may ask.
                None => {
                    let hosts = entry.hosts().into_iter().filter(|host| host.label == *label);
                    addresses(hosts.map(|host| host.ip), kind)
                }
            },
            [protocol, port] => match (protocol.strip_prefix('_'), port.strip_prefix('_')) {
                (Some(protocol), Some(port)) => match self.srv(entry, relative, Some((port, protocol))) {
                    Found::Records { .. } if !matches!(kind, RecordType::SRV | RecordType::ANY) => {
                        Found::empty()
                    }
                    found => found,
                },
                _ => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    fn srv(&self, entry: &Entry, relative: &str, wanted: Option<(&str, &str)>) -> Found {
        let base = format!("{relative}.{}.", self.domain);
        let mut answers = Vec::new();
        let mut additionals: Vec<Record> = Vec::new();
        let mut glued = HashSet::new();
        let mut add = |target: &str, port: u16, ips: &[IpAddr]| {
            // A name that is too long for DNS cannot be asked for either.
            let Ok(target) = Name::from_ascii(target) else {
                return;
            };
            for ip in ips {
                if glued.insert((target.clone(), *ip)) {
                    additionals.push(record(&target, *ip));
                }
            }
            // Priority 0 and equal weights: the client chooses.
            let data = RData::SRV(SRV::new(0, 100, port, target));
            if !answers.contains(&data) {
                answers.push(data);
            }
        };
        if entry.is_headless() {
            for (port, host) in entry.host_ports(wanted) {
                add(&format!("{}.{base}", host.label), port, &[host.ip]);
            }
        } else {
            for port in entry.service_ports(wanted) {
                add(&base, port, &entry.cluster_ips());
            }
        }
        match (answers.is_empty(), wanted) {
            (true, Some(_)) => Found::Nothing,
            (true, None) if entry.is_headless() && entry.addresses().is_empty() => Found::Nothing,
            _ => Found::Records { answers, additionals },
        }
    }

    /// PTR records for addresses of Services and of headless Services' endpoints; whatever else lies in the
    /// cluster's networks does not exist. With the name of the reverse zone.
    fn reverse(&self, index: &Index, name: &Name, kind: RecordType) -> Option<(Found, Name)> {
        let net = name.parse_arpa_name().ok()?;
        let apex = self
            .networks
            .iter()
            .find_map(|network| reverse::apex(name, net, *network));
        if net.prefix_len() != net.max_prefix_len() {
            let apex = apex?;
            let found = if apex == *name {
                self.apex(kind)
            } else {
                Found::empty()
            };
            return Some((found, apex));
        }
        let names = index.names_of(net.addr());
        if names.is_empty() {
            return Some((Found::Nothing, apex?));
        }
        // An address outside of the cluster's networks, of an endpoint that somebody made by hand, is its own zone.
        let apex = apex.unwrap_or_else(|| name.clone());
        if !matches!(kind, RecordType::PTR | RecordType::ANY) {
            return Some((Found::empty(), apex));
        }
        let full = names
            .iter()
            .filter_map(|name| Name::from_ascii(name).ok()?.append_domain(&self.origin).ok());
        Some((
            Found::only(full.map(|name| RData::PTR(PTR(name))).collect()),
            apex,
        ))
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn record(name: &Name, ip: IpAddr) -> Record {
    Record::from_rdata(name.clone(), TTL, address(ip))
}

/// The addresses of the family asked for; a name without any address does not exist.
fn addresses(ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Found {
    let mut any = false;
    let all = ips.into_iter().inspect(|_| any = true).map(address);
    let wanted = all.filter(|data| is_kind(data, kind)).collect();
    if any { Found::only(wanted) } else { Found::Nothing }
}

/// `1-2-3-4.namespace.pod`: an address that the client knows already, in the form of a name.
fn pod(label: &str, kind: RecordType) -> Found {
    let ip = label
        .replace('-', ".")
        .parse()
        .or_else(|_| label.replace('-', ":").parse());
    match ip {
        // A label with dots or colons in it is none of ours.
        Ok(ip) if !label.contains(['.', ':', '%']) => addresses([ip], kind),
        _ => Found::Nothing,
    }
}

#[cfg(test)]
mod tests;
