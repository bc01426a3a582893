//! The process that keeps sockets while no agent runs.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot set its test up should end the test"
)]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use orch_agent::keeper::Keeper;
use orch_dns::Keeper as _;

fn keeper(folder: &Path, address: SocketAddr) -> Keeper {
    Keeper::find(folder, env!("CARGO_BIN_EXE_orch-agent").into(), &[address])
}

fn both() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

/// Processes that have the folder in their command line.
fn processes(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap().as_bytes();
    let lines = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.windows(folder.len()).any(|part| part == folder))
        .count()
}

#[test]
fn sockets_are_handed_from_one_agent_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (udp, tcp) = both();
    let address = udp.local_addr().unwrap();
    let first = keeper(folder.path(), address);
    assert!(first.take(address).is_none(), "nobody has kept anything");
    first.keep([udp.into(), tcp.into()]);
    assert_eq!(processes(folder.path()), 1);
    drop(first);
    // Nobody reads, and nobody is refused.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"asked while nobody was there", address).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    for _ in 0..2 {
        let next = keeper(folder.path(), address);
        let (udp, _tcp) = next.take(address).unwrap();
        let mut buffer = [0; 64];
        let (length, peer) = udp.peek_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], peer),
            (&b"asked while nobody was there"[..], client.local_addr().unwrap())
        );
        assert!(next.take(address).is_none(), "they are taken once");
    }
    let (_, tcp) = keeper(folder.path(), address).take(address).unwrap();
    assert_eq!(tcp.accept().unwrap().1, stream.local_addr().unwrap());
    drop(tcp);
    // An agent that serves another address wants none of them.
    let (other, _) = both();
    let changed = keeper(folder.path(), other.local_addr().unwrap());
    assert!(changed.take(other.local_addr().unwrap()).is_none());
    assert!(keeper(folder.path(), address).take(address).is_none());
    TcpListener::bind(address).unwrap();
    let path = folder.path().to_owned();
    folder.close().unwrap();
    let began = Instant::now();
    while processes(&path) > 0 {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "it ends when nobody can find it any longer"
        );
        sleep(Duration::from_millis(100));
    }
}
