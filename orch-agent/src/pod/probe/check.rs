//! One attempt of a probe.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use orch_runtime::RuntimeError;

use super::{
    super::{
        context::Target,
        handler::{self, CallError},
    },
    grpc,
};

/// What one attempt came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Healthy.
    Pass,
    /// Not healthy, with the text of the event.
    Fail(String),
}

/// Tries `probe` once.
pub async fn check(target: &Target, probe: &Probe) -> Outcome {
    let limit = Duration::from_secs(
        probe
            .timeout_seconds
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(1)
            .max(1),
    );
    match attempt(target, probe, limit).await {
        Ok(()) => Outcome::Pass,
        Err(message) => Outcome::Fail(message),
    }
}

async fn attempt(target: &Target, probe: &Probe, limit: Duration) -> Result<(), String> {
    let Some(container) = target.container() else {
        return Err("container not found".to_owned());
    };
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = match target.context.host.exec_sync(&target.id, &command, limit).await {
            Ok(output) => output,
            Err(RuntimeError::Timeout { .. }) => {
                return Err(format!(
                    "command timed out: {command:?} timed out after {}s",
                    limit.as_secs()
                ));
            }
            Err(error) => return Err(error.to_string()),
        };
        return match output.exit_code {
            0 => Ok(()),
            _ => Err(String::from_utf8_lossy(&output.output).into_owned()),
        };
    }
    if let Some(action) = &probe.http_get {
        return match handler::get(action, container, target.ip(), "kube-probe/1.36", limit).await {
            Ok(200..400) => Ok(()),
            Ok(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
            Err(error @ CallError::Port(_)) => Err(error.to_string()),
            Err(error) => {
                let port = handler::port(container, &action.port).unwrap_or(0);
                Err(format!(
                    "Get \"{}\": {error}",
                    handler::url(action, target.ip(), port)
                ))
            }
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let port = handler::port(container, &action.port).map_err(|e| e.to_string())?;
        let host = action
            .host
            .clone()
            .filter(|h| !h.is_empty())
            .or_else(|| target.ip().map(|ip| ip.to_string()));
        let host = host.ok_or_else(|| CallError::NoAddress.to_string())?;
        return handler::connect(&host, port, limit)
            .await
            .map(drop)
            .map_err(|e| e.to_string());
    }
    if let Some(action) = &probe.grpc {
        let host = target
            .ip()
            .ok_or_else(|| CallError::NoAddress.to_string())?
            .to_string();
        let port =
            u16::try_from(action.port).map_err(|_| CallError::Port(action.port.to_string()).to_string())?;
        let service = action.service.clone().unwrap_or_default();
        return grpc::check(&host, port, &service, limit).await;
    }
    Err("probe has no handler".to_owned())
}
