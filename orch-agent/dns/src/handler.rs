//! From a request's bytes to the answer's: the cluster zone first, then the forwarders.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use parking_lot::RwLock;
use rand::seq::SliceRandom as _;
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Answer, encode::encode, exchange::Question, forward::Forwarder, index::Index, zone::Zone,
};

/// The largest UDP answer: never fragmented (DNS flag day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;
/// Length of a message's header (RFC 1035 section 4.1.1).
const HEADER: usize = 12;
/// Aliases that are followed from one name of the zone to the next.
const MAX_ALIASES: usize = 8;

/// What a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// All that answers, in its order.
pub(crate) struct Handler {
    zone: Zone,
    /// None until the caches have held full lists: that a name does not exist cannot be known before.
    index: RwLock<Option<Index>>,
    /// Cancelled with the first index: nobody waits any longer.
    ready: CancellationToken,
    forwarder: Forwarder,
}

impl Handler {
    pub(crate) fn new(zone: Zone, forwarder: Forwarder) -> Self {
        Self {
            zone,
            index: RwLock::new(None),
            ready: CancellationToken::new(),
            forwarder,
        }
    }

    /// Changes what the zone answers from.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Index)) {
        change(self.index.write().get_or_insert_default());
        self.ready.cancel();
    }

    /// Waits until the zone can be answered from.
    pub(crate) async fn ready(&self) {
        self.ready.cancelled().await;
    }

    /// The bytes to send back; `None` for what deserves no answer.
    pub(crate) async fn respond(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        // An answer to an answer could go back and forth for ever.
        if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
            return None;
        }
        if OpCode::from_u8((bytes[2] >> 3) & 0xf) != OpCode::Query {
            return Some(bare(bytes, ResponseCode::NotImp));
        }
        // Also spares the work for a header that claims thousands of questions.
        if bytes[4..6] != [0, 1] {
            return Some(bare(bytes, ResponseCode::FormErr));
        }
        let Ok(request) = Message::from_vec(bytes) else {
            return Some(bare(bytes, ResponseCode::FormErr));
        };
        let query = request.queries.first()?.clone();
        let old = request.edns.as_ref().is_none_or(|edns| edns.version() == 0);
        let answer = if old {
            let question = Question {
                query: query.clone(),
                dnssec_ok: request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
                checking_disabled: request.metadata.checking_disabled,
            };
            self.answer(&question, request.metadata.recursion_desired).await
        } else {
            Answer::code(ResponseCode::BADVERS)
        };
        let mut response = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
        response.metadata = Metadata::response_from_request(&request.metadata);
        response.metadata.authoritative = answer.authoritative;
        response.metadata.recursion_available = true;
        response.metadata.response_code = answer.code;
        response.add_query(query);
        response.answers = answer.answers;
        response.authorities = answer.authorities;
        response.additionals = answer.additionals;
        // RFC 6891 section 6.1.1: an OPT record for whoever sent one.
        let mut limit = 512;
        if let Some(asked) = &request.edns {
            limit = asked.max_payload().clamp(512, MAX_UDP_PAYLOAD);
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_PAYLOAD)
                .set_dnssec_ok(asked.flags().dnssec_ok);
            response.edns = Some(edns);
        }
        if transport == Transport::Tcp {
            limit = u16::MAX;
        }
        Some(encode(response, limit).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot write a DNS answer");
            bare(bytes, ResponseCode::ServFail)
        }))
    }

    async fn answer(&self, question: &Question, recursion_desired: bool) -> Answer {
        let query = &question.query;
        let kind = query.query_type();
        if query.query_class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Answer::code(ResponseCode::Refused);
        }
        let Some(mut answer) = self.local(question) else {
            if !recursion_desired {
                return Answer::code(ResponseCode::Refused);
            }
            return self.forwarder.answer(question).await;
        };
        // A stub resolver does not follow an alias by itself.
        for _ in 0..MAX_ALIASES {
            let Some(target) = alias(&answer, kind) else { break };
            let mut next = question.clone();
            next.query.set_name(target);
            let rest = match self.local(&next) {
                Some(rest) => rest,
                None if !recursion_desired => break,
                None => self.forwarder.answer(&next).await,
            };
            let done = !rest.authoritative;
            // RFC 6604 section 3: the code is that of the last name.
            answer.code = rest.code;
            answer.answers.extend(rest.answers);
            answer.authorities = rest.authorities;
            answer.additionals = rest.additionals;
            if done {
                break;
            }
        }
        answer
    }

    /// The zone's answer, if the question is the zone's.
    fn local(&self, question: &Question) -> Option<Answer> {
        let index = self.index.read();
        let Some(index) = &*index else {
            let ours = self.zone.answer(&Index::default(), &question.query);
            return ours.map(|_| Answer::code(ResponseCode::ServFail));
        };
        let mut answer = self.zone.answer(index, &question.query)?;
        // Clients that take the first address should not all take the same.
        answer.answers.shuffle(&mut rand::rng());
        Some(answer)
    }
}

/// The name that remains to be asked for, when an answer ends with an alias.
fn alias(answer: &Answer, kind: RecordType) -> Option<Name> {
    match answer.answers.last().map(|record| &record.data) {
        Some(RData::CNAME(target)) if !matches!(kind, RecordType::CNAME | RecordType::ANY) => {
            Some(target.0.clone())
        }
        _ => None,
    }
}

/// An answer of nothing but a header, to a request that may be anything after its own.
fn bare(request: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    header[..2].copy_from_slice(&request[..2]);
    // QR set; opcode and RD as they were. Then RA and the code.
    header[2] = 0x80 | (request[2] & 0x79);
    header[3] = 0x80 | (code.low() & 0xf);
    header
}

#[cfg(test)]
mod tests;
