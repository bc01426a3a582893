//! Routes over rtnetlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType},
};
use rtnetlink::RouteMessageBuilder;

use super::{Netlink, failed, is_errno};
use crate::DataplaneError;

/// The routes' protocol number that says "orch made this" (a free one of rtnetlink(7)'s table).
pub const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(111);

/// Where one of our routes leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// To a neighbour, by the interface on whose network it is.
    Gateway(IpAddr),
    /// To the interface with this index.
    Device(u32),
}

/// What fits on the way by a route, where that is not what its interface's packets have room for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fits {
    /// The longest packet that is sent.
    pub packet: Option<u32>,
    /// The longest TCP segment that is asked of peers.
    pub segment: Option<u32>,
}

impl Netlink {
    async fn put_route(&self, message: RouteMessage, what: String) -> Result<(), DataplaneError> {
        self.handle
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("add the route to {what}")))
    }

    /// A route to neighbours on the interface itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn route_direct(
        &self,
        to: IpNet,
        index: u32,
        source: Option<IpAddr>,
    ) -> Result<(), DataplaneError> {
        let mut message = route(to);
        message.attributes.push(RouteAttribute::Oif(index));
        if to.addr().is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
        let source = source.map(|source| RouteAttribute::PrefSource(source.into()));
        message.attributes.extend(source);
        self.put_route(message, to.to_string()).await
    }

    /// A route by way of a gateway, on the interface if one is given, else on the one on whose network it is.
    ///
    /// # Errors
    /// When the kernel refuses, as it does where the gateway is on no network of an interface.
    pub async fn route_via(
        &self,
        to: IpNet,
        gateway: IpAddr,
        index: Option<u32>,
        fits: Fits,
    ) -> Result<(), DataplaneError> {
        let mut message = route(to);
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        let metrics: Vec<RouteMetric> = [
            fits.packet.map(RouteMetric::Mtu),
            fits.segment.map(RouteMetric::Advmss),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        message.attributes.extend(index.map(RouteAttribute::Oif));
        self.put_route(message, format!("{to} via {gateway}")).await
    }

    /// A route that answers "unreachable" where no better one exists.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn route_unreachable(&self, to: IpNet) -> Result<(), DataplaneError> {
        let mut message = route(to);
        message.header.kind = RouteType::Unreachable;
        self.put_route(message, to.to_string()).await
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, DataplaneError> {
        let mut all = Vec::new();
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let found: Vec<RouteMessage> = self
                .handle
                .route()
                .get(message)
                .execute()
                .try_filter(|route| std::future::ready(route.header.kind == RouteType::Unicast))
                .try_collect()
                .await
                .map_err(failed("list routes"))?;
            all.extend(found);
        }
        Ok(all)
    }

    /// The routes that we have made and where they lead; those that lead nowhere are left out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn own_routes(&self) -> Result<Vec<(IpNet, Hop)>, DataplaneError> {
        Ok(self
            .routes()
            .await?
            .iter()
            .filter(|route| route.header.protocol == ROUTE_PROTOCOL)
            .filter_map(|route| {
                let way = Way::of(route);
                let hop = way.gateway.map(Hop::Gateway).or(way.device.map(Hop::Device))?;
                Some((way.to, hop))
            })
            .collect())
    }

    /// Index of the interface of each family's default route, the one with the lowest metric, IPv4's first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn default_devices(&self) -> Result<Vec<u32>, DataplaneError> {
        let routes = self.routes().await?;
        let of_family = |family: AddressFamily| {
            routes
                .iter()
                .filter(|route| {
                    let header = &route.header;
                    header.address_family == family && header.destination_prefix_length == 0
                })
                .map(Way::of)
                .filter_map(|way| Some((way.priority, way.device?)))
                .min()
                .map(|(_, device)| device)
        };
        let families = [AddressFamily::Inet, AddressFamily::Inet6];
        Ok(families.into_iter().filter_map(of_family).collect())
    }

    /// Removes one of our routes; one that is gone already is fine.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub async fn remove_route(&self, to: IpNet) -> Result<(), DataplaneError> {
        let mut message = route(to);
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        match self.handle.route().del(message).execute().await {
            Err(error) if !is_errno(&error, libc::ESRCH) => {
                Err(failed(format!("remove the route to {to}"))(error))
            }
            _ => Ok(()),
        }
    }
}

/// One of our routes, still without a way.
fn route(to: IpNet) -> RouteMessage {
    match to {
        IpNet::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .protocol(ROUTE_PROTOCOL)
            .build(),
        IpNet::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .protocol(ROUTE_PROTOCOL)
            .build(),
    }
}

/// The parts of a route that matter here.
struct Way {
    to: IpNet,
    gateway: Option<IpAddr>,
    device: Option<u32>,
    priority: u32,
}

impl Way {
    fn of(route: &RouteMessage) -> Self {
        let ip = |address: &RouteAddress| match address {
            RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
            RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        };
        let any = if route.header.address_family == AddressFamily::Inet {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let mut destination = any;
        let (mut gateway, mut device, mut priority) = (None, None, 0);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address).unwrap_or(any),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::Priority(metric) => priority = *metric,
                _ => {}
            }
        }
        let length = route.header.destination_prefix_length;
        Self {
            // The kernel gives no length that its family does not have.
            to: IpNet::new(destination, length).unwrap_or_else(|_| destination.into()),
            gateway,
            device,
            priority,
        }
    }
}
