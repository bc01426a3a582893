//! The reverse zones (RFC 1035 section 3.5, RFC 3596 section 2.5) of the cluster's networks.

use hickory_proto::rr::Name;
use ipnet::IpNet;

/// The apex of the reverse zone that `name`, which spells `net`, lies in, if it is one of `network`'s zones. A network
/// whose prefix ends inside a label has several.
pub(crate) fn apex(name: &Name, net: IpNet, network: IpNet) -> Option<Name> {
    let bits_per_label: u8 = match network {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 4,
    };
    let labels = network.prefix_len().div_ceil(bits_per_label);
    let inside = network.contains(&net.addr()) && net.prefix_len() >= labels * bits_per_label;
    // Two more labels: `in-addr.arpa` or `ip6.arpa`.
    inside.then(|| name.trim_to(usize::from(labels) + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apex_is_where_the_prefix_ends_or_the_next_label() {
        let of = |name: &str, network: &str| {
            let name = Name::from_ascii(name).unwrap();
            let net = name.parse_arpa_name().unwrap();
            apex(&name, net, network.parse().unwrap()).map(|apex| apex.to_string())
        };
        let table = [
            (
                "5.0.96.10.in-addr.arpa.",
                "10.96.0.0/16",
                Some("96.10.in-addr.arpa."),
            ),
            ("96.10.in-addr.arpa.", "10.96.0.0/16", Some("96.10.in-addr.arpa.")),
            ("10.in-addr.arpa.", "10.96.0.0/16", None),
            (
                "5.0.100.10.in-addr.arpa.",
                "10.96.0.0/12",
                Some("100.10.in-addr.arpa."),
            ),
            ("5.0.112.10.in-addr.arpa.", "10.96.0.0/12", None),
            (
                "8.b.d.0.1.0.0.2.ip6.arpa.",
                "2001:db8::/31",
                Some("8.b.d.0.1.0.0.2.ip6.arpa."),
            ),
            (
                "0.8.b.d.0.1.0.0.2.ip6.arpa.",
                "2001:db8::/32",
                Some("8.b.d.0.1.0.0.2.ip6.arpa."),
            ),
            ("5.0.96.10.in-addr.arpa.", "2001:db8::/32", None),
        ];
        for (name, network, expected) in table {
            assert_eq!(of(name, network).as_deref(), expected, "{name} {network}");
        }
    }
}
