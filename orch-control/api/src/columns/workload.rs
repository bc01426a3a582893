//! Columns of Deployments, ReplicaSets and ReplicationControllers.

use super::core::status_count;
use super::{
    AGE, Column, NAME, container_images, container_names, count, integer, label_selector, map_selector,
    string, wide,
};
use crate::value::{at, int};

/// What every kind with a pod template shows when asked for more.
const CONTAINERS: Column = wide("Containers", "The containers of the template.", |o, _| {
    container_names(at(o, &["spec", "template", "spec"]))
});
const IMAGES: Column = wide("Images", "Their images.", |o, _| {
    container_images(at(o, &["spec", "template", "spec"]))
});
const SELECTOR: Column = wide("Selector", "The labels of the pods.", |o, _| {
    label_selector(at(o, &["spec", "selector"]))
});

/// apps/v1 Deployment.
pub const DEPLOYMENT: &[Column] = &[
    NAME,
    string("Ready", "Ready pods of those wanted.", |o, _| {
        let ready = int(o, &["status", "readyReplicas"]).unwrap_or(0);
        format!("{ready}/{}", int(o, &["spec", "replicas"]).unwrap_or(0)).into()
    }),
    integer("Up-to-date", "Pods of the current template.", |o, _| {
        status_count(o, "updatedReplicas")
    }),
    integer("Available", "Pods that have been ready long enough.", |o, _| {
        status_count(o, "availableReplicas")
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const DESIRED: Column = integer("Desired", "How many pods are wanted.", |o, _| {
    count(o, &["spec", "replicas"])
});
const CURRENT: Column = integer("Current", "How many pods there are.", |o, _| {
    status_count(o, "replicas")
});
const READY: Column = integer("Ready", "How many of them are ready.", |o, _| {
    status_count(o, "readyReplicas")
});

/// core/v1 ReplicationController, whose selector is a plain map.
pub const REPLICATION_CONTROLLER: &[Column] = &[
    NAME,
    DESIRED,
    CURRENT,
    READY,
    AGE,
    CONTAINERS,
    IMAGES,
    wide("Selector", "The labels of the pods.", |o, _| {
        map_selector(at(o, &["spec", "selector"]))
    }),
];

/// apps/v1 ReplicaSet.
pub const REPLICA_SET: &[Column] = &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR];
