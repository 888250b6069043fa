//! A table directory on the owner's disk, seen as a section.
//!
//! Invariant: the listing is taken once, when the view opens. What a writer adds later does not
//! exist here, so everything that is derived from one view speaks of one moment. Nothing outside
//! the directory is listed, whatever its links say.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sluice_protocol::limits::{ENTRIES_MAX, FILE_BYTES_MAX, PATH_DEPTH_MAX};
use sluice_protocol::path::LakePath;
use sluice_store::table::{SectionView, TableError, ViewFile};

/// Longest single read, in bytes; longer ranges are asked for in pieces by the object store.
pub const READ_BYTES_MAX: u64 = 1 << 30;

/// A directory, listed once.
pub struct DirView {
    root: PathBuf,
    files: Vec<ViewFile>,
}

impl DirView {
    /// Lists `root`, which may itself be a link.
    ///
    /// Files whose names no lake may carry are left out: a table that needs one fails by name later.
    ///
    /// # Errors
    /// Any error of the file system, except that a file may vanish while we look.
    pub fn open(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let mut files = Vec::new();
        walk(&root, &root, "", 0, &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { root, files })
    }

    /// Where a listed file lies.
    pub fn disk_path(&self, path: &LakePath) -> PathBuf {
        self.root.join(path.as_str())
    }

    /// A cleanup that runs while a format library reads makes it fail in many ways. What matters to
    /// the caller is that a file went away, so that it tries again.
    pub fn missing_if_vanished(&self, error: TableError) -> TableError {
        match (error, self.vanished()) {
            (TableError::Unreadable { table, .. }, Some(file)) => {
                TableError::MissingFile { table, version: 0, file: file.to_string() }
            }
            (error, _) => error,
        }
    }

    /// The first listed file that is no longer there, if any is missing.
    fn vanished(&self) -> Option<&LakePath> {
        let gone = |f: &&ViewFile| !self.disk_path(&f.path).exists();
        self.files.iter().find(gone).map(|f| &f.path)
    }
}

fn walk(root: &Path, folder: &Path, prefix: &str, depth: usize, files: &mut Vec<ViewFile>) -> io::Result<()> {
    if depth >= PATH_DEPTH_MAX {
        return Err(io::Error::other(format!("`{prefix}` is deeper than {PATH_DEPTH_MAX} folders")));
    }
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    if prefix.is_empty() {
        entries.sort_by_key(|e| listing_order(&e.file_name()));
    }
    for entry in entries {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let below = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(root, &entry.path(), &below, depth + 1, files)?;
        } else if (kind.is_file() || leads_inside(root, &entry.path(), kind))
            && !is_half_written(&below)
            && let Ok(path) = LakePath::parse(&below)
        {
            match fs::metadata(entry.path()) {
                Ok(meta) => files.push(seen(path, &meta)?),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if files.len() as u64 > ENTRIES_MAX {
            return Err(io::Error::other(format!("more than {ENTRIES_MAX} files")));
        }
    }
    Ok(())
}

/// Writers place what is named before what names it, so we list the other way round: whatever a
/// listed commit, manifest or tag names was there before it, and is listed after it.
fn listing_order(name: &OsStr) -> usize {
    const NAMING_OTHERS: [&str; 3] = ["_refs", "_delta_log", "_versions"];
    NAMING_OTHERS.iter().position(|first| name == *first).unwrap_or(NAMING_OTHERS.len())
}

/// A link to a file of the same table reads as that file.
fn leads_inside(root: &Path, path: &Path, kind: fs::FileType) -> bool {
    kind.is_symlink() && path.canonicalize().is_ok_and(|real| real.starts_with(root) && real.is_file())
}

/// The object store that delta-rs and Lance write through stages a file as `NAME#NUMBER`
/// beside its final place.
fn is_half_written(path: &str) -> bool {
    match path.rsplit_once('#') {
        Some((_, tail)) => !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit()),
        None => false,
    }
}

fn seen(path: LakePath, meta: &fs::Metadata) -> io::Result<ViewFile> {
    use std::os::unix::fs::MetadataExt;
    if meta.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("`{path}` is longer than {FILE_BYTES_MAX} bytes")));
    }
    let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    Ok(ViewFile { path, size: meta.len(), mtime_ns })
}

impl SectionView for DirView {
    fn files(&self) -> &[ViewFile] {
        &self.files
    }

    fn read(&self, path: &LakePath, range: Range<u64>) -> io::Result<Bytes> {
        let at = self
            .files
            .binary_search_by(|f| f.path.cmp(path))
            .map_err(|_| io::Error::new(io::ErrorKind::NotFound, path.to_string()))?;
        let length = range.end.saturating_sub(range.start);
        if range.end > self.files[at].size || length > READ_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut buffer = vec![0; length as usize];
        File::open(self.disk_path(path))?.read_exact_at(&mut buffer, range.start)?;
        Ok(buffer.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_once_and_leaves_out_what_is_half_written_or_outside() {
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join("secret"), b"x").expect("a file");
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("a")).expect("a folder");
        fs::write(dir.path().join("a/real"), b"0123456789").expect("a file");
        fs::write(dir.path().join("a/real#1"), b"0").expect("a file");
        std::os::unix::fs::symlink(dir.path().join("a/real"), dir.path().join("near")).expect("ln");
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("far")).expect("ln");
        let view = DirView::open(dir.path()).expect("a view");
        fs::write(dir.path().join("later"), b"y").expect("a file");

        let names: Vec<&str> = view.files().iter().map(|f| f.path.as_str()).collect();
        assert_eq!(names, ["a/real", "near"]);
        let real = LakePath::parse("a/real").expect("a path");
        assert_eq!(&view.read(&real, 2..5).expect("a range")[..], b"234");
        let long = view.read(&real, 5..11).expect_err("a range past the end");
        assert_eq!(long.kind(), io::ErrorKind::UnexpectedEof);
        let later = LakePath::parse("later").expect("a path");
        assert_eq!(view.read(&later, 0..1).expect_err("unlisted").kind(), io::ErrorKind::NotFound);

        assert_eq!(view.vanished(), None);
        fs::remove_file(dir.path().join("a/real")).expect("removed");
        assert_eq!(view.vanished(), Some(&real));
    }
}
