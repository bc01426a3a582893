//! Image references as people write them, made whole: `web:1` is `docker.io/library/web:1`.

use std::fmt;

use crate::RuntimeError;

/// A normalised reference (grammar: the `reference` package of the distribution project).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `host` or `host:port`, `docker.io` by default.
    pub registry: String,
    /// Path within the registry, `library/…` for Docker's official images.
    pub repository: String,
    /// Tag; `latest` when neither tag nor digest is given.
    pub tag: Option<String>,
    /// Digest, `algorithm:hex`; wins over the tag.
    pub digest: Option<String>,
}

/// The longest name (registry and repository) that registries accept.
const NAME_MAX: usize = 255;

impl Reference {
    /// Reads and completes a reference.
    pub fn parse(text: &str) -> Result<Self, RuntimeError> {
        parse(text).map_err(|reason| RuntimeError::BadReference {
            reference: text.to_owned(),
            reason: reason.to_owned(),
        })
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    const FORMAT: &str = "invalid reference format";
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let (algorithm, hex) = digest.split_once(':').ok_or(FORMAT)?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err("unsupported digest algorithm"),
        };
        if hex.len() != length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("invalid checksum digest format");
        }
    }
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before the last slash belongs to the registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        let first = tag.bytes().next().ok_or(FORMAT)?;
        if tag.len() > 128
            || matches!(first, b'.' | b'-')
            || !tag
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        {
            return Err(FORMAT);
        }
    }
    let (registry, repository) = match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (host, path.to_owned())
        }
        Some(_) => ("docker.io", name.to_owned()),
        None => ("docker.io", format!("library/{name}")),
    };
    let registry = if registry == "index.docker.io" {
        "docker.io"
    } else {
        registry
    };
    let repository = match (registry, repository.contains('/')) {
        ("docker.io", false) => format!("library/{repository}"),
        _ => repository,
    };
    if registry.is_empty()
        || !registry
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
    {
        return Err(FORMAT);
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    if !repository.split('/').all(component_is_valid) {
        return Err(FORMAT);
    }
    if registry.len() + 1 + repository.len() > NAME_MAX {
        return Err("repository name must not be more than 255 characters");
    }
    let tag = match (tag, digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag,
        digest: digest.map(str::to_owned),
    })
}

/// Lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn component_is_valid(component: &str) -> bool {
    let bytes = component.as_bytes();
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes
        .split(word)
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            separator == b"."
                || separator == b"_"
                || separator == b"__"
                || separator.iter().all(|b| *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn short_names_are_completed() {
        assert_eq!(normal("web:1"), "docker.io/library/web:1");
        assert_eq!(normal("web"), "docker.io/library/web:latest");
        assert_eq!(normal("team/web"), "docker.io/team/web:latest");
        assert_eq!(normal("docker.io/web"), "docker.io/library/web:latest");
        assert_eq!(normal("index.docker.io/team/web:2"), "docker.io/team/web:2");
        assert_eq!(normal("registry.k8s.io/pause:3.10"), "registry.k8s.io/pause:3.10");
        assert_eq!(normal("localhost/web"), "localhost/web:latest");
        assert_eq!(
            normal("localhost:5000/a/b__c-d.e:x"),
            "localhost:5000/a/b__c-d.e:x"
        );
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        assert_eq!(
            normal(&format!("web@{digest}")),
            format!("docker.io/library/web@{digest}")
        );
        assert_eq!(
            normal(&format!("web:1@{digest}")),
            format!("docker.io/library/web:1@{digest}")
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            ":1",
            "web:",
            "Web",
            "web::1",
            "a//b",
            "web@sha256:12",
            "-web",
            "web:.1",
            "a b",
            "web..x",
            "http://x/y",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
