//! What a pod is doing, in a word: the STATUS, READY and RESTARTS columns.

use jiff::Timestamp;
use serde_json::Value;

use super::duration::human;
use crate::value::{int, list, text};

/// A pod in brief.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) ready: usize,
    pub(super) total: usize,
    pub(super) status: String,
    pub(super) restarts: String,
}

/// Restarts and when the last was.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += int(container, &["restartCount"]).unwrap_or(0);
        let finished = text(container, &["lastState", "terminated", "finishedAt"])
            .parse()
            .ok();
        self.last = self.last.max(finished);
    }

    fn print(&self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count > 0 => {
                format!(
                    "{} ({} ago)",
                    self.count,
                    human(now.as_second() - last.as_second())
                )
            }
            _ => self.count.to_string(),
        }
    }
}

/// Reads a pod's status.
pub(super) fn summarise(pod: &Value, now: Timestamp) -> Summary {
    let status = &pod["status"];
    let mut reason = text(status, &["phase"]).to_owned();
    if !text(status, &["reason"]).is_empty() {
        reason = text(status, &["reason"]).to_owned();
    }
    let scheduled = |c: &&Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if list(status, &["conditions"]).iter().any(|c| scheduled(&c)) {
        reason = "SchedulingGated".to_owned();
    }
    let sidecars: Vec<&str> = list(pod, &["spec", "initContainers"])
        .iter()
        .filter(|c| c["restartPolicy"] == "Always")
        .map(|c| text(c, &["name"]))
        .collect();
    let total = list(pod, &["spec", "containers"]).len() + sidecars.len();
    let mut ready = 0;
    let (mut all, mut of_sidecars) = (Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (i, container) in list(status, &["initContainerStatuses"]).iter().enumerate() {
        all.add(container);
        let sidecar = sidecars.contains(&text(container, &["name"]));
        if sidecar {
            of_sidecars.add(container);
        }
        if initializing {
            continue;
        }
        let done = int(container, &["state", "terminated", "exitCode"]) == Some(0);
        if done {
            continue;
        }
        if sidecar && container["started"] == true {
            ready += usize::from(container["ready"] == true);
            continue;
        }
        initializing = true;
        reason = init_reason(container, i, list(pod, &["spec", "initContainers"]).len());
    }
    let initialized = list(status, &["conditions"])
        .iter()
        .any(|c| c["type"] == "Initialized" && c["status"] == "True");
    if !initializing || initialized {
        let mut restarts = of_sidecars;
        let mut running = false;
        for container in list(status, &["containerStatuses"]).iter().rev() {
            restarts.add(container);
            if let Some(why) = main_reason(container) {
                reason = why;
            } else if container["ready"] == true && container["state"].get("running").is_some() {
                running = true;
                ready += 1;
            }
        }
        all = restarts;
        if reason == "Completed" && running {
            let ready = list(status, &["conditions"])
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        let lost = status["reason"] == "NodeLost";
        let over = matches!(text(status, &["phase"]), "Succeeded" | "Failed");
        if lost {
            reason = "Unknown".to_owned();
        } else if !over {
            reason = "Terminating".to_owned();
        }
    }
    Summary {
        ready,
        total,
        status: reason,
        restarts: all.print(now),
    }
}

fn exit(terminated: &Value) -> String {
    match (
        text(terminated, &["reason"]),
        int(terminated, &["signal"]).unwrap_or(0),
    ) {
        ("", 0) => format!("ExitCode:{}", int(terminated, &["exitCode"]).unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn init_reason(container: &Value, index: usize, total: usize) -> String {
    let state = &container["state"];
    if let Some(terminated) = state.get("terminated") {
        return format!("Init:{}", exit(terminated));
    }
    match text(state, &["waiting", "reason"]) {
        "" | "PodInitializing" => format!("Init:{index}/{total}"),
        reason => format!("Init:{reason}"),
    }
}

fn main_reason(container: &Value) -> Option<String> {
    let state = &container["state"];
    match text(state, &["waiting", "reason"]) {
        "" => state.get("terminated").map(exit),
        reason => Some(reason.to_owned()),
    }
}
