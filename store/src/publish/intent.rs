//! What publishing was about to do when it was stopped.
//!
//! Written before the first file is placed, removed in the commit that makes the version live. A
//! second run for the same snapshot goes on in the same folders; a run for another snapshot learns
//! which published folders hold files of a version that never became live.
//!
//! Invariant: while a folder that readers see may hold files of an unfinished version, a record here
//! says so, however often publishing is stopped.

use sluice_protocol::codec::{Dec, Enc, Wire};
use sluice_protocol::ids::{SnapshotId, SpaceId};
use sluice_protocol::path::LakePath;
use sluice_protocol::record;

use crate::catalog::{Batch, CatalogError, Lookup};

record! {
    /// A section that gets a folder or grows in one.
    pub struct IntentSection {
        0 => path: Option<LakePath>,
        /// Name below `.sluice/sections`.
        1 => folder: String,
        /// The folder is the published one.
        2 => grows: bool,
    }
}

record! {
    /// A published folder that an unfinished version may have grown.
    pub struct Spoiled {
        0 => snapshot: SnapshotId,
        1 => path: Option<LakePath>,
        2 => folder: String,
    }
}

record! {
    /// A version in the making.
    pub struct Intent {
        0 => snapshot: SnapshotId,
        1 => generation: u64,
        2 => sections: Vec<IntentSection>,
        /// From earlier versions that were never finished.
        3 => spoiled: Vec<Spoiled>,
    }
}

fn key(space: &SpaceId) -> String {
    format!("publish/{space}")
}

/// The unfinished version, if there is one.
pub(super) fn load(reader: &impl Lookup, space: &SpaceId) -> Result<Option<Intent>, CatalogError> {
    match reader.setting(&key(space))? {
        Some(raw) if !raw.is_empty() => Ok(Some(Intent::get(&mut Dec::new(&raw))?)),
        _ => Ok(None),
    }
}

pub(super) fn store(batch: &mut Batch, space: &SpaceId, intent: &Intent) -> Result<(), CatalogError> {
    let mut e = Enc::new(Vec::new());
    intent.put(&mut e);
    batch.put_setting(&key(space), &e.into_writer())
}

pub(super) fn clear(batch: &mut Batch, space: &SpaceId) -> Result<(), CatalogError> {
    batch.put_setting(&key(space), &[])
}

impl Intent {
    /// The folder chosen for a new section folder at `path`, when this is the same version.
    pub fn folder_for(&self, snapshot: SnapshotId, path: Option<&LakePath>) -> Option<&str> {
        let same = |s: &&IntentSection| s.path.as_ref() == path && !s.grows;
        (self.snapshot == snapshot).then(|| self.sections.iter().find(same).map(|s| s.folder.as_str())).flatten()
    }

    /// Published folders that hold files of versions other than `snapshot`.
    pub fn spoiled_for(&self, snapshot: SnapshotId) -> Vec<Spoiled> {
        self.spoiled_unless(|s| s == snapshot)
    }

    /// Published folders that hold files of any version that is not live.
    pub fn spoiled(&self) -> Vec<Spoiled> {
        self.spoiled_unless(|_| false)
    }

    fn spoiled_unless(&self, fine: impl Fn(SnapshotId) -> bool) -> Vec<Spoiled> {
        let mut all: Vec<Spoiled> = self.spoiled.iter().filter(|s| !fine(s.snapshot)).cloned().collect();
        if !fine(self.snapshot) {
            all.extend(self.sections.iter().filter(|s| s.grows).map(|s| Spoiled {
                snapshot: self.snapshot,
                path: s.path.clone(),
                folder: s.folder.clone(),
                unknown: Default::default(),
            }));
        }
        all.dedup();
        all
    }
}
