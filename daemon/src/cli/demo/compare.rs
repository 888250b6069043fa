//! Compares two folders file by file, by the BLAKE3 hash of their bytes.
//!
//! Invariant: it looks as any reader does, through the links by which a replica publishes; only our own
//! folder at the top is left out, and Lance's hint of the newest version, which every site makes anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use sluice_protocol::api::{ApiError, Failure};

/// Deepest folder that is looked into: enough for any sample, and an end to links that go in circles.
const DEPTH_MAX: usize = 32;
const OWN_FOLDER: &str = ".sluice";
const MADE_ANEW: &str = "latest_version_hint.json";

/// What a comparison found.
pub(super) struct Compared {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) differences: Vec<String>,
}

/// Compares all files below the two folders.
pub(super) fn compare(source: &Path, copy: &Path) -> io::Result<Compared> {
    let (left, right) = (files_below(source)?, files_below(copy)?);
    let mut found = Compared { files: 0, bytes: 0, differences: Vec::new() };
    for (path, size) in &left {
        found.files += 1;
        found.bytes += size;
        if !right.contains_key(path) {
            found.differences.push(format!("`{path}` is missing in the copy"));
        } else if hash(&source.join(path))? != hash(&copy.join(path))? {
            found.differences.push(format!("`{path}` is another in the copy"));
        }
    }
    let foreign = right.keys().filter(|path| !left.contains_key(*path));
    found.differences.extend(foreign.map(|path| format!("`{path}` is only in the copy")));
    Ok(found)
}

/// Bytes of all files below a folder.
pub(super) fn bytes_below(folder: &Path) -> Result<u64, ApiError> {
    let files =
        files_below(folder).map_err(|e| ApiError::plain(Failure::Error, format!("`{}`: {e}", folder.display())))?;
    Ok(files.values().sum())
}

/// Every file below `root` with its size.
fn files_below(root: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    let mut open = vec![(String::new(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if (folder.is_empty() && name == OWN_FOLDER) || name == MADE_ANEW {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let meta = std::fs::metadata(root.join(&path))?;
            if meta.is_file() {
                found.insert(path, meta.len());
            } else if meta.is_dir() && depth < DEPTH_MAX {
                open.push((path, depth + 1));
            }
        }
    }
    Ok(found)
}

fn hash(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn every_kind_of_difference_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        for side in [&a, &b] {
            fs::create_dir_all(side.join("x/y")).unwrap();
            fs::write(side.join("x/y/same"), "same").unwrap();
            fs::create_dir(side.join(OWN_FOLDER)).unwrap();
        }
        fs::write(a.join(OWN_FOLDER).join("k"), "k").unwrap();
        fs::write(a.join("x").join(MADE_ANEW), "1").unwrap();
        let found = compare(&a, &b).unwrap();
        assert_eq!((found.files, found.bytes, found.differences.len()), (1, 4, 0));
        fs::write(a.join("x/changed"), "1").unwrap();
        fs::write(b.join("x/changed"), "2").unwrap();
        fs::write(a.join("gone"), "").unwrap();
        fs::write(b.join("new"), "").unwrap();
        let found = compare(&a, &b).unwrap();
        assert_eq!(
            found.differences,
            ["`gone` is missing in the copy", "`x/changed` is another in the copy", "`new` is only in the copy"]
        );
    }

    #[test]
    fn a_replicas_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir_all(a.join("t")).unwrap();
        fs::create_dir_all(b.join(OWN_FOLDER).join("1")).unwrap();
        fs::write(a.join("t/f"), "f").unwrap();
        fs::write(b.join(OWN_FOLDER).join("1/f"), "f").unwrap();
        std::os::unix::fs::symlink(".sluice/1", b.join("t")).unwrap();
        let found = compare(&a, &b).unwrap();
        assert_eq!((found.files, found.differences.len()), (1, 0));
        assert_eq!(bytes_below(&b).unwrap(), 1);
    }
}
