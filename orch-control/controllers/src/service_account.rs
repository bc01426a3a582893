//! ServiceAccount: every namespace has an account called `default`.
//!
//! # Flow
//! A namespace or a `default` account changes → the account is created if it is missing.
//! # Guarantees
//! An account that exists is never touched.
//! # Assumptions
//! Tokens are requested by the kubelet; no secret is made.
//! # Errors
//! A namespace that is going away gets no account and that is no error; everything else is tried again.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::Context;
use crate::core::{Doing, Key, Queue, drive, is, namespace_is_terminating};

const DEFAULT: &str = "default";

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let wake = queue.clone();
    context.informers.namespaces.subscribe(move |change| {
        change
            .new
            .into_iter()
            .for_each(|n| wake.add(Key::new("", n.name_any())));
    });
    let wake = queue.clone();
    context.informers.accounts.subscribe(move |change| {
        if let (Some(old), None) = (change.old, change.new) {
            wake.add(Key::new("", old.namespace().unwrap_or_default()));
        }
    });
    let (client, informers) = (context.client.clone(), context.informers.clone());
    drive("serviceaccount", queue, 2, context.token.clone(), move |key| {
        let (client, informers) = (client.clone(), informers.clone());
        async move {
            informers.accounts.synced().await;
            let alive = informers
                .namespaces
                .get(&key)
                .is_some_and(|n| n.metadata.deletion_timestamp.is_none());
            if !alive || informers.accounts.get(&Key::new(&key.name, DEFAULT)).is_some() {
                return Ok(None);
            }
            let account = ServiceAccount {
                metadata: ObjectMeta {
                    name: Some(DEFAULT.into()),
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            };
            let api: Api<ServiceAccount> = Api::namespaced(client, &key.name);
            match api.create(&PostParams::default(), &account).await {
                Err(error) if !is(&error, 409) && !namespace_is_terminating(&error) => {
                    Err(error).doing(|| format!("create service account {}/{DEFAULT}", key.name))
                }
                _ => Ok(None),
            }
        }
    });
}
