//! Images: the pull policy, and the secrets that open a registry.

use std::time::Instant;

use base64::Engine as _;
use k8s_openapi::api::core::v1::{Container, Pod};
use orch_runtime::{ImageInfo, Reference, RegistryAuth, RuntimeError};
use serde::Deserialize;

use super::{
    context::{Context, Target},
    event::StartFailure,
};

/// Makes sure that the container's image is on the node, as its pull policy says, and tells about it in events.
///
/// # Errors
/// The waiting reason and its message.
pub async fn ensure(target: &Target, container: &Container) -> Result<ImageInfo, StartFailure> {
    let context = &target.context;
    let image = container.image.as_deref().unwrap_or_default();
    let warn = |reason, message: String| context.warn(&target.pod, Some(target.slot), reason, message);
    let fail = |reason: &'static str, message: String| {
        warn("Failed", format!("Error: {reason}"));
        StartFailure::Image { reason, message }
    };
    let reference = match Reference::parse(image) {
        Ok(reference) => reference,
        Err(error) => {
            let message = format!("Failed to apply default image tag \"{image}\": {error}");
            warn("InspectFailed", message.clone());
            return Err(fail("InvalidImageName", message));
        }
    };
    let policy = match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ if reference.digest.is_none() && matches!(reference.tag.as_deref(), None | Some("latest")) => {
            "Always"
        }
        _ => "IfNotPresent",
    };
    if policy != "Always" {
        let present = context.host.image(image).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{image}\": {error}");
            warn("InspectFailed", message.clone());
            fail("ImageInspectError", message)
        })?;
        if let Some(info) = present {
            let text = format!("Container image \"{image}\" already present on machine");
            context.tell(&target.pod, target.slot, "Pulled", text);
            return Ok(info);
        }
    }
    if policy == "Never" {
        let message = format!("Container image \"{image}\" is not present with pull policy of Never");
        warn("ErrImageNeverPull", message.clone());
        return Err(fail("ErrImageNeverPull", message));
    }
    pull(target, image, &reference).await.map_err(|error| {
        warn("Failed", format!("Failed to pull image \"{image}\": {error}"));
        fail("ErrImagePull", error.to_string())
    })
}

async fn pull(target: &Target, image: &str, reference: &Reference) -> Result<ImageInfo, RuntimeError> {
    let context = &target.context;
    context.tell(
        &target.pod,
        target.slot,
        "Pulling",
        format!("Pulling image \"{image}\""),
    );
    let asked = Instant::now();
    let auth = credentials(context, &target.pod, reference).await;
    let lock = context.pulls.lock().entry(image.to_owned()).or_default().clone();
    let turn = lock.lock().await;
    let began = Instant::now();
    let result = context.host.pull(image, auth).await;
    drop(turn);
    drop(lock);
    context
        .pulls
        .lock()
        .retain(|_, l| std::sync::Arc::strong_count(l) > 1);
    let info = result?;
    let seconds = |since: Instant| format!("{:.3}s", since.elapsed().as_secs_f64());
    let text = format!(
        "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
        seconds(began),
        seconds(asked),
        info.size
    );
    context.tell(&target.pod, target.slot, "Pulled", text);
    Ok(info)
}

/// The first credentials among the pod's pull secrets that fit the registry.
async fn credentials(context: &Context, pod: &Pod, reference: &Reference) -> Option<RegistryAuth> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for secret in pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten())
    {
        let found = match context.objects.secret(namespace, &secret.name).await {
            Ok(found) => found,
            Err(error) => {
                let text = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed: \
                     {error}",
                    secret.name
                );
                context.warn(pod, None, "FailedToRetrieveImagePullSecret", text);
                continue;
            }
        };
        for (key, value) in found.data.into_iter().flatten() {
            let registries = match key.as_str() {
                ".dockerconfigjson" => serde_json::from_slice::<DockerConfig>(&value.0).map(|c| c.auths),
                ".dockercfg" => serde_json::from_slice(&value.0),
                _ => continue,
            };
            match registries {
                Ok(registries) => {
                    if let Some(auth) = choose(&registries, reference) {
                        return Some(auth);
                    }
                }
                Err(error) => {
                    let text = format!(
                        "secret \"{}\" holds no Docker configuration: {error}",
                        secret.name
                    );
                    context.warn(pod, None, "FailedToRetrieveImagePullSecret", text);
                }
            }
        }
    }
    None
}

type Registries = std::collections::BTreeMap<String, DockerAuth>;

/// `~/.docker/config.json`, as far as it matters here.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: Registries,
}

#[derive(Deserialize, Default)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// base64 of `username:password`; wins over nothing but their absence.
    #[serde(default)]
    auth: String,
}

/// The entry whose key is the longest prefix of the image's registry and repository.
fn choose(registries: &Registries, reference: &Reference) -> Option<RegistryAuth> {
    let hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let fits = |key: &str| -> Option<usize> {
        let key = key
            .trim_start_matches("https://")
            .trim_start_matches("http://")
            .trim_end_matches('/');
        let (host, path) = key.split_once('/').unwrap_or((key, ""));
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        let same = host == reference.registry || hub(host) && hub(&reference.registry);
        let below = reference
            .repository
            .strip_prefix(path)
            .is_some_and(|r| path.is_empty() || r.is_empty() || r.starts_with('/'));
        (same && below).then_some(path.len())
    };
    let (_, entry) = registries
        .iter()
        .filter_map(|(k, v)| Some((fits(k)?, v)))
        .max_by_key(|(n, _)| *n)?;
    if !entry.username.is_empty() {
        return Some(RegistryAuth {
            username: entry.username.clone(),
            password: entry.password.clone(),
        });
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(entry.auth.trim())
        .ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(RegistryAuth {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

/// The name of an image for `imageID`: its repository digest, else its configuration's digest.
#[must_use]
pub fn image_id(info: &ImageInfo) -> String {
    info.repo_digests
        .first()
        .cloned()
        .unwrap_or_else(|| info.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_the_closest_registry_entry() {
        let config: DockerConfig = serde_json::from_str(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "aHViOnB3OjE="},
                "reg.example:5000": {"username": "u", "password": "p"},
                "reg.example:5000/team": {"username": "t", "password": "p"}, "bad": {"auth": "?"}}}"#,
        )
        .unwrap();
        let user = |registry: &str, repository: &str| {
            let reference = Reference {
                registry: registry.into(),
                repository: repository.into(),
                tag: None,
                digest: None,
            };
            choose(&config.auths, &reference).map(|a| format!("{}/{}", a.username, a.password))
        };
        assert_eq!(user("docker.io", "library/nginx").as_deref(), Some("hub/pw:1"));
        assert_eq!(user("reg.example:5000", "other/x").as_deref(), Some("u/p"));
        assert_eq!(user("reg.example:5000", "team/x").as_deref(), Some("t/p"));
        assert_eq!(user("reg.example:5000", "teams/x").as_deref(), Some("u/p"));
        assert_eq!(user("reg.example", "team/x"), None);
        assert_eq!(user("bad", "x"), None);
    }
}
