//! A path of the node, checked for its type.

use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::VolumeError;

pub(super) async fn check(source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let source = source.clone();
    let path = std::path::PathBuf::from(&source.path);
    tokio::task::spawn_blocking(move || look(&source))
        .await
        .unwrap_or_else(|e| Err(VolumeError::io("look at", &path)(std::io::Error::other(e))))
}

fn look(source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = std::path::Path::new(&source.path);
    if source.path.split('/').any(|part| part == "..") || !path.is_absolute() {
        return Err(VolumeError::Path(source.path.clone()));
    }
    let found = std::fs::metadata(path).ok();
    let wrong = |wanted| {
        Err(VolumeError::HostPath {
            path: source.path.clone(),
            wanted,
        })
    };
    let is = |test: fn(&std::fs::FileType) -> bool| found.as_ref().is_some_and(|m| test(&m.file_type()));
    match source.type_.as_deref().unwrap_or_default() {
        // As container engines do, a missing path is made a directory.
        "" if found.is_none() => std::fs::create_dir_all(path).map_err(VolumeError::io("create", path)),
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(VolumeError::io("create", path)),
        "Directory" | "DirectoryOrCreate" if !is(std::fs::FileType::is_dir) => wrong("a directory"),
        "FileOrCreate" if found.is_none() => std::fs::File::create_new(path)
            .map(drop)
            .map_err(VolumeError::io("create", path)),
        "File" | "FileOrCreate" if !is(std::fs::FileType::is_file) => wrong("a file"),
        "Socket" if !is(std::fs::FileType::is_socket) => wrong("a socket"),
        "CharDevice" if !is(std::fs::FileType::is_char_device) => wrong("a character device"),
        "BlockDevice" if !is(std::fs::FileType::is_block_device) => wrong("a block device"),
        _ => Ok(()),
    }
}
