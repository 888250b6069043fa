//! Asks table readers which files a table is made of, and keeps to that.
//!
//! Invariant: a table section holds exactly the files that its reader named in one capture (or that
//! the last good snapshot named, if they are all still as they were), or the whole table is reported
//! as skipped. A table that no reader can read stops the scan, unless it is to be carried unread.

use std::collections::HashMap;
use std::sync::Arc;

use sluice_protocol::annex::Annex;
use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::is_regenerated;
use sluice_protocol::tree::read_tree;

use super::known::known;
use super::walk::stat_file;
use super::{Item, Previous, Report, ScanError, ScanOptions, SectionEntries, Skip, What};
use crate::catalog::{CatalogError, Lookup, Reader};
use crate::lake::{Lake, Place};
use crate::table::{TableCapture, TableError, TableReader};
use crate::watch::Watch;

/// How often a table that is being written is read.
const TRIES_MAX: u32 = 3;

pub(super) struct Capture<'a> {
    pub lake: &'a Lake,
    pub space: &'a SpaceId,
    pub catalog: &'a Reader,
    pub options: &'a ScanOptions,
    pub readers: &'a [Arc<dyn TableReader>],
    pub watch: &'a dyn Watch,
}

impl Capture<'_> {
    /// Reduces each table section to the files of the table; sections that cannot be had are removed.
    pub fn all(&self, sections: &mut Vec<SectionEntries>, report: &mut Report) -> Result<(), ScanError> {
        let mut kept = Vec::with_capacity(sections.len());
        for mut section in sections.drain(..) {
            if self.watch.cancelled() {
                return Err(ScanError::Cancelled);
            }
            if !section.kind.is_table() {
                kept.push(section);
            } else if self.is_opaque(&section) {
                section.state.opaque = true;
                section.items.retain(|i| !is_regenerated(section.kind, &i.path));
                kept.push(section);
            } else {
                let new = |i: &Item| matches!(i.what, What::File { hash: None, .. });
                report.doubt |= section.items.iter().any(new);
                kept.extend(self.table(section, report)?);
            }
        }
        *sections = kept;
        Ok(())
    }

    fn is_opaque(&self, section: &SectionEntries) -> bool {
        let named = section.path.as_ref().is_some_and(|p| self.options.opaque_folders.contains(p));
        self.options.opaque || named
    }

    fn table(&self, section: SectionEntries, report: &mut Report) -> Result<Option<SectionEntries>, ScanError> {
        let reader = self
            .readers
            .iter()
            .find(|r| r.kind() == section.kind)
            .ok_or_else(|| ScanError::NoReader { table: section.name().to_string(), kind: section.kind })?;
        let mut wait = self.options.retry_wait;
        let mut tries = 1;
        loop {
            let failed = match self.capture(reader.as_ref(), &section) {
                Ok(section) => return Ok(Some(section)),
                Err(Failed::Catalog(e)) => return Err(e.into()),
                Err(Failed::Table(e)) => e,
            };
            match failed {
                e @ (TableError::UnsupportedFeature { .. } | TableError::External { .. }) => {
                    return Err(ScanError::Refused(e));
                }
                e if tries >= TRIES_MAX || self.watch.cancelled() => {
                    let before = last_good(self.lake, self.space, self.catalog, self.options.previous, &section)?;
                    let reason = match before {
                        Some(_) => e.to_string(),
                        None => format!("{e}; mend it, or carry it unread with `--opaque`"),
                    };
                    return Ok(instead(&section, before, &reason, &mut report.skipped));
                }
                _ => {}
            }
            std::thread::sleep(wait);
            wait *= 2;
            tries += 1;
        }
    }

    fn capture(&self, reader: &dyn TableReader, section: &SectionEntries) -> Result<SectionEntries, Failed> {
        let root = match &section.path {
            None => self.lake.root().to_path_buf(),
            Some(path) => self.lake.path_of(&Place::Lake(path.clone())),
        };
        let TableCapture { facts, files } = reader.capture(section.name(), &root, self.options.history)?;
        let walked: HashMap<&LakePath, &What> = section.items.iter().map(|i| (&i.path, &i.what)).collect();
        let mut taken = SectionEntries::new(section.kind, section.path.clone(), section.shallow);
        for path in files {
            if is_regenerated(section.kind, &path) {
                continue;
            }
            let what = match walked.get(&path) {
                Some(what @ What::File { .. }) => (*what).clone(),
                // The table grew since the walk.
                _ => self.look(section, &path, facts.version)?,
            };
            taken.items.push(Item { path, what });
        }
        taken.items.sort_by(|a, b| a.path.cmp(&b.path));
        taken.state.table_version = Some(facts.version);
        taken.state.history = Some(self.options.history);
        taken.facts = Some(facts);
        Ok(taken)
    }

    fn look(&self, section: &SectionEntries, path: &LakePath, version: u64) -> Result<What, Failed> {
        let missing = || TableError::MissingFile { table: section.name().to_string(), version, file: path.to_string() };
        let at = match &section.path {
            None => path.clone(),
            Some(folder) => folder.join(path).map_err(|e| TableError::Unreadable {
                table: section.name().to_string(),
                cause: format!("its file `{path}` cannot travel: {e}"),
            })?,
        };
        let (print, mode) = stat_file(self.lake, &at).ok_or_else(missing)?;
        let hash = known(self.catalog, self.space, &at, &print)?;
        Ok(What::File { print, mode, hash })
    }
}

enum Failed {
    Table(TableError),
    Catalog(CatalogError),
}

impl From<TableError> for Failed {
    fn from(e: TableError) -> Self {
        Failed::Table(e)
    }
}

impl From<CatalogError> for Failed {
    fn from(e: CatalogError) -> Self {
        Failed::Catalog(e)
    }
}

/// What stands in for a table that cannot be had now, and what is said about it.
pub(crate) fn instead(
    section: &SectionEntries,
    before: Option<SectionEntries>,
    reason: &str,
    skipped: &mut Vec<Skip>,
) -> Option<SectionEntries> {
    let said = match &before {
        Some(kept) => {
            let version = kept.state.table_version.map_or("an earlier state".into(), |v| format!("version {v}"));
            format!("{reason}; {version} is kept")
        }
        None => reason.to_string(),
    };
    skipped.push(Skip::new(section.name(), said));
    before
}

/// The section as the snapshot before had it, if all its files are still there and unchanged.
pub(crate) fn last_good(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Reader,
    previous: Option<Previous>,
    now: &SectionEntries,
) -> Result<Option<SectionEntries>, CatalogError> {
    let Some(previous) = previous else { return Ok(None) };
    let Some(bytes) = catalog.meta(space, &previous.snapshot.into())? else { return Ok(None) };
    let manifest = Manifest::from_bytes(&bytes)?;
    let same = |s: &&Section| s.path == now.path && s.kind == now.kind && !s.state.opaque;
    let Some(section) = manifest.sections.iter().find(same) else { return Ok(None) };
    let mut kept = SectionEntries::new(section.kind, section.path.clone(), section.shallow);
    kept.state = section.state.clone();
    if let Some(bytes) = catalog.meta(space, &previous.annex)? {
        kept.facts = Annex::from_bytes(&bytes)?.facts(section.path.as_ref()).cloned();
    }
    for entry in read_entries(catalog, space, section)? {
        let still = match entry.kind {
            EntryKind::File => file_again(lake, space, catalog, &kept, &entry)?,
            EntryKind::Folder => Some(What::Folder { mode: entry.mode.unwrap_or(0o755) }),
            EntryKind::Link => entry.target.clone().map(|target| What::Link { target }),
        };
        let Some(what) = still else { return Ok(None) };
        kept.items.push(Item { path: entry.path, what });
    }
    Ok(kept.facts.is_some().then_some(kept))
}

fn file_again(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Reader,
    section: &SectionEntries,
    entry: &Entry,
) -> Result<Option<What>, CatalogError> {
    let path = section.lake_path(&entry.path);
    let Some((print, mode)) = stat_file(lake, &path) else { return Ok(None) };
    let Some(hash) = entry.hash else { return Ok(None) };
    // The record of the place and not that of the file: a young file is to be read again, but its place still fits.
    let places = catalog.blob(space, &hash)?.map_or(vec![], |b| b.places);
    let fits = places.iter().any(|p| p.place == Place::Lake(path.clone()) && p.print == print)
        || known(catalog, space, &path, &print)? == Some(hash);
    Ok(fits.then_some(What::File { print, mode, hash: Some(hash) }))
}

/// All entries of a section of a snapshot whose pages are here.
pub(crate) fn read_entries(catalog: &Reader, space: &SpaceId, section: &Section) -> Result<Vec<Entry>, CatalogError> {
    let mut entries = Vec::new();
    let mut fetch = |page: &BlobHash| {
        catalog.meta(space, page)?.ok_or_else(|| CatalogError::Store(format!("the page {page} is missing")))
    };
    let read = read_tree(&section.tree, &mut fetch, &mut |entry: Entry| {
        entries.push(entry);
        Ok(())
    });
    read.map(|()| entries).map_err(|e| CatalogError::Store(e.to_string()))
}
