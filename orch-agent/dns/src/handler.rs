//! The chain of handlers behind the server's sockets: cluster zone, then forwarders.

use std::sync::Arc;

use hickory_proto::{
    op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{RData, RecordType},
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::sync::watch;

use crate::{answer::Answer, forward::Forwarder, index::Index, zone::Zone};

/// The largest UDP answer that is never fragmented (DNS flag day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;

/// All handlers in their order.
pub(crate) struct Chain {
    zone: Zone,
    index: watch::Receiver<Arc<Index>>,
    forwarder: Forwarder,
}

impl Chain {
    pub(crate) fn new(zone: Zone, index: watch::Receiver<Arc<Index>>, forwarder: Forwarder) -> Self {
        Self {
            zone,
            index,
            forwarder,
        }
    }

    async fn answer(&self, query: &Query, recursion_desired: bool) -> Answer {
        let index = self.index.borrow().clone();
        let Some(mut answer) = self.zone.answer(&index, query) else {
            if !recursion_desired {
                return Answer::code(ResponseCode::Refused);
            }
            return self.forwarder.answer(query).await;
        };
        // A stub resolver does not follow an alias by itself.
        let alias = match answer.answers.as_slice() {
            [only] if query.query_type() != RecordType::CNAME => match &only.data {
                RData::CNAME(target) => Some(target.0.clone()),
                _ => None,
            },
            _ => None,
        };
        if let Some(target) = alias {
            let target = Query::query(target, query.query_type());
            let rest = match self.zone.answer(&index, &target) {
                Some(rest) => rest,
                None => self.forwarder.answer(&target).await,
            };
            answer.answers.extend(rest.answers);
            answer.code = rest.code;
        }
        answer
    }
}

#[async_trait::async_trait]
impl RequestHandler for Chain {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let answer = if request.metadata.op_code != OpCode::Query {
            Answer::code(ResponseCode::NotImp)
        } else if let [query] = request.queries.queries() {
            self.answer(query.original(), request.metadata.recursion_desired)
                .await
        } else {
            Answer::code(ResponseCode::FormErr)
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.message_type = MessageType::Response;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        metadata.response_code = answer.code;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP_PAYLOAD));
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            &answer.answers,
            &answer.authorities,
            &[],
            &answer.additionals,
        );
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "cannot send a DNS answer");
                ResponseInfo::from(Header {
                    metadata,
                    counts: HeaderCounts::default(),
                })
            }
        }
    }
}
