//! `$setElementOrder`: where the elements of a merged list stand.

use serde_json::Value;

use super::ListMerge;

/// Arranges `items` so that those in `wanted` stand in its order; elements that only the server has
/// keep their place behind the element they stood behind.
pub(super) fn arrange(items: &mut Vec<Value>, wanted: &[Value], rule: ListMerge) {
    let id = |item: &Value| match rule {
        ListMerge::Key(key) => item.get(key).cloned().unwrap_or(Value::Null),
        ListMerge::Set => item.clone(),
    };
    let order: Vec<Value> = wanted.iter().map(id).collect();
    let rank = |item: &Value| order.iter().position(|o| *o == id(item));
    // Each element with the rank it stands at: its own, or that of the ranked element before it.
    let mut last = None;
    let mut placed: Vec<(Option<usize>, bool, Value)> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        let own = rank(&item);
        last = own.or(last);
        placed.push((last, own.is_none(), item));
    }
    placed.sort_by_key(|(at, follows, _)| (*at, *follows));
    items.extend(placed.into_iter().map(|(.., item)| item));
}
