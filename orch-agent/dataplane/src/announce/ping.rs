//! Asking other nodes whether they live: ICMP echo (RFC 792, RFC 4443 section 4) over raw sockets, which need no
//! setting of the kernel's as unprivileged ones do.

use std::{
    io,
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike,
    SockaddrStorage, recvfrom, sendto, socket,
};
use tokio::io::unix::AsyncFd;

use super::frames::internet_checksum;
use crate::sys;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Says in the data that the question is ours, whoever else has the same identifier.
const WORD: [u8; 8] = *b"orch-l2\0";
/// Length of an echo's header.
const HEADER: usize = 8;
/// Messages read at one go.
const BURST: usize = 256;

/// A socket of each family for questions and answers.
pub struct Pinger {
    v4: AsyncFd<OwnedFd>,
    /// Absent where the kernel has no IPv6.
    v6: Option<AsyncFd<OwnedFd>>,
    identifier: u16,
}

fn open(family: AddressFamily, protocol: SockProtocol) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    sys::readable(socket(family, SockType::Raw, flags, protocol)?)
}

impl Pinger {
    /// Opens the sockets; needs `CAP_NET_RAW` and must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the IPv4 one.
    pub fn new() -> io::Result<Self> {
        let [low, high, ..] = std::process::id().to_le_bytes();
        Ok(Self {
            v4: open(AddressFamily::Inet, SockProtocol::Icmp)?,
            v6: open(AddressFamily::Inet6, SockProtocol::IcmpV6).ok(),
            identifier: u16::from_le_bytes([low, high]),
        })
    }

    /// Asks.
    ///
    /// # Errors
    /// When nothing leads there.
    pub fn ask(&self, to: IpAddr) -> io::Result<()> {
        match to {
            IpAddr::V4(ip) => {
                let message = request(ECHO_REQUEST_V4, self.identifier, true);
                send(&self.v4, &message, &SockaddrIn::from(SocketAddrV4::new(ip, 0)))
            }
            IpAddr::V6(ip) => {
                let Some(socket) = &self.v6 else {
                    return Err(io::ErrorKind::Unsupported.into());
                };
                // The kernel sums up ICMPv6 (RFC 3542 section 3.1).
                let message = request(ECHO_REQUEST_V6, self.identifier, false);
                send(
                    socket,
                    &message,
                    &SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, 0)),
                )
            }
        }
    }

    /// Waits for answers and gives the addresses that they came from; nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When a socket fails.
    pub async fn answers(&self) -> io::Result<Vec<IpAddr>> {
        let v6 = async {
            match &self.v6 {
                Some(socket) => socket.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            guard = self.v4.readable() => {
                let mut guard = guard?;
                Ok(self.read(&mut guard, |message| echo_v4(message, self.identifier)))
            }
            guard = v6 => {
                let mut guard = guard?;
                Ok(self.read(&mut guard, |message| is_reply(message, ECHO_REPLY_V6, self.identifier)))
            }
        }
    }

    fn read(
        &self,
        guard: &mut tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>,
        is_answer: impl Fn(&[u8]) -> bool,
    ) -> Vec<IpAddr> {
        let mut found = Vec::new();
        let mut buffer = [0; 512];
        for _ in 0..BURST {
            match recvfrom::<SockaddrStorage>(guard.get_inner().as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    let answer = buffer.get(..length).is_some_and(&is_answer);
                    found.extend(from.filter(|_| answer).and_then(|from| ip(&from)));
                }
                Err(nix::errno::Errno::EAGAIN) => {
                    guard.clear_ready();
                    break;
                }
                // An error that an earlier question has come back with.
                Err(_) => {}
            }
        }
        found
    }
}

fn ip(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())))
}

fn send(socket: &AsyncFd<OwnedFd>, message: &[u8], to: &impl SockaddrLike) -> io::Result<()> {
    sendto(socket.get_ref().as_raw_fd(), message, to, MsgFlags::empty())?;
    Ok(())
}

fn request(kind: u8, identifier: u16, sum: bool) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    let mut message = vec![kind, 0, 0, 0, high, low, 0, 0];
    message.extend(WORD);
    if sum {
        let [high, low] = internet_checksum(&message);
        message.splice(2..4, [high, low]);
    }
    message
}

/// Whether a packet from an IPv4 raw socket, which begins with the IP header, is an answer.
fn echo_v4(packet: &[u8], identifier: u16) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    packet
        .get(header..)
        .is_some_and(|message| is_reply(message, ECHO_REPLY_V4, identifier))
}

fn is_reply(message: &[u8], kind: u8, identifier: u16) -> bool {
    let [high, low] = identifier.to_be_bytes();
    message.first() == Some(&kind)
        && message.get(4..6) == Some(&[high, low])
        && message.get(HEADER..HEADER + WORD.len()) == Some(&WORD)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn a_living_machine_answers_in_both_families() {
        let pinger = Pinger::new().unwrap();
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            pinger.ask(ip).unwrap();
            // The socket sees the question on its way in as well.
            let answered = async { while !pinger.answers().await.unwrap().contains(&ip) {} };
            tokio::time::timeout(Duration::from_secs(10), answered)
                .await
                .unwrap();
        }
    }

    #[test]
    fn only_answers_to_our_own_questions_count() {
        let mut message = request(ECHO_REPLY_V6, 7, false);
        assert!(is_reply(&message, ECHO_REPLY_V6, 7));
        assert!(!is_reply(&message, ECHO_REPLY_V6, 8));
        assert!(!is_reply(&message[..12], ECHO_REPLY_V6, 7));
        let mut packet = vec![0x46; 24];
        packet.append(&mut request(ECHO_REPLY_V4, 7, true));
        assert!(echo_v4(&packet, 7));
        message[9] ^= 1;
        assert!(!is_reply(&message, ECHO_REPLY_V6, 7));
        assert!(!echo_v4(&[], 7));
        assert_eq!(internet_checksum(&request(ECHO_REQUEST_V4, 7, true)), [0, 0]);
    }
}
