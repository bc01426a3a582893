//! Security contexts of pod and container, merged into what the runtime is told.

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, SeccompProfile as ApiSeccomp, SecurityContext,
};
use orch_runtime::{ContainerSpec, ImageInfo, SeccompProfile, UserSpec};

use super::plan::pod_text;

/// A security context that cannot be carried out; the texts are Kubernetes'.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecurityError {
    /// `runAsNonRoot` with an explicit root.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunAsRoot {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot` with an image of root's.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRoot {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot` with an image whose user is a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: \"{pod}\", container: {container})"
    )]
    ImageUserName {
        /// The name.
        user: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// A profile that this agent cannot load.
    #[error("seccomp profile type {0} is not supported by this node")]
    Seccomp(String),
    /// An id that is no user or group id.
    #[error("id {0} is not a user or group id")]
    Id(i64),
}

/// Writes the merged security context of `container` into `spec`.
///
/// # Errors
/// When the context forbids the image or asks for what the node cannot do.
pub fn apply(
    pod: &Pod,
    container: &Container,
    image: &ImageInfo,
    spec: &mut ContainerSpec,
) -> Result<(), SecurityError> {
    let pod_context = pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.clone())
        .unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    check_non_root(pod, container, image, &pod_context, &own)?;
    spec.user = user(&pod_context, &own)?;
    spec.privileged = own.privileged == Some(true);
    spec.readonly_rootfs = own.read_only_root_filesystem == Some(true);
    spec.no_new_privileges = own.allow_privilege_escalation == Some(false);
    if let Some(capabilities) = own.capabilities {
        spec.add_capabilities = capabilities.add.unwrap_or_default();
        spec.drop_capabilities = capabilities.drop.unwrap_or_default();
    }
    spec.seccomp = seccomp(
        own.seccomp_profile
            .as_ref()
            .or(pod_context.seccomp_profile.as_ref()),
    )?;
    if own.proc_mount.as_deref() == Some("Unmasked") {
        spec.masked_paths = Some(vec![]);
        spec.readonly_paths = Some(vec![]);
    }
    Ok(())
}

fn id(number: i64) -> Result<u32, SecurityError> {
    u32::try_from(number).map_err(|_| SecurityError::Id(number))
}

fn user(pod: &PodSecurityContext, own: &SecurityContext) -> Result<UserSpec, SecurityError> {
    let mut supplementary = Vec::new();
    for group in pod.supplemental_groups.iter().flatten().chain(&pod.fs_group) {
        supplementary.push(id(*group)?);
    }
    Ok(UserSpec {
        uid: own.run_as_user.or(pod.run_as_user).map(id).transpose()?,
        gid: own.run_as_group.or(pod.run_as_group).map(id).transpose()?,
        username: None,
        supplementary,
        strict_groups: pod.supplemental_groups_policy.as_deref() == Some("Strict"),
    })
}

fn seccomp(profile: Option<&ApiSeccomp>) -> Result<SeccompProfile, SecurityError> {
    match profile.map(|p| p.type_.as_str()) {
        None | Some("Unconfined") => Ok(SeccompProfile::Unconfined),
        Some("RuntimeDefault") => Ok(SeccompProfile::RuntimeDefault),
        Some(other) => Err(SecurityError::Seccomp(other.to_owned())),
    }
}

fn check_non_root(
    pod: &Pod,
    container: &Container,
    image: &ImageInfo,
    pod_context: &PodSecurityContext,
    own: &SecurityContext,
) -> Result<(), SecurityError> {
    if own.run_as_non_root.or(pod_context.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let (pod, container) = (pod_text(pod), container.name.clone());
    match own.run_as_user.or(pod_context.run_as_user) {
        Some(0) => return Err(SecurityError::RunAsRoot { pod, container }),
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image.user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(0) => Err(SecurityError::ImageRoot { pod, container }),
        Ok(_) => Ok(()),
        Err(_) if user.is_empty() => Err(SecurityError::ImageRoot { pod, container }),
        Err(_) => Err(SecurityError::ImageUserName {
            user: user.to_owned(),
            pod,
            container,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::testing::image;

    fn check(pod_context: Value, own: Value, user: &str) -> Result<ContainerSpec, SecurityError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_context,
                "containers": [{"name": "c", "image": "i", "securityContext": own}]}}))
        .unwrap();
        let mut spec = ContainerSpec::default();
        let image = ImageInfo {
            user: user.to_owned(),
            ..image("i")
        };
        apply(&pod, &pod.spec.as_ref().unwrap().containers[0], &image, &mut spec).map(|()| spec)
    }

    #[test]
    fn root_is_refused_where_it_is_forbidden() {
        let strict = json!({"runAsNonRoot": true});
        assert!(matches!(
            check(strict.clone(), json!({}), ""),
            Err(SecurityError::ImageRoot { .. })
        ));
        assert!(matches!(
            check(strict.clone(), json!({}), "0:0"),
            Err(SecurityError::ImageRoot { .. })
        ));
        assert!(matches!(
            check(strict.clone(), json!({}), "www"),
            Err(SecurityError::ImageUserName { .. })
        ));
        assert!(matches!(
            check(strict.clone(), json!({"runAsUser": 0}), "7"),
            Err(SecurityError::RunAsRoot { .. })
        ));
        assert!(check(strict.clone(), json!({}), "1000").is_ok());
        assert!(check(strict.clone(), json!({"runAsUser": 5}), "").is_ok());
        assert!(check(strict, json!({"runAsNonRoot": false}), "").is_ok());
        let text = check(json!({"runAsNonRoot": true}), json!({}), "")
            .unwrap_err()
            .to_string();
        assert_eq!(
            text,
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let pod = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
            "seccompProfile": {"type": "RuntimeDefault"}});
        let spec = check(
            pod,
            json!({"runAsUser": 9, "allowPrivilegeEscalation": false}),
            "",
        )
        .unwrap();
        assert_eq!((spec.user.uid, spec.user.gid), (Some(9), Some(2)));
        assert_eq!(spec.user.supplementary, [4, 3]);
        assert_eq!(spec.seccomp, SeccompProfile::RuntimeDefault);
        assert!(spec.no_new_privileges);
        assert!(check(json!({"seccompProfile": {"type": "Localhost"}}), json!({}), "").is_err());
        assert_eq!(
            check(json!({"runAsUser": -1}), json!({}), "").unwrap_err(),
            SecurityError::Id(-1)
        );
    }
}
