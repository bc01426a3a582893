//! Reading files of an image without leaving a mount behind and without following its links to the host.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use crate::RuntimeError;

/// A read-only view of a root file system, as containerd describes it.
pub(crate) struct View {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// More than any sensible passwd or group file has.
const FILE_MAX: u64 = 1 << 20;

/// Reads files of a view; one that is missing is an empty string. `scratch` is an existing directory that
/// the view is mounted on in a mount namespace of its own. Blocks.
pub(crate) fn read_files(view: &View, scratch: &Path, files: &[&str]) -> Result<Vec<String>, RuntimeError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("rootfs".to_owned())
            .spawn_scoped(scope, || {
                let root = mounted_root(view, scratch)?;
                files.iter().map(|file| read_in(&root, file)).collect()
            })
            .map_err(RuntimeError::system("start a thread"))?
            .join()
            .unwrap_or_else(|_| {
                Err(RuntimeError::system("read the image")(io::Error::other(
                    "thread panicked",
                )))
            })
    })
}

fn mounted_root(view: &View, scratch: &Path) -> Result<PathBuf, RuntimeError> {
    if view.kind == "bind" {
        return Ok(PathBuf::from(&view.source));
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(RuntimeError::system("make a mount namespace"))?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(RuntimeError::system("make mounts private"))?;
    let mut data = view
        .options
        .iter()
        .filter(|o| !matches!(o.as_str(), "ro" | "rw" | "rbind"))
        .cloned()
        .collect::<Vec<_>>();
    // Mount data is limited to a page, which many layers exceed unless their paths are made relative.
    for option in &mut data {
        if let Some(dirs) = option.strip_prefix("lowerdir=")
            && let Some((base, relative)) = relative_lower_dirs(dirs)
        {
            std::env::set_current_dir(&base).map_err(RuntimeError::file("enter", &base))?;
            *option = format!("lowerdir={relative}");
        }
    }
    mount(
        Some(view.source.as_str()),
        scratch,
        Some(view.kind.as_str()),
        MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some(data.join(",").as_str()),
    )
    .map_err(RuntimeError::file("mount an image on", scratch))?;
    Ok(scratch.to_owned())
}

/// Splits `/a/1/fs:/a/2/fs` into `/a` and `1/fs:2/fs`.
fn relative_lower_dirs(dirs: &str) -> Option<(PathBuf, String)> {
    let base = Path::new(dirs.split(':').next()?).parent()?.parent()?;
    let relative = dirs
        .split(':')
        .map(|dir| Path::new(dir).strip_prefix(base).ok().and_then(Path::to_str))
        .collect::<Option<Vec<_>>>()?;
    Some((base.to_owned(), relative.join(":")))
}

fn read_in(root: &Path, file: &str) -> Result<String, RuntimeError> {
    let path = root.join(file.trim_start_matches('/'));
    let directory = open(
        root,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(RuntimeError::file("open", root))?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = match openat2(&directory, file.trim_start_matches('/'), how) {
        Ok(opened) => File::from(opened),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => return Ok(String::new()),
        Err(source) => return Err(RuntimeError::file("open", &path)(source)),
    };
    if !opened.metadata().is_ok_and(|m| m.is_file()) {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    opened
        .take(FILE_MAX)
        .read_to_end(&mut bytes)
        .map_err(RuntimeError::file("read", &path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lower_dirs_become_relative() {
        assert_eq!(
            relative_lower_dirs("/s/12/fs:/s/3/fs"),
            Some((PathBuf::from("/s"), "12/fs:3/fs".to_owned()))
        );
        assert_eq!(relative_lower_dirs("/s/12/fs:/other/3/fs"), None);
    }

    #[test]
    fn links_of_an_image_do_not_lead_to_the_host() {
        let root = PathBuf::from(format!("/tmp/ort-{}", crate::sys::unique()));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/real"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/real", root.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/hostname", root.join("etc/group")).unwrap();
        let view = View {
            kind: "bind".to_owned(),
            source: root.display().to_string(),
            options: Vec::new(),
        };
        let files = read_files(&view, &root, &["/etc/passwd", "/etc/group", "/etc/none"]).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(files, ["inside", "", ""]);
    }
}
