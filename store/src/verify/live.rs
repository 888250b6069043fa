//! Whether what is published is still what was verified: the check behind `sluice verify`.
//!
//! Shallow: every live file is where it should be, with the fingerprint, mode and time it was
//! published with, every link reads as it should, the links by which users see it too, and nothing else
//! lies there. Deep: every byte is
//! hashed again and every table opened again.
//!
//! Invariant: it writes nothing and stops at nothing: every problem is counted and named, as far as
//! the list goes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use sluice_protocol::annex::Annex;
use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::is_regenerated;

use super::shown::Shown;
use super::{Proof, entries_of, name_of, tables};
use crate::blobs::{BlobError, Fit, compare, prove_place};
use crate::catalog::{Catalog, CatalogError, LiveRecord, LiveSection, Lookup, Reader};
use crate::durable::{Folder, Kind, Seen};
use crate::lake::{Lake, LakeError, Place};
use crate::publish::{
    GENERATIONS_FOLDER, LIVE_LINK, SECTIONS_FOLDER, lake_path, link_text, live_annex, published_mode, section_place,
    walk,
};
use crate::table::TableReader;
use crate::view::ManifestView;
use crate::watch::Watch;

/// Problems that are kept with their names; more are counted.
const PROBLEMS_MAX: usize = 10_000;

/// What is said of a file that rotted.
const DAMAGED: &str = "the bytes are damaged: they changed, and nothing else about the file did";

/// One thing that is not as it was published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The section's folder in the lake, or `.`.
    pub section: String,
    /// The lake path, or empty when the whole section is meant.
    pub path: String,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "section `{}`: {}", self.section, self.what)
        } else {
            write!(f, "`{}`: {}", self.path, self.what)
        }
    }
}

/// What a check of the live version found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The generation that was checked; none when nothing is published.
    pub generation: Option<u64>,
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// Tables that were opened again and agree.
    pub tables_proven: u64,
    /// Tables that nothing here could open, as `name: reason`.
    pub unproven: Vec<String>,
    /// The first problems, sorted.
    pub problems: Vec<Problem>,
    /// All problems.
    pub problem_count: u64,
    /// Files whose bytes changed though their fingerprint did not: the disk's doing, nobody's edit.
    pub rotten: Vec<Rotten>,
    /// Sections that a person made the site's own; they are not checked.
    pub detached: Vec<String>,
}

/// A published file that rotted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotten {
    pub hash: BlobHash,
    pub place: Place,
}

impl Report {
    pub(super) fn add(&mut self, section: &str, path: &str, what: impl Into<String>) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            let (section, path) = (section.to_string(), path.to_string());
            self.problems.push(Problem { section, path, what: what.into() });
        }
    }
}

struct Live<'a> {
    lake: &'a Lake,
    space: &'a SpaceId,
    reader: Reader,
    own: Folder,
    deep: bool,
    watch: &'a dyn Watch,
    bytes_done: AtomicU64,
    rotten: Mutex<Vec<Rotten>>,
}

/// Checks the live version; see the module's page.
pub fn verify_live(
    lake: &Lake,
    catalog: &Catalog,
    space: &SpaceId,
    deep: bool,
    readers: &[Arc<dyn TableReader>],
    watch: &dyn Watch,
) -> Result<Report, super::VerifyError> {
    let mut report = Report::default();
    let reader = catalog.read()?;
    let Some(record) = reader.live(space)? else { return Ok(report) };
    report.generation = Some(record.generation);
    let manifest = reader.meta(space, &record.snapshot.into())?;
    let Some(manifest) = manifest.and_then(|bytes| Manifest::from_bytes(&bytes).ok()) else {
        report.add("", "", "the manifest of the live version is not in the catalog");
        return Ok(report);
    };
    let folder = |dir: &cap_std::fs::Dir| {
        Folder::of(dir, "verify").map_err(|source| LakeError::Io { path: lake.root().to_path_buf(), source })
    };
    let live = Live {
        lake,
        space,
        reader,
        own: folder(lake.own().map_err(BlobError::from)?).map_err(BlobError::from)?,
        deep,
        watch,
        bytes_done: AtomicU64::new(0),
        rotten: Mutex::default(),
    };
    live.check_live_link(&record, &mut report);
    let top = folder(lake.dir()).map_err(BlobError::from)?;
    let mut shown = Shown::new(&top, &live.own, &record);
    for section in &record.sections {
        if section.detached {
            report.detached.push(name(section));
            continue;
        }
        let stayed = match section.of.filter(|of| *of != record.snapshot) {
            Some(of) => super::diff::manifest_of(&live.reader, space, of)?,
            None => None,
        };
        let listed = stayed.as_ref().unwrap_or(&manifest);
        let known = listed.sections.iter().find(|s| s.path == section.path && s.tree.page == section.tree);
        match known {
            None => {
                report.add(&name(section), "", "the manifest does not list it");
                shown.check(section, &[], &mut report);
            }
            Some(known) => {
                let entries = live.check_section(&record, section, known, readers, &mut report)?;
                shown.check(section, &entries, &mut report);
            }
        }
    }
    report.problems.sort();
    report.rotten = live.rotten.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.rotten.sort();
    Ok(report)
}

fn name(section: &LiveSection) -> String {
    section.path.as_ref().map_or_else(|| ".".to_string(), |p| p.to_string())
}

/// A link of a deep section.
fn check_link(section: &LiveSection, entry: &Entry, there: Option<&(Seen, Option<String>)>) -> Option<String> {
    let wanted = link_text(section.path.as_ref(), &entry.path, entry.target.as_deref().unwrap_or(".")).ok();
    match (wanted, there.and_then(|(_, text)| text.clone())) {
        (Some(wanted), Some(text)) if wanted == text => None,
        (_, None) => Some("the link is missing".into()),
        (_, Some(text)) => Some(format!("the link leads to `{text}`")),
    }
}

/// What a file or link of a section looks like on the disk.
type Found = BTreeMap<String, (Seen, Option<String>)>;

impl Live<'_> {
    fn check_live_link(&self, record: &LiveRecord, report: &mut Report) {
        let wanted = format!("{GENERATIONS_FOLDER}/{}", record.generation);
        if self.own.read_link(LIVE_LINK).ok().as_deref() != Some(&wanted) {
            report.add("", ".sluice/live", format!("does not point at generation {}", record.generation));
        }
    }

    /// Checks the section's folder; returns what it lists, as far as that can be read.
    fn check_section(
        &self,
        record: &LiveRecord,
        section: &LiveSection,
        known: &Section,
        readers: &[Arc<dyn TableReader>],
        report: &mut Report,
    ) -> Result<Vec<Entry>, super::VerifyError> {
        let title = name(section);
        let entries = match entries_of(&self.reader, self.space, known) {
            Ok(entries) => entries,
            Err(e) => {
                report.add(&title, "", e.to_string());
                return Ok(vec![]);
            }
        };
        let mut found = Found::new();
        let folder = self.own.open(SECTIONS_FOLDER).and_then(|f| f.open(&section.folder));
        let walked = folder.and_then(|f| {
            walk(&f, "", &mut |(path, seen, text)| {
                found.insert(path, (seen, text));
                true
            })
        });
        if let Err(e) = walked {
            report.add(&title, "", format!("its folder `{}` cannot be read: {e}", section.folder));
            return Ok(entries);
        }
        let before = report.problem_count;
        let checked: Result<Vec<Option<String>>, CatalogError> =
            entries.par_iter().map(|e| self.check_entry(section, known, e, &found)).collect();
        for (entry, problem) in entries.iter().zip(checked?) {
            if entry.kind == EntryKind::File {
                report.files += 1;
                report.bytes += entry.size;
            }
            if let Some(what) = problem {
                report.add(&title, &name_of(known, &entry.path), what);
            }
        }
        self.check_strangers(section, known, &entries, &found, report);
        // What the annex says of a table is about the live version only.
        let current = section.of.is_none_or(|of| of == record.snapshot);
        if self.deep && current && before == report.problem_count {
            self.check_table(record, section, known, &entries, readers, report)?;
        }
        Ok(entries)
    }

    fn check_entry(
        &self,
        section: &LiveSection,
        known: &Section,
        entry: &Entry,
        found: &Found,
    ) -> Result<Option<String>, CatalogError> {
        let there = found.get(entry.path.as_str());
        match entry.kind {
            // They lie in the generation.
            EntryKind::Folder | EntryKind::Link if section.shallow => Ok(None),
            EntryKind::Folder => {
                let sections = self.own.open(SECTIONS_FOLDER).and_then(|f| f.open(&section.folder));
                let is = sections.and_then(|f| f.descend(Some(&entry.path))).is_ok();
                Ok((!is).then(|| "the folder is missing".to_string()))
            }
            EntryKind::Link => Ok(check_link(section, entry, there)),
            EntryKind::File => self.check_file(section, known, entry, there),
        }
    }

    fn check_file(
        &self,
        section: &LiveSection,
        known: &Section,
        entry: &Entry,
        there: Option<&(Seen, Option<String>)>,
    ) -> Result<Option<String>, CatalogError> {
        let Some((seen, _)) = there else { return Ok(Some("the file is missing".into())) };
        if seen.kind != Kind::File {
            return Ok(Some("is not a file any more".into()));
        }
        if seen.print.size != entry.size {
            return Ok(Some(format!("has {} bytes instead of {}", seen.print.size, entry.size)));
        }
        if seen.mode != published_mode(entry) {
            let wanted = published_mode(entry);
            return Ok(Some(format!("has mode {:04o} instead of {wanted:04o}", seen.mode)));
        }
        if let Some(mtime) = entry.mtime_ns.filter(|ns| *ns != seen.print.mtime_ns) {
            return Ok(Some(format!("has the time {} instead of {mtime}", seen.print.mtime_ns)));
        }
        let (Some(hash), Ok(path)) = (entry.hash, lake_path(known.path.as_ref(), &entry.path)) else {
            return Ok(Some("cannot be named".into()));
        };
        let recorded = self.reader.file(self.space, &path)?;
        let recorded = recorded.filter(|r| r.hash == hash);
        let fits = recorded.as_ref().map_or(Fit::Other, |r| compare(&r.print, &seen.print));
        if !self.deep && fits == Fit::Same {
            return Ok(recorded.filter(|r| r.damaged).map(|_| DAMAGED.to_string()));
        }
        // A touched or unknown file is hashed even in a shallow check: it may be quite right.
        let Ok(place) = section_place(&section.folder, &entry.path) else {
            return Ok(Some("cannot be named".into()));
        };
        let right = prove_place(self.lake, &place, entry.size, &hash).is_some();
        let done = self.bytes_done.fetch_add(entry.size, Ordering::Relaxed) + entry.size;
        self.watch.amount("verify", 0, 0, done, 0);
        if right {
            return Ok(None);
        }
        if fits == Fit::Same {
            self.rotten.lock().unwrap_or_else(PoisonError::into_inner).push(Rotten { hash, place });
            return Ok(Some(DAMAGED.to_string()));
        }
        Ok(Some("the bytes are not those of the manifest".to_string()))
    }

    fn check_strangers(
        &self,
        section: &LiveSection,
        known: &Section,
        entries: &[Entry],
        found: &Found,
        report: &mut Report,
    ) {
        for path in found.keys() {
            let listed = entries.binary_search_by(|e| e.path.as_str().cmp(path)).is_ok();
            if listed {
                continue;
            }
            let parsed = LakePath::parse(path).ok();
            if parsed.as_ref().is_some_and(|p| is_regenerated(section.kind, p)) {
                continue;
            }
            let shown = parsed.map_or_else(|| path.clone(), |p| name_of(known, &p));
            report.add(&name(section), &shown, "was added here");
        }
    }

    fn check_table(
        &self,
        record: &LiveRecord,
        section: &LiveSection,
        known: &Section,
        entries: &[Entry],
        readers: &[Arc<dyn TableReader>],
        report: &mut Report,
    ) -> Result<(), super::VerifyError> {
        if !known.kind.is_table() {
            return Ok(());
        }
        let Some(annex) = self.annex(record)? else {
            report.add(known.name(), "", "the annex of the live version is not in the catalog");
            return Ok(());
        };
        let view = |entries: &[Entry]| {
            let place = |path: &LakePath| section_place(&section.folder, path).ok();
            let gone = || BlobError::Unknown(section.tree);
            ManifestView::of_places(self.lake, entries, place).ok_or_else(gone)
        };
        let check = tables::Check { view: &view, annex: &annex, readers };
        match check.prove(known, &|| Ok(entries.to_vec())) {
            Ok(Proof::Proven(_)) => report.tables_proven += 1,
            Ok(Proof::Unproven(reason)) => report.unproven.push(format!("{}: {reason}", known.name())),
            Ok(_) => {}
            Err(e) => report.add(known.name(), "", e.to_string()),
        }
        Ok(())
    }

    /// The annex of the live version; none when it is gone or belongs to another snapshot.
    fn annex(&self, record: &LiveRecord) -> Result<Option<Annex>, CatalogError> {
        let Some(hash) = live_annex(&self.reader, self.space)? else { return Ok(None) };
        let bytes = self.reader.meta(self.space, &hash)?;
        let annex = bytes.and_then(|b| Annex::from_bytes(&b).ok());
        Ok(annex.filter(|a| a.manifest == record.snapshot))
    }
}
