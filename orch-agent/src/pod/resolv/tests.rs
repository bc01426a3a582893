//! Policies and limits as tables.

use serde_json::{Value, json};

use super::*;

fn made(spec: &Value, dns: &[&str], host: &str) -> ResolvConf {
    let mut spec = spec.clone();
    spec["containers"] = json!([]);
    let pod = json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec});
    let dns: Vec<IpAddr> = dns.iter().map(|ip| ip.parse().unwrap()).collect();
    resolv_conf(&serde_json::from_value(pod).unwrap(), &dns, "cluster.local", host)
}

#[test]
fn resolver_follows_the_dns_policy() {
    let host = "# comment\nnameserver 192.0.2.1 # mine\nsearch example.org. .\noptions ndots:1 rotate\n";
    let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local example.org .\n\
                   nameserver 10.96.0.10\noptions ndots:5\n";
    let plain = "search example.org .\nnameserver 192.0.2.1\noptions ndots:1 rotate\n";
    let cases = [
        (json!({}), cluster),
        (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), plain),
        (
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            cluster,
        ),
        (json!({"dnsPolicy": "Default"}), plain),
        (json!({"dnsPolicy": "None"}), ""),
        (
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.9"], "searches": ["a.b"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            "search a.b\nnameserver 192.0.2.9\noptions ndots:2 edns0\n",
        ),
        (
            json!({"dnsPolicy": "Default", "dnsConfig": {"options": [{"name": "ndots", "value": "3"}]}}),
            "search example.org .\nnameserver 192.0.2.1\noptions ndots:3 rotate\n",
        ),
        (
            json!({"dnsConfig": {"nameservers": ["192.0.2.9", "10.96.0.10"], "searches": ["a.b", "cluster.local"],
                "options": [{"name": "ndots", "value": "2"}]}}),
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.org . a.b\n\
             nameserver 10.96.0.10\nnameserver 192.0.2.9\noptions ndots:2\n",
        ),
    ];
    for (spec, want) in cases {
        let conf = made(&spec, &["10.96.0.10"], host);
        assert_eq!(conf.text, want, "{spec}");
        assert!(conf.warnings.is_empty(), "{:?}", conf.warnings);
    }
}

#[test]
fn both_families_of_the_clusters_dns_are_named() {
    let conf = made(&json!({}), &["10.96.0.10", "fd00:10:96::a"], "");
    assert!(
        conf.text
            .contains("nameserver 10.96.0.10\nnameserver fd00:10:96::a\n"),
        "{}",
        conf.text
    );
}

#[test]
fn without_a_cluster_dns_the_nodes_own_is_used_and_said_so() {
    let conf = made(&json!({}), &[], "nameserver 192.0.2.1\n");
    assert_eq!(conf.text, "nameserver 192.0.2.1\n");
    assert!(conf.warnings[0].contains("Falling back"), "{:?}", conf.warnings);
    assert!(
        made(&json!({"dnsPolicy": "Default"}), &[], "")
            .warnings
            .is_empty()
    );
}

#[test]
fn what_is_over_the_limits_is_left_out_and_said_so() {
    let config = |key: &str, list: Vec<String>| json!({"dnsPolicy": "None", "dnsConfig": {key: list}});
    let four = (1..=4).map(|i| format!("192.0.2.{i}")).collect();
    let conf = made(&config("nameservers", four), &[], "");
    assert_eq!(
        conf.text,
        "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"
    );
    assert!(
        conf.warnings[0].ends_with("nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3"),
        "{:?}",
        conf.warnings
    );
    let many = (0..33).map(|i| format!("s{i:02}")).collect();
    let conf = made(&config("searches", many), &[], "");
    assert!(
        conf.text.ends_with(" s31\n") && conf.warnings.len() == 1,
        "{conf:?}"
    );
    // 1,001 characters twice, with the space between, are 2,003; a third is too long.
    let long = (0..3).map(|i| format!("{i}{}", "x".repeat(1000))).collect();
    let conf = made(&config("searches", long), &[], "");
    assert_eq!(conf.text.split_whitespace().count(), 3);
    assert_eq!(conf.warnings.len(), 1);
}
