//! Debian packages and what they depend on, unpacked into a folder.
//!
//! Packages are unpacked, not installed: no maintainer script runs, so an image holds files only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::recipe::Recipe;
use crate::run;

/// Folders that Debian's packages still ship under /, though they live in /usr.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];

/// Unpacks the recipe's packages and all they need into `root`; downloads are kept in `cache`.
///
/// # Errors
/// When a package is unknown or cannot be downloaded.
pub fn unpack(recipe: &Recipe, cache: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("failed to create {}", cache.display()))?;
    let packages = closure(recipe)?;
    let files = download(&packages, cache)?;
    for folder in MERGED {
        fs::create_dir_all(root.join("usr").join(folder)).context("failed to create the image's /usr")?;
        symlink(format!("usr/{folder}"), root.join(folder)).context("failed to merge /usr")?;
    }
    for file in files {
        // Not `dpkg-deb --extract`: it would put a folder in the place of a merged one's link.
        let mut unpack = run::command(
            "sh",
            [
                "-c",
                "dpkg-deb --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink -C \"$2\"",
            ],
        );
        run::output(unpack.arg("sh").arg(&file).arg(root))?;
    }
    for useless in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/lintian",
    ] {
        let folder = root.join(useless);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("failed to trim {}", folder.display()))?;
        }
    }
    write_users(recipe, root)?;
    for folder in ["proc", "sys", "dev", "tmp", "run", "etc"]
        .into_iter()
        .chain(recipe.folders.iter().map(String::as_str))
    {
        fs::create_dir_all(root.join(folder.trim_start_matches('/')))
            .with_context(|| format!("failed to create {folder} in the image"))?;
    }
    run::output(run::command("chmod", ["1777"]).arg(root.join("tmp")))?;
    for (path, target) in &recipe.links {
        let link = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(link.parent().unwrap_or(root)).context("failed to create a link's folder")?;
        symlink(target, &link).with_context(|| format!("failed to link {path} to {target}"))?;
    }
    Ok(())
}

fn write_users(recipe: &Recipe, root: &Path) -> Result<()> {
    let mut passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n".to_owned();
    let mut group = "root:x:0:\nnogroup:x:65534:\n".to_owned();
    for (name, id) in &recipe.users {
        passwd.push_str(&format!("{name}:x:{id}:{id}:{name}:/:/bin/false\n"));
        group.push_str(&format!("{name}:x:{id}:\n"));
    }
    fs::create_dir_all(root.join("etc"))
        .and_then(|()| fs::write(root.join("etc/passwd"), passwd))
        .and_then(|()| fs::write(root.join("etc/group"), group))
        .context("failed to write the image's users")
}

/// The packages with all they depend on. Asks apt once a round, as each question costs it half a second.
fn closure(recipe: &Recipe) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut known = BTreeMap::new();
    let mut open: Vec<String> = recipe.packages.clone();
    while !open.is_empty() {
        records(&open, &mut known)?;
        let alternatives: Vec<String> = open
            .iter()
            .filter_map(|package| known.get(package))
            .flatten()
            .flatten()
            .cloned()
            .collect();
        records(&alternatives, &mut known)?;
        for package in std::mem::take(&mut open) {
            let Some(groups) = known.get(&package) else {
                bail!(
                    "Debian has no package {package}: name a real one, or list it under `exclude` in image.toml"
                )
            };
            found.insert(package);
            for group in groups {
                let met = |name: &String| recipe.exclude.contains(name) || found.contains(name);
                if !group.iter().any(met) {
                    // The first alternative that exists is what apt would take on an empty machine.
                    let chosen = group
                        .iter()
                        .find(|name| known.contains_key(*name))
                        .or(group.first());
                    open.extend(chosen.cloned());
                }
            }
        }
        open.retain(|package| !found.contains(package));
    }
    Ok(found)
}

/// Adds what apt says of these packages; those it does not know stay out.
fn records(packages: &[String], known: &mut BTreeMap<String, Vec<Vec<String>>>) -> Result<()> {
    let asked: Vec<&String> = packages
        .iter()
        .filter(|package| !known.contains_key(*package))
        .collect();
    if asked.is_empty() {
        return Ok(());
    }
    // It fails when one of many is unknown, but still prints the others.
    let output = run::command("apt-cache", ["show", "--no-all-versions"])
        .args(asked)
        .output()
        .context("failed to start apt-cache")?;
    for record in String::from_utf8_lossy(&output.stdout).split("\n\n") {
        if let Some(name) = record.lines().find_map(|line| line.strip_prefix("Package: ")) {
            known
                .entry(name.to_owned())
                .or_insert_with(|| dependencies(record));
        }
    }
    Ok(())
}

/// `Depends` and `Pre-Depends` of a package record: groups of alternatives.
fn dependencies(record: &str) -> Vec<Vec<String>> {
    record
        .lines()
        .filter_map(|line| {
            line.strip_prefix("Depends: ")
                .or_else(|| line.strip_prefix("Pre-Depends: "))
        })
        .flat_map(|list| list.split(','))
        .map(|group| {
            group
                .split('|')
                .filter_map(|name| name.trim().split([' ', ':', '(']).next().map(str::to_owned))
                .collect()
        })
        .collect()
}

fn download(packages: &BTreeSet<String>, cache: &Path) -> Result<Vec<PathBuf>> {
    let missing: Vec<&String> = packages
        .iter()
        .filter(|package| cached(cache, package).is_none())
        .collect();
    if !missing.is_empty() {
        let mut apt = run::command("apt-get", ["-q", "-o", "APT::Sandbox::User=root", "download"]);
        run::output(apt.args(missing).current_dir(cache)).context("failed to download packages")?;
    }
    packages
        .iter()
        .map(|package| cached(cache, package).with_context(|| format!("apt-get did not download {package}")))
        .collect()
}

fn cached(cache: &Path, package: &str) -> Option<PathBuf> {
    let prefix = format!("{package}_");
    fs::read_dir(cache)
        .ok()?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
}

#[cfg(test)]
mod tests {
    use super::dependencies;

    #[test]
    fn dependencies_keep_alternatives_together_and_lose_versions() {
        let record = "Package: a\nPre-Depends: init\nDepends: libc6 (>= 2.36), debconf (>= 0.5) | debconf-2.0, python3:any\n";
        assert_eq!(
            dependencies(record),
            [
                vec!["init"],
                vec!["libc6"],
                vec!["debconf", "debconf-2.0"],
                vec!["python3"]
            ]
        );
    }
}
