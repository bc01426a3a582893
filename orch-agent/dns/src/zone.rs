//! The cluster zone: what each kind of name answers (Kubernetes DNS specification 1.1.0).

use std::net::IpAddr;

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT},
    },
};

use crate::{
    DnsError,
    answer::Answer,
    index::{Entry, Index, dashed},
};

/// Seconds that clients may keep an answer: short, because endpoints come and go.
const TTL: u32 = 5;
/// The version of the specification, answered for `dns-version`.
const SPEC_VERSION: &str = "1.1.0";

/// The zone of one cluster domain.
pub(crate) struct Zone {
    /// In lower case, without the last dot.
    domain: String,
    origin: Name,
    soa: Record,
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
}

impl Zone {
    pub(crate) fn new(domain: &str) -> Result<Self, DnsError> {
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
        let soa = SOA::new(
            name(format!("ns.dns.{domain}."))?,
            name(format!("hostmaster.{domain}."))?,
            1,
            7200,
            1800,
            86400,
            TTL,
        );
        let soa = Record::from_rdata(origin.clone(), TTL, RData::SOA(soa));
        Ok(Self { domain, origin, soa })
    }

    /// The answer to a question inside the zone, or to a reverse question about an address of the cluster; `None`
    /// for every other question.
    pub(crate) fn answer(&self, index: &Index, query: &Query) -> Option<Answer> {
        let name = query.name().to_ascii().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        if query.query_class() != DNSClass::IN {
            return None;
        }
        let found = if name == self.domain {
            self.apex(query.query_type())
        } else if let Some(relative) = name
            .strip_suffix(&self.domain)
            .and_then(|rest| rest.strip_suffix('.'))
        {
            self.lookup(index, relative, query.query_type())
        } else {
            self.reverse(index, query)?
        };
        let (code, answers, additionals) = match found {
            Found::Records { answers, additionals } => (ResponseCode::NoError, answers, additionals),
            Found::Nothing => (ResponseCode::NXDomain, Vec::new(), Vec::new()),
        };
        let answers: Vec<Record> = answers
            .into_iter()
            .map(|data| Record::from_rdata(query.name().clone(), TTL, data))
            .collect();
        let authorities = if answers.is_empty() {
            vec![self.soa.clone()]
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

    fn apex(&self, kind: RecordType) -> Found {
        match kind {
            RecordType::SOA => Found::only(vec![self.soa.data.clone()]),
            _ => Found::empty(),
        }
    }

    fn lookup(&self, index: &Index, relative: &str, kind: RecordType) -> Found {
        let mut labels: Vec<&str> = relative.split('.').collect();
        labels.reverse();
        match labels.as_slice() {
            ["dns-version"] if kind == RecordType::TXT => {
                Found::only(vec![RData::TXT(TXT::new(vec![SPEC_VERSION.into()]))])
            }
            ["dns-version" | "svc" | "pod"] => Found::empty(),
            ["svc" | "pod", namespace] if index.has_namespace(namespace) => Found::empty(),
            ["pod", namespace, label] => pod(index, namespace, label, kind),
            ["svc", namespace, name, rest @ ..] => match index.service(name, namespace) {
                Some(entry) => self.service(entry, &format!("{name}.{namespace}.svc"), rest, kind),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
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
        let headless = entry.is_headless();
        match rest {
            [] if kind == RecordType::SRV => self.srv(entry, relative, None),
            [] if headless => addresses(entry.hosts().into_iter().map(|host| host.ip), kind),
            [] => addresses(entry.cluster_ips(), kind),
            [protocol] if protocol.starts_with('_') => Found::empty(),
            [protocol, port] => match (protocol.strip_prefix('_'), port.strip_prefix('_')) {
                (Some(protocol), Some(port)) => {
                    match (self.srv(entry, relative, Some((port, protocol))), kind) {
                        (Found::Nothing, _) => Found::Nothing,
                        (found, RecordType::SRV) => found,
                        _ => Found::empty(),
                    }
                }
                _ => Found::Nothing,
            },
            [label] => {
                // Endpoints of Services with a ClusterIP have names too: their SRV targets do not use them, clients may.
                let hosts = entry.hosts().into_iter().filter(|host| host.label == *label);
                addresses(hosts.map(|host| host.ip), kind)
            }
            _ => Found::Nothing,
        }
    }

    fn srv(&self, entry: &Entry, relative: &str, wanted: Option<(&str, &str)>) -> Found {
        let base = format!("{relative}.{}.", self.domain);
        let mut answers = Vec::new();
        let mut additionals: Vec<Record> = Vec::new();
        let mut add = |target: &str, port: u16, ips: &[IpAddr]| {
            // A name that is too long for DNS cannot be asked for either.
            let Ok(target) = Name::from_ascii(target) else {
                return;
            };
            for ip in ips {
                let record = Record::from_rdata(target.clone(), TTL, address(*ip));
                if !additionals.contains(&record) {
                    additionals.push(record);
                }
            }
            // Priority 0 and equal weights: the client chooses.
            answers.push(RData::SRV(SRV::new(0, 100, port, target)));
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
            (true, None) if entry.is_headless() && entry.hosts().is_empty() => Found::Nothing,
            _ => Found::Records { answers, additionals },
        }
    }

    /// PTR records for addresses of Services and of headless Services' endpoints.
    fn reverse(&self, index: &Index, query: &Query) -> Option<Found> {
        let net = query.name().parse_arpa_name().ok()?;
        if net.prefix_len() != net.max_prefix_len() {
            return None;
        }
        let names = index.pointers(net.addr());
        if names.is_empty() {
            return None;
        }
        if query.query_type() != RecordType::PTR {
            return Some(Found::empty());
        }
        let names = names
            .iter()
            .filter_map(|name| Name::from_ascii(name).ok()?.append_domain(&self.origin).ok());
        Some(Found::only(names.map(|name| RData::PTR(PTR(name))).collect()))
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The addresses of the family asked for; a name without any address does not exist.
fn addresses(ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Found {
    let all: Vec<RData> = ips.into_iter().map(address).collect();
    if all.is_empty() {
        return Found::Nothing;
    }
    Found::only(
        all.into_iter()
            .filter(|data| data.record_type() == kind)
            .collect(),
    )
}

/// `1-2-3-4.namespace.pod`: an address that the client knows already, in the form of a name.
fn pod(index: &Index, namespace: &str, label: &str, kind: RecordType) -> Found {
    let ip = label
        .replace('-', ".")
        .parse::<IpAddr>()
        .or_else(|_| label.replace('-', ":").parse());
    match ip {
        Ok(ip) if index.has_namespace(namespace) && dashed(ip) == label => addresses([ip], kind),
        _ => Found::Nothing,
    }
}

#[cfg(test)]
mod tests;
