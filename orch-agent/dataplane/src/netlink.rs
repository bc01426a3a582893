//! Interfaces, addresses, neighbours and routes over rtnetlink, in words of what the data plane needs.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd as _,
};

use futures::TryStreamExt as _;
use ipnet::Ipv4Net;
use netlink_packet_route::{
    address::AddressAttribute,
    link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{DataplaneError, sys};

/// The routes' protocol number that says "orch made this" (a free one of rtnetlink(7)'s table).
pub const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(111);

/// A connection to one network namespace's rtnetlink.
pub struct Netlink {
    handle: Handle,
}

/// An interface.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias, free text for people and for us.
    pub alias: Option<String>,
    /// Its MTU.
    pub mtu: u32,
}

/// Both ends of a new veth pair.
pub struct VethPair<'a> {
    /// Name of the node's side.
    pub name: &'a str,
    /// Hardware address of the node's side.
    pub mac: [u8; 6],
    /// Namespace of the other side.
    pub peer_namespace: &'a File,
    /// Name of the other side.
    pub peer_name: &'a str,
    /// Hardware address of the other side.
    pub peer_mac: [u8; 6],
    /// MTU of both.
    pub mtu: u32,
}

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> DataplaneError {
    let action = action.into();
    move |source| DataplaneError::Netlink {
        action,
        source: Box::new(source),
    }
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

impl Netlink {
    /// Connects to the calling thread's namespace; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn here() -> Result<Self, DataplaneError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| DataplaneError::Syscall {
                call: "open a netlink socket".to_owned(),
                source,
            })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Connects to another namespace; a socket belongs to the namespace in which it was opened.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside(namespace: &File) -> Result<Self, DataplaneError> {
        let runtime = tokio::runtime::Handle::current();
        sys::in_namespace(namespace, || {
            let _guard = runtime.enter();
            Self::here()
        })
        .map_err(|source| DataplaneError::Syscall {
            call: "enter the pod's network namespace".to_owned(),
            source,
        })?
    }

    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub async fn interface(&self, name: &str) -> Result<Option<Interface>, DataplaneError> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await;
        match found {
            Ok(message) => Ok(message.as_ref().map(interface)),
            Err(error) if is_errno(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("find interface {name}"))(error)),
        }
    }

    /// Every interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, DataplaneError> {
        let all: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list interfaces"))?;
        Ok(all.iter().map(interface).collect())
    }

    /// Makes a veth pair whose other side is in another namespace from the start.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), DataplaneError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(pair.peer_name.to_owned()),
            LinkAttribute::Address(pair.peer_mac.to_vec()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::NetNsFd(pair.peer_namespace.as_raw_fd()),
        ];
        let message = LinkVeth::new(pair.name, pair.peer_name)
            .address(pair.mac.to_vec())
            .mtu(pair.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(failed(format!("make interface {}", pair.name)))
    }

    /// Gives an interface its alias.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), DataplaneError> {
        let message = LinkUnspec::new_with_index(index).alias(alias).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("set the alias of interface {index}")))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_up(&self, index: u32) -> Result<(), DataplaneError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("bring interface {index} up")))
    }

    /// Removes an interface; one that is gone already is fine.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub async fn remove_interface(&self, index: u32) -> Result<(), DataplaneError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_errno(&error, libc::ENODEV) => {
                Err(failed(format!("remove interface {index}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives an interface an address; one that it has already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_address(&self, index: u32, address: Ipv4Addr) -> Result<(), DataplaneError> {
        self.handle
            .address()
            .add(index, IpAddr::V4(address), 32)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("add address {address}")))
    }

    /// The IPv4 addresses of an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Ipv4Addr>, DataplaneError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                let pick = |local: bool| {
                    message
                        .attributes
                        .iter()
                        .find_map(move |attribute| match attribute {
                            AddressAttribute::Local(IpAddr::V4(address)) if local => Some(*address),
                            AddressAttribute::Address(IpAddr::V4(address)) if !local => Some(*address),
                            _ => None,
                        })
                };
                pick(true).or_else(|| pick(false))
            })
            .collect())
    }

    /// Makes a neighbour known for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_neighbour(
        &self,
        index: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<(), DataplaneError> {
        self.handle
            .neighbours()
            .add(index, IpAddr::V4(address))
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("add neighbour {address}")))
    }

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
        to: Ipv4Net,
        index: u32,
        source: Option<Ipv4Addr>,
    ) -> Result<(), DataplaneError> {
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .output_interface(index)
            .scope(RouteScope::Link)
            .protocol(ROUTE_PROTOCOL);
        if let Some(source) = source {
            builder = builder.pref_source(source);
        }
        self.put_route(builder.build(), to.to_string()).await
    }

    /// A route by way of a gateway.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn route_via(&self, to: Ipv4Net, gateway: Ipv4Addr, index: u32) -> Result<(), DataplaneError> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .gateway(gateway)
            .output_interface(index)
            .protocol(ROUTE_PROTOCOL)
            .build();
        self.put_route(message, format!("{to} via {gateway}")).await
    }

    /// A route that answers "unreachable" where no better one exists.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn route_unreachable(&self, to: Ipv4Net) -> Result<(), DataplaneError> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .kind(RouteType::Unreachable)
            .protocol(ROUTE_PROTOCOL)
            .build();
        self.put_route(message, to.to_string()).await
    }

    /// Our routes by way of a gateway: destination and gateway.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn own_gateway_routes(&self) -> Result<Vec<(Ipv4Net, Ipv4Addr)>, DataplaneError> {
        let all: Vec<RouteMessage> = self
            .handle
            .route()
            .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
            .execute()
            .try_collect()
            .await
            .map_err(failed("list routes"))?;
        Ok(all
            .iter()
            .filter(|route| route.header.protocol == ROUTE_PROTOCOL)
            .filter_map(gateway_route)
            .collect())
    }

    /// Removes one of our routes; one that is gone already is fine.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub async fn remove_route(&self, to: Ipv4Net) -> Result<(), DataplaneError> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .protocol(ROUTE_PROTOCOL)
            .scope(RouteScope::NoWhere)
            .kind(RouteType::Unspec)
            .build();
        match self.handle.route().del(message).execute().await {
            Err(error) if !is_errno(&error, libc::ESRCH) => {
                Err(failed(format!("remove the route to {to}"))(error))
            }
            _ => Ok(()),
        }
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let mut found = Interface {
        index: message.header.index,
        name: String::new(),
        alias: None,
        mtu: 1500,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => found.alias = Some(alias.clone()),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            _ => {}
        }
    }
    found
}

fn gateway_route(route: &RouteMessage) -> Option<(Ipv4Net, Ipv4Addr)> {
    let mut destination = None;
    let mut gateway = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    Some((
        Ipv4Net::new(destination?, route.header.destination_prefix_length).ok()?,
        gateway?,
    ))
}
