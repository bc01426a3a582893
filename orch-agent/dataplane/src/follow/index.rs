//! Slices by the service they are of, so that a change of one leads to its service without a search.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;

use orch_cluster::SERVICE_NAME_LABEL;

use crate::model;

/// The index. A service's name is `namespace/name`.
#[derive(Debug, Default)]
pub struct Index {
    slices: HashMap<Arc<str>, Vec<Arc<EndpointSlice>>>,
    owners: HashMap<Box<str>, Arc<str>>,
    /// How many endpoints that serve are on which node.
    holders: HashMap<String, usize>,
    /// Whether a node has got its first or lost its last one.
    holders_changed: bool,
}

/// `namespace/name`.
pub fn name(namespace: Option<&str>, name: Option<&str>) -> String {
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

impl Index {
    /// An index of all slices.
    pub fn of(slices: Vec<Arc<EndpointSlice>>) -> Self {
        let mut index = Self {
            holders_changed: true,
            ..Self::default()
        };
        for slice in slices {
            let key = name(
                slice.metadata.namespace.as_deref(),
                slice.metadata.name.as_deref(),
            );
            index.put(&key, Some(slice));
        }
        index
    }

    /// The slices of a service, in the order of their names.
    pub fn slices(&self, service: &str) -> &[Arc<EndpointSlice>] {
        self.slices.get(service).map_or(&[], Vec::as_slice)
    }

    /// The slice of this `namespace/name`.
    pub fn get(&self, key: &str) -> Option<&EndpointSlice> {
        let service = self.owners.get(key)?;
        self.slices(service)
            .iter()
            .find(|slice| is(slice, key))
            .map(AsRef::as_ref)
    }

    /// All slices by their `namespace/name`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &EndpointSlice)> {
        self.owners
            .keys()
            .filter_map(|key| Some((&**key, self.get(key)?)))
    }

    /// Puts a slice, or removes what stood under its `namespace/name`; the answer is the services concerned.
    pub fn put(&mut self, key: &str, slice: Option<Arc<EndpointSlice>>) -> Vec<Arc<str>> {
        let new: Option<Arc<str>> = slice.as_ref().and_then(|slice| {
            let labels = slice.metadata.labels.as_ref()?;
            let service = labels.get(SERVICE_NAME_LABEL)?;
            Some(Arc::from(name(
                slice.metadata.namespace.as_deref(),
                Some(service),
            )))
        });
        self.count(key, slice.as_deref().filter(|_| new.is_some()));
        let mut concerned = Vec::new();
        if let Some(old) = self.owners.remove(key) {
            if let Some(slices) = self.slices.get_mut(&old) {
                slices.retain(|slice| !is(slice, key));
                if slices.is_empty() {
                    self.slices.remove(&old);
                }
            }
            concerned.push(old);
        }
        if let (Some(service), Some(slice)) = (new, slice) {
            let service = match concerned.first() {
                Some(old) if *old == service => Arc::clone(old),
                _ => service,
            };
            let slices = self.slices.entry(Arc::clone(&service)).or_default();
            let at = slices.partition_point(|other| other.metadata.name < slice.metadata.name);
            slices.insert(at, slice);
            self.owners.insert(Box::from(key), Arc::clone(&service));
            if !concerned.contains(&service) {
                concerned.push(service);
            }
        }
        concerned
    }

    /// Counts the endpoints of the slice that comes, in the place of those of the one that is there.
    fn count(&mut self, key: &str, new: Option<&EndpointSlice>) {
        let mut changes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for node in holders(self.get(key)) {
            changes.entry(node.to_owned()).or_default().0 += 1;
        }
        for node in holders(new) {
            changes.entry(node.to_owned()).or_default().1 += 1;
        }
        for (node, (less, more)) in changes.into_iter().filter(|(_, (less, more))| less != more) {
            let before = self.holders.remove(&node).unwrap_or_default();
            let now = (before + more).saturating_sub(less);
            self.holders_changed |= (before == 0) != (now == 0);
            if now > 0 {
                self.holders.insert(node, now);
            }
        }
    }

    /// The nodes that hold endpoints that serve.
    pub fn holders(&self) -> impl Iterator<Item = &String> {
        self.holders.keys()
    }

    /// Whether these are others than at the last call.
    pub fn holders_changed(&mut self) -> bool {
        std::mem::take(&mut self.holders_changed)
    }

    /// The services with an endpoint on a node that `which` names.
    pub fn on_nodes(&self, which: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let on = |slices: &Vec<Arc<EndpointSlice>>| {
            slices
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten())
                .filter_map(|endpoint| endpoint.node_name.as_deref())
                .any(&which)
        };
        let concerned = self.slices.iter().filter(|(_, slices)| on(slices));
        concerned.map(|(service, _)| Arc::clone(service)).collect()
    }
}

/// The nodes of the endpoints that serve, one for each.
fn holders(slice: Option<&EndpointSlice>) -> impl Iterator<Item = &str> {
    slice
        .into_iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| model::serves(endpoint))
        .filter_map(|endpoint| endpoint.node_name.as_deref())
}

fn is(slice: &EndpointSlice, key: &str) -> bool {
    let name = slice.metadata.name.as_deref().unwrap_or_default();
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    key.split_once('/') == Some((namespace, name))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};

    use super::*;

    fn slice(slice: &str, service: Option<&str>) -> Arc<EndpointSlice> {
        let mut object = EndpointSlice::default();
        object.metadata.namespace = Some("shop".to_owned());
        object.metadata.name = Some(slice.to_owned());
        let labels = service.map(|service| [(SERVICE_NAME_LABEL.to_owned(), service.to_owned())].into());
        object.metadata.labels = labels;
        Arc::new(object)
    }

    fn names(index: &Index, service: &str) -> Vec<String> {
        let slices = index.slices(service).iter();
        slices.filter_map(|slice| slice.metadata.name.clone()).collect()
    }

    #[test]
    fn a_slice_leads_to_its_service_and_takes_leave_of_it() {
        let mut index = Index::of(vec![
            slice("b", Some("web")),
            slice("a", Some("web")),
            slice("c", None),
        ]);
        assert_eq!(names(&index, "shop/web"), ["a", "b"]);
        assert_eq!(
            index.put("shop/a", Some(slice("a", Some("web")))),
            [Arc::from("shop/web")]
        );
        assert_eq!(
            index.put("shop/a", Some(slice("a", Some("api")))),
            [Arc::from("shop/web"), Arc::from("shop/api")]
        );
        assert_eq!(names(&index, "shop/web"), ["b"]);
        assert_eq!(index.put("shop/b", None), [Arc::from("shop/web")]);
        assert!(index.put("shop/b", None).is_empty());
        assert!(index.slices("shop/web").is_empty());
    }

    #[test]
    fn nodes_are_counted_by_the_endpoints_that_serve() {
        let on = |name: &str, endpoints: &[(&str, bool)]| {
            let mut object = EndpointSlice::clone(&slice(name, Some("web")));
            let endpoints = endpoints.iter().map(|(node, ready)| Endpoint {
                node_name: Some((*node).to_owned()),
                conditions: Some(EndpointConditions {
                    ready: Some(*ready),
                    ..EndpointConditions::default()
                }),
                ..Endpoint::default()
            });
            object.endpoints = Some(endpoints.collect());
            Some(Arc::new(object))
        };
        let mut index = Index::of(vec![]);
        assert!(index.holders_changed() && !index.holders_changed());
        let mut after = |name: &str, slice: Option<Arc<EndpointSlice>>| -> (Vec<String>, bool) {
            index.put(name, slice);
            let mut nodes: Vec<String> = index.holders().cloned().collect();
            nodes.sort_unstable();
            (nodes, index.holders_changed())
        };
        let nodes = |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.to_owned()).collect() };
        assert_eq!(
            after("shop/a", on("a", &[("n1", true), ("n2", false)])),
            (nodes(&["n1"]), true)
        );
        assert_eq!(
            after("shop/b", on("b", &[("n1", true), ("n1", true)])),
            (nodes(&["n1"]), false)
        );
        assert_eq!(
            after("shop/a", on("a", &[("n1", false), ("n2", true)])),
            (nodes(&["n1", "n2"]), true)
        );
        assert_eq!(
            after("shop/b", on("b", &[("n1", true)])),
            (nodes(&["n1", "n2"]), false)
        );
        assert_eq!(after("shop/b", None), (nodes(&["n2"]), true));
        assert_eq!(after("shop/a", None), (nodes(&[]), true));
    }
}
