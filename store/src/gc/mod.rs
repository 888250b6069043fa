//! Takes away what no kept version needs: metadata, records, pins, staging, values beside the catalog.
//!
//! `docs/retention.md` says what is kept and why. A space is collected while no job changes it; peers
//! and other spaces go on meanwhile, so what they may add is looked at again inside the one
//! transaction that removes rows. Files go after the rows that name them: a kill between leaves files
//! that nothing names, and the next run finds those.
//!
//! Invariant: whatever a root reaches is there afterwards as it was before. Where it cannot be known
//! what a root reaches, nothing is removed.

mod aside;
mod garbage;
mod home;
mod lease;
mod marks;
mod roots;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use sluice_protocol::ids::{BlobHash, SpaceId};

use crate::catalog::{Catalog, CatalogError};
use crate::durable::Folder;
use crate::lake::{Lake, LakeError};
use crate::pins::{self, PinError};
use crate::publish;
use crate::staging::{STAGING_FOLDER, Staging, StagingError};
use garbage::Garbage;
use marks::Marks;
use roots::Roots;

pub use aside::{Aside, LyingAside, lying_aside};
pub use home::{Alone, collect_home};
pub use lease::lease;

/// What is kept, and as of when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Newest versions that an owner keeps; 0 counts as 1.
    pub snapshots: usize,
    /// How old a value that nobody names must be, in milliseconds.
    pub grace_ms: u64,
    /// How long the losing side of a decision stays, in milliseconds; none is for ever.
    pub kept_ms: Option<u64>,
    /// How long damaged bytes stay, in milliseconds; none is for ever.
    pub quarantine_ms: Option<u64>,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What went, or would go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Versions whose manifest is kept.
    pub kept: u64,
    /// Versions of which something went.
    pub versions: u64,
    /// Rows of the catalog.
    pub rows: u64,
    /// Files: pins, staged parts, values beside the catalog.
    pub files: u64,
    /// Bytes that are free again: values and files. A pin frees its bytes when no other name of the file is left.
    pub bytes: u64,
    /// Of the files, those that lay aside for people.
    pub aside_files: u64,
    /// Entries that lie aside, are old enough to go, and could not be removed.
    pub aside_stuck: u64,
    /// What lay aside, before any of it went.
    pub aside: LyingAside,
}

impl Collected {
    /// Adds what another part of the work did.
    pub fn add(&mut self, other: Collected) {
        self.kept += other.kept;
        self.versions += other.versions;
        self.rows += other.rows;
        self.files += other.files;
        self.bytes += other.bytes;
        self.aside_files += other.aside_files;
        self.aside_stuck += other.aside_stuck;
    }

    fn lay_aside(&mut self, lying: LyingAside, old: &[aside::Old]) {
        self.aside = lying;
        for entry in old {
            self.files += entry.aside.files;
            self.aside_files += entry.aside.files;
            self.bytes += entry.aside.bytes;
        }
    }
}

/// Why nothing, or not everything, was removed.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    #[error("the {what} {hash} of a kept version cannot be read, so what it needs is not known; nothing was removed")]
    Unreadable { what: &'static str, hash: BlobHash },
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Collects one space. The caller sees to it that no job changes the space meanwhile.
///
/// With `dry_run` nothing is changed, and the answer is what would go. Values beside the catalog are
/// left to [`collect_home`].
pub fn collect(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    retention: &Retention,
    dry_run: bool,
) -> Result<Collected, GcError> {
    let reader = catalog.read()?;
    let roots = Roots::of(&reader, space, retention)?;
    let mut marks = Marks::default();
    marks.add(&reader, space, &roots)?;
    let mut garbage = Garbage::find(lake, &reader, space, &roots, &mut marks)?;
    let unfinished = publish::unfinished_aside(&reader, space)?;
    let since_ms = aside::known_since(&reader, space, retention.now_ms)?;
    drop(reader);
    let (lying, old) = aside::old(lake, retention, since_ms, &unfinished);
    if dry_run {
        let mut would = garbage.collected(&roots);
        would.lay_aside(lying, &old);
        let (files, bytes) = pins::freed_by(lake, &garbage.pins)?;
        would.files += files;
        would.bytes += bytes;
        return Ok(would);
    }
    let mut collected = catalog.write(|b| -> Result<Collected, GcError> {
        // A lease, or a head that was signed anew, may have come since.
        let now = Roots::of(b, space, retention)?;
        marks.add(b, space, &now)?;
        garbage.spare(b, space, &now, &mut marks)?;
        garbage.forget(lake, b, space, &now)?;
        aside::begin(b, space, retention.now_ms)?;
        Ok(garbage.collected(&now))
    })?;
    let (files, bytes) = pins::unlink(lake, space, catalog, &garbage.pins)?;
    collected.files += files;
    collected.bytes += bytes;
    if garbage.staging && has_staging(lake)? {
        let before = staged_bytes(lake)?;
        collected.files += Staging::open(lake, *space, catalog)?.sweep(&|_| false)?;
        collected.bytes += before.saturating_sub(staged_bytes(lake)?);
    }
    // Last: what a person's hand made hard to remove must not keep the rest.
    let due = old.len();
    let went = aside::remove(lake, old);
    collected.aside_stuck = (due - went.len()) as u64;
    collected.lay_aside(lying, &went);
    Ok(collected)
}

fn staging_io(lake: &Lake) -> impl Fn(io::Error) -> GcError {
    let path = lake.root().join(".sluice").join(STAGING_FOLDER);
    move |source| GcError::Io { path: path.clone(), source }
}

fn has_staging(lake: &Lake) -> Result<bool, GcError> {
    let Some(own) = lake.own_if_present() else { return Ok(false) };
    let own = Folder::of(own, "gc").map_err(staging_io(lake))?;
    Ok(own.look(STAGING_FOLDER).map_err(staging_io(lake))?.is_some())
}

fn staged_bytes(lake: &Lake) -> Result<u64, GcError> {
    let Some(own) = lake.own_if_present() else { return Ok(0) };
    let sum = || -> io::Result<u64> {
        let folder = Folder::of(own, "gc")?.open(STAGING_FOLDER)?;
        let mut bytes = 0;
        for name in folder.names()?.0 {
            bytes += folder.look(&name)?.map_or(0, |seen| seen.print.size);
        }
        Ok(bytes)
    };
    sum().map_err(staging_io(lake))
}
