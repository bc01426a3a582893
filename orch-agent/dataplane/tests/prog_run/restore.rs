//! Whatever is translated on its way is translated back on the way of its answer.

use std::net::IpAddr;

use proptest::prelude::*;

use crate::{
    bench::Bench,
    case::{At, DROP},
    packet::{ACK, Message, Packet, SCTP, SYN, TCP, UDP, read::Seen},
    world::{WORLDS, World},
};

/// Who asks whom, and by which ways packets and answers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    LocalNodePort,
    RemoteNodePort,
    LocalBalancer,
    RemoteBalancer,
    LocalClusterIp,
    RemoteClusterIp,
    Hairpin,
    Masquerade,
}

const WAYS: [Way; 8] = [
    Way::LocalNodePort,
    Way::RemoteNodePort,
    Way::LocalBalancer,
    Way::RemoteBalancer,
    Way::LocalClusterIp,
    Way::RemoteClusterIp,
    Way::Hairpin,
    Way::Masquerade,
];

impl Way {
    /// The side that asks, the side that it asks, where the packet is translated and where its answer is.
    fn of(self, world: &World) -> (IpAddr, (IpAddr, u16), At, At) {
        match self {
            Self::LocalNodePort => (world.client, (world.node, 30_080), At::FromUplink, At::ToUplink),
            Self::RemoteNodePort => (world.client, (world.node, 30_081), At::FromUplink, At::FromUplink),
            Self::LocalBalancer => (world.client, (world.balancer, 80), At::FromUplink, At::ToUplink),
            Self::RemoteBalancer => (world.client, (world.balancer, 81), At::FromUplink, At::FromUplink),
            Self::LocalClusterIp => (world.pod, (world.service, 80), At::FromPod, At::FromOther),
            Self::RemoteClusterIp => (world.pod, (world.service, 81), At::FromPod, At::FromUplink),
            Self::Hairpin => (world.pod, (world.service, 83), At::FromPod, At::FromPod),
            Self::Masquerade => (world.pod, (world.stranger, 443), At::ToUplink, At::FromUplink),
        }
    }
}

prop_compose! {
    fn any_exchange()(
        world in prop::sample::select(WORLDS.to_vec()),
        way in prop::sample::select(WAYS.to_vec()),
        protocol in prop::sample::select(vec![TCP, UDP, SCTP, 0]),
        port in 1..=u16::MAX,
        there in prop::collection::vec(any::<u8>(), 0..64),
        back in prop::collection::vec(any::<u8>(), 0..64),
        ttl in 2..=u8::MAX,
    ) -> (World, Way, Packet, Vec<u8>) {
        let (from, to, ..) = way.of(&world);
        // Only a masqueraded flow is of every protocol.
        let protocol = match (protocol, way) {
            (0, Way::Masquerade) => world.icmp,
            (0, _) => UDP,
            (protocol, _) => protocol,
        };
        let ask = Packet { payload: there, ttl, ..world.packet(protocol, (from, port), to) };
        (world, way, ask, back)
    }
}

fn must_pass(bench: &mut Bench, at: At, packet: &Packet) -> Result<Seen, TestCaseError> {
    let (verdict, seen) = bench.see(at, packet);
    prop_assert!(verdict != DROP, "{packet:?} at {at:?}");
    Ok(seen)
}

#[test]
fn answers_get_back_the_address_that_was_asked() {
    let bench = std::cell::RefCell::new(Bench::new());
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(3000)
    };
    let cases = std::cell::Cell::new(0);
    let run = |(world, way, ask, payload): (World, Way, Packet, Vec<u8>)| {
        let bench = &mut *bench.borrow_mut();
        // Two fronts of one backend share the answers of a client that asks both from one port.
        cases.set(cases.get() + 1);
        if cases.get() % 64 == 0 {
            bench.forget();
        }
        let (_, _, there, back) = way.of(&world);
        let seen = must_pass(bench, there, &ask)?;
        prop_assert_ne!(
            (seen.source, seen.destination),
            (
                (ask.source, ask.source_port),
                (ask.destination, ask.destination_port)
            )
        );
        let arrived = ask.between(seen.source, seen.destination);
        let message = if ask.message == Message::Request {
            Message::Reply
        } else {
            ask.message
        };
        let answer = Packet {
            payload,
            message,
            ..arrived.answer().with_flags(SYN | ACK)
        };
        let out = must_pass(bench, back, &answer)?;
        prop_assert_eq!(out.source, (ask.destination, ask.destination_port), "{:?}", way);
        prop_assert_eq!(out.destination, (ask.source, ask.source_port), "{:?}", way);
        // And the flow goes on as it began.
        let again = must_pass(bench, there, &ask.with_flags(ACK))?;
        prop_assert_eq!((again.source, again.destination), (seen.source, seen.destination));
        Ok(())
    };
    proptest::test_runner::TestRunner::new(config)
        .run(&any_exchange(), run)
        .unwrap();
}
