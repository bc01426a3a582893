//! Files that change all at once: each generation is a directory of its own, and one renamed link selects it.
//!
//! The layout is Kubernetes', which programs that watch their configuration rely on: `NAME -> ..data/NAME`,
//! `..data -> ..TIMESTAMP`, and the files in `..TIMESTAMP`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink},
    path::{Component, Path},
};

use super::VolumeError;

/// The link that selects the generation.
const DATA: &str = "..data";
/// The link before it takes its place.
const DATA_NEW: &str = "..data_tmp";

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub bytes: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Owner, root if none.
    pub uid: Option<u32>,
    /// Whether it is a token, whose permissions follow from who reads it.
    pub private: bool,
}

impl File {
    /// A file of root's.
    #[must_use]
    pub fn new(bytes: Vec<u8>, mode: u32) -> Self {
        Self {
            bytes,
            mode,
            uid: None,
            private: false,
        }
    }

    /// A token.
    #[must_use]
    pub fn private(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            mode: 0o600,
            uid: None,
            private: true,
        }
    }
}

/// Makes `dir` show exactly `payload`; does nothing if it does already.
///
/// # Errors
/// When a path leaves the volume or the file system refuses; the old content then stays.
pub fn write(dir: &Path, payload: &Payload) -> Result<(), VolumeError> {
    for path in payload.keys() {
        let parts: Vec<Component<'_>> = Path::new(path).components().collect();
        if parts.is_empty()
            || !parts.iter().all(|c| matches!(c, Component::Normal(_)))
            || path.starts_with("..")
        {
            return Err(VolumeError::Path(path.clone()));
        }
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && shows(&dir.join(current), payload)
    {
        return Ok(());
    }
    let name = format!("..{}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let generation = dir.join(&name);
    generate(&generation, payload)?;
    let new = dir.join(DATA_NEW);
    ignore_missing(fs::remove_file(&new)).map_err(VolumeError::io("remove", &new))?;
    symlink(&name, &new).map_err(VolumeError::io("create", &new))?;
    fs::rename(&new, dir.join(DATA)).map_err(VolumeError::io("rename", &new))?;
    link_names(dir, payload)?;
    if let Some(old) = current.map(|c| dir.join(c)).filter(|o| *o != generation) {
        ignore_missing(fs::remove_dir_all(&old)).map_err(VolumeError::io("remove", &old))?;
    }
    Ok(())
}

/// Writes a generation's directory.
fn generate(generation: &Path, payload: &Payload) -> Result<(), VolumeError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder
        .create(generation)
        .map_err(VolumeError::io("create", generation))?;
    for (path, file) in payload {
        let full = generation.join(path);
        if let Some(parent) = full.parent() {
            builder
                .create(parent)
                .map_err(VolumeError::io("create", parent))?;
        }
        fs::write(&full, &file.bytes).map_err(VolumeError::io("write", &full))?;
        // Not with the file's creation, where the umask would have its say.
        fs::set_permissions(&full, fs::Permissions::from_mode(file.mode))
            .map_err(VolumeError::io("set permissions of", &full))?;
        if file.uid.is_some() {
            chown(&full, file.uid, None).map_err(VolumeError::io("change owner of", &full))?;
        }
    }
    Ok(())
}

/// Makes the links `NAME -> ..data/NAME` and removes those of names that are gone.
fn link_names(dir: &Path, payload: &Payload) -> Result<(), VolumeError> {
    let names: BTreeSet<&str> = payload
        .keys()
        .filter_map(|p| p.split('/').find(|s| !s.is_empty()))
        .collect();
    for name in &names {
        let link = dir.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(VolumeError::io("create", &link)(error));
            }
            _ => {}
        }
    }
    for entry in fs::read_dir(dir).map_err(VolumeError::io("read", dir))? {
        let entry = entry.map_err(VolumeError::io("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(&*name) {
            ignore_missing(fs::remove_file(entry.path()))
                .map_err(VolumeError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Whether a generation's directory holds exactly `payload`. Permissions are not compared, as `fsGroup` adds to them.
fn shows(generation: &Path, payload: &Payload) -> bool {
    fn count(dir: &Path) -> io::Result<usize> {
        let mut n = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            n += if entry.file_type()?.is_dir() {
                count(&entry.path())?
            } else {
                1
            };
        }
        Ok(n)
    }
    count(generation).is_ok_and(|n| n == payload.len())
        && payload
            .iter()
            .all(|(path, file)| fs::read(generation.join(path)).is_ok_and(|b| b == file.bytes))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
