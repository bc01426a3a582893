//! Frames: sent to the uplink one by one, kept as they arrive at its far end, or fed to a program without a wire.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, ProgramArray},
    programs::{Xdp, loaded_programs},
};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, send, setsockopt, socket, sockopt,
    },
};
use orch_ebpf::feed::{FRAMES_MAP, FRAMES_MAX, Frame, MEASURED_MAP, TURN_MAP, Turn};

use crate::tests::Namespace;

/// Room for the frames of a call and what the kernel counts beside them.
const ROOM: usize = 1 << 30;

/// A socket that keeps every frame that arrives until it is dropped. A page that is kept is not used again, so that
/// the kernel fills a new one for each live frame.
pub struct Keeper(OwnedFd);

impl Keeper {
    pub fn new(place: &Namespace) -> Self {
        let made = place.thread(|| {
            let all = SockProtocol::EthAll;
            let keeper = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
            setsockopt(&keeper, sockopt::RcvBufForce, &ROOM).unwrap();
            keeper
        });
        Self(made.join().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The kernel gives the pages back in its own time: the next run must not find them still on their way.
        let _ = setsockopt(&self.0, sockopt::RcvBufForce, &0);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A socket that sends frames to the uplink, one at a time.
pub struct Sender(OwnedFd);

impl Sender {
    pub fn new(place: &Namespace) -> Self {
        let made = place.thread(|| {
            // Without a protocol it receives nothing.
            let sender = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
            let uplink = getifaddrs()
                .unwrap()
                .filter(|found| found.interface_name == "eth0")
                .find_map(|found| found.address?.as_link_addr().copied())
                .unwrap();
            bind(sender.as_raw_fd(), &uplink).unwrap();
            sender
        });
        Self(made.join().unwrap())
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(
            send(self.0.as_raw_fd(), frame, MsgFlags::empty()),
            Ok(frame.len())
        );
    }
}

/// The object that `cargo xtask build-ebpf` puts beside the agent's.
const FEED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bpf/feed.bpf.o");

/// A program that hands each frame of a call, as one of prepared ones, to the program that is measured.
pub struct Feed(Ebpf);

impl Feed {
    pub fn new(measured: &Xdp) -> Self {
        let mut ebpf = Ebpf::load_file(FEED).unwrap();
        let mut next = ProgramArray::try_from(ebpf.map_mut(MEASURED_MAP).unwrap()).unwrap();
        next.set(0, measured.fd().unwrap(), 0).unwrap();
        let program: &mut Xdp = ebpf.program_mut("feed").unwrap().try_into().unwrap();
        program.load().unwrap();
        Self(ebpf)
    }

    /// Prepares the frames that take turns.
    pub fn prepare(&mut self, frames: impl ExactSizeIterator<Item = Vec<u8>>) {
        let count = frames.len();
        assert!((1..=FRAMES_MAX).contains(&count));
        let mut map: Array<_, Frame> = self.0.map_mut(FRAMES_MAP).unwrap().try_into().unwrap();
        for (index, bytes) in (0..).zip(frames) {
            let mut padded = [0; size_of::<Frame>()];
            padded[..bytes.len()].copy_from_slice(&bytes);
            let (chunks, _) = padded.as_chunks();
            let words = std::array::from_fn(|word| u64::from_ne_bytes(chunks[word]));
            map.set(index, Frame { words }, 0).unwrap();
        }
        let mut turn: Array<_, Turn> = self.0.map_mut(TURN_MAP).unwrap().try_into().unwrap();
        let frames = count as u32;
        turn.set(0, Turn { fed: 0, frames }, 0).unwrap();
    }

    /// The program that a call runs.
    pub fn program(&self) -> &Xdp {
        self.0.program("feed").unwrap().try_into().unwrap()
    }

    /// The kernel's count of its runs, with what it has handed them to.
    pub fn count(&self) -> Count {
        Count([self.program().info().unwrap().id()].into())
    }
}

/// The kernel's count of a program's runs, over all copies of it that use a pinned map.
pub struct Count(BTreeSet<u32>);

impl Count {
    /// Finds the copies that are loaded now. Other data planes on the machine have programs of the same name.
    pub fn new(name: &str, map: &Path) -> Self {
        let map = MapData::from_pin(map).unwrap().info().unwrap().id();
        let copies = loaded_programs().flatten().filter(|info| {
            let maps = info.map_ids().ok().flatten().unwrap_or_default();
            info.name_as_str() == Some(name) && maps.contains(&map)
        });
        Self(copies.map(|info| info.id()).collect())
    }

    /// Runs, and nanoseconds of all of them.
    pub fn now(&self) -> (u64, u64) {
        loaded_programs()
            .flatten()
            .filter(|info| self.0.contains(&info.id()))
            .fold((0, 0), |(runs, time), info| {
                (runs + info.run_count(), time + info.run_time().as_nanos() as u64)
            })
    }
}
