//! What every cluster has from the start: four namespaces, the Service `kubernetes` with its endpoints, and the
//! ServiceCIDR `kubernetes`.

use std::{sync::Arc, time::Duration};

use orch_api::{ApiError, Kind, service::Family};
use serde_json::{Value, json};

use crate::{
    auth::identity::Identity,
    object::{Call, write},
    services::nth_address,
    state::State,
};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// How often all of it is looked after.
const INTERVAL: Duration = Duration::from_secs(60);

/// Makes what is missing, and puts right what changed.
///
/// # Errors
/// The first object that cannot be written.
pub async fn ensure(state: &Arc<State>) -> Result<(), ApiError> {
    for name in NAMESPACES {
        put(state, "", "namespaces", "", name, &json!({}), false).await?;
    }
    let port = state
        .config
        .listen
        .first()
        .map_or(6443, std::net::SocketAddr::port);
    let address = state.config.advertise_address;
    let family = Family::of(address).as_str();
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    let service = json!({
        "metadata": { "labels": labels },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": state.config.service_cidrs.first().and_then(|net| nth_address(*net, 1)),
            "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
        },
    });
    put(state, "", "services", "default", "kubernetes", &service, false).await?;
    let ranges = json!({ "spec": { "cidrs": state.config.service_cidrs } });
    let group = "networking.k8s.io";
    if let Err(error) = put(state, group, "servicecidrs", "", "kubernetes", &ranges, true).await {
        // Its ranges cannot change but for a second family; the server deals out of its own all the same.
        tracing::warn!(%error, "the ServiceCIDR kubernetes does not show where cluster IPs come from");
    }
    // Nobody else can reach such an address, and Kubernetes refuses it in Endpoints.
    if address.is_loopback() || address.is_unspecified() {
        return Ok(());
    }
    let endpoints = json!({
        "metadata": { "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{
            "addresses": [{ "ip": address }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        }],
    });
    put(state, "", "endpoints", "default", "kubernetes", &endpoints, true).await?;
    let slice = json!({
        "metadata": { "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": family,
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    });
    put(
        state,
        "discovery.k8s.io",
        "endpointslices",
        "default",
        "kubernetes",
        &slice,
        true,
    )
    .await
}

/// Looks after all of it until the server stops.
pub async fn keep(state: Arc<State>) {
    loop {
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if let Err(error) = ensure(&state).await {
            tracing::warn!(%error, "failed to look after the cluster's own objects");
        }
    }
}

/// Creates the object, or (when `overwrite`) gives it the fields of `wanted` again.
async fn put(
    state: &Arc<State>,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
    wanted: &Value,
    overwrite: bool,
) -> Result<(), ApiError> {
    let kind = Kind::find(group, "v1", plural).ok_or_else(ApiError::no_such_resource)?;
    let call = Call::internal(state, Arc::new(Identity::apiserver()), kind, namespace, name)?;
    call.collection.fresh().await?;
    let mut object = wanted.clone();
    object["metadata"]["name"] = json!(name);
    if let Some(current) = call.collection.get_value(namespace, name) {
        let same = wanted
            .as_object()
            .into_iter()
            .flatten()
            .all(|(field, value)| field == "metadata" || contains(&current[field], value));
        if same || !overwrite {
            return Ok(());
        }
        return write::update(&call, None, object, &[]).await.map(|_| ());
    }
    match write::create(&call, object, &[]).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason() == "AlreadyExists" => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether `have` says all that `wanted` says; defaults may have added to it.
fn contains(have: &Value, wanted: &Value) -> bool {
    match (have, wanted) {
        (Value::Object(have), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| have.get(key).is_some_and(|own| contains(own, value))),
        (Value::Array(have), Value::Array(wanted)) => {
            have.len() == wanted.len()
                && have
                    .iter()
                    .zip(wanted)
                    .all(|(have, wanted)| contains(have, wanted))
        }
        _ => have == wanted,
    }
}
