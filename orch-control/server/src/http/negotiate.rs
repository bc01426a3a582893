//! In which form a client wants objects: `Accept`, as Kubernetes reads it.

use http::{HeaderMap, header};
use orch_api::{ApiError, table::IncludeObject};

use super::target::Query;

/// A form of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Object,
    /// A `meta.k8s.io/v1` Table.
    Table(IncludeObject),
    /// Metadata alone.
    Partial,
}

/// The first form in `Accept` that can be given.
///
/// # Errors
/// 406 when none can.
pub fn form(headers: &HeaderMap, query: &Query) -> Result<Form, ApiError> {
    let mut accepts = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|v| v.split(','));
    let mut any = false;
    let found = accepts.find_map(|clause| {
        any = true;
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "application/*" | "*/*" | "") {
            return None;
        }
        let (mut kind, mut version, mut group, mut stream) = ("", "", "", "");
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key {
                "as" => kind = value,
                "v" => version = value,
                "g" => group = value,
                "stream" => stream = value,
                _ => {}
            }
        }
        match (kind, group, version) {
            _ if !matches!(stream, "" | "watch") => None,
            ("", ..) => Some(Form::Object),
            ("Table", "meta.k8s.io", "v1") => Some(Form::Table(IncludeObject::Metadata)),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                Some(Form::Partial)
            }
            _ => None,
        }
    });
    match found {
        Some(Form::Table(_)) => Ok(Form::Table(IncludeObject::parse(
            query.get("includeObject").unwrap_or(""),
        )?)),
        Some(form) => Ok(form),
        None if !any => Ok(Form::Object),
        None => Err(ApiError::not_acceptable(&["application/json"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expect: Option<Form>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        assert_eq!(form(&headers, &Query::default()).ok(), expect, "{accept}");
    }

    #[test]
    fn the_first_form_that_can_be_given_is() {
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some(Form::Table(IncludeObject::Metadata)),
        );
        check(
            "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some(Form::Object),
        );
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some(Form::Object),
        );
        check("application/vnd.kubernetes.protobuf", None);
        check(
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            Some(Form::Partial),
        );
        check("*/*", Some(Form::Object));
    }
}
