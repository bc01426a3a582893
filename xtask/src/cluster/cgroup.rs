//! The cluster's cgroups: where its processes are found, and what `down` empties and removes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::layout::CGROUP;

/// The root of the cgroup2 hierarchy: pure v2 machines have it at /sys/fs/cgroup, hybrid ones below it.
pub fn unified() -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.procs").exists() {
        root.to_owned()
    } else {
        root.join("unified")
    }
}

/// Makes a cgroup2 and returns the file that takes its processes.
///
/// # Errors
/// When the kernel refuses.
pub fn create(name: &str) -> Result<PathBuf> {
    let folder = unified().join(name);
    fs::create_dir_all(&folder).with_context(|| format!("failed to create cgroup {}", folder.display()))?;
    Ok(folder.join("cgroup.procs"))
}

/// Every cgroup of the cluster, in every hierarchy, deepest first.
pub fn ours() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut roots = vec![unified()];
    roots.extend(children(Path::new("/sys/fs/cgroup")));
    for root in roots {
        collect(&root.join(CGROUP), &mut found);
    }
    found.sort();
    found.dedup();
    found.reverse();
    found
}

/// Processes below a cgroup2.
pub fn processes(name: &str) -> Vec<i32> {
    let mut folders = Vec::new();
    collect(&unified().join(name), &mut folders);
    folders
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Kills every process below a cgroup2 and waits until they are gone.
///
/// # Errors
/// When some are still there after ten seconds.
pub fn kill_all(name: &str) -> Result<()> {
    for _ in 0..200 {
        let pids = processes(name);
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            // A process that is gone already is what we want.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("processes in cgroup {name} do not end: {:?}", processes(name))
}

/// Removes the cluster's cgroups below a name (all of them for [`CGROUP`]) in every hierarchy.
///
/// # Errors
/// When one is still busy after two seconds.
pub fn remove(name: &str) -> Result<()> {
    let mut last = None;
    for _ in 0..40 {
        last = None;
        for folder in ours().into_iter().filter(|folder| is_below(folder, name)) {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => last = Some((folder, error)),
                _ => {}
            }
        }
        if last.is_none() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    match last {
        Some((folder, error)) => {
            Err(error).with_context(|| format!("failed to remove cgroup {}", folder.display()))
        }
        None => Ok(()),
    }
}

fn is_below(folder: &Path, name: &str) -> bool {
    let text = folder.to_string_lossy();
    text.ends_with(&format!("/{name}")) || text.contains(&format!("/{name}/"))
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    if !folder.is_dir() {
        return;
    }
    into.push(folder.to_owned());
    for child in children(folder) {
        collect(&child, into);
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
