//! OCI runtime specifications.
