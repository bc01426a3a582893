//! Interfaces, addresses and neighbours over rtnetlink, in words of what the data plane needs.

use std::{fs::File, io, net::IpAddr, os::fd::AsRawFd as _};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, MulticastGroup, packet_core::NetlinkPayload,
};

use crate::{DataplaneError, sys};

mod routes;

pub use routes::{Fits, Hop};

/// A connection to one network namespace's rtnetlink.
pub struct Netlink {
    handle: Handle,
}

/// What kind of interface it is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair.
    Veth,
    /// An 802.1Q interface on the one with this index.
    Vlan(u32),
    /// A VXLAN device.
    Vxlan,
    /// Any other.
    Other,
}

/// The largest TCP aggregates, packets of many segments in one buffer, that an interface is handed whole: in bytes, headers
/// included. Longer ones are cut into their segments before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aggregates {
    /// Of IPv4.
    pub v4: u32,
    /// Of IPv6.
    pub v6: u32,
}

impl Aggregates {
    /// What every interface takes, and the kernel's default: as much as IPv4 can say the length of
    /// (`GSO_LEGACY_MAX_SIZE` in linux/netdevice.h).
    pub const DEFAULT: Self = Self {
        v4: 65_536,
        v6: 65_536,
    };
    /// The most that any interface takes, veths too (`GSO_MAX_SIZE` in linux/netdevice.h).
    pub const MOST: Self = Self {
        v4: 524_280,
        v6: 524_280,
    };

    /// What takes no more than either.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            v4: self.v4.min(other.v4),
            v6: self.v6.min(other.v6),
        }
    }

    /// As attributes of an interface, where they are more than what it has without. Kernels before 6.3 know none of IPv4,
    /// and pass over it.
    fn attributes(self) -> Vec<LinkAttribute> {
        let mut attributes = Vec::new();
        if self.v6 > Self::DEFAULT.v6 {
            attributes.push(LinkAttribute::GsoMaxSize(self.v6));
        }
        if self.v4 > Self::DEFAULT.v4 {
            attributes.push(LinkAttribute::GsoIpv4MaxSize(self.v4));
        }
        attributes
    }
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias, free text for people and for us.
    pub alias: Option<String>,
    /// Its MTU.
    pub mtu: u32,
    /// Its hardware address; zero when it has none of six bytes.
    pub mac: [u8; 6],
    /// Its kind.
    pub kind: Kind,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// What it takes in one piece.
    pub aggregates: Aggregates,
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
    /// What both take in one piece.
    pub aggregates: Aggregates,
}

/// A change that the kernel tells about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An interface came, went or changed.
    Link(String),
    /// An address came or went.
    Address(IpAddr),
    /// Something else, or the kernel had more to say than there was room for.
    Unknown,
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

fn unopened(source: io::Error) -> DataplaneError {
    DataplaneError::Syscall {
        call: "open a netlink socket".to_owned(),
        source,
    }
}

impl Netlink {
    /// Connects to the calling thread's namespace; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn here() -> Result<Self, DataplaneError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(unopened)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Changes of interfaces and addresses in the calling thread's namespace, as they happen.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn changes() -> Result<impl Stream<Item = Change> + Unpin + use<>, DataplaneError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(unopened)?;
        tokio::spawn(connection);
        Ok(messages.map(|(message, _)| match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) => Change::Link(interface(link).name),
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
            ) => own_address(address).map_or(Change::Unknown, |net| Change::Address(net.addr())),
            _ => Change::Unknown,
        }))
    }

    /// Connects to another namespace, in which `prepare` runs first; a socket belongs to the namespace in which it was
    /// opened.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `prepare` fails.
    pub fn inside(
        namespace: &File,
        prepare: impl FnOnce() -> Result<(), DataplaneError> + Send,
    ) -> Result<Self, DataplaneError> {
        let runtime = tokio::runtime::Handle::current();
        sys::in_namespace(namespace, || {
            prepare()?;
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
        peer.attributes.extend(pair.aggregates.attributes());
        let mut message = LinkVeth::new(pair.name, pair.peer_name)
            .address(pair.mac.to_vec())
            .mtu(pair.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        message.attributes.extend(pair.aggregates.attributes());
        self.add_link(message, pair.name).await
    }

    /// Makes a VXLAN device to which each packet says where it goes ("external", "collect metadata").
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_vxlan(
        &self,
        name: &str,
        mac: [u8; 6],
        port: u16,
        mtu: u32,
    ) -> Result<(), DataplaneError> {
        let message = LinkMessageBuilder::<LinkVxlan>::new(name)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            // The programs send without a checksum of the outer UDP, as RFC 6935 allows tunnels.
            .udp_zero_csum6_rx(true)
            .address(mac.to_vec())
            .mtu(mtu)
            .arp(false)
            .build();
        self.add_link(message, name).await
    }

    async fn add_link(&self, message: LinkMessage, name: &str) -> Result<(), DataplaneError> {
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(failed(format!("make interface {name}")))
    }

    async fn set_link(&self, message: LinkMessage, what: String) -> Result<(), DataplaneError> {
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(what))
    }

    /// Gives an interface its alias.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), DataplaneError> {
        let message = LinkUnspec::new_with_index(index).alias(alias).build();
        self.set_link(message, format!("set the alias of interface {index}"))
            .await
    }

    /// Sets an interface's MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), DataplaneError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.set_link(message, format!("set the MTU of interface {index} to {mtu}"))
            .await
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_up(&self, index: u32) -> Result<(), DataplaneError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.set_link(message, format!("bring interface {index} up"))
            .await
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

    /// Gives an interface an address of its own alone, at once usable; one that it has already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_address(&self, index: u32, address: IpAddr) -> Result<(), DataplaneError> {
        let mut request = self
            .handle
            .address()
            .add(index, address, IpNet::from(address).prefix_len())
            .replace();
        if address.is_ipv6() {
            // Nobody else can have it, so nobody need be asked (duplicate address detection, RFC 4862 section 5.4).
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        request
            .execute()
            .await
            .map_err(failed(format!("add address {address}")))
    }

    /// Every address of every interface: the interface's index and the address with its network's length. Addresses
    /// that another machine turned out to have are left out, those that are no source for what is new come last.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, DataplaneError> {
        let mut messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        messages.sort_by_key(is_passing);
        Ok(messages
            .iter()
            .filter(|message| !is_duplicate(message))
            .filter_map(|message| Some((message.header.index, own_address(message)?)))
            .collect())
    }

    /// Makes a neighbour known for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), DataplaneError> {
        self.handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("add neighbour {address}")))
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let mut found = Interface {
        index: message.header.index,
        name: String::new(),
        alias: None,
        mtu: 1500,
        mac: [0; 6],
        kind: Kind::Other,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        aggregates: Aggregates::DEFAULT,
    };
    let mut parent = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => found.alias = Some(alias.clone()),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(mac) => found.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Link(index) => parent = *index,
            LinkAttribute::GsoMaxSize(most) => found.aggregates.v6 = *most,
            LinkAttribute::GsoIpv4MaxSize(most) => found.aggregates.v4 = *most,
            LinkAttribute::LinkInfo(info) => {
                found.kind = info
                    .iter()
                    .find_map(|info| match info {
                        LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Veth),
                        LinkInfo::Kind(InfoKind::Vlan) => Some(Kind::Vlan(0)),
                        LinkInfo::Kind(InfoKind::Vxlan) => Some(Kind::Vxlan),
                        _ => None,
                    })
                    .unwrap_or(Kind::Other);
            }
            _ => {}
        }
    }
    if let Kind::Vlan(on) = &mut found.kind {
        *on = parent;
    }
    found
}

/// The interface's own address, which on a point-to-point link is not the one that the network is named by.
fn own_address(message: &AddressMessage) -> Option<IpNet> {
    let mut local = None;
    let mut other = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            _ => {}
        }
    }
    IpNet::new(local.or(other)?, message.header.prefix_len).ok()
}

fn is_duplicate(message: &AddressMessage) -> bool {
    has_any(message, AddressFlags::Dadfailed)
}

/// Whether an address is no source for what is new: on its way out, or of IPv6 and temporary (RFC 8981), or of IPv4 and
/// beside another one of its network.
fn is_passing(message: &AddressMessage) -> bool {
    has_any(message, AddressFlags::Deprecated | AddressFlags::Secondary)
}

fn has_any(message: &AddressMessage, wanted: AddressFlags) -> bool {
    message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.intersects(wanted)))
}
