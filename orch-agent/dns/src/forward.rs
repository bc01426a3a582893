//! Everything outside the cluster zone, asked of the node's own resolvers and kept for as long as they allow.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::LowerName,
};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    answer::Answer,
    cache::{Cache, Key},
    exchange::{Question, ask},
};

/// How long one resolver gets for one attempt.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// How long all attempts together may take: below the 5 s after which a stub resolver asks again.
const ALL: Duration = Duration::from_millis(4500);
/// How often each resolver is tried, in case a packet was lost.
const ROUNDS: usize = 2;
/// How long a resolver that failed is asked after the others.
const SHUN: Duration = Duration::from_secs(10);
/// Questions under way to resolvers at most; each has a socket and a few kilobytes.
const CONCURRENT: usize = 512;

/// Resolvers with their cache.
pub(crate) struct Forwarder {
    upstreams: Vec<Upstream>,
    cache: Mutex<Cache>,
    concurrent: Semaphore,
}

struct Upstream {
    address: SocketAddr,
    failed: Mutex<Option<Instant>>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>) -> Self {
        let upstream = |address| Upstream {
            address,
            failed: Mutex::new(None),
        };
        Self {
            upstreams: upstreams.into_iter().map(upstream).collect(),
            cache: Mutex::default(),
            concurrent: Semaphore::new(CONCURRENT),
        }
    }

    /// The answer from the cache, or of the first resolver that gives one; SERVFAIL when none does.
    pub(crate) async fn answer(&self, question: &Question) -> Answer {
        let name = question.query.name();
        let key = Key {
            name: LowerName::new(name),
            kind: question.query.query_type(),
            dnssec_ok: question.dnssec_ok,
            checking_disabled: question.checking_disabled,
        };
        if let Some(answer) = self.cache.lock().get(&key, name, Instant::now()) {
            return answer;
        }
        let Ok(_permit) = self.concurrent.try_acquire() else {
            return Answer::code(ResponseCode::ServFail);
        };
        let mut refusal = None;
        let found = timeout(ALL, self.ask_all(question, &mut refusal))
            .await
            .unwrap_or(None);
        let answer = found
            .or(refusal)
            .unwrap_or_else(|| Answer::code(ResponseCode::ServFail));
        self.cache.lock().put(key, &answer, Instant::now());
        answer
    }

    /// Asks one resolver after the other. The first that does not want to answer is remembered in `refusal`.
    async fn ask_all(&self, question: &Question, refusal: &mut Option<Answer>) -> Option<Answer> {
        for _ in 0..ROUNDS {
            let mut order: Vec<&Upstream> = self.upstreams.iter().collect();
            order.sort_by_key(|upstream| upstream.failed.lock().is_some_and(|at| at.elapsed() < SHUN));
            for upstream in order {
                let address = upstream.address;
                match timeout(ATTEMPT, ask(address, question)).await {
                    Ok(Ok(message)) => {
                        *upstream.failed.lock() = None;
                        let answer = answer_of(message);
                        if matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) {
                            return Some(answer);
                        }
                        refusal.get_or_insert(answer);
                        continue;
                    }
                    Ok(Err(error)) => tracing::debug!(upstream = %address, %error, "resolver failed"),
                    Err(_) => tracing::debug!(upstream = %address, "resolver did not answer in time"),
                }
                *upstream.failed.lock() = Some(Instant::now());
            }
            if refusal.is_some() {
                break;
            }
        }
        None
    }
}

fn answer_of(message: Message) -> Answer {
    Answer {
        code: message.metadata.response_code,
        authoritative: false,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}
