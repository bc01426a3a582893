//! What the programs say: their log records and the drops, as the agent's own log.

use aya::maps::{Map, RingBuf};
use aya_log::EbpfLogger;
use orch_ebpf::event::{DropEvent, DropReason, EVENTS_MAP};

use crate::{DataplaneError, load::Programs, maps::failed, sys};

/// A logger that hands the programs' records to `tracing`.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        match record.level() {
            log::Level::Error => tracing::error!(target: "orch::bpf", "{}", record.args()),
            log::Level::Warn => tracing::warn!(target: "orch::bpf", "{}", record.args()),
            log::Level::Info => tracing::info!(target: "orch::bpf", "{}", record.args()),
            _ => tracing::debug!(target: "orch::bpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}

/// Starts the two readers.
///
/// # Errors
/// When the drop events' ring buffer cannot be opened.
pub fn start(programs: &mut Programs) -> Result<Vec<tokio::task::JoinHandle<()>>, DataplaneError> {
    let map: Map = programs
        .ebpf()
        .take_map(EVENTS_MAP)
        .ok_or(DataplaneError::Missing(EVENTS_MAP))?;
    let events = RingBuf::try_from(map).map_err(failed(EVENTS_MAP))?;
    let mut tasks = vec![tokio::spawn(follow_drops(events))];
    match EbpfLogger::init_with_logger(programs.ebpf(), ToTracing) {
        Ok(logger) => tasks.push(tokio::spawn(follow_log(logger))),
        Err(error) => tracing::warn!(%error, "the programs' log cannot be read"),
    }
    Ok(tasks)
}

async fn follow_log(logger: EbpfLogger<ToTracing>) {
    let Ok(mut logger) = sys::readable(logger) else {
        return;
    };
    while let Ok(mut guard) = logger.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}

async fn follow_drops(events: RingBuf<aya::maps::MapData>) {
    let Ok(mut events) = sys::readable(events) else {
        return;
    };
    while let Ok(mut guard) = events.readable_mut().await {
        while let Some(item) = guard.get_inner_mut().next() {
            if let Some(event) = sys::read_as::<DropEvent>(&item) {
                let tuple = event.tuple;
                tracing::debug!(
                    target: "orch::drop",
                    reason = DropReason::from_number(event.reason).map_or("unknown", DropReason::text),
                    source = %std::net::Ipv4Addr::from(tuple.source),
                    destination = %std::net::Ipv4Addr::from(tuple.destination),
                    protocol = tuple.protocol,
                    source_port = tuple.source_port,
                    destination_port = tuple.destination_port,
                    ifindex = event.ifindex,
                    "packet dropped"
                );
            }
        }
        guard.clear_ready();
    }
}
