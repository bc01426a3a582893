//! Starting one container: image, environment, description, process, postStart hook.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use orch_runtime::RuntimeError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    actor::Local,
    context::Target,
    env,
    event::{Event, StartFailure},
    handler, image,
    spec::{self, Inputs},
};

/// How long a postStart hook may take; the API sets no limit, but a container that never gets going should be seen.
const POST_START: Duration = Duration::from_secs(600);

/// Starts the container and tells the actor how it went.
pub async fn run(
    target: Target,
    local: Arc<Local>,
    attempt: u32,
    cancel: CancellationToken,
    events: mpsc::UnboundedSender<Event>,
) {
    let (slot, id) = (target.slot, target.id.clone());
    let Some(container) = target.container().cloned() else {
        return;
    };
    match Box::pin(start(&target, &local, &container, attempt, &cancel)).await {
        Ok(image_id) => {
            let at = Timestamp::now();
            let _ = events.send(Event::Started {
                slot,
                id: id.clone(),
                image_id,
                at,
            });
            target.context.tell(
                &target.pod,
                slot,
                "Started",
                format!("Started container {}", container.name),
            );
            if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
                let result = handler::hook(&target, hook, POST_START).await;
                if let Err(error) = &result {
                    let text = format!("PostStartHook failed: {error}");
                    target
                        .context
                        .warn(&target.pod, Some(slot), "FailedPostStartHook", text);
                }
                let _ = events.send(Event::Hooked {
                    slot,
                    id,
                    ok: result.is_ok(),
                });
            }
        }
        Err(failure) => {
            let _ = events.send(Event::StartFailed { slot, id, failure });
        }
    }
}

/// Brings the container's process up; the answer is the image's id for the status.
async fn start(
    target: &Target,
    local: &Local,
    container: &Container,
    attempt: u32,
    cancel: &CancellationToken,
) -> Result<String, StartFailure> {
    let context = &target.context;
    let fail = |message: &str| {
        context.warn(
            &target.pod,
            Some(target.slot),
            "Failed",
            format!("Error: {message}"),
        )
    };
    let config = |message: String| {
        fail(&message);
        StartFailure::Config {
            reason: "CreateContainerConfigError",
            message,
        }
    };
    let described = async {
        let image = image::ensure(target, container).await?;
        // Without the services' cache the environment would lack them for the container's whole life.
        let services = context.cluster.services.wait_until_ready();
        if !matches!(
            tokio::time::timeout(Duration::from_secs(10), services).await,
            Ok(Ok(()))
        ) {
            let text = "services have not yet been read at least once, cannot construct envvars";
            return Err(config(text.to_owned()));
        }
        let env = env::environment(context, &target.pod, container, &target.ips)
            .await
            .map_err(|e| config(e.to_string()))?;
        Ok((image, env))
    };
    // What is asked of registries and of the API may take long; what follows does not, and runs to its end.
    let (image, env) = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(StartFailure::Cancelled),
        described = described => described?,
    };
    let sandbox = local.sandbox.lock().clone();
    let inputs = Inputs {
        context,
        image: &image,
        env,
        sandbox,
        ip: target.ip(),
        id: target.id.clone(),
        attempt,
    };
    let spec = spec::describe(&target.pod, container, inputs).map_err(|e| config(e.to_string()))?;
    let host = &context.host;
    let mut created = host.create(&spec).await;
    if matches!(created, Err(RuntimeError::ContainerExists(_))) {
        // A start that was cut off by the agent's end; nothing of it ever ran.
        let _ = host.delete(&target.id).await;
        created = host.create(&spec).await;
    }
    match created {
        Ok(()) => {}
        Err(
            error @ (RuntimeError::BadSpec { .. }
            | RuntimeError::NoSuchUser { .. }
            | RuntimeError::NoSuchImage(_)),
        ) => {
            fail(&error.to_string());
            return Err(StartFailure::Config {
                reason: "CreateContainerError",
                message: error.to_string(),
            });
        }
        Err(error) => return Err(undo(target, error).await),
    }
    if cancel.is_cancelled() {
        let _ = host.delete(&target.id).await;
        return Err(StartFailure::Cancelled);
    }
    context.tell(
        &target.pod,
        target.slot,
        "Created",
        format!("Created container: {}", container.name),
    );
    if let Err(error) = host.start(&target.id).await {
        return Err(undo(target, error).await);
    }
    Ok(image::image_id(&image))
}

/// The runtime refused: what is there of the container is removed.
async fn undo(target: &Target, error: RuntimeError) -> StartFailure {
    let message = error.to_string();
    target.context.warn(
        &target.pod,
        Some(target.slot),
        "Failed",
        format!("Error: {message}"),
    );
    if let Err(error) = target.context.host.delete(&target.id).await {
        tracing::warn!(id = target.id, %error, "container not removed after a failed start");
    }
    StartFailure::Run { message }
}
