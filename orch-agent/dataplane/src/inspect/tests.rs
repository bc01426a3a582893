//! What the views print, as far as no map is needed.

use orch_ebpf::policy::{RULE_ANY_PORT_BITS, RULE_ANY_PROTOCOL_BITS, RULE_PORT_BITS, RuleKey};
use serde_json::json;

use super::{Cell, Table, View, flags, policy::ports, socket, table::row};

#[test]
fn a_table_is_text_for_a_person_and_objects_for_a_program() {
    let mut table = Table::new(&["name", "idle_seconds"]);
    table.push(row!["a longer name", 3]);
    table.push(vec![
        Cell::shown(json!(["x"]), "shown".to_owned()),
        json!(null).into(),
    ]);
    assert_eq!(
        table.text(),
        "NAME            IDLE SECONDS\na longer name   3\nshown           <none>\n"
    );
    assert_eq!(
        table.json(),
        json!([{"name": "a longer name", "idle_seconds": 3}, {"name": ["x"], "idle_seconds": null}])
    );
}

#[test]
fn every_view_can_be_asked_for_by_its_name() {
    for name in View::NAMES {
        assert!(name.parse::<View>().is_ok(), "{name}");
    }
    assert!("service".parse::<View>().is_err());
}

#[test]
fn addresses_of_both_families_read_as_people_write_them() {
    assert_eq!(socket([10, 96, 0, 1], 443), "10.96.0.1:443");
    assert_eq!(socket(std::net::Ipv6Addr::LOCALHOST.octets(), 443), "[::1]:443");
    assert_eq!(socket([0; 4], 30080), "node:30080");
    assert_eq!(flags(5, [(1, "a"), (2, "b"), (4, "c")]), ["a", "c"]);
}

#[test]
fn a_rule_s_prefix_is_a_block_of_ports() {
    let key = |port: u16| {
        let [port_high, port_low] = port.to_be_bytes();
        RuleKey {
            port_high,
            port_low,
            ..RuleKey::default()
        }
    };
    assert_eq!(ports(&key(0), RULE_ANY_PROTOCOL_BITS), None);
    assert_eq!(ports(&key(0), RULE_ANY_PORT_BITS), None);
    assert_eq!(ports(&key(80), RULE_PORT_BITS).as_deref(), Some("80"));
    assert_eq!(
        ports(&key(8192), RULE_ANY_PORT_BITS + 3).as_deref(),
        Some("8192-16383")
    );
}
