//! Volumes on a temporary directory, with real mounts.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use super::{
    VolumeError, mount, ownership,
    payload::{File, Payload, write},
    subpath,
};

fn files(list: &[(&str, &str)]) -> Payload {
    list.iter()
        .map(|(k, v)| ((*k).to_owned(), File::new(v.as_bytes().to_vec(), 0o640)))
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_new_generation_replaces_the_old_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, &files(&[("a", "1"), ("sub/b", "2"), ("sub/c", "3")])).unwrap();
    assert_eq!(
        (read(&dir.join("a")), read(&dir.join("sub/b"))),
        ("1".into(), "2".into())
    );
    assert_eq!(
        fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777,
        0o640
    );
    let first = fs::read_link(dir.join("..data")).unwrap();
    write(dir, &files(&[("a", "1"), ("sub/b", "2"), ("sub/c", "3")])).unwrap();
    assert_eq!(
        fs::read_link(dir.join("..data")).unwrap(),
        first,
        "nothing changed"
    );
    write(dir, &files(&[("a", "new"), ("d", "4")])).unwrap();
    assert_ne!(fs::read_link(dir.join("..data")).unwrap(), first);
    assert!(!dir.join(&first).exists());
    assert_eq!(read(&dir.join("a")), "new");
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|n| !n.starts_with("..2"));
    names.sort();
    assert_eq!(names, ["..data", "a", "d"]);
    write(dir, &Payload::new()).unwrap();
    assert!(!dir.join("a").exists());
}

#[test]
fn paths_stay_inside() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["../x", "/etc/x", "a/../../x", "", "..data"] {
        assert!(
            matches!(
                write(dir.path(), &files(&[(path, "")])),
                Err(VolumeError::Path(_))
            ),
            "{path:?}"
        );
    }
}

#[test]
fn sub_paths_cannot_leave_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    let target = dir.path().join("target");
    fs::create_dir_all(volume.join("in")).unwrap();
    fs::write(volume.join("in/file"), "inside").unwrap();
    fs::write(dir.path().join("secret"), "outside").unwrap();
    symlink("/", volume.join("root")).unwrap();
    symlink("..", volume.join("up")).unwrap();
    symlink("in", volume.join("ok")).unwrap();
    for sub in ["root/etc", "up/secret", "../secret", "/etc", "in/../../secret"] {
        assert!(subpath::bind(&volume, sub, &target).is_err(), "{sub}");
    }
    assert!(mount::below(dir.path()).unwrap().is_empty());
    subpath::bind(&volume, "ok/file", &target).unwrap();
    assert_eq!(read(&target), "inside");
    let made = dir.path().join("made");
    subpath::bind(&volume, "deep/er", &made).unwrap();
    fs::write(made.join("x"), "1").unwrap();
    assert_eq!(read(&volume.join("deep/er/x")), "1");
    // Once more, as for a restarted container.
    subpath::bind(&volume, "deep/er", &made).unwrap();
    assert_eq!(mount::below(dir.path()).unwrap().len(), 2);
    mount::remove(dir.path()).unwrap();
    assert!(!dir.path().exists());
}

#[test]
fn memory_is_limited_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("with blank");
    fs::create_dir(&volume).unwrap();
    mount::tmpfs(&volume, Some(1 << 20)).unwrap();
    mount::tmpfs(&volume, Some(1 << 20)).unwrap();
    assert_eq!(mount::below(dir.path()).unwrap(), std::slice::from_ref(&volume));
    assert!(fs::write(volume.join("big"), vec![0; 2 << 20]).is_err());
    mount::remove(&volume).unwrap();
    assert!(!volume.exists());
    mount::remove(&volume).unwrap();
}

#[test]
fn a_volume_group_owns_everything() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o600)).unwrap();
    ownership::apply(dir.path(), 4321, false).unwrap();
    let of = |p: &Path| fs::metadata(p).map(|m| (m.gid(), m.mode() & 0o7777)).unwrap();
    assert_eq!(of(&dir.path().join("f")), (4321, 0o660));
    let (gid, mode) = of(dir.path());
    assert_eq!((gid, mode & 0o2070), (4321, 0o2070));
    assert!(ownership::apply(dir.path(), -1, false).is_err());
}
