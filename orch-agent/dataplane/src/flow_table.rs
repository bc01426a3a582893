//! The table of flows from the agent's side: reading it, and taking entries out and in, in the memory that the programs
//! work in. See [`orch_ebpf::flow_table`].

use std::{
    io,
    mem::offset_of,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::maps::{Array, IterableMap as _, MapData};
use orch_ebpf::{
    conntrack::{CONNTRACK_MAX, Conntrack, Tuple},
    flow_table::{
        HELD, NONE, Place, ROWS, Row, SECRET_ROW, SHARED, Slot, TAG_BITS, USED, WAY_BITS, WAYS, beside,
        is_crowded, is_less, mark, price, sent_beside, slot, tagged, units, until, with_marks,
    },
};

use crate::{
    DataplaneError,
    maps::MapAddress,
    sys::{memory::Mapped, monotonic},
};

/// One family's table.
pub struct FlowTable<A: MapAddress> {
    rows: Array<MapData, Row>,
    slots: Array<MapData, Slot<A>>,
}

impl<A: MapAddress> FlowTable<A> {
    /// Takes both maps, and makes a table of them if they are new.
    ///
    /// # Errors
    /// When their memory cannot be mapped.
    pub fn new(rows: Array<MapData, Row>, slots: Array<MapData, Slot<A>>) -> Result<Self, DataplaneError> {
        let table = Self { rows, slots };
        match table.rows().and_then(|rows| prepare(&rows)) {
            Ok(()) => Ok(table),
            Err(source) => Err(DataplaneError::Syscall {
                call: "map the table of flows".to_owned(),
                source,
            }),
        }
    }

    fn rows(&self) -> io::Result<Mapped<Row>> {
        Mapped::of(self.rows.map(), ROWS + 1)
    }

    /// Maps the table's memory, to work in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self) -> io::Result<Flows<A>> {
        let rows = self.rows()?;
        Ok(Flows {
            secret: secret(&rows)?,
            rows,
            slots: Mapped::of(self.slots.map(), CONNTRACK_MAX)?,
        })
    }
}

fn secret(rows: &Mapped<Row>) -> io::Result<u64> {
    let [low, high] = [0, 1].map(|way| word_of(rows, SECRET_ROW, way).map(load));
    Ok(u64::from(high?) << 32 | u64::from(low?))
}

/// Writes the numbers of the slots into new rows, and at last the secret: from then on programs use them.
fn prepare(rows: &Mapped<Row>) -> io::Result<()> {
    if secret(rows)? != 0 {
        return Ok(());
    }
    let new = with_marks(0, 0, now()?);
    for row in 0..ROWS as u32 {
        for way in 0..WAYS as u32 {
            word_of(rows, row, way)?.store(way, Ordering::Relaxed);
        }
        beside_of(rows, row)?.store(new, Ordering::Relaxed);
    }
    let [mut low, high]: [u32; 2] = rand::random();
    low |= 1;
    for (index, word) in [(1, high), (0, low)] {
        word_of(rows, SECRET_ROW, index)?.store(word, Ordering::SeqCst);
    }
    Ok(())
}

/// The word of the slot whose number the lowest bits are.
fn word_of(rows: &Mapped<Row>, row: u32, word: u32) -> io::Result<&AtomicU32> {
    let way = (word & WAY_BITS) as usize;
    rows.word(row as usize, offset_of!(Row, words) + 4 * way)
}

/// What a row says of its flows' second rows.
fn beside_of(rows: &Mapped<Row>, row: u32) -> io::Result<&AtomicU32> {
    rows.word(row as usize, offset_of!(Row, beside))
}

/// What time it is, as rows count it.
fn now() -> io::Result<u32> {
    Ok(units(monotonic()?.as_nanos() as u64))
}

fn load(word: &AtomicU32) -> u32 {
    word.load(Ordering::SeqCst)
}

/// Which flows went to their second rows: a packet of another of the row's looks for it in one row only.
pub struct Marks {
    /// What the rows said.
    said: Vec<u32>,
    /// Which flows there are.
    found: Vec<u16>,
}

/// A table whose memory is mapped.
pub struct Flows<A: MapAddress> {
    rows: Mapped<Row>,
    slots: Mapped<Slot<A>>,
    secret: u64,
}

impl<A: MapAddress> Flows<A> {
    /// Every flow of these rows, with its row. One that goes or comes meanwhile is there or not.
    ///
    /// # Errors
    /// When there are no such rows.
    pub fn of_rows(&self, rows: Range<u32>) -> io::Result<Vec<(u32, Slot<A>)>> {
        let mut all = Vec::new();
        for row in rows {
            for way in 0..WAYS as u32 {
                all.extend(self.written(row, way)?.map(|slot| (row, slot)));
            }
        }
        Ok(all)
    }

    /// Every flow.
    ///
    /// # Errors
    /// As for [`Self::of_rows`].
    pub fn all(&self) -> io::Result<Vec<(Tuple<A>, Conntrack<A>)>> {
        let all = self.of_rows(0..ROWS as u32)?.into_iter();
        Ok(all.map(|(_, Slot { tuple, entry })| (tuple, entry)).collect())
    }

    /// What all rows say now, to find out which of it is no longer so: see [`Marks`].
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn marks(&self) -> io::Result<Marks> {
        let said = (0..ROWS as u32).map(|row| beside_of(&self.rows, row).map(load));
        Ok(Marks {
            said: said.collect::<io::Result<_>>()?,
            found: vec![0; ROWS],
        })
    }

    /// Notes a flow that stands in a row.
    pub fn note(&self, marks: &mut Marks, row: u32, tuple: &Tuple<A>) {
        let place = Place::of(tuple, self.secret);
        if place.first() != row {
            marks.found[place.first() as usize] |= mark(place.tag()) as u16;
        }
    }

    /// Lets rows forget flows that went to their second row and are there no longer, once all that are have been noted, and
    /// that they were full. A row to which another was added meanwhile is for the next time.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn forget_marks(&self, marks: &Marks) -> io::Result<()> {
        let now = now()?;
        for (row, (said, found)) in (0..).zip(marks.said.iter().zip(&marks.found)) {
            let says = with_marks(*said, (*found).into(), now);
            let _ =
                beside_of(&self.rows, row)?.compare_exchange(*said, says, Ordering::SeqCst, Ordering::SeqCst);
        }
        Ok(())
    }

    /// What is in the slot of this number, once nobody writes it.
    fn written(&self, row: u32, way: u32) -> io::Result<Option<Slot<A>>> {
        // Whoever does takes far less, or has died at it.
        for _ in 0..1000 {
            let word = load(word_of(&self.rows, row, way)?);
            if word & USED == 0 {
                break;
            }
            let slot = self.slot(row, word)?;
            if slot.is_some() || word & (HELD | SHARED) == SHARED {
                return Ok(slot);
            }
            std::hint::spin_loop();
        }
        Ok(None)
    }

    /// What is in the slot with this word, as long as it is the same flow's.
    fn slot(&self, row: u32, word: u32) -> io::Result<Option<Slot<A>>> {
        if word & (HELD | USED) != USED {
            return Ok(None);
        }
        if word & SHARED != 0 {
            return self.shared(row, word);
        }
        let slot = self.slots.read(slot(row, word) as usize, 0)?;
        Ok(self.is_still(row, word)?.then_some(slot))
    }

    /// What is known of answers that share a slot, as long as it is that of the flow that they answer.
    fn shared(&self, row: u32, word: u32) -> io::Result<Option<Slot<A>>> {
        let asked = self.beside(row, word)?;
        if asked & SHARED != 0 {
            return Ok(None);
        }
        let answers = self.slot(row, asked)?.map(|slot| slot.answers());
        let still = self.is_still(row, word)?;
        Ok(answers.filter(|slot| {
            let place = Place::of(&slot.tuple, self.secret);
            still && (place.first(), place.tag()) == (row, word & TAG_BITS)
        }))
    }

    /// The word beside one that shares its slot, or may; [`NONE`] where there is none.
    fn beside(&self, row: u32, word: u32) -> io::Result<u32> {
        let way = beside(word);
        if way >= WAYS as u32 {
            return Ok(NONE);
        }
        word_of(&self.rows, row, way).map(load)
    }

    /// Whether a slot's word says the same flow, but for how long it is kept.
    fn is_still(&self, row: u32, word: u32) -> io::Result<bool> {
        let now = load(word_of(&self.rows, row, word)?);
        Ok((now ^ word) & (TAG_BITS | HELD | SHARED) == 0)
    }

    /// A copy of the words of a row.
    fn words(&self, row: u32) -> io::Result<[u32; WAYS]> {
        let mut words = [0; WAYS];
        for (way, word) in (0..).zip(&mut words) {
            *word = load(word_of(&self.rows, row, way)?);
        }
        Ok(words)
    }

    /// The row and the word of a flow's slot, and what is in it.
    fn find(&self, tuple: &Tuple<A>) -> io::Result<Option<(u32, u32, Conntrack<A>)>> {
        let place = Place::of(tuple, self.secret);
        for row in [place.first(), place.second()] {
            let word = tagged(&self.words(row)?, place.tag());
            if let Some(found) = self.slot(row, word)?.filter(|found| found.tuple == *tuple) {
                return Ok(Some((row, word, found.entry)));
            }
        }
        Ok(None)
    }

    /// What is known of a flow.
    ///
    /// # Errors
    /// Never, as long as the table has the size that it says.
    pub fn get(&self, tuple: &Tuple<A>) -> io::Result<Option<Conntrack<A>>> {
        Ok(self.find(tuple)?.map(|(_, _, entry)| entry))
    }

    /// Forgets a flow, and the answers to it that share its slot; whether it was there.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn remove(&self, tuple: &Tuple<A>) -> io::Result<bool> {
        while let Some((row, word, _)) = self.find(tuple)? {
            // Where it is not what it was, a packet has passed, or the slot is another's.
            if self.free(row, word)? {
                let answers = self.beside(row, word)?;
                if word & SHARED == 0 && answers & (SHARED | HELD) == SHARED {
                    self.free(row, answers)?;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Frees a slot if its word is this one; whether it was.
    fn free(&self, row: u32, word: u32) -> io::Result<bool> {
        let free = word & WAY_BITS;
        let at = word_of(&self.rows, row, word)?;
        Ok(at
            .compare_exchange(word, free, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok())
    }

    /// The row and a word of the slot that a flow is to be written to, which is not in the table; `None` where its tag is
    /// another's in both rows.
    fn room(&self, tuple: &Tuple<A>, entry: &Conntrack<A>) -> io::Result<Option<(u32, u32)>> {
        let place = Place::of(tuple, self.secret);
        let (first, second) = (place.first(), place.second());
        let (words, other_words) = (self.words(first)?, self.words(second)?);
        let collides = tagged(&words, place.tag()) != NONE;
        let now = units(entry.last_seen);
        let (home, other) = (price(&words, now), price(&other_words, now));
        let full = tagged(&other_words, place.tag()) != NONE;
        if !full && (collides || is_crowded(home, false) && is_less(other, home)) {
            let says = |beside| Some(sent_beside(beside, place.tag()));
            let _ = beside_of(&self.rows, first)?.fetch_update(Ordering::SeqCst, Ordering::SeqCst, says);
            return Ok(Some((second, other)));
        }
        Ok((!collides).then_some((first, home)))
    }

    /// Takes down a flow as the programs do, in place of what has the same tuple or of what is worth least in its rows;
    /// whether it could: not while somebody writes the same slot.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn insert(&self, tuple: &Tuple<A>, entry: &Conntrack<A>) -> io::Result<bool> {
        let room = match self.find(tuple)? {
            Some((row, word, _)) => Some((row, word)),
            None => self.room(tuple, entry)?,
        };
        let Some((row, word)) = room else {
            return Ok(false);
        };
        let (at, way) = (word_of(&self.rows, row, word)?, word & WAY_BITS);
        let found = load(at);
        if found & HELD != 0 {
            return Ok(false);
        }
        let kept = until(entry.last_seen, tuple.protocol, entry.seen);
        let whole = Place::of(tuple, self.secret).tag() | kept | way;
        if at
            .compare_exchange(found, whole | HELD, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            return Ok(false);
        }
        let value = Slot {
            tuple: *tuple,
            entry: *entry,
        };
        self.slots.write(slot(row, way) as usize, 0, value)?;
        at.store(whole, Ordering::SeqCst);
        Ok(true)
    }
}

const _: () = assert!(WAYS <= WAY_BITS as usize);

#[cfg(test)]
impl<A: MapAddress> Flows<A> {
    /// Takes down a flow whose answers share its slot, as programs do, and with the port that they choose; the answers' tuple.
    pub(crate) fn insert_shared(&self, tuple: &Tuple<A>, entry: &Conntrack<A>) -> Tuple<A> {
        use orch_ebpf::flow_table::Neighbours;

        let row = Place::of(tuple, self.secret).first();
        let mut answer = entry.becomes.reverse();
        answer.destination_port = Neighbours::of(&answer, self.secret).port_in(row);
        let becomes = answer.reverse();
        assert!(self.insert(tuple, &Conntrack { becomes, ..*entry }).unwrap());
        let (row, word, _) = self.find(tuple).unwrap().unwrap();
        let way = beside(word);
        let kept = until(entry.last_seen, tuple.protocol, 0);
        let word = Place::of(&answer, self.secret).tag() | kept | SHARED | way;
        word_of(&self.rows, row, way)
            .unwrap()
            .store(word, Ordering::SeqCst);
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, path::PathBuf};

    use orch_ebpf::{
        Address4, PROTOCOL_TCP,
        conntrack::{DIRECTION_REPLY, KIND_SERVICE, SEEN_SYN, SEEN_TRAFFIC},
        flow_table::went_beside,
    };

    use super::*;
    use crate::{load, maps};

    /// A table that no other test has.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            Self(format!("/sys/fs/bpf/orch-flows-{name}-{}", std::process::id()).into())
        }

        fn flows(&self) -> Flows<Address4> {
            let (_, maps) = load::load(&self.0).unwrap();
            maps.v4.conntrack.open().unwrap()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = crate::remove_pins(&self.0);
        }
    }

    const NOW: u64 = 1_000_000_000_000;

    /// The n-th of many flows, as a program that sends from everywhere would make them.
    fn tuple(number: u32) -> Tuple<Address4> {
        Tuple {
            source: (0x0a00_0000 + number / 50_000).to_be_bytes(),
            destination: [192, 0, 2, 1],
            source_port: 1024 + (number % 50_000) as u16,
            destination_port: 80,
            protocol: PROTOCOL_TCP,
            _pad: [0; 3],
        }
    }

    fn entry(last_seen: u64, seen: u8) -> Conntrack<Address4> {
        Conntrack {
            last_seen,
            seen,
            kind: KIND_SERVICE,
            ..Conntrack::default()
        }
    }

    /// Takes flows down and returns them, but for the few whose tag both of their rows have already.
    fn fill(
        flows: &Flows<Address4>,
        tuples: impl Iterator<Item = Tuple<Address4>>,
        entry: &Conntrack<Address4>,
    ) -> Vec<Tuple<Address4>> {
        let (taken, refused): (Vec<_>, Vec<_>) =
            tuples.partition(|tuple| flows.insert(tuple, entry).unwrap());
        assert!(refused.len() < 10, "{} refused", refused.len());
        taken
    }

    #[test]
    fn what_is_put_in_is_found_until_it_is_taken_out() {
        let root = Root::new("found");
        let flows = root.flows();
        let all: Vec<_> = (0..20_000).map(tuple).collect();
        for (number, tuple) in (0..).zip(&all) {
            let known = Conntrack {
                backend: number,
                ..entry(NOW, SEEN_SYN)
            };
            assert!(flows.insert(tuple, &known).unwrap());
        }
        assert_eq!(flows.get(&all[7]).unwrap().unwrap().backend, 7);
        assert!(flows.insert(&all[7], &entry(NOW, SEEN_TRAFFIC)).unwrap(), "again");
        assert_eq!(flows.get(&all[7]).unwrap().unwrap().seen, SEEN_TRAFFIC);
        let found: HashSet<_> = flows.all().unwrap().into_iter().map(|(tuple, _)| tuple).collect();
        assert_eq!(found, all.iter().copied().collect());
        assert!(flows.remove(&all[7]).unwrap() && !flows.remove(&all[7]).unwrap());
        assert_eq!(flows.get(&all[7]).unwrap(), None);
        assert_eq!(flows.all().unwrap().len(), all.len() - 1);
        // Who opens it beside sees the same.
        let beside = maps::pinned_flows::<Address4>(&maps::folder(&root.0)).unwrap();
        assert!(beside.open().unwrap().get(&all[8]).unwrap().is_some());
    }

    #[test]
    fn answers_that_share_a_slot_are_known() {
        let root = Root::new("shared");
        let flows = root.flows();
        let asked = tuple(1);
        let becomes = Tuple {
            source: [192, 0, 2, 2],
            destination: [10, 1, 0, 1],
            ..asked
        };
        let known = Conntrack {
            becomes,
            backend: 7,
            ..entry(NOW, SEEN_SYN)
        };
        let answer = flows.insert_shared(&asked, &known);
        let back = flows.get(&answer).unwrap().unwrap();
        assert_eq!(
            back,
            Conntrack {
                becomes: asked.reverse(),
                direction: DIRECTION_REPLY,
                seen: 0,
                ..known
            }
        );
        let all: HashSet<_> = flows.all().unwrap().into_iter().map(|(tuple, _)| tuple).collect();
        assert_eq!(all, HashSet::from([asked, answer]));

        assert!(flows.insert(&answer, &entry(NOW, SEEN_TRAFFIC)).unwrap());
        assert_eq!(flows.get(&answer).unwrap().unwrap().seen, SEEN_TRAFFIC);
        assert_eq!(flows.get(&asked).unwrap().unwrap().backend, 7);
        assert!(flows.remove(&answer).unwrap());

        assert_eq!(flows.insert_shared(&asked, &known), answer);
        assert!(flows.remove(&answer).unwrap());
        assert_eq!(
            (flows.get(&answer).unwrap(), flows.all().unwrap().len()),
            (None, 1)
        );

        assert_eq!(flows.insert_shared(&asked, &known), answer);
        assert!(flows.remove(&asked).unwrap());
        assert_eq!(
            (flows.get(&answer).unwrap(), flows.all().unwrap().len()),
            (None, 0)
        );

        // The slot is another flow's by now.
        assert_eq!(flows.insert_shared(&asked, &known), answer);
        let (row, word, _) = flows.find(&asked).unwrap().unwrap();
        let other = Slot {
            tuple: tuple(2),
            entry: known,
        };
        flows.slots.write(slot(row, word) as usize, 0, other).unwrap();
        assert_eq!(flows.get(&answer).unwrap(), None);
    }

    #[test]
    fn rows_forget_who_went_to_another() {
        let root = Root::new("marks");
        let flows = root.flows();
        let full = || (0..CONNTRACK_MAX as u32).map(tuple);
        fill(&flows, full(), &entry(NOW, SEEN_SYN));
        let marked = || {
            let said = flows.marks().unwrap().said;
            said.iter().map(|said| (said & 0xffff).count_ones()).sum::<u32>()
        };
        let settle = || {
            let mut marks = flows.marks().unwrap();
            for (row, slot) in flows.of_rows(0..ROWS as u32).unwrap() {
                flows.note(&mut marks, row, &slot.tuple);
            }
            marks
        };
        let before = marked();
        assert!(before > 10_000, "{before}");
        let there = flows.all().unwrap();
        flows.forget_marks(&settle()).unwrap();
        assert!(marked() > before / 2);
        let said = flows.marks().unwrap().said;
        for (row, slot) in flows.of_rows(0..ROWS as u32).unwrap() {
            let place = Place::of(&slot.tuple, flows.secret);
            assert!(place.first() == row || went_beside(said[place.first() as usize], place.tag()));
        }
        let mut came = settle();
        for (tuple, _) in &there {
            assert!(flows.remove(tuple).unwrap());
        }
        flows.forget_marks(&settle()).unwrap();
        assert_eq!(marked(), 0);
        // What came after the rows were asked is not forgotten.
        came.found.fill(0);
        fill(&flows, full(), &entry(NOW, SEEN_SYN));
        let again = marked();
        flows.forget_marks(&came).unwrap();
        assert_eq!(marked(), again);
    }

    #[test]
    fn connections_outlive_a_flood() {
        let root = Root::new("flood");
        let flows = root.flows();
        let connections = (CONNTRACK_MAX / 2) as u32;
        let known = fill(&flows, (0..connections).map(tuple), &entry(NOW, SEEN_TRAFFIC));
        // As many again as the table holds, of which none is answered.
        let flood = connections..connections + CONNTRACK_MAX as u32;
        fill(&flows, flood.map(tuple), &entry(NOW + 10_000_000_000, SEEN_SYN));
        let lost = known
            .iter()
            .filter(|tuple| flows.get(tuple).unwrap().is_none())
            .count();
        assert_eq!(lost, 0, "of {connections}");
    }
}
