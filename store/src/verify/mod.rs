//! What must be true of a received version before anything of it becomes visible.
//!
//! Checked here: the manifest and the annex hash to what the signed head names; every page of every
//! section's tree is read and adds up; paths can lie in one folder tree and links stay inside; the
//! bytes of every file are on this disk and proven; every table opens through a view of those bytes
//! and says what its source said.
//!
//! Invariant: [`Verified`] has no other maker, and `publish` takes nothing else.

mod layout;
mod links;
mod live;
mod tables;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use sluice_protocol::annex::{Annex, TableFacts};
use sluice_protocol::codec::{CodecError, Document};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::{TreeError, read_tree};

pub use layout::LayoutError;
pub use links::{LinkError, resolve as resolve_link};
pub(crate) use links::relative;
pub use live::{Problem, Report, verify_live};

use crate::blobs::{BlobError, Fit, fit_of, settle};
use crate::catalog::{Catalog, CatalogError, LiveRecord, Lookup};
use crate::lake::Lake;
use crate::table::{TableError, TableReader};
use crate::view::ManifestView;
use crate::watch::Watch;

/// Missing blobs that an error names.
const NAMED_MAX: usize = 5;

/// A version that transfer says has arrived: its metadata is in the catalog, its bytes are staged.
#[derive(Debug, Clone)]
pub struct Received {
    pub space: SpaceId,
    /// The head, its signature and place in the chain checked.
    pub head: Signed<Head>,
    /// Sections this replica takes (kind or folder); empty for all.
    pub sections: Vec<String>,
}

impl Received {
    /// Whether this replica takes the section.
    pub fn takes(&self, section: &Section) -> bool {
        takes(&self.sections, section)
    }
}

/// Whether a choice of sections (kind or folder; empty for all) reaches the section.
pub fn takes(chosen: &[String], section: &Section) -> bool {
    let folder = section.name();
    chosen.is_empty()
        || chosen.iter().any(|c| {
            c == section.kind.as_str()
                || c == folder
                || folder.strip_prefix(c.as_str()).is_some_and(|rest| rest.starts_with('/'))
        })
}

/// How far a section's meaning was checked, beyond its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// Files, which mean nothing beyond their bytes.
    Files,
    /// A table that opened here and says what its source said.
    Proven(Box<TableFacts>),
    /// A table that nothing here could open; the reason.
    Unproven(String),
    /// The published section has the same tree, and was checked when it was published.
    Unchanged,
}

/// A section of a verified version.
#[derive(Debug, Clone)]
pub struct VerifiedSection {
    pub section: Section,
    /// Sorted by path. None for an unchanged deep section.
    pub entries: Option<Vec<Entry>>,
    pub proof: Proof,
}

/// A version of which everything was checked.
#[derive(Debug, Clone)]
pub struct Verified {
    space: SpaceId,
    head: Signed<Head>,
    sections: Vec<VerifiedSection>,
}

impl Verified {
    pub fn space(&self) -> SpaceId {
        self.space
    }
    pub fn head(&self) -> &Signed<Head> {
        &self.head
    }
    pub fn snapshot(&self) -> SnapshotId {
        self.head.manifest
    }
    /// The sections this replica takes, sorted by folder.
    pub fn sections(&self) -> &[VerifiedSection] {
        &self.sections
    }
    /// Sections that could not be proven, as `name: reason`.
    pub fn unproven(&self) -> Vec<String> {
        let reasons = self.sections.iter().filter_map(|s| match &s.proof {
            Proof::Unproven(reason) => Some(format!("{}: {reason}", s.section.name())),
            _ => None,
        });
        reasons.collect()
    }
}

/// Why a received version is not published.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the {what} {hash} is not here")]
    NoMetadata { what: &'static str, hash: BlobHash },
    #[error("the {what} cannot be read: {source}")]
    BadMetadata { what: String, source: CodecError },
    #[error("the head names space {head}; space {wanted} is wanted")]
    OtherSpace { head: SpaceId, wanted: SpaceId },
    #[error("the annex belongs to snapshot {annex}, not to {manifest}")]
    OtherAnnex { annex: SnapshotId, manifest: SnapshotId },
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("{count} files are not here yet, the first: {}", first.join(", "))]
    MissingBlobs { count: u64, first: Vec<String>, hashes: Vec<BlobHash> },
    #[error("`{path}` is listed with {listed} bytes; its blob {hash} has {found}")]
    OtherSize { path: String, hash: BlobHash, listed: u64, found: u64 },
    #[error("the annex says nothing of table `{table}`")]
    NoFacts { table: String },
    #[error("table `{table}`: {what} is {found} here, {source_says} at the source")]
    Disagrees { table: String, what: &'static str, found: String, source_says: String },
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("stopped on request")]
    Cancelled,
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl VerifyError {
    /// Whether the version itself is wrong, so that fetching again changes nothing.
    pub fn is_final(&self) -> bool {
        use VerifyError as E;
        matches!(
            self,
            E::OtherSpace { .. }
                | E::OtherAnnex { .. }
                | E::BadMetadata { .. }
                | E::Layout(_)
                | E::OtherSize { .. }
                | E::NoFacts { .. }
                | E::Disagrees { .. }
        )
    }
}

/// Checks everything; see the module's page.
pub fn verify(
    lake: &Lake,
    catalog: &Catalog,
    received: Received,
    readers: &[Arc<dyn TableReader>],
    watch: &dyn Watch,
) -> Result<Verified, VerifyError> {
    let reader = catalog.read()?;
    let (manifest, annex) = documents(&reader, &received)?;
    let live = reader.live(&received.space)?;
    let mut sections = Vec::new();
    for section in manifest.sections.iter().filter(|s| received.takes(s)) {
        sections.push(read_section(&reader, &received.space, section, live.as_ref(), readers)?);
    }
    drop(reader);
    check_layout(&sections)?;
    check_blobs(lake, catalog, &received.space, &sections, watch)?;
    let view = |entries: &[Entry]| {
        let reader = catalog.read().map_err(BlobError::from)?;
        ManifestView::new(lake, &reader, &received.space, entries)
    };
    let check = tables::Check { view: &view, annex: &annex, readers };
    for s in &mut sections {
        if watch.cancelled() {
            return Err(VerifyError::Cancelled);
        }
        if s.proof != Proof::Unchanged {
            s.proof = check.prove(&s.section, s.entries.as_deref().unwrap_or_default())?;
        }
    }
    Ok(Verified { space: received.space, head: received.head, sections })
}

/// The manifest and annex that the head names; the catalog checks bytes against hashes.
fn documents(reader: &impl Lookup, received: &Received) -> Result<(Manifest, Annex), VerifyError> {
    let head = &received.head;
    if head.space != received.space {
        return Err(VerifyError::OtherSpace { head: head.space, wanted: received.space });
    }
    let manifest: Manifest = document(reader, &received.space, "manifest", head.manifest.into())?;
    let annex: Annex = document(reader, &received.space, "annex", head.annex)?;
    if annex.manifest != head.manifest {
        return Err(VerifyError::OtherAnnex { annex: annex.manifest, manifest: head.manifest });
    }
    Ok((manifest, annex))
}

fn document<T: Document>(
    reader: &impl Lookup,
    space: &SpaceId,
    what: &'static str,
    hash: BlobHash,
) -> Result<T, VerifyError> {
    let bytes = reader.meta(space, &hash)?.ok_or(VerifyError::NoMetadata { what, hash })?;
    T::from_bytes(&bytes).map_err(|source| VerifyError::BadMetadata { what: what.into(), source })
}

/// Why a section's entries cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("it is not in the catalog")]
struct NoPage;

/// All entries of a section, every page checked.
pub(crate) fn entries_of(
    reader: &impl Lookup,
    space: &SpaceId,
    section: &Section,
) -> Result<Vec<Entry>, VerifyError> {
    let mut entries = Vec::new();
    let mut failed: Option<CatalogError> = None;
    let mut fetch = |hash: &BlobHash| match reader.meta(space, hash) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(NoPage),
        Err(e) => {
            failed = Some(e);
            Err(NoPage)
        }
    };
    let read = read_tree(&section.tree, &mut fetch, &mut |entry: Entry| {
        entries.push(entry);
        Ok(())
    });
    match (read, failed) {
        (_, Some(e)) => Err(e.into()),
        (Ok(()), None) => Ok(entries),
        (Err(TreeError::Fetch { page, .. }), None) => {
            Err(VerifyError::NoMetadata { what: "page", hash: page })
        }
        (Err(TreeError::Codec(source)), None) => Err(VerifyError::BadMetadata {
            what: format!("list of section `{}`", section.name()),
            source,
        }),
    }
}

/// Reads a section; one that is published with the same tree needs no second look.
fn read_section(
    reader: &impl Lookup,
    space: &SpaceId,
    section: &Section,
    live: Option<&LiveRecord>,
    readers: &[Arc<dyn TableReader>],
) -> Result<VerifiedSection, VerifyError> {
    let same = live.is_some_and(|l| {
        l.sections.iter().any(|s| {
            (&s.path, s.kind, s.shallow, s.tree) == (&section.path, section.kind, section.shallow, section.tree.page)
        })
    });
    // A table that no reader could open last time is opened when there is one now.
    let open = live.is_some_and(|l| {
        let prefix = format!("{}: ", section.name());
        l.unproven.iter().any(|u| u.starts_with(&prefix))
    });
    let again = open && !section.state.opaque && readers.iter().any(|r| r.kind() == section.kind);
    let unchanged = same && !again;
    let reason = live.and_then(|l| {
        let prefix = format!("{}: ", section.name());
        l.unproven.iter().find_map(|u| u.strip_prefix(&prefix)).map(str::to_string)
    });
    let proof = match (unchanged, reason) {
        (true, Some(reason)) => Proof::Unproven(reason),
        (true, None) => Proof::Unchanged,
        (false, _) => Proof::Files,
    };
    let entries =
        if unchanged && !section.shallow { None } else { Some(entries_of(reader, space, section)?) };
    Ok(VerifiedSection { section: section.clone(), entries, proof })
}

fn check_layout(sections: &[VerifiedSection]) -> Result<(), LayoutError> {
    let with_entries: Vec<(&Section, &[Entry])> =
        sections.iter().map(|s| (&s.section, s.entries.as_deref().unwrap_or_default())).collect();
    for (section, entries) in &with_entries {
        layout::check_section(section, entries)?;
    }
    layout::check_between(&with_entries)
}

/// Checks that every file's bytes are on this disk and proven.
fn check_blobs(
    lake: &Lake,
    catalog: &Catalog,
    space: &SpaceId,
    sections: &[VerifiedSection],
    watch: &dyn Watch,
) -> Result<(), VerifyError> {
    let mut wanted: BTreeMap<BlobHash, (u64, String)> = BTreeMap::new();
    for s in sections.iter().filter(|s| !matches!(s.proof, Proof::Unchanged)) {
        for entry in s.entries.iter().flatten().filter(|e| e.kind == EntryKind::File) {
            let (Some(hash), path) = (entry.hash, name_of(&s.section, &entry.path)) else { continue };
            let listed = wanted.entry(hash).or_insert_with(|| (entry.size, path.clone())).0;
            if listed != entry.size {
                return Err(VerifyError::OtherSize { path, hash, listed: entry.size, found: listed });
            }
        }
    }
    let total = wanted.len() as u64;
    let bytes: u64 = wanted.values().map(|(size, _)| size).sum();
    let done = AtomicU64::new(0);
    let wanted: Vec<(BlobHash, (u64, String))> = wanted.into_iter().collect();
    let reader = catalog.read()?;
    let checked: Result<Vec<Option<(BlobHash, String)>>, VerifyError> = wanted
        .par_iter()
        .map(|(hash, (size, path))| {
            let n = done.fetch_add(1, Ordering::Relaxed);
            if n.is_multiple_of(1024) {
                watch.amount("verify", n, total, 0, bytes);
                if watch.cancelled() {
                    return Err(VerifyError::Cancelled);
                }
            }
            check_blob(lake, catalog, &reader, space, hash, *size, path)
        })
        .collect();
    let missing: Vec<(BlobHash, String)> = checked?.into_iter().flatten().collect();
    watch.amount("verify", total, total, bytes, bytes);
    if missing.is_empty() {
        return Ok(());
    }
    Err(VerifyError::MissingBlobs {
        count: missing.len() as u64,
        first: missing.iter().take(NAMED_MAX).map(|(_, path)| format!("`{path}`")).collect(),
        hashes: missing.iter().map(|(hash, _)| *hash).collect(),
    })
}

fn check_blob(
    lake: &Lake,
    catalog: &Catalog,
    reader: &(impl Lookup + Sync),
    space: &SpaceId,
    hash: &BlobHash,
    size: u64,
    path: &str,
) -> Result<Option<(BlobHash, String)>, VerifyError> {
    let missing = || Ok(Some((*hash, path.to_string())));
    let Some(record) = reader.blob(space, hash)? else { return missing() };
    if record.size != size {
        let path = path.to_string();
        return Err(VerifyError::OtherSize { path, hash: *hash, listed: size, found: record.size });
    }
    let here = record.places.iter().any(|at| fit_of(lake, at) == Fit::Same)
        || settle(lake, catalog, space, hash)?;
    if here { Ok(None) } else { missing() }
}

fn name_of(section: &Section, path: &LakePath) -> String {
    section.lake_path(path).map_or_else(|_| path.to_string(), |p| p.to_string())
}
