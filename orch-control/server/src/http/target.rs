//! What a request is about: Kubernetes' URL layout, taken apart.

use http::Method;
use percent_encoding::percent_decode_str;

/// The verbs of Kubernetes' authorisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// One object.
    Get,
    /// A collection.
    List,
    /// Changes.
    Watch,
    /// A new object.
    Create,
    /// A whole object.
    Update,
    /// A part of an object.
    Patch,
    /// One object away.
    Delete,
    /// A collection away.
    DeleteCollection,
    /// A method that no verb stands for; only what is proxied takes it.
    Other,
}

impl Verb {
    /// As it stands in messages, metrics and access reviews.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Other => "",
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(self, Verb::Get | Verb::List | Verb::Watch)
    }
}

/// A request for a resource: `/api/v1/...` or `/apis/GROUP/VERSION/...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    /// E.g. `v1`.
    pub version: String,
    /// `None` for cluster-scoped resources, and for all namespaces.
    pub namespace: Option<String>,
    /// The plural, e.g. `pods`.
    pub resource: String,
    /// `None` for the collection.
    pub name: Option<String>,
    /// E.g. `status`.
    pub subresource: Option<String>,
    /// What follows the subresource, from its slash on and as it was sent (`proxy` uses it).
    pub rest: String,
}

/// Takes `path` apart. `None` when it is not a resource's: discovery, health, nonsense.
#[must_use]
pub fn parse(path: &str) -> Option<Resource> {
    let mut segments = path.strip_prefix('/')?.split('/');
    let (group, version) = match segments.next()? {
        "api" => (String::new(), segments.next()?),
        "apis" => (decode(segments.next()?)?, segments.next()?),
        _ => return None,
    };
    let version = decode(version)?;
    let mut rest: Vec<&str> = segments.collect();
    // A slash at the end is let pass, as everywhere in Kubernetes.
    let slash = rest.last() == Some(&"");
    if slash {
        rest.pop();
    }
    // What comes after a subresource is for somebody else to read.
    let own = if rest.first() == Some(&"namespaces") { 5 } else { 3 };
    if rest.is_empty() || rest.iter().take(own).any(|segment| segment.is_empty()) {
        return None;
    }
    let (namespace, rest) = match rest.as_slice() {
        // The namespace itself, or one of its own subresources.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => {
            (None, rest.as_slice())
        }
        ["namespaces", namespace, rest @ ..] => (Some(decode(namespace)?), rest),
        rest => (None, rest),
    };
    let (resource, name, subresource, tail): (&str, Option<&str>, Option<&str>, &[&str]) = match rest {
        [resource] => (resource, None, None, &[]),
        [resource, name] => (resource, Some(name), None, &[]),
        [resource, name, subresource, tail @ ..] => (resource, Some(name), Some(subresource), tail),
        [] => return None,
    };
    Some(Resource {
        group,
        version,
        namespace,
        resource: decode(resource)?,
        name: name.map(decode).transpose_some()?,
        subresource: subresource.map(decode).transpose_some()?,
        rest: match (tail, slash && subresource.is_some()) {
            ([], false) => String::new(),
            ([], true) => "/".to_owned(),
            (tail, slash) => format!("/{}{}", tail.join("/"), if slash { "/" } else { "" }),
        },
    })
}

/// The verb of a request; `None` when the method means nothing here.
#[must_use]
pub fn verb(method: &Method, resource: &Resource, watch: bool) -> Option<Verb> {
    let named = resource.name.is_some();
    Some(match *method {
        Method::GET | Method::HEAD if watch && resource.subresource.is_none() => Verb::Watch,
        Method::GET | Method::HEAD if named => Verb::Get,
        Method::GET | Method::HEAD => Verb::List,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch,
        Method::DELETE if named => Verb::Delete,
        Method::DELETE => Verb::DeleteCollection,
        _ if resource.subresource.as_deref() == Some("proxy") => Verb::Other,
        _ => return None,
    })
}

fn decode(segment: &str) -> Option<String> {
    percent_decode_str(segment)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}

trait TransposeSome<T> {
    /// `Some(None)` means absent, `None` means undecodable.
    fn transpose_some(self) -> Option<Option<T>>;
}

impl<T> TransposeSome<T> for Option<Option<T>> {
    fn transpose_some(self) -> Option<Option<T>> {
        match self {
            None => Some(None),
            Some(None) => None,
            Some(some) => Some(some),
        }
    }
}

/// The query string, decoded, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `query`.
    #[must_use]
    pub fn parse(query: Option<&str>) -> Self {
        Self(
            form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The first value of `key`; `None` when absent or empty.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(own, _)| own == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// Every value of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(own, _)| own == key)
            .map(|(_, value)| value.as_str())
    }

    /// Whether `key` is there and not `false` or `0`: Kubernetes' way to read a flag.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.0
            .iter()
            .find(|(own, _)| own == key)
            .is_some_and(|(_, value)| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expect: &str) {
        let shown = parse(path).map_or_else(
            || "-".to_owned(),
            |r| {
                let or = |s: Option<String>| s.unwrap_or_else(|| "-".into());
                format!(
                    "{}|{}|{}|{}|{}|{}|{}",
                    r.group,
                    r.version,
                    or(r.namespace),
                    r.resource,
                    or(r.name),
                    or(r.subresource),
                    r.rest
                )
            },
        );
        assert_eq!(shown, expect, "{path}");
    }

    #[test]
    fn paths_are_taken_apart_as_in_kubernetes() {
        check("/api/v1/pods", "|v1|-|pods|-|-|");
        check("/api/v1/namespaces", "|v1|-|namespaces|-|-|");
        check("/api/v1/namespaces/a", "|v1|-|namespaces|a|-|");
        check("/api/v1/namespaces/a/finalize", "|v1|-|namespaces|a|finalize|");
        check("/api/v1/namespaces/a/pods", "|v1|a|pods|-|-|");
        check("/api/v1/namespaces/a/pods/b/log", "|v1|a|pods|b|log|");
        check("/api/v1/nodes/n/proxy/a/b", "|v1|-|nodes|n|proxy|/a/b");
        check("/api/v1/namespaces/a/pods/b/proxy", "|v1|a|pods|b|proxy|");
        check("/api/v1/namespaces/a/pods/b/proxy/", "|v1|a|pods|b|proxy|/");
        check("/api/v1/namespaces/a/pods/b/proxy/c/", "|v1|a|pods|b|proxy|/c/");
        check(
            "/api/v1/namespaces/a/services/https:b:80/proxy//c%2Fd",
            "|v1|a|services|https:b:80|proxy|//c%2Fd",
        );
        check(
            "/apis/apps/v1/namespaces/a/deployments/b%2Dc",
            "apps|v1|a|deployments|b-c|-|",
        );
        check("/apis/apps/v1/deployments/", "apps|v1|-|deployments|-|-|");
        check("/apis/apps/v1", "-");
        check("/api/v1/namespaces//pods", "-");
        check("/healthz", "-");
    }

    #[test]
    fn flags_are_read_as_in_kubernetes() {
        let query = Query::parse(Some("a=1&b=true&c=false&d=0&e&f=yes&l=app%3Dx"));
        let shown: Vec<bool> = ["a", "b", "c", "d", "e", "f", "g"]
            .iter()
            .map(|key| query.flag(key))
            .collect();
        assert_eq!(shown, [true, true, false, false, true, true, false]);
        assert_eq!(query.get("l"), Some("app=x"));
    }
}
