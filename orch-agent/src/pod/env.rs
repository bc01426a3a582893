//! The environment of a container: services, `envFrom`, `env`, with `$(VAR)` expanded.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

use super::{
    context::Context,
    expand::expand,
    fields::{self, FieldError},
    objects::ObjectError,
};

/// Why an environment cannot be made; the text is that of Kubernetes' `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret is missing.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A key is missing.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field cannot be resolved.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The source is of a kind that this agent does not support.
    #[error("env {0}: valueFrom.fileKeyRef is not supported by this node")]
    Unsupported(String),
}

/// The environment of `container`, without the image's own.
///
/// # Errors
/// When something it refers to is missing.
pub async fn environment(
    context: &Context,
    pod: &Pod,
    container: &Container,
    ips: &[IpAddr],
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod
        .spec
        .as_ref()
        .and_then(|s| s.enable_service_links)
        .unwrap_or(true);
    let mut known = services(&context.cluster.services.state(), namespace, links);
    let mut given = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let values = env_from(context, namespace, from).await?;
        for (key, value) in values {
            put(&mut known, &mut given, format!("{prefix}{key}"), value);
        }
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            None => {
                let text = var.value.as_deref().unwrap_or_default();
                Some(expand(text, |name| known.get(name).map(String::as_str)))
            }
            Some(source) => value_from(context, pod, container, ips, &var.name, source).await?,
        };
        if let Some(value) = value {
            put(&mut known, &mut given, var.name.clone(), value);
        }
    }
    // What the pod gives itself comes last and in its own order.
    let mut all: Vec<(String, String)> = Vec::with_capacity(known.len());
    all.extend(
        known
            .iter()
            .filter(|(k, _)| !given.contains(*k))
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    all.extend(given.into_iter().filter_map(|k| known.remove_entry(&k)));
    Ok(all)
}

fn put(known: &mut BTreeMap<String, String>, given: &mut Vec<String>, name: String, value: String) {
    if name.is_empty() || name.contains(['=', '\0']) {
        return;
    }
    if !given.contains(&name) {
        given.push(name.clone());
    }
    known.insert(name, value);
}

async fn env_from(
    context: &Context,
    namespace: &str,
    from: &k8s_openapi::api::core::v1::EnvFromSource,
) -> Result<BTreeMap<String, String>, EnvError> {
    if let Some(source) = &from.config_map_ref {
        return match context.objects.config_map(namespace, &source.name).await {
            Ok(map) => Ok(map.data.unwrap_or_default()),
            Err(ObjectError::NotFound { .. }) if source.optional == Some(true) => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        };
    }
    if let Some(source) = &from.secret_ref {
        return match context.objects.secret(namespace, &source.name).await {
            Ok(secret) => Ok(secret
                .data
                .into_iter()
                .flatten()
                .map(|(k, v)| (k, text(&v.0)))
                .collect()),
            Err(ObjectError::NotFound { .. }) if source.optional == Some(true) => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        };
    }
    Ok(BTreeMap::new())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The value of one `valueFrom`; `None` when it is optional and missing.
async fn value_from(
    context: &Context,
    pod: &Pod,
    container: &Container,
    ips: &[IpAddr],
    variable: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return Ok(Some(fields::field(
            pod,
            &field.field_path,
            &context.facts(),
            ips,
        )?));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(fields::resource(
            pod,
            &container.name,
            selector,
            &context.facts(),
        )?));
    }
    let (kind, name, key, optional, found) = if let Some(s) = &source.config_map_key_ref {
        let found = context.objects.config_map(namespace, &s.name).await;
        let found = found.map(|m| m.data.and_then(|mut d| d.remove(&s.key)));
        ("ConfigMap", &s.name, &s.key, s.optional, found)
    } else if let Some(s) = &source.secret_key_ref {
        let found = context.objects.secret(namespace, &s.name).await;
        let found = found.map(|m| m.data.and_then(|mut d| d.remove(&s.key)).map(|v| text(&v.0)));
        ("Secret", &s.name, &s.key, s.optional, found)
    } else {
        return Err(EnvError::Unsupported(variable.to_owned()));
    };
    match found {
        Ok(Some(value)) => Ok(Some(value)),
        Ok(None) | Err(ObjectError::NotFound { .. }) if optional == Some(true) => Ok(None),
        Ok(None) => Err(EnvError::Key {
            kind,
            namespace: namespace.to_owned(),
            name: name.clone(),
            key: key.clone(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// The variables that name services: host and port, and Docker's links; `kubernetes` always, the namespace's own
/// services when `links` is set.
#[must_use]
pub fn services(all: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let is_api = |s: &Service| {
        s.metadata.name.as_deref() == Some("kubernetes") && s.metadata.namespace.as_deref() == Some("default")
    };
    let own = |s: &Service| links && s.metadata.namespace.as_deref() == Some(namespace);
    // The namespace's own services come second, so that they win over the API's of the same name.
    for service in all
        .iter()
        .filter(|s| is_api(s))
        .chain(all.iter().filter(|s| own(s) && !is_api(s)))
    {
        one_service(service, &mut env);
    }
    env
}

fn one_service(service: &Service, env: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = match spec.cluster_ip.as_deref() {
        None | Some("" | "None") => return,
        Some(ip) => ip,
    };
    let upper = |s: &str| s.to_ascii_uppercase().replace('-', "_");
    let name = upper(service.metadata.name.as_deref().unwrap_or_default());
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    env.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    env.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    for (index, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            env.insert(
                format!("{name}_SERVICE_PORT_{}", upper(port_name)),
                port.port.to_string(),
            );
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_ascii_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        if index == 0 {
            env.insert(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
        env.insert(format!("{prefix}_PROTO"), lower);
        env.insert(format!("{prefix}_PORT"), port.port.to_string());
        env.insert(format!("{prefix}_ADDR"), ip.to_owned());
        env.insert(prefix, url);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> Arc<Service> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": namespace}, "spec": {
                "clusterIP": ip, "ports": [{"name": "http-web", "port": 80, "protocol": "TCP"},
                    {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn names_services_as_kubernetes_and_docker_do() {
        let all = [
            service("default", "kubernetes", "10.96.0.1"),
            service("shop", "redis-primary", "10.96.0.7"),
            service("shop", "headless", "None"),
            service("other", "hidden", "10.96.0.8"),
        ];
        let env = services(&all, "shop", true);
        assert_eq!(env["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        let want = [
            ("REDIS_PRIMARY_SERVICE_HOST", "10.96.0.7"),
            ("REDIS_PRIMARY_SERVICE_PORT", "80"),
            ("REDIS_PRIMARY_SERVICE_PORT_HTTP_WEB", "80"),
            ("REDIS_PRIMARY_SERVICE_PORT_DNS", "53"),
            ("REDIS_PRIMARY_PORT", "tcp://10.96.0.7:80"),
            ("REDIS_PRIMARY_PORT_80_TCP", "tcp://10.96.0.7:80"),
            ("REDIS_PRIMARY_PORT_53_UDP", "udp://10.96.0.7:53"),
            ("REDIS_PRIMARY_PORT_53_UDP_PROTO", "udp"),
            ("REDIS_PRIMARY_PORT_53_UDP_PORT", "53"),
            ("REDIS_PRIMARY_PORT_53_UDP_ADDR", "10.96.0.7"),
        ];
        for (key, value) in want {
            assert_eq!(env.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert!(
            !env.keys()
                .any(|k| k.starts_with("HEADLESS") || k.starts_with("HIDDEN"))
        );
        assert!(
            services(&all, "shop", false)
                .keys()
                .all(|k| k.starts_with("KUBERNETES"))
        );
    }

    #[test]
    fn the_api_is_always_named_and_a_namespaces_own_service_of_that_name_wins() {
        let all = [
            service("shop", "kubernetes", "fd00:10:96::7"),
            service("default", "kubernetes", "10.96.0.1"),
            service("default", "web", "10.96.0.2"),
        ];
        let host = |namespace, links| services(&all, namespace, links)["KUBERNETES_SERVICE_HOST"].clone();
        assert_eq!(host("shop", true), "fd00:10:96::7");
        assert_eq!(host("shop", false), "10.96.0.1");
        assert_eq!(host("default", true), "10.96.0.1");
        let env = services(&all, "shop", true);
        assert_eq!(env["KUBERNETES_PORT"], "tcp://[fd00:10:96::7]:80");
        assert_eq!(env["KUBERNETES_PORT_53_UDP_ADDR"], "fd00:10:96::7");
        assert!(services(&all, "default", true).contains_key("WEB_SERVICE_HOST"));
        assert!(!services(&all, "default", false).contains_key("WEB_SERVICE_HOST"));
    }

    #[test]
    fn services_without_an_address_have_no_variables() {
        let mut external = Service::clone(&service("shop", "ext", ""));
        if let Some(spec) = &mut external.spec {
            spec.type_ = Some("ExternalName".into());
            spec.cluster_ip = None;
        }
        let all = [
            Arc::new(external),
            service("shop", "headless", "None"),
            service("shop", "pending", ""),
        ];
        assert!(services(&all, "shop", true).is_empty());
    }
}
