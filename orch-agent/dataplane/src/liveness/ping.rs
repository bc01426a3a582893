//! Asking other nodes whether they live: ICMP echo (RFC 792, RFC 4443 section 4) over raw sockets, which need no
//! setting of the kernel's as unprivileged ones do.

use std::{
    io,
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike,
    SockaddrStorage, recvfrom, sendto, setsockopt, socket, sockopt::RcvBufForce,
};
use tokio::io::unix::AsyncFd;

use crate::sys;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Says in the data that the question is ours, whoever else has the same identifier.
const WORD: [u8; 8] = *b"orch-l2\0";
/// Length of an echo's header.
const HEADER: usize = 8;
/// Length of a question.
const LENGTH: usize = HEADER + WORD.len();
/// Messages read at one go.
const BURST: usize = 256;
/// Bytes of answers that may wait, as the kernel counts them (some 700 each): those of a thousand nodes at once.
const ROOM: usize = 1 << 20;

/// A socket of each family for questions and answers.
pub struct Pinger {
    v4: Family,
    /// Absent where the kernel has no IPv6.
    v6: Option<Family>,
    identifier: u16,
}

struct Family {
    socket: AsyncFd<OwnedFd>,
    /// The question, which is always the same.
    question: [u8; LENGTH],
    is_answer: fn(&[u8], u16) -> bool,
}

impl Family {
    fn open(v6: bool, identifier: u16) -> io::Result<Self> {
        let (family, protocol, answer) = if v6 {
            (AddressFamily::Inet6, SockProtocol::IcmpV6, ECHO_REPLY_V6)
        } else {
            (AddressFamily::Inet, SockProtocol::Icmp, ECHO_REPLY_V4)
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Raw, flags, protocol)?;
        // Other nodes' questions, and what is said of our packets, would only wake us.
        sys::icmp::only(&socket, v6, answer)?;
        if let Err(error) = setsockopt(&socket, RcvBufForce, &ROOM) {
            tracing::debug!(%error, "answers of other nodes have less room to wait than they should");
        }
        Ok(Self {
            socket: sys::readable(socket)?,
            // The kernel sums up ICMPv6 (RFC 3542 section 3.1).
            question: if v6 {
                message(ECHO_REQUEST_V6, identifier, false)
            } else {
                message(ECHO_REQUEST_V4, identifier, true)
            },
            is_answer: if v6 { echo_v6 } else { echo_v4 },
        })
    }

    fn ask(&self, to: &impl SockaddrLike) -> io::Result<()> {
        let fd = self.socket.get_ref().as_raw_fd();
        sendto(fd, &self.question, to, MsgFlags::empty())?;
        Ok(())
    }

    /// Adds where answers came from, and says whether all that have come are read.
    fn read(&self, identifier: u16, found: &mut Vec<IpAddr>) -> bool {
        let mut buffer = [0; 512];
        for _ in 0..BURST {
            match recvfrom::<SockaddrStorage>(self.socket.get_ref().as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    let answer = buffer
                        .get(..length)
                        .is_some_and(|packet| (self.is_answer)(packet, identifier));
                    found.extend(from.filter(|_| answer).and_then(|from| ip(&from)));
                }
                Err(nix::errno::Errno::EAGAIN) => return true,
                // An error that an earlier question has come back with.
                Err(_) => {}
            }
        }
        false
    }
}

impl Pinger {
    /// Opens the sockets; needs `CAP_NET_RAW` and must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the IPv4 one.
    pub fn new() -> io::Result<Self> {
        let [low, high, ..] = std::process::id().to_le_bytes();
        let identifier = u16::from_le_bytes([low, high]);
        Ok(Self {
            v4: Family::open(false, identifier)?,
            v6: Family::open(true, identifier).ok(),
            identifier,
        })
    }

    /// Asks.
    ///
    /// # Errors
    /// When nothing leads there.
    pub fn ask(&self, to: IpAddr) -> io::Result<()> {
        match (to, &self.v6) {
            (IpAddr::V4(ip), _) => self.v4.ask(&SockaddrIn::from(SocketAddrV4::new(ip, 0))),
            (IpAddr::V6(ip), Some(v6)) => v6.ask(&SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, 0))),
            (IpAddr::V6(_), None) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Waits for answers and adds the addresses that they came from; nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When a socket fails.
    pub async fn answers(&self, found: &mut Vec<IpAddr>) -> io::Result<()> {
        let v6 = async {
            match &self.v6 {
                Some(family) => Ok((family, family.socket.readable().await?)),
                None => std::future::pending().await,
            }
        };
        let (family, mut guard) = tokio::select! {
            guard = self.v4.socket.readable() => (&self.v4, guard?),
            ready = v6 => { let ready: io::Result<_> = ready; ready? }
        };
        if family.read(self.identifier, found) {
            guard.clear_ready();
        }
        Ok(())
    }

    /// Adds the addresses of the answers that have come already.
    pub fn answers_so_far(&self, found: &mut Vec<IpAddr>) {
        for family in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            while !family.read(self.identifier, found) {}
        }
    }
}

fn ip(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())))
}

fn message(kind: u8, identifier: u16, sum: bool) -> [u8; LENGTH] {
    let [high, low] = identifier.to_be_bytes();
    let mut message = [0; LENGTH];
    let (header, word) = message.split_at_mut(HEADER);
    header.copy_from_slice(&[kind, 0, 0, 0, high, low, 0, 0]);
    word.copy_from_slice(&WORD);
    if sum {
        let sum = sys::icmp::checksum(&message);
        message[2..4].copy_from_slice(&sum);
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

/// The same of one from an IPv6 raw socket, which has no header before the message.
fn echo_v6(message: &[u8], identifier: u16) -> bool {
    is_reply(message, ECHO_REPLY_V6, identifier)
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
            let mut found = Vec::new();
            // The question comes in by the same way, and is not seen.
            let answered = pinger.answers(&mut found);
            tokio::time::timeout(Duration::from_secs(10), answered)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(found, [ip]);
            pinger.answers_so_far(&mut found);
            assert_eq!(found, [ip]);
        }
    }

    #[test]
    fn only_answers_to_our_own_questions_count() {
        let mut answer = message(ECHO_REPLY_V6, 7, false);
        assert!(echo_v6(&answer, 7));
        assert!(!echo_v6(&answer, 8));
        assert!(!echo_v6(&answer[..12], 7));
        let mut packet = vec![0x46; 24];
        packet.extend(message(ECHO_REPLY_V4, 7, true));
        assert!(echo_v4(&packet, 7));
        answer[9] ^= 1;
        assert!(!echo_v6(&answer, 7));
        assert!(!echo_v4(&[], 7));
        assert_eq!(sys::icmp::checksum(&message(ECHO_REQUEST_V4, 7, true)), [0, 0]);
    }
}
