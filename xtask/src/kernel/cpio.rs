//! The archive that a kernel unpacks as its first root: cpio's `newc` format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

// File types of inode(7).
const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that is being written.
pub struct Archive {
    file: BufWriter<File>,
    path: String,
    entries: u32,
    written: u64,
    known: BTreeSet<String>,
}

impl Archive {
    /// Begins an archive.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self {
            file: BufWriter::new(file),
            path: path.display().to_string(),
            entries: 0,
            written: 0,
            known: BTreeSet::new(),
        })
    }

    /// Adds a folder and those above it; does nothing where it is there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn folder(&mut self, name: &str) -> Result<()> {
        let mut whole = String::new();
        for part in name.split('/').filter(|part| !part.is_empty()) {
            whole = if whole.is_empty() {
                part.to_owned()
            } else {
                format!("{whole}/{part}")
            };
            if self.known.insert(whole.clone()) {
                self.entry(&whole, FOLDER | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file; the first of a name stays.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.child(name, REGULAR | mode, (0, 0), content)
    }

    /// Adds a file of this machine under the name, with its permissions.
    ///
    /// # Errors
    /// When it cannot be read or the disk refuses.
    pub fn copy(&mut self, from: &Path, name: &str) -> Result<()> {
        let failed = || format!("failed to read {}", from.display());
        let mode = fs::metadata(from).with_context(failed)?.permissions().mode();
        let content = fs::read(from).with_context(failed)?;
        self.file(name, mode & 0o777, &content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.child(name, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.child(name, CHARACTER | 0o600, (major, minor), &[])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.file
            .flush()
            .with_context(|| format!("failed to write {}", self.path))
    }

    fn child(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let name = name.trim_start_matches('/');
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.folder(folder)?;
        }
        if self.known.insert(name.to_owned()) {
            self.entry(name, mode, device, content)?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> Result<()> {
        self.entries += 1;
        let links = if mode & FOLDER == 0 { 1 } else { 2 };
        // inode, mode, uid, gid, links, time, size, device, special device, length of the name with its end, check.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            u32::try_from(content.len()).context("a file is too long for an initramfs")?,
            0,
            0,
            major,
            minor,
            u32::try_from(name.len() + 1).context("a name is too long for an initramfs")?,
            0,
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend(format!("{field:08X}").bytes());
        }
        header.extend(name.bytes());
        header.push(0);
        self.padded(&header)?;
        self.padded(content)
    }

    /// Writes, and fills up to a multiple of four bytes.
    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        let gap = (4 - self.written % 4) % 4;
        self.written += gap;
        self.file
            .write_all(bytes)
            .and_then(|()| self.file.write_all(&[0; 3][..gap as usize]))
            .with_context(|| format!("failed to write {}", self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use crate::run;

    #[test]
    fn the_machines_own_cpio_reader_agrees() {
        let path = std::env::temp_dir().join(format!("orch-cpio-{}", std::process::id()));
        let mut archive = Archive::create(&path).unwrap();
        archive.file("/a/b/file", 0o755, b"12345").unwrap();
        archive.file("a/b/other", 0o644, b"").unwrap();
        archive.link("a/link", "b/file").unwrap();
        archive.finish().unwrap();
        let listed = run::output(run::command("busybox", ["cpio", "-t", "-v", "-F"]).arg(&path));
        std::fs::remove_file(&path).unwrap();
        let listed = listed.unwrap();
        let names: Vec<&str> = listed
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/file", "a/b/other", "a/link"], "{listed}");
        assert!(
            listed.starts_with("drwxr-xr-x") && listed.contains("-rwxr-xr-x"),
            "{listed}"
        );
    }
}
