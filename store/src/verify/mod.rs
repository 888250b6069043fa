//! What must be true of a received version before anything of it becomes visible.
//!
//! Checked here: the manifest and the annex hash to what the signed head names; every page of every
//! section's tree is read and adds up; paths can lie in one folder tree and links stay inside; the
//! bytes of every file are on this disk and proven; every table opens through a view of those bytes
//! and says what its source said.
//!
//! Invariant: [`Verified`] has no other maker, and `publish` takes nothing else.

mod blobs;
pub(crate) mod diff;
mod layout;
mod links;
mod live;
mod shown;
mod tables;

use std::sync::Arc;

use sluice_protocol::annex::{Annex, TableFacts};
use sluice_protocol::codec::{CodecError, Document};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::Signed;
use sluice_protocol::stages::{Replace, grows_in_place, replace_of};
use sluice_protocol::tree::{TreeError, read_tree};

pub use diff::{entries_in, leaves_of};
pub use layout::LayoutError;
pub(crate) use links::relative;
pub use links::{LinkError, resolve as resolve_link};
pub use live::{Problem, Report, Rotten, verify_live};

use crate::blobs::BlobError;
use crate::catalog::{Catalog, CatalogError, LiveRecord, Lookup};
use crate::lake::Lake;
use crate::table::{TableError, TableReader};
use crate::view::ManifestView;
use crate::watch::Watch;

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
    chosen.is_empty() || chosen.iter().any(|c| section.answers_to(c))
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
///
/// Entries are held by the page, but for those of shallow sections, and of tables while they are opened.
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
    let before = live.as_ref().map(|l| diff::manifest_of(&reader, &received.space, l.snapshot)).transpose()?.flatten();
    // A section that was changed by hand stays as it lies; nothing of the owner's is wanted in its place.
    let held = |s: &Section| live.as_ref().is_some_and(|l| l.holds_back(s).is_some());
    let all: Vec<&Section> = manifest.sections.iter().filter(|s| received.takes(s) && !held(s)).collect();
    let looks: Vec<Look> = all.iter().map(|s| look(s, live.as_ref(), readers)).collect();
    check_layout(&reader, &received.space, &all, &looks)?;
    drop(reader);
    let mut blobs = blobs::Check::new(lake, catalog, &received.space, watch);
    for (section, _) in all.iter().zip(&looks).filter(|(_, look)| **look == Look::New) {
        let old = before.as_ref().and_then(|m| m.sections.iter().find(|s| s.path == section.path));
        let old = old.filter(|o| {
            live.as_ref().is_some_and(|l| l.sections.iter().any(|s| s.tree == o.tree.page && !s.is_remade()))
        });
        blobs.section(section, &mut |each| each_unproven(&catalog.read()?, &received.space, old, section, each))?;
    }
    blobs.finish()?;
    let view = |entries: &[Entry]| ManifestView::new(lake, catalog, &received.space, entries);
    let check = tables::Check { view: &view, annex: &annex, readers };
    let mut sections = Vec::new();
    for (section, look) in all.into_iter().zip(looks) {
        if watch.cancelled() {
            return Err(VerifyError::Cancelled);
        }
        let entries = || entries_of(&catalog.read()?, &received.space, section);
        let proof = match look {
            Look::New | Look::OpenAgain => check.prove(section, &entries)?,
            Look::Unchanged => Proof::Unchanged,
            Look::StillUnproven(reason) => Proof::Unproven(reason),
        };
        sections.push(VerifiedSection { section: section.clone(), proof });
    }
    Ok(Verified { space: received.space, head: received.head, sections })
}

/// The entries whose blobs must be looked for.
///
/// A table that only grows keeps its folder and what is in it, which was checked when it was
/// published: so a commit to a table of a million files costs what it adds. Any other change makes a
/// new folder out of all files, and each of them must be there.
fn each_unproven(
    reader: &impl Lookup,
    space: &SpaceId,
    old: Option<&Section>,
    section: &Section,
    each: &mut dyn FnMut(Entry) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let growing = old.filter(|o| grows_in_place(section.kind) && o.kind == section.kind && !section.shallow);
    // Pages of the old version that cannot be read say nothing.
    if let Some(old) = growing
        && let Ok(changes) = diff::changes(reader, space, Some(old), section)
    {
        let pointers = |e: &Entry| replace_of(section.kind, &e.path) == Replace::Pointer;
        if changes.gone.iter().all(pointers) {
            return changes.come.into_iter().try_for_each(each);
        }
    }
    each_entry(reader, space, section, each)
}

/// How much of a section has to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Look {
    New,
    /// Published with the same tree.
    Unchanged,
    /// Published with the same tree, and nothing here can open it, as before; the reason.
    StillUnproven(String),
    /// Published with the same tree, unproven, and there is a reader now.
    OpenAgain,
}

fn look(section: &Section, live: Option<&LiveRecord>, readers: &[Arc<dyn TableReader>]) -> Look {
    let same = live.filter(|l| {
        l.sections.iter().filter(|s| !s.is_remade()).any(|s| {
            (&s.path, s.kind, s.shallow, s.tree) == (&section.path, section.kind, section.shallow, section.tree.page)
        })
    });
    let Some(live) = same else { return Look::New };
    let prefix = format!("{}: ", section.name());
    match live.unproven.iter().find_map(|u| u.strip_prefix(&prefix)) {
        None => Look::Unchanged,
        Some(_) if !section.state.opaque && readers.iter().any(|r| r.kind() == section.kind) => Look::OpenAgain,
        Some(reason) => Look::StillUnproven(reason.to_string()),
    }
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
pub(crate) fn entries_of(reader: &impl Lookup, space: &SpaceId, section: &Section) -> Result<Vec<Entry>, VerifyError> {
    let mut entries = Vec::new();
    each_entry(reader, space, section, &mut |entry| {
        entries.push(entry);
        Ok(())
    })?;
    Ok(entries)
}

/// Hands all entries of a section to `each`, every page checked; a page at a time is held.
fn each_entry(
    reader: &impl Lookup,
    space: &SpaceId,
    section: &Section,
    each: &mut dyn FnMut(Entry) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let mut stopped: Option<VerifyError> = None;
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
        each(entry).map_err(|e| {
            stopped = Some(e);
            CodecError::NotCanonical
        })
    });
    if let Some(e) = stopped {
        return Err(e);
    }
    match (read, failed) {
        (_, Some(e)) => Err(e.into()),
        (Ok(()), None) => Ok(()),
        (Err(TreeError::Fetch { page, .. }), None) => Err(VerifyError::NoMetadata { what: "page", hash: page }),
        (Err(TreeError::Codec(source)), None) => {
            Err(VerifyError::BadMetadata { what: format!("list of section `{}`", section.name()), source })
        }
    }
}

/// Reads every page of what is new and checks that all paths can lie in one folder tree.
fn check_layout(
    reader: &impl Lookup,
    space: &SpaceId,
    sections: &[&Section],
    looks: &[Look],
) -> Result<(), VerifyError> {
    let mut shallow: Vec<(&Section, Vec<Entry>)> = Vec::new();
    for (section, look) in sections.iter().zip(looks) {
        if *look != Look::New && !section.shallow {
            continue;
        }
        let mut check = layout::Check::new(section);
        let mut kept = Vec::new();
        each_entry(reader, space, section, &mut |entry| {
            check.entry(&entry)?;
            if section.shallow {
                kept.push(entry);
            }
            Ok(())
        })?;
        if section.shallow {
            shallow.push((section, kept));
        }
    }
    Ok(layout::check_between(sections, &shallow)?)
}

fn name_of(section: &Section, path: &LakePath) -> String {
    section.lake_path(path).map_or_else(|_| path.to_string(), |p| p.to_string())
}
