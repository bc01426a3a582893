//! A kernel out of Debian's archive: downloaded by apt, unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{folder, modules};
use crate::{run, term};

/// A kernel that can be booted.
pub struct Kernel {
    /// As `uname -r` says, for instance `6.1.0-56-amd64`.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// The modules, in the order in which they are to be inserted.
    pub modules: Vec<PathBuf>,
}

/// The newest kernel whose version starts with `version`; kept under `target/verify-kernel` for the next time.
///
/// # Errors
/// When apt knows no such kernel or cannot download it.
pub fn fetch(version: &str) -> Result<Kernel> {
    let release = newest(version)?;
    let kept = folder()?.join(&release);
    let list = kept.join("modules");
    let wanted = modules::WANTED.join(" ");
    let stamp = kept.join("complete");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(&wanted) {
        let step = term::step(&format!("fetching Debian's kernel {release}"));
        if kept.exists() {
            fs::remove_dir_all(&kept).with_context(|| format!("failed to remove {}", kept.display()))?;
        }
        unpack(&release, &kept)?;
        fs::write(&stamp, wanted).with_context(|| format!("failed to write {}", stamp.display()))?;
        step.done();
    }
    let mut modules: Vec<PathBuf> = fs::read_dir(&list)
        .with_context(|| format!("failed to list {}", list.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("failed to list {}", list.display()))?;
    modules.sort();
    Ok(Kernel {
        image: kept.join("vmlinuz"),
        release,
        modules,
    })
}

/// Asks apt, and without an answer takes what an earlier run has kept.
fn newest(version: &str) -> Result<String> {
    let pattern = format!(
        "^linux-image-{}[.0-9]*-[0-9]+-amd64$",
        version.replace('.', "\\.")
    );
    let known = run::output(&mut run::command(
        "apt-cache",
        ["search", "--names-only", &pattern],
    ))
    .unwrap_or_default();
    let offered = known
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix("linux-image-"))
        .map(str::to_owned);
    let kept = fs::read_dir(folder()?)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(version) && name.ends_with("-amd64"));
    offered
        .chain(kept)
        .max_by_key(|release| numbers(release))
        .with_context(|| {
            format!(
                "apt knows no kernel {version}: run `apt-get update`, or add the Debian release that has it to \
                 /etc/apt/sources.list"
            )
        })
}

fn numbers(release: &str) -> Vec<u32> {
    release
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Keeps the image and the modules that are wanted: the package has four hundred megabytes.
fn unpack(release: &str, kept: &Path) -> Result<()> {
    let whole = kept.join("package");
    fs::create_dir_all(&whole).with_context(|| format!("failed to make {}", whole.display()))?;
    let name = format!("linux-image-{release}");
    let mut apt = run::command(
        "apt-get",
        ["-q", "-o", "APT::Sandbox::User=root", "download", &name],
    );
    run::output(apt.current_dir(kept)).with_context(|| format!("failed to download {name}"))?;
    let package = fs::read_dir(kept)
        .with_context(|| format!("failed to list {}", kept.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"));
    let Some(package) = package else {
        bail!("apt-get did not download {name}")
    };
    run::output(run::command("dpkg-deb", ["-x"]).arg(&package).arg(&whole))?;
    let failed = || format!("failed to keep what is needed of {name}");
    fs::rename(
        whole.join(format!("boot/vmlinuz-{release}")),
        kept.join("vmlinuz"),
    )
    .with_context(failed)?;
    let list = kept.join("modules");
    fs::create_dir_all(&list).with_context(failed)?;
    // Since Debian 13 the files stand in /usr.
    let folder = ["lib/modules", "usr/lib/modules"]
        .map(|path| whole.join(path).join(release))
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(failed)?;
    for (number, file) in modules::in_order(&folder)?.iter().enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        fs::copy(file, list.join(format!("{number:02}-{name}"))).with_context(failed)?;
    }
    fs::remove_dir_all(&whole).with_context(failed)?;
    fs::remove_file(&package).with_context(failed)
}
