//! Root CA publisher: every namespace has the config map `kube-root-ca.crt`, which pods verify the API server with.
//!
//! # Flow
//! A namespace or such a config map changes → it is created, or brought back to what it should say.
//! # Guarantees
//! Other keys in the config map are removed, as in Kubernetes.
//! # Assumptions
//! The certificate does not change while the process runs.
//! # Errors
//! A namespace that is going away gets none and that is no error; everything else is tried again.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::Context;
use crate::core::{Doing, Key, Queue, drive, is, namespace_is_terminating};

/// The config map's name.
pub const NAME: &str = "kube-root-ca.crt";

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
    context.informers.root_cas.subscribe(move |change| {
        change
            .both()
            .for_each(|c| wake.add(Key::new("", c.namespace().unwrap_or_default())));
    });
    let (client, informers, config) = (
        context.client.clone(),
        context.informers.clone(),
        context.config.clone(),
    );
    drive("root-ca-publisher", queue, 2, context.token.clone(), move |key| {
        let (client, informers, config) = (client.clone(), informers.clone(), config.clone());
        async move {
            informers.root_cas.synced().await;
            if informers
                .namespaces
                .get(&key)
                .is_none_or(|n| n.metadata.deletion_timestamp.is_some())
            {
                return Ok(None);
            }
            let data = Some([("ca.crt".to_owned(), config.root_ca_pem.clone())].into());
            let api: Api<ConfigMap> = Api::namespaced(client, &key.name);
            let doing = || format!("publish the root certificate in namespace {}", key.name);
            match informers.root_cas.get(&Key::new(&key.name, NAME)) {
                Some(map) if map.data == data => Ok(None),
                Some(map) => {
                    let map = ConfigMap {
                        data,
                        binary_data: None,
                        ..ConfigMap::clone(&map)
                    };
                    api.replace(NAME, &PostParams::default(), &map)
                        .await
                        .doing_if_there(doing)
                        .map(|_| None)
                }
                None => {
                    let about = "Contains a CA bundle that can be used to verify the API server.".to_owned();
                    let map = ConfigMap {
                        metadata: ObjectMeta {
                            name: Some(NAME.into()),
                            annotations: Some([("kubernetes.io/description".to_owned(), about)].into()),
                            ..ObjectMeta::default()
                        },
                        data,
                        ..ConfigMap::default()
                    };
                    match api.create(&PostParams::default(), &map).await {
                        Err(error) if !is(&error, 409) && !namespace_is_terminating(&error) => {
                            Err(error).doing(doing)
                        }
                        _ => Ok(None),
                    }
                }
            }
        }
    });
}
