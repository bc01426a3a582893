//! The strategies of networking.k8s.io.

use serde_json::{Value, json};

use super::both;
use crate::defaults;
use crate::field::FieldError;
use crate::strategy::{Strategy, first_generation, keep_status, next_generation};
use crate::validation::{ingress, metadata, network_policy, service_cidr};
use crate::value::object_mut;

/// networking.k8s.io/v1 NetworkPolicy.
pub struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn default(&self, obj: &mut Value) {
        defaults::network_policy(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        first_generation(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        next_generation(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        network_policy::policy(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        network_policy::update(new, old)
    }
}

/// networking.k8s.io/v1 Ingress.
pub struct Ingress;

impl Strategy for Ingress {
    fn prepare_create(&self, obj: &mut Value) {
        object_mut(obj).insert("status".to_owned(), json!({"loadBalancer": {}}));
        first_generation(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        next_generation(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        ingress::ingress_create(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(ingress::ingress(new), metadata::update(new, old))
    }
}

/// networking.k8s.io/v1 IngressClass.
pub struct IngressClass;

impl Strategy for IngressClass {
    fn default(&self, obj: &mut Value) {
        defaults::ingress_class(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        first_generation(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        next_generation(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        ingress::class(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(ingress::class(new), ingress::class_update(new, old))
    }
}

/// networking.k8s.io/v1 IPAddress.
pub struct IpAddress;

impl Strategy for IpAddress {
    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        service_cidr::ip_address(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(
            service_cidr::ip_address(new),
            service_cidr::ip_address_update(new, old),
        )
    }
}

/// networking.k8s.io/v1 ServiceCIDR.
pub struct ServiceCidr;

impl Strategy for ServiceCidr {
    fn prepare_create(&self, obj: &mut Value) {
        object_mut(obj).insert("status".to_owned(), json!({}));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        service_cidr::service_cidr(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        both(
            service_cidr::service_cidr(new),
            service_cidr::service_cidr_update(new, old),
        )
    }
}
