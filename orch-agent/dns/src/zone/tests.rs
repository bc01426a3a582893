//! The specification's cases, as a table of questions and answers.

use std::sync::Arc;

use super::*;

fn index() -> Index {
    let services = r#"[
      {"metadata":{"name":"web","namespace":"shop"},"spec":{"clusterIP":"10.96.1.2","clusterIPs":["10.96.1.2"],
        "ports":[{"name":"http","port":80,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"}]}},
      {"metadata":{"name":"db","namespace":"shop"},"spec":{"clusterIP":"None","ports":[{"name":"sql","port":5432}]}},
      {"metadata":{"name":"early","namespace":"shop"},"spec":{"clusterIP":"None","publishNotReadyAddresses":true,
        "ports":[{"name":"sql","port":5432}]}},
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
    let slices = ["db", "early"].map(|s| Arc::new(serde_json::from_str(&slice(s)).unwrap()));
    Index::build(services.into_iter().map(Arc::new).collect(), slices.to_vec())
}

fn ask(name: &str, kind: RecordType) -> Option<String> {
    let query = Query::query(Name::from_ascii(name).unwrap(), kind);
    let answer = Zone::new("cluster.local").unwrap().answer(&index(), &query)?;
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
        ("ext.shop.svc.cluster.local.", T::A, Some("example.org.")),
        ("ext.shop.svc.cluster.local.", T::CNAME, Some("example.org.")),
        ("10-244-0-9.shop.pod.cluster.local.", T::A, Some("10.244.0.9")),
        ("10-244-0-9.shop.pod.cluster.local.", T::AAAA, Some("NODATA")),
        ("10-244-0.shop.pod.cluster.local.", T::A, Some("NXDOMAIN")),
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
            Some("10-244-0-6.db.shop.svc.cluster.local. | 10-244-0-6.early.shop.svc.cluster.local."),
        ),
        ("9.9.9.9.in-addr.arpa.", T::PTR, None),
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
    let answer = Zone::new("cluster.local.")
        .unwrap()
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
fn a_domain_that_is_none_is_refused() {
    assert!(Zone::new("").is_err());
    assert!(Zone::new("a..b").is_err());
}
