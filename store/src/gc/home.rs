//! Trees and values beside the catalog, which all spaces of a site share.
//!
//! Invariant: a value is removed inside a transaction that finds no row naming it, so nobody can begin
//! to name it before it is gone. Trees are written before the transaction that names them; so they go
//! only while no job runs, and their files only when they are older than the grace.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use sluice_protocol::ids::{BlobHash, SpaceId};

use super::{Collected, GcError, Retention};
use crate::catalog::lookup::IN_FILE;
use crate::catalog::{Batch, Catalog, CatalogError, Lookup, Raw, Reader, SiteLookup, Table};
use crate::disk::WholeFiles;

/// What is removed here.
const GARBAGE: WholeFiles = WholeFiles("gc");
/// Files that are looked at in one transaction.
const BATCH_FILES: usize = 256;

/// Whether no job runs in any space. Asked inside transactions; must not block.
pub type Alone<'a> = dyn Fn() -> bool + 'a;

/// Removes trees that no space has a blob for, and files beside the catalog that no row names.
pub fn collect_home(
    catalog: &Catalog,
    retention: &Retention,
    alone: &Alone<'_>,
    dry_run: bool,
) -> Result<Collected, GcError> {
    let reader = catalog.read()?;
    let trees = unnamed_trees(&reader)?;
    drop(reader);
    let mut collected = Collected::default();
    if dry_run {
        collected.rows = trees.len() as u64;
    } else if !trees.is_empty() {
        collected.rows = catalog.write(|b| forget_trees(b, &trees, alone))?;
    }
    for folder in ["meta", "obao"] {
        let files = Files { catalog, folder, retention, alone, dry_run };
        collected.add(files.collect()?);
    }
    Ok(collected)
}

fn spaces(r: &impl SiteLookup) -> Result<Vec<SpaceId>, CatalogError> {
    Ok(r.spaces()?.into_iter().map(|(space, _)| space).collect())
}

fn unnamed_trees(r: &Reader) -> Result<Vec<BlobHash>, CatalogError> {
    let mut named = HashSet::new();
    for space in spaces(r)? {
        r.raw_scan(Table::Blobs as usize, &space.0, &mut |key, _| {
            named.extend(key.try_into().ok().map(BlobHash));
            Ok(true)
        })?;
    }
    let mut unnamed = Vec::new();
    r.raw_scan(Table::Outboards as usize, &[], &mut |key, _| {
        let hash = key.try_into().ok().map(BlobHash);
        unnamed.extend(hash.filter(|hash| !named.contains(hash)));
        Ok(true)
    })?;
    Ok(unnamed)
}

fn forget_trees(b: &mut Batch, trees: &[BlobHash], alone: &Alone<'_>) -> Result<u64, CatalogError> {
    if !alone() {
        return Ok(0);
    }
    let spaces = spaces(b)?;
    let mut gone = 0;
    for hash in trees {
        let mut named = false;
        for space in &spaces {
            named |= b.blob(space, hash)?.is_some();
        }
        if !named {
            b.remove(Table::Outboards, &hash.0)?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// The files of one folder beside the catalog.
struct Files<'a> {
    catalog: &'a Catalog,
    folder: &'static str,
    retention: &'a Retention,
    alone: &'a Alone<'a>,
    dry_run: bool,
}

impl Files<'_> {
    fn collect(&self) -> Result<Collected, GcError> {
        let top = self.catalog.home().join(self.folder);
        let mut collected = Collected::default();
        for path in list(&top)? {
            // Trees in the making lie at the top; values lie in folders of two digits.
            let inside = if path.is_dir() { list(&path)? } else { vec![path] };
            for some in inside.chunks(BATCH_FILES) {
                self.some(some, &mut collected)?;
            }
        }
        Ok(collected)
    }

    fn some(&self, paths: &[PathBuf], collected: &mut Collected) -> Result<(), GcError> {
        let removed = self.catalog.while_still(|b| {
            let spaces = spaces(b)?;
            let mut removed = Vec::new();
            for path in paths {
                let Ok(meta) = fs::metadata(path) else { continue };
                if meta.is_file() && self.is_garbage(b, &spaces, path, &meta)? {
                    removed.push(self.remove(path).map(|()| meta.len()));
                }
            }
            Ok(removed)
        })?;
        for bytes in removed {
            collected.files += 1;
            collected.bytes += bytes?;
        }
        Ok(())
    }

    fn is_garbage(
        &self,
        b: &Batch,
        spaces: &[SpaceId],
        path: &Path,
        meta: &fs::Metadata,
    ) -> Result<bool, CatalogError> {
        let hash = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<BlobHash>().ok());
        match hash {
            Some(hash) if self.folder == "meta" => {
                for space in spaces {
                    if b.has_meta(space, &hash)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Some(hash) => {
                let row = b.raw_get(Table::Outboards as usize, &hash.0)?;
                let named = row.is_some_and(|raw| raw.first() == Some(&IN_FILE));
                Ok(!named && self.is_old(meta) && (self.alone)())
            }
            // A file in the making that a kill left.
            None => Ok(self.is_old(meta)),
        }
    }

    fn is_old(&self, meta: &fs::Metadata) -> bool {
        let now = UNIX_EPOCH + Duration::from_millis(self.retention.now_ms);
        let age = meta.modified().ok().and_then(|at| now.duration_since(at).ok());
        age.is_some_and(|age| age >= Duration::from_millis(self.retention.grace_ms))
    }

    fn remove(&self, path: &Path) -> Result<(), GcError> {
        if self.dry_run {
            return Ok(());
        }
        GARBAGE.remove(path).map_err(|source| GcError::Io { path: path.to_path_buf(), source })
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, GcError> {
    let failed = |source: io::Error| GcError::Io { path: folder.to_path_buf(), source };
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries.map(|e| e.map(|e| e.path()).map_err(failed)).collect()
}
