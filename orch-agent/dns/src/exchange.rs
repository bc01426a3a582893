//! One question to one resolver: by UDP, then by TCP when the answer did not fit.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

/// The payload size that is offered to resolvers: never fragmented (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// What is asked, with the flags that change the answer.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) query: Query,
    /// DNSSEC records are wanted.
    pub(crate) dnssec_ok: bool,
    /// Answers that fail validation are wanted.
    pub(crate) checking_disabled: bool,
}

/// The resolver's answer, whatever its code.
///
/// # Errors
/// When the resolver cannot be reached, or closes the connection. A resolver that is silent takes for ever.
pub(crate) async fn ask(upstream: SocketAddr, question: &Question) -> io::Result<Message> {
    let answer = ask_with(upstream, question, true).await?;
    // RFC 6891 section 7: a resolver of old says so about the OPT record, and gets the question without.
    let unknown = matches!(
        answer.metadata.response_code,
        ResponseCode::FormErr | ResponseCode::NotImp
    );
    if unknown && answer.edns.is_none() {
        return ask_with(upstream, question, false).await;
    }
    Ok(answer)
}

async fn ask_with(upstream: SocketAddr, question: &Question, edns: bool) -> io::Result<Message> {
    // An id that can be guessed invites forged answers.
    let id = rand::random::<u16>();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.add_query(question.query.clone());
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD).set_dnssec_ok(question.dnssec_ok);
        message.set_edns(edns);
    }
    let request = message.to_vec().map_err(io::Error::other)?;
    let answer = ask_udp(upstream, &request, id, &question.query).await?;
    if answer.metadata.truncation {
        ask_tcp(upstream, &request, id, &question.query).await
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
    // Resolvers exist that do not heed the size they are offered.
    let mut buffer = vec![0; 4096];
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
        .filter(|answer| !answer.metadata.truncation)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an answer to the question"))
}

/// The message, if it answers the question that was asked. A truncated one need not be whole.
fn parse(bytes: &[u8], id: u16, query: &Query) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let same = |asked: &Query| asked.name() == query.name() && asked.query_type() == query.query_type();
    let questions = match message.queries.as_slice() {
        [asked] => same(asked),
        // Some leave the question out when they refuse it.
        [] => message.metadata.response_code != ResponseCode::NoError,
        _ => false,
    };
    let ours =
        message.metadata.id == id && message.metadata.message_type == MessageType::Response && questions;
    ours.then_some(message)
}
