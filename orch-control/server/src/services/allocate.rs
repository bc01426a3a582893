//! Cluster IPs and node ports: what is taken, by whom, and what a Service about to be written is given.
//!
//! The truth is the stored Services; this is their index in memory, built from them on start. Numbers are taken
//! before a write and given back if it fails, so two writers never get the same one. One API server at a time may
//! run on a store for that reason.

mod reservation;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;
use orch_api::{
    FieldError, Path,
    service::{
        Family, allocates_node_ports, carry_over, cluster_ips, families, is_headless, needs_cluster_ip,
        needs_health_check, settle_families, uses_node_ports,
    },
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{pool::Pool, range::Range};
pub use reservation::Reservation;

/// Why a Service cannot have what it asks for or needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// Fields that ask for what cannot be had: `422 Invalid`.
    Invalid(Vec<FieldError>),
    /// Nothing is left to give, in the words that clients know: `500 InternalError`, as in Kubernetes.
    Exhausted(String),
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Self::Invalid(vec![error])
    }
}

/// All numbers and their owners.
pub struct Allocator {
    /// The families of the cluster's Services, the primary first.
    families: Vec<Family>,
    ports: RangeInclusive<u16>,
    taken: Mutex<Taken>,
}

struct Taken {
    ranges: Vec<Range>,
    ports: Pool,
    /// How many Services more than one were found with an address or a port: it is free when the last of them goes.
    doubles: HashMap<Number, usize>,
}

/// An address or a node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Number {
    Ip(IpAddr),
    Port(u16),
}

impl Taken {
    fn range(&mut self, family: Family) -> Option<&mut Range> {
        self.ranges.iter_mut().find(|range| range.family() == family)
    }

    /// Whether others still have the number, of whom there is one less now.
    fn is_shared(&mut self, number: Number) -> bool {
        let Some(others) = self.doubles.get_mut(&number) else {
            return false;
        };
        *others -= 1;
        if *others == 0 {
            self.doubles.remove(&number);
        }
        true
    }

    fn free_ip(&mut self, ip: IpAddr) {
        if self.is_shared(Number::Ip(ip)) {
            return;
        }
        if let Some(range) = self.range(Family::of(ip)) {
            range.give_back(ip);
        }
    }
}

impl Allocator {
    /// Nothing taken but what stands for the networks themselves. `networks` are at most one per family, the
    /// primary first; the addresses in `reserved` are for those who ask for them by name.
    #[must_use]
    pub fn new(networks: &[IpNet], reserved: &[IpAddr], ports: RangeInclusive<u16>) -> Arc<Self> {
        let count = u128::from(*ports.end()).saturating_sub(u128::from(*ports.start())) + 1;
        let ranges: Vec<Range> = networks.iter().map(|n| Range::new(*n, reserved)).collect();
        Arc::new(Self {
            families: ranges.iter().map(Range::family).collect(),
            ports,
            taken: Mutex::new(Taken {
                ranges,
                ports: Pool::new(count, 32, 128),
                doubles: HashMap::new(),
            }),
        })
    }

    /// The families of the cluster's Services, the primary first.
    #[must_use]
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// The networks that cluster IPs come from, the primary first.
    #[must_use]
    pub fn networks(&self) -> Vec<IpNet> {
        self.taken.lock().ranges.iter().map(Range::network).collect()
    }

    /// Takes what a stored Service has. What is out of range, or taken twice by an older mistake, is logged: the
    /// Service keeps it until somebody makes it anew.
    pub fn adopt(&self, service: &Value) {
        let (namespace, name) = (&service["metadata"]["namespace"], &service["metadata"]["name"]);
        let mut taken = self.taken.lock();
        for ip in cluster_ips(service) {
            let outcome = match taken.range(Family::of(ip)) {
                Some(range) => range.take(ip),
                None => Err(format!("{} is not configured on this cluster", Family::of(ip))),
            };
            if let Err(why) = outcome {
                *taken.doubles.entry(Number::Ip(ip)).or_default() += 1;
                tracing::warn!(%ip, %namespace, %name, why, "a stored cluster IP cannot be kept track of; make the Service anew");
            }
        }
        for port in node_ports(service) {
            if let Err(why) = self.take_port(&mut taken, port) {
                *taken.doubles.entry(Number::Port(port)).or_default() += 1;
                tracing::warn!(port, %namespace, %name, why, "a stored node port cannot be kept track of; make the Service anew");
            }
        }
    }

    /// Sets free what a Service had that is gone.
    pub fn release(&self, service: &Value) {
        let mut taken = self.taken.lock();
        for ip in cluster_ips(service) {
            taken.free_ip(ip);
        }
        for port in node_ports(service) {
            self.free_port(&mut taken, port);
        }
    }

    /// Gives `service`, about to replace `old`, what it needs, and checks what it asks for.
    ///
    /// # Errors
    /// What cannot be had.
    pub fn reserve(
        self: &Arc<Self>,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation, Refusal> {
        carry_over(service, old);
        let errors = settle_families(service, old, &self.families);
        if !errors.is_empty() {
            return Err(Refusal::Invalid(errors));
        }
        let mut reservation = Reservation::new(Arc::clone(self));
        self.reserve_ips(service, old, &mut reservation)?;
        self.reserve_ports(service, old, &mut reservation)?;
        Ok(reservation)
    }

    /// A new address for each family that came with this write: all of them, or the second.
    fn reserve_ips(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), Refusal> {
        let had: Vec<IpAddr> = old.into_iter().flat_map(cluster_ips).collect();
        let wanted: Vec<Family> = families(service).collect();
        let first = match old.filter(|old| needs_cluster_ip(old)) {
            None => 0,
            // Only from one family to two; everything else is as it was, or validation says that it may not change.
            Some(old) if !is_headless(old) && families(old).count() < wanted.len() => families(old).count(),
            Some(_) => wanted.len(),
        };
        if needs_cluster_ip(service) && !is_headless(service) {
            let mut ips = service["spec"]["clusterIPs"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            for (i, family) in wanted.iter().enumerate().skip(first) {
                let asked = ips.get(i).and_then(Value::as_str).unwrap_or_default();
                let ip = self.take_ip(*family, asked, service)?;
                reservation.ips.push(ip);
                match ips.get_mut(i) {
                    // As it was written: an IPv6 address has more than one spelling.
                    Some(_) => {}
                    None => ips.push(json!(ip)),
                }
            }
            if let Some(primary) = ips.first().cloned() {
                service["spec"]["clusterIP"] = primary;
                service["spec"]["clusterIPs"] = json!(ips);
            }
        }
        let now: Vec<IpAddr> = cluster_ips(service).collect();
        reservation.freed_ips = had.into_iter().filter(|ip| !now.contains(ip)).collect();
        Ok(())
    }

    fn take_ip(&self, family: Family, asked: &str, service: &Value) -> Result<IpAddr, Refusal> {
        let mut taken = self.taken.lock();
        let full = || Refusal::Exhausted("failed to allocate a serviceIP: range is full".into());
        // Families have been checked: each has a range.
        let range = taken.range(family).ok_or_else(full)?;
        let Ok(ip) = asked.parse::<IpAddr>() else {
            return range.take_any().ok_or_else(full);
        };
        range.take(ip).map_err(|why| {
            FieldError::invalid(
                &Path::new("spec").child("clusterIPs"),
                service["spec"]["clusterIPs"].clone(),
                format!("failed to allocate IP {asked}: {why}"),
            )
        })?;
        Ok(ip)
    }

    fn reserve_ports(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), Refusal> {
        let had = old.map(node_ports).unwrap_or_default();
        if uses_node_ports(service) {
            let given = self.reserve_node_ports(service, &had, reservation)?;
            for (port, number) in service["spec"]["ports"]
                .as_array_mut()
                .into_iter()
                .flatten()
                .zip(given)
            {
                if number != 0 {
                    port["nodePort"] = json!(number);
                }
            }
        }
        if needs_health_check(service) && !old.is_some_and(needs_health_check) {
            let asked = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
            let mut taken = self.taken.lock();
            let port = if asked == 0 {
                self.any_port(&mut taken).ok_or_else(|| {
                    Refusal::Exhausted("failed to allocate a HealthCheck NodePort 0: range is full".into())
                })?
            } else {
                let port = u16::try_from(asked).unwrap_or(0);
                self.take_port(&mut taken, port).map_err(|why| {
                    Refusal::Exhausted(format!(
                        "failed to allocate requested HealthCheck NodePort {asked}: {why}"
                    ))
                })?;
                port
            };
            drop(taken);
            reservation.ports.insert(port);
            service["spec"]["healthCheckNodePort"] = json!(port);
        }
        let now = node_ports(service);
        reservation.freed_ports = had.difference(&now).copied().collect();
        Ok(())
    }

    /// The node port of each port, in order; 0 where none is wanted. Ports of the same number but another protocol
    /// share theirs.
    fn reserve_node_ports(
        &self,
        service: &Value,
        had: &BTreeSet<u16>,
        reservation: &mut Reservation,
    ) -> Result<Vec<u16>, Refusal> {
        let ports = service["spec"]["ports"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let asked = |port: &Value| port["nodePort"].as_u64().unwrap_or(0);
        let mut given: Vec<u16> = Vec::new();
        for (i, port) in ports.iter().enumerate() {
            let mut wanted = asked(port);
            if wanted == 0 && allocates_node_ports(service) {
                let twin = ports.iter().enumerate().find_map(|(j, other)| {
                    let number = given.get(j).map_or_else(|| asked(other), |n| u64::from(*n));
                    let twin =
                        j != i && other["port"] == port["port"] && other["protocol"] != port["protocol"];
                    (twin && number != 0).then_some(number)
                });
                wanted = twin.unwrap_or(0);
            } else if wanted == 0 {
                given.push(0);
                continue;
            }
            let mut taken = self.taken.lock();
            let number = if wanted == 0 {
                self.any_port(&mut taken).ok_or_else(|| {
                    Refusal::Exhausted("failed to allocate a nodePort: range is full".into())
                })?
            } else {
                let number = u16::try_from(wanted).unwrap_or(0);
                if !had.contains(&number) && !reservation.ports.contains(&number) {
                    self.take_port(&mut taken, number).map_err(|why| {
                        let path = Path::new("spec").child("ports").index(i).child("nodePort");
                        FieldError::invalid(&path, wanted, why)
                    })?;
                } else {
                    given.push(number);
                    continue;
                }
                number
            };
            drop(taken);
            reservation.ports.insert(number);
            given.push(number);
        }
        Ok(given)
    }

    fn any_port(&self, taken: &mut Taken) -> Option<u16> {
        let offset = taken.ports.take_any(&[])?;
        Some(self.ports.start() + u16::try_from(offset).unwrap_or(0))
    }

    fn take_port(&self, taken: &mut Taken, port: u16) -> Result<(), String> {
        if !self.ports.contains(&port) {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            ));
        }
        match taken.ports.take(u128::from(port - self.ports.start())) {
            true => Ok(()),
            false => Err("provided port is already allocated".into()),
        }
    }

    fn free_port(&self, taken: &mut Taken, port: u16) {
        if self.ports.contains(&port) && !taken.is_shared(Number::Port(port)) {
            taken.ports.give_back(u128::from(port - self.ports.start()));
        }
    }
}

/// The node ports a Service holds, the health check's included. A port that TCP and UDP share is one.
fn node_ports(service: &Value) -> BTreeSet<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports.map(|p| &p["nodePort"]).filter(|_| uses_node_ports(service));
    let health = Some(&service["spec"]["healthCheckNodePort"]).filter(|_| needs_health_check(service));
    let port = |value: &Value| {
        value
            .as_u64()
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
    };
    ports.chain(health).filter_map(port).collect()
}

#[cfg(test)]
mod tests;
