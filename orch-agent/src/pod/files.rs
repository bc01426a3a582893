//! The pod's `/etc/hosts`, `/etc/resolv.conf` and host name.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// The resolver of glibc reads no more name servers than this (`MAXNS`).
const MAX_NAMESERVERS: usize = 3;
/// Kubernetes' limit of search domains.
const MAX_SEARCHES: usize = 32;
/// A host name's limit in the kernel and in DNS labels.
const MAX_HOSTNAME: usize = 63;

/// The pod's host name and, with a subdomain, its full name in the cluster's DNS.
#[must_use]
pub fn hostname(pod: &Pod, node: &str, domain: &str) -> (String, Option<String>) {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return (name.to_owned(), None);
    }
    if spec.host_network == Some(true) {
        return (node.to_owned(), None);
    }
    let wanted = spec.hostname.as_deref().filter(|h| !h.is_empty());
    let mut name = wanted
        .or(pod.metadata.name.as_deref())
        .unwrap_or_default()
        .to_owned();
    name.truncate(MAX_HOSTNAME);
    let name = name.trim_end_matches(['-', '.']).to_owned();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let full = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    let full = full.map(|subdomain| format!("{name}.{subdomain}.{namespace}.svc.{domain}"));
    match full {
        Some(full) if spec.set_hostname_as_fqdn == Some(true) => (full, None),
        full => (name, full),
    }
}

/// The pod's `/etc/hosts`. `host` is the node's own file, the base for host-network pods.
#[must_use]
pub fn hosts(pod: &Pod, ip: Option<IpAddr>, name: &str, full: Option<&str>, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut out = if spec.and_then(|s| s.host_network) == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{host}")
    } else {
        let mut out = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
        if let Some(ip) = ip {
            let full = full.map(|f| format!("{f}\t")).unwrap_or_default();
            let _ = writeln!(out, "{ip}\t{full}{name}");
        }
        out
    };
    let aliases = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let _ = writeln!(
            out,
            "{}\t{}",
            alias.ip,
            alias.hostnames.as_deref().unwrap_or_default().join("\t")
        );
    }
    out
}

/// What a `resolv.conf` says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// Reads a `resolv.conf`; what is not understood is skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => out.searches = words.map(str::to_owned).collect(),
                Some("options") => out.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        out
    }

    /// Adds an option; one of the same name is replaced.
    fn option(&mut self, name: &str, value: Option<&str>) {
        self.options.retain(|o| o.split(':').next() != Some(name));
        self.options
            .push(value.map_or_else(|| name.to_owned(), |v| format!("{name}:{v}")));
    }

    fn text(mut self) -> String {
        let mut seen = Vec::new();
        self.searches.retain(|s| {
            let new = !seen.contains(s);
            seen.push(s.clone());
            new
        });
        self.searches.truncate(MAX_SEARCHES);
        self.nameservers.dedup();
        self.nameservers.truncate(MAX_NAMESERVERS);
        let mut out = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(out, "search {}", self.searches.join(" "));
        }
        for server in &self.nameservers {
            let _ = writeln!(out, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(out, "options {}", self.options.join(" "));
        }
        out
    }
}

/// The pod's `/etc/resolv.conf`; `host` is the node's own.
#[must_use]
pub fn resolv_conf(pod: &Pod, cluster_dns: Option<IpAddr>, domain: &str, host: &str) -> String {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let host_network = spec.host_network == Some(true);
    let cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" => !host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let none = spec.dns_policy.as_deref() == Some("None");
    let mut resolver = if none {
        Resolver::default()
    } else {
        Resolver::parse(host)
    };
    if let (true, Some(dns)) = (cluster, cluster_dns) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut searches = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.to_owned(),
        ];
        searches.append(&mut resolver.searches);
        resolver.searches = searches;
        resolver.nameservers = vec![dns.to_string()];
        resolver.option("ndots", Some("5"));
    } else if !none && resolver.nameservers.is_empty() {
        resolver.nameservers.push(Ipv4Addr::LOCALHOST.to_string());
    }
    if let Some(config) = &spec.dns_config {
        resolver
            .nameservers
            .extend(config.nameservers.iter().flatten().cloned());
        resolver
            .searches
            .extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            if let Some(name) = &option.name {
                resolver.option(name, option.value.as_deref());
            }
        }
    }
    resolver.text()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn resolver_follows_the_dns_policy() {
        let host = "# comment\nnameserver 192.0.2.1\nsearch example.org\noptions ndots:1 rotate\n";
        let dns = Some("10.96.0.10".parse().unwrap());
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\n\
                       nameserver 10.96.0.10\noptions rotate ndots:5\n";
        let plain = "search example.org\nnameserver 192.0.2.1\noptions ndots:1 rotate\n";
        let cases = [
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), plain),
            (
                json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
                cluster,
            ),
            (json!({"dnsPolicy": "Default"}), plain),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.9"], "searches": ["a.b"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "search a.b\nnameserver 192.0.2.9\noptions ndots:2 edns0\n",
            ),
            (
                json!({"dnsPolicy": "Default", "dnsConfig": {"options": [{"name": "ndots", "value": "3"}]}}),
                "search example.org\nnameserver 192.0.2.1\noptions rotate ndots:3\n",
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(
                resolv_conf(&pod(spec.clone()), dns, "cluster.local", host),
                want,
                "{spec}"
            );
        }
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod =
            pod(json!({"subdomain": "db", "hostAliases": [{"ip": "192.0.2.3", "hostnames": ["a", "b"]}]}));
        let (name, full) = hostname(&pod, "n1", "cluster.local");
        let text = hosts(
            &pod,
            Some("10.244.0.9".parse().unwrap()),
            &name,
            full.as_deref(),
            "",
        );
        assert!(
            text.contains("\n10.244.0.9\tweb-0.db.shop.svc.cluster.local\tweb-0\n"),
            "{text}"
        );
        assert!(text.ends_with("192.0.2.3\ta\tb\n"), "{text}");
    }

    #[test]
    fn host_names() {
        let of = |spec| hostname(&pod(spec), "n1", "cluster.local").0;
        assert_eq!(of(json!({})), "web-0");
        assert_eq!(of(json!({"hostname": "x"})), "x");
        assert_eq!(of(json!({"hostNetwork": true})), "n1");
        assert_eq!(
            of(json!({"subdomain": "s", "setHostnameAsFQDN": true})),
            "web-0.s.shop.svc.cluster.local"
        );
        let long = json!({"hostname": format!("{}-{}", "a".repeat(62), "b")});
        assert_eq!(of(long), "a".repeat(62));
    }
}
