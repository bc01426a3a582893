//! Gives Services their cluster IPs and node ports, and takes them back.

use orch_api::ApiError;
use serde_json::Value;

use super::{Attempt, Operation};
use crate::{
    object::{Call, meta},
    services::allocate::Refusal,
};

/// Reserves what the Service asks for and needs.
pub(super) fn admit(attempt: &mut Attempt<'_>) -> Result<(), ApiError> {
    if !attempt.is("services", Operation::Create) && !attempt.is("services", Operation::Update) {
        return Ok(());
    }
    let call = attempt.call;
    // What is malformed is refused by validation, in its own words.
    if !attempt.object["spec"].is_object() {
        return Ok(());
    }
    match call.state.allocator.reserve(attempt.object, attempt.old) {
        Ok(reservation) => {
            attempt.reservations.push(reservation);
            Ok(())
        }
        Err(Refusal::Invalid(errors)) => {
            let name = meta::text(attempt.object, "name");
            Err(ApiError::invalid(call.kind, name, errors))
        }
        Err(Refusal::Exhausted(why)) => Err(ApiError::internal(why)),
    }
}

/// Sets free what a deleted Service had.
pub(super) fn deleted(call: &Call, object: &Value) {
    let kind = call.stored();
    if (kind.group, kind.plural) == ("", "services") {
        call.state.allocator.release(object);
    }
}
