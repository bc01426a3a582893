//! Validation, case by case.
