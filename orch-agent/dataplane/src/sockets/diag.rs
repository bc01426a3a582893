//! Finding and closing sockets of the calling thread's network namespace: `sock_diag(7)` and `SOCK_DESTROY`
//! (linux/sock_diag.h, linux/inet_diag.h).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use orch_ebpf::PROTOCOL_TCP;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct inet_diag_sockid`.
const ID: usize = 48;
/// Where the id stands in `struct inet_diag_msg`.
const ID_AT: usize = 4;
/// States of TCP in which a socket has a peer and is not over: 1 (established) to 6 without 3 is what waits for the
/// peer, 8 (close wait) what waits for its owner; 7, 9 to 11 are over or have none.
const TCP_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8;
/// A connected UDP socket counts as established.
const UDP_STATES: u32 = 1 << 1;

/// A connected socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connected {
    /// The kernel's number of the socket.
    pub cookie: [u32; 2],
    /// The peer's address; an IPv4 one also where the socket is of IPv6.
    pub peer: IpAddr,
    /// The peer's port.
    pub peer_port: u16,
    /// Its own port.
    pub port: u16,
}

/// What came of closing sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    /// How many were closed.
    pub count: usize,
    /// Whether the kernel was built without `CONFIG_INET_DIAG_DESTROY`.
    pub unsupported: bool,
}

/// Closes the sockets of the protocol that `which` names; their owners see `ECONNABORTED`.
///
/// # Errors
/// When the sockets cannot be listed.
pub fn close(protocol: u8, which: &dyn Fn(&Connected) -> bool) -> io::Result<Closed> {
    let link = Link::open()?;
    let mut closed = Closed::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = family.to_le_bytes()[0];
        for id in link.list(family, protocol, which)? {
            match link.destroy(family, protocol, &id) {
                Ok(()) => closed.count += 1,
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    closed.unsupported = true;
                    return Ok(closed);
                }
                // It is gone already, or its owner may not lose it.
                Err(error) => tracing::debug!(%error, "a socket could not be closed"),
            }
        }
    }
    Ok(closed)
}

struct Link(OwnedFd);

impl Link {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Self(socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkSockDiag,
        )?))
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads answers until the last one; `each` gets the bodies of those of the kind asked for.
    fn answers(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(length) = word(rest, 0).map(|length| length as usize) {
                let Some(body) = rest.get(HEADER..length) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                match rest
                    .get(4..6)
                    .and_then(|kind| kind.try_into().ok())
                    .map(u16::from_ne_bytes)
                {
                    Some(NLMSG_DONE) => return Ok(()),
                    Some(NLMSG_ERROR) => {
                        let code = word(body, 0).map_or(0, u32::cast_signed);
                        return if code == 0 {
                            Ok(())
                        } else {
                            Err(io::Error::from_raw_os_error(-code))
                        };
                    }
                    _ => each(body),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn list(
        &self,
        family: u8,
        protocol: u8,
        which: &dyn Fn(&Connected) -> bool,
    ) -> io::Result<Vec<[u8; ID]>> {
        let states = if protocol == PROTOCOL_TCP {
            TCP_STATES
        } else {
            UDP_STATES
        };
        self.ask(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_DUMP,
            &request(family, protocol, states, &[0; ID]),
        )?;
        let mut found = Vec::new();
        self.answers(|body| {
            if let Some((id, socket)) = read(body)
                && which(&socket)
            {
                found.push(id);
            }
        })?;
        Ok(found)
    }

    fn destroy(&self, family: u8, protocol: u8, id: &[u8; ID]) -> io::Result<()> {
        self.ask(SOCK_DESTROY, NLM_F_ACK, &request(family, protocol, u32::MAX, id))?;
        self.answers(|_| {})
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut request = vec![family, protocol, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a `struct inet_diag_msg`.
fn read(body: &[u8]) -> Option<([u8; ID], Connected)> {
    let family = libc::c_int::from(*body.first()?);
    let id: [u8; ID] = body.get(ID_AT..ID_AT + ID)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(id.get(at..at + 2)?.try_into().ok()?));
    let peer: [u8; 16] = id.get(20..36)?.try_into().ok()?;
    let peer = if family == libc::AF_INET {
        let [a, b, c, d, ..] = peer;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(peer)).to_canonical()
    };
    let socket = Connected {
        cookie: [word(&id, 40)?, word(&id, 44)?],
        peer,
        peer_port: port(2)?,
        port: port(0)?,
    };
    Some((id, socket))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    };

    use orch_ebpf::PROTOCOL_UDP;

    use super::*;

    #[test]
    fn a_connection_is_found_by_its_peer_and_closed_alone() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = || {
            // An IPv6 socket with an IPv4 peer.
            let stream =
                TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port))).unwrap();
            (stream, listener.accept().unwrap().0)
        };
        let (mut closed, _kept_open) = connect();
        let (other, mut other_side) = connect();
        let own = closed.local_addr().unwrap().port();
        let result = close(PROTOCOL_TCP, &|socket| {
            socket.peer == IpAddr::V4(Ipv4Addr::LOCALHOST) && socket.peer_port == port && socket.port == own
        })
        .unwrap();
        assert_eq!(
            result,
            Closed {
                count: 1,
                unsupported: false
            }
        );
        let error = closed.read(&mut [0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
        drop(other);
        assert_eq!(
            other_side.read(&mut [0]).unwrap(),
            0,
            "the other one ended as usual"
        );
    }

    #[test]
    fn only_connected_datagram_sockets_are_closed() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let connected = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        connected.connect(to).unwrap();
        let result = close(PROTOCOL_UDP, &|socket| socket.peer_port == to.port()).unwrap();
        assert_eq!(result.count, 1);
        let error = connected.recv(&mut [0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    }
}
