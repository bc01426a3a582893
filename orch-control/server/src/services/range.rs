//! One family's range of cluster IPs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use orch_api::service::Family;

use super::pool::Pool;

/// The addresses of a network, and which of them Services have.
pub(super) struct Range {
    network: IpNet,
    pool: Pool,
    /// Not dealt out, but free for those who ask for them by name.
    reserved: Vec<u128>,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The `offset`th address of a network, if it has as many.
#[must_use]
pub fn nth_address(network: IpNet, offset: u128) -> Option<IpAddr> {
    let value = number(network.network()).checked_add(offset)?;
    let ip = match network {
        IpNet::V4(_) => Ipv4Addr::from(u32::try_from(value).ok()?).into(),
        IpNet::V6(_) => Ipv6Addr::from(value).into(),
    };
    network.contains(&ip).then_some(ip)
}

impl Range {
    /// All free, except for what stands for the network itself: its first address and, in IPv4, the last.
    pub(super) fn new(network: IpNet, reserved: &[IpAddr]) -> Self {
        let network = network.trunc();
        let bits = u32::from(network.max_prefix_len() - network.prefix_len());
        let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        let mut pool = Pool::new(size, 16, 256);
        pool.take(0);
        if matches!(network, IpNet::V4(_)) {
            pool.take(size - 1);
        }
        let mut range = Self {
            network,
            pool,
            reserved: Vec::new(),
        };
        range.reserved = reserved.iter().filter_map(|ip| range.offset(*ip)).collect();
        range
    }

    pub(super) fn family(&self) -> Family {
        Family::of(self.network.addr())
    }

    pub(super) fn network(&self) -> IpNet {
        self.network
    }

    fn offset(&self, ip: IpAddr) -> Option<u128> {
        self.network
            .contains(&ip)
            .then(|| number(ip) - number(self.network.network()))
    }

    /// Takes an address.
    ///
    /// # Errors
    /// Why not, in the words that clients know.
    pub(super) fn take(&mut self, ip: IpAddr) -> Result<(), String> {
        let Some(offset) = self.offset(ip) else {
            return Err(format!(
                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                self.network
            ));
        };
        match self.pool.take(offset) {
            true => Ok(()),
            false => Err("provided IP is already allocated".into()),
        }
    }

    /// Takes any address; `None` when the range is full.
    pub(super) fn take_any(&mut self) -> Option<IpAddr> {
        let offset = self.pool.take_any(&self.reserved)?;
        nth_address(self.network, offset)
    }

    pub(super) fn give_back(&mut self, ip: IpAddr) {
        if let Some(offset) = self.offset(ip) {
            self.pool.give_back(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_not_dealt_and_the_reserved_only_by_name() {
        let dns = "10.0.0.10".parse().unwrap();
        let mut four = Range::new("10.0.0.0/28".parse().unwrap(), &[dns]);
        let dealt: Vec<IpAddr> = std::iter::from_fn(|| four.take_any()).collect();
        assert_eq!(dealt.len(), 13);
        assert!(!dealt.contains(&dns));
        assert!(four.take(dns).is_ok());
        assert!(four.take("10.0.0.15".parse().unwrap()).is_err());
        let mut six = Range::new("fd00::/124".parse().unwrap(), &[]);
        assert_eq!(std::iter::from_fn(|| six.take_any()).count(), 15);
    }

    #[test]
    fn addresses_are_counted_in_both_families() {
        let nth = |net: &str, n| nth_address(net.parse().unwrap(), n).map(|ip| ip.to_string());
        assert_eq!(nth("10.96.0.0/16", 10).as_deref(), Some("10.96.0.10"));
        assert_eq!(nth("fd00:10:96::/112", 10).as_deref(), Some("fd00:10:96::a"));
        assert_eq!(nth("10.96.0.0/30", 10), None);
    }
}
