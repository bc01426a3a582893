//! The one error type of this crate; its text completes "failed to …: ".

use std::path::{Path, PathBuf};

/// Why a pull failed, as far as a caller treats the cases differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// The registry has no such repository, tag or digest, or no image for this platform.
    NotFound,
    /// The registry wants other credentials than those given.
    Unauthorized,
    /// The registry could not be reached or broke off.
    Network,
    /// The registry answered something that is not a usable image.
    Invalid,
}

/// What went wrong, and on what.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// containerd could not be reached at its socket.
    #[error("cannot reach containerd at {socket}: {source}")]
    Connect {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// containerd answered a call with an error.
    #[error("containerd could not {action}: {}", status.message())]
    Containerd {
        /// What was asked for, with its object.
        action: String,
        /// containerd's answer.
        status: Box<tonic::Status>,
    },
    /// A file, directory, mount or cgroup operation failed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// The operation, as a verb.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A system call without a path failed.
    #[error("cannot {action}: {source}")]
    System {
        /// The operation.
        action: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// There is no container with this id.
    #[error("container {0} not found")]
    NoSuchContainer(String),
    /// The container is there but does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// A container of this id exists already.
    #[error("container {0} exists already")]
    ContainerExists(String),
    /// The image is not on this node.
    #[error("image \"{0}\" is not present on this node")]
    NoSuchImage(String),
    /// The text is not an image reference.
    #[error("couldn't parse image name \"{reference}\": {reason}")]
    BadReference {
        /// The text.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An image could not be pulled.
    #[error("failed to pull and unpack image \"{reference}\": {message}")]
    Pull {
        /// The normalised reference.
        reference: String,
        /// The class of failure.
        kind: PullFailure,
        /// The cause.
        message: String,
    },
    /// An image that is in the store cannot be used.
    #[error("image \"{reference}\" is broken: {reason}")]
    BadImage {
        /// The reference or digest.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller's container specification cannot be carried out.
    #[error("container {id}: {reason}")]
    BadSpec {
        /// The container.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// The user a container asks for is not in its image.
    #[error("container {id}: unable to find user {user}: no matching entries in passwd file")]
    NoSuchUser {
        /// The container.
        id: String,
        /// The name.
        user: String,
    },
    /// A process inside a container did not end in time and was killed.
    #[error("command timed out after {seconds} s")]
    Timeout {
        /// The limit in seconds.
        seconds: f64,
    },
}

impl RuntimeError {
    /// Whether the object asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NoSuchContainer(_) | Self::NoSuchImage(_) => true,
            Self::Pull { kind, .. } => *kind == PullFailure::NotFound,
            Self::Containerd { status, .. } => status.code() == tonic::Code::NotFound,
            _ => false,
        }
    }

    /// For `map_err` on a gRPC call: `action` says what was asked for, with its object.
    pub(crate) fn grpc(action: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        move |status| Self::Containerd {
            action: action.into(),
            status: Box::new(status),
        }
    }

    /// For `map_err` on an operation on a path.
    pub(crate) fn file<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// For `map_err` on a system call without a path.
    pub(crate) fn system<E: Into<std::io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action: action.into(),
            source: source.into(),
        }
    }
}
