//! What the answers of other nodes say of them: pure.

use std::collections::BTreeMap;

/// Questions in a row without an answer after which a node is silent.
const MISSES: u32 = 3;
/// Answers in a row after which a silent node gets connections again: one alone may be the last of a failing link.
const BACK: u32 = 2;
/// Answers in a row after which a dead node may announce addresses again: its agent should be up when it gets them back.
const ANSWERS: u32 = 10;

/// What is known of another node, for announcements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Life {
    /// Not asked yet, or asked too recently.
    #[default]
    Unknown,
    /// It answers.
    Alive,
    /// It does not.
    Dead,
}

/// What is known of another node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether it lives: asked for who announces an address. A node that never answered is dead as well.
    pub life: Life,
    /// Whether it has answered since it is asked. The silence of one that never did says nothing of its pods: ICMP may be
    /// filtered on the way.
    pub known: bool,
    /// Whether new connections go elsewhere.
    pub left_out: bool,
}

/// How the nodes that are asked have answered.
#[derive(Debug, Default)]
pub struct Lives {
    nodes: BTreeMap<String, Record>,
    rounds: usize,
    suspect: bool,
}

#[derive(Debug, Default)]
struct Record {
    seen: Seen,
    /// Whether it was asked in the last round, and has answered since.
    asked: bool,
    answered: bool,
    /// Answers, and questions without one, since the last of the other kind.
    answers: u32,
    misses: u32,
}

impl Lives {
    /// Counts what came of the last round; says whether anything is known that was not.
    ///
    /// A node is left out when it has answered once and is silent now. When most of those that have answered do not answer
    /// any more, be they silent yet or about to be, it is this node's own network that must be suspected: who is left out
    /// already stays so, and nobody else is. One node alone may always be left out, since without it nothing is
    /// lost that could be reached.
    pub fn judge(&mut self) -> bool {
        let mut changed = false;
        for record in self.nodes.values_mut().filter(|record| record.asked) {
            let before = record.seen;
            record.note();
            changed |= record.seen != before;
        }
        let (mut all, mut doubtful) = (0_usize, 0_usize);
        for record in self.nodes.values().filter(|record| record.may_be_left_out()) {
            all += 1;
            doubtful += usize::from(record.misses > 0);
        }
        self.suspect = doubtful > 1 && doubtful * 2 > all;
        if !self.suspect {
            for record in self.nodes.values_mut() {
                if record.may_be_left_out() && record.misses >= MISSES {
                    record.seen.left_out = true;
                    changed = true;
                }
            }
        }
        changed
    }

    /// Begins a round among these nodes and forgets the others; the answer is whom to ask now. A node that answers is
    /// asked every other time, unless `closely` says that it is to be asked every time.
    pub fn round<'a>(
        &mut self,
        nodes: impl Iterator<Item = (&'a String, bool)>,
        mut ask: impl FnMut(&'a str),
    ) {
        self.rounds = self.rounds.wrapping_add(1);
        let mut before = std::mem::take(&mut self.nodes);
        for (place, (name, closely)) in nodes.enumerate() {
            let (name_kept, mut record) = before
                .remove_entry(name)
                .unwrap_or_else(|| (name.clone(), Record::default()));
            // Those that are asked every other time take turns, so that not all are asked at once.
            record.asked =
                closely || record.is_doubtful() || place.wrapping_add(self.rounds).is_multiple_of(2);
            record.answered = false;
            if record.asked {
                ask(name);
            }
            self.nodes.insert(name_kept, record);
        }
    }

    /// Notes an answer.
    pub fn answered(&mut self, node: &str) {
        if let Some(record) = self.nodes.get_mut(node) {
            record.answered = true;
        }
    }

    /// What is known of every node that is asked.
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        self.nodes
            .iter()
            .map(|(name, record)| (name.clone(), record.seen))
            .collect()
    }

    /// Whether this node's own network is suspected, so that nobody is left out for being silent.
    pub fn suspects_itself(&self) -> bool {
        self.suspect
    }
}

impl Record {
    fn note(&mut self) {
        if self.answered {
            self.answers = self.answers.saturating_add(1);
            self.misses = 0;
            self.seen.known = true;
        } else {
            self.misses = self.misses.saturating_add(1);
            self.answers = 0;
        }
        self.seen.life = match self.seen.life {
            Life::Unknown if self.answers > 0 => Life::Alive,
            Life::Dead if self.answers >= ANSWERS => Life::Alive,
            _ if self.misses >= MISSES => Life::Dead,
            life => life,
        };
        self.seen.left_out &= self.answers < BACK;
    }

    fn may_be_left_out(&self) -> bool {
        self.seen.known && !self.seen.left_out
    }

    fn is_doubtful(&self) -> bool {
        self.seen.left_out || (self.seen.known && self.misses > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds in which the nodes `a`, `b`, ... are asked every time; a word says who answers in each, and the answers are who is left
    /// out after each.
    fn left_out(nodes: usize, rounds: &str) -> Vec<String> {
        let names: Vec<String> = ('a'..).take(nodes).map(String::from).collect();
        let mut lives = Lives::default();
        rounds
            .split(' ')
            .map(|answering| {
                lives.round(names.iter().map(|name| (name, true)), |_| ());
                answering
                    .chars()
                    .for_each(|name| lives.answered(&name.to_string()));
                lives.judge();
                let seen = lives.seen().into_iter();
                seen.filter(|(_, seen)| seen.left_out)
                    .map(|(name, _)| name)
                    .collect()
            })
            .collect()
    }

    #[test]
    fn who_is_left_out_after_which_answers() {
        let table: &[(&str, usize, &str, &[&str])] = &[
            ("silence of three", 3, "abc ab ab ab", &["", "", "", "c"]),
            (
                "two in a row are not enough",
                3,
                "abc ab ab abc ab ab",
                &["", "", "", "", "", ""],
            ),
            (
                "who never answered says nothing",
                3,
                "ab ab ab ab ab",
                &["", "", "", "", ""],
            ),
            (
                "back after two answers",
                3,
                "abc ab ab ab abc abc",
                &["", "", "", "c", "c", ""],
            ),
            (
                "one answer is not two",
                3,
                "abc ab ab ab abc ab abc abc",
                &["", "", "", "c", "c", "c", "c", ""],
            ),
            (
                "all of two at once: it is us",
                2,
                "ab . . . . .",
                &["", "", "", "", "", ""],
            ),
            ("most at once: it is us", 3, "abc a a a a", &["", "", "", "", ""]),
            (
                "half at once may be lost",
                4,
                "abcd ab ab ab",
                &["", "", "", "cd"],
            ),
            ("the only one may be lost", 1, "a . . .", &["", "", "", "a"]),
            (
                "the only one that ever answered",
                3,
                "a . . .",
                &["", "", "", "a"],
            ),
            (
                "one after the other",
                3,
                "abc ab ab ab a a a . . .",
                &["", "", "", "c", "c", "c", "bc", "bc", "bc", "abc"],
            ),
            (
                "us, a little later for some",
                4,
                "abcd abc ab a . . .",
                &["", "", "", "", "", "", ""],
            ),
            (
                "us, and then one that is dead in truth",
                3,
                "abc . . . ab ab",
                &["", "", "", "", "c", "c"],
            ),
            (
                "one dead while we fail stays left out",
                3,
                "abc ab ab ab . . .",
                &["", "", "", "c", "c", "c", "c"],
            ),
        ];
        for (what, nodes, rounds, expected) in table {
            assert_eq!(left_out(*nodes, rounds), *expected, "{what}");
        }
    }

    #[test]
    fn three_misses_are_death_and_ten_answers_life() {
        let mut lives = Lives::default();
        let asked = ["a".to_owned()];
        let mut rounds = |answers: bool, count: usize| -> Vec<Life> {
            (0..count)
                .map(|_| {
                    lives.round(asked.iter().map(|name| (name, true)), |_| ());
                    if answers {
                        lives.answered("a");
                    }
                    lives.judge();
                    lives.nodes["a"].seen.life
                })
                .collect()
        };
        assert_eq!(rounds(true, 1), [Life::Alive]);
        assert_eq!(rounds(false, 3), [Life::Alive, Life::Alive, Life::Dead]);
        assert_eq!(rounds(true, 9)[8], Life::Dead);
        assert_eq!(rounds(true, 1), [Life::Alive]);
        let mut silent = Lives::default();
        for _ in 0..3 {
            silent.round(asked.iter().map(|name| (name, true)), |_| ());
            silent.judge();
        }
        let dead = Seen {
            life: Life::Dead,
            ..Seen::default()
        };
        assert_eq!(silent.seen()["a"], dead);
        silent.round(std::iter::empty(), |_| ());
        assert!(silent.seen().is_empty());
    }

    #[test]
    fn who_answers_is_asked_every_other_time_and_in_turns() {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        let mut lives = Lives::default();
        let mut round = |answering: &str| -> String {
            lives.judge();
            let mut asked = String::new();
            lives.round(names.iter().map(|name| (name, name == "d")), |name| {
                asked.push_str(name)
            });
            for name in answering.chars().filter(|name| asked.contains(*name)) {
                lives.answered(&name.to_string());
            }
            asked
        };
        let asked = ["abcd"; 4].map(&mut round);
        assert_eq!(asked, ["bd", "acd", "bd", "acd"]);
        // A miss is looked into at once.
        assert_eq!(["bcd"; 4].map(&mut round), ["bd", "acd", "abd", "acd"]);
    }
}
