//! What lies in a lake now: the first step of the flow.
//!
//! A scan looks at names and `stat` results and asks table readers which files a table is made of;
//! it reads no file. A file whose fingerprint the catalog knows gets its hash from there and is
//! never read again. Sections are found by layout (`protocol::sections`); what no rule knows still
//! travels.
//!
//! Invariant: everything in the lake is in the result, or is reported as skipped with the reason,
//! or is a file that its table format does not count to the kept versions. No link is followed.

pub(crate) mod known;
pub(crate) mod layout;
mod links;
mod names;
pub(crate) mod tables;
mod walk;

pub(crate) use walk::stat_file;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_protocol::annex::TableFacts;
use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{History, SectionKind, SectionState};
use sluice_protocol::path::LakePath;

use crate::catalog::{Catalog, CatalogError};
use crate::lake::{Fingerprint, Lake};
use crate::table::{TableError, TableReader};
use crate::watch::Watch;

/// A file as young as this may change again without its times showing it, in nanoseconds.
const RACY_NS: i64 = 2_000_000_000;

/// How a lake is scanned.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// Which table versions are kept.
    pub history: History,
    /// Carry all tables as files, unread.
    pub opaque: bool,
    /// Carry the tables in these folders as files, unread.
    pub opaque_folders: BTreeSet<LakePath>,
    /// Folders whose kind is decreed; everything below belongs to them.
    pub sections: BTreeMap<LakePath, SectionKind>,
    /// The snapshot before: the last good version of a table that cannot be read now comes from it.
    pub previous: Option<Previous>,
    /// Wait before a table that is being written is read again; doubled each time.
    pub retry_wait: Duration,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            history: History::All,
            opaque: false,
            opaque_folders: BTreeSet::new(),
            sections: BTreeMap::new(),
            previous: None,
            retry_wait: Duration::from_millis(200),
        }
    }
}

/// The newest snapshot of the space, as its head names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Previous {
    pub snapshot: SnapshotId,
    pub annex: BlobHash,
}

/// Something that was left out, or that a person should know, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// Path below the lake, as far as it can be written as text.
    pub path: String,
    pub reason: String,
    /// It may well be there: only this look could not have it (a writer at work, a disk or a mount in
    /// trouble). Then it is no deletion.
    pub passing: bool,
}

impl Skip {
    pub(crate) fn new(path: impl ToString, reason: impl ToString) -> Self {
        Self { path: path.to_string(), reason: reason.to_string(), passing: false }
    }
}

/// A lake as the scan saw it.
#[derive(Debug)]
pub struct Entries {
    /// Sorted by folder.
    pub sections: Vec<SectionEntries>,
    /// What is left out.
    pub skipped: Vec<Skip>,
    /// What travels but may surprise: names that other systems cannot tell apart, odd options.
    pub notes: Vec<Skip>,
    /// When the scan began, in nanoseconds since the Unix epoch.
    pub started_ns: i64,
    /// The snapshot before, from the options.
    pub previous: Option<Previous>,
    /// How many files the catalog had a record of, if all of them are in the sections.
    pub(crate) recorded: Option<u64>,
    pub(crate) devices: Devices,
}

impl Entries {
    /// Files in all sections.
    pub fn files(&self) -> impl Iterator<Item = &Item> {
        self.sections.iter().flat_map(|s| &s.items).filter(|i| matches!(i.what, What::File { .. }))
    }
}

/// A section as the scan saw it.
#[derive(Debug, Clone)]
pub struct SectionEntries {
    pub kind: SectionKind,
    /// The section's folder; none for the lake's top.
    pub path: Option<LakePath>,
    /// Only the files directly in the folder.
    pub shallow: bool,
    pub state: SectionState,
    /// What its reader said, for tables.
    pub facts: Option<TableFacts>,
    /// Sorted by path, each once.
    pub items: Vec<Item>,
}

impl SectionEntries {
    pub(crate) fn new(kind: SectionKind, path: Option<LakePath>, shallow: bool) -> Self {
        Self { kind, path, shallow, state: state(), facts: None, items: Vec::new() }
    }

    /// How people name it: its folder, or `.` for the lake's top.
    pub fn name(&self) -> &str {
        self.path.as_ref().map_or(".", LakePath::as_str)
    }

    /// Where an item of this section lies below the lake. The scan has checked that this path exists.
    pub(crate) fn lake_path(&self, item: &LakePath) -> LakePath {
        match &self.path {
            None => item.clone(),
            Some(folder) => folder.join(item).expect("the scan found the item under this very path"),
        }
    }

    /// Whether a missing file would make the section unreadable.
    pub(crate) fn is_read_table(&self) -> bool {
        self.kind.is_table() && !self.state.opaque
    }
}

/// A state that says nothing.
pub(crate) fn state() -> SectionState {
    SectionState { table_version: None, params: None, history: None, opaque: false, unknown: Default::default() }
}

/// One thing in a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Path below the section.
    pub path: LakePath,
    pub what: What,
}

/// What a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    File {
        print: Fingerprint,
        /// Permission bits.
        mode: u32,
        /// Its bytes, if the catalog knows them or they have been read.
        hash: Option<BlobHash>,
    },
    /// An empty folder.
    Folder {
        mode: u32,
    },
    Link {
        target: String,
    },
}

/// Why a lake could not be scanned at all.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("`{table}` is a {kind} table, and this build cannot read such tables")]
    NoReader { table: String, kind: SectionKind },
    #[error("{0}")]
    Refused(#[source] TableError),
    #[error("the lake `{lake}` is itself a {kind} table; share the folder that it lies in")]
    TableAtTop { lake: String, kind: SectionKind },
    #[error("the lake holds more than {limit} files, the most that one space may have")]
    TooMany { limit: u64 },
    #[error("the lake cannot be read: {0}")]
    Lake(#[source] std::io::Error),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the scan was stopped")]
    Cancelled,
}

impl ScanError {
    /// What to do about it, in one sentence.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ScanError::NoReader { .. } | ScanError::Refused(_) => {
                Some("carry it unread, as files, with `--opaque`: it is then shown as unproven")
            }
            ScanError::TooMany { .. } => Some("share parts of the lake as spaces of their own"),
            _ => None,
        }
    }
}

/// Scans the lake: walks it in parallel, finds its sections, asks `readers` about its tables.
pub fn scan(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    options: &ScanOptions,
    readers: &[Arc<dyn TableReader>],
    watch: &dyn Watch,
) -> Result<Entries, ScanError> {
    let started_ns = now_ns();
    let reader = catalog.read()?;
    let mut report = Report::default();
    let tree = walk::walk(lake, &mut report, watch)?;
    names::collisions(&tree, &mut report);
    if let Some(kind) = tree.top_is_table()
        && !options.opaque
    {
        return Err(ScanError::TableAtTop { lake: lake.root().display().to_string(), kind });
    }
    let mut sections = layout::sections(tree, &options.sections, &mut report);
    let met = known::fill(&reader, space, &mut sections)?;
    let capture = tables::Capture { lake, space, catalog: &reader, options, readers, watch };
    capture.all(&mut sections, &mut report)?;
    report.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    for note in &report.notes {
        watch.note(format!("`{}`: {}", note.path, note.reason));
    }
    let Report { skipped, notes, doubt, devices } = report;
    let recorded = (!doubt).then_some(met);
    Ok(Entries { sections, skipped, notes, started_ns, previous: options.previous, recorded, devices })
}

/// What a scan has to say besides its entries.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub skipped: Vec<Skip>,
    pub notes: Vec<Skip>,
    /// Files with a record may have been left out of their table.
    pub doubt: bool,
    pub devices: Devices,
}

/// Which devices the folders of a lake lie on.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub top: u64,
    /// Folders that lie on another device than the folder above them.
    pub mounts: BTreeMap<LakePath, u64>,
}

impl Devices {
    /// The device of the nearest folder above `path` that is there.
    pub fn above(&self, path: &LakePath) -> u64 {
        if self.mounts.is_empty() {
            return self.top;
        }
        let mut above = path.parent();
        while let Some(folder) = above {
            if let Some(device) = self.mounts.get(&folder) {
                return *device;
            }
            above = folder.parent();
        }
        self.top
    }
}

/// The clock that file times are compared with, in nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Whether a file with this fingerprint, read between `from_ns` and `now_ns`, could change once
/// more and look the same: its last change is as young as the clock of a file system is coarse.
pub(crate) fn is_racy(print: &Fingerprint, from_ns: i64, now_ns: i64) -> bool {
    let young = from_ns.saturating_sub(RACY_NS)..=now_ns.saturating_add(RACY_NS);
    young.contains(&print.mtime_ns)
}

/// The fingerprint of a file that must be read again next time: it fits no file.
pub fn unsettled(print: &Fingerprint) -> Fingerprint {
    Fingerprint { ctime_ns: 0, ..print.clone() }
}

/// Whether a recorded fingerprint is one of [`unsettled`]: it says nothing about the file.
pub fn is_unsettled(print: &Fingerprint) -> bool {
    print.ctime_ns == 0
}
