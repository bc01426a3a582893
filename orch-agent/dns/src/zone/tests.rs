//! The specification's cases, as a table of questions and answers.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::*;

fn index() -> Index {
    let services = r#"[
      {"metadata":{"name":"web","namespace":"shop"},"spec":{"clusterIP":"10.96.1.2","clusterIPs":["10.96.1.2"],
        "ports":[{"name":"http","port":80,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"}]}},
      {"metadata":{"name":"db","namespace":"shop"},"spec":{"clusterIP":"None","ports":[{"name":"sql","port":5432}]}},
      {"metadata":{"name":"early","namespace":"shop"},"spec":{"clusterIP":"None","publishNotReadyAddresses":true,
        "ports":[{"name":"sql","port":5432}]}},
      {"metadata":{"name":"dual","namespace":"shop"},"spec":{"clusterIP":"10.96.1.3",
        "clusterIPs":["10.96.1.3","fd00:10:96::13"],"ports":[{"name":"http","port":80}]}},
      {"metadata":{"name":"both","namespace":"shop"},"spec":{"clusterIP":"None","clusterIPs":["None"]}},
      {"metadata":{"name":"far","namespace":"shop"},"spec":{"clusterIP":"None"}},
      {"metadata":{"name":"plain","namespace":"shop"},"spec":{"clusterIP":"10.96.1.4","ports":[{"port":80}]}},
      {"metadata":{"name":"none","namespace":"shop"},"spec":{"clusterIP":"None"}},
      {"metadata":{"name":"ext","namespace":"shop"},"spec":{"type":"ExternalName","externalName":"example.org"}}]"#;
    let slice = |service: &str| {
        format!(
            r#"{{"addressType":"IPv4","metadata":{{"name":"{service}-1","namespace":"shop",
            "labels":{{"kubernetes.io/service-name":"{service}"}}}},
            "ports":[{{"name":"sql","port":5432,"protocol":"TCP"}}],
            "endpoints":[{{"addresses":["10.244.0.5"],"hostname":"db-0","conditions":{{"ready":true}}}},
                         {{"addresses":["10.244.0.6"]}},
                         {{"addresses":["10.244.0.7"],"hostname":"db-2","conditions":{{"ready":false}}}}]}}"#
        )
    };
    let services: Vec<k8s_openapi::api::core::v1::Service> = serde_json::from_str(services).unwrap();
    let mut slices: Vec<Arc<EndpointSlice>> = ["web", "db", "early"]
        .iter()
        .map(|s| Arc::new(serde_json::from_str(&slice(s)).unwrap()))
        .collect();
    let six = r#"{"addressType":"IPv6","metadata":{"name":"both-6","namespace":"shop",
        "labels":{"kubernetes.io/service-name":"both"}},"ports":[{"name":"sql","port":5432,"protocol":"TCP"}],
        "endpoints":[{"addresses":["fd00:10:244::5"]},{"addresses":["fd00:10:244::6"],"hostname":"both-0"}]}"#;
    slices.push(Arc::new(serde_json::from_str(six).unwrap()));
    slices.push(Arc::new(serde_json::from_str(&slice("both")).unwrap()));
    // Made by hand, outside of the cluster's networks.
    let far = r#"{"addressType":"IPv4","metadata":{"name":"far-1","namespace":"shop",
        "labels":{"kubernetes.io/service-name":"far"}},"endpoints":[{"addresses":["192.0.2.9"]}]}"#;
    slices.push(Arc::new(serde_json::from_str(far).unwrap()));
    let mut index = Index::default();
    let services: Vec<_> = services.into_iter().map(Arc::new).collect();
    index.sync(&services, &slices);
    index
}

fn zone() -> Zone {
    let networks = ["10.96.0.0/16", "10.244.0.0/16", "fd00:10:96::/112"].map(|net| net.parse().unwrap());
    let addresses = vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()];
    Zone::new("cluster.local.", &networks, addresses).unwrap()
}

fn ask(name: &str, kind: RecordType) -> Option<String> {
    let query = Query::query(Name::from_ascii(name).unwrap(), kind);
    let answer = zone().answer(&index(), &query)?;
    assert!(answer.authoritative);
    assert_eq!(
        answer.answers.is_empty(),
        answer
            .authorities
            .iter()
            .any(|r| r.record_type() == RecordType::SOA)
    );
    for record in &answer.answers {
        assert_eq!(
            record.name.to_string(),
            name,
            "the owner keeps the spelling of the question"
        );
        assert!((5..=30).contains(&record.ttl));
    }
    let mut texts: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    texts.sort();
    Some(match (answer.code, texts.is_empty()) {
        (ResponseCode::NXDomain, _) => "NXDOMAIN".into(),
        (_, true) => "NODATA".into(),
        _ => texts.join(" | "),
    })
}

#[test]
fn answers_as_specified() {
    use RecordType as T;
    let table: &[(&str, T, Option<&str>)] = &[
        ("web.shop.svc.cluster.local.", T::A, Some("10.96.1.2")),
        ("WEB.Shop.svc.CLUSTER.local.", T::A, Some("10.96.1.2")),
        ("web.shop.svc.cluster.local.", T::AAAA, Some("NODATA")),
        ("web.shop.svc.cluster.local.", T::MX, Some("NODATA")),
        ("web.shop.svc.cluster.local.", T::ANY, Some("10.96.1.2")),
        ("dual.shop.svc.cluster.local.", T::A, Some("10.96.1.3")),
        ("dual.shop.svc.cluster.local.", T::AAAA, Some("fd00:10:96::13")),
        (
            "_http._tcp.dual.shop.svc.cluster.local.",
            T::SRV,
            Some("0 100 80 dual.shop.svc.cluster.local."),
        ),
        ("_._tcp.plain.shop.svc.cluster.local.", T::SRV, Some("NXDOMAIN")),
        ("_tcp.plain.shop.svc.cluster.local.", T::SRV, Some("NXDOMAIN")),
        ("_tcp.none.shop.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("*.shop.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("*.cluster.local.", T::A, Some("NXDOMAIN")),
        ("web.*.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("web\\.shop.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("example.org.shop.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("example.org.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("example.org.cluster.local.", T::A, Some("NXDOMAIN")),
        ("nope.shop.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("web.nope.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("shop.svc.cluster.local.", T::A, Some("NODATA")),
        ("nope.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("svc.cluster.local.", T::A, Some("NODATA")),
        ("web.shop.cluster.local.", T::A, Some("NXDOMAIN")),
        (
            "_http._tcp.web.shop.svc.cluster.local.",
            T::SRV,
            Some("0 100 80 web.shop.svc.cluster.local."),
        ),
        (
            "_dns._udp.web.shop.svc.cluster.local.",
            T::SRV,
            Some("0 100 53 web.shop.svc.cluster.local."),
        ),
        ("_http._udp.web.shop.svc.cluster.local.", T::SRV, Some("NXDOMAIN")),
        ("_http._tcp.web.shop.svc.cluster.local.", T::A, Some("NODATA")),
        ("_tcp.web.shop.svc.cluster.local.", T::A, Some("NODATA")),
        (
            "db.shop.svc.cluster.local.",
            T::A,
            Some("10.244.0.5 | 10.244.0.6"),
        ),
        (
            "early.shop.svc.cluster.local.",
            T::A,
            Some("10.244.0.5 | 10.244.0.6 | 10.244.0.7"),
        ),
        ("none.shop.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        ("db-0.db.shop.svc.cluster.local.", T::A, Some("10.244.0.5")),
        ("10-244-0-6.db.shop.svc.cluster.local.", T::A, Some("10.244.0.6")),
        ("db-2.db.shop.svc.cluster.local.", T::A, Some("NXDOMAIN")),
        (
            "_sql._tcp.db.shop.svc.cluster.local.",
            T::SRV,
            Some(
                "0 100 5432 10-244-0-6.db.shop.svc.cluster.local. | 0 100 5432 db-0.db.shop.svc.cluster.local.",
            ),
        ),
        (
            "both.shop.svc.cluster.local.",
            T::A,
            Some("10.244.0.5 | 10.244.0.6"),
        ),
        (
            "both.shop.svc.cluster.local.",
            T::AAAA,
            Some("fd00:10:244::5 | fd00:10:244::6"),
        ),
        (
            "fd00-10-244--5.both.shop.svc.cluster.local.",
            T::AAAA,
            Some("fd00:10:244::5"),
        ),
        (
            "fd00-10-244--5.both.shop.svc.cluster.local.",
            T::A,
            Some("NODATA"),
        ),
        (
            "both-0.both.shop.svc.cluster.local.",
            T::AAAA,
            Some("fd00:10:244::6"),
        ),
        ("10-244-0-6.web.shop.svc.cluster.local.", T::A, Some("10.244.0.6")),
        ("_http._tcp.ext.shop.svc.cluster.local.", T::SRV, Some("NXDOMAIN")),
        ("ext.shop.svc.cluster.local.", T::A, Some("example.org.")),
        ("ext.shop.svc.cluster.local.", T::CNAME, Some("example.org.")),
        ("10-244-0-9.shop.pod.cluster.local.", T::A, Some("10.244.0.9")),
        ("10-244-0-9.shop.pod.cluster.local.", T::AAAA, Some("NODATA")),
        ("10-244-0.shop.pod.cluster.local.", T::A, Some("NXDOMAIN")),
        ("10-244-0-256.shop.pod.cluster.local.", T::A, Some("NXDOMAIN")),
        (
            "fd00-10-244--9.shop.pod.cluster.local.",
            T::AAAA,
            Some("fd00:10:244::9"),
        ),
        (
            "fd00-10-244-0-0-0-0-9.empty.pod.cluster.local.",
            T::AAAA,
            Some("fd00:10:244::9"),
        ),
        ("fd00-10-244--9.shop.pod.cluster.local.", T::A, Some("NODATA")),
        ("shop.pod.cluster.local.", T::A, Some("NODATA")),
        ("a.10-244-0-9.shop.pod.cluster.local.", T::A, Some("NXDOMAIN")),
        ("ns.dns.cluster.local.", T::A, Some("10.96.0.10")),
        ("ns.dns.cluster.local.", T::AAAA, Some("fd00:10:96::a")),
        ("cluster.local.", T::NS, Some("ns.dns.cluster.local.")),
        ("dns-version.cluster.local.", T::TXT, Some("1.1.0")),
        ("dns-version.cluster.local.", T::A, Some("NODATA")),
        ("cluster.local.", T::A, Some("NODATA")),
        (
            "2.1.96.10.in-addr.arpa.",
            T::PTR,
            Some("web.shop.svc.cluster.local."),
        ),
        (
            "6.0.244.10.in-addr.arpa.",
            T::PTR,
            Some(
                "10-244-0-6.both.shop.svc.cluster.local. | 10-244-0-6.db.shop.svc.cluster.local. | \
                 10-244-0-6.early.shop.svc.cluster.local.",
            ),
        ),
        (
            "7.0.244.10.in-addr.arpa.",
            T::PTR,
            Some("db-2.early.shop.svc.cluster.local."),
        ),
        ("6.0.244.10.in-addr.arpa.", T::A, Some("NODATA")),
        (
            "3.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
            T::PTR,
            Some("dual.shop.svc.cluster.local."),
        ),
        (
            "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.IP6.ARPA.",
            T::PTR,
            Some("fd00-10-244--5.both.shop.svc.cluster.local."),
        ),
        (
            "4.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
            T::PTR,
            Some("NXDOMAIN"),
        ),
        (
            "9.2.0.192.in-addr.arpa.",
            T::PTR,
            Some("192-0-2-9.far.shop.svc.cluster.local."),
        ),
        ("8.2.0.192.in-addr.arpa.", T::PTR, None),
        ("99.0.96.10.in-addr.arpa.", T::PTR, Some("NXDOMAIN")),
        ("9.9.244.10.in-addr.arpa.", T::PTR, Some("NXDOMAIN")),
        ("96.10.in-addr.arpa.", T::PTR, Some("NODATA")),
        ("96.10.in-addr.arpa.", T::NS, Some("ns.dns.cluster.local.")),
        ("1.96.10.in-addr.arpa.", T::PTR, Some("NODATA")),
        ("10.in-addr.arpa.", T::PTR, None),
        ("in-addr.arpa.", T::PTR, None),
        ("9.9.9.9.in-addr.arpa.", T::PTR, None),
        ("local.", T::A, None),
        (".", T::NS, None),
        ("example.org.", T::A, None),
        ("notcluster.local.", T::A, None),
    ];
    for (name, kind, expected) in table {
        assert_eq!(ask(name, *kind).as_deref(), *expected, "{name} {kind}");
    }
}

#[test]
fn srv_brings_the_addresses_of_its_targets() {
    let name = Name::from_ascii("_sql._tcp.db.shop.svc.cluster.local.").unwrap();
    let answer = zone()
        .answer(&index(), &Query::query(name, RecordType::SRV))
        .unwrap();
    let mut texts: Vec<String> = answer
        .additionals
        .iter()
        .map(|r| format!("{} {}", r.name, r.data))
        .collect();
    texts.sort();
    assert_eq!(
        texts,
        [
            "10-244-0-6.db.shop.svc.cluster.local. 10.244.0.6",
            "db-0.db.shop.svc.cluster.local. 10.244.0.5"
        ]
    );
}

#[test]
fn a_miss_brings_the_soa_of_its_own_zone() {
    let apex = |name: &str| {
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        zone().answer(&index(), &query).unwrap().authorities[0]
            .name
            .to_string()
    };
    assert_eq!(apex("nope.shop.svc.cluster.local."), "cluster.local.");
    assert_eq!(apex("99.0.96.10.in-addr.arpa."), "96.10.in-addr.arpa.");
    assert_eq!(apex("9.2.0.192.in-addr.arpa."), "9.2.0.192.in-addr.arpa.");
}

#[test]
fn a_domain_that_is_none_is_refused() {
    for domain in ["", ".", "a..b", &"x".repeat(64)] {
        assert!(
            matches!(
                Zone::new(domain, &[], Vec::new()),
                Err(DnsError::BadDomain { .. })
            ),
            "{domain:?}"
        );
    }
}
