//! `/stats/summary`: CPU and memory of node, pods and containers. File systems and network are not there yet.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use jiff::Timestamp;
use orch_runtime::ContainerStats;
use serde_json::{Value, json};

use super::Backend;
use crate::node::facts;

pub(super) async fn summary(State(backend): State<Arc<dyn Backend>>) -> Json<Value> {
    let time = Timestamp::now().to_string();
    let mut pods: BTreeMap<(String, String, String), (ContainerStats, Vec<Value>)> = BTreeMap::new();
    for usage in backend.usage().await {
        let key = (usage.target.namespace, usage.target.pod, usage.uid);
        let (sum, containers) = pods.entry(key).or_default();
        sum.cpu_usage_ns += usage.stats.cpu_usage_ns;
        sum.memory_usage_bytes += usage.stats.memory_usage_bytes;
        sum.memory_working_set_bytes += usage.stats.memory_working_set_bytes;
        sum.memory_rss += usage.stats.memory_rss;
        let mut entry = measured(&time, &usage.stats);
        entry["name"] = usage.target.container.into();
        containers.push(entry);
    }
    let pods = pods
        .into_iter()
        .map(|((namespace, name, uid), (sum, containers))| {
            let mut entry = measured(&time, &sum);
            entry["podRef"] = json!({"name": name, "namespace": namespace, "uid": uid});
            entry["containers"] = containers.into();
            entry
        });
    let node = facts::node_usage();
    Json(json!({
        "node": {
            "nodeName": backend.node_name(),
            "cpu": {"time": time, "usageCoreNanoSeconds": (node.cpu_seconds * 1e9) as u64},
            "memory": {
                "time": time,
                "workingSetBytes": node.working_set_bytes,
                "availableBytes": node.available_bytes,
            },
        },
        "pods": pods.collect::<Vec<_>>(),
    }))
}

fn measured(time: &str, stats: &ContainerStats) -> Value {
    json!({
        "cpu": {"time": time, "usageCoreNanoSeconds": stats.cpu_usage_ns},
        "memory": {
            "time": time,
            "usageBytes": stats.memory_usage_bytes,
            "workingSetBytes": stats.memory_working_set_bytes,
            "rssBytes": stats.memory_rss,
        },
    })
}
