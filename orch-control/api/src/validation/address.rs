//! Forms of IP addresses and ranges, as strict as Kubernetes is since v1.36 (KEP-4858).

use std::net::IpAddr;

use ipnet::IpNet;

const NOT_A_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const NOT_AN_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const MAPPED: &str = "must not be an IPv4-mapped IPv6 address";

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The range that `text` means; none if it is no range at all. The standard library refuses addresses with
/// leading zeros, which some read as octal.
pub(crate) fn range(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()
}

/// The faults of a range in a field that has always been there: it may be written in more than one way.
pub(crate) fn range_faults(text: &str) -> Vec<String> {
    let Some(net) = range(text) else {
        return vec![NOT_A_RANGE.to_owned()];
    };
    let mut out = Vec::new();
    let length = text.rsplit('/').next().unwrap_or_default();
    if length.len() > 1 && length.starts_with('0') {
        out.push("must not have leading 0s in IP or prefix length".to_owned());
    }
    if is_mapped(net.addr()) {
        out.push(MAPPED.to_owned());
    }
    if net.addr() != net.network() {
        out.push(format!(
            "must not have bits set beyond the prefix length ({:?})",
            net.trunc().to_string()
        ));
    }
    out
}

/// The faults of a range in a newer field: it must be written in the one canonical way.
pub(crate) fn canonical_range_faults(text: &str) -> Vec<String> {
    let mut out = range_faults(text);
    if out.is_empty()
        && let Some(canonical) = range(text).map(|net| net.to_string())
        && canonical != text
    {
        out.push(format!("must be in canonical form ({canonical:?})"));
    }
    out
}

/// The fault of an address in a field that has always been there: it may be written in more than one way.
pub(crate) fn address_fault(text: &str) -> Option<&'static str> {
    match text.parse::<IpAddr>() {
        Err(_) => Some(NOT_AN_ADDRESS),
        Ok(ip) if is_mapped(ip) => Some(MAPPED),
        Ok(_) => None,
    }
}

/// The fault of an address that traffic of others may be sent to: not one that every machine has for itself.
pub(crate) fn shared_address_fault(text: &str) -> Option<&'static str> {
    let fault = address_fault(text);
    let Some(ip) = text.parse::<IpAddr>().ok().filter(|_| fault.is_none()) else {
        return fault;
    };
    let (link_local, link_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let faults = [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (
            ip.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            link_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ];
    faults.into_iter().find(|(is, _)| *is).map(|(_, fault)| fault)
}

/// The faults of an address that must be written in the one canonical way, as in an IPAddress's name.
pub(crate) fn canonical_address_faults(text: &str) -> Vec<String> {
    if let Some(fault) = address_fault(text) {
        return vec![fault.to_owned()];
    }
    match text.parse::<IpAddr>().map(|ip| ip.to_string()) {
        Ok(canonical) if canonical != text => vec![format!("must be in canonical form ({canonical:?})")],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad() {
        type Faults = fn(&str) -> Vec<String>;
        let cases: [(Faults, &[&str], &[&str]); 3] = [
            (
                range_faults,
                &["10.0.0.0/8", "::/0", "FD00::/8", "fd00:0::/8"],
                &[
                    "",
                    "10.0.0.0",
                    "10.0.0.1/8",
                    "010.0.0.0/8",
                    "10.0.0.0/08",
                    "10.0.0.0/33",
                    "::ffff:1.2.3.0/120",
                ],
            ),
            (
                canonical_range_faults,
                &["fd00::/8"],
                &["FD00::/8", "fd00:0::/8", "fd00::1/8"],
            ),
            (
                canonical_address_faults,
                &["10.0.0.1", "fd00::1"],
                &["", "x", "10.0.0.01", "FD00::1", "fd00:0::1", "::ffff:1.2.3.4"],
            ),
        ];
        for (faults, good, bad) in cases {
            for text in good {
                assert!(faults(text).is_empty(), "{text}: {:?}", faults(text));
            }
            for text in bad {
                assert!(!faults(text).is_empty(), "{text}");
            }
        }
    }
}
