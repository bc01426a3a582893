//! Get and list: from the watch cache, whose bytes are the answer.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;
use orch_api::{
    ApiError, Kind,
    selector::{FieldSelector, LabelSelector},
    table,
};
use orch_store::{ListOptions, Revision, cache::Object};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Call, meta};
use crate::http::negotiate::Form;

/// What a list, watch or deletecollection selects.
#[derive(Clone, Debug)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// From the parameters; a name in the path selects by it.
    ///
    /// # Errors
    /// 400 when a selector cannot be parsed or names an unknown field.
    pub fn read(call: &Call) -> Result<Self, ApiError> {
        let mut fields = call.query.get("fieldSelector").unwrap_or_default().to_owned();
        if !call.name.is_empty() {
            let separator = if fields.is_empty() { "" } else { "," };
            fields = format!("{fields}{separator}metadata.name={}", call.name);
        }
        Ok(Self {
            labels: LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default())?,
            fields: FieldSelector::parse(call.kind, &fields)?,
        })
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether it selects `object`.
    #[must_use]
    pub fn matches(&self, kind: &'static Kind, object: &Object) -> bool {
        if !self
            .labels
            .matches_by(|key| object.labels.get(key).map(String::as_str))
        {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        if kind.stored_kind() == kind {
            return self.fields.matches_fields(&object.fields);
        }
        // Selectors of a converted kind name its own fields.
        serde_json::from_slice(&object.json).is_ok_and(|mut value| {
            kind.from_stored(&mut value);
            self.fields.matches(kind, &value)
        })
    }
}

/// One object.
///
/// # Errors
/// 404 when it is not there.
pub async fn get(call: &Call) -> Result<Bytes, ApiError> {
    match call.query.get("resourceVersion") {
        None => call.collection.fresh().await?,
        Some("0") => call.collection.cache.ready().await,
        Some(revision) => call.collection.reach(meta::parse_revision(revision)?).await?,
    }
    let object = call
        .collection
        .get(&call.namespace, &call.name)
        .ok_or_else(|| call.not_found())?;
    encode_one(call, &object.json)
}

/// The bytes of an object in the form that the call asked for.
///
/// # Errors
/// When the stored bytes are no JSON.
pub fn encode_one(call: &Call, json: &Bytes) -> Result<Bytes, ApiError> {
    if call.form == Form::Object && call.kind == call.stored() {
        return Ok(json.clone());
    }
    let mut value = parse(json)?;
    call.kind.from_stored(&mut value);
    Ok(encode_value(call, value).into())
}

/// The text of an object (as served) in the form that the call asked for.
#[must_use]
pub fn encode_value(call: &Call, value: Value) -> String {
    match call.form {
        Form::Object => value.to_string(),
        Form::Partial => partial(&value).to_string(),
        Form::Table(include) => {
            let mut rendered = table::render(call.kind, &[&value], include, Timestamp::now());
            rendered["metadata"] = json!({ "resourceVersion": meta::text(&value, "resourceVersion") });
            rendered.to_string()
        }
    }
}

fn partial(value: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"] })
}

fn parse(json: &Bytes) -> Result<Value, ApiError> {
    serde_json::from_slice(json).map_err(ApiError::internal)
}

/// Where the next page begins, and of which state.
#[derive(Serialize, Deserialize)]
struct Continue {
    /// `meta.k8s.io/v1`.
    v: String,
    /// The revision of the list.
    rv: u64,
    /// The last key of the page before, from the kind's prefix on.
    start: String,
}

/// A page, before it is encoded.
struct Page {
    items: Vec<Bytes>,
    revision: Revision,
    /// The key of the last item, when more follow.
    more: Option<String>,
    remaining: Option<u64>,
}

/// Everything the call selects now, for deletecollection.
pub(crate) async fn select(call: &Call) -> Result<Vec<Arc<Object>>, ApiError> {
    let selection = Selection::read(call)?;
    call.collection.fresh().await?;
    let (objects, _) = call
        .collection
        .cache
        .list(&prefix(call), |object| selection.matches(call.kind, object));
    Ok(objects)
}

pub(crate) fn prefix(call: &Call) -> String {
    call.stored()
        .key_prefix(Some(call.namespace.as_str()).filter(|namespace| !namespace.is_empty()))
}

/// A list, or a page of one.
///
/// # Errors
/// 400 for parameters that make no sense, 410 for a page of a list that is too old.
pub async fn list(call: &Call) -> Result<Bytes, ApiError> {
    let selection = Selection::read(call)?;
    let limit = match call.query.get("limit") {
        None | Some("0") => None,
        Some(text) => Some(text.parse::<usize>().map_err(|_| {
            ApiError::bad_request(format!(
                "limit: Invalid value: {text:?}: must be a positive integer"
            ))
        })?),
    };
    let page = match (
        call.query.get("continue"),
        call.query.get("resourceVersion").unwrap_or_default(),
    ) {
        (Some(token), _) => {
            let token = read_token(token)?;
            let after = format!("{}{}", call.stored().key_prefix(None), token.start);
            stored_page(call, &selection, limit, Some(after), Revision(token.rv)).await?
        }
        (None, revision) => {
            let exact = match (call.query.get("resourceVersionMatch"), revision) {
                (None | Some("NotOlderThan"), _) => false,
                (Some("Exact"), "" | "0") => {
                    return Err(ApiError::bad_request(
                        "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                    ));
                }
                (Some("Exact"), _) => true,
                (Some(other), _) => {
                    return Err(ApiError::bad_request(format!(
                        "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                    )));
                }
            };
            match revision {
                "" => call.collection.fresh().await?,
                "0" => call.collection.cache.ready().await,
                revision if exact => {
                    let revision = meta::parse_revision(revision)?;
                    let page = stored_page(call, &selection, limit, None, revision).await?;
                    return encode_list(call, page);
                }
                revision => call.collection.reach(meta::parse_revision(revision)?).await?,
            }
            cached_page(call, &selection, limit)
        }
    };
    encode_list(call, page)
}

fn cached_page(call: &Call, selection: &Selection, limit: Option<usize>) -> Page {
    let (mut objects, revision) = call
        .collection
        .cache
        .list(&prefix(call), |object| selection.matches(call.kind, object));
    let total = objects.len();
    let mut page = Page {
        items: Vec::new(),
        revision,
        more: None,
        remaining: None,
    };
    if let Some(limit) = limit.filter(|limit| *limit < total) {
        objects.truncate(limit);
        page.more = objects.last().map(|object| object.key.clone());
        page.remaining = selection.is_empty().then(|| (total - limit) as u64);
    }
    page.items = objects.iter().map(|object| object.json.clone()).collect();
    page
}

/// A page of the state at `revision`, which only the store still knows.
async fn stored_page(
    call: &Call,
    selection: &Selection,
    limit: Option<usize>,
    after: Option<String>,
    revision: Revision,
) -> Result<Page, ApiError> {
    // With selectors there is no telling how many keys make a page.
    let options = ListOptions {
        limit: limit.filter(|_| selection.is_empty()),
        after,
        at: Some(revision),
    };
    let stored = call
        .state
        .store
        .list(&prefix(call), options)
        .await
        .map_err(|error| meta::store_error(&error, call.kind, &call.name))?;
    let mut page = Page {
        items: Vec::new(),
        revision,
        more: None,
        remaining: None,
    };
    let mut last = None;
    let strategy = call.stored().strategy;
    let extract = move |value: &Value| strategy.fields(value);
    for kv in &stored.items {
        let object = Object::parse(kv, kv.mod_revision, &extract).map_err(ApiError::internal)?;
        if !selection.matches(call.kind, &object) {
            continue;
        }
        if limit.is_some_and(|limit| page.items.len() == limit) {
            page.more = last;
            return Ok(page);
        }
        last = Some(object.key);
        page.items.push(object.json);
    }
    if stored.remaining > 0 {
        page.more = last;
        page.remaining = Some(stored.remaining);
    }
    Ok(page)
}

fn read_token(token: &str) -> Result<Continue, ApiError> {
    URL_SAFE_NO_PAD
        .decode(token.trim_end_matches('='))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Continue>(&bytes).ok())
        .filter(|token| token.v == "meta.k8s.io/v1" && !token.start.contains(".."))
        .ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: encoded start key or version is missing")
        })
}

fn encode_list(call: &Call, page: Page) -> Result<Bytes, ApiError> {
    let mut metadata: BTreeMap<&str, Value> = BTreeMap::new();
    metadata.insert("resourceVersion", json!(page.revision.0.to_string()));
    if let Some(key) = &page.more {
        let start = key
            .strip_prefix(&call.stored().key_prefix(None))
            .unwrap_or(key)
            .to_owned();
        let token = Continue {
            v: "meta.k8s.io/v1".into(),
            rv: page.revision.0,
            start,
        };
        let token = serde_json::to_vec(&token).map_err(ApiError::internal)?;
        metadata.insert("continue", json!(URL_SAFE_NO_PAD.encode(token)));
        if let Some(remaining) = page.remaining {
            metadata.insert("remainingItemCount", json!(remaining));
        }
    }
    if call.form == Form::Object && call.kind == call.stored() {
        return Ok(splice(call.kind, &json!(metadata), &page.items));
    }
    let mut values = page.items.iter().map(parse).collect::<Result<Vec<Value>, _>>()?;
    for value in &mut values {
        call.kind.from_stored(value);
    }
    let list = match call.form {
        Form::Object => json!({
            "kind": call.kind.list_kind, "apiVersion": call.kind.api_version(), "metadata": metadata, "items": values,
        }),
        Form::Partial => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": values.iter().map(partial).collect::<Vec<_>>(),
        }),
        Form::Table(include) => {
            let values: Vec<&Value> = values.iter().collect();
            let mut table = table::render(call.kind, &values, include, Timestamp::now());
            table["metadata"] = json!(metadata);
            table
        }
    };
    Ok(list.to_string().into())
}

/// The list around items that are bytes already.
fn splice(kind: &Kind, metadata: &Value, items: &[Bytes]) -> Bytes {
    let head = format!(
        r#"{{"kind":"{}","apiVersion":"{}","metadata":{metadata},"items":["#,
        kind.list_kind,
        kind.api_version()
    );
    let size = head.len() + 2 + items.iter().map(|item| item.len() + 1).sum::<usize>();
    let mut out = BytesMut::with_capacity(size);
    out.put_slice(head.as_bytes());
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        out.put_slice(item);
    }
    out.put_slice(b"]}");
    out.freeze()
}
