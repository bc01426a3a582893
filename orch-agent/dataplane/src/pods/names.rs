//! What the node's sides of pods' veth pairs are called, and what their aliases say.

use std::net::IpAddr;

use crate::netlink::{Interface, Kind};

/// Start of the node's side's name.
const PREFIX: &str = "orch";
/// Digits that follow it.
const DIGITS: usize = 11;
/// Name of the node's side for a pod: the prefix and 44 bits of a hash (FNV-1a) of the uid. The alias decides.
pub fn interface_name(uid: &str) -> String {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{PREFIX}{:0DIGITS$x}", hash >> 20)
}

/// Whether a name is like those of the node's sides.
pub fn is_interface_name(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == DIGITS && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether an interface is the node's side of a pod's veth pair.
pub fn is_pods(interface: &Interface) -> bool {
    interface.kind == Kind::Veth && is_interface_name(&interface.name)
}

/// The alias of the node's side, which names the pod and its addresses.
pub fn alias(uid: &str, addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    format!("orch {uid} {}", addresses.join(","))
}

/// Reads an alias; `None` when it is not one of ours.
pub fn parse_alias(alias: &str) -> Option<(String, Vec<IpAddr>)> {
    let mut words = alias.split(' ');
    let (Some("orch"), Some(uid), Some(addresses), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    let addresses: Result<Vec<IpAddr>, _> = addresses.split(',').map(str::parse).collect();
    Some((uid.to_owned(), addresses.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_says_who_and_where() {
        let addresses: Vec<IpAddr> = vec!["10.244.1.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        let text = alias("uid-1", &addresses);
        assert_eq!(text, "orch uid-1 10.244.1.3,fd00::3");
        assert_eq!(parse_alias(&text), Some(("uid-1".into(), addresses)));
        assert!(
            parse_alias("orch uid-1 10.244.1.3").is_some(),
            "as agents for one family wrote it"
        );
        for other in [
            "orch uid-1",
            "somebody's",
            "orch uid-1 x",
            "orch uid-1 10.0.0.1 more",
        ] {
            assert!(parse_alias(other).is_none(), "{other}");
        }
        let name = interface_name("uid-1");
        assert!(is_interface_name(&name) && name.len() == 15, "{name}");
        assert!(!is_interface_name("orch-vxlan") && !is_interface_name("orch0"));
    }
}
