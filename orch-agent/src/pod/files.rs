//! The pod's `/etc/hosts` and host name.

use std::{fmt::Write as _, net::IpAddr};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// A DNS label's limit.
const MAX_HOSTNAME: usize = 63;
/// The kernel's limit of a host name (`__NEW_UTS_LEN`).
pub const MAX_KERNEL_HOSTNAME: usize = 64;

/// What a pod is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// What the kernel and `/etc/hostname` say.
    pub kernel: String,
    /// Its name without a domain.
    pub short: String,
    /// With a subdomain, its full name in the cluster's DNS.
    pub full: Option<String>,
}

impl HostName {
    fn plain(name: &str) -> Self {
        Self {
            kernel: name.to_owned(),
            short: name.to_owned(),
            full: None,
        }
    }
}

/// The pod's host name.
#[must_use]
pub fn hostname(pod: &Pod, node: &str, domain: &str) -> HostName {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return HostName::plain(name);
    }
    if spec.host_network == Some(true) {
        return HostName::plain(node);
    }
    let wanted = spec.hostname.as_deref().filter(|h| !h.is_empty());
    let mut name = wanted
        .or(pod.metadata.name.as_deref())
        .unwrap_or_default()
        .to_owned();
    name.truncate(MAX_HOSTNAME);
    let short = name.trim_end_matches(['-', '.']).to_owned();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let full = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    let full = full.map(|subdomain| format!("{short}.{subdomain}.{namespace}.svc.{domain}"));
    let kernel = match &full {
        Some(full) if spec.set_hostname_as_fqdn == Some(true) => full.clone(),
        _ => short.clone(),
    };
    HostName { kernel, short, full }
}

/// The pod's `/etc/hosts`, with a line for each of its addresses. `host` is the node's own file, the base for
/// host-network pods.
#[must_use]
pub fn hosts(pod: &Pod, ips: &[IpAddr], name: &HostName, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut out = if spec.and_then(|s| s.host_network) == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{host}")
    } else {
        let mut out = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
        let full = name.full.as_ref().map(|f| format!("{f}\t")).unwrap_or_default();
        for ip in ips {
            let _ = writeln!(out, "{ip}\t{full}{}", name.short);
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
    fn hosts_name_the_pod_and_its_aliases() {
        let pod =
            pod(json!({"subdomain": "db", "hostAliases": [{"ip": "192.0.2.3", "hostnames": ["a", "b"]}]}));
        let name = hostname(&pod, "n1", "cluster.local");
        let text = hosts(
            &pod,
            &["10.244.0.9".parse().unwrap(), "fd00:10:244::9".parse().unwrap()],
            &name,
            "",
        );
        assert!(
            text.contains(
                "\n10.244.0.9\tweb-0.db.shop.svc.cluster.local\tweb-0\n\
                 fd00:10:244::9\tweb-0.db.shop.svc.cluster.local\tweb-0\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("192.0.2.3\ta\tb\n"), "{text}");
    }

    #[test]
    fn host_names() {
        let of = |spec| hostname(&pod(spec), "n1", "cluster.local").kernel;
        assert_eq!(of(json!({})), "web-0");
        assert_eq!(of(json!({"hostname": "x"})), "x");
        assert_eq!(of(json!({"hostNetwork": true})), "n1");
        assert_eq!(
            of(json!({"subdomain": "s", "setHostnameAsFQDN": true})),
            "web-0.s.shop.svc.cluster.local"
        );
        let whole = hostname(
            &pod(json!({"subdomain": "s", "setHostnameAsFQDN": true})),
            "n1",
            "cluster.local",
        );
        let text = hosts(&pod(json!({})), &["10.244.0.9".parse().unwrap()], &whole, "");
        assert!(
            text.ends_with("10.244.0.9\tweb-0.s.shop.svc.cluster.local\tweb-0\n"),
            "{text}"
        );
        let long = json!({"hostname": format!("{}-{}", "a".repeat(62), "b")});
        assert_eq!(of(long), "a".repeat(62));
    }
}
