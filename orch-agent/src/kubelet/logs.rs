//! `/containerLogs`: a container's log as a chunked body.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, stream};
use orch_runtime::logs::LogOptions;

use super::{Backend, Failure, Target};

pub(super) async fn serve(
    State(backend): State<Arc<dyn Backend>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response, Failure> {
    let (previous, options) = options(pairs)?;
    let target = Target {
        namespace,
        pod,
        container,
    };
    let mut pieces = backend.logs(&target, previous, options).await?;
    // Nothing to read may still be a failure that has to be told before the first byte of a good answer. A log that
    // is only being followed has no first piece for a long time, so it is not waited for.
    let first = tokio::select! {
        biased;
        first = pieces.next() => Some(first),
        () = tokio::time::sleep(std::time::Duration::from_millis(50)) => None,
    };
    let body = match first {
        Some(Some(Err(failure))) => return Err(failure),
        Some(Some(Ok(bytes))) => Body::from_stream(stream::iter([Ok(bytes)]).chain(pieces)),
        Some(None) => Body::empty(),
        None => Body::from_stream(pieces),
    };
    Ok(([(header::CONTENT_TYPE, "text/plain")], body).into_response())
}

/// The options of `PodLogOptions`, by their names in the query.
fn options(pairs: Vec<(String, String)>) -> Result<(bool, LogOptions), Failure> {
    let mut options = LogOptions::default();
    let mut previous = false;
    for (name, value) in pairs {
        let bad = |what: &str| Failure::BadRequest(format!("invalid {name}: {value:?} is not {what}"));
        let yes = matches!(value.as_str(), "1" | "true");
        let number = || value.parse::<u64>().map_err(|_| bad("a number of 0 or more"));
        match name.as_str() {
            "follow" => options.follow = yes,
            "previous" => previous = yes,
            "timestamps" => options.timestamps = yes,
            "tailLines" => options.tail_lines = Some(number()?),
            "limitBytes" => options.limit_bytes = Some(number()?.max(1)),
            "sinceSeconds" => {
                options.since_seconds = Some(i64::try_from(number()?).map_err(|_| bad("a time"))?)
            }
            "sinceTime" => options.since_time = Some(value.parse().map_err(|_| bad("an RFC 3339 time"))?),
            _ => {}
        }
    }
    if options.since_seconds.is_some() && options.since_time.is_some() {
        return Err(Failure::BadRequest(
            "at most one of sinceTime or sinceSeconds may be specified".into(),
        ));
    }
    Ok((previous, options))
}
