//! `cargo xtask build-image`: OCI archives from Debian packages, without a registry or a Docker engine.

mod archive;
mod debian;
mod recipe;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{deps, run, term};
use recipe::Recipe;

/// Builds the archives of these recipes, or of all in deploy/images, into target/orch-images.
///
/// # Errors
/// When a recipe is wrong, or a package cannot be had.
pub fn run(recipes: &[PathBuf]) -> Result<()> {
    deps::require_root("build-image")?;
    let all;
    let recipes = if recipes.is_empty() {
        all = all_recipes()?;
        &all
    } else {
        recipes
    };
    for folder in recipes {
        let archive = build(folder)?;
        term::hint(&format!("cargo xtask load-image {}", archive.display()));
    }
    Ok(())
}

/// Builds one recipe's archive; keeps the one there is when it is newer than the recipe.
///
/// # Errors
/// When the recipe is wrong, or a package cannot be had.
pub fn build(folder: &Path) -> Result<PathBuf> {
    let recipe = Recipe::load(folder)?;
    let output = run::root().join("target/orch-images");
    let short = recipe.name.rsplit('/').next().unwrap_or(&recipe.name).to_owned();
    let archive = output.join(format!("{short}.tar"));
    if is_newer(&archive, folder)? {
        term::done(&format!("{} is up to date", archive.display()));
        return Ok(archive);
    }
    let step = term::step(&format!(
        "building image {} from {}",
        recipe.name,
        recipe.packages.join(", ")
    ));
    let work = output.join("work").join(&short);
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("failed to empty {}", work.display()))?;
    }
    let root = work.join("root");
    debian::unpack(&recipe, &output.join("debs"), &root)?;
    step.progress("packages are unpacked");
    archive::write(&recipe, folder, &root, &work.join("oci"), &archive)?;
    fs::remove_dir_all(&work).with_context(|| format!("failed to remove {}", work.display()))?;
    step.done();
    Ok(archive)
}

/// The recipes of deploy/images.
///
/// # Errors
/// When there are none.
pub fn all_recipes() -> Result<Vec<PathBuf>> {
    let folder = run::root().join("deploy/images");
    let mut found: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("failed to read {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("image.toml").exists())
        .collect();
    found.sort();
    if found.is_empty() {
        bail!("there is no recipe in {}", folder.display());
    }
    Ok(found)
}

/// Whether an archive is newer than everything in its recipe's folder.
fn is_newer(archive: &Path, folder: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(archive).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("failed to read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("failed to read {}", folder.display()))?;
            let metadata = entry.metadata().context("failed to read a recipe's file")?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.modified().is_ok_and(|changed| changed > built) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
