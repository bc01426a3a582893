//! The pod's `/etc/resolv.conf`.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// The resolver of glibc reads no more name servers than this (`MAXNS`).
const MAX_NAMESERVERS: usize = 3;
/// Kubernetes' limits of search domains, and of their characters with the spaces between.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

/// A file's text, with what had to be left out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The text.
    pub text: String,
    /// What the pod's owner should hear, in Kubernetes' words (reason `DNSConfigForming`).
    pub warnings: Vec<String>,
}

/// What a `resolv.conf` says.
#[derive(Debug, Default)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// Reads a resolv.conf(5); what is not understood is skipped.
    fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let line = line.split_once(['#', ';']).map_or(line, |(before, _)| before);
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => out.searches = words.map(search).collect(),
                Some("options") => {
                    for option in words {
                        let (name, value) = option
                            .split_once(':')
                            .map_or((option, None), |(n, v)| (n, Some(v)));
                        out.option(name, value);
                    }
                }
                _ => {}
            }
        }
        out
    }

    /// Sets an option; one of the same name is replaced where it stands.
    fn option(&mut self, name: &str, value: Option<&str>) {
        let text = value.map_or_else(|| name.to_owned(), |v| format!("{name}:{v}"));
        match self
            .options
            .iter_mut()
            .find(|o| o.split(':').next() == Some(name))
        {
            Some(old) => *old = text,
            None => self.options.push(text),
        }
    }

    fn finish(mut self) -> ResolvConf {
        let mut warnings = Vec::new();
        without_duplicates(&mut self.searches);
        if cut_searches(&mut self.searches) {
            warnings.push(format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                self.searches.join(" ")
            ));
        }
        without_duplicates(&mut self.nameservers);
        if self.nameservers.len() > MAX_NAMESERVERS {
            self.nameservers.truncate(MAX_NAMESERVERS);
            warnings.push(format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                self.nameservers.join(" ")
            ));
        }
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for server in &self.nameservers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        ResolvConf { text, warnings }
    }
}

/// A search domain without its last dot; the root stays.
fn search(domain: &str) -> String {
    match domain {
        "." => domain.to_owned(),
        _ => domain.strip_suffix('.').unwrap_or(domain).to_owned(),
    }
}

fn without_duplicates(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// Whether any had to go.
fn cut_searches(searches: &mut Vec<String>) -> bool {
    let mut length = 0;
    let fitting = searches
        .iter()
        .take(MAX_SEARCHES)
        .take_while(|search| {
            // The first has no space before it.
            length += search.len() + usize::from(length > 0);
            length <= MAX_SEARCH_CHARACTERS
        })
        .count();
    let cut = fitting < searches.len();
    searches.truncate(fitting);
    cut
}

/// The pod's `/etc/resolv.conf`, by its `dnsPolicy` and `dnsConfig`; `host` is the node's own.
#[must_use]
pub fn resolv_conf(pod: &Pod, cluster_dns: &[IpAddr], domain: &str, host: &str) -> ResolvConf {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut warnings = Vec::new();
    let mut resolver = if policy == "None" {
        Resolver::default()
    } else {
        Resolver::parse(host)
    };
    if cluster && !cluster_dns.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let own = [
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.to_owned(),
        ];
        resolver.searches.splice(..0, own);
        // The node's servers and options (`trust-ad`, say) are not for the cluster's DNS.
        resolver.nameservers = cluster_dns.iter().map(ToString::to_string).collect();
        resolver.options = vec!["ndots:5".to_owned()];
    } else {
        if cluster {
            warnings.push(format!(
                "pod: kubelet does not have ClusterDNS IP configured and cannot create Pod using {policy:?} policy. \
                 Falling back to \"Default\" policy."
            ));
        }
        if policy != "None" && resolver.nameservers.is_empty() {
            resolver.nameservers.push(Ipv4Addr::LOCALHOST.to_string());
        }
    }
    if let Some(config) = &spec.dns_config {
        resolver
            .nameservers
            .extend(config.nameservers.iter().flatten().cloned());
        resolver
            .searches
            .extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            if let Some(name) = option.name.as_deref().filter(|name| !name.is_empty()) {
                resolver.option(name, option.value.as_deref().filter(|value| !value.is_empty()));
            }
        }
    }
    let mut made = resolver.finish();
    made.warnings.splice(..0, warnings);
    made
}

#[cfg(test)]
mod tests;
