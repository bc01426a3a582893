//! A model of the store that must also refuse: it judges the embedded store under random operations.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[expect(dead_code, reason = "each test file uses its own part")]
mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use orch_store::{Expect, KeyValue, ListOptions, Revision, Store, StoreError};
use proptest::prelude::*;

/// What is asked of a store.
#[derive(Clone, Debug)]
enum Ask {
    Create(u8),
    Update { key: u8, stale: bool },
    Delete { key: u8, stale: bool },
    Get(u8),
    ListAt(u8),
}

/// What it answers, as far as the model judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Wrote(u64),
    Conflict(Option<u64>),
    Found(Option<u64>),
    Listed(Vec<(String, u64)>),
}

#[derive(Default)]
struct Model {
    revision: u64,
    /// Each state since the beginning, by revision: key → when it was last written.
    states: Vec<(u64, BTreeMap<String, u64>)>,
}

impl Model {
    fn new(revision: u64) -> Self {
        Self {
            revision,
            states: vec![(revision, BTreeMap::new())],
        }
    }

    fn current(&self) -> &BTreeMap<String, u64> {
        &self.states[self.states.len() - 1].1
    }

    /// Whether `answer` is right; a right write becomes the state.
    fn accept(&mut self, ask: &Ask, answer: &Answer) -> bool {
        let there = |key: u8| self.current().get(&name(key)).copied();
        let right = match ask {
            Ask::Create(key) => match there(*key) {
                None => Answer::Wrote(self.revision + 1),
                found => Answer::Conflict(found),
            },
            Ask::Update { key, stale } | Ask::Delete { key, stale } => match there(*key) {
                Some(_) if !stale => Answer::Wrote(self.revision + 1),
                found => Answer::Conflict(found),
            },
            Ask::Get(key) => Answer::Found(there(*key)),
            Ask::ListAt(back) => {
                let (_, state) = self.state_at(*back);
                Answer::Listed(state.iter().map(|(key, at)| (key.clone(), *at)).collect())
            }
        };
        if right != *answer {
            return false;
        }
        if let Answer::Wrote(revision) = right {
            let mut next = self.current().clone();
            match ask {
                Ask::Delete { key, .. } => next.remove(&name(*key)),
                Ask::Create(key) | Ask::Update { key, .. } => next.insert(name(*key), revision),
                Ask::Get(_) | Ask::ListAt(_) => None,
            };
            self.revision = revision;
            self.states.push((revision, next));
        }
        true
    }

    fn state_at(&self, back: u8) -> &(u64, BTreeMap<String, u64>) {
        &self.states[self.states.len().saturating_sub(1 + usize::from(back))]
    }
}

fn name(key: u8) -> String {
    format!("/m/{key}")
}

async fn answer(store: &dyn Store, model: &Model, ask: &Ask) -> Answer {
    let value = Bytes::from_static(b"{}");
    let expect = |key: u8, stale: bool| {
        let at = model.current().get(&name(key)).copied().unwrap_or(0);
        Revision(if stale { at + 1_000_000 } else { at })
    };
    let written = match ask {
        Ask::Create(key) => store.put(&name(*key), value, Expect::Absent).await,
        Ask::Update { key, stale } => {
            store
                .put(&name(*key), value, Expect::At(expect(*key, *stale)))
                .await
        }
        Ask::Delete { key, stale } => store.delete(&name(*key), expect(*key, *stale)).await,
        Ask::Get(key) => {
            let (found, _) = store.get(&name(*key)).await.unwrap();
            return Answer::Found(found.map(|kv| kv.mod_revision.0));
        }
        Ask::ListAt(back) => {
            let at = Some(Revision(model.state_at(*back).0));
            let page = store
                .list(
                    "/m/",
                    ListOptions {
                        at,
                        ..Default::default()
                    },
                )
                .await
                .unwrap();
            let pair = |kv: KeyValue| (kv.key, kv.mod_revision.0);
            return Answer::Listed(page.items.into_iter().map(pair).collect());
        }
    };
    match written {
        Ok(revision) => Answer::Wrote(revision.0),
        Err(StoreError::Conflict { current, .. }) => Answer::Conflict(current.map(|kv| kv.mod_revision.0)),
        Err(error) => panic!("{ask:?} gave {error}"),
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let key = 0..4_u8;
    prop_oneof![
        key.clone().prop_map(Ask::Create),
        (key.clone(), any::<bool>()).prop_map(|(key, stale)| Ask::Update { key, stale }),
        (key.clone(), any::<bool>()).prop_map(|(key, stale)| Ask::Delete { key, stale }),
        key.prop_map(Ask::Get),
        (0..12_u8).prop_map(Ask::ListAt),
    ]
}

#[test]
fn the_model_accepts_right_answers_and_rejects_wrong_ones() {
    let (create, update, get) = (Ask::Create(0), Ask::Update { key: 0, stale: false }, Ask::Get(0));
    let steps: &[(&Ask, Answer, &[Answer])] = &[
        (
            &get,
            Answer::Found(None),
            &[Answer::Found(Some(1)), Answer::Wrote(2)],
        ),
        (
            &update,
            Answer::Conflict(None),
            &[Answer::Wrote(2), Answer::Conflict(Some(1))],
        ),
        (
            &create,
            Answer::Wrote(2),
            &[Answer::Wrote(1), Answer::Wrote(3), Answer::Conflict(None)],
        ),
        (
            &create,
            Answer::Conflict(Some(2)),
            &[Answer::Wrote(3), Answer::Conflict(None)],
        ),
        (
            &update,
            Answer::Wrote(3),
            &[Answer::Wrote(2), Answer::Conflict(Some(2))],
        ),
        (
            &get,
            Answer::Found(Some(3)),
            &[Answer::Found(Some(2)), Answer::Found(None)],
        ),
        (
            &Ask::ListAt(1),
            Answer::Listed(vec![(name(0), 2)]),
            &[Answer::Listed(vec![(name(0), 3)])],
        ),
    ];
    let mut model = Model::new(1);
    for (ask, right, wrong) in steps {
        for wrong in *wrong {
            assert!(!model.accept(ask, wrong), "{ask:?} must not give {wrong:?}");
        }
        assert!(model.accept(ask, right), "{ask:?} must give {right:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_store_answers_like_the_model(asks in proptest::collection::vec(ask(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let backend = support::embedded();
            let mut model = Model::new(backend.store.revision().await.unwrap().0);
            for ask in &asks {
                let given = answer(backend.store.as_ref(), &model, ask).await;
                prop_assert!(model.accept(ask, &given), "{:?} gave {:?}", ask, given);
            }
            Ok(())
        })?;
    }
}
