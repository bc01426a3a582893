//! The nameservers of a resolv.conf.

use std::net::{IpAddr, SocketAddr};

/// The `nameserver` lines of a resolv.conf(5), as addresses with port 53. Lines that are no address are skipped, as
/// the C library does.
#[must_use]
pub fn upstreams(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver"))
                .then(|| words.next()?.parse::<IpAddr>().ok())
                .flatten()
        })
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nameservers_only() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.0.0.1\n nameserver ::1 \nnameserver nonsense\noptions ndots:5\n";
        assert_eq!(
            upstreams(text),
            vec![
                "10.0.0.1:53".parse::<SocketAddr>().unwrap(),
                "[::1]:53".parse().unwrap()
            ]
        );
    }
}
