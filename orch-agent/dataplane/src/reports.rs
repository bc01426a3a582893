//! What the programs say: their log records, passed on to the agent's own log, and the ring of their events.

use aya::maps::{Map, MapData, RingBuf};
use aya_log::EbpfLogger;
use orch_ebpf::event::EVENTS_MAP;

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

/// Takes the ring of events out of the loaded object, for [`crate::monitor`].
///
/// # Errors
/// When it is not there or cannot be mapped.
pub fn events(programs: &mut Programs) -> Result<RingBuf<MapData>, DataplaneError> {
    let map: Map = programs
        .ebpf()
        .take_map(EVENTS_MAP)
        .ok_or_else(|| DataplaneError::Missing(EVENTS_MAP.to_owned()))?;
    RingBuf::try_from(map).map_err(failed(EVENTS_MAP))
}

/// Starts to pass the programs' log on; `None` where they have none, which is warned about.
pub fn log(programs: &mut Programs) -> Option<tokio::task::JoinHandle<()>> {
    match EbpfLogger::init_with_logger(programs.ebpf(), ToTracing) {
        Ok(logger) => Some(tokio::spawn(follow_log(logger))),
        Err(error) => {
            tracing::warn!(%error, "the programs' log cannot be read");
            None
        }
    }
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
