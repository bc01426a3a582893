//! Changes in any order leave the same index as reading everything at once.

use serde_json::json;

use super::*;

fn service(name: &str, ip: &str) -> Arc<Service> {
    let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"clusterIP": ip}});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn slice(name: &str, service: &str, ips: &[&str]) -> Arc<EndpointSlice> {
    let object = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": [{"addresses": ips}]});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn everything_that_goes_leaves_nothing_behind() {
    let mut index = Index::default();
    // The slice comes first.
    index.put_slice(
        "db-1",
        "shop",
        Some(slice("db-1", "db", &["10.244.0.1", "10.244.0.2"])),
    );
    assert!(index.service("db", "shop").is_none() && !index.has_namespace("shop"));
    index.put_service("db", "shop", Some(service("db", "None")));
    assert_eq!(index.names_of(ip("10.244.0.2")), ["10-244-0-2.db.shop.svc"]);
    index.put_slice(
        "db-1",
        "shop",
        Some(slice("db-1", "db", &["10.244.0.2", "10.244.0.3"])),
    );
    assert!(index.names_of(ip("10.244.0.1")).is_empty());
    assert_eq!(index.names_of(ip("10.244.0.3")), ["10-244-0-3.db.shop.svc"]);
    // Another Service gets the slice.
    index.put_service("web", "shop", Some(service("web", "None")));
    index.put_slice("db-1", "shop", Some(slice("db-1", "web", &["10.244.0.2"])));
    assert_eq!(index.names_of(ip("10.244.0.2")), ["10-244-0-2.web.shop.svc"]);
    assert!(index.service("db", "shop").unwrap().slices.is_empty());
    // No longer headless: its endpoints have no pointers any more.
    index.put_service("web", "shop", Some(service("web", "10.96.0.7")));
    assert!(index.names_of(ip("10.244.0.2")).is_empty());
    assert_eq!(index.names_of(ip("10.96.0.7")), ["web.shop.svc"]);
    index.put_service("web", "shop", None);
    assert!(index.has_namespace("shop"));
    index.put_service("db", "shop", None);
    index.put_slice("db-1", "shop", None);
    assert_eq!(index.size(), (0, 0, 0, 0));
}

#[test]
fn reading_everything_again_removes_what_is_gone_and_changes_nothing_else() {
    let mut index = Index::default();
    let services = [service("db", "None"), service("web", "10.96.0.7")];
    let slices = [
        slice("db-1", "db", &["10.244.0.1"]),
        slice("web-1", "web", &["10.244.0.2"]),
    ];
    index.sync(&services, &slices);
    let size = index.size();
    assert_eq!(size, (2, 2, 1, 2));
    index.sync(&services, &slices);
    assert_eq!(index.size(), size);
    index.sync(&services[1..], &slices[1..]);
    assert_eq!(index.size(), (1, 1, 1, 1));
    index.sync(&[], &[]);
    assert_eq!(index.size(), (0, 0, 0, 0));
}

#[test]
fn one_change_among_many_touches_its_own_entry_only() {
    let mut index = Index::default();
    for i in 0..2_000 {
        let name = format!("s{i}");
        index.put_service(
            &name,
            "shop",
            Some(service(&name, &format!("10.96.{}.{}", i / 250, i % 250))),
        );
    }
    let before: Vec<*const Service> = pointers(&index);
    index.put_service("s7", "shop", Some(service("s7", "10.97.0.1")));
    let changed = before
        .iter()
        .zip(pointers(&index))
        .filter(|(a, b)| **a != *b)
        .count();
    assert_eq!(changed, 1);
    assert_eq!(index.names_of(ip("10.97.0.1")), ["s7.shop.svc"]);
    assert!(index.names_of(ip("10.96.0.7")).is_empty());
}

fn pointers(index: &Index) -> Vec<*const Service> {
    (0..2_000)
        .map(|i| {
            Arc::as_ptr(
                index
                    .service(&format!("s{i}"), "shop")
                    .unwrap()
                    .service
                    .as_ref()
                    .unwrap(),
            )
        })
        .collect()
}
