//! Flows on their way out of older tables.

use orch_ebpf::flow_table::{HELD, Row, Slot, USED, WAY_BITS, slot};

use super::*;

#[test]
fn flows_of_rows_of_two_lines_are_moved() {
    let root = Root::new("rows");
    let (programs, loaded) = root.load();
    let flows = loaded.v4.conntrack.open().unwrap();
    for client in 1..=3 {
        let known = Conntrack {
            last_seen: u64::from(client),
            becomes: tuple(client + 10),
            ..Conntrack::default()
        };
        assert!(flows.insert(&tuple(client), &known).unwrap());
    }
    let [rows, slots] = ["ORCH_ROWS4", "ORCH_CONNTRACK4"].map(|name| root.open(name));
    let former = fourth_rows();
    for number in 0..ROWS as u32 {
        let row: Row = read(&rows.get(&number.to_ne_bytes()).unwrap().unwrap()).unwrap();
        let mut value = [0; 128];
        for (at, word) in value.chunks_exact_mut(4).zip(row.words) {
            if word & USED == 0 {
                continue;
            }
            let slot = slots.get(&slot(number, word).to_ne_bytes()).unwrap().unwrap();
            let Slot { tuple: found, .. } = read::<Slot<Address4>>(&slot).unwrap();
            // The third was being written when its program ended.
            let held = if found == tuple(3) { HELD } else { 0 };
            at.copy_from_slice(&(0xffff_ffc0 | USED | held | word & WAY_BITS).to_ne_bytes());
        }
        former.update(&number.to_ne_bytes(), &value, Update::Any).unwrap();
    }
    let slots = slots.info().id;
    drop((flows, programs, loaded));
    fs::remove_file(maps::folder(&root.0).join("ORCH_ROWS4")).unwrap();
    let former = root.pin("ORCH_ROWS4", former);

    let (mut programs, loaded) = root.load();
    let seen = [1, 2, 3].map(|client| flow(&loaded, client).map(|flow| (flow.last_seen, flow.becomes)));
    assert_eq!(seen, [Some((1, tuple(11))), Some((2, tuple(12))), None]);
    assert_eq!(loaded.v4.conntrack.open().unwrap().all().unwrap().len(), 2);
    assert!(!programs.is_anew(CONNTRACK_MAP));
    programs.settle().unwrap();
    assert_ne!(root.id("ORCH_ROWS4"), former.info().id);
    assert_ne!(root.id("ORCH_CONNTRACK4"), slots);
}

#[test]
fn answers_that_share_a_slot_are_moved_with_it() {
    let root = Root::new("shared");
    let (programs, mut loaded) = root.load();
    let flows = loaded.v4.conntrack.open().unwrap();
    let known = Conntrack {
        last_seen: 5,
        becomes: tuple(11),
        kind: KIND_SERVICE,
        ..Conntrack::default()
    };
    let answer = flows.insert_shared(&tuple(1), &known);
    let later = ABI_VERSION + 1;
    loaded.configure(|settings| settings.abi_version = later).unwrap();
    let rows = root.id("ORCH_ROWS4");
    drop((flows, programs, loaded));

    let (mut programs, loaded) = root.load();
    assert!(programs.is_moving());
    let flows = loaded.v4.conntrack.open().unwrap();
    assert_eq!(flows.all().unwrap().len(), 2);
    let there = flows.get(&tuple(1)).unwrap().unwrap();
    let back = flows.get(&answer).unwrap().unwrap();
    assert_eq!(
        (there.becomes, back.becomes),
        (answer.reverse(), tuple(1).reverse())
    );
    assert_eq!((back.kind, back.last_seen), (KIND_SERVICE, 5));
    programs.settle().unwrap();
    assert_ne!(root.id("ORCH_ROWS4"), rows);
}
