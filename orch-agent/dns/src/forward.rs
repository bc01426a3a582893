//! Everything outside the cluster zone, asked of the node's own resolvers and kept for a short while.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{LowerName, RData, RecordType},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::answer::Answer;

/// How long one resolver gets for one attempt: below the 5 s after which a stub resolver asks again.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Bounds on how long an answer is kept, in seconds.
const TTL_MIN: u32 = 5;
const TTL_MAX: u32 = 30;
/// Answers kept at most: about a megabyte.
const CACHE_ENTRIES: usize = 1024;
/// The payload size that is offered to resolvers.
const PAYLOAD: u16 = 1232;

type Key = (LowerName, RecordType);

/// Resolvers with their cache.
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    cache: Mutex<HashMap<Key, Kept>>,
}

struct Kept {
    answer: Answer,
    stored: Instant,
    ttl: Duration,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self {
            upstreams,
            cache: Mutex::new(HashMap::new()),
        }
    }

    /// The answer of the first resolver that gives one, from the cache if it is there; SERVFAIL when none does.
    pub(crate) async fn answer(&self, query: &Query) -> Answer {
        let key = (LowerName::new(query.name()), query.query_type());
        if let Some(answer) = self.cached(&key) {
            return answer;
        }
        let mut refusal = None;
        for upstream in &self.upstreams {
            match timeout(ATTEMPT, ask(*upstream, query)).await {
                Ok(Ok(message)) => {
                    let answer = answer_of(message);
                    if matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) {
                        self.keep(key, &answer);
                        return answer;
                    }
                    refusal.get_or_insert(answer);
                }
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "resolver failed"),
                Err(_) => tracing::debug!(%upstream, "resolver did not answer in time"),
            }
        }
        refusal.unwrap_or_else(|| Answer::code(ResponseCode::ServFail))
    }

    fn cached(&self, key: &Key) -> Option<Answer> {
        let cache = self.cache.lock();
        let kept = cache.get(key)?;
        let age = kept.stored.elapsed();
        if age >= kept.ttl {
            return None;
        }
        let mut answer = kept.answer.clone();
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let sections = [
            &mut answer.answers,
            &mut answer.authorities,
            &mut answer.additionals,
        ];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    fn keep(&self, key: Key, answer: &Answer) {
        let positive = answer.answers.iter().map(|r| r.ttl).min();
        let negative = answer.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        });
        let Some(ttl) = positive.or(negative) else {
            return;
        };
        let ttl = Duration::from_secs(u64::from(ttl.clamp(TTL_MIN, TTL_MAX)));
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_ENTRIES {
            cache.retain(|_, kept| kept.stored.elapsed() < kept.ttl);
        }
        if cache.len() >= CACHE_ENTRIES {
            cache.clear();
        }
        cache.insert(
            key,
            Kept {
                answer: answer.clone(),
                stored: Instant::now(),
                ttl,
            },
        );
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

/// One question to one resolver: by UDP, then by TCP when the answer did not fit.
async fn ask(upstream: SocketAddr, query: &Query) -> io::Result<Message> {
    // An id that can be guessed invites forged answers.
    let id = rand::random::<u16>();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    message.set_edns(edns);
    let request = message.to_vec().map_err(io::Error::other)?;
    let answer = ask_udp(upstream, &request, id, query).await?;
    if answer.metadata.truncation {
        ask_tcp(upstream, &request, id, query).await
    } else {
        Ok(answer)
    }
}

async fn ask_udp(upstream: SocketAddr, request: &[u8], id: u16, query: &Query) -> io::Result<Message> {
    let local: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A new socket for each question: its random port is the other half of the defence against forgery.
    let socket = UdpSocket::bind(local).await?;
    socket.connect(upstream).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; usize::from(PAYLOAD)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = parse(&buffer[..length], id, query) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, request: &[u8], id: u16, query: &Query) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], request].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    parse(&buffer, id, query)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an answer to the question"))
}

/// The message, if it answers the question that was asked.
fn parse(bytes: &[u8], id: u16, query: &Query) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let same = |asked: &Query| asked.name() == query.name() && asked.query_type() == query.query_type();
    let ours = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && matches!(message.queries.as_slice(), [asked] if same(asked));
    ours.then_some(message)
}
