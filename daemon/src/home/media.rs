//! Whether a place outlives a restart.
//!
//! Invariant: a home that would be lost with its key at the next boot is found out before the key is
//! made, by the file system it really lies on after all links, and by the folders that systems empty.

use std::path::{Path, PathBuf};

use super::{HomeError, io};

/// Folders that systems empty at boot or after some days.
const EMPTIED: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
const RAMFS_MAGIC: rustix::fs::FsWord = 0x8584_58f6;

/// Refuses a path on a file system in memory or in a folder that is emptied.
pub fn check_media(path: &Path) -> Result<(), HomeError> {
    let real = resolved(path)?;
    let volatile = |medium: &str| Err(HomeError::Volatile { path: path.to_path_buf(), medium: medium.into() });
    if let Some(folder) = is_volatile_path(&real) {
        return volatile(&format!("`{folder}`, which is emptied"));
    }
    let existing = real.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let found = rustix::fs::statfs(existing).map_err(|e| io(existing, "looked at")(e.into()))?;
    match found.f_type {
        TMPFS_MAGIC => volatile("tmpfs, which is in memory"),
        RAMFS_MAGIC => volatile("ramfs, which is in memory"),
        _ => Ok(()),
    }
}

/// The emptied folder in which `real` lies, if any. The path is taken as it is, without following links.
pub fn is_volatile_path(real: &Path) -> Option<&'static str> {
    EMPTIED.into_iter().find(|folder| real.starts_with(folder))
}

/// The path after all links of the part that exists.
fn resolved(path: &Path) -> Result<PathBuf, HomeError> {
    let absolute = std::path::absolute(path).map_err(io(path, "found"))?;
    for above in absolute.ancestors() {
        if let Ok(real) = above.canonicalize() {
            let rest = absolute.strip_prefix(above).expect("an ancestor is a prefix");
            return Ok(real.join(rest));
        }
    }
    Ok(absolute)
}
