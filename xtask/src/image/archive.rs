//! The OCI image layout, in one tar file, as `ctr images import` reads it
//! (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>).

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::recipe::{Recipe, Tag};
use crate::run;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Not compressed: the archive never leaves the machine, and an unpack is then only a copy.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A blob that is in the layout.
struct Blob {
    digest: String,
    size: u64,
}

/// Writes one archive with an image for each of the recipe's tags.
///
/// # Errors
/// When the disk refuses or a folder named by the recipe is missing.
pub fn write(recipe: &Recipe, folder: &Path, root: &Path, layout: &Path, archive: &Path) -> Result<()> {
    fs::create_dir_all(layout.join("blobs/sha256")).context("failed to create the image layout")?;
    let packages = layer(root, layout)?;
    let mut manifests = Vec::new();
    for tag in &recipe.tags {
        let mut layers = vec![&packages];
        let files = tag
            .files
            .iter()
            .map(|name| layer(&folder.join(name), layout))
            .collect::<Result<Vec<_>>>()
            .with_context(|| format!("failed to pack the files of tag {}", tag.tag))?;
        layers.extend(&files);
        manifests.push(image(recipe, tag, &layers, layout)?);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    fs::write(layout.join("index.json"), index.to_string())
        .and_then(|()| fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#))
        .context("failed to write the image index")?;
    let partial = archive.with_extension("partial");
    tar(layout, &partial)?;
    fs::rename(&partial, archive).with_context(|| format!("failed to write {}", archive.display()))
}

fn image(recipe: &Recipe, tag: &Tag, layers: &[&Blob], layout: &Path) -> Result<Value> {
    let mut config = serde_json::Map::new();
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    env.extend(recipe.config.env.iter().cloned());
    config.insert("Env".into(), json!(env));
    for (key, value) in [
        ("Entrypoint", &recipe.config.entrypoint),
        ("Cmd", &recipe.config.cmd),
    ] {
        if !value.is_empty() {
            config.insert(key.into(), json!(value));
        }
    }
    for (key, value) in [
        ("StopSignal", &recipe.config.stop_signal),
        ("User", &recipe.config.user),
    ] {
        if !value.is_empty() {
            config.insert(key.into(), json!(value));
        }
    }
    if !recipe.config.ports.is_empty() {
        let ports: serde_json::Map<_, _> = recipe
            .config
            .ports
            .iter()
            .map(|port| (port.clone(), json!({})))
            .collect();
        config.insert("ExposedPorts".into(), Value::Object(ports));
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let diff_ids: Vec<&String> = layers.iter().map(|blob| &blob.digest).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(config.to_string().as_bytes(), layout)?;
    let layers: Vec<Value> = layers.iter().map(|blob| descriptor(LAYER, blob)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": layers,
    });
    let manifest = blob(manifest.to_string().as_bytes(), layout)?;
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": format!("{}:{}", recipe.name, tag.tag),
        "org.opencontainers.image.ref.name": tag.tag,
    });
    Ok(entry)
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

fn layer(folder: &Path, layout: &Path) -> Result<Blob> {
    let file = layout.join("layer.tar");
    tar(folder, &file)?;
    let mut hash = Sha256::new();
    let mut reader = File::open(&file).context("failed to read a layer")?;
    let size = io::copy(&mut reader, &mut hash).context("failed to hash a layer")?;
    let name = hex(&hash.finalize());
    fs::rename(&file, layout.join("blobs/sha256").join(&name)).context("failed to place a layer")?;
    Ok(Blob {
        digest: format!("sha256:{name}"),
        size,
    })
}

fn blob(bytes: &[u8], layout: &Path) -> Result<Blob> {
    let name = hex(&Sha256::digest(bytes));
    fs::write(layout.join("blobs/sha256").join(&name), bytes).context("failed to write a blob")?;
    Ok(Blob {
        digest: format!("sha256:{name}"),
        size: bytes.len() as u64,
    })
}

/// The same bytes for the same files, whoever packs them and when.
fn tar(folder: &Path, file: &Path) -> Result<()> {
    let mut tar = run::command(
        "tar",
        [
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
        ],
    );
    tar.arg("--create")
        .arg("--file")
        .arg(file)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    run::output(&mut tar).map(drop)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
